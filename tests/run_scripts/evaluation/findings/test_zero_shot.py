"""Several findings for each image: metrics against scikit-learn, prompt pairs, linear probes, and the command."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from biomedclip import BiomedCLIPModel, BiomedCLIPProcessor
from biomedclip.processing.benchmarks.findings import choose_finding_prompts
from biomedclip.run_scripts.evaluation.findings.linear_probe import probe_findings
from biomedclip.run_scripts.evaluation.findings.metrics import measure_findings, show_findings
from biomedclip.run_scripts.evaluation.linear_probe import STRENGTHS, LabeledFeatures
from biomedclip.run_scripts.evaluation.statistics.bootstrap import bootstrap_weights
from biomedclip.run_scripts.main import main


def drawn_labels(images: int, findings: int, seed: int = 0, ignored: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and targets that they tell something about, some of them NaN."""
    generator = np.random.default_rng(seed)
    targets = (generator.random((images, findings)) < 0.3).astype(float)
    scores = np.round(generator.normal(size=(images, findings)) + targets, 1)
    targets[generator.random((images, findings)) < ignored] = np.nan
    return scores, targets


def test_metrics_and_intervals_are_those_of_scikit_learn_on_labels_that_count():
    scores, targets = drawn_labels(150, 3)
    groups = [f"patient {number // 3}" for number in range(150)]
    found = measure_findings(scores, targets, ["a", "b", "c"], groups=groups, resamples=60, seed=4)
    samples = {"auroc": [], "average_precision": []}
    for weights in [np.ones(150), *bootstrap_weights(groups, seed=4, resamples=60)]:
        areas, precisions = [], []
        for number in range(3):
            kept = ~np.isnan(targets[:, number]) & (weights > 0)
            arguments = (targets[kept, number], scores[kept, number])
            areas.append(roc_auc_score(*arguments, sample_weight=weights[kept]))
            precisions.append(average_precision_score(*arguments, sample_weight=weights[kept]))
        samples["auroc"].append(areas)
        samples["average_precision"].append(precisions)
    for metric, values in samples.items():
        values = np.array(values)
        assert found[metric] == pytest.approx(values[0].mean(), abs=1e-12)
        ends = np.quantile(values[1:].mean(axis=1), [0.025, 0.975])
        assert found[f"{metric}_interval"] == pytest.approx(ends, abs=1e-12)
        for number, name in enumerate("abc"):
            assert found["findings"][name][metric] == pytest.approx(values[0, number], abs=1e-12)
            ends = np.quantile(values[1:, number], [0.025, 0.975])
            assert found["findings"][name][f"{metric}_interval"] == pytest.approx(ends, abs=1e-12)
    counts = found["findings"]["a"]
    assert counts["positives"] == np.nansum(targets[:, 0]) and counts["ignored"] == np.isnan(targets[:, 0]).sum()
    assert sum(counts[name] for name in ("positives", "negatives", "ignored")) == 150


def test_a_finding_of_one_class_is_undefined_with_the_reason_and_not_part_of_the_mean(capsys):
    scores, targets = drawn_labels(40, 5, ignored=0)
    targets[:, 1], targets[:, 2], targets[:, 3], scores[7, 4] = 0, 1, np.nan, np.nan
    found = measure_findings(scores, targets, ["a", "none", "every", "ignored", "bad"], resamples=20)
    assert found["auroc"] == found["findings"]["a"]["auroc"] == roc_auc_score(targets[:, 0], scores[:, 0])
    reasons = {name.removeprefix("AUROC and average precision of "): why for name, why in found["undefined"].items()}
    assert reasons == {
        "none": "all 40 labels are 0",
        "every": "all 40 labels are 1",
        "ignored": "all labels are ignored",
        "bad": "the scores of 1 of 40 images are NaN or infinite",
    }
    assert all(found["findings"][name][metric] is None for name in reasons for metric in ("auroc", "auroc_interval"))
    show_findings("Findings", found)
    assert "Undefined: none: all 40 labels are 0." in capsys.readouterr().out
    nothing = measure_findings(scores[:, 1:3], targets[:, 1:3], ["none", "every"], resamples=20)
    assert nothing["auroc"] is None and nothing["auroc_interval"] is None and "auroc" in nothing["undefined"]


