"""`biomedclip embed`: the same shards in every run, whatever the restarts and the number of processes."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import PartialState
from helpers.commands import ENVIRONMENT, ROOT, biomedclip, run_python
from helpers.fake_slurm import install_fake_slurm
from PIL import Image

from biomedclip import BiomedCLIPModel, BiomedCLIPProcessor, embed_images, embed_texts, export_model, read_image
from biomedclip.run_scripts.embedding import job
from biomedclip.run_scripts.embedding import run as running
from biomedclip.run_scripts.embedding.encoders import check_encoder
from biomedclip.run_scripts.embedding.shards import read_metadata
from biomedclip.run_scripts.evaluation.dual_encoders import load_dual_encoder
from biomedclip.run_scripts.main import main


BROKEN = (3, 11)
SMALL = ("--batch-size", "4", "--shard-size", "8")
TEXTS = ["chest x-ray", "a photo", "brain mri", "line chart of figure 1001", "caption"]


def draw(folder, numbers):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(256, size=(40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return a folder of 21 images, two of them damaged, and a file that is no image."""
    folder = tmp_path_factory.mktemp("inputs") / "pictures"
    draw(folder, range(21))
    (folder / f"{BROKEN[0]:02}.png").write_bytes(b"not an image")
    damaged = folder / f"{BROKEN[1]:02}.png"
    damaged.write_bytes(damaged.read_bytes()[:900])
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "good"
    draw(folder, range(0, 20, 2))
    return folder


@pytest.fixture
def run(small_checkpoint, tmp_path):
    """Return a function that runs the command, and returns its exit status."""
    return lambda *arguments: main(
        ["embed", *map(str, arguments), "--model", str(small_checkpoint), "--output", str(tmp_path / "out"), *SMALL]
    )


def rows_of(folder, modality="images"):
    return [row for path in sorted(folder.glob(f"data/{modality}-*")) for row in pq.read_table(path).to_pylist()]


