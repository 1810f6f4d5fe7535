"""`biomedclip evaluate panels`: metrics of panels, labels, types and captions, with values that are counted by hand."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.model_results import read_results
from PIL import Image
from sklearn.metrics import f1_score, precision_score, recall_score

from biomedclip.processing.panels import SplitCaption, split_caption
from biomedclip.processing.panels.annotations import AnnotatedCaption, AnnotatedFigure, AnnotatedPanel
from biomedclip.processing.panels.figure_panels import FigurePanels, Panel
from biomedclip.processing.panels.image_types import GROUP_OF, IMAGE_TYPES, TypeScore
from biomedclip.run_scripts.evaluation import panels as task
from biomedclip.run_scripts.evaluation.caption_metrics import caption_metrics, word_similarity
from biomedclip.run_scripts.evaluation.panel_metrics import NO_TYPES, MeasuredFigure, panel_metrics
from biomedclip.run_scripts.evaluation.statistics.bootstrap import bootstrap_interval, metrics_with_intervals, ratio
from biomedclip.run_scripts.main import main


LEFT, RIGHT, WHOLE = (0.0, 0.0, 90.0, 100.0), (110.0, 0.0, 200.0, 100.0), (0.0, 0.0, 200.0, 100.0)
CT, MRI, GEL = "Computerized Tomography", "Magnetic Resonance", "Chromatography Gel"
MISSING = "the extra 'evaluate' is not installed"


def gold(*panels, article="PMC1", **fields):
    """An annotated figure of panels (box, label, type)."""
    annotated = tuple(AnnotatedPanel(box, label, None, image_type) for box, label, image_type in panels)
    return AnnotatedFigure(b"", annotated, len(panels) > 1, article, **fields)


def found(*panels):
    """What a detector found: panels (box, label, type), the first with the highest score."""
    return FigurePanels(
        len(panels) > 1,
        1.0,
        tuple(
            Panel(box, 1 - number / 10, label, TypeScore(name, 1.0, GROUP_OF.get(name), 1.0))
            for number, (box, label, name) in enumerate(panels)
        ),
    )


TRUTH = [
    gold((LEFT, "A", CT), (RIGHT, "B", GEL), article="PMC1"),
    gold((LEFT, "A", MRI), (RIGHT, None, MRI), article="PMC2"),
    gold((WHOLE, None, GEL), article="PMC2"),
]


def test_perfect_predictions_have_1_in_all_metrics():
    figures = [MeasuredFigure(each, found(*((p.box, p.label, p.image_type) for p in each.panels))) for each in TRUTH]
    metrics = panel_metrics(figures, resamples=20)
    assert "undefined" not in metrics
    assert (metrics["figures"], metrics["articles"], metrics["compound_figures"], metrics["panels"]) == (3, 2, 2, 5)
    parts = "single_or_compound panels_of_compound_figures panels_of_all_figures printed_labels image_types".split()
    for part in parts:
        values = {name: value for name, value in metrics[part].items() if isinstance(value, float)}
        assert values and set(values.values()) == {1.0}, part
        # Those of ratios are exact: two articles of which both are right, or the only one.
        lowest = {round(metrics[part][f"{name}_interval"][0], 6) for name in values}
        assert lowest <= {1.0, 0.025, round(0.025 ** (1 / 2), 6)}, part
        assert all(metrics[part][f"{name}_interval"][1] == 1.0 for name in values)
    assert metrics["image_types"]["of_group"]["radiology"] == {"panels": 3, "precision": 1.0, "recall": 1.0, "f1": 1.0}


def test_metrics_are_those_that_are_counted_by_hand():
    """One figure has a wrong label and a wrong type, one is not split, and one single figure is split."""
    near = (2.0, 0.0, 90.0, 100.0)
    figures = [
        MeasuredFigure(TRUTH[0], found((near, "A", MRI), (RIGHT, "C", GEL))),
        MeasuredFigure(TRUTH[1], found((WHOLE, None, MRI))),
        MeasuredFigure(TRUTH[2], found((WHOLE, "A", GEL), (LEFT, "B", GEL))),
    ]
    metrics = panel_metrics(figures, resamples=20)
    compound = metrics["single_or_compound"]
    assert (compound["precision"], compound["recall"], compound["f1"]) == (1 / 2, 1 / 2, 1 / 2)
    assert compound["accuracy"] == pytest.approx(1 / 3)
    of_compound, of_all = metrics["panels_of_compound_figures"], metrics["panels_of_all_figures"]
    assert of_compound["imageclef_accuracy"] == pytest.approx((1 + 0) / 2)
    assert of_all["imageclef_accuracy"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert (of_compound["recall"], of_compound["precision"]) == (2 / 4, 2 / 3)
    assert (of_all["recall"], of_all["precision"]) == (3 / 5, 3 / 5)
    # In the order of scores: right (1.0), wrong (1.0), right (0.9), so precision is 1 up to recall 1/4, 2/3 up to 1/2.
    assert of_compound["average_precision"] == pytest.approx((26 * 1 + 25 * 2 / 3) / 101)
    labels = metrics["printed_labels"]
    assert (labels["recall"], labels["accuracy_of_found_panels"], labels["precision"]) == (1 / 3, 1 / 2, 1 / 4)
    types = metrics["image_types"]
    assert (types["accuracy"], types["recall"]) == (pytest.approx(2 / 3), 2 / 5)
    assert (types["group_accuracy"], types["group_recall"]) == (1.0, 3 / 5), "CT and MRI are one group"
    assert types["macro_f1"] == pytest.approx((0 + 1) / 2), "of CT and of gels"
    assert types["of_type"] == {
        CT: {"panels": 1, "precision": None, "recall": 0.0, "f1": 0.0},
        GEL: {"panels": 2, "precision": 1.0, "recall": 1.0, "f1": 1.0},
    }


def test_figures_without_annotated_labels_do_not_count_for_labels():
    figures = [MeasuredFigure(replace(TRUTH[0], has_labels=False), found((LEFT, "X", CT), (RIGHT, "Y", GEL)))]
    metrics = panel_metrics(figures, resamples=20)
    assert metrics["printed_labels"]["recall"] is metrics["printed_labels"]["precision"] is None
    assert metrics["undefined"]["printed_labels precision"] == "there is nothing to count"


def test_a_detector_without_types_has_no_metrics_of_types():
    metrics = panel_metrics([MeasuredFigure(TRUTH[0], found((LEFT, "A", None), (RIGHT, "B", None)))], resamples=20)
    assert metrics["image_types"]["accuracy"] is metrics["image_types"]["macro_f1_interval"] is None
    assert metrics["undefined"]["image_types accuracy"] == NO_TYPES


def test_the_threshold_of_unknown_types_is_fitted_to_the_found_panels():
    answer = found((LEFT, "A", MRI), (RIGHT, "B", GEL))
    scores = [TypeScore(MRI, 0.4, "radiology", 0.9), TypeScore(GEL, 0.7, "generic", 0.8)]
    typed = [replace(panel, image_type=score) for panel, score in zip(answer.panels, scores, strict=True)]
    metrics = panel_metrics([MeasuredFigure(TRUTH[0], replace(answer, panels=tuple(typed)))], resamples=20)
    assert metrics["image_types"]["unknown_below"] == {
        "required_accuracy": 0.95,
        "type": {"threshold": 0.7, "accepted": 0.5, "accuracy": 1.0},
        "group": {"threshold": 0.8, "accepted": 1.0, "accuracy": 1.0},
    }, "the type of the first panel is wrong, its group is right"
    undefined = [replace(panel, image_type=replace(panel.image_type, score=math.nan)) for panel in typed]
    metrics = panel_metrics([MeasuredFigure(TRUTH[0], replace(answer, panels=tuple(undefined)))], resamples=20)
    assert metrics["image_types"]["unknown_below"]["type"]["threshold"] is None


def test_f1_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    names = [CT, MRI, GEL, "Endoscopy"]
    true = [[names[number] for number in rng.integers(3, size=rng.integers(1, 4))] for _ in range(40)]
    boxes = [(0.0, 0.0, 50.0, 100.0), (60.0, 0.0, 120.0, 100.0), (130.0, 0.0, 200.0, 100.0)]
    figures = []
    for types in true:
        ours = [name if rng.random() < 0.6 else names[rng.integers(4)] for name in types]
        answer = found(*((box, None, name) for box, name in zip(boxes, ours, strict=False)))
        figures.append(
            MeasuredFigure(
                gold(*((box, None, name) for box, name in zip(boxes, types, strict=False))),
                replace(answer, compound=bool(rng.random() < 0.5)),
            )
        )
    metrics = panel_metrics(figures, resamples=20)
    predicted = [panel.image_type.name for figure in figures for panel in figure.found.panels]
    flat = [name for types in true for name in types]
    occur = sorted(set(flat))
    expected = f1_score(flat, predicted, labels=occur, average="macro", zero_division=0)
    assert len(occur) == 3 and metrics["image_types"]["macro_f1"] == pytest.approx(expected)
    compound = [figure.gold.compound for figure in figures], [figure.found.compound for figure in figures]
    for name, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert metrics["single_or_compound"][name] == pytest.approx(score(*compound))


def test_intervals_are_over_articles_and_depend_on_the_seed():
    values, articles = np.random.default_rng(0).random(60), np.repeat(np.arange(12), 5)
    metric = {"mean": ratio(values, np.ones(60))}
    low, high = metrics_with_intervals(metric, articles, seed=1)["mean_interval"]
    expected = bootstrap_interval(values, articles, seed=2)
    assert [low, high] == pytest.approx(expected, abs=0.02)
    assert [low, high] == metrics_with_intervals(metric, articles, seed=1)["mean_interval"]
    assert [low, high] != metrics_with_intervals(metric, articles, seed=3)["mean_interval"]
    alone = metrics_with_intervals({"mean": ratio([1, 0], [1, 1])}, ["PMC1", "PMC1"])
    assert alone == {"mean": 0.5, "mean_interval": None}


def test_a_metric_that_most_samples_leave_undefined_has_no_interval():
    rare = np.zeros(400)
    rare[0] = 1
    metric = {"usual": ratio(rare, np.ones(400)), "rare": ratio(rare, rare)}
    found = metrics_with_intervals(metric, range(400), resamples=50)
    assert found["rare"] == 1.0 and found["rare_interval"] == pytest.approx([0.025, 1.0]), (
        "63 % of the samples contain it"
    )
    assert metrics_with_intervals({"never": ratio([0], [0])}, ["PMC1"])["never_interval"] is None


def caption(text, panels, with_context=None, article="PMC1"):
    return AnnotatedCaption(text, tuple(panels or with_context), panels, with_context or panels, article)


def equal(text, reference):
    return float(text == reference)


def test_metrics_of_captions_are_those_that_are_counted_by_hand():
    captions = [
        caption("Scans. (A) CT. (B) MRI.", {"A": "CT.", "B": "MRI."}, {"A": "Scans. CT.", "B": "Scans. MRI."}),
        caption("Left and right.", {"A": "Left", "B": "right"}),
    ]
    splits = [SplitCaption("Scans.", {"A": "CT.", "B": "PET.", "C": "US."}), SplitCaption("Left and right.")]
    metrics = caption_metrics(captions, splits, equal, resamples=20)
    assert (metrics["label_precision"], metrics["label_recall"]) == (2 / 3, 2 / 4)
    assert metrics["label_f1"] == 2 * 2 / (3 + 4)
    assert metrics["label_f1_of_captions"] == (4 / 5 + 0) / 2
    assert metrics["rouge_l"] == metrics["rouge_l_with_context"] == 1 / 4
    assert metrics["word_similarity_with_context"] == (1 + 1 / 2) / 4


def test_perfect_captions_have_1_in_all_metrics():
    captions = [caption("(A) CT. (B) MRI.", {"A": "CT.", "B": "MRI."})]
    metrics = caption_metrics(captions, [split_caption(captions[0].text)], equal, resamples=20)
    assert {value for name, value in metrics.items() if not name.endswith("_interval")} == {1.0}


def test_captions_with_context_alone_have_no_metrics_without():
    captions = [caption("(A) CT. (B) MRI.", {}, {"A": "CT.", "B": "MRI."})]
    metrics = caption_metrics(captions, [split_caption(captions[0].text)], equal, resamples=20)
    assert metrics["rouge_l"] is metrics["rouge_l_interval"] is None and metrics["rouge_l_with_context"] == 1.0


@pytest.mark.parametrize(
    ("text", "reference", "similarity"),
    [("", "", 1.0), ("a", "", 0.0), ("a b c", "A, b c.", 1.0), ("a b", "b a", 0.0), ("a b c d", "a c d", 0.75)],
)
def test_the_similarity_of_words_counts_words_that_are_changed_added_or_left_out(text, reference, similarity):
    assert word_similarity(text, reference) == similarity == word_similarity(reference, text)


# The command


@pytest.fixture
def figures(tmp_path):
    """A folder of two articles, and rows of a gold standard: two compound figures and a single one."""
    folder = tmp_path / "figures"
    rng = np.random.default_rng(0)
    rows = []
    panels = [((0, 0, 180, 190), "A", CT), ((220, 0, 400, 190), "B", GEL)]
    for number, kinds in enumerate((panels, panels, [((0, 0, 400, 190), None, CT)])):
        article = f"PMC{number // 2 + 1}"
        picture = Image.new("RGB", (400, 190), "white")
        for box, _, _ in kinds:
            size = (box[3] - box[1], box[2] - box[0], 3)
            picture.paste(Image.fromarray(rng.integers(0, 200, size, dtype=np.uint8)), box[:2])
        (folder / f"{article}.1").mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{article}.1" / f"{number}.png")
        rows.append(
            {
                "pmcid": article,
                "file": f"{number}.png",
                "compound": len(kinds) > 1,
                "panels": [{"box": box, "label": label, "type": kind} for box, label, kind in kinds],
                "caption": "Scans. (A) Before. (B) After." if len(kinds) > 1 else "A scan.",
            }
        )
    return folder, rows


@pytest.fixture
def evaluate(figures, tmp_path, capsys):
    """Write rows to a table, run `biomedclip evaluate panels`, and return the status and the output in one line."""
    folder, rows = figures

    def run(*options, rows=rows, images=folder, out="out"):
        table = tmp_path / "gold.jsonl"
        table.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        arguments = ["panels", "--data", table, "--output-dir", tmp_path / out, *options]
        if images and not any(str(option).startswith("--detector") for option in options):
            arguments += ["--detector", "x-y-cut"]
        capsys.readouterr()
        status = main(["evaluate", *map(str, [*arguments, *(["--images", images] if images else [])])])
        output = capsys.readouterr()
        return status, " ".join((output.out + output.err).split())

    return run


def test_the_command_writes_results_and_the_panels_of_each_figure(figures, evaluate, tmp_path):
    status, output = evaluate()
    assert status == 0 and "Panels of 3 figures of 2 articles, x-y-cut" in output and "too narrow" in output
    results = read_results(tmp_path / "out")
    assert (results["task"], results["benchmark"], results["schema"]) == ("panels", None, 1)
    assert (results["data"]["rows"], results["data"]["split"], results["data"]["damaged"]) == (3, "all", [])
    assert results["model"] == {"name": "x-y-cut", "type": "recursive X-Y cut", "weights": "none"}
    metrics = results["metrics"]
    for part in ("single_or_compound", "panels_of_compound_figures", "panels_of_all_figures"):
        assert all(value == 1.0 or value[1] == 1.0 for value in metrics[part].values()), part
    assert metrics["printed_labels"]["recall"] == 0.0 and "sub_captions" not in metrics
    assert metrics["undefined"]["image_types accuracy"] == NO_TYPES
    rows = [json.loads(line) for line in (tmp_path / "out" / "panels.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == ["0.png", "1.png", "2.png"]
    assert [panel["sub_caption"] for panel in rows[0]["panels"]] == ["Before.", "After."]


def fake_detector(rows, label=True):
    """A detector that finds the panels of the rows in their order."""
    answers = iter(
        found(*((tuple(p["box"]), p["label"] if label else None, p["type"]) for p in row["panels"])) for row in rows
    )
    last = []

    def detect(images, captions=None):
        """Captions, which come with a second call for the same images, change nothing."""
        if captions is None:
            last[:] = [next(answers) for _ in images]
        return list(last)

    return detect


def test_labels_types_and_captions_of_a_detector_are_measured(figures, evaluate, monkeypatch, tmp_path):
    pytest.importorskip("rouge_score", reason=MISSING)
    rows = [dict(row) for row in figures[1]]
    for row in rows[:2]:
        row |= {"sub_captions": {"A": "Before.", "B": "After."}, "context": "Scans."}
    wrong = json.loads(json.dumps(rows))
    wrong[0]["panels"][1]["label"] = "C"
    wrong[1]["panels"][0]["type"] = MRI
    monkeypatch.setattr(task, "load_detector", lambda *args, **kwargs: fake_detector(wrong))
    status, output = evaluate("--batch-size", "1", rows=rows)
    assert status == 0 and "radiology" in output and "Sub-captions of 2 captions" in output
    metrics = read_results(tmp_path / "out")["metrics"]
    assert metrics["printed_labels"]["recall"] == 3 / 4
    assert (metrics["image_types"]["accuracy"], metrics["image_types"]["group_accuracy"]) == (4 / 5, 1.0)
    assert "Smallest --unknown-below with an accuracy of 0.95" in output
    modes = metrics["sub_captions"]
    assert all(value == 1.0 for name, value in modes["gold_labels"].items() if not name.endswith("_interval"))
    assert modes["caption_alone"]["label_f1"] == 1.0
    # The caption names A and B, so it is not split if A and C were read.
    assert (modes["read_labels"]["label_f1"], modes["read_labels"]["rouge_l"]) == (2 * 2 / (2 + 4), 1 / 2)


def test_metrics_without_captions_stand_beside_those_with_them(figures, evaluate, monkeypatch, tmp_path):
    rows = figures[1]
    right, wrong = fake_detector(rows), json.loads(json.dumps(rows))
    wrong[0]["panels"][0]["type"] = MRI if rows[0]["panels"][0]["type"] != MRI else GEL
    without = fake_detector(wrong)

    def detect(images, captions=None):
        if captions is None:
            right(images)
            return without(images)
        return right(images, captions)

    monkeypatch.setattr(task, "load_detector", lambda *args, **kwargs: detect)
    status, output = evaluate("--batch-size", "1")
    assert status == 0 and "image and caption" in output and "image alone" in output
    metrics = read_results(tmp_path / "out")["metrics"]
    assert metrics["image_types"]["accuracy"] == 1.0
    assert metrics["without_captions"]["image_types"]["accuracy"] == 4 / 5


def test_predictions_that_a_person_has_checked_are_annotations(figures, evaluate, tmp_path):
    """Rows of `biomedclip panels` as gold standard give 1 for the same detector."""
    pytest.importorskip("rouge_score", reason=MISSING)
    folder, _ = figures
    assert main(["panels", str(folder), "--output", str(tmp_path / "panels.jsonl")]) == 0
    checked = [json.loads(line) for line in (tmp_path / "panels.jsonl").read_text().splitlines()]
    for panel, label, text in zip(checked[0]["panels"], "AB", ("Before.", "After."), strict=True):
        panel |= {"label": label, "sub_caption": text}
    checked[0] |= {"caption": "(a) Before. (b) After.", "context": ""}
    assert evaluate(rows=checked)[0] == 0
    metrics = read_results(tmp_path / "out")["metrics"]
    assert metrics["articles"] == 2, "the names of the folders tell the articles"
    assert metrics["panels_of_all_figures"]["average_precision"] == metrics["single_or_compound"]["f1"] == 1.0
    assert metrics["sub_captions"]["read_labels"]["rouge_l"] == 1.0


def test_captions_are_measured_without_pictures(evaluate, tmp_path):
    pytest.importorskip("rouge_score", reason=MISSING)
    panels = [
        {"label": label, "sub_caption_with_context": f"Scans. {text}"} for label, text in (("a", "CT"), ("b", "MRI"))
    ]
    rows = [{"figure": f"{number}.jpg", "caption": "Scans. (a) CT, (b) MRI", "panels": panels} for number in range(3)]
    status, output = evaluate(rows=rows, images=None)
    assert status == 0 and "read labels" not in output
    results = read_results(tmp_path / "out")
    assert list(results["metrics"]) == ["sub_captions", "undefined"] and results["data"]["rows"] == 3
    assert results["metrics"]["sub_captions"]["gold_labels"]["rouge_l_with_context"] == 1.0
    assert results["metrics"]["undefined"]["sub_captions gold_labels rouge_l"] == "there is nothing to count"
    assert not (tmp_path / "out" / "panels.jsonl").exists()


def test_rouge_l_without_its_package_is_an_error_that_names_the_extra(evaluate, monkeypatch):
    def missing(module, needed_by, install):
        raise ImportError(f"{needed_by} requires the package {module}. Install it: {install}")

    monkeypatch.setattr("biomedclip.run_scripts.evaluation.caption_metrics.import_optional", missing)
    row = {"figure": "1.jpg", "caption": "(a) CT", "panels": [{"label": "A", "sub_caption": "CT"}]}
    status, output = evaluate(rows=[row], images=None)
    assert status == 1 and "'biomedclip[evaluate]'" in output and "Traceback" not in output


def test_damaged_pictures_are_excluded_and_listed(figures, evaluate, tmp_path):
    folder, _ = figures
    picture = folder / "PMC1.1" / "1.png"
    picture.write_bytes(picture.read_bytes()[:2000])
    status, output = evaluate()
    assert status == 0 and "1 damaged images are excluded: 1.png" in output
    results = read_results(tmp_path / "out")
    assert results["metrics"]["figures"] == results["data"]["rows"] == 2
    lines = (tmp_path / "out" / "panels.jsonl").read_text().splitlines()
    assert len(lines) == 3 and json.loads(lines[1])["error"]


def test_results_are_the_same_for_any_batch_size_and_number_of_threads(evaluate, tmp_path):
    assert evaluate("--batch-size", "1", "--workers", "1", out="a")[0] == 0
    assert evaluate("--batch-size", "3", "--workers", "4", out="b")[0] == 0
    first, second = (read_results(tmp_path / name) for name in "ab")
    assert first["metrics"] == second["metrics"] and first["data"]["fingerprint"] == second["data"]["fingerprint"]
    assert (tmp_path / "a" / "panels.jsonl").read_bytes() == (tmp_path / "b" / "panels.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--images", "/nowhere"], 1, "/nowhere: the folder does not exist"),
        (["--detector", "/nowhere/at/all"], 1, "/nowhere/at/all"),
        (["--model", "/nowhere/at/all"], 1, "/nowhere/at/all"),
        (["--model", "a", "b"], 2, "panels takes one model that tells image types, not 2"),
        (["--trust-remote-code"], 2, "--trust-remote-code has no effect without the folder or Hub id"),
        (["--benchmark", "pcam"], 2, "--benchmark applies only to retrieval"),
        (["--precision", "bfloat16"], 2, "--precision applies only to"),
        (["--batch-size", "0"], 2, "--batch-size must be 1 or more"),
    ],
)
def test_an_error_is_a_message_before_any_work(evaluate, options, status, message):
    found_status, output = evaluate(*options, **({"images": None} if "--images" in options else {}))
    assert found_status == status and message in output and "Traceback" not in output


@pytest.mark.parametrize("option", ["--detector=d", "--device=cpu", "--batch-size=4", "--workers=1", "--model=m"])
def test_options_of_pictures_have_no_effect_on_captions_alone(evaluate, option):
    status, output = evaluate(option, images=None)
    assert status == 2 and "has no effect without --images" in output


def test_missing_pictures_and_faulty_rows_are_errors(figures, evaluate):
    _, rows = figures
    status, output = evaluate(rows=[*rows, {**rows[0], "file": "x.png"}, {**rows[0], "file": "y.png"}])
    assert status == 1 and "2 of 5 pictures are not in" in output and "x.png, y.png" in output
    status, output = evaluate(rows=[*rows[1:], {**rows[0], "panels": [{"box": [0, 0, 900, 100]}]}])
    assert status == 1 and "1 of 3 figures have faults: line 3: box of panel 1" in output
    status, output = evaluate(rows=rows, images=None)
    assert status == 1 and "no caption was split by panels" in output


def test_the_x_y_cut_on_the_gold_standard_has_the_documented_scores(shared_data, tmp_path):
    pytest.importorskip("rouge_score", reason=MISSING)
    data = [str(shared_data / "panels" / "gold.jsonl"), "--images", str(shared_data / "pmc_mirror")]
    options = ["--detector", "x-y-cut", "--output-dir", str(tmp_path / "out")]
    assert main(["evaluate", "panels", "--data", *data, *options]) == 0
    metrics = read_results(tmp_path / "out")["metrics"]
    assert (metrics["figures"], metrics["compound_figures"], metrics["panels"]) == (150, 52, 280)
    assert round(metrics["single_or_compound"]["f1"], 3) == 0.827
    of_compound, of_all = metrics["panels_of_compound_figures"], metrics["panels_of_all_figures"]
    names = ("imageclef_accuracy", "recall", "precision")
    assert [round(of_compound[name], 3) for name in names] == [0.714, 0.725, 0.714]
    assert [round(of_all[name], 3) for name in names] == [0.865, 0.814, 0.763]
    assert round(metrics["sub_captions"]["caption_alone"]["label_f1"], 3) == 0.983
    assert round(metrics["sub_captions"]["caption_alone"]["rouge_l"], 3) == 0.912
    assert set(metrics["image_types"]["of_type"]) <= set(IMAGE_TYPES)
