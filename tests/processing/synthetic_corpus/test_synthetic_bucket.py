"""The drawn corpus as a mirror of PMC's bucket: complete, true to its checksums, and the same for the same seed."""

import csv
import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from lxml import etree
from PIL import Image

from biomedclip.processing.synthetic_corpus import KIND_NAMES, DrawnCorpus, bucket, draw_corpus
from biomedclip.processing.synthetic_corpus.figures import FIGURE_KINDS


FIGURES = 120
ROOT = Path(__file__).parents[3]
HREF = "{http://www.w3.org/1999/xlink}href"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> DrawnCorpus:
    return draw_corpus(tmp_path_factory.mktemp("drawn") / "mirror", figures=FIGURES, seed=3)


def metadata_of(corpus: DrawnCorpus) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_bytes()) for path in sorted((corpus.path / "metadata").iterdir())}


def can_be_kept(metadata: dict) -> bool:
    return metadata["is_pmc_openaccess"] and not metadata["is_retracted"]


def kinds_of(corpus: DrawnCorpus) -> dict[str, str]:
    with (corpus.path / "figure_kinds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["pair_id"] for row in rows}) == len(rows)
    return {row["pair_id"]: row["kind"] for row in rows}


def figures_of(corpus: DrawnCorpus) -> dict[str, etree._Element]:
    """`<fig>` by pair id, of all articles."""
    figures = {}
    for path in corpus.path.glob("PMC*/*.xml"):
        for figure in etree.parse(path).iter("fig"):
            stem = next(figure.iter("graphic")).get(HREF).split(".")[0]
            figures[f"{path.stem}/{figure.get('id')}/{stem}"] = figure
    return figures


def caption_of(figure: etree._Element) -> str:
    return " ".join("".join(block.itertext()) for block in figure.find("caption"))


def contents_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_two_corpora_of_one_seed_are_byte_identical_whatever_the_hash_seed_and_locale(
    corpus: DrawnCorpus, tmp_path: Path
):
    call = f"draw_corpus({str(tmp_path / 'again')!r}, figures={FIGURES}, seed=3)"
    code = f"from biomedclip.processing.synthetic_corpus import draw_corpus; {call}"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "LC_ALL": "C", "TZ": "Asia/Tokyo"}

    subprocess.run([sys.executable, "-c", code], check=True, env=environment)

    assert contents_of(tmp_path / "again") == contents_of(corpus.path)


def test_another_seed_draws_another_corpus(corpus: DrawnCorpus, tmp_path: Path):
    other = draw_corpus(tmp_path / "other", figures=20, seed=4)

    captions = {caption_of(figure) for figure in figures_of(corpus).values()}
    assert len(captions & {caption_of(figure) for figure in figures_of(other).values()}) < 5


def test_the_report_counts_what_can_be_kept(corpus: DrawnCorpus):
    kinds = kinds_of(corpus)

    assert corpus.figures == len(kinds) == FIGURES
    assert corpus.articles == len({pair_id.split("/")[0] for pair_id in kinds})
    assert corpus.kinds == Counter(kinds.values())
    assert set(corpus.kinds) == set(KIND_NAMES)
    assert max(corpus.kinds.values()) - min(corpus.kinds.values()) <= 1


def test_articles_hold_two_to_five_figures_of_mixed_kinds(corpus: DrawnCorpus):
    articles: dict[str, list[str]] = {}
    for pair_id, kind in kinds_of(corpus).items():
        articles.setdefault(pair_id.split("/")[0], []).append(kind)

    assert all(2 <= len(kinds) <= 5 for kinds in articles.values())
    assert sum(len(set(kinds)) > 1 for kinds in articles.values()) > 0.8 * len(articles)


@pytest.mark.parametrize("figures", [1, 2, 6, 7, 14])
def test_any_number_of_figures_can_be_asked_for(figures: int, tmp_path: Path):
    corpus = draw_corpus(tmp_path / "mirror", figures=figures)

    assert corpus.figures == len(kinds_of(corpus)) == sum(corpus.kinds.values()) == figures


