"""`biomedclip evaluate image-classification`, beside `classify` and scikit-learn."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.benchmark_files import draw_images
from helpers.model_results import read_results
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, roc_auc_score

from biomedclip.processing.images.corruptions import corrupt
from biomedclip.run_scripts.evaluate import main as evaluate
from biomedclip.run_scripts.main import main


CLASSES = ["benign", "malignant", "other"]


@pytest.fixture
def scans(tmp_path):
    return draw_images(tmp_path / "scans", {"benign": 12, "malignant": 15, "other": 9})


def run(models, data, out, *options):
    arguments = ["image-classification", "--model", *models, "--data", data, *options, "--output-dir", out]
    evaluate(list(map(str, arguments)))
    return read_results(out) if len(models) == 1 else None


def error_of(capsys, *arguments):
    assert main(["evaluate", "image-classification", *map(str, arguments)]) == 1
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_the_metrics_are_those_of_scikit_learn_on_the_output_of_classify(fine_tuned, scans, tmp_path, capsys, kind):
    model = fine_tuned[kind == "adapter"]
    results = run([model], scans, tmp_path / "out", "--device", "cpu")
    output = tmp_path / "classified.json"
    assert main(["classify", str(scans), "--model", str(model), "--wide", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())
    truth = [row["file"].split("/")[-2] for row in rows]
    probabilities = np.array([[row[label] for label in CLASSES] for row in rows])
    answers = [CLASSES[number] for number in probabilities.argmax(axis=1)]
    metrics = results["metrics"]
    assert metrics["accuracy"] == accuracy_score(truth, answers)
    assert metrics["balanced_accuracy"] == balanced_accuracy_score(truth, answers)
    assert metrics["auroc"] == pytest.approx(roc_auc_score(truth, probabilities, multi_class="ovr"), abs=1e-6)
    assert metrics["confusion_matrix"] == confusion_matrix(truth, answers).tolist()
    assert metrics["classes"] == CLASSES and metrics["chance"] == 1 / 3
    assert results["model"]["type"] == "biomedclip" and results["settings"]["labels"] == CLASSES
    predicted = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert [row["predicted"] for row in predicted] == answers
    found = np.array([[row[f"probability_{label}"] for label in CLASSES] for row in predicted])
    np.testing.assert_allclose(found, probabilities, atol=1e-6)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_the_accuracy_on_corrupted_images_is_that_of_the_images_alone(fine_tuned, scans, tmp_path, capsys):
    results = run([fine_tuned[0]], scans, tmp_path / "out", "--corruptions", "border", "noise", "--seed", "3")
    robustness = results["metrics"]["robustness"]
    assert robustness["metric"] == "accuracy" and robustness["clean"] == results["metrics"]["accuracy"]
    assert {name: len(entries) for name, entries in robustness["corruptions"].items()} == {"border": 5, "noise": 5}
    assert (tmp_path / "out" / "robustness.png").exists()
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    files = [row["file"] for row in pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()]
    for file in files:
        with Image.open(scans / file) as image:
            path = tmp_path / "noisy" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            corrupt(image, "noise", 5, image_name=file, seed=3).save(path)
    (entry,) = [entry for entry in robustness["corruptions"]["noise"] if entry["strength"] == 5]
    noisy = run([fine_tuned[0]], tmp_path / "noisy", tmp_path / "alone")["metrics"]["accuracy"]
    assert entry["accuracy"] == noisy and entry["drop"] == pytest.approx(robustness["clean"] - noisy) != 0


def test_the_classes_of_the_images_may_be_some_of_the_labels(fine_tuned, scans, tmp_path):
    shutil.rmtree(scans / "malignant")
    results = run([fine_tuned[0]], scans, tmp_path / "out")
    assert results["metrics"]["auroc"] is None
    assert results["metrics"]["undefined"] == {"auroc": "1 of 3 classes have no images"}
    assert "No image of the test split is of the class 'malignant'." in results["data"]["notes"]


def test_leaks_between_the_splits_of_the_data_are_found(fine_tuned, scans, tmp_path):
    assert run([fine_tuned[0]], scans, tmp_path / "alone")["data"]["leaks"] is None
    data = tmp_path / "splits"
    shutil.copytree(scans, data / "test")
    draw_images(data / "train", dict.fromkeys(CLASSES, 4), seed=7)
    shutil.copy(data / "test" / "other" / "0002.png", data / "train" / "other" / "same.png")
    leaks = run([fine_tuned[0]], data, tmp_path / "out")["data"]["leaks"]
    assert leaks["leaked"] == leaks["same_bytes"] == 1
    assert run([fine_tuned[0]], data, tmp_path / "off", "--no-find-leaks")["data"]["leaks"] is None


def test_a_note_states_why_leaks_are_unknown(fine_tuned, scans, tmp_path):
    (tmp_path / "splits").mkdir()
    shutil.copytree(scans, tmp_path / "splits" / "test")
    notes = run([fine_tuned[0]], tmp_path / "splits", tmp_path / "out")["data"]["notes"]
    assert any(note.startswith("Leaks are unknown") and "there is no train split" in note for note in notes)
    assert not any("Leaks" in note for note in run([fine_tuned[0]], scans, tmp_path / "flat")["data"]["notes"])


def test_classifiers_are_compared(fine_tuned, scans, tmp_path):
    run(fine_tuned, scans, tmp_path / "out")
    assert {"whole", "adapter"} == set(json.loads((tmp_path / "out" / "comparison.json").read_text())["models"])


def test_errors_name_the_label_the_model_and_the_task(fine_tuned, small_checkpoint, scans, tmp_path, capsys):
    out = ["--data", scans, "--output-dir", tmp_path / "out"]
    error = error_of(capsys, "--model", small_checkpoint, *out)
    assert "is not a fine-tuned image classifier" in error and "evaluate zero-shot" in error
    assert "is neither a folder nor an id on the Hub" in error_of(capsys, "--model", tmp_path / "none", *out)
    (scans / "other").rename(scans / "malignent")
    error = error_of(capsys, "--model", fine_tuned[0], *out)
    assert "'malignent' is not one of the labels 'benign', 'malignant', 'other'" in error
    assert "Did you mean 'malignant'?" in error and not (tmp_path / "out").exists()
