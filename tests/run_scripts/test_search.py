"""`biomedclip search` ranks embeddings by text, image and id, and lists near-duplicates."""

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.benchmark_files import save_drawn
from helpers.embedding_shards import write_embedding_shards

from biomedclip import embed_images, embed_texts, read_image
from biomedclip.run_scripts.evaluation.dual_encoders import load_dual_encoder
from biomedclip.run_scripts.main import main


TEXT = "pleural effusion"
YEARS = [2018, 2019, 2020, 2021, 2022, None]
LICENSES = ["CC BY", "CC0"]


@pytest.fixture(scope="module")
def place(wide_model, small_processor, tmp_path_factory):
    """Return a folder with images in `scans`, a model in `model`, and their embeddings in `vectors`."""
    folder = tmp_path_factory.mktemp("search")
    wide_model.save_pretrained(folder / "model")
    small_processor.save_pretrained(folder / "model")
    paths = [f"scans/{number:02}.png" for number in range(12)]
    for number, path in enumerate(paths):
        save_drawn(folder / path, [number % 10, 12], 40, number % 2 == 0)  # the last two are copies
    encoder = load_dual_encoder(str(folder / "model"))
    embeds = embed_images(encoder.model, encoder.processor, [read_image(folder / path) for path in paths]).numpy()
    texts = embed_texts(encoder.model, encoder.processor, [f"caption {number}" for number in range(12)]).numpy()
    columns = {
        "year": (YEARS * 2),
        "license": (LICENSES * 6),
        "caption": [f"<script>alert({n})</script> & more" for n in range(12)],
    }
    named = {"model": "model", "weights": encoder.weights, "processing": encoder.processing}
    write_embedding_shards(folder / "vectors", embeds, paths, paths=paths, columns=columns, unreadable=[5], **named)
    write_embedding_shards(folder / "vectors", texts, [f"text-{n}" for n in range(12)], modality="text", **named)
    return folder


@pytest.fixture(autouse=True)
def working_directory(place, monkeypatch):
    monkeypatch.chdir(place)


def expected(place, query, modality="images"):
    """Return the ids, sorted by a product in float64."""
    table = pq.read_table(place / "vectors" / "data" / f"{modality}-00000.parquet")
    scored = [
        (-np.float32(np.dot(np.array(row["embedding"], dtype=np.float64), query.astype(np.float64))), row["id"])
        for row in table.to_pylist()
        if row["embedding"] is not None
    ]
    return [name for _, name in sorted(scored)]