def test_each_article_has_its_objects_under_the_names_of_the_bucket(corpus: DrawnCorpus):
    for name in metadata_of(corpus):
        folder = corpus.path / name
        assert (folder / f"{name}.xml").exists()
        assert (folder / f"{name}.txt").exists()
        assert (folder / f"{name}.json").read_bytes() == (corpus.path / "metadata" / f"{name}.json").read_bytes()
    assert (corpus.path / "README.txt").exists()


def test_the_metadata_has_the_keys_of_the_bucket(corpus: DrawnCorpus):
    for name, metadata in metadata_of(corpus).items():
        assert list(metadata) == [
            "pmcid", "version", "pmid", "doi", "title", "citation", "is_pmc_openaccess", "is_manuscript",
            "is_historical_ocr", "is_retracted", "license_code", "xml_url", "text_url", "pdf_url", "media_urls",
        ]  # fmt: skip
        assert f"{metadata['pmcid']}.{metadata['version']}" == name


def test_every_md5_is_true_and_every_object_has_one(corpus: DrawnCorpus):
    for name, metadata in metadata_of(corpus).items():
        keys = set()
        for url in [metadata["xml_url"], metadata["text_url"], *metadata["media_urls"]]:
            key, md5 = url.removeprefix("s3://pmc-oa-opendata/").split("?md5=")
            keys.add(key)
            assert hashlib.md5((corpus.path / key).read_bytes()).hexdigest() == md5
        objects = {f"{name}/{path.name}" for path in (corpus.path / name).iterdir() if path.suffix != ".json"}
        assert keys == objects


def test_the_inventory_lists_every_metadata_object_with_its_etag(corpus: DrawnCorpus):
    folder = corpus.path / "inventory-reports/pmc-oa-opendata/metadata"
    manifest = json.loads((folder / "2026-01-18T01-00Z/manifest.json").read_bytes())
    etags = {}
    for file in manifest["files"]:
        content = (corpus.path / file["key"]).read_bytes()
        assert (file["size"], file["MD5checksum"]) == (len(content), hashlib.md5(content).hexdigest())
        for name, key, _, etag in csv.reader(gzip.decompress(content).decode().splitlines()):
            assert name == "pmc-oa-opendata"
            etags[key] = etag

    objects = {f"metadata/{path.name}": path.read_bytes() for path in (corpus.path / "metadata").iterdir()}
    assert etags == {key: hashlib.md5(content).hexdigest() for key, content in objects.items()}


def test_articles_to_leave_out_are_marked_and_not_counted(corpus: DrawnCorpus):
    metadata = metadata_of(corpus)
    counted = {pair_id.split("/")[0] for pair_id in kinds_of(corpus)}
    newest = {entry["pmcid"]: entry["version"] for entry in sorted(metadata.values(), key=lambda one: one["version"])}

    assert counted == {
        name for name, entry in metadata.items() if can_be_kept(entry) and newest[entry["pmcid"]] == entry["version"]
    }
    assert sum(entry["is_retracted"] for entry in metadata.values()) == 1
    closed = [entry for entry in metadata.values() if not entry["is_pmc_openaccess"]]
    assert len(closed) == 1
    assert {name for name, entry in metadata.items() if entry["license_code"] == "TDM"} == {
        f"{entry['pmcid']}.{entry['version']}" for entry in closed
    }
    assert [entry["version"] for entry in metadata.values()].count(2) == 1
    assert len({entry["license_code"] for entry in metadata.values()}) >= 5


def test_each_figure_of_the_table_is_in_the_xml_and_has_its_files(corpus: DrawnCorpus):
    figures = figures_of(corpus)
    for pair_id in kinds_of(corpus):
        assert pair_id in figures
        article, _, stem = pair_id.split("/")
        files = list((corpus.path / article).glob(f"{stem}.*"))
        assert 1 <= len(files) <= 2
        sizes = [Image.open(path).size for path in files]
        assert all(120 <= side <= 260 for side in max(sizes))
        assert all(graphic.get(HREF).split(".")[0] == stem for graphic in figures[pair_id].iter("graphic"))


