"""A build with `published_until` and `first_image_only`, the options that approximate PMC-15M."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.fake_slurm import install_fake_slurm
from helpers.mirror_writer import MirrorWriter, build_set, figure_xml, png_bytes

from biomedclip.processing.pmc import steps
from biomedclip.processing.pmc.build import BuildOptions
from biomedclip.processing.pmc.executors import Engine
from biomedclip.processing.pmc.verify import verify_dataset


UNTIL = {"published_until": "2022-06-15"}
ROOT = Path(__file__).resolve().parents[3]


def files(folder: Path) -> dict[str, bytes]:
    paths = [*sorted((folder / "data").iterdir()), folder / "articles.parquet", folder / "skipped.jsonl"]
    return {path.name: path.read_bytes() for path in paths}


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "data").iterdir())}


def add(mirror: MirrorWriter, number: int, year: int | None, **options) -> None:
    """Adds an article of two figures that was published in May of a year."""
    figures = "".join(figure_xml(f"F{n}", f"Caption {n} of {number}.", f"g{n}") for n in range(2))
    media = {f"g{n}.png": png_bytes(number * 10 + n) for n in range(2)}
    dates = f'<pub-date pub-type="epub"><month>5</month><year>{year}</year></pub-date>' if year else ""
    mirror.article(number, figures=figures, media=media, dates=dates, **options)


@pytest.fixture
def dated(mirror):
    """24 articles until May 2022, three later ones and two without a date."""
    for number in range(1000, 1024):
        add(mirror, number, 2000 + number % 23)
    for number in range(2000, 2003):
        add(mirror, number, 2023)
    for number in range(3000, 3002):
        add(mirror, number, None)
    return mirror


def test_a_snapshot_equals_a_build_of_the_earlier_articles_alone(dated, tmp_path):
    report = build_set(dated.root, tmp_path / "snapshot", **UNTIL)
    earlier = MirrorWriter(tmp_path / "earlier")
    for number in range(1000, 1024):
        add(earlier, number, 2000 + number % 23)
    build_set(earlier.root, tmp_path / "out")
    assert shards(tmp_path / "snapshot") == shards(tmp_path / "out")
    dropped = {"published after 2022-06-15": 3, "no publication date": 2}
    assert report["articles"] == {"seen": 29, "kept": 24, "dropped": dropped}
    assert report["snapshot"] == {
        "published_until": "2022-06-15",
        "articles_published_later": 3,
        "articles_without_date": 2,
    }
    assert report["built_with"]["published_until"] == "2022-06-15"


def test_later_articles_and_those_without_a_date_are_listed_with_their_reason(dated, tmp_path):
    build_set(dated.root, tmp_path / "out", **UNTIL)
    listed = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").open()]
    later = {"item": "", "reason": "published after 2022-06-15", "detail": "2023-05 (epub)"}
    without = {"item": "", "reason": "no publication date", "detail": ""}
    assert listed == [{"article": f"PMC{number}.1", **later} for number in range(2000, 2003)] + [
        {"article": f"PMC{number}.1", **without} for number in range(3000, 3002)
    ]
    again = pq.read_table(tmp_path / "out" / "articles.parquet", columns=["again"]).column("again").to_pylist()
    assert not any(again)
    result = verify_dataset(tmp_path / "out")
    assert result.faults == [] and result.verifiable
    report = tmp_path / "out" / "report.json"
    report.write_text(report.read_text().replace('"articles_published_later": 3', '"articles_published_later": 4'))
    assert "published after 2022-06-15 3" in "".join(verify_dataset(tmp_path / "out").faults)


def test_nothing_of_a_later_article_is_fetched_besides_its_xml(dated, tmp_path, monkeypatch):
    names = []
    fetch = steps.FetchPictures.process
    monkeypatch.setattr(
        steps.FetchPictures, "process", lambda self, article: (names.append(article.pmcid), fetch(self, article))[1]
    )
    build_set(dated.root, tmp_path / "out", **UNTIL)
    assert sorted(names) == [f"PMC{number}" for number in range(1000, 1024)]


def test_the_files_of_a_snapshot_do_not_depend_on_the_number_of_tasks(dated, tmp_path):
    for tasks in (1, 7):
        build_set(dated.root, tmp_path / f"{tasks}", tasks=tasks, first_image_only=True, **UNTIL)
    assert files(tmp_path / "1") == files(tmp_path / "7")


def test_slurm_builds_the_same_snapshot(dated, tmp_path, monkeypatch):
    build_set(dated.root, tmp_path / "here", **UNTIL)
    for name, value in install_fake_slurm(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    engine = Engine(
        executor="slurm", workers=2, slurm={"partition": "cpu", "time": "1:00", "qos": None, "sbatch_args": {}}
    )
    assert build_set(dated.root, tmp_path / "there", engine=engine, tasks=2, **UNTIL) is None
    assert files(tmp_path / "there") == files(tmp_path / "here")


def test_an_interrupted_snapshot_continues_and_other_options_are_refused(dated, tmp_path, monkeypatch):
    build_set(dated.root, tmp_path / "undisturbed", **UNTIL)
    process, left = steps.ParseFigures.process, [9]

    def interrupted(self, article):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return process(self, article)

    monkeypatch.setattr(steps.ParseFigures, "process", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_set(dated.root, tmp_path / "out", tasks=2, **UNTIL)
    for other, message in (
        ({"published_until": "2022-06-16"}, "published_until '2022-06-15', not '2022-06-16'"),
        ({}, "published_until '2022-06-15', not None"),
        (UNTIL | {"first_image_only": True}, "first_image_only None, not True"),
    ):
        with pytest.raises(ValueError, match=message):
            build_set(dated.root, tmp_path / "out", **other)
    build_set(dated.root, tmp_path / "out", **UNTIL)
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "published until '2022-06-15', not None"),
        ({"published_until": "2023-06-15"}, "published until '2022-06-15', not '2023-06-15'"),
    ],
)
def test_an_update_needs_the_same_day(dated, tmp_path, options, message):
    build_set(dated.root, tmp_path / "out", **UNTIL)
    before = files(tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        build_set(dated.root, tmp_path / "out", update=True, **options)
    assert files(tmp_path / "out") == before


def test_an_update_of_a_snapshot_equals_a_build_from_nothing(dated, tmp_path):
    build_set(dated.root, tmp_path / "out", **UNTIL)
    for number, year in ((4000, 2021), (4001, 2024), (4002, None)):
        add(dated, number, year)
    report = build_set(dated.root, tmp_path / "out", update=True, **UNTIL)
    assert report["update"] == {"new": 3, "changed": 0, "again": 0, "removed": 0, "unchanged": 29}
    assert report["snapshot"]["articles_published_later"] == 4 and report["snapshot"]["articles_without_date"] == 3
    build_set(dated.root, tmp_path / "fresh", **UNTIL)
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_the_version_is_chosen_as_without_the_option_and_its_date_counts(dated, tmp_path):
    add(dated, 1000, 2023, version=2)
    add(dated, 2000, 2020, version=2)
    report = build_set(dated.root, tmp_path / "out", pmcids=["PMC1000", "PMC2000", "PMC1001", "PMC1002"], **UNTIL)
    assert report["articles"]["dropped"] == {"published after 2022-06-15": 1}
    table = pq.read_table(tmp_path / "out" / "articles.parquet").to_pylist()
    assert [(row["pmcid"], row["version"], row["outcome"]) for row in table] == [
        ("PMC1000", 2, "published after 2022-06-15"),
        ("PMC1001", 1, "kept"),
        ("PMC1002", 1, "kept"),
        ("PMC2000", 2, "kept"),
    ]


def test_if_every_article_is_later_the_error_says_so(dated, tmp_path):
    with pytest.raises(ValueError, match=r"published after 1999-01-01 \(27\), no publication date \(2\)"):
        build_set(dated.root, tmp_path / "out", published_until="1999-01-01")


@pytest.mark.parametrize("day", ["2022", "2999-01-01"])
def test_a_day_that_makes_no_sense_is_refused_before_anything_is_written(dated, tmp_path, day):
    with pytest.raises(ValueError, match="--published-until"):
        build_set(dated.root, tmp_path / "out", published_until=day)
    assert not (tmp_path / "out").exists()


def panels(figure_id: str, *hrefs: str, caption: str = "Panels.") -> str:
    graphics = "".join(f'<graphic xlink:href="{href}"/>' for href in hrefs)
    return f'<fig id="{figure_id}"><caption><p>{caption}</p></caption>{graphics}</fig>'


def test_only_the_first_image_of_a_figure_is_used_and_the_others_are_counted(mirror, tmp_path):
    mirror.plain_articles(4)
    figures = panels("F1", "b", "a", "c") + panels("F2", "d") + panels("F3", "a", "d", caption="")
    figures += panels("F4", "missing", "d")
    figures += '<fig id="F5"><caption><p>Two files.</p></caption><alternatives><graphic xlink:href="e"/>'
    figures += '<graphic xlink:href="f"/></alternatives><graphic xlink:href="a"/></fig>'
    media = {f"{name}.png": png_bytes(seed) for seed, name in enumerate("abcd")}
    media |= {"e.png": png_bytes(8), "f.png": png_bytes(9, (80, 60))}
    mirror.article(1, figures=figures, media=media)
    report = build_set(mirror.root, tmp_path / "first", first_image_only=True)
    every = build_set(mirror.root, tmp_path / "every")
    names = {
        row["pair_id"]: row["image"]["path"]
        for path in (tmp_path / "first" / "data").iterdir()
        for row in pq.read_table(path, columns=["pair_id", "image", "pmcid"]).to_pylist()
        if row["pmcid"] == "PMC1"
    }
    assert names == {"PMC1.1/F1/b": "b.png", "PMC1.1/F2/d": "d.png", "PMC1.1/F5/e": "f.png"}
    assert report["pairs"] == every["pairs"] - 4 and report["figures"]["seen"] == every["figures"]["seen"]
    assert report["figures"]["skipped"] == {
        "not the first image of its figure": 4,
        "no caption": 1,
        "image missing": 1,
    }
    assert verify_dataset(tmp_path / "first").faults == []


def test_the_limit_of_images_counts_after_the_choice_of_the_first(mirror, tmp_path):
    mirror.plain_articles(3)
    mirror.article(1, figures=panels("F1", "a", "b") + panels("F2", "b", "a"), media={
        "a.png": png_bytes(1), "b.png": png_bytes(2)
    })  # fmt: skip
    report = build_set(mirror.root, tmp_path / "out", first_image_only=True, max_figures_per_article=2)
    assert report["figures"]["skipped"] == {"not the first image of its figure": 2} and report["pairs"] == 8


def test_a_build_without_these_options_is_recorded_as_before(dated, tmp_path):
    names = "source pmcids inventory license split_fractions max_shard_bytes seed decontaminate tokenizer"
    assert set(BuildOptions("x").identity()) == {*names.split(), "max_figures_per_article"}
    report = build_set(dated.root, tmp_path / "out")
    assert set(report["built_with"]) == {*BuildOptions("x").identity(), "format"}
    assert "snapshot" not in report and report["pairs"] == 58


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
    assert report["snapshot"] == {
        "published_until": "2013-12-31",
        "articles_published_later": len(later),
        "articles_without_date": 0,
    }
    assert 0 < len(later) < len(table) == 140
