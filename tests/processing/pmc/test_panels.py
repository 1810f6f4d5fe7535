"""Rows of panels: their contents, and that they depend neither on tasks nor on interruptions."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from helpers.commands import ROOT
from helpers.fake_detectors import Halves
from helpers.mirror_writer import build_set, dataset_files, figure_xml, interrupt, png_bytes, rows_of, skipped_rows
from PIL import Image, JpegImagePlugin

from biomedclip.processing.images.reading import read_image
from biomedclip.processing.panels.figure_panels import FigurePanels, Panel
from biomedclip.processing.panels.image_types import TypeScore
from biomedclip.processing.pmc import stages, steps
from biomedclip.processing.pmc.images import inspect_image
from biomedclip.processing.pmc.options import BuildOptions
from biomedclip.processing.pmc.panels import encode, storable, type_of_compound
from biomedclip.processing.pmc.shards import pair_schema
from biomedclip.processing.pmc.verify import verify_dataset


ONE_SPLIT = {"split_fractions": (1, 0, 0)}
WIDE, SMALL = (120, 40), (40, 30)
NEW_COLUMNS = [
    *("figure_pair_id", "compound", "panel_box", "panel_score", "context", "caption_match"),
    *("image_type", "image_type_score"),
]


def add_articles(mirror, count: int = 1, *, first: int = 1) -> None:
    """Add articles with a compound figure, a single one, and paragraphs that cite panels."""
    for number in range(first, first + count):
        text = (
            '<p>Only <xref rid="F2">Fig. 2B</xref>.</p><p><xref rid="F2">Figure 2A</xref> and '
            '<xref rid="F3">Figure 3</xref>.</p><p>All of <xref rid="F2">Fig. 2</xref>.</p>'
        )
        figures = figure_xml("F2", "Scans. (A) Before. (B) After.", "wide") + figure_xml("F3", "Cells.", "small")
        figures = figures.replace("Figure F", "Figure ")
        media = {"wide.png": png_bytes(2 * number, WIDE), "small.png": png_bytes(2 * number + 1, SMALL)}
        mirror.article(number, figures=figures + text, media=media)


def rows_by_id(folder) -> dict[str, dict]:
    return {row["pair_id"]: row for row in rows_of(folder)}


def build(mirror, output, mode="also", **options):
    return build_set(mirror.root, output, **({"detector": Halves(), "panels": mode} | ONE_SPLIT | options))


def test_each_panel_of_a_compound_figure_has_a_row(mirror, tmp_path):
    add_articles(mirror)
    report = build(mirror, tmp_path / "out")
    rows = rows_by_id(tmp_path / "out")
    figure = "PMC1.1/F2/wide"
    assert sorted(rows) == [figure, f"{figure}/panel-1", f"{figure}/panel-2", "PMC1.1/F3/small"]
    left, right = rows[f"{figure}/panel-1"], rows[f"{figure}/panel-2"]
    assert {name: right[name] for name in [*NEW_COLUMNS, "panel", "caption", "mentions"]} == {
        "figure_pair_id": figure,
        "compound": False,
        "panel_box": [60, 0, 120, 40],
        "panel_score": 0.5,
        "context": "Scans.",
        "caption_match": "labels",
        "image_type": "PET",
        "image_type_score": 0.8765,
        "panel": "B",
        "caption": "After.",
        "mentions": ["Only Fig. 2B."],
    }
    assert (left["caption"], left["mentions"], left["panel_score"]) == (
        "Before.",
        ["Figure 2A and Figure 3."],
        0.9877,
    )
    for name in ("pmcid", "version", "pmid", "doi", "citation", "license", "label", "split"):
        assert left[name] == rows[figure][name]
    assert report["pairs"] == 4
    assert verify_dataset(tmp_path / "out").faults == []


def test_the_row_of_a_figure_is_that_of_a_build_without_panels(mirror, tmp_path):
    add_articles(mirror, 2)
    build(mirror, tmp_path / "out")
    build_set(mirror.root, tmp_path / "plain", **ONE_SPLIT)
    plain = rows_by_id(tmp_path / "plain")
    figures = {name: row for name, row in rows_by_id(tmp_path / "out").items() if row["figure_pair_id"] is None}
    assert {name: {column: row[column] for column in pair_schema().names} for name, row in figures.items()} == plain
    assert [*next(iter(figures.values()))] == [*pair_schema().names, *NEW_COLUMNS]
    compound, single = figures["PMC1.1/F2/wide"], figures["PMC1.1/F3/small"]
    assert (compound["compound"], single["compound"]) == (True, False)
    assert (compound["image_type"], compound["image_type_score"]) == ("X-Ray 2D Radiography", 0.4383), (
        "of half the area"
    )
    assert (single["image_type"], single["caption_match"]) == ("Light microscopy", "none")
    assert compound["panel_box"] is None and compound["caption_match"] == "labels"


def test_only_panels_are_the_rows_without_compound_figures(mirror, tmp_path):
    add_articles(mirror, 3)
    build(mirror, tmp_path / "also")
    build(mirror, tmp_path / "only", "only")
    also, only = rows_by_id(tmp_path / "also"), rows_by_id(tmp_path / "only")
    whole = only["PMC1.1/F3/small"]
    assert (whole["figure_pair_id"], whole["panel_box"], whole["panel_score"]) == (
        whole["pair_id"],
        [0, 0, *SMALL],
        0.9,
    )
    assert whole["image"]["bytes"] == png_bytes(3, SMALL), "the original bytes"
    assert all(row["figure_pair_id"] for row in only.values())
    assert {name for name, row in also.items() if not row["compound"]} == set(only)
    for name, row in only.items():
        assert {column: row[column] for column in ("image", "caption", "mentions", "image_type")}.items() <= also[
            name
        ].items()
    assert verify_dataset(tmp_path / "only").faults == []


def test_the_image_of_a_panel_is_the_part_in_its_box(mirror, tmp_path):
    add_articles(mirror)
    build(mirror, tmp_path / "out")
    rows = rows_by_id(tmp_path / "out")
    row = rows["PMC1.1/F2/wide/panel-2"]
    pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(png_bytes(2, WIDE))))[:, 60:])
    assert row["image"]["path"] == "wide_panel-2.png"
    image = inspect_image(row["image"]["bytes"])
    assert (image.width, image.height, image.mode, image.perceptual_hash) == tuple(
        row[name] for name in ("width", "height", "mode", "perceptual_hash")
    )


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_panels_of_other_files_than_jpeg_are_stored_without_loss(file_format, mode):
    values = np.random.default_rng(0).integers(0, 60000, (40, 60), dtype=np.uint16)
    image = Image.fromarray(values) if mode == "I;16" else Image.fromarray((values >> 8).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    read = read_image(buffer.getvalue())
    content, suffix = encode(storable(read).crop((5, 6, 50, 38)), read.format)
    again = read_image(content)
    assert suffix == ".png" and again.mode == mode
    assert np.array_equal(
        np.asarray(again.convert("RGBA" if mode != "I;16" else mode)),
        np.asarray(image.crop((5, 6, 50, 38)).convert("RGBA" if mode != "I;16" else mode)),
    )


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_panels_of_jpeg_files_are_stored_as_jpeg(mode):
    smooth = np.add.outer(np.arange(64), np.arange(96)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(smooth).convert("RGB").convert(mode).save(buffer, "JPEG", comment=b"secret", quality=90)
    read = read_image(buffer.getvalue())
    content, suffix = encode(storable(read).crop((8, 8, 88, 56)), read.format)
    again = read_image(content)
    assert (suffix, again.format, again.mode) == (".jpg", "JPEG", mode)
    assert b"secret" not in content
    assert mode != "RGB" or JpegImagePlugin.get_sampling(again) == 0, "colors are not subsampled"
    difference = np.asarray(again, dtype=int) - np.asarray(read.crop((8, 8, 88, 56)), dtype=int)
    assert np.abs(difference).mean() < 1


def test_modes_that_png_cannot_store_are_converted():
    for mode, expected in (("CMYK", "RGB"), ("F", "L"), ("LAB", "RGB")):
        image = Image.new(mode, (20, 20))
        assert storable(image).mode == expected
        encode(storable(image), None)


@pytest.mark.parametrize(
    ("labels", "caption", "texts", "match"),
    [
        ((None, None), "(A) One. (B) Two.", ["One.", "Two."], "caption"),
        (("C", "D"), "(A) One. (B) Two.", ["(A) One. (B) Two."] * 2, "none"),
        ((None, None), "One scan.", ["One scan."] * 2, "none"),
    ],
)
def test_without_a_match_a_panel_keeps_the_whole_caption(mirror, tmp_path, labels, caption, texts, match):
    mirror.article(1, figures=figure_xml("F1", caption, "g"), media={"g.png": png_bytes(1, WIDE)})
    report = build(mirror, tmp_path / "out", "only", detector=Halves(labels=labels))
    rows = [rows_by_id(tmp_path / "out")[f"PMC1.1/F1/g/panel-{number}"] for number in (1, 2)]
    assert [row["caption"] for row in rows] == texts
    assert {row["caption_match"] for row in rows} == {match}
    assert [row["context"] for row in rows] == ["" if match == "caption" else None] * 2
    assert [row["panel"] for row in rows] == (["A", "B"] if match == "caption" else list(labels))
    assert report["panel_detection"]["split_captions"] == (match != "none")


def test_a_figure_on_which_the_detector_fails_is_kept_counted_and_listed(mirror, tmp_path):
    add_articles(mirror, 2)
    mirror.article(9, figures=figure_xml("F1", "Broken.", "g"), media={"g.png": png_bytes(9, (77, 40))})
    for mode in ("also", "only"):
        report = build(mirror, tmp_path / mode, mode, detector=Halves(fails_at=77))
        row = rows_by_id(tmp_path / mode)["PMC9.1/F1/g"]
        assert row["caption"] == "Broken." and row["compound"] is row["image_type"] is row["figure_pair_id"] is None
        assert skipped_rows(tmp_path / mode) == [
            {"article": "PMC9.1", "item": "F1/g", "reason": "panels not found", "detail": "OSError: broken image"}
        ]
        assert report["figures"]["skipped"] == {"panels not found": 1}
        assert report["panel_detection"] == {
            "examined_figures": 5,
            "compound_figures": 2,
            "split_captions": 2,
            "failed_figures": 1,
        }


@pytest.mark.parametrize(("mode", "compound"), [("also", 3), ("only", 0)])
def test_the_report_states_kinds_types_and_matches(mirror, tmp_path, mode, compound):
    add_articles(mirror, 3)
    mirror.article(9, figures=figure_xml("F1", "Whole.", "g"), media={"g.png": png_bytes(99, WIDE)})
    mirror.article(10, figures=figure_xml("F1", "Broken.", "g"), media={"g.png": png_bytes(9, (77, 40))})
    report = build(mirror, tmp_path / "out", mode, detector=Halves(fails_at=77))
    kinds = {"panels": 8, "compound figures": compound and 4, "single figures": 3, "figures not examined": 1}
    assert report["composition"] == {
        "rows": {name: count for name, count in kinds.items() if count},
        "image_types": {"X-Ray 2D Radiography": 4, "PET": 4, "Light microscopy": 3},
        "image_groups": {"radiology": 8, "microscopy": 3},
        "caption_match_of_panels": {"labels": 6, "none": 2},
    }
    assert report["panels"] == 8 and report["panel_detection"]["split_captions"] == 3


@pytest.mark.parametrize(
    ("keys", "value", "fault"),
    [
        (("composition", "rows"), {"panels": 4}, "rows by kind: report.json states panels 4"),
        (("composition", "image_types"), {"PET": 6}, "images by type: report.json states PET 6, but there are"),
        (("panel_detection", "compound_figures"), 1, "articles.parquet: compound_figures: report.json states 1"),
    ],
)
def test_verification_compares_the_counts_of_panels(mirror, tmp_path, keys, value, fault):
    add_articles(mirror, 2)
    build(mirror, tmp_path / "out")
    assert verify_dataset(tmp_path / "out").faults == []
    path = tmp_path / "out" / "report.json"
    report = json.loads(path.read_text())
    report[keys[0]][keys[1]] = value
    path.write_text(json.dumps(report))
    (found,) = verify_dataset(tmp_path / "out").faults
    assert fault in found


class Wrong(Halves):
    """Returns what `answers` contains."""

    answers = [FigurePanels(True, 1.0, ())]

    def __call__(self, images, captions=None):
        return self.answers


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [FigurePanels(True, 1.0, ())],
        [FigurePanels(True, 1.0, (Panel((0, 0, float("nan"), 5), 1.0),) * 2)],
        [FigurePanels(True, 1.0, (Panel((0, 0, 20, 20), float("inf")),) * 2)],
        [None],
    ],
)
def test_an_impossible_answer_of_a_detector_is_a_failure(mirror, tmp_path, monkeypatch, answers):
    add_articles(mirror)
    monkeypatch.setattr(Wrong, "answers", answers)
    report = build(mirror, tmp_path / "out", detector=Wrong())
    assert report["pairs"] == report["panel_detection"]["failed_figures"] == 2


def test_panels_that_are_too_small_are_skipped(mirror, tmp_path, monkeypatch):
    add_articles(mirror)
    boxes = [(-5.0, -5, 60.4, 1000), (60, 0, 75, 40), (3, 3, 3, 3)]
    figure = FigurePanels(True, 1.0, tuple(Panel(box, 1.0) for box in boxes))
    monkeypatch.setattr(Wrong, "answers", [figure])
    build(mirror, tmp_path / "out", detector=Wrong())
    assert rows_by_id(tmp_path / "out")["PMC1.1/F2/wide/panel-1"]["panel_box"] == [0, 0, 60, 40]
    skipped = [(row["item"], row["reason"], row["detail"]) for row in skipped_rows(tmp_path / "out")]
    assert skipped[:2] == [
        ("F2/wide/panel-2", "panel too small", "15 x 40 pixels, but each side must have 16"),
        ("F2/wide/panel-3", "panel too small", "1 x 1 pixels, but each side must have 16"),
    ]


def test_only_rows_of_the_chosen_types_are_kept(mirror, tmp_path):
    add_articles(mirror, 2)
    mirror.article(9, figures=figure_xml("F1", "Broken.", "g"), media={"g.png": png_bytes(9, (77, 40))})
    report = build(mirror, tmp_path / "out", keep_types=["signals and waves", "pet"], detector=Halves(fails_at=77))
    assert sorted(rows_by_id(tmp_path / "out")) == ["PMC1.1/F2/wide/panel-2", "PMC2.1/F2/wide/panel-2"]
    assert report["figures"]["skipped"] == {"image of another type": 7, "panels not found": 1}
    assert report["articles"]["dropped"] == {"no usable panel": 1}
    details = Counter(
        row["detail"] for row in skipped_rows(tmp_path / "out") if row["reason"] == "image of another type"
    )
    assert details == {"X-Ray 2D Radiography": 4, "Light microscopy": 2, "unknown": 1}
    assert report["built_with"]["keep_types"] == [
        "PET",
        *("Electroencephalography", "Electrocardiography"),
        "Electromyography",
    ]


def test_panels_similar_to_a_benchmark_image_are_skipped(mirror, tmp_path):
    add_articles(mirror)
    benchmark = tmp_path / "benchmark"
    benchmark.mkdir()
    Image.open(io.BytesIO(png_bytes(2, WIDE))).crop((60, 0, 120, 40)).save(benchmark / "x.png")
    build(mirror, tmp_path / "out", decontaminate=str(benchmark))
    assert "PMC1.1/F2/wide/panel-2" not in rows_by_id(tmp_path / "out")
    assert [row["reason"] for row in skipped_rows(tmp_path / "out")] == ["similar to a benchmark image"]


def test_pair_ids_stay_unique_if_a_figure_has_the_id_of_a_panel(mirror, tmp_path):
    figures = figure_xml("F1", "(A) One. (B) Two.", "g") + figure_xml("F1/g", "Three.", "panel-1")
    mirror.article(1, figures=figures, media={"g.png": png_bytes(1, WIDE), "panel-1.png": png_bytes(2, SMALL)})
    build(mirror, tmp_path / "out")
    assert len(rows_of(tmp_path / "out")) == len(rows_by_id(tmp_path / "out")) == 3
    assert rows_by_id(tmp_path / "out")["PMC1.1/F1/g/panel-1"]["caption"] == "Three."


def test_an_image_of_several_figures_is_examined_once_with_each_caption(mirror, tmp_path, monkeypatch):
    captions = ["(A) One. (B) Two."] * 4 + ["Another caption."]
    figures = "".join(figure_xml(f"F{number}", caption, "g") for number, caption in enumerate(captions))
    mirror.article(1, figures=figures, media={"g.png": png_bytes(1, WIDE)})
    calls, call = [], Halves.__call__
    monkeypatch.setattr(Halves, "__call__", lambda self, images, captions: calls.append(captions) or call(self, images))
    assert build(mirror, tmp_path / "out")["pairs"] == 15
    assert calls == [["(A) One. (B) Two."], ["Another caption."]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A mirror of 24 articles, and the files that one task builds from it."""
    from helpers.mirror_writer import MirrorWriter

    mirror = MirrorWriter(tmp_path_factory.mktemp("source") / "mirror")
    add_articles(mirror, 24)
    output = tmp_path_factory.mktemp("undisturbed")
    build_set(mirror.root, output, detector=Halves(), panels="also", tasks=1)
    return mirror, dataset_files(output)


