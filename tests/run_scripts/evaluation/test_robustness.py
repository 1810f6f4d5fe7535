"""Metrics on corrupted images and with paraphrased prompts, against plain loops, and the command."""

import json
import weakref

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from biomedclip.processing.images.findings import FindingImages
from biomedclip.processing.images.labeled import LabeledImages
from biomedclip.run_scripts.evaluation import features as features_module
from biomedclip.run_scripts.evaluation.options import all_corruptions
from biomedclip.run_scripts.evaluation.robustness import (
    chosen_corruptions,
    measure_robustness,
    paraphrases,
    show_robustness,
    summarize_paraphrases,
)
from biomedclip.run_scripts.evaluation.statistics.bootstrap import bootstrap_weights
from biomedclip.run_scripts.main import main


GROUPS = [f"patient {number // 2}" for number in range(60)]


def test_the_drop_of_accuracy_has_the_interval_of_the_paired_difference():
    generator = np.random.default_rng(0)
    labels = [str(number) for number in generator.integers(3, size=60)]
    images = LabeledImages(range(60), labels, [str(number) for number in range(60)], GROUPS)
    clean, after = generator.normal(size=(2, 60, 3))
    for row, label in enumerate(labels):
        clean[row, int(label)] += 2
        after[row, int(label)] += 1
    # Rows that cannot be read with the corruption are left out of both.
    rows = [row for row in range(60) if row != 7]
    found = measure_robustness(
        images, "012", (clean, range(60)), {("blur", 1): (after[rows], rows)}, resamples=200, seed=3
    )
    hits = [[scores[row].argmax() == int(labels[row]) for row in rows] for scores in (clean, after)]
    (entry,) = found["corruptions"]["blur"]
    assert found["metric"] == "accuracy" and entry["strength"] == 1 and entry["value"] == 0.75
    assert found["clean"] == np.mean([clean[row].argmax() == int(labels[row]) for row in range(60)])
    assert entry["accuracy"] == found["mean"] == pytest.approx(np.mean(hits[1]))
    assert entry["drop"] == pytest.approx(np.mean(hits[0]) - np.mean(hits[1]))
    differences = np.array(hits[0], dtype=float) - np.array(hits[1], dtype=float)
    groups = [GROUPS[row] for row in rows]
    drops = [weights @ differences / weights.sum() for weights in bootstrap_weights(groups, seed=3, resamples=200)]
    assert entry["drop_interval"] == pytest.approx(np.quantile(drops, [0.025, 0.975]), abs=1e-12)


def test_the_drop_of_auroc_is_that_of_scikit_learn_on_the_same_samples():
    generator = np.random.default_rng(0)
    targets = (generator.random((60, 2)) < 0.5).astype(float)
    clean = generator.normal(size=(60, 2)) + 2 * targets
    after = generator.normal(size=(60, 2)) + targets
    targets[generator.random((60, 2)) < 0.1] = np.nan
    images = FindingImages(range(60), targets, ["a", "b"], [str(number) for number in range(60)], GROUPS)
    found = measure_robustness(
        images, ["a", "b"], (clean, range(60)), {("noise", 5): (after, range(60))}, resamples=50, seed=1
    )
    drops = []
    for weights in [np.ones(60), *bootstrap_weights(GROUPS, seed=1, resamples=50)]:
        areas = []
        for scores in (clean, after):
            kept = [~np.isnan(column) & (weights > 0) for column in targets.T]
            areas.append(
                np.mean(
                    [
                        roc_auc_score(targets[rows, place], scores[rows, place], sample_weight=weights[rows])
                        for place, rows in enumerate(kept)
                    ]
                )
            )
        drops.append(areas[0] - areas[1])
    (entry,) = found["corruptions"]["noise"]
    assert found["metric"] == "auroc" and entry["drop"] == pytest.approx(drops[0], abs=1e-12)
    assert entry["drop_interval"] == pytest.approx(np.quantile(drops[1:], [0.025, 0.975]), abs=1e-12)


