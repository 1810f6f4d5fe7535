"""Which numbers of results a card states, and which files are refused."""

import json

import pytest
from helpers.model_results import retrieval_result, write_result, zero_shot_result

from biomedclip.model_cards.results import chances, find_results, measures, read_result, reasons


def test_measures_have_their_interval_and_the_papers_value():
    found = {measure.path: measure for measure in measures(retrieval_result())}
    first = found["text_to_image", "recall_at_1"]
    assert (first.value, first.interval, first.paper) == (0.2013, (0.1, 0.3), 0.696)
    assert found["image_to_text", "recall_at_1"].paper is None
    assert found["image_to_text", "median_rank"].interval is None
    assert len(found) == 6, "counts, chance and intervals are not measures"


def test_baselines_are_not_measures():
    assert chances(retrieval_result()) == [("chance_at_1", 0.05)]
    frequent = zero_shot_result(metrics={"accuracy": 0.6, "chance": 0.5, "most_frequent_class": 0.6})
    assert chances(frequent) == [("chance", 0.5), ("most_frequent_class", 0.6)]
    assert [measure.path for measure in measures(frequent)] == [("accuracy",)]
    assert not any("chance" in name for measure in measures(zero_shot_result()) for name in measure.path)


def test_settings_and_times_are_not_measures():
    metrics = {"share_0.1": {"accuracy": 0.8, "regularization": 31.6}, "train_seconds": 40.5, "best_epoch": 3.0}
    assert [m.path for m in measures(zero_shot_result(metrics=metrics))] == [("share_0.1", "accuracy")]


def test_files_are_found_once_at_any_depth(tmp_path):
    first = write_result(tmp_path / "a" / "b", zero_shot_result())
    second = write_result(tmp_path / "c", retrieval_result())
    assert find_results([str(tmp_path), str(first)]) == [first, second]


def test_a_folder_without_results_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--results .* contains no results.json"):
        find_results([str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="--results /nowhere"):
        find_results(["/nowhere"])


def test_names_of_earlier_versions_are_read(tmp_path):
    path = tmp_path / "results.json"
    data = zero_shot_result()["data"] | {"selection": {"positive_share": 0.2}}
    metrics = {"by_share": {"0.1": {"accuracy": 0.5}}}
    path.write_text(json.dumps(zero_shot_result(task="vqa", data=data, metrics=metrics)))
    result = read_result(path)
    assert result["task"] == "visual-question-answering" and result["data"]["selection"] == {"positive_fraction": 0.2}
    assert result["metrics"] == {"by_fraction": {"0.1": {"accuracy": 0.5}}}


def published(values: object) -> dict:
    return {"published": [{"model": "a", "values": values, "source": "b", "read_from_figure": False}]}


def data(**change: object) -> dict:
    return {"data": zero_shot_result()["data"] | change}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": {"accuracy": float("nan")}}, "is damaged"),
        ({"schema": 0}, "does not have schema 1"),
        ({"command": None}, "command must be str"),
        ({"model": {}}, "model.weights is missing"),
        ({"data": {}}, "data.split is missing"),
        ({"metrics": {}}, "metrics contains no number"),
        ({"metrics": []}, "metrics must be an object"),
        ({"metrics": {"accuracy": 0.5, "accuracy_interval": 3}}, "interval must be a list"),
        ({"metrics": {"accuracy": 0.5, "accuracy_interval": [0.1]}}, "must contain two numbers"),
        ({"metrics": {"accuracy": 0.5, "accuracy_interval": [0.4, 1.2]}}, "between 0 and 1"),
        ({"metrics": {"accuracy": 73.41}}, r"metrics.accuracy is \[73.41\]"),
        ({"metrics": {"by_fraction": {"all": {"accuracy": 0.5}}}}, "'all', which is not a fraction"),
        ({"metrics": {"by_fraction": [0.5]}}, "by_fraction must be an object"),
        ({"metrics": {"auroc": None, "undefined": ["auroc"]}}, "undefined must be an object"),
        ({"versions": "1"}, "versions must be an object"),
        ({"paper": 0.5}, "paper must be an object"),
        ({"seconds": "1"}, "seconds must be int or float"),
        (data(rows=1.5), "data.rows must be int"),
        (data(damaged=[{"name": 3, "reason": ""}]), r"data.damaged\[0\].name must be str"),
        (data(leaks={"leaked": 1}), "data.leaks.test_images is missing"),
        ({"published": [{"model": "a"}]}, r"published\[0\].values is missing"),
        (published({"accuracy": 73.41}), r"published\[0\].values.accuracy is \[73.41\]"),
        (published({"by_fraction": {"all": {"accuracy": 0.5}}}), "'all', which is not a fraction"),
        (published({"accuracy": 0.5, "accuracy_interval": [0.1]}), "must contain two numbers"),
    ],
)
def test_an_invalid_file_is_refused(tmp_path, change, message):
    path = write_result(tmp_path, zero_shot_result(**change))
    with pytest.raises(ValueError, match=rf"results.json.*{message}"):
        read_result(path)


@pytest.mark.parametrize("content", ["[]", '{"schema": 1', "{}"])
def test_a_file_of_other_content_is_refused(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=r"results.json (is damaged|does not have schema 1)"):
        read_result(tmp_path / "results.json")


def test_a_valid_file_is_read_unchanged(tmp_path):
    assert read_result(write_result(tmp_path, zero_shot_result())) == zero_shot_result()


def test_an_undefined_metric_has_a_reason_and_no_value():
    metrics = {"accuracy": 0.5, "auroc": None, "auroc_interval": None, "undefined": {"auroc": "one class"}}
    result = zero_shot_result(metrics=metrics)
    assert [(measure.path, measure.value) for measure in measures(result)] == [(("accuracy",), 0.5), (("auroc",), None)]
    assert reasons(result) == [("auroc", "one class")]