def test_captions_are_distinct_and_survive_the_markup(corpus: DrawnCorpus, monkeypatch: pytest.MonkeyPatch):
    written = set()

    def remembering(write):
        def remember(*arguments):
            sentences = write(*arguments)
            written.add(" ".join(sentences))
            return sentences

        return remember

    for name in ("write_caption", "write_short_caption"):
        monkeypatch.setattr(bucket, name, remembering(getattr(bucket, name)))
    draw_corpus(corpus.path.parent / "again", figures=FIGURES, seed=3)

    figures = figures_of(corpus)
    kinds = kinds_of(corpus)
    captions = [caption_of(figures[pair_id]) for pair_id in kinds]
    assert len(set(captions)) == FIGURES
    assert all(kind in caption for kind, caption in zip(kinds.values(), captions, strict=True))
    assert {caption_of(figure) for figure in figures.values()} == written


def test_the_xml_takes_many_forms(corpus: DrawnCorpus):
    texts = [path.read_text(encoding="ascii") for path in corpus.path.glob("PMC*/*.xml")]
    together = "".join(texts)

    for form in (
        "<fig-group", "<floats-group>", "<app ", "<alternatives>", "<caption><title>", "</p><p>", "<italic>", "<bold>",
        "<sub>", "&#x003B1;", '.jpg"/>', '-g001"/>',
    ):  # fmt: skip
        assert form in together, form
    for text in texts:
        root = etree.fromstring(text.encode())
        referred = {reference.get("rid") for reference in root.iter("xref")}
        assert referred == {figure.get("id") for figure in root.iter("fig")}


def test_image_files_come_in_several_formats_and_modes(corpus: DrawnCorpus):
    modes: dict[str, set[str]] = {}
    for path in corpus.path.glob("PMC*/drawn-*"):
        with Image.open(path) as picture:
            modes.setdefault(path.suffix, set()).add(picture.mode)

    assert set(modes) == {".jpg", ".png", ".gif", ".tif"}
    assert {"RGB", "L"} <= modes[".jpg"]
    assert {"RGB", "P"} <= modes[".png"]


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bucket, "_write_inventory", interrupt)
    with pytest.raises(KeyboardInterrupt):
        draw_corpus(tmp_path / "mirror", figures=10)

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("precious")

    with pytest.raises(FileExistsError, match="Choose another folder"):
        draw_corpus(tmp_path, figures=10)

    assert contents_of(tmp_path) == {"mine.txt": b"precious"}


def test_a_file_in_the_way_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")

    with pytest.raises(FileExistsError, match="file"):
        draw_corpus(tmp_path / "file", figures=10)


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path: Path):
    (tmp_path / "empty").mkdir()

    assert draw_corpus(tmp_path / "empty", figures=2).path == tmp_path / "empty"
    assert draw_corpus(tmp_path / "not" / "yet" / "there", figures=2).figures == 2


def test_more_figures_than_exist_are_refused_with_the_number_that_can_be_had(tmp_path: Path):
    most = len(FIGURE_KINDS) * min(kind.combinations for kind in FIGURE_KINDS.values())

    with pytest.raises(ValueError, match=str(most)):
        draw_corpus(tmp_path / "mirror", figures=most + 1)
    with pytest.raises(ValueError, match="between 1 and"):
        draw_corpus(tmp_path / "mirror", figures=0)
    assert list(tmp_path.iterdir()) == []


def test_the_largest_corpus_repeats_no_combination():
    most = len(FIGURE_KINDS) * min(kind.combinations for kind in FIGURE_KINDS.values())

    plan = bucket._plan(most, seed=0)

    kept = [(figure.kind, figure.combination) for article in plan if article.kept for figure in article.figures]
    assert len(set(kept)) == len(kept) == most


def test_a_negative_seed_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="seed"):
        draw_corpus(tmp_path / "mirror", figures=2, seed=-1)


def test_progress_shows_a_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    draw_corpus(tmp_path / "quiet", figures=2)
    assert capsys.readouterr().err == ""

    draw_corpus(tmp_path / "loud", figures=2, progress=True)
    assert "Articles" in capsys.readouterr().err
