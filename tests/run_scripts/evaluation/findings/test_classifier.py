"""`biomedclip evaluate image-classification --label-columns`, beside `classify` and scikit-learn."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.model_results import read_results
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from biomedclip.run_scripts.main import main


LABELS = ["mass", "cyst", "pleural effusion"]
COLUMNS = ["--label-columns", "cyst", "pleural effusion", "mass"]  # another order than that of the model


@pytest.fixture(scope="module")
def classifiers(fine_tuned, tmp_path_factory) -> list[str]:
    """The fine-tuned classifier and the adapter, as classifiers of several findings."""
    folder = tmp_path_factory.mktemp("classifiers")
    for source in fine_tuned:
        shutil.copytree(source, folder / source.name)
    for path in (folder / "whole" / "config.json", folder / "adapter" / "config" / "config.json"):
        of_findings = {
            "problem_type": "multi_label_classification",
            "id2label": dict(enumerate(LABELS)),
            "label2id": {label: number for number, label in enumerate(LABELS)},
        }
        path.write_text(json.dumps(json.loads(path.read_text()) | of_findings))
    return [str(folder / source.name) for source in fine_tuned]


@pytest.fixture
def table(tmp_path) -> str:
    """36 images of 12 patients with invented findings, some of them uncertain or blank. One image is damaged."""
    generator = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    path = tmp_path / "scans" / "table.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "patient", *LABELS, "age"])
        for number in range(36):
            Image.fromarray(generator.integers(256, size=(32, 32), dtype=np.uint8)).save(path.parent / f"{number}.png")
            labels = generator.choice([0, 1], size=3).tolist()
            rows.writerow([f"{number}.png", f"p{number // 3}", -1 if number % 7 == 0 else labels[0], *labels[1:], 40])
    (path.parent / "35.png").write_bytes(b"no image")
    return str(path)


def evaluate(models, table, out, *options) -> int:
    arguments = ["image-classification", "--model", *models, "--data", table, *options, "--output-dir", str(out)]
    return main(["evaluate", *arguments])


def test_the_metrics_are_those_of_scikit_learn_on_the_output_of_classify(classifiers, table, tmp_path, capsys):
    assert evaluate(classifiers, table, tmp_path / "out", *COLUMNS, "--group-column", "patient") == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    with open(table, encoding="utf-8") as file:
        truth = list(csv.DictReader(file))[:35]
    for model, name in zip(classifiers, ("whole", "adapter"), strict=True):
        output = tmp_path / f"{name}.json"
        images = [table.replace("table.csv", row["image"]) for row in truth]
        assert main(["classify", *images, "--model", model, "--wide", "--output", str(output)]) == 0
        by_name = {Path(row["file"]).name: row for row in json.loads(output.read_text())}
        classified = [by_name[row["image"]] for row in truth]
        results = read_results(tmp_path / "out" / name)
        assert results["settings"]["labels"] == LABELS and list(results["metrics"]["findings"]) == COLUMNS[1:]
        assert [entry["name"] for entry in results["data"]["damaged"]] == ["35.png"] and results["data"]["rows"] == 35
        predicted = pq.read_table(tmp_path / "out" / name / "predictions.parquet").to_pylist()
        for label in LABELS:
            found = results["metrics"]["findings"][label]
            kept = [number for number, row in enumerate(truth) if row[label] != "-1"]
            arguments = [int(truth[number][label]) for number in kept], [classified[number][label] for number in kept]
            assert found["auroc"] == pytest.approx(roc_auc_score(*arguments), abs=1e-12)
            assert found["average_precision"] == pytest.approx(average_precision_score(*arguments), abs=1e-12)
            assert found["auroc_interval"] is not None and found["ignored"] == 35 - len(kept)
            chances = [row[f"probability_{label}"] for row in predicted]
            assert chances == pytest.approx([row[label] for row in classified], abs=1e-6)
            assert all((row[f"probability_{label}"] >= 0.5) == (label in row["predicted"]) for row in predicted)
        assert predicted[0]["ignored"] == "mass" and predicted[4]["group"] == "p1"
        assert "Only 12 groups: the intervals are too narrow." in results["data"]["notes"]
    assert (tmp_path / "out" / "comparison.json").is_file()


def test_corrupted_images_leaks_and_policies_are_measured(classifiers, table, tmp_path):
    with open(table, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for split, chosen in (("train", rows[:6]), ("test", rows[4:30])):
        folder = tmp_path / "splits" / split
        folder.mkdir(parents=True)
        with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            table_of_split = csv.DictWriter(file, ["file_name", *rows[0]])
            table_of_split.writeheader()
            table_of_split.writerows({"file_name": row["image"], **row} for row in chosen)
        for row in chosen:
            shutil.copy(table.replace("table.csv", row["image"]), folder)
    options = [*COLUMNS, "--uncertain", "one", "--group-column", "patient", "--corruptions", "noise"]
    assert evaluate(classifiers[:1], str(tmp_path / "splits"), tmp_path / "out", *options) == 0
    results = read_results(tmp_path / "out")
    assert results["data"]["leaks"]["same_bytes"] == 2 and results["data"]["leaks"]["same_group"] == 2
    assert any(note.startswith("Leak: 1 groups") for note in results["data"]["notes"])
    metrics = results["metrics"]
    assert metrics["findings"]["mass"]["ignored"] == 0 and results["settings"]["uncertain"] == "one"
    robustness = metrics["robustness"]
    assert robustness["metric"] == "auroc" and robustness["clean"] == pytest.approx(metrics["auroc"], abs=1e-12)
    assert len(robustness["corruptions"]["noise"]) == 5
    shutil.rmtree(tmp_path / "splits" / "train")
    assert evaluate(classifiers[:1], str(tmp_path / "splits"), tmp_path / "only test", *COLUMNS) == 0
    data = read_results(tmp_path / "only test")["data"]
    assert data["leaks"] is None
    assert any(note.startswith("Leaks are unknown") and "no train split" in note for note in data["notes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            [],
            "whole predicts several findings for each image. Pass the column of each one: --label-columns mass cyst",
        ),
        (COLUMNS[:3], "table.csv has no labels of 'mass'. --model"),
        ([*COLUMNS, "age"], "line 2: age is '40'"),
        (
            ["--label-columns", "cyst", "mass", "patient_has"],
            "has no labels of 'pleural effusion', and has findings that the model does not predict: 'patient_has'.",
        ),
        ([*COLUMNS, "--calibrate"], "--calibrate needs a validation split"),
    ],
)
def test_other_findings_and_options_without_effect_are_errors(classifiers, table, tmp_path, capsys, options, message):
    with open(table, encoding="utf-8") as file:
        lines = file.read().splitlines()
    with open(table, "w", encoding="utf-8") as file:
        file.write("\n".join([f"{lines[0]},patient_has", *(f"{line},1" for line in lines[1:])]))
    assert evaluate(classifiers[:1], table, tmp_path / "out", *options) != 0
    assert message in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "out").exists()


def test_a_classifier_of_one_label_is_an_error_with_a_remedy(fine_tuned, table, tmp_path, capsys):
    assert evaluate([str(fine_tuned[1])], table, tmp_path / "out", *COLUMNS) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "adapter predicts one label for each image. Omit --label-columns, or train a classifier" in error
