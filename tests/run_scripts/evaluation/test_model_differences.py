"""The difference of two models on the same images, as `biomedclip evaluate --model A B` writes it."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.benchmark_files import draw_images
from helpers.model_results import read_results
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from biomedclip.run_scripts.evaluate import main as evaluate
from biomedclip.run_scripts.evaluation.model_differences import (
    compare_predictions,
    difference_lines,
    show_differences,
)
from biomedclip.run_scripts.evaluation.predictions import softmax_predictions, write_predictions


def test_two_models_are_compared_image_by_image(two_models, tmp_path, capsys):
    data = draw_images(tmp_path / "data", {"dark": 25, "light": 30})
    out = tmp_path / "out"
    command = ["zero-shot", "--model", *two_models, "--data", data, "--output-dir", out]
    evaluate(list(map(str, command)))
    (found,) = json.loads((out / "comparison.json").read_text())["differences"]
    assert (found["first"], found["second"]) == ("base", "other")
    each = [read_results(out / name)["metrics"] for name in ("base", "other")]
    for name in ("accuracy", "balanced_accuracy", "auroc"):
        of_metric = found["metrics"][name]
        assert of_metric["difference"] == pytest.approx(each[1][name] - each[0][name], abs=1e-12)
        assert of_metric["first"] == pytest.approx(each[0][name], abs=1e-12)
        assert of_metric["interval"][0] <= of_metric["difference"] <= of_metric["interval"][1]
    rows = [pq.read_table(out / name / "predictions.parquet").to_pylist() for name in ("base", "other")]
    rights = np.array([[row["true"] == row["predicted"] for row in of_model] for of_model in rows])
    only = [int((rights[0] & ~rights[1]).sum()), int((rights[1] & ~rights[0]).sum())]
    assert [found["mcnemar"]["only_first"], found["mcnemar"]["only_second"]] == only
    wanted = binomtest(only[0], sum(only)).pvalue if sum(only) else 1
    assert found["mcnemar"]["p_value"] == pytest.approx(wanted, rel=1e-9)
    truth = [row["true"] == "light" for row in rows[0]]
    areas = [roc_auc_score(truth, [row["probability_light"] for row in of_model]) for of_model in rows]
    assert [found["delong"]["first"], found["delong"]["second"]] == pytest.approx(areas, abs=1e-6)
    output = capsys.readouterr().out
    assert "other minus base, paired" in output and max(map(len, output.splitlines())) <= 80
    assert "Differences on the same images" in (out / "comparison.md").read_text()


def written(folder, scores, truth, classes, **also):
    folder.mkdir()
    files = [f"{number}.png" for number in range(len(truth))]
    labels = [classes[number] for number in truth]
    write_predictions(folder, softmax_predictions(scores, labels, classes, files=files, **also).table())
    return folder


def test_classes_are_matched_by_name_and_the_bootstrap_draws_whole_patients(tmp_path):
    generator = np.random.default_rng(0)
    truth = generator.integers(3, size=90)
    scores = generator.normal(size=(90, 3)) + np.eye(3)[truth]
    groups = [f"p{number // 9}" for number in range(90)]
    first = written(tmp_path / "a", scores, truth, ["x", "y", "z"], groups=groups)
    order = [2, 0, 1]
    second = written(tmp_path / "b", scores[:, order], np.argsort(order)[truth], ["z", "x", "y"], groups=groups)
    (found,) = compare_predictions([first, second], ["a", "b"])
    assert {of["difference"] for of in found["metrics"].values()} == {0.0}
    assert "mcnemar" not in found and "delong" not in found
    worse = scores.copy()
    worse[:27] = -9 * np.eye(3)[truth[:27]]  # errors of three whole patients
    third = written(tmp_path / "c", worse, truth, ["x", "y", "z"], groups=groups)
    alone = [
        written(tmp_path / f"alone {name}", s, truth, ["x", "y", "z"]) for name, s in (("a", scores), ("c", worse))
    ]
    widths = []
    for folders in ([first, third], alone):
        (found,) = compare_predictions(folders, ["a", "c"])
        low, high = found["metrics"]["accuracy"]["interval"]
        widths.append(high - low)
    assert widths[0] > 1.2 * widths[1]


def test_tests_of_independent_images_are_omitted_if_patients_have_several_images(tmp_path, capsys):
    generator = np.random.default_rng(0)
    truth = np.repeat(generator.integers(2, size=40), 10)
    groups = [f"p{number // 10}" for number in range(400)]
    models = [generator.normal(size=(400, 2)) + np.eye(2)[truth] for _ in range(2)]
    for name, patients, omitted in (("several", groups, True), ("one", list(map(str, range(400))), False)):
        folders = [
            written(tmp_path / f"{name} {number}", scores, truth, ["x", "y"], groups=patients)
            for number, scores in enumerate(models)
        ]
        (found,) = compare_predictions(folders, ["a", "b"])
        assert ("mcnemar" in found, "delong" in found) == (not omitted, not omitted)
        show_differences([found])
        reason = "400 images are of 40 groups"
        assert (reason in " ".join(capsys.readouterr().out.split())) == omitted
        assert any(reason in line for line in difference_lines([found])) == omitted


def test_models_with_other_classes_or_images_are_left_out(tmp_path):
    scores, truth = np.eye(3), np.arange(3)
    first = written(tmp_path / "a", scores, truth, ["x", "y", "z"])
    others = [
        written(tmp_path / "b", scores, truth, ["x", "y", "w"]),
        written(tmp_path / "c", scores[:2], truth[:2], list("xyz")),
    ]
    assert compare_predictions([first, *others, tmp_path / "none"], ["a", "b", "c", "d"]) == []