def test_the_table_of_chexpert_fits_on_eighty_columns(capsys):
    scores, targets = drawn_labels(2000, 1)
    metrics = measure_findings(scores, targets, ["Enlarged Cardiomediastinum"], resamples=20)
    metrics["findings"]["Enlarged Cardiomediastinum"]["positives"] = 22_381
    show_findings("Findings", metrics)
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 80 and "22,381" in output


def test_prompts_of_findings_are_pairs_from_a_set_or_a_file(tmp_path):
    pairs, name = choose_finding_prompts(None, ["Pleural_Thickening", "No Finding"])
    assert name == "chexzero"
    assert pairs == {
        "Pleural_Thickening": (["Pleural Thickening"], ["no Pleural Thickening"]),
        "No Finding": (["no finding"], ["a finding"]),
    }
    file = tmp_path / "prompts.yaml"
    file.write_text(
        'positive: ["{} is seen", "signs of {}"]\nnames: {mass: a lung mass}\n'
        "findings: {edema: {positive: [wet], negative: [dry]}}\n",
        encoding="utf-8",
    )
    pairs, name = choose_finding_prompts(str(file), ["mass", "edema"])
    assert name == "prompts.yaml"
    assert pairs == {
        "mass": (["a lung mass is seen", "signs of a lung mass"], ["no a lung mass"]),
        "edema": (["wet"], ["dry"]),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("templates: ['{}']", "must be a mapping with some of findings, names, negative, positive"),
        ("positive: ['nothing']", "`positive` must be a list of texts with one {} each"),
        ("positive: '{}'", "`positive` must be a list of texts"),
        ("names: {cyst: a cyst}", "`names` has the unknown finding 'cyst'. Choose from mass, edema"),
        ("findings: {mass: {positive: [a]}}", "must have `positive` and `negative` prompts for mass"),
        ("names: {mass: ''}", "the name of mass must be a list of texts"),
        ("a: [", "not a readable YAML file"),
    ],
)
def test_a_file_of_prompts_that_is_invalid_is_an_error(tmp_path, content, message):
    file = tmp_path / "prompts.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        choose_finding_prompts(str(file), ["mass", "edema"])
    assert message in str(error.value) and str(file) in str(error.value)
    with pytest.raises(ValueError, match=r"neither a set of prompts \(chexzero, biovil\) nor a YAML file"):
        choose_finding_prompts("others", ["mass", "edema"])


def probed(images: int, seed: int, ignored: float) -> LabeledFeatures:
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(images, 6)) * [1, 5, 1, 1, 1, 1] + 3
    targets = (features[:, :2] + generator.normal(size=(images, 2)) > [3, 6]).astype(float)
    targets[generator.random(targets.shape) < ignored] = np.nan
    return LabeledFeatures(features, targets)