def files_of(folder):
    """Return the content of all files, except times, and the incomplete files of killed runs."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".partial"]
    content = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    content.pop("embedding.run.json", None)
    if "embedding.json" in content:
        settings = json.loads(content["embedding.json"])
        for entry in settings["inputs"].values():
            del entry["starts"]
        content["embedding.json"] = settings
    return content


def runs_of(folder):
    return json.loads((folder / "embedding.run.json").read_text(encoding="utf-8"))["runs"]


def vectors(rows):
    return torch.tensor([row["embedding"] for row in rows])


def refuse_to_load(monkeypatch):
    monkeypatch.setattr(running, "load_encoder", lambda *names, **options: pytest.fail("the model must not be loaded"))


def library(small_checkpoint):
    return BiomedCLIPModel.from_pretrained(small_checkpoint).eval(), BiomedCLIPProcessor.from_pretrained(
        small_checkpoint
    )


def test_embeddings_are_those_of_the_library_and_unreadable_images_are_rows(
    run, pictures, small_checkpoint, tmp_path, capsys
):
    assert run(pictures) == 1
    errors = capsys.readouterr().err
    assert "2 of 21 items could not be read" in errors and str(pictures / "03.png") in errors
    rows = rows_of(tmp_path / "out")
    paths = [str(pictures / f"{number:02}.png") for number in range(21)]
    assert [row["id"] for row in rows] == [row["path"] for row in rows] == paths
    assert {row["modality"] for row in rows} == {"image"}
    assert [row["image_md5"] for row in rows] == [
        hashlib.md5((pictures / path).read_bytes()).hexdigest() for path in paths
    ]
    assert [number for number, row in enumerate(rows) if row["embedding"] is None] == list(BROKEN)
    assert [number for number, row in enumerate(rows) if row["error"]] == list(BROKEN)
    readable = [row for number, row in enumerate(rows) if number not in BROKEN]
    expected = embed_images(*library(small_checkpoint), [read_image(row["path"]) for row in readable])
    torch.testing.assert_close(vectors(readable), expected, rtol=0, atol=2e-6)  # other batches: another order of sums
    torch.testing.assert_close(vectors(readable).norm(dim=1), torch.ones(19), rtol=0, atol=1e-6)
    shards = sorted((tmp_path / "out" / "data").iterdir())
    assert [pq.read_metadata(path).num_rows for path in shards] == [8, 8, 5]
    assert pq.read_schema(shards[0]).field("embedding").type == pa.list_(pa.float32(), 16)
    encoder = load_dual_encoder(str(small_checkpoint))
    assert read_metadata(shards[0]) == {
        "model": str(small_checkpoint),
        "weights": encoder.weights,
        "processing": encoder.processing,
        "precision": "float32",
        "dimension": "16",
    }


def test_a_finished_run_changes_nothing_and_a_damaged_shard_is_written_again(run, pictures, tmp_path, caplog):
    assert run(pictures) == 1
    before = files_of(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").iterdir()}
    assert run(pictures) == 1
    assert {path: path.stat().st_mtime_ns for path in times} == times
    shard = tmp_path / "out" / "data" / "images-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-10])
    (tmp_path / "out" / "data" / "images-00002.parquet").unlink()
    assert run(pictures) == 1
    assert "images-00001.parquet: damaged" in caplog.text
    assert files_of(tmp_path / "out") == before


def test_an_update_adds_shards_and_leaves_the_others_alone(run, good, tmp_path):
    shutil.copytree(good, tmp_path / "good")
    assert run(tmp_path / "good") == 0
    before = files_of(tmp_path / "out" / "data")
    draw(tmp_path / "good", range(1, 20, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "embed_image_shards", lambda *arguments, **options: pytest.fail("nothing may be embedded"))
        assert run(tmp_path / "good") == 1  # other inputs, without --update
    assert run(tmp_path / "good", "--update") == 0
    after = files_of(tmp_path / "out" / "data")
    assert after.keys() - before.keys() == {"images-00002.parquet", "images-00003.parquet"}
    assert {name: after[name] for name in before} == before
    rows = rows_of(tmp_path / "out")
    new = [str(tmp_path / "good" / f"{number:02}.png") for number in range(1, 20, 2)]
    assert [row["id"] for row in rows[10:]] == new
    # An update that was killed between two shards
    (tmp_path / "out" / "data" / "images-00002.parquet").unlink()
    assert run(tmp_path / "good", "--update") == 0
    assert files_of(tmp_path / "out" / "data") == after
    assert run(tmp_path / "good") == 0 and files_of(tmp_path / "out" / "data") == after


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", "bfloat16"), "precision is bfloat16, and was float32"),
        (("--dtype", "float16"), "dtype is float16, and was float32"),
        (("--batch-size", "2"), "--batch-size is 2, and was 4"),
        (("--shard-size", "16"), "--shard-size is 16, and was 8"),
    ],
)
def test_other_settings_in_the_same_folder_are_an_error(run, good, options, message, tmp_path, monkeypatch, capsys):
    assert run(good) == 0
    before = files_of(tmp_path / "out")
    refuse_to_load(monkeypatch)
    arguments = [*SMALL, *options]
    model = json.loads((tmp_path / "out" / "embedding.json").read_text())["model"]
    assert main(["embed", str(good), "--model", model, "--output", str(tmp_path / "out"), *arguments]) == 1
    assert message in capsys.readouterr().err and files_of(tmp_path / "out") == before


def test_another_model_in_the_same_folder_is_an_error_and_a_moved_one_is_not(
    run, good, small_checkpoint, tmp_path, capsys
):
    assert run(good) == 0
    before = files_of(tmp_path / "out")
    shutil.copytree(small_checkpoint, tmp_path / "moved")
    arguments = ["embed", str(good), "--output", str(tmp_path / "out"), *SMALL, "--model", str(tmp_path / "moved")]
    assert main(arguments) == 0 and files_of(tmp_path / "out") == before
    model = BiomedCLIPModel.from_pretrained(small_checkpoint)
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "moved")
    capsys.readouterr()
    assert main(arguments) == 1
    assert "weights is" in capsys.readouterr().err and files_of(tmp_path / "out") == before


def test_the_record_lists_the_runs_that_wrote_files(run, pictures, small_checkpoint, tmp_path):
    assert run(pictures, "--device", "cpu") == 1
    (first,) = runs_of(tmp_path / "out")
    assert first["command"].startswith(f"biomedclip embed {pictures} --device cpu --model ")
    assert first["model"]["weights"] == load_dual_encoder(str(small_checkpoint)).weights
    assert (first["device"], first["embedded"], first["files_written"]) == ("cpu", {"images": 21}, 3)
    assert (first["rows"], first["errors"]) == (21, 2)
    assert first["start"] <= first["end"] and torch.__version__.startswith(first["versions"]["torch"])
    assert run(pictures, "--device", "cpu") == 1
    assert runs_of(tmp_path / "out") == [first]  # it wrote nothing
    (tmp_path / "out" / "data" / "images-00001.parquet").unlink()
    assert run(pictures) == 1
    again, second = runs_of(tmp_path / "out")
    assert again == first and (second["embedded"], second["rows"]) == ({"images": 8}, 21)


def test_a_model_with_its_own_code_embeds_only_with_the_flag(good, small_checkpoint, tmp_path, capsys):
    folder = shutil.copytree(small_checkpoint, tmp_path / "model")
    for name in ("config.json", "configuration_biomedclip.py"):
        text = (folder / name).read_text(encoding="utf-8")
        for mark in ('"model_type": "biomedclip"', 'model_type = "biomedclip"\n'):
            text = text.replace(mark, mark.replace('biomedclip"', 'someones_clip"'))
        (folder / name).write_text(text, encoding="utf-8")
    arguments = ["embed", str(good), "--model", str(folder), "--output", str(tmp_path / "out"), *SMALL]
    assert main(arguments) == 1
    assert "needs --trust-remote-code" in capsys.readouterr().err
    assert main([*arguments, "--trust-remote-code"]) == 0
    expected = embed_images(*library(small_checkpoint), [read_image(path) for path in sorted(good.iterdir())])
    torch.testing.assert_close(vectors(rows_of(tmp_path / "out")), expected, rtol=0, atol=2e-6)


def write_texts(path, texts):
    rows = [{"pair_id": f"p{number}", "caption": text, "year": number} for number, text in enumerate(texts)]
    if path.suffix == ".txt":
        path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist([row | {"image": {"bytes": b"", "path": None}} for row in rows]), path)


def test_images_that_changed_under_the_same_name_are_embedded_again_with_their_file(run, good, tmp_path, capsys):
    folder = shutil.copytree(good, tmp_path / "good")
    (folder / "02.png").write_bytes(b"not an image")
    assert run(folder) == 1
    before = files_of(tmp_path / "out")
    (folder / "04.png").write_bytes((folder / "04.png").read_bytes())  # newer, with the same content
    assert run(folder) == 1 and files_of(tmp_path / "out") == before
    shutil.copy(good / "02.png", folder)
    os.utime(folder / "02.png", (0, 0))  # repaired, with an old date
    capsys.readouterr()
    assert run(folder) == 1
    errors = capsys.readouterr().err
    assert "1 image(s) have changed" in errors and f"{folder / '02.png'}. To embed them again, pass --update" in errors
    assert files_of(tmp_path / "out") == before
    draw(folder, [1])
    assert run(folder, "--update") == 0
    after = files_of(tmp_path / "out" / "data")
    # The file of the changed image is that of a new run, and the new image is in a file of its own.
    assert (
        main(
            [
                "embed",
                str(good),
                "--model",
                runs_of(tmp_path / "out")[0]["model"]["name"],
                *SMALL,
                "--output",
                str(tmp_path / "expected"),
            ]
        )
        == 0
    )
    found, expected = rows_of(tmp_path / "out"), rows_of(tmp_path / "expected")
    assert [row["embedding"] for row in found[:10]] == [row["embedding"] for row in expected]
    assert found[10]["id"] == str(folder / "01.png") and len(found) == 11
    assert after["images-00001.parquet"] == before["data/images-00001.parquet"]
    # Images of the same file that are not among the inputs would be lost.
    shutil.copy(good / "06.png", folder / "00.png")
    capsys.readouterr()
    assert run(folder / "00.png", "--update") == 1
    assert "7 inputs that are not among the given ones" in " ".join(capsys.readouterr().err.split())
    assert files_of(tmp_path / "out" / "data") == after


@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl", "parquet"])
def test_texts_have_the_embeddings_of_the_library_and_their_own_columns(run, suffix, small_checkpoint, tmp_path):
    path = tmp_path / f"texts.{suffix}"
    write_texts(path, TEXTS)
    column = () if suffix == "txt" else ("--text-column", "caption")
    assert run("--texts", path, *column) == 0
    rows = rows_of(tmp_path / "out", "texts")
    torch.testing.assert_close(vectors(rows), embed_texts(*library(small_checkpoint), TEXTS), rtol=0, atol=1e-6)
    assert {row["modality"] for row in rows} == {"text"} and {row["path"] for row in rows} == {None}
    if suffix == "txt":
        assert [row["id"] for row in rows] == [f"{path}#{line}" for line in (1, 3, 5, 7, 9)]
        assert [row["text"] for row in rows] == TEXTS
    else:
        assert [row["id"] for row in rows] == [f"p{number}" for number in range(5)]
        assert [row["caption"] for row in rows] == TEXTS
        assert [str(row["year"]) for row in rows] == list("01234")
        assert "image" not in rows[0]


def test_images_and_texts_of_one_dataset_share_a_folder_and_keep_its_columns(run, good, small_checkpoint, tmp_path):
    content = [path.read_bytes() for path in sorted(good.iterdir())]
    captions = [*TEXTS, None, " ", *TEXTS[:3]]
    rows = [
        {"id": number, "image": {"bytes": image, "path": None}, "caption": caption, "error": "own", "tags": ["a", "b"]}
        for number, (image, caption) in enumerate(zip(content, captions, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    assert run(tmp_path / "pairs.parquet", "--texts", tmp_path / "pairs.parquet", "--text-column", "caption") == 1
    images, texts = rows_of(tmp_path / "out"), rows_of(tmp_path / "out", "texts")
    assert [row["id"] for row in images] == [row["id"] for row in texts] == [str(number) for number in range(10)]
    for found in (images, texts):
        assert [row["caption"] for row in found] == captions
        assert all(row["input_error"] == "own" and row["tags"] == ["a", "b"] for row in found)
    assert [row["image_md5"] for row in images] == [hashlib.md5(image).hexdigest() for image in content]
    assert all(row["path"] is None for row in images)
    assert [row["error"] for row in texts] == [None] * 5 + ["there is no text", "the text is empty"] + [None] * 3
    expected = embed_images(*library(small_checkpoint), [read_image(path) for path in sorted(good.iterdir())])
    torch.testing.assert_close(vectors(images), expected, rtol=0, atol=2e-6)


def test_a_changed_text_is_another_input(run, tmp_path, capsys):
    write_texts(tmp_path / "texts.txt", TEXTS)
    assert run("--texts", tmp_path / "texts.txt") == 0
    write_texts(tmp_path / "texts.txt", [*TEXTS[:4], "changed"])
    assert run("--texts", tmp_path / "texts.txt") == 1
    assert "pass --update" in capsys.readouterr().err
    assert run("--texts", tmp_path / "texts.txt", "--update") == 0
    rows = rows_of(tmp_path / "out", "texts")
    assert [row["text"] for row in rows] == [*TEXTS[:4], "changed"]
    expected = embed_texts(*library(runs_of(tmp_path / "out")[0]["model"]["name"]), ["changed"])
    torch.testing.assert_close(vectors(rows)[4:], expected, rtol=0, atol=1e-6)


def test_half_precision_is_stored_as_such(run, good, tmp_path):
    assert run(good) == 0
    exact = vectors(rows_of(tmp_path / "out"))
    shutil.rmtree(tmp_path / "out")
    assert run(good, "--dtype", "float16") == 0
    shard = tmp_path / "out" / "data" / "images-00000.parquet"
    assert pq.read_schema(shard).field("embedding").type == pa.list_(pa.float16(), 16)
    assert torch.equal(vectors(rows_of(tmp_path / "out")), exact.half().float())
    shutil.rmtree(tmp_path / "out")
    assert run(good, "--precision", "bf16") == 0
    low = vectors(rows_of(tmp_path / "out"))
    assert not torch.equal(low, exact) and (low * exact).sum(dim=1).min() > 0.99
    assert read_metadata(shard)["precision"] == "bfloat16"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_numpy_file_has_the_rows_without_errors(run, pictures, dtype, tmp_path):
    write_texts(tmp_path / "texts.csv", TEXTS)
    texts = ("--texts", tmp_path / "texts.csv", "--text-column", "caption")
    assert run(pictures, *texts, "--format", "npy", "--dtype", dtype) == 1
    rows = [row for kind in ("images", "texts") for row in rows_of(tmp_path / "out", kind) if row["error"] is None]
    embeddings = np.load(tmp_path / "out" / "embeddings.npy")
    assert embeddings.shape == (24, 16) and embeddings.dtype == dtype
    assert np.array_equal(embeddings, np.array([row["embedding"] for row in rows], dtype=dtype))
    ids = (tmp_path / "out" / "ids.txt").read_text(encoding="utf-8").splitlines()
    metadata = pq.read_table(tmp_path / "out" / "metadata.parquet").to_pylist()
    assert ids == [row["id"] for row in metadata] == [row["id"] for row in rows]
    assert [row["caption"] for row in metadata] == [None] * 19 + TEXTS


def test_an_exported_model_embeds_too(good, small_model, small_processor, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    export_model(small_model, tmp_path / "exported")
    small_processor.save_pretrained(tmp_path / "exported")
    arguments = ["embed", str(good), "--model", str(tmp_path / "exported"), "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    expected = embed_images(small_model, small_processor, [read_image(path) for path in sorted(good.iterdir())])
    torch.testing.assert_close(vectors(rows_of(tmp_path / "out")), expected, rtol=0, atol=1e-5)
    capsys.readouterr()
    assert main([*arguments, "--precision", "bfloat16"]) == 1
    assert "was exported in float32" in capsys.readouterr().err
    with pytest.raises(ValueError, match="runs only on the CPU. Omit --device"):
        check_encoder(str(tmp_path / "exported"), None, device="cuda")


def test_datasets_searches_the_shards_with_faiss(run, good, tmp_path):
    assert run(good, "--dtype", "float16") == 0
    shards = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "out/data/images-*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    shards.add_faiss_index("embedding")
    query = np.array(shards[3]["embedding"], dtype=np.float32)
    scores, found = shards.get_nearest_examples("embedding", query, k=2)
    assert found["id"][0] == str(good / "06.png")


def test_problems_are_found_before_the_model_is_loaded(good, small_checkpoint, tmp_path, monkeypatch, capsys):
    refuse_to_load(monkeypatch)
    write_texts(tmp_path / "texts.csv", TEXTS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    model, out = ("--model", small_checkpoint), ("--output", tmp_path / "out")
    for arguments, status, message in (
        ((*model, *out), 2, "Pass images, --texts, or both."),
        ((good, *model, *out, "--text-column", "caption"), 2, "--text-column requires --texts"),
        ((good, *model, *out, "--batch-size", "3"), 2, "--shard-size must be a multiple of --batch-size"),
        ((good, *model, *out, "--tasks", "3"), 2, "--tasks has no effect with --executor local"),
        ((good, *model, *out, "--executor", "ray", "--slurm-partition", "gpu"), 2, "--slurm-partition has no effect"),
        ((good, *model, *out, "--executor", "slurm"), 2, "--executor slurm requires --slurm-partition"),
        (("-", *model, *out, "--executor", "ray"), 2, "Paths on stdin reach only one process"),
        (
            ("--texts", tmp_path / "texts.csv", *model, *out, "--image-column", "scan"),
            2,
            "--image-column has no effect",
        ),
        (("--texts", tmp_path / "texts.csv", *model, *out, "--workers", "99"), 2, "--workers has no effect on texts"),
        ((good, *model, *out, "--executor", "ray", "--device", "cuda:1"), 2, "sees one GPU. Pass --device cuda."),
        ((good, *model, *out, "--precision", "int8"), 1, "is not exported"),
        ((good, *model, "--output", tmp_path / "other"), 1, "contains file. Choose an empty or a new folder."),
        ((good, *out, "--model", good), 1, "a folder of images, not a model"),
        ((tmp_path / "missing", *model, *out), 1, "missing: the file or folder does not exist"),
        (("--texts", tmp_path / "texts.csv", *model, *out), 1, "pass --text-column"),
        (("--texts", tmp_path / "texts.csv", "--text-column", "text", *model, *out), 1, "Its columns are pair_id, "),
    ):
        assert main(["embed", *map(str, arguments)]) == status
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_another_column_in_the_same_folder_is_an_error(run, good, tmp_path, capsys):
    rows = [{"id": number, "caption": text, "report": "a report"} for number, text in enumerate(TEXTS)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "texts.parquet")
    texts = ("--texts", tmp_path / "texts.parquet", "--text-column")
    assert run(good, *texts, "caption") == 0
    assert run(*texts, "report", "--update") == 1
    assert "--text-column is report, and was caption" in capsys.readouterr().err
    assert run(good, "--image-column", "scan") == 1
    assert "--image-column is scan, and was image" in capsys.readouterr().err
    # Older folders have the column of the images among the settings, and do not have that of the texts.
    path = tmp_path / "out" / "embedding.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {"image_column": "image"}
    for entry in settings["inputs"].values():
        del entry["column"], entry["starts"]
    path.write_text(json.dumps(settings), encoding="utf-8")
    assert run(good, "--image-column", "scan") == 1
    assert run(good, *texts, "caption") == 0
    assert {name: entry["column"] for name, entry in json.loads(path.read_text())["inputs"].items()} == {
        "image": "image",
        "text": "caption",
    }


def test_texts_with_the_same_id_keep_their_own_embeddings(run, small_checkpoint, tmp_path):
    path = tmp_path / "texts.jsonl"

    def write(*texts):
        ids = ["a", "a", *"bcdefg", "a", "h"]
        rows = [{"id": name, "caption": text} for name, text in zip(ids, texts, strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    texts = [f"{text} {number}" for number in (1, 2) for text in TEXTS]
    write(*texts)
    assert run("--texts", path, "--text-column", "caption") == 0
    texts[1], texts[8] = "a changed text", "another changed text"
    write(*texts)
    assert run("--texts", path, "--text-column", "caption", "--update") == 0
    rows = rows_of(tmp_path / "out", "texts")
    assert [row["caption"] for row in rows] == texts
    torch.testing.assert_close(vectors(rows), embed_texts(*library(small_checkpoint), texts), rtol=0, atol=1e-6)


def test_images_with_the_same_id_cannot_be_added_to_a_folder(run, good, tmp_path, capsys):
    content = [path.read_bytes() for path in sorted(good.iterdir())]

    def write(ids):
        rows = [
            {"id": name, "image": {"bytes": image, "path": None}} for name, image in zip(ids, content, strict=False)
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "images.parquet")

    write("aabc")
    assert run(tmp_path / "images.parquet") == 0
    write("aabcd")
    assert run(tmp_path / "images.parquet", "--update") == 0
    assert len({row["image_md5"] for row in rows_of(tmp_path / "out")}) == 5
    for ids in ("aabcda", "abcd"):
        write(ids)
        assert run(tmp_path / "images.parquet", "--update") == 1
        assert "The id 'a' occurs several times" in " ".join(capsys.readouterr().err.split())


def test_a_change_before_the_folder_was_copied_is_noticed(run, good, tmp_path, capsys):
    folder = shutil.copytree(good, tmp_path / "good")
    assert run(folder) == 0
    shutil.copy(folder / "00.png", folder / "02.png")
    for path in (tmp_path / "out" / "data").iterdir():
        later = path.stat().st_mtime + 7200  # of a copy that was made in two hours
        os.utime(path, (later, later))
    assert run(folder) == 1
    assert "1 image(s) have changed" in capsys.readouterr().err


def test_files_that_another_run_is_writing_are_kept(run, good, tmp_path):
    assert run(good) == 0
    old, new = (tmp_path / "out" / "data" / f"images-00000.parquet.{name}.1.partial" for name in ("old", "new"))
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    assert run(good) == 0
    assert new.exists() and not old.exists()


def test_a_finished_run_keeps_the_logs_of_others_and_records_its_tasks(run, good, tmp_path, monkeypatch):
    def run_here(engine, stages, logs, *, progress):
        for stage in stages:
            for rank in range(stage.tasks):
                list(stage.steps[0].run(rank=rank, world_size=stage.tasks))

    monkeypatch.setattr("biomedclip.run_scripts.embedding.tasks.Engine.run", run_here)
    ray = ("--executor", "ray", "--tasks", "2")
    assert run(good, *ray) == 0
    assert not (tmp_path / "out" / ".embed").exists()
    (tmp_path / "out" / "data" / "images-00001.parquet").unlink()
    (tmp_path / "out" / ".embed" / "other").mkdir(parents=True)
    assert run(good, *ray) == 0
    assert [path.name for path in (tmp_path / "out" / ".embed").iterdir()] == ["other"]
    device = str(PartialState().device)
    assert [(record["processes"], record["device"]) for record in runs_of(tmp_path / "out")] == [
        (2, device),
        (1, device),
    ]


def test_processes_with_other_inputs_are_an_error(run, good, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running, "gather_object", lambda found: [*found, {"image": "of another folder"}])
    assert run(good) == 1
    assert "The images differ between the processes" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out" / "data").exists()


def test_half_of_a_surrogate_pair_is_an_error_with_its_line(run, good, tmp_path, capsys):
    path = tmp_path / "table.jsonl"
    rows = [{"file_name": f"good/{number:02}.png", "caption": "fine \ud83d\ude00"} for number in (0, 2)]
    rows[1]["caption"] = "broken \ud83d"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shutil.copytree(good, tmp_path / "good")
    for arguments in ([path], ["--texts", path, "--text-column", "caption"]):
        assert run(*arguments) == 1
        error = "".join(capsys.readouterr().err.split())
        assert f"{path},line2:'caption'hashalfofasurrogatepair" in error


# Imports the command once and forks each run, which is killed at its nth event: reading an image, or completing a file.
KILLED = """
import json, os, signal, sys
from biomedclip.run_scripts import embed
from biomedclip.run_scripts.main import main

