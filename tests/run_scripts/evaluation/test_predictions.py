"""`predictions.parquet` and `predictions.csv`."""

import csv
import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.benchmark_files import draw_images, write_vqa_rad
from scipy.special import softmax
from sklearn.metrics import accuracy_score, roc_auc_score

from biomedclip.run_scripts.evaluate import main as evaluate
from biomedclip.run_scripts.evaluation.predictions import Predictions, softmax_predictions, write_predictions


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_parquet(path):
    return pq.read_table(path).to_pylist()


@pytest.mark.parametrize("task", ["zero-shot", "linear-probe"])
def test_the_metrics_follow_from_the_predictions(measure, tmp_path, task):
    data = draw_images(tmp_path / "data", {"a": 14, "b": 18, "c": 16})
    (data / "b" / "0003.png").write_bytes(b"no image")
    options = ["--fractions", "0.5", "1", "--draws", "1"] if task == "linear-probe" else []
    metrics = measure(task, data, *options)["metrics"]
    rows = read_parquet(tmp_path / "out" / "predictions.parquet")
    assert list(rows[0]) == ["file", "true", "predicted", "probability_a", "probability_b", "probability_c"]
    assert len(rows) == metrics["images"] and "b/0003.png" not in {row["file"] for row in rows}
    assert all(row["file"].split("/")[0] == row["true"] for row in rows)
    truth, answers = [row["true"] for row in rows], [row["predicted"] for row in rows]
    assert accuracy_score(truth, answers) == metrics["accuracy"]
    probabilities = np.array([[row[f"probability_{name}"] for name in "abc"] for row in rows])
    assert roc_auc_score(truth, probabilities, multi_class="ovr") == pytest.approx(metrics["auroc"], abs=1e-12)
    shown = read_csv(tmp_path / "out" / "predictions.csv")
    assert [row["file"] for row in shown] == [row["file"] for row in rows]
    assert float(shown[0]["probability_a"]) == pytest.approx(rows[0]["probability_a"], rel=1e-5)


def test_groups_are_a_column(measure, tmp_path):
    data = draw_images(tmp_path / "data", {"a": 4, "b": 4})
    lines = [f"{name}/{number:04}.png,{name},=patient {number}" for name in "ab" for number in range(4)]
    (data / "labels of patients.csv").write_text("\n".join(["image,label,patient", *lines]), encoding="utf-8")
    measure("zero-shot", data / "labels of patients.csv", "--group-column", "patient")
    assert read_parquet(tmp_path / "out" / "predictions.parquet")[1]["group"] == "=patient 1"
    assert read_csv(tmp_path / "out" / "predictions.csv")[1]["group"] == "'=patient 1"


def test_probabilities_are_those_of_scipy_and_the_first_of_equal_scores_wins():
    scores = np.random.default_rng(0).normal(scale=300, size=(20, 3))
    scores[0], scores[1] = 5, np.nan
    found = softmax_predictions(scores, ["b"] * 20, ["a", "b", "c"], files=[f"{number}" for number in range(20)])
    np.testing.assert_allclose(found.probabilities[2:], softmax(scores[2:], axis=1), rtol=1e-12)
    assert np.isnan(found.probabilities[1]).all()
    assert found.predicted[:2] == ["a", None]
    assert found.predicted[2:] == ["abc"[number] for number in scores[2:].argmax(axis=1)]


def test_an_image_can_have_several_labels(tmp_path):
    several = Predictions(
        files=["1.png", "2.png"],
        true=[["edema", "mass"], []],
        predicted=[["edema"], ["mass"]],
        probabilities=np.array([[0.9, 0.4], [0.2, 0.7]]),
        classes=["edema", "mass"],
        columns={"sex": ["F", "M"]},
    )
    write_predictions(tmp_path, several.table())
    assert read_parquet(tmp_path / "predictions.parquet")[0] == {
        "file": "1.png",
        "true": ["edema", "mass"],
        "predicted": ["edema"],
        "probability_edema": 0.9,
        "probability_mass": 0.4,
        "sex": "F",
    }
    assert [row["true"] for row in read_csv(tmp_path / "predictions.csv")] == ['["edema", "mass"]', "[]"]


def test_rows_are_made_when_they_are_read_and_do_not_stay_in_memory():
    scores = np.random.default_rng(0).normal(size=(500, 300))
    found = softmax_predictions(scores, ["c0"] * 500, [f"c{n}" for n in range(300)], files=list(map(str, range(500))))
    tracemalloc.start()
    rows = found.table().rows
    assert [sum(1 for _ in rows) for _ in range(2)] == [500, 500]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000, "a list of all rows has 10 MB"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_spreadsheet_computes_no_cell(tmp_path, text):
    scores = np.array([[-1.5, -3.0]])
    found = softmax_predictions(scores, [text], [text, "b"], files=[text], groups=[text], columns={text: [text]})
    write_predictions(tmp_path, found.table())
    (row,) = read_csv(tmp_path / "predictions.csv")
    shown = f"'{text}".replace("\r", " ")
    assert [value for value in row.values() if value.startswith(text[0])] == []
    assert [row["file"], row["true"], row["predicted"], row["group"], row[shown]] == [shown] * 5
    assert read_parquet(tmp_path / "predictions.parquet")[0]["file"] == text, "the exact values"


def test_names_that_are_not_utf_8_are_written_with_escapes(tmp_path):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    found = softmax_predictions([[1.0, 0.0]], [name], [name, "b"], files=[f"{name}/1.png"])
    write_predictions(tmp_path, found.table())
    (row,) = read_parquet(tmp_path / "predictions.parquet")
    assert row["file"] == "caf\\udce9/1.png" and "probability_caf\\udce9" in row


def test_each_query_has_its_rank(measure, built, tmp_path):
    metrics = measure("retrieval", built, "--image-id", "pmcid")["metrics"]
    rows = read_parquet(tmp_path / "out" / "predictions.parquet")
    for direction, queries, candidates in (
        ("image_to_text", metrics["images"], metrics["pairs"]),
        ("text_to_image", metrics["pairs"], metrics["images"]),
    ):
        of_direction = [row for row in rows if row["direction"] == direction]
        assert len(of_direction) == queries and {row["candidates"] for row in of_direction} == {candidates}
        assert np.median([row["rank"] for row in of_direction]) == metrics[direction]["median_rank"]
        assert all(row["query"].startswith(row["group"]) for row in of_direction)


def test_each_question_has_its_answer(answerer, tmp_path):
    questions = [{"answer": answer, "image_name": f"{number}.jpg"} for number, answer in enumerate(["Yes", "No", "3"])]
    of_test = [row | {"phrase_type": "test_freeform"} for row in questions]
    write_vqa_rad(tmp_path / "VQA_RAD", [*of_test, {"image_name": "9.jpg"}])
    command = ["vqa", "--model", answerer, "--benchmark", "vqa_rad", "--data", str(tmp_path / "VQA_RAD")]
    evaluate([*command, "--output-dir", str(tmp_path / "out")])
    rows = read_parquet(tmp_path / "out" / "predictions.parquet")
    assert [row["true"] for row in rows] == ["Yes", "No", "3"]
    assert all(row["predicted"] in ("yes", "no") and 0 < row["probability"] < 1 for row in rows)
    assert [row["right"] for row in rows] == [row["true"].lower() == row["predicted"] for row in rows]
    assert [row["file"] for row in rows] == [row["group"] for row in rows] == ["0.jpg", "1.jpg", "2.jpg"]