def test_scores_that_are_not_finite_have_no_drop(tmp_path, capsys):
    images = LabeledImages(range(4), ["0", "1", "0", "1"], list("abcd"))
    scores = np.array([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    bad = scores.copy()
    bad[0, 0] = np.nan
    corrupted = {("text", strength): (scores if strength < 5 else bad, range(4)) for strength in range(1, 6)}
    found = measure_robustness(images, "01", (scores, range(4)), corrupted, resamples=20)
    assert [entry["drop"] for entry in found["corruptions"]["text"]] == [0, 0, 0, 0, None]
    show_robustness(found, tmp_path)
    output = capsys.readouterr().out
    assert "undefined" in output and max(map(len, output.splitlines())) <= 80 and (tmp_path / "robustness.png").exists()


def test_names_of_corruptions_are_checked():
    assert chosen_corruptions([]) == [] and chosen_corruptions(["noise", "blur", "noise"]) == ["noise", "blur"]
    assert len(chosen_corruptions(["all"])) == 9
    with pytest.raises(ValueError, match="Unknown corruption 'fog'"):
        chosen_corruptions(["noise", "fog"])
    assert all_corruptions([]) == []
    assert all_corruptions(["a", "--corruptions"]) == ["a", "--corruptions", "all"]
    assert all_corruptions(["--corruptions", "--b", "c"]) == ["--corruptions", "all", "--b", "c"]
    assert all_corruptions(["--corruptions", "blur", "--b"]) == ["--corruptions", "blur", "--b"]


def test_paraphrases_are_templates_and_pairs_that_are_summed_up():
    assert all(template.count("{}") == 1 for template in paraphrases()["templates"])
    assert all(positive.count("{}") == 1 and len(rest) == 1 for positive, *rest in paraphrases()["pairs"])
    found = summarize_paraphrases("accuracy", {"a {}": 0.5, "b {}": 0.8, "c {}": 0.7, "d {}": None})
    assert (found["smallest"], found["median"], found["largest"]) == (0.5, 0.7, 0.8)
    assert found["sd"] == pytest.approx(np.std([0.5, 0.8, 0.7], ddof=1))


@pytest.fixture
def data(tmp_path):
    """Dark and bright images, in training, validation and test folders."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("validation", 10), ("test", 20)):
        for place, name in enumerate(("dark", "bright")):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(100 * place, 100 * place + 110, size=(32, 32), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "data"


@pytest.fixture
def in_memory(monkeypatch) -> list[int]:
    """Return the number of sets of features that are in memory at the start of each reading."""
    read, known, counts = features_module._read_all, [], []

    def reading(*arguments):
        counts.append(sum(features() is not None for features in known))
        found = read(*arguments)
        known.append(weakref.ref(found.embeds))
        return found

    monkeypatch.setattr(features_module, "_read_all", reading)
    return counts


def test_the_command_writes_the_drops_and_reuses_the_features_of_each_corruption(
    measure, data, in_memory, tmp_path, capsys
):
    options = ["--corruptions", "contrast", "mark", "--features-dir", tmp_path / "features"]
    results = measure("zero-shot", data, *options, "--prompt-sensitivity")
    robustness = results["metrics"]["robustness"]
    assert list(robustness["corruptions"]) == ["contrast", "mark"]
    assert [entry["strength"] for entry in robustness["corruptions"]["mark"]] == [1, 2, 3, 4, 5]
    assert robustness["clean"] == results["metrics"]["accuracy"]
    assert set(results["metrics"]["prompt_sensitivity"]["values"]) == set(paraphrases()["templates"])
    assert (tmp_path / "out" / "robustness.png").exists()
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    keys = [json.loads(path.read_text(encoding="utf-8"))["data"] for path in (tmp_path / "features").glob("*/key.json")]
    assert len(keys) == len(set(keys)) == 11, "one without and ten with corruptions"
    assert len(in_memory) == 11 and max(in_memory) == 1, "only those without corruption stay in memory"
    in_memory.clear()
    probe = measure("linear-probe", data, *options, "--fractions", "1", out="probe")
    assert len(in_memory) == 13 and max(in_memory) == 3
    metrics = probe["metrics"]
    assert metrics["robustness"]["clean"] == metrics["accuracy"] > 0.9 and metrics["images"] == 40
    drops = [entry["drop"] for entry in metrics["robustness"]["corruptions"]["contrast"]]
    assert drops[-1] >= drops[0]
    keys = [json.loads(path.read_text(encoding="utf-8"))["data"] for path in (tmp_path / "features").glob("*/key.json")]
    assert len(keys) == 13, "only the training and the validation images are new"
    without = measure("linear-probe", data, "--features-dir", tmp_path / "features", "--fractions", "1", out="without")
    assert without["metrics"]["accuracy"] == metrics["accuracy"] and "robustness" not in without["metrics"]


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("zero-shot", ["--corruptions", "nois"], "Unknown corruption 'nois'. Did you mean 'noise'?"),
        ("linear-probe", ["--corruptions", "--protocol", "elevater"], "--corruptions needs --protocol logistic"),
        ("linear-probe", ["--prompt-sensitivity"], "--prompt-sensitivity applies only to zero-shot"),
        (
            "retrieval",
            ["--corruptions"],
            "--corruptions applies only to zero-shot, linear-probe, few-shot, image-classification",
        ),
    ],
)
def test_options_without_effect_are_errors(task, options, message, data, small_checkpoint, no_model, tmp_path, capsys):
    arguments = [task, "--model", small_checkpoint, "--data", data, *options, "--output-dir", tmp_path / "out"]
    assert main(["evaluate", *map(str, arguments)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
