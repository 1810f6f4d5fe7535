"""Builds with `published_until` and `first_image_only`, which approximate PMC-15M."""

import json

import pyarrow.parquet as pq
import pytest
from helpers.mirror_writer import (
    MirrorWriter,
    build_set,
    dataset_files,
    figure_xml,
    interrupt,
    png_bytes,
    rows_of,
    shards_of,
    skipped_rows,
)

from biomedclip.processing.pmc import steps
from biomedclip.processing.pmc.verify import verify_dataset


UNTIL = {"published_until": "2022-06-15"}


def add(mirror: MirrorWriter, number: int, year: int | None, **options) -> None:
    """Add an article with two figures that was published in May of a year."""
    figures = "".join(figure_xml(f"F{n}", f"Caption {n} of {number}.", f"g{n}") for n in range(2))
    media = {f"g{n}.png": png_bytes(number * 10 + n) for n in range(2)}
    dates = f'<pub-date pub-type="epub"><month>5</month><year>{year}</year></pub-date>' if year else ""
    mirror.article(number, figures=figures, media=media, dates=dates, **options)


@pytest.fixture
def dated(mirror):
    """A mirror of 24 articles until May 2022, three later ones and two without a date."""
    for number in range(1000, 1024):
        add(mirror, number, 2000 + number % 23)
    for number in range(2000, 2003):
        add(mirror, number, 2023)
    for number in range(3000, 3002):
        add(mirror, number, None)
    return mirror


def test_a_snapshot_equals_a_build_of_only_the_earlier_articles(dated, tmp_path):
    report = build_set(dated.root, tmp_path / "snapshot", **UNTIL)
    earlier = MirrorWriter(tmp_path / "earlier")
    for number in range(1000, 1024):
        add(earlier, number, 2000 + number % 23)
    build_set(earlier.root, tmp_path / "out")
    assert shards_of(tmp_path / "snapshot") == shards_of(tmp_path / "out")
    dropped = {"published after 2022-06-15": 3, "no publication date": 2}
    assert report["articles"] == {"seen": 29, "kept": 24, "dropped": dropped}
    assert report["snapshot"] == UNTIL | {"articles_published_later": 3, "articles_without_date": 2}
    assert report["built_with"]["published_until"] == "2022-06-15"


def test_dropped_articles_are_listed_and_verified(dated, tmp_path):
    build_set(dated.root, tmp_path / "out", **UNTIL)
    later = {"item": "", "reason": "published after 2022-06-15", "detail": "2023-05 (epub)"}
    undated = {"item": "", "reason": "no publication date", "detail": ""}
    assert skipped_rows(tmp_path / "out") == [
        *({"article": f"PMC{number}.1", **later} for number in range(2000, 2003)),
        *({"article": f"PMC{number}.1", **undated} for number in range(3000, 3002)),
    ]
    assert not any(pq.read_table(tmp_path / "out" / "articles.parquet").column("retry").to_pylist())
    result = verify_dataset(tmp_path / "out")
    assert result.faults == [] and result.verifiable
    report = tmp_path / "out" / "report.json"
    report.write_text(report.read_text().replace('"articles_published_later": 3', '"articles_published_later": 4'))
    assert "published after 2022-06-15 3" in "".join(verify_dataset(tmp_path / "out").faults)


def test_only_the_xml_of_a_later_article_is_read_and_the_tasks_do_not_change_the_files(dated, tmp_path, watch):
    for tasks in (1, 7):
        names = watch(steps.FetchImages)
        build_set(dated.root, tmp_path / f"{tasks}", tasks=tasks, first_image_only=True, **UNTIL)
        assert sorted(names) == [f"PMC{number}.1" for number in range(1000, 1024)]
    assert dataset_files(tmp_path / "1") == dataset_files(tmp_path / "7")


@pytest.mark.slow
def test_slurm_builds_the_same_snapshot(dated, tmp_path, slurm):
    build_set(dated.root, tmp_path / "here", **UNTIL)
    options = {"executor": "slurm", "workers": 2, "tasks": 2, "slurm_partition": "cpu"}
    assert build_set(dated.root, tmp_path / "there", **options, **UNTIL) is None
    assert dataset_files(tmp_path / "there") == dataset_files(tmp_path / "here")


def test_an_interrupted_snapshot_continues_only_with_the_same_options(dated, tmp_path, watch):
    build_set(dated.root, tmp_path / "undisturbed", **UNTIL)
    names = watch(steps.ParseFigures, lambda article: interrupt() if len(names) == 9 else None)
    with pytest.raises(KeyboardInterrupt):
        build_set(dated.root, tmp_path / "out", tasks=2, **UNTIL)
    for other, message in (
        ({"published_until": "2022-06-14"}, "published_until '2022-06-15', not '2022-06-14'"),
        ({}, "published_until '2022-06-15', not None"),
        (UNTIL | {"first_image_only": True}, "first_image_only False, not True"),
    ):
        with pytest.raises(ValueError, match=message):
            build_set(dated.root, tmp_path / "out", **other)
    build_set(dated.root, tmp_path / "out", **UNTIL)
    assert dataset_files(tmp_path / "out") == dataset_files(tmp_path / "undisturbed")


