"""Updates: they read only new and changed articles, and give the same files as a build from nothing."""

import json
import shutil

import pytest
from helpers.mirror_writer import build_set, dataset_files, figure_xml, interrupt, png_bytes, rows_of, write_inventory

from biomedclip.processing.pmc import stages, steps
from biomedclip.processing.pmc.splits import split_by_hash


@pytest.fixture
def parsed_articles(watch) -> list[str]:
    """Names of the articles that are parsed."""
    return watch(steps.ParseFigures)


def change(mirror) -> None:
    """Add two articles and a version, change the metadata of one, retract one, and remove one."""
    mirror.plain_articles(2, first=2000)
    media = {"g.png": png_bytes(77)}
    mirror.article(1003, version=2, figures=figure_xml("F1", "Corrected.", "g"), media=media, license_code="CC0")
    for number, values in ((1004, {"doi": "10.1/other"}), (1006, {"is_retracted": True})):
        path = mirror.root / "metadata" / f"PMC{number}.1.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    (mirror.root / "metadata" / "PMC1005.1.json").unlink()


def test_an_update_gives_the_same_files_as_a_new_build(mirror, tmp_path, parsed_articles):
    mirror.plain_articles(40)
    mirror.article(3000, figures=figure_xml("F1", "No file.", "absent"), media={})
    build_set(mirror.root, tmp_path / "updated")
    change(mirror)
    parsed_articles.clear()
    report = build_set(mirror.root, tmp_path / "updated", update=True)
    assert sorted(parsed_articles) == ["PMC1003.2", "PMC1004.1", "PMC2000.1", "PMC2001.1"]
    assert report["update"] == {"new": 2, "changed": 3, "retried": 0, "removed": 1, "unchanged": 37}

    fresh = build_set(mirror.root, tmp_path / "fresh")
    assert dataset_files(tmp_path / "updated") == dataset_files(tmp_path / "fresh")
    varying = dict.fromkeys(("seconds", "update", "options"))
    assert report | varying == fresh | varying
    assert report["articles"] == {"seen": 42, "kept": 40, "dropped": {"no usable figure": 1, "retracted": 1}}


def test_an_update_without_changes_reads_and_changes_nothing(mirror, tmp_path, parsed_articles):
    mirror.plain_articles(5)
    output = tmp_path / "out"
    build_set(mirror.root, output)
    before = dataset_files(output) | {"report": (output / "report.json").read_bytes()}
    parsed_articles.clear()
    build_set(mirror.root, output, update=True)
    assert parsed_articles == []
    assert dataset_files(output) | {"report": (output / "report.json").read_bytes()} == before
    assert not (output / ".build").exists()


def test_an_update_reads_articles_with_damaged_objects_again(mirror, tmp_path, parsed_articles):
    mirror.plain_articles(6)
    image = mirror.root / "PMC1002.1" / "a1002-g0.png"
    content = image.read_bytes()
    image.write_bytes(b"half copied")
    assert build_set(mirror.root, tmp_path / "out")["pairs"] == 11
    image.write_bytes(content)
    parsed_articles.clear()
    report = build_set(mirror.root, tmp_path / "out", update=True)
    assert report["pairs"] == 12 and report["update"]["retried"] == 1
    assert parsed_articles == ["PMC1002.1"]
    build_set(mirror.root, tmp_path / "fresh")
    assert dataset_files(tmp_path / "out") == dataset_files(tmp_path / "fresh")


def splits(folder) -> dict[str, str]:
    return {row["pmcid"]: row["split"] for row in rows_of(folder, ["pmcid", "split"])}


def test_articles_stay_in_their_splits_when_the_dataset_grows(mirror, tmp_path):
    in_train = [n for n in range(1000, 1200) if split_by_hash(f"PMC{n}", (0.5, 0.25, 0.25)) == "train"]
    for number in in_train[:6]:
        mirror.plain_articles(1, first=number)
    moved = build_set(mirror.root, tmp_path / "out", split_fractions=(0.5, 0.25, 0.25))
    assert len(moved["articles_moved_to_fill_a_split"]) == 2
    before = splits(tmp_path / "out")
    mirror.plain_articles(40, first=3000)
    report = build_set(mirror.root, tmp_path / "out", update=True)
    assert report["split_fractions"] == [0.5, 0.25, 0.25]
    assert report["articles_moved_to_fill_a_split"] == moved["articles_moved_to_fill_a_split"]
    assert len(splits(tmp_path / "out")) == 46 and before.items() <= splits(tmp_path / "out").items()


def test_an_update_with_other_options_is_refused(mirror, tmp_path):
    mirror.plain_articles(4)
    names = {path.stem: "etag" for path in (mirror.root / "metadata").iterdir()}
    write_inventory(mirror.root, names, date="2025-12-01T01-00Z")
    write_inventory(mirror.root, names)
    build_set(mirror.root, tmp_path / "out")
    before = dataset_files(tmp_path / "out")
    shutil.copytree(mirror.root, tmp_path / "elsewhere")
    for options, message in [
        ({"license": "commercial"}, "license 'noncommercial', not 'commercial'"),
        ({"pmcids": ["PMC1000"]}, "pmcids None, not '1, MD5"),
        ({"split_fractions": (1, 0, 0)}, "split_fractions None, not"),
        ({"max_figures_per_article": 5}, "max_figures_per_article 1000, not 5"),
        ({"published_until": "2022-06-15"}, "published_until None, not '2022-06-15'"),
        ({"first_image_only": True}, "first_image_only False, not True"),
        ({"inventory": "2025-12-01T01-00Z"}, "2025-12-01T01-00Z is older than 2026-01-18T01-00Z"),
    ]:
        with pytest.raises(ValueError, match=message):
            build_set(mirror.root, tmp_path / "out", update=True, **options)
    with pytest.raises(ValueError, match="source .*mirror', not .*elsewhere'"):
        build_set(tmp_path / "elsewhere", tmp_path / "out", update=True)
    assert dataset_files(tmp_path / "out") == before


def test_an_update_from_an_incomplete_source_is_refused(mirror, tmp_path):
    mirror.plain_articles(60, figures_each=1)
    build_set(mirror.root, tmp_path / "out")
    for path in sorted((mirror.root / "metadata").iterdir())[:30]:
        path.unlink()
    with pytest.raises(ValueError, match="30 of the 60 articles .* may be incomplete"):
        build_set(mirror.root, tmp_path / "out", update=True)


def test_an_interrupted_update_continues(mirror, tmp_path, monkeypatch):
    mirror.plain_articles(30, figures_each=1)
    build_set(mirror.root, tmp_path / "out")
    change(mirror)
    build_set(mirror.root, tmp_path / "fresh")

    for name in ("make_plan", "write_shard", "check_rows"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(stages, name, interrupt)
            build_set(mirror.root, tmp_path / "out", update=True)
    with pytest.raises(ValueError, match="update True, not False"):
        build_set(mirror.root, tmp_path / "out")
    build_set(mirror.root, tmp_path / "out", update=True)
    assert dataset_files(tmp_path / "out") == dataset_files(tmp_path / "fresh")