@pytest.mark.parametrize(("tasks", "workers"), [(7, 1), pytest.param(5, 2, marks=pytest.mark.slow)])
def test_the_files_do_not_depend_on_tasks_and_workers(undisturbed, tmp_path, tasks, workers):
    mirror, files = undisturbed
    build_set(mirror.root, tmp_path / "out", detector=Halves(), panels="also", tasks=tasks, workers=workers)
    assert dataset_files(tmp_path / "out") == files


@pytest.mark.slow
def test_slurm_gives_the_same_files(undisturbed, tmp_path, slurm, monkeypatch):
    mirror, files = undisturbed
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))  # where the fake detector is
    options = {"executor": "slurm", "workers": 2, "tasks": 3, "slurm_partition": "cpu"}
    assert build_set(mirror.root, tmp_path / "out", detector=Halves(), panels="also", **options) is None
    assert dataset_files(tmp_path / "out") == files, "\n".join(path.read_text() for path in slurm.glob("*.out"))


@pytest.mark.slow
def test_ray_gives_the_same_files(undisturbed, tmp_path):
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    mirror, files = undisturbed
    # A separate process, so that Ray's workers do not import the tests.
    code = (
        "from helpers.fake_detectors import Halves\n"
        "from helpers.mirror_writer import build_set\n"
        "from pathlib import Path\n"
        "options = {'executor': 'ray', 'workers': 2, 'tasks': 3, 'memory_gb': 1}\n"
        "options |= {'detector': Halves(), 'panels': 'also'}\n"
        f"build_set({str(mirror.root)!r}, Path({str(tmp_path / 'out')!r}), **options)\n"
    )
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "/tmp", "PYTHONPATH": str(ROOT / "tests")}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, timeout=900)
    assert dataset_files(tmp_path / "out") == files