def test_an_update_of_a_snapshot_needs_the_same_day_and_equals_a_new_build(dated, tmp_path):
    build_set(dated.root, tmp_path / "out", **UNTIL)
    before = dataset_files(tmp_path / "out")
    for other, stated in (({}, "None"), ({"published_until": "2023-06-15"}, "'2023-06-15'")):
        with pytest.raises(ValueError, match=f"published_until '2022-06-15', not {stated}"):
            build_set(dated.root, tmp_path / "out", update=True, **other)
    assert dataset_files(tmp_path / "out") == before
    for number, year in ((4000, 2021), (4001, 2024), (4002, None)):
        add(dated, number, year)
    report = build_set(dated.root, tmp_path / "out", update=True, **UNTIL)
    assert report["update"] == {"new": 3, "changed": 0, "retried": 0, "removed": 0, "unchanged": 29}
    assert report["snapshot"] == UNTIL | {"articles_published_later": 4, "articles_without_date": 3}
    build_set(dated.root, tmp_path / "fresh", **UNTIL)
    assert dataset_files(tmp_path / "out") == dataset_files(tmp_path / "fresh")


def test_the_version_is_chosen_first_and_its_date_counts(dated, tmp_path):
    add(dated, 1000, 2023, version=2)
    add(dated, 2000, 2020, version=2)
    build_set(dated.root, tmp_path / "out", pmcids=["PMC1000", "PMC2000", "PMC1001", "PMC1002"], **UNTIL)
    table = pq.read_table(tmp_path / "out" / "articles.parquet").to_pylist()
    assert [(row["pmcid"], row["version"], row["outcome"]) for row in table] == [
        ("PMC1000", 2, "published after 2022-06-15"),
        ("PMC1001", 1, "kept"),
        ("PMC1002", 1, "kept"),
        ("PMC2000", 2, "kept"),
    ]


def test_the_error_states_that_all_articles_are_later(dated, tmp_path):
    with pytest.raises(ValueError, match=r"published after 1999-01-01 \(27\), no publication date \(2\)"):
        build_set(dated.root, tmp_path / "out", published_until="1999-01-01")


def test_only_the_first_image_of_a_figure_is_used_and_the_others_are_counted(mirror, tmp_path):
    mirror.plain_articles(4)
    figures = figure_xml("F1", "c", "b", "a", "c") + figure_xml("F2", "c", "d") + figure_xml("F3", "", "a", "d")
    figures += figure_xml("F4", "c", "missing", "d")
    figures += '<fig id="F5"><caption><p>Two files.</p></caption><alternatives><graphic xlink:href="e"/>'
    figures += '<graphic xlink:href="f"/></alternatives><graphic xlink:href="a"/></fig>'
    media = {f"{name}.png": png_bytes(seed) for seed, name in enumerate("abcd")}
    media |= {"e.png": png_bytes(8), "f.png": png_bytes(9, (80, 60))}
    mirror.article(1, figures=figures, media=media)
    report = build_set(mirror.root, tmp_path / "first", first_image_only=True)
    every = build_set(mirror.root, tmp_path / "every")
    rows = rows_of(tmp_path / "first")
    names = {row["pair_id"]: row["image"]["path"] for row in rows if row["pmcid"] == "PMC1"}
    assert names == {"PMC1.1/F1/b": "b.png", "PMC1.1/F2/d": "d.png", "PMC1.1/F5/e": "f.png"}
    assert report["pairs"] == every["pairs"] - 4 and report["figures"]["seen"] == every["figures"]["seen"]
    skipped = {"not the first image of its figure": 4, "no caption": 1, "image missing": 1}
    assert report["figures"]["skipped"] == skipped
    assert verify_dataset(tmp_path / "first").faults == []


def test_the_limit_on_images_applies_after_the_choice_of_the_first(mirror, tmp_path):
    mirror.plain_articles(3)
    figures = figure_xml("F1", "c", "a", "b") + figure_xml("F2", "c", "b", "a")
    mirror.article(1, figures=figures, media={"a.png": png_bytes(1), "b.png": png_bytes(2)})
    report = build_set(mirror.root, tmp_path / "out", first_image_only=True, max_figures_per_article=2)
    assert report["figures"]["skipped"] == {"not the first image of its figure": 2} and report["pairs"] == 8


@pytest.mark.slow
def test_real_articles_are_divided_by_their_dates(shared_data, tmp_path):
    mirror = shared_data / "pmc_mirror"
    report = build_set(mirror, tmp_path / "out", license="all", published_until="2013-12-31", first_image_only=True)
    later = set()
    for path in (mirror / "metadata").glob("*.json"):
        metadata = json.loads(path.read_text())
        if int(metadata["citation"].rsplit(". ", 1)[-1][:4]) > 2013:  # it ends with the year
            later.add(metadata["pmcid"])
    table = pq.read_table(tmp_path / "out" / "articles.parquet", columns=["pmcid", "outcome"]).to_pylist()
    assert {row["pmcid"] for row in table if row["outcome"] == "published after 2013-12-31"} == later
    counts = {"articles_published_later": len(later), "articles_without_date": 0}
    assert report["snapshot"] == {"published_until": "2013-12-31", **counts}
    assert 0 < len(later) < len(table) == 140