arguments, statuses = json.loads(sys.argv[1]), []
for kill_at in json.loads(sys.argv[2]):
    pid = os.fork()
    if pid == 0:
        count = 0
        def watch(event, details):
            global count
            if event == "os.rename" or (event == "open" and str(details[0]).endswith(".png")):
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(watch)
        os._exit(main(arguments))
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(json.dumps(statuses))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_several_times_gives_the_same_bytes(run, pictures, small_checkpoint, tmp_path):
    assert run(pictures) == 1
    out = str(tmp_path / "killed")
    arguments = ["embed", str(pictures), "--model", str(small_checkpoint), "--output", out, *SMALL, "--workers", "2"]
    kills = [1, 2, 7, 15, 3, 10, 0]
    command = [sys.executable, "-c", KILLED, json.dumps(arguments), json.dumps(kills)]
    result = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    statuses = json.loads(result.stdout.splitlines()[-1])
    assert statuses[:4] == [-9] * 4 and statuses[-1] == 1
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "out")


@pytest.mark.slow
def test_two_processes_give_the_shards_of_one(run, pictures, small_checkpoint, tmp_path):
    write_texts(tmp_path / "texts.csv", TEXTS)
    texts = ("--texts", str(tmp_path / "texts.csv"), "--text-column", "caption")
    assert run(pictures, *texts) == 1
    arguments = [str(pictures), "--model", str(small_checkpoint), "--output", str(tmp_path / "two"), *SMALL, *texts]
    result = biomedclip("embed", *arguments, processes=2, check=False)
    assert result.returncode == 1 and "2 of 26 items could not be read" in result.stderr, result.stderr[-3000:]
    assert files_of(tmp_path / "two") == files_of(tmp_path / "out")