def test_the_probe_of_a_finding_is_a_logistic_regression_on_its_labels():
    train, validation, test = probed(200, 0, 0.3), probed(100, 1, 0.1), probed(120, 2, 0.1)
    found, classifier = probe_findings(train, validation, test, ["a", "b"], fractions=[1.0])
    scores = classifier(test.features)
    mean, deviation = train.features.mean(axis=0), train.features.std(axis=0)
    (run,) = found["by_fraction"]["1"]["runs"]
    for number, name in enumerate("ab"):
        best, log_odds = (0, None, None), {}
        for strength in STRENGTHS:
            known = ~np.isnan(train.labels[:, number])
            fitted = LogisticRegression(C=strength, max_iter=1000)
            fitted.fit(((train.features - mean) / deviation)[known], train.labels[known, number])
            areas = []
            for split in (validation, test):
                kept = ~np.isnan(split.labels[:, number])
                judged = fitted.decision_function((split.features - mean) / deviation)
                areas.append(roc_auc_score(split.labels[kept, number], judged[kept]))
            best, log_odds[strength] = max(best, (areas[0], -strength, areas[1])), judged
        # Fits that start elsewhere end within lbfgs' tolerance of each other.
        assert run["C"][name] == -best[1]
        assert found["findings"][name]["auroc"] == pytest.approx(best[2], abs=1e-3)
        assert scores[:, number] == pytest.approx(log_odds[-best[1]], abs=0.02)
    assert found["auroc"] == pytest.approx(np.mean([found["findings"][name]["auroc"] for name in "ab"]))
    assert found["training_images"] == 200 and run["images"] == 200 and run["findings"] == 2


def test_a_finding_that_cannot_be_learned_is_left_out_and_one_without_validation_takes_the_others_strength():
    train, validation, test = probed(120, 0, 0), probed(60, 1, 0), probed(60, 2, 0)
    train.labels[:, 1] = 0
    found, classifier = probe_findings(train, validation, test, ["a", "b"], fractions=[1.0])
    assert np.isnan(classifier(test.features)).tolist() == [[False, True]] * 60
    assert found["undefined"] == {"AUROC and average precision of b": "all 120 drawn training labels are 0"}
    assert found["auroc"] == found["findings"]["a"]["auroc"] and found["findings"]["b"]["auroc"] is None
    train = probed(120, 0, 0)
    validation.labels[:, 1] = np.nan
    chosen = probe_findings(train, validation, test, ["a", "b"], fractions=[1.0])[0]["by_fraction"]["1"]["runs"][0]["C"]
    assert chosen["a"] == chosen["b"]
    broken = LabeledFeatures(np.full((60, 6), np.nan), test.labels)
    found, _ = probe_findings(train, validation, broken, ["a", "b"], fractions=[1.0])
    assert found["auroc"] is None and "NaN" in found["undefined"]["AUROC and average precision of a"]


@pytest.fixture
def table(tmp_path) -> str:
    """80 images of 20 patients: the left half is bright with `left`, and the right half with `right`."""
    lines = ["image,patient,left,right"]
    generator = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for number in range(80):
        left, right = generator.integers(2, size=2)
        pixels = generator.integers(0, 60, size=(32, 32), dtype=np.uint8)
        pixels[:, :16] += np.uint8(150 * left)
        pixels[:, 16:] += np.uint8(150 * right)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{number}.png")
        lines.append(f"{number}.png,p{number // 4},{left},{'' if number % 9 == 0 else right}")
    path = tmp_path / "data" / "table.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


COLUMNS = ["--label-columns", "left", "right", "--group-column", "patient"]