def test_an_interrupted_build_continues_with_the_next_article(undisturbed, tmp_path, monkeypatch, watch):
    mirror, files = undisturbed
    options = {"detector": Halves(), "panels": "also", "tasks": 2}
    calls = watch(steps.PairFigures)
    call = Halves.__call__

    def stop(self, images, captions):
        if len(calls) > 9:
            raise KeyboardInterrupt
        return call(self, images)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Halves, "__call__", stop)
        build_set(mirror.root, tmp_path / "out", **options)
    for changed in ({"panels": "only"}, {"detector": Halves("other weights")}, {"keep_types": ["radiology"]}):
        with pytest.raises(ValueError, match=f"build with other options.*{next(iter(changed))} "):
            build_set(mirror.root, tmp_path / "out", **(options | changed))
    for name in ("make_plan", "write_shard", "check_rows"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(stages, name, interrupt)
            build_set(mirror.root, tmp_path / "out", **options)
    build_set(mirror.root, tmp_path / "out", **options)
    assert len(calls) == 25, "one article is processed twice"
    assert dataset_files(tmp_path / "out") == files


def test_an_update_gives_the_files_of_a_new_build(mirror, tmp_path):
    add_articles(mirror, 12)
    build(mirror, tmp_path / "updated")
    add_articles(mirror, 3, first=20)
    path = mirror.root / "metadata" / "PMC3.1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"doi": "10.1/other"}))
    (mirror.root / "metadata" / "PMC5.1.json").unlink()
    for changed, message in (
        ({"detector": Halves("new")}, "detector 'halves', not 'new'"),
        ({"mode": "only"}, "panels 'also', not 'only'"),
        ({"keep_types": ["PET"]}, "keep_types None, not"),
        ({"mode": None, "detector": None}, "panels 'also', not None"),
    ):
        with pytest.raises(ValueError, match=message):
            build(mirror, tmp_path / "updated", update=True, **changed)
    report = build(mirror, tmp_path / "updated", update=True)
    assert report["update"] == {"new": 3, "changed": 1, "retried": 0, "removed": 1, "unchanged": 10}
    fresh = build(mirror, tmp_path / "fresh")
    assert dataset_files(tmp_path / "updated") == dataset_files(tmp_path / "fresh")
    varying = dict.fromkeys(("seconds", "update"))
    assert report | varying == fresh | varying and report["panel_detection"]["examined_figures"] == 28


def test_a_dataset_without_panels_has_no_trace_of_them(mirror, tmp_path):
    add_articles(mirror, 2)
    report = build_set(mirror.root, tmp_path / "out", **ONE_SPLIT)
    assert "panel_detection" not in report and not {"panels", "keep_types", "detector"} & report["built_with"].keys()
    assert [*rows_of(tmp_path / "out")[0]] == pair_schema().names and not set(NEW_COLUMNS) & set(pair_schema().names)
    before = dataset_files(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    build_set(mirror.root, tmp_path / "out", **ONE_SPLIT, tasks=2)
    assert dataset_files(tmp_path / "out") == before


def test_a_detector_that_cannot_be_loaded_fails_the_build(mirror, tmp_path, monkeypatch):
    add_articles(mirror)

    def fail(self):
        raise ValueError("weights are missing")

    monkeypatch.setattr(Halves, "prepare", fail)
    with pytest.raises(ValueError, match="weights are missing"):
        build(mirror, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"panels": "both", "detector": Halves()}, "`panels` must be one of also, only, not 'both'"),
        ({"panels": "also"}, "`panels` requires a `detector`"),
        ({"keep_types": ["PET"]}, "`keep_types` has no effect without `panels`"),
        ({"detector": Halves()}, "`detector` has no effect without `panels`"),
        ({"panels": "also", "detector": Halves(), "keep_types": ["pets"]}, "'pets' is neither a type nor a group"),
        (
            {"panels": "also", "detector": Halves(image_types=()), "keep_types": ["PET"]},
            "`keep_types`: the detector halves tells no types",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BuildOptions("mirror", **options)


def test_the_type_of_a_compound_figure_covers_most_of_its_area():
    def panel(right, name, score):
        return Panel((0, 0, right, 10), 1.0, None, TypeScore(name, score))

    found = type_of_compound([panel(30, "PET", 0.9), panel(20, "Ultrasound", 0.9), panel(50, "Ultrasound", 0.5)])
    assert (found.name, found.score) == ("Ultrasound", pytest.approx(0.43))
    assert type_of_compound([panel(30, None, None)]).name is None
    assert type_of_compound([panel(0, "PET", 0.9)]).name is None