def found(capsys, *arguments):
    assert main(["search", "vectors", *arguments, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def text_embedding(place, text=TEXT):
    encoder = load_dual_encoder(str(place / "model"))
    return embed_texts(encoder.model, encoder.processor, [text])[0].numpy()


def test_json_is_a_list_of_the_best_images_of_a_text(place, capsys):
    hits = found(capsys, TEXT, "--top-k", "5")
    assert [hit["id"] for hit in hits] == expected(place, text_embedding(place))[:5]
    assert [*hits[0]] == ["rank", "id", "path", "similarity", "year", "license", "caption"]
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5]
    number = int(hits[0]["id"][6:8])
    assert (hits[0]["year"], hits[0]["license"]) == (YEARS[number % 6], LICENSES[number % 2])


def test_an_image_file_and_the_id_of_an_image_find_the_same(place, capsys):
    by_image = found(capsys, "--image", "scans/03.png", "--top-k", "11")
    assert by_image[0]["id"] == "scans/03.png" and by_image[0]["similarity"] == pytest.approx(1, abs=1e-5)
    by_id = found(capsys, "--like", "scans/03.png")
    assert [hit["id"] for hit in by_id] == [hit["id"] for hit in by_image[1:]]


def test_the_query_model_can_run_in_lower_precision(place, capsys):
    exact = found(capsys, TEXT, "--top-k", "11", "--device", "cpu", "--precision", "fp32")
    low = found(capsys, TEXT, "--top-k", "11", "--device", "cpu", "--precision", "bf16")
    assert exact == found(capsys, TEXT, "--top-k", "11")
    by_id = {hit["id"]: hit["similarity"] for hit in exact}
    differences = [abs(hit["similarity"] - by_id[hit["id"]]) for hit in low]
    assert 0 < max(differences) < 0.05
    by_image = found(capsys, "--image", "scans/03.png", "--top-k", "1", "--precision", "bf16")
    assert by_image[0]["id"] == "scans/03.png" and by_image[0]["similarity"] != 1


def test_an_id_of_a_text_finds_images_and_an_id_of_an_image_finds_texts(place, capsys):
    embedding = np.array(pq.read_table(place / "vectors/data/texts-00000.parquet")["embedding"][3].as_py())
    assert [hit["id"] for hit in found(capsys, "--like", "text-3")] == expected(place, embedding)[:10]
    hits = found(capsys, "--like", "scans/03.png", "--modality", "text", "--top-k", "3")
    embedding = np.array(pq.read_table(place / "vectors/data/images-00000.parquet")["embedding"][3].as_py())
    assert [hit["id"] for hit in hits] == expected(place, embedding, "texts")[:3]


def test_a_condition_is_applied_before_ranking(place, capsys):
    hits = found(capsys, TEXT, "--where", "license = 'CC BY' and year >= 2020", "--top-k", "3")
    order = expected(place, text_embedding(place))
    assert [hit["id"] for hit in hits] == [n for n in order if n[6:8] in ("02", "04", "08", "10")][:3]
    assert found(capsys, TEXT, "--where", "year > 3000") == []


def test_near_duplicates_are_listed_in_groups(capsys):
    rows = found(capsys, "--duplicates", "0.99999")
    assert [*rows[0]][:4] == ["group", "id", "path", "similarity"]
    groups = {frozenset(row["id"] for row in rows if row["group"] == number) for number in {r["group"] for r in rows}}
    assert {frozenset(["scans/00.png", "scans/10.png"]), frozenset(["scans/01.png", "scans/11.png"])} <= groups


def test_a_table_fits_80_columns_and_messages_do_not_mix_with_data(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["search", "vectors", TEXT, "--format", "table"]) == 0
    shown = capsys.readouterr().out
    assert f"{TEXT}: the best of 11 images" in shown and max(map(len, shown.splitlines())) <= 80
    assert main(["search", "vectors", TEXT, "--where", "year > 3000", "--format", "jsonl"]) == 0
    output = capsys.readouterr()
    assert output.out == "" and "no row fulfills --where" in output.err


def test_a_page_has_thumbnails_and_escaped_text_and_loads_nothing(place, capsys):
    command = ["search", "vectors", TEXT, "--html", "hits.html", "--format", "json"]
    assert main(command) == 0
    page = (place / "hits.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/jpeg;base64,') == 10 and "<script" not in page
    assert "&lt;script&gt;alert(" in page and "default-src 'none'" in page
    assert re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,)', page) == []
    assert "10 of 10 thumbnails" in capsys.readouterr().err


def test_a_page_of_groups_has_a_heading_for_each(place, capsys):
    assert main(["search", "vectors", "--duplicates", "0.99999", "--html", "groups.html"]) == 0
    page = (place / "groups.html").read_text(encoding="utf-8")
    assert page.count("<h2>Group") == page.count('<div class="hits">') >= 2
    assert page.count("<div") == page.count("</div>")


def test_images_elsewhere_are_opened_only_if_they_are_named(place, tmp_path, capsys, monkeypatch):
    save_drawn(tmp_path / "private" / "a.png", 1, 40)
    paths = [str(tmp_path / "private" / "a.png"), "../private/a.png", None, "missing\0.png"]
    write_embedding_shards(tmp_path / "own" / "vectors", np.eye(4, dtype=np.float32), list("abcd"), paths=paths)
    monkeypatch.chdir(tmp_path / "own")
    command = ["search", "vectors", "--like", "d", "--html", "hits.html"]
    assert main(command) == 0
    assert "<img" not in (tmp_path / "own" / "hits.html").read_text(encoding="utf-8")
    shown = " ".join(capsys.readouterr().err.split())
    assert "0 of 3 thumbnails" in shown and "2 outside of this folder" in shown and "1 of datasets" in shown
    write_embedding_shards(tmp_path / "own" / "vectors", np.eye(2, dtype=np.float32), [paths[0], "b"], paths=paths[:2])
    assert main(["search", "vectors", "--like", "b", "--html", "hits.html", "--images", str(tmp_path / "private")]) == 0
    assert (tmp_path / "own" / "hits.html").read_text(encoding="utf-8").count("<img") == 1


def test_hnsw_states_its_recall_for_images_and_texts(capsys):
    pytest.importorskip("faiss")
    for _ in range(2):
        assert main(["search", "vectors", TEXT, "--index", "hnsw", "--format", "json"]) == 0
        output = capsys.readouterr()
        assert "recall@10 against exact search: 1.000 for 11 image queries, 1.000 for 12 text queries" in " ".join(
            output.err.split()
        )
        assert len(json.loads(output.out)) == 10


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "Pass one of a text, --image, --like and --duplicates"),
        ([TEXT, "--like", "scans/03.png"], 2, "not text and like"),
        ([" "], 2, "The text is empty"),
        ([TEXT, "--top-k", "0"], 2, "--top-k must be at least 1"),
        (["--duplicates", "1.5"], 2, "--duplicates must be above 0 and at most 1"),
        (["--duplicates", "0.9", "--top-k", "3"], 2, "--duplicates lists all groups"),
        ([TEXT, "--index", "hnsw", "--where", "year > 3"], 2, "--index hnsw does not support --where"),
        ([TEXT, "--where", "yaer > 3"], 2, "no column 'yaer'. Did you mean 'year'?"),
        (["--like", "scans/99.png"], 1, "The id 'scans/99.png' is not in the shards"),
        (["--like", "scans/05.png"], 1, "could not be read"),
        (["--image", "nothing.png"], 1, "--image nothing.png: the file does not exist"),
        (["--image", "model/config.json"], 1, "not an image of a known format"),
        ([TEXT, "--model", "nowhere"], 1, "--model nowhere is neither a folder"),
        ([TEXT, "--output", "hits.xyz"], 2, "pass --format, or a file name"),
        ([TEXT, "--images", "scans"], 2, "--images has no effect without --html"),
        ([TEXT, "--html", "model"], 1, "--html model is a folder. Pass the name of a file"),
        (["--like", "scans/03.png", "--device", "cpu"], 2, "--device has no effect with --like"),
        (["--duplicates", "0.9", "--precision", "bf16"], 2, "--precision has no effect with --duplicates"),
        (["--like", "scans/03.png", "--model", "model"], 2, "--model has no effect with --like"),
        ([TEXT, "--trust-remote-code"], 2, "--trust-remote-code requires --model"),
        ([TEXT, "--device", "gpu"], 2, "must be auto, cpu, cuda"),
        ([TEXT, "--precision", "int8"], 1, "is not exported"),
    ],
)
def test_an_error_is_one_message(capsys, arguments, status, message):
    assert main(["search", "vectors", *arguments]) == status
    output = capsys.readouterr()
    assert message in " ".join(output.err.split()) and output.out == "" and "Traceback" not in output.err


def test_another_model_is_refused(place, wide_model, small_processor, tmp_path, capsys):
    state = {name: tensor * 1.01 for name, tensor in wide_model.state_dict().items()}
    wide_model.save_pretrained(tmp_path / "other", state_dict=state)
    small_processor.save_pretrained(tmp_path / "other")
    assert main(["search", "vectors", TEXT, "--model", str(tmp_path / "other")]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "not the model that computed the embeddings (model). The fingerprint of its weights is" in error


def test_a_model_that_was_moved_is_named(place, tmp_path, capsys):
    write_embedding_shards(tmp_path / "vectors", np.eye(4, dtype=np.float32), list("abcd"), model="gone/or/moved")
    assert main(["search", str(tmp_path / "vectors"), TEXT]) == 1
    assert "computed with gone/or/moved, which is not a folder here. Pass --model" in capsys.readouterr().err


def test_a_folder_without_embeddings_is_refused(capsys):
    assert main(["search", "scans", TEXT]) == 1
    assert "Write them with biomedclip embed" in capsys.readouterr().err