def test_prompt_pairs_give_the_softmax_over_the_pair(measure, table, small_checkpoint, tmp_path, capsys):
    results = measure("zero-shot", table, *COLUMNS, "--blank", "ignore")
    assert results["settings"]["prompts"]["left"] == {"positive": ["left"], "negative": ["no left"]}
    assert any("labels are blank. They are ignored" in note for note in results["data"]["notes"])
    assert "Only 20 groups: the intervals are too narrow." in results["data"]["notes"]
    rows = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert rows[0]["file"] == "0.png" and rows[0]["ignored"] == "right" and rows[0]["group"] == "p0"
    assert rows[0].keys() >= {"probability_left", "probability_right"} and set(rows[0]["true"]) <= {"left"}
    assert all((row["probability_left"] >= 0.5) == ("left" in row["predicted"]) for row in rows)
    counts = results["metrics"]["findings"]["right"]
    assert counts["ignored"] == 9 and results["metrics"]["findings"]["left"]["ignored"] == 0
    model, processor = (kind.from_pretrained(small_checkpoint) for kind in (BiomedCLIPModel, BiomedCLIPProcessor))
    lines = [line.split(",") for line in open(table, encoding="utf-8").read().splitlines()[1:]]
    images = [Image.open(table.replace("table.csv", line[0])) for line in lines]
    for number, name in enumerate(("left", "right"), start=2):
        inputs = processor(text=[name, f"no {name}"], images=images, return_tensors="pt", padding=True)
        with torch.no_grad():
            chances = model(**inputs).logits_per_image.softmax(dim=1)[:, 0].tolist()
        kept = [(int(line[number]), chance) for line, chance in zip(lines, chances, strict=True) if line[number]]
        assert [row[f"probability_{name}"] for row in rows] == pytest.approx(chances, abs=1e-5)
        area = roc_auc_score(*zip(*kept, strict=True))
        # Texts without padding differ by rounding, which may order two images differently.
        assert results["metrics"]["findings"][name]["auroc"] == pytest.approx(area, abs=2e-3)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_the_probe_learns_findings_and_reports_leaks_of_patients(measure, table, tmp_path, capsys):
    results = measure("linear-probe", table, *COLUMNS, "--fractions", "0.2", "1", "--draws", "2")
    metrics = results["metrics"]
    assert metrics["auroc"] > 0.9 and metrics["findings"]["left"]["auroc_interval"] is not None
    assert len(metrics["by_fraction"]["0.2"]["runs"]) == 2 and metrics["images"] == 16
    assert any("whole groups" in note for note in results["data"]["notes"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    folder = tmp_path / "split"
    for split, rows in (("train", range(40)), ("validation", range(40, 60)), ("test", range(58, 80))):
        lines = open(table, encoding="utf-8").read().splitlines()
        (folder / split).mkdir(parents=True)
        chosen = [lines[row + 1] for row in rows]
        for line in chosen:
            name = line.split(",")[0]
            (folder / split / name).symlink_to(table.replace("table.csv", name))
        header = lines[0].replace("image", "file_name")
        chosen = [line.replace(",p19,", ",p0,") for line in chosen]
        (folder / split / "metadata.csv").write_text("\n".join([header, *chosen]), encoding="utf-8")
    for path in folder.rglob("*.png"):
        target = path.readlink()
        path.unlink()
        path.write_bytes(target.read_bytes())
    results = measure("linear-probe", folder, *COLUMNS, "--fractions", "1", out="leaks")
    leak = "Leak: 1 groups, such as p0, have images in both the training and the test split."
    assert leak in results["data"]["notes"] and results["data"]["leaks"]["same_group"] == 4


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--uncertain", "one"], 2, "--uncertain has no effect without --label-columns"),
        ([*COLUMNS, "--label-column", "left"], 2, "--label-column is for one label, and --label-columns for several"),
        ([*COLUMNS, "--templates", "{}"], 2, "--templates has no effect with --label-columns. Pass --prompts FILE"),
        ([*COLUMNS, "--benchmark", "pcam"], 2, "--benchmark has no effect with --label-columns. The images of"),
        (
            ["--label-columns", "left", "both"],
            1,
            "no column 'both'. The columns are image, patient, left, right. Pass --",
        ),
        ([*COLUMNS[:3], "--group-column", "person"], 1, "no column 'person'"),
        (["--label-columns", "left", "patient"], 1, "line 2: patient is 'p0'. The label of a finding must be 1, 0, -1"),
    ],
)
def test_options_that_do_not_fit_are_errors_before_a_model_is_loaded(
    table, small_checkpoint, no_model, tmp_path, capsys, options, status, message
):
    arguments = ["zero-shot", "--model", small_checkpoint, "--data", table, *options, "--output-dir", tmp_path / "out"]
    assert main(["evaluate", *map(str, arguments)]) == status
    assert message in " ".join(capsys.readouterr().err.split())