@pytest.fixture
def tasks(run, pictures, small_checkpoint, tmp_path, monkeypatch):
    """Return a function that embeds images and texts in another process, and returns the result and the folder.

    The shards of this process are in `out`.
    """
    write_texts(tmp_path / "texts.csv", TEXTS)
    monkeypatch.chdir(tmp_path)
    assert run(pictures, "--texts", "texts.csv", "--text-column", "caption") == 1

    def start(name, *options, environment=None):
        arguments = [str(pictures), "--texts", "texts.csv", "--text-column", "caption", *SMALL, *options]
        command = ["embed", *arguments, "--model", small_checkpoint, "--output", name]
        module = ["-m", "biomedclip.run_scripts.main"]
        return run_python(*module, *command, environment=environment, folder=tmp_path), tmp_path / name

    return start


@pytest.mark.slow
def test_ray_gives_the_shards_of_one_process(tasks):
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "/tmp"}
    options = ("--executor", "ray", "--tasks", "2", "--workers", "1", "--memory-gb", "1")
    result, folder = tasks("ray", *options, environment=environment)
    assert result.returncode == 1 and "2 of 26 items could not be read" in result.stderr, result.stderr[-3000:]
    assert files_of(folder) == files_of(folder.parent / "out")
    (record,) = runs_of(folder)
    assert (record["executor"], record["processes"]) == ("ray", 2)
    assert record["device"] == runs_of(folder.parent / "out")[0]["device"]


@pytest.mark.slow
def test_slurm_gives_the_shards_of_one_process(tasks, tmp_path):
    environment = install_fake_slurm(tmp_path / "slurm")
    options = ("--executor", "slurm", "--slurm-partition", "cpu", "--tasks", "2", "--workers", "2")
    result, folder = tasks("slurm_run", *options, environment=environment)
    assert result.returncode == 0 and "Submitted." in result.stdout, result.stderr[-3000:]
    logs = {name: content for name, content in files_of(folder).items() if name.startswith(".embed/")}
    assert logs and {n: c for n, c in files_of(folder).items() if n not in logs} == files_of(tmp_path / "out")
    script = (tmp_path / "slurm" / "job-1.sh").read_text()
    for line in ("--array=0-1\n", "--cpus-per-task=2", "--mem-per-cpu=2G", "--job-name=biomedclip-shards"):
        assert f"#SBATCH {line}" in script
    (record,) = runs_of(folder)
    assert (record["rows"], record["errors"], record["processes"]) == (26, 2, 2)
    assert record["device"] == runs_of(tmp_path / "out")[0]["device"]
