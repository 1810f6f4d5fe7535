"""The synthetic corpus in the layout of PubMed Central's bucket."""

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
from PIL import Image

from biomedclip.processing.pmc.jats import parse_figures
from biomedclip.processing.synthetic_corpus import FIGURE_KINDS, bucket, write_synthetic_corpus


FIGURES = 120
MOST = len(FIGURE_KINDS) * min(kind.combinations for kind in FIGURE_KINDS.values())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "not" / "yet" / "there"
    write_synthetic_corpus(folder, figures=FIGURES, seed=3)
    return folder


@pytest.fixture(scope="module")
def metadata(corpus) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_bytes()) for path in sorted((corpus / "metadata").iterdir())}


def kinds_of(corpus: Path) -> dict[str, str]:
    with (corpus / "figure_kinds.csv").open(newline="") as file:
        return {row["pair_id"]: row["kind"] for row in csv.DictReader(file)}


def contents_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_in_any_environment(corpus, tmp_path):
    call = f"write_synthetic_corpus({str(tmp_path / 'again')!r}, figures={FIGURES}, seed=3)"
    code = f"from biomedclip.processing.synthetic_corpus import write_synthetic_corpus; {call}"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert contents_of(tmp_path / "again") == contents_of(corpus)


def test_another_seed_gives_other_figures(corpus, tmp_path):
    write_synthetic_corpus(tmp_path / "other", figures=20, seed=4)
    images = [{hash(path.read_bytes()) for path in folder.glob("PMC*/*.*g")} for folder in (corpus, tmp_path / "other")]
    assert images[1] and not images[0] & images[1]


def test_all_kinds_are_equally_frequent_in_articles_of_two_to_five_figures(corpus):
    kinds = kinds_of(corpus)
    counts = Counter(kinds.values())
    assert len(kinds) == FIGURES and set(counts) == set(FIGURE_KINDS)
    assert max(counts.values()) - min(counts.values()) <= 1
    sizes = Counter(pair_id.split("/")[0] for pair_id in kinds)
    assert set(sizes.values()) <= {1, 2, 3, 4, 5} and list(sizes.values()).count(1) <= 1


def test_each_figure_is_parsed_with_its_caption_image_and_mention(corpus):
    parsed = {
        f"{path.stem}/{figure.figure_id}/{Path(figure.graphics[0].hrefs[0]).stem}": (path.parent, figure)
        for path in corpus.glob("PMC*/*.xml")
        for figure in parse_figures(path.read_bytes())
    }
    captions = set()
    for pair_id, kind in kinds_of(corpus).items():
        folder, figure = parsed[pair_id]
        assert kind in figure.caption and kind in figure.mentions[0]
        assert Image.open(folder / figure.graphics[0].hrefs[0]).size > (0, 0)
        captions.add(figure.caption)
    assert len(captions) == FIGURES


def test_articles_and_images_have_several_forms(corpus):
    texts = [path.read_text(encoding="ascii") for path in corpus.glob("PMC*/*.xml")]
    for form in ("<floats-group>", "</p><fig ", "<caption><title>", "<caption><p>", "&#945;"):
        assert any(form in text for text in texts), form
    images = [Image.open(path) for path in corpus.glob("PMC*/synthetic-*")]
    assert {image.format for image in images} == {"JPEG", "PNG", "GIF", "TIFF"}
    assert {image.mode for image in images} == {"RGB", "L", "P"}


def test_metadata_and_md5_sums_are_those_of_the_bucket(corpus, metadata):
    for name, entry in metadata.items():
        assert list(entry) == [
            "pmcid", "version", "pmid", "doi", "title", "citation", "is_pmc_openaccess", "is_manuscript",
            "is_historical_ocr", "is_retracted", "license_code", "xml_url", "text_url", "pdf_url", "media_urls",
        ]  # fmt: skip
        assert f"{entry['pmcid']}.{entry['version']}" == name
        keys = set()
        for url in [entry["xml_url"], entry["text_url"], *entry["media_urls"]]:
            key, md5 = url.removeprefix("s3://pmc-oa-opendata/").split("?md5=")
            assert hashlib.md5((corpus / key).read_bytes()).hexdigest() == md5
            keys.add(key)
        assert keys | {f"{name}/{name}.json"} == {f"{name}/{path.name}" for path in (corpus / name).iterdir()}
        assert (corpus / name / f"{name}.json").read_bytes() == (corpus / "metadata" / f"{name}.json").read_bytes()


def test_the_inventory_lists_every_metadata_file_with_its_etag(corpus):
    folder = corpus / "inventory-reports/pmc-oa-opendata/metadata"
    (file,) = json.loads((folder / "2026-01-18T01-00Z/manifest.json").read_bytes())["files"]
    content = (corpus / file["key"]).read_bytes()
    assert (file["size"], file["MD5checksum"]) == (len(content), hashlib.md5(content).hexdigest())
    rows = csv.reader(gzip.decompress(content).decode().splitlines())
    etags = {key: etag for bucket, key, _, etag in rows if bucket == "pmc-oa-opendata"}
    files = (corpus / "metadata").iterdir()
    assert etags == {f"metadata/{path.name}": hashlib.md5(path.read_bytes()).hexdigest() for path in files}


def test_some_articles_must_be_left_out(corpus, metadata):
    newest = {entry["pmcid"]: name for name, entry in metadata.items()}
    open_access = {name for name, entry in metadata.items() if entry["is_pmc_openaccess"] and not entry["is_retracted"]}
    assert {pair_id.split("/")[0] for pair_id in kinds_of(corpus)} == open_access & set(newest.values())
    assert sum(entry["is_retracted"] for entry in metadata.values()) == 1
    assert [entry["license_code"] for entry in metadata.values() if not entry["is_pmc_openaccess"]] == ["TDM"]
    assert [entry["version"] for entry in metadata.values()].count(2) == 1
    assert len({entry["license_code"] for entry in metadata.values()}) >= 5


@pytest.mark.parametrize("figures", [1, 2, 7, MOST])
def test_any_number_of_different_figures_up_to_the_number_of_combinations(figures):
    kept = [planned for planned, status in bucket._plan(figures, seed=0) if status in ("current", "updated")]
    assert len({(kind, combination) for planned in kept for _, kind, combination in planned}) == figures


@pytest.mark.parametrize(("options", "message"), [
    ({"figures": 0}, f"`figures` must be between 1 and {MOST}"),
    ({"figures": MOST + 1}, f"`figures` must be between 1 and {MOST}"),
    ({"seed": -1}, "`seed` must be 0 or larger"),
])  # fmt: skip
def test_invalid_arguments_are_refused_before_anything_is_written(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_synthetic_corpus(tmp_path / "corpus", **options)
    assert list(tmp_path.iterdir()) == []


def test_existing_files_are_not_replaced(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    for path in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(FileExistsError, match="Choose another `output_dir`"):
            write_synthetic_corpus(path, figures=2)
    assert contents_of(tmp_path) == {"mine.txt": b"precious"}


def test_progress_is_shown_on_stderr(tmp_path, capsys):
    write_synthetic_corpus(tmp_path / "quiet", figures=2)
    assert capsys.readouterr().err == ""
    write_synthetic_corpus(tmp_path / "loud", figures=2, progress=True)
    assert "Articles" in capsys.readouterr().err
