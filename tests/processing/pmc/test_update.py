"""An update takes what is new or changed and leaves the rest, and ends where a build from nothing would."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from helpers.mirror_writer import build_set, figure_xml, png_bytes, write_inventory

from biomedclip.processing.pmc import build, steps
from biomedclip.processing.pmc.splits import split_by_hash


def files(folder) -> dict[str, bytes]:
    """Shards, table of articles and list of what was left out."""
    paths = [*sorted((folder / "data").iterdir()), folder / "articles.parquet", folder / "skipped.jsonl"]
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture
def read_articles(monkeypatch) -> list[str]:
    """Names of the articles that are read, as they are."""
    names: list[str] = []
    process = steps.ParseFigures.process

    def count(self, article):
        names.append(article.name)
        return process(self, article)

    monkeypatch.setattr(steps.ParseFigures, "process", count)
    return names


def change_the_mirror(mirror) -> None:
    """Two articles are new, one has a new version, one other metadata, one is gone, one retracted."""
    mirror.plain_articles(2, first=2000)
    mirror.article(
        1003, version=2, figures=figure_xml("F1", "Corrected.", "g"), media={"g.png": png_bytes(77)}, license_code="CC0"
    )
    for number, change in ((1004, {"doi": "10.1/other"}), (1006, {"is_retracted": True})):
        path = mirror.root / "metadata" / f"PMC{number}.1.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (mirror.root / "metadata" / "PMC1005.1.json").unlink()


def test_an_update_equals_a_build_from_nothing_byte_for_byte(mirror, tmp_path, read_articles):
    mirror.plain_articles(40)
    mirror.article(3000, figures=figure_xml("F1", "No file.", "absent"), media={})
    build_set(mirror.root, tmp_path / "updated")
    change_the_mirror(mirror)
    read_articles.clear()
    report = build_set(mirror.root, tmp_path / "updated", update=True)
    assert sorted(read_articles) == ["PMC1003.2", "PMC1004.1", "PMC2000.1", "PMC2001.1"]
    assert report["update"] == {"new": 2, "changed": 3, "again": 0, "removed": 1, "unchanged": 37}

    fresh = build_set(mirror.root, tmp_path / "fresh")
    assert files(tmp_path / "updated") == files(tmp_path / "fresh")
    varying = ("seconds", "update", "options")
    assert {k: v for k, v in report.items() if k not in varying} == {k: v for k, v in fresh.items() if k not in varying}
    assert report["articles"] == {"seen": 42, "kept": 40, "dropped": {"no usable figure": 1, "retracted": 1}}


def test_an_update_without_news_reads_nothing_and_changes_nothing(mirror, tmp_path, read_articles):
    mirror.plain_articles(5)
    build_set(mirror.root, tmp_path / "out")
    before = files(tmp_path / "out") | {"report": (tmp_path / "out" / "report.json").read_bytes()}
    read_articles.clear()
    build_set(mirror.root, tmp_path / "out", update=True)
    assert read_articles == []
    assert files(tmp_path / "out") | {"report": (tmp_path / "out" / "report.json").read_bytes()} == before
    assert not (tmp_path / "out" / ".build").exists()


def test_what_could_not_be_read_is_tried_again(mirror, tmp_path, read_articles):
    mirror.plain_articles(6)
    picture = mirror.root / "PMC1002.1" / "a1002-g0.png"
    content = picture.read_bytes()
    picture.write_bytes(b"half copied")
    assert build_set(mirror.root, tmp_path / "out")["pairs"] == 11
    picture.write_bytes(content)
    read_articles.clear()
    assert build_set(mirror.root, tmp_path / "out", update=True)["pairs"] == 12
    assert read_articles == ["PMC1002.1"]
    build_set(mirror.root, tmp_path / "fresh")
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_splits_stay_as_they_were_when_the_set_grows(mirror, tmp_path):
    mirror.plain_articles(20)
    build_set(mirror.root, tmp_path / "out", split_fractions=(0.5, 0.25, 0.25))
    before = splits(tmp_path / "out")
    mirror.plain_articles(20, first=3000)
    report = build_set(mirror.root, tmp_path / "out", update=True)
    assert report["split_fractions"] == [0.5, 0.25, 0.25]
    after = splits(tmp_path / "out")
    assert len(after) == 40 and before.items() <= after.items()


def splits(folder) -> dict[str, str]:
    return {
        row["pmcid"]: row["split"]
        for path in (folder / "data").iterdir()
        for row in pq.read_table(path, columns=["pmcid", "split"]).to_pylist()
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"license": "commercial"}, "license 'noncommercial', not 'commercial'"),
        ({"pmcids": ["PMC1000"]}, "pmcids None, not '1, MD5"),
        ({"split_fractions": (1, 0, 0)}, "split fractions None, not"),
        ({"max_figures_per_article": 5}, "max figures per article 1000, not 5"),
        ({"published_until": "2022-06-15"}, "published until None, not '2022-06-15'"),
        ({"first_image_only": True}, "first image only None, not True"),
        ({"inventory": "2025-12-01T01-00Z"}, "2025-12-01T01-00Z is older than 2026-01-18T01-00Z"),
    ],
)
def test_an_update_that_asks_for_something_else_is_refused(mirror, tmp_path, options, message):
    mirror.plain_articles(4)
    names = {path.stem: "etag" for path in (mirror.root / "metadata").iterdir()}
    write_inventory(mirror.root, names, date="2025-12-01T01-00Z")
    write_inventory(mirror.root, names)
    build_set(mirror.root, tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        build_set(mirror.root, tmp_path / "out", update=True, **options)
    assert files(tmp_path / "out") == before


def test_an_update_from_another_source_is_refused(mirror, tmp_path):
    mirror.plain_articles(4)
    build_set(mirror.root, tmp_path / "out")
    shutil.copytree(mirror.root, tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="source .*mirror', not .*elsewhere'"):
        build_set(tmp_path / "elsewhere", tmp_path / "out", update=True)


def test_an_update_from_half_a_source_is_refused(mirror, tmp_path):
    mirror.plain_articles(60)
    build_set(mirror.root, tmp_path / "out")
    for path in sorted((mirror.root / "metadata").iterdir())[:30]:
        path.unlink()
    with pytest.raises(ValueError, match="30 of the 60 articles .* may be incomplete"):
        build_set(mirror.root, tmp_path / "out", update=True)


def test_an_article_that_was_moved_to_fill_a_split_stays_there(mirror, tmp_path):
    in_train = [n for n in range(1000, 1200) if split_by_hash(f"PMC{n}", (0.8, 0.1, 0.1)) == "train"]
    for number in in_train[:6]:
        mirror.plain_articles(1, first=number)
    moved = build_set(mirror.root, tmp_path / "out")["articles_moved_to_fill_a_split"]
    assert len(moved) == 2
    before = splits(tmp_path / "out")
    mirror.plain_articles(60, first=3000)
    report = build_set(mirror.root, tmp_path / "out", update=True)
    assert report["articles_moved_to_fill_a_split"] == moved
    assert before.items() <= splits(tmp_path / "out").items()


def test_an_update_that_was_interrupted_goes_on(mirror, tmp_path, monkeypatch):
    mirror.plain_articles(30)
    build_set(mirror.root, tmp_path / "out")
    change_the_mirror(mirror)
    build_set(mirror.root, tmp_path / "fresh")

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    for name in ("make_plan", "write_shard", "_verify"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(build, name, interrupted)
            build_set(mirror.root, tmp_path / "out", update=True)
    with pytest.raises(ValueError, match="update True, not False"):
        build_set(mirror.root, tmp_path / "out")
    build_set(mirror.root, tmp_path / "out", update=True)
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_an_update_of_nothing_is_a_clear_error(mirror, tmp_path):
    mirror.plain_articles(4)
    with pytest.raises(FileNotFoundError, match="no data set to update"):
        build_set(mirror.root, tmp_path / "out", update=True)
    with pytest.raises(ValueError, match="pass one of them"):
        build_set(mirror.root, tmp_path / "out", update=True, overwrite=True)
