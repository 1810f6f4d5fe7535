"""`--calibrate`, `--sensitivity`, `--specificity` and `--subgroup-column` of images with several findings."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.model_results import read_results
from PIL import Image
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, recall_score, roc_auc_score

from biomedclip.run_scripts.classification.calibrations import Calibration, read_calibration
from biomedclip.run_scripts.evaluation.findings.calibration import fit_log_odds
from biomedclip.run_scripts.evaluation.findings.decisions import ScoredFindings, decide_findings, notes_on_findings
from biomedclip.run_scripts.evaluation.findings.zero_shot import load_with_validation
from biomedclip.run_scripts.evaluation.image_classification import check_calibrations
from biomedclip.run_scripts.main import main


LABELS = ["mass", "cyst", "pleural effusion"]  # of the model
FINDINGS = ["cyst", "pleural effusion", "mass"]  # of the data
OPTIONS = ["--label-columns", *FINDINGS, "--group-column", "patient", "--subgroup-column", "device"]


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> str:
    """Training, validation and test images of 34 patients each, with drawn findings and the device of each image."""
    folder = tmp_path_factory.mktemp("findings") / "data"
    generator = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        (folder / split).mkdir(parents=True)
        with (folder / split / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["file_name", "patient", "device", *LABELS])
            for number in range(68):
                pixels = generator.integers(256, size=(32, 32), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / f"{number:02}.png")
                labels = (generator.random(3) < [0.3, 0.5, 0.7]).astype(int).tolist()
                device = "" if number > 63 else "ab"[number % 2]
                first = -1 if number % 11 == 0 else labels[0]
                rows.writerow([f"{number:02}.png", f"{split}{number // 2}", device, first, *labels[1:]])
    return str(folder)


@pytest.fixture
def classifier(fine_tuned, tmp_path) -> Path:
    """The fine-tuned classifier as one of several findings."""
    folder = Path(shutil.copytree(fine_tuned[0], tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"problem_type": "multi_label_classification", "id2label": dict(enumerate(LABELS))}
    config |= {"label2id": {label: number for number, label in enumerate(LABELS)}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run(task: str, model: Path, data: str, out: Path, *options: object) -> dict:
    arguments = [task, "--model", model, "--data", data, *OPTIONS, *options, "--output-dir", out]
    assert main(["evaluate", *map(str, arguments)]) == 0
    return read_results(out)


def table_of(folder: Path) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """Probabilities and targets `(images, findings)`, and the rows of the predictions."""
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    chances = np.array([[row[f"probability_{name}"] for name in FINDINGS] for row in rows])
    targets = [
        [np.nan if name in row["ignored"].split("|") else float(name in row["true"]) for name in FINDINGS]
        for row in rows
    ]
    return chances, np.array(targets), rows


def test_a_classifier_of_findings_is_calibrated_for_classify(classifier, splits, tmp_path, capsys):
    raw = run("image-classification", classifier, splits, tmp_path / "raw")
    results = run("image-classification", classifier, splits, tmp_path / "out", "--calibrate")
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    before, targets, _ = table_of(tmp_path / "raw")
    after, _, rows = table_of(tmp_path / "out")
    found = results["decisions"]
    assert raw["decisions"]["temperature"] is None and raw["metrics"] == results["metrics"]
    for number, name in enumerate(FINDINGS):
        kept = ~np.isnan(targets[:, number])
        calibrated = expit(logit(before[:, number]) / found["temperature"][name] + found["bias"][name])
        np.testing.assert_allclose(after[:, number], calibrated, rtol=1e-6)
        for part, chances in (("before_calibration", before), ("calibration", after)):
            measured, truth = found["findings"][name][part], targets[kept, number]
            assert measured["nll"] == pytest.approx(log_loss(truth, chances[kept, number], labels=[0, 1]), rel=1e-6)
            assert measured["brier"] == pytest.approx(brier_score_loss(truth, chances[kept, number]), rel=1e-6)
    assert found["calibration"]["brier"] == pytest.approx(
        np.mean([found["findings"][name]["calibration"]["brier"] for name in FINDINGS])
    )
    assert (classifier / "calibration.json").read_bytes() == (tmp_path / "out" / "calibration.json").read_bytes()
    calibration = read_calibration(classifier / "calibration.json")
    assert calibration.labels == LABELS and calibration.temperature == [found["temperature"][name] for name in LABELS]
    output = tmp_path / "rows.json"
    command = ["classify", f"{splits}/test", "--model", str(classifier), "--wide", "--output", str(output)]
    assert main(command) == 0
    assert "temperatures" in capsys.readouterr().err
    classified = {Path(row["file"]).name: row for row in json.loads(output.read_text())}
    shown = [[classified[Path(row["file"]).name][name] for name in FINDINGS] for row in rows]
    np.testing.assert_allclose(shown, after, atol=1e-6)
    again = run("image-classification", classifier, splits, tmp_path / "again")
    np.testing.assert_allclose(table_of(tmp_path / "again")[0], after, rtol=1e-9)
    assert again["decisions"]["calibration_file"] == "calibration.json"
    assert any("as in biomedclip classify: temperatures" in note for note in again["data"]["notes"])
    notes = " ".join(results["data"]["notes"])
    assert "--calibrate: fitted on 68 validation images of 34 groups." in notes
    assert results["data"]["validation_leaks"]["validation_images"] == 68 and "validation_leaks" not in raw["data"]


def test_thresholds_and_subgroups_of_findings_are_measured_over_patients(classifier, splits, tmp_path, capsys):
    options = ["--sensitivity", 0.8, "--specificity", 0.9]
    results = run("image-classification", classifier, splits, tmp_path / "out", *options)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    chances, targets, rows = table_of(tmp_path / "out")
    points = results["decisions"]["operating_points"]
    assert [(point["class"], point["goal"]) for point in points] == [
        (name, goal) for name in FINDINGS for goal in ("sensitivity", "specificity")
    ]
    for point in points:
        number = FINDINGS.index(point["class"])
        kept = ~np.isnan(targets[:, number])
        truth, called = targets[kept, number], chances[kept, number] >= point["threshold"]
        assert point["on_validation"] >= point["wanted"]
        assert point["sensitivity"] == pytest.approx(recall_score(truth, called))
        assert point["specificity"] == pytest.approx(recall_score(1 - truth, ~called))
        assert point["sensitivity_interval"][0] < point["sensitivity_interval"][1]
    devices = np.array([row["device"] for row in rows])
    found = results["subgroups"]["device"]
    assert set(found) == {"a", "b", "(missing)"} and found["(missing)"]["few"]
    for device, of_device in found.items():
        for number, name in enumerate(FINDINGS):
            kept = (devices == device) & ~np.isnan(targets[:, number])
            truth, measured = targets[kept, number], of_device["findings"][name]
            assert measured["positives"] == truth.sum() and measured["negatives"] == (1 - truth).sum()
            if 0 < truth.sum() < len(truth):
                assert measured["auroc"] == pytest.approx(roc_auc_score(truth, chances[kept, number]))
                precision = average_precision_score(truth, chances[kept, number])
                assert measured["average_precision"] == pytest.approx(precision)
            assert measured["few"] == (device == "(missing)" or min(truth.sum(), (1 - truth).sum()) <= 5)


@pytest.mark.parametrize("task", ["zero-shot", "linear-probe"])
def test_prompt_pairs_and_probes_of_findings_are_calibrated_and_decide(
    task, small_checkpoint, splits, tmp_path, capsys
):
    also = ["--fractions", 1] if task == "linear-probe" else []
    run(task, small_checkpoint, splits, tmp_path / "raw", *also)
    results = run(task, small_checkpoint, splits, tmp_path / "out", *also, "--calibrate", "--sensitivity", 0.8)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    (before, _, _), (after, _, _) = table_of(tmp_path / "raw"), table_of(tmp_path / "out")
    found, notes = results["decisions"], " ".join(results["data"]["notes"])
    for number, name in enumerate(FINDINGS):
        calibrated = expit(logit(before[:, number]) / found["temperature"][name] + found["bias"][name])
        np.testing.assert_allclose(after[:, number], calibrated, rtol=1e-5)
    assert [point["class"] for point in found["operating_points"]] == FINDINGS
    assert results["data"]["validation_leaks"]["same_group"] == 0
    assert ("decisions are not zero-shot" in notes) == (task == "zero-shot")
    assert ("chosen on the same validation images" in notes) == (task == "linear-probe")
    assert set(results["subgroups"]["device"]) == {"a", "b", "(missing)"}
    assert not (tmp_path / "out" / "calibration.json").exists(), "classify has no prompt pairs, and no probe"


def test_each_finding_is_fitted_on_its_validation_labels():
    generator = np.random.default_rng(0)
    log_odds = generator.normal(scale=3, size=(2, 200, 3))
    targets = (generator.random((2, 200, 3)) < expit(log_odds / 2 + [0, -1, 0])).astype(float)
    targets[0, ::3, 0] = np.nan
    targets[0, :, 2] = 0
    targets[1, :, 1] = np.nan
    validation, test = (ScoredFindings(log_odds[split], targets[split]) for split in (0, 1))
    options = SimpleNamespace(calibrate=True, sensitivity=[0.9], specificity=[0.9], coverage=[], seed=0)
    decided = decide_findings(test, validation, ["a", "b", "c"], options)
    kept = ~np.isnan(targets[0, :, 0])
    assert decided.calibrations["a"] == fit_log_odds(log_odds[0, kept, 0], targets[0, kept, 0] == 1)
    assert decided.results["not_calibrated"].keys() == {"c"} and decided.results["temperature"]["c"] == 1
    assert set(decided.results["findings"]) == {"a", "c"}, "no label of b counts on the test images"
    assert decided.results["without_threshold"] == {"sensitivity": ["c"]}
    notes = " ".join(notes_on_findings(validation, ["a", "b", "c"], options, decided))
    assert "'c' is not calibrated: all 200 validation labels are 0" in notes
    assert "--sensitivity: no threshold for 'c', because the validation split has no images with the finding" in notes
    assert "'c' (0 positive, 200 negative)" in notes


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--coverage", "0.9"], 2, "not one true class that a set could contain. Pass --sensitivity"),
        (["--subgroup-column", "ignored"], 2, "--subgroup-column ignored: the predictions have another column"),
        (["--subgroup-column", "age"], 1, "no column 'age'"),
        (["--calibrate", "--split", "validation"], 2, "--calibrate is fitted on the validation split"),
    ],
)
def test_options_that_make_no_sense_for_findings_are_refused(
    classifier, splits, tmp_path, capsys, options, status, message
):
    command = ["evaluate", "image-classification", "--model", classifier, "--data", splits, *OPTIONS[:6], *options]
    assert main([*map(str, command), "--output-dir", str(tmp_path / "out")]) == status
    assert message in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "out").exists()


def test_a_missing_validation_split_of_findings_is_named(classifier, splits, tmp_path, capsys):
    data = Path(shutil.copytree(f"{splits}/test", tmp_path / "data"))
    command = ["evaluate", "image-classification", "--model", classifier, "--data", data, *OPTIONS, "--calibrate"]
    assert main([*map(str, command), "--output-dir", str(tmp_path / "out")]) == 1
    assert "--calibrate needs a validation split." in " ".join(capsys.readouterr().err.split())


def test_an_error_of_a_table_is_not_taken_for_a_missing_validation_split(tmp_path):
    table = tmp_path / "validation_cohort.csv"
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    table.write_text("image,mass,edema\na.png,1,0\n", encoding="utf-8")
    options = SimpleNamespace(data=str(table), split="test", calibrate=True, label_columns=["mass", "cyst"])
    with pytest.raises(ValueError, match="no column 'cyst'") as error:
        load_with_validation(options)
    assert "needs a validation split" not in str(error.value)
    options.label_columns = ["mass", "edema"]
    with pytest.raises(ValueError, match="--calibrate needs a validation split"):
        load_with_validation(options)


@pytest.mark.parametrize("several", [True, False])
def test_a_calibration_of_the_other_kind_of_classifier_names_file_and_remedy(tmp_path, several):
    temperature, bias = (2.0, None) if several else ([2.0, 3.0], [0.0, 0.0])
    options = SimpleNamespace(model=[str(tmp_path)], calibrate=False)
    Calibration(temperature, ["a", "b"], "00", bias=bias).write(tmp_path / "calibration.json")
    with pytest.raises(ValueError, match=r"calibration.json: the field temperature is .* or remove the file") as error:
        check_calibrations(options, several=several)
    assert ("several findings" in str(error.value)) == several
    check_calibrations(options, several=not several)


def test_classify_refuses_one_temperature_for_several_findings(classifier, splits, tmp_path, capsys):
    Calibration(2.0, LABELS, "00").write(classifier / "calibration.json")
    assert main(["classify", f"{splits}/test", "--model", str(classifier)]) == 1
    assert "predicts several findings for each image" in " ".join(capsys.readouterr().err.split())


def test_findings_with_faulty_scores_of_test_images_have_no_decisions_and_a_reason():
    generator = np.random.default_rng(0)
    log_odds = generator.normal(size=(2, 60, 3))
    targets = (generator.random((2, 60, 3)) < 0.5).astype(float)
    log_odds[1, :2, 1], targets[1, :, 2] = np.nan, np.nan
    validation, test = (ScoredFindings(log_odds[split], targets[split]) for split in (0, 1))
    options = SimpleNamespace(calibrate=True, sensitivity=[0.9], specificity=[], coverage=[], seed=0)
    decided = decide_findings(test, validation, ["a", "b", "c"], options)
    reason = "the scores of 2 of 60 images are NaN or infinite"
    assert decided.results["undefined"] == {"b": reason, "c": "all labels are ignored"}
    assert set(decided.results["findings"]) == {"a"}
    notes = notes_on_findings(validation, ["a", "b", "c"], options, decided)
    assert f"No calibration and thresholds of 'b' are measured: {reason}." in notes
    assert notes_on_findings(None, ["a"], options, decide_findings(test, None, ["a", "b", "c"], options))[0].endswith(
        f"'b' are measured: {reason}."
    )
    assert "undefined" not in decide_findings(validation, validation, ["a", "b", "c"], options).results


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": [2, -1]}, "field temperature"),
        ({"temperature": [2]}, "field temperature"),
        ({"bias": [0]}, "field bias"),
        ({"bias": None}, "field bias"),
        ({"temperature": 2}, "field bias"),
    ],
)
def test_a_faulty_calibration_of_findings_names_the_field(tmp_path, change, message):
    right = {"schema": 1, "temperature": [2, 3], "labels": ["a", "b"], "weights": "00", "prompts": None}
    right |= {"fitted_on": {}, "bias": [0, -1.5]}
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(right), encoding="utf-8")
    assert read_calibration(path).bias == [0, -1.5]
    path.write_text(json.dumps(right | change), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_calibration(path)
