"""`biomedclip evaluate few-shot` on drawn images."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
import torch
from helpers.benchmark_files import save_drawn, write_table
from PIL import Image

from biomedclip.processing.images.corruptions import CorruptedImages
from biomedclip.run_scripts.cli.errors import UsageError
from biomedclip.run_scripts.evaluate import main as evaluate
from biomedclip.run_scripts.evaluation import features
from biomedclip.run_scripts.evaluation.dual_encoders import DualEncoder
from biomedclip.run_scripts.evaluation.features import Features
from biomedclip.run_scripts.evaluation.few_shot import learner as module
from biomedclip.run_scripts.evaluation.few_shot import methods
from biomedclip.run_scripts.evaluation.few_shot import predictions as of_fits
from biomedclip.run_scripts.evaluation.few_shot.draws import halves
from biomedclip.run_scripts.evaluation.few_shot.finished import FITS, FinishedFits
from biomedclip.run_scripts.evaluation.few_shot.intervals import mean_interval
from biomedclip.run_scripts.evaluation.few_shot.robustness import measure_corrupted
from biomedclip.run_scripts.evaluation.few_shot.summary import harmonic_mean, show_few_shot, summarize


FAST = ["--methods", "zero-shot", "linear-probe", "tip-adapter", "--shots", "1", "2", "--draws", "2"]
SPLITS = {"train": 4, "validation": 2, "test": 3}


def write_classes(folder: Path, classes=("few spots", "many spots"), splits=SPLITS) -> Path:
    for order, label in enumerate(classes):
        for place, (split, images) in enumerate(splits.items()):
            for number in range(images):
                path = folder / split / label / f"{order}{place}{number}.png"
                save_drawn(path, [order, place, number], 32, positive=order % 2 == 1)
    return folder


@pytest.fixture
def classes(tmp_path) -> Path:
    return write_classes(tmp_path / "scans")


def fits_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / FITS).read_text(encoding="utf-8").splitlines()[1:]]


def test_methods_shots_and_draws_are_measured_and_plotted(measure, classes, tmp_path, capsys):
    results = measure("few-shot", classes, *FAST)
    by_method = results["metrics"]["by_method"]
    assert {method: [*by_shots] for method, by_shots in by_method.items()} == {
        "zero-shot": ["0"],
        "linear-probe": ["1", "2"],
        "tip-adapter": ["1", "2"],
    }
    summary = by_method["tip-adapter"]["2"]
    assert [run["seed"] for run in summary["runs"]] == [0, 1] and summary["runs"][0]["images"] == 4
    assert summary["accuracy"] == pytest.approx(sum(run["accuracy"] for run in summary["runs"]) / 2)
    assert results["settings"]["shots"] == [1, 2] and results["published"] == []
    assert (tmp_path / "out" / "few_shot.png").stat().st_size > 5000
    output = capsys.readouterr().out
    assert "majority class" in output and max(map(len, output.splitlines())) <= 80


def test_the_choices_do_not_depend_on_the_labels_of_the_test_images(measure, classes, tmp_path, monkeypatch):
    options = ["--methods", "linear-probe", "tip-adapter", "tip-adapter-f", "clip-adapter", "coop"]
    options += ["--shots", "2", "--draws", "2"]
    monkeypatch.setattr(methods, "STEPS", dict.fromkeys(methods.STEPS, 20))
    measure("few-shot", classes, *options, out="before")
    first, second = (classes / "test" / label for label in ("few spots", "many spots"))
    for file in [*first.iterdir()][:2]:
        shutil.move(file, second / file.name)
    shutil.move(second / "120.png", first / "120.png")
    measure("few-shot", classes, *options, out="after")
    measured = {"accuracy", "balanced_accuracy", "auroc"}
    chosen = [
        [{name: value for name, value in fit.items() if name not in measured} for fit in fits_of(tmp_path / out)]
        for out in ("before", "after")
    ]
    assert chosen[0] == chosen[1] and {"alpha", "learning_rate", "C"} <= {name for fit in chosen[0] for name in fit}


def test_an_interrupted_evaluation_continues_and_other_settings_are_refused(measure, classes, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    done: list[tuple] = []
    first = module.Learner.measure

    def killed(self, method, shots, seed, draw, **also):
        if len(done) == 3:
            raise Killed
        done.append((method, shots, seed))
        return first(self, method, shots, seed, draw, **also)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(module.Learner, "measure", killed)
        measure("few-shot", classes, *FAST)
    with (tmp_path / "out" / FITS).open("a", encoding="utf-8") as file:
        file.write('{"method": "tip-ad')
    again: list[tuple] = []
    monkeypatch.setattr(
        module.Learner,
        "measure",
        lambda self, *key, **also: again.append(key[:3]) or first(self, *key, **also),
    )
    results = measure("few-shot", classes, *FAST)
    assert len(again) == 9 - 3 and not set(again) & set(done)
    assert results["metrics"] == measure("few-shot", classes, *FAST, out="whole")["metrics"]
    again.clear()
    measure("few-shot", classes, *FAST[:-1], "3")
    assert {seed for _, _, seed in again} == {2}, "more draws of the same settings"
    with pytest.raises(ValueError, match="has fits with another prompts, which would be mixed"):
        measure("few-shot", classes, *FAST, "--templates", "a photo of {}")


def test_a_file_that_has_no_fits_is_not_replaced(tmp_path):
    (tmp_path / FITS).write_text("notes\n", encoding="utf-8")
    with pytest.raises(ValueError, match="not fits of biomedclip evaluate few-shot. Remove the file"):
        FinishedFits(tmp_path / FITS, {"model": "1"})
    assert (tmp_path / FITS).read_text(encoding="utf-8") == "notes\n"


ARRAYS = {"answers all": np.arange(20, dtype=np.int32), "scores all": np.ones((20, 3), dtype=np.float32)}


@pytest.fixture
def stored(tmp_path) -> tuple[FinishedFits, Path]:
    """A finished fit, and the file of its arrays."""
    fits = FinishedFits(tmp_path / FITS, {"model": "1"})
    fits.add({"method": "coop", "shots": 4, "seed": 0, "drawn": "00"}, ARRAYS)
    (file,) = (tmp_path / "fits").iterdir()
    return fits, file


def test_a_fit_whose_arrays_are_truncated_is_not_finished_and_a_line_says_so(stored, caplog):
    fits, file = stored
    content = file.read_bytes()
    assert fits.get("coop", 4, 0, "00", ARRAYS) and not caplog.records
    for size in (0, 1, 30, len(content) // 2, len(content) - 1):
        caplog.clear()
        file.write_bytes(content[:size])
        assert fits.get("coop", 4, 0, "00", ARRAYS) is None
        (record,) = caplog.records
        assert f"{file} is damaged, so this fit is computed again: " in record.message


def test_a_fit_whose_arrays_have_a_changed_byte_is_not_finished_or_has_the_right_arrays(stored):
    fits, file = stored
    content = file.read_bytes()
    refused = 0
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        found = fits.get("coop", 4, 0, "00", ARRAYS)
        refused += found is None
        if found:
            arrays = fits.arrays(found, ARRAYS)
            assert all(np.array_equal(arrays[name], values) for name, values in ARRAYS.items())
    assert refused > len(content) / 2


def test_a_line_with_bytes_that_are_no_text_is_not_a_finished_fit(tmp_path):
    fits = FinishedFits(tmp_path / FITS, {"model": "1"})
    fits.add({"method": "coop", "shots": 4, "seed": 0, "drawn": "00"}, ARRAYS)
    with (tmp_path / FITS).open("ab") as file:
        file.write(b"\xff\xfe\x00\n")
    assert FinishedFits(tmp_path / FITS, {"model": "1"}).get("coop", 4, 0, "00", ARRAYS)


def test_test_images_among_the_shots_are_refused_by_name(measure, classes):
    shutil.copy(classes / "train/few spots/000.png", classes / "test/few spots/renamed <b>.png")
    with pytest.raises(ValueError, match=r"test/few spots/renamed <b>.png is train/few spots/000.png \(the same file"):
        measure("few-shot", classes, "--methods", "tip-adapter", "--shots", "4", "--draws", "1")
    measure("few-shot", classes, "--methods", "tip-adapter", "--shots", "4", "--draws", "1", "--no-find-leaks")


def test_copies_among_splits_that_were_drawn_from_one_folder_are_not_drawn(measure, tmp_path, monkeypatch):
    folder = write_classes(tmp_path / "scans", splits={"": 10})
    for label in ("few spots", "many spots"):
        for file in list((folder / label).iterdir())[:5]:
            shutil.copy(file, file.with_name(f"copy {file.name}"))
    options = [folder, "--methods", "linear-probe", "--shots", "2", "--draws", "5"]
    leaked = measure("few-shot", *options, "--no-find-leaks")
    known: list[int] = []
    find = module.find_copies
    monkeypatch.setattr(
        module, "find_copies", lambda *args, **kwargs: known.append(len(kwargs["known"])) or find(*args, **kwargs)
    )
    results = measure("few-shot", *options)
    assert known == [0, *[results["metrics"]["images"]] * (len(known) - 1)] and len(known) > 1, "test images read once"
    (note,) = [note for note in results["data"]["notes"] if "copies of test images" in note]
    assert "copy " in note
    assert results["metrics"] != leaked["metrics"], "fits on other images are not reused"
    assert results["metrics"] == measure("few-shot", *options, out="whole")["metrics"]


def test_a_single_group_that_cannot_be_halved_is_an_error_that_names_the_data():
    with pytest.raises(ValueError, match="^scans, train split: all 2 images belong to the group 'p1' of group_column"):
        halves(np.array([0, 1]), ["p1", "p1"], 0, "scans, train split")


def test_base_to_novel_measures_both_halves_of_the_classes(measure, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(methods, "STEPS", dict.fromkeys(methods.STEPS, 10))
    folder = write_classes(tmp_path / "scans", ("a", "b", "c", "d", "e"))
    options = ["--methods", "zero-shot", "clip-adapter", "coop", "--shots", "2", "--draws", "2", "--base-to-novel"]
    metrics = measure("few-shot", folder, *options)["metrics"]
    assert (metrics["base_classes"], metrics["novel_classes"]) == (["a", "b", "c"], ["d", "e"])
    for by_shots in metrics["by_method"].values():
        for run in next(iter(by_shots.values()))["runs"]:
            expected = harmonic_mean(run["base_accuracy"], run["novel_accuracy"])
            assert run["harmonic_mean_accuracy"] == pytest.approx(expected)
    assert metrics["by_method"]["coop"]["2"]["runs"][0]["images"] == 6
    assert "harmonic mean" in capsys.readouterr().out
    assert harmonic_mean(0.5, 1.0) == pytest.approx(2 / 3) and harmonic_mean(0.0, 0.0) == 0
    with pytest.raises(UsageError, match="linear-probe cannot classify images of classes without training images"):
        measure("few-shot", folder, "--base-to-novel", "--methods", "linear-probe")
    with pytest.raises(ValueError, match="needs two base and two novel classes, but there are 2"):
        measure("few-shot", write_classes(tmp_path / "two"), *options, out="two")


def test_base_to_novel_needs_validation_and_test_images_of_its_classes(measure, tmp_path):
    folder = write_classes(tmp_path / "scans", ("a", "b", "c", "d"))
    options = ["--methods", "clip-adapter", "--shots", "2", "--draws", "1", "--base-to-novel"]
    for label in ("a", "b"):
        shutil.rmtree(folder / "validation" / label)
    with pytest.raises(
        ValueError, match="--shots 2, draw with seed 0: there are no validation images of these classes"
    ):
        measure("few-shot", folder, *options)
    for label in ("c", "d"):
        shutil.rmtree(folder / "test" / label)
    with pytest.raises(ValueError, match="needs test images of both halves of the classes, but there is none of c, d"):
        measure("few-shot", folder, *options)


def test_prompts_that_coop_cannot_learn_are_an_error_before_all_fits(measure, classes, tmp_path):
    with pytest.raises(ValueError, match="leave no room for the class name within 4 tokens"):
        measure("few-shot", classes, "--methods", "linear-probe", "coop", "--shots", "1", "--max-length", "4")
    assert not (tmp_path / "out" / FITS).exists()


def test_one_image_of_a_class_is_not_enough(measure, tmp_path, no_model):
    folder = write_classes(tmp_path / "scans", splits={"": 1})
    with pytest.raises(ValueError, match="no image could be held out for the test split.*Add images, or a folder test"):
        measure("few-shot", folder, *FAST)


def test_one_training_image_of_a_class_leaves_none_for_validation(measure, tmp_path, no_model):
    folder = write_classes(tmp_path / "scans", splits={"train": 1, "test": 2})
    with pytest.raises(ValueError, match="there are no validation images.*or a folder validation"):
        measure("few-shot", folder, "--shots", "1", "--methods", "tip-adapter")


def test_more_shots_than_images_are_refused_unless_a_class_has_as_many(measure, classes, no_model, tmp_path):
    with pytest.raises(ValueError, match="--shots 8 16: no class has.*'few spots', has 4. Pass at most 4 to --shots"):
        measure("few-shot", classes, "--shots", "4", "8", "16")
    with pytest.raises(ValueError, match="has 4, of which 2 are for validation. Pass at most 2 to --shots"):
        measure("few-shot", classes, "--shots", "100", "--split", "validation")


def test_a_class_with_fewer_images_is_drawn_as_a_whole(measure, classes):
    for number in range(4, 9):
        save_drawn(classes / "train" / "few spots" / f"{number}.png", [7, number], 32)
    results = measure("few-shot", classes, "--shots", "8", "--draws", "1", "--methods", "tip-adapter")
    (run,) = results["metrics"]["by_method"]["tip-adapter"]["8"]["runs"]
    assert run["images"] == 8 + 4
    notes = "\n".join(results["data"]["notes"])
    assert "fewer training images than shots: many spots has 4 of 8" in notes
    assert "fewer validation images than shots: few spots has 2 of 8" in notes


def test_a_note_on_many_small_classes_counts_those_that_it_omits(measure, tmp_path):
    folder = write_classes(tmp_path / "scans", [*"abcdefg"], splits={"train": 2, "validation": 1, "test": 1})
    results = measure("few-shot", folder, "--shots", "2", "--draws", "1", "--methods", "linear-probe")
    assert any(note.endswith("d has 1 of 2, e has 1 of 2, and 2 more.") for note in results["data"]["notes"])


def test_on_the_validation_split_the_settings_are_chosen_on_training_images(measure, classes):
    results = measure("few-shot", classes, *FAST[:-2], "--draws", "1", "--split", "validation")
    assert results["metrics"]["images"] == 4
    assert "The data has no validation split: settings are chosen on other training images." in results["data"]["notes"]


def test_a_class_without_test_images_is_noted(measure, classes):
    shutil.rmtree(classes / "test" / "many spots")
    results = measure("few-shot", classes, "--shots", "1", "--draws", "1", "--methods", "tip-adapter")
    assert "No image of the test split is of the class 'many spots'." in results["data"]["notes"]
    assert results["metrics"]["by_method"]["tip-adapter"]["1"]["accuracy"] is not None
    assert results["metrics"]["by_method"]["tip-adapter"]["1"]["auroc"] is None


def test_labels_may_be_numbers(measure, tmp_path):
    write_classes(tmp_path / "images")
    rows = [
        (path.relative_to(tmp_path / "images" / split).as_posix(), 10 if "many" in path.parent.name else 2)
        for split in SPLITS
        for path in sorted((tmp_path / "images" / split).rglob("*.png"))
    ]
    for split in SPLITS:
        mine = [row for row in rows if (tmp_path / "images" / split / row[0]).is_file()]
        write_table(tmp_path / "images" / split / "metadata.csv", ["file_name", "label"], mine)
    results = measure("few-shot", tmp_path / "images", *FAST)
    assert results["metrics"]["classes"] == ["10", "2"]
    note = "'10', '2' in prompts mean nothing to a text encoder. Pass --prompts FILE, a YAML file with class_names"
    assert any(found.startswith(note) for found in results["data"]["notes"])
    assert any(
        found.startswith(note) for found in measure("zero-shot", tmp_path / "images", out="prompts")["data"]["notes"]
    )
    probe = measure("few-shot", tmp_path / "images", "--methods", "linear-probe", "--shots", "1", out="probe")
    assert not any("in prompts" in found for found in probe["data"]["notes"])
    names = tmp_path / "names.yaml"
    names.write_text("class_names: {2: few spots, 10: many spots}", encoding="utf-8")
    named = measure("few-shot", tmp_path / "images", *FAST, "--prompts", names, out="named")
    assert not any("in prompts" in found for found in named["data"]["notes"])


def test_embeddings_that_are_not_finite_are_an_error_with_the_image(measure, classes, monkeypatch):
    embed = DualEncoder.embed_pixels
    monkeypatch.setattr(
        DualEncoder, "embed_pixels", lambda *args: embed(*args).index_fill(0, torch.tensor(1), torch.nan)
    )
    with pytest.raises(
        ValueError, match="of 1 of 8 train images are NaN or infinite, the first of train/few spots/001"
    ):
        measure("few-shot", classes, *FAST)


def test_damaged_images_are_excluded_and_listed(measure, classes):
    damaged = classes / "train" / "few spots" / "000.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    results = measure("few-shot", classes, "--shots", "2", "--draws", "3", "--methods", "tip-adapter")
    assert [entry["name"] for entry in results["data"]["damaged"]] == ["train/few spots/000.png"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--methods", "tip-adaptor"], "'tip-adaptor' is unknown. Did you mean 'tip-adapter'"),
        (["--methods", "coop", "coop"], "one or more different values, not coop coop"),
        (["--shots", "0", "1"], "--shots must be 1 or more, not 0"),
        (["--methods", "zero-shot", "--draws", "3"], "no effect on --methods zero-shot"),
        (["--methods", "zero-shot", "--no-find-leaks"], "--no-find-leaks has no effect on --methods zero-shot"),
        (["--methods", "linear-probe", "--max-length", "9"], "--max-length has no effect on --methods linear-probe"),
        (["--methods", "linear-probe", "--templates", "a {}"], "--templates has no effect on --methods linear-probe"),
        (["--split", "train"], "tested on their training images"),
        (["--fractions", "0.1"], "applies only to linear-probe"),
    ],
)
def test_options_without_effect_are_refused(options, message, classes, tmp_path, no_model):
    arguments = ["few-shot", "--model", "m", "--data", str(classes), "--output-dir", str(tmp_path / "out")]
    with pytest.raises(UsageError, match=message):
        evaluate([*arguments, *options])


def test_two_models_are_compared(two_models, classes, tmp_path):
    arguments = ["few-shot", "--model", *two_models, "--data", str(classes), "--output-dir", str(tmp_path / "out")]
    evaluate([*arguments, *FAST])
    text = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert (
        "tip-adapter, 2 shots" in text
        and "95 % intervals of the mean over draws of the training images and over test images" in text
    )


def test_balanced_accuracies_have_intervals_of_student_over_the_draws(capsys):
    values = [0.6, 0.7, 0.8]
    runs = [{"method": "coop", "shots": 4, "seed": seed, "accuracy": value} for seed, value in enumerate(values)]
    by_method = summarize(runs, ["accuracy"])
    summary = by_method["coop"]["4"]
    # 4.30265 is the 97.5 % quantile of Student's t distribution with two degrees of freedom.
    half = 4.30265 * 0.1 / 3**0.5
    assert summary["accuracy"] == pytest.approx(0.7) and summary["accuracy_sd"] == pytest.approx(0.1)
    assert summary["accuracy_interval"] == pytest.approx([0.7 - half, 0.7 + half], abs=1e-5)
    assert summarize(runs[:1], ["accuracy"])["coop"]["4"]["accuracy_interval"] is None
    same = [run | {"accuracy": 0.5} for run in runs]
    assert summarize(same, ["accuracy"])["coop"]["4"]["accuracy_interval"] is None, "no width without differences"
    show_few_shot({"by_method": by_method, "images": 9, "chance": 0.5, "most_frequent_class": 0.5})
    assert "0.45-0.95" in capsys.readouterr().out


def test_accuracies_have_intervals_over_draws_and_test_images_with_a_note_if_there_are_few_draws(measure, classes):
    one = measure("few-shot", classes, "--methods", "zero-shot", "tip-adapter", "--shots", "2", "--draws", "1")
    by_method = one["metrics"]["by_method"]
    for summary in (by_method["zero-shot"]["0"], by_method["tip-adapter"]["2"]):
        right = round(6 * summary["accuracy"])
        values = np.array([[1.0] * right + [0.0] * (6 - right)])
        interval = mean_interval(values)
        expected = None if interval is None else pytest.approx(np.clip(interval, 0, 1), abs=1e-6)
        assert summary["accuracy_interval"] == expected
        assert summary["balanced_accuracy_interval"] is None, "a single draw"
    assert any("cover the choice of the test images, but not that of the tra" in note for note in one["data"]["notes"])
    few = measure("few-shot", classes, "--methods", "linear-probe", "--shots", "4", "--draws", "2", out="whole")
    notes = "\n".join(few["data"]["notes"])
    assert "With two draws, the intervals are very wide" in notes
    assert "Some draws have the same images, because there are few (1 of 2 with 4 shots differ)" in notes


@pytest.mark.slow
def test_a_thousand_classes_are_measured(measure, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 1000, 8, 8), dtype=np.uint8)
    for split, images in zip(("train", "validation", "test"), pixels, strict=True):
        for number, image in enumerate(images):
            folder = tmp_path / "scans" / split / f"kind {number:03}"
            folder.mkdir(parents=True)
            Image.fromarray(image).save(folder / "0.png")
    options = ["--methods", "tip-adapter", "--shots", "1", "--draws", "1", "--batch-size", "500"]
    results = measure("few-shot", tmp_path / "scans", *options)
    assert len(results["metrics"]["classes"]) == 1000
    table = pq.read_table(tmp_path / "out" / "predictions.parquet", columns=["method", "true", "predicted"])
    assert len(table) == 1000 and not pa.compute.any(pa.compute.is_null(table["predicted"])).as_py()


def predictions(folder: Path) -> list[dict]:
    return pq.read_table(folder / "predictions.parquet").to_pylist()


def test_predictions_of_all_fits_are_written_and_give_the_accuracies(measure, classes, tmp_path):
    results = measure("few-shot", classes, *FAST)
    rows = predictions(tmp_path / "out")
    names = ["method", "shots", "draw", "file", "true", "predicted", "probability_few spots", "probability_many spots"]
    assert list(rows[0]) == names and len(rows) == 6 * (1 + 2 * 2 * 2)
    assert results["settings"]["predictions"] == "all fits"
    for method, by_shots in results["metrics"]["by_method"].items():
        for shots, summary in by_shots.items():
            for run in summary["runs"]:
                key = (method, int(shots) or None, run["seed"] if int(shots) else None)
                mine = [row for row in rows if (row["method"], row["shots"], row["draw"]) == key]
                assert len(mine) == 6 and len({row["file"] for row in mine}) == 6
                assert np.mean([row["true"] == row["predicted"] for row in mine]) == pytest.approx(run["accuracy"])
                assert sum(mine[0][name] for name in names[-2:]) == pytest.approx(1)
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == [row["method"] for row in rows]


def test_predictions_are_the_same_after_an_interruption(measure, classes, tmp_path):
    options = ["--methods", "tip-adapter-f", "--shots", "1", "2", "--draws", "2"]
    measure("few-shot", classes, *options)
    files = {name: (tmp_path / "out" / name).read_bytes() for name in ("predictions.parquet", "predictions.csv")}
    lines = (tmp_path / "out" / FITS).read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "out" / FITS).write_text("".join(lines[:3]), encoding="utf-8")
    stored = sorted((tmp_path / "out" / "fits").iterdir())
    assert len(stored) == 4
    stored[0].unlink()
    stored[1].write_bytes(b"")
    measure("few-shot", classes, *options)
    assert files == {name: (tmp_path / "out" / name).read_bytes() for name in files}


def test_of_too_many_predictions_one_draw_is_written(measure, classes, tmp_path, monkeypatch):
    monkeypatch.setattr(of_fits, "MOST_VALUES", 50)
    results = measure("few-shot", classes, *FAST, "--seed", "3")
    keys = {(row["method"], row["shots"], row["draw"]) for row in predictions(tmp_path / "out")}
    assert keys == {("zero-shot", None, None), ("linear-probe", 2, 3), ("tip-adapter", 2, 3)}
    assert "the draw with seed 3 and 2 shots, because" in results["settings"]["predictions"]
    monkeypatch.undo()
    measure("few-shot", classes, *FAST, "--seed", "3")
    assert len(predictions(tmp_path / "out")) == 6 * 9, "missing scores are computed"


def test_predictions_of_base_and_novel_classes_have_a_column_part(measure, tmp_path):
    folder = write_classes(tmp_path / "scans", ("a", "b", "c", "d", "e"))
    measure("few-shot", folder, "--methods", "zero-shot", "--base-to-novel")
    rows = predictions(tmp_path / "out")
    assert {(row["true"], row["part"]) for row in rows} == {
        (name, "base" if name < "d" else "novel") for name in "abcde"
    }
    for row in rows:
        base = [row[f"probability_{name}"] for name in "abc"]
        assert (base == [None] * 3) == (row["part"] == "novel") and (row["probability_d"] is None) == (
            row["part"] == "base"
        )


def test_corrupted_test_images_are_measured_with_the_most_shots(measure, classes, tmp_path, capsys):
    options = ["--methods", "zero-shot", "linear-probe", "--shots", "1", "2", "--draws", "2"]
    templates = ["--templates", "a photo of {}", "--corruptions", "noise", "mark"]
    found = measure("few-shot", classes, *options, *templates)["metrics"]
    robustness = found["robustness"]
    assert robustness["shots"] == 2 and list(robustness["by_method"]) == ["zero-shot", "linear-probe"]
    probe = robustness["by_method"]["linear-probe"]
    assert probe["clean"] == pytest.approx(found["by_method"]["linear-probe"]["2"]["accuracy"])
    for entries in probe["corruptions"].values():
        assert [entry["strength"] for entry in entries] == [1, 2, 3, 4, 5]
        assert all(entry["drop"] == pytest.approx(probe["clean"] - entry["accuracy"]) for entry in entries)
    alone = measure("zero-shot", classes, *templates, out="alone")["metrics"]["robustness"]
    for name, entries in alone["corruptions"].items():
        of_zero_shot = robustness["by_method"]["zero-shot"]["corruptions"][name]
        assert [entry["accuracy"] for entry in entries] == [entry["accuracy"] for entry in of_zero_shot]
    assert (tmp_path / "out" / "robustness.png").stat().st_size > 5000
    output = capsys.readouterr().out
    assert "Drop of the accuracy at strength 5, in points, 2 shots" in output
    assert max(map(len, output.splitlines())) <= 80
    with pytest.raises(UsageError, match="--base-to-novel measures two halves of the classes. Omit one of the two"):
        measure("few-shot", classes, "--methods", "zero-shot", "--base-to-novel", "--corruptions", "noise")


def test_answers_to_another_version_of_the_corruptions_are_not_reused(measure, classes, monkeypatch):
    options = ["--methods", "linear-probe", "--shots", "1", "2", "--draws", "1", "--corruptions", "noise"]
    measured: list[int] = []
    first = module.Learner.measure
    monkeypatch.setattr(
        module.Learner, "measure", lambda self, *key, **also: measured.append(key[1]) or first(self, *key, **also)
    )
    measure("few-shot", classes, *options)
    measure("few-shot", classes, *options)
    assert measured == [1, 2]
    monkeypatch.setattr(module, "corruptions_version", lambda: 99)
    measure("few-shot", classes, *options)
    assert measured == [1, 2, 2], "only the fits with the most shots have answers to corrupted images"


def test_a_corruption_that_leaves_no_test_image_is_an_error_that_names_it(measure, classes, monkeypatch):
    read = features.FeatureStore.stored_images
    none = Features(torch.empty(0, 4), torch.empty(0, dtype=torch.int64), [])

    def only_clean(self, images, *args, **kwargs):
        return (lambda: none) if isinstance(images, CorruptedImages) else read(self, images, *args, **kwargs)

    monkeypatch.setattr(features.FeatureStore, "stored_images", only_clean)
    options = ["--methods", "zero-shot", "--corruptions", "noise"]
    with pytest.raises(ValueError, match="none of the 6 test images.* the corruption noise at strength 1. Omit noise"):
        measure("few-shot", classes, *options)


def test_an_image_that_cannot_be_corrupted_is_left_out_of_the_drop():
    answers = {"answers all": [0, 1, 1, 0], module.corrupted_answers("noise", 1): [1, 1, -1, 0]}
    fits = [{"method": "coop", "shots": 1}]
    labels = np.array([0, 1, 1, 1])
    found = measure_corrupted(fits, lambda fit, name: np.array(answers[name]), [("noise", 1)], labels, None)
    (entry,) = found["by_method"]["coop"]["corruptions"]["noise"]
    assert entry["drop"] == pytest.approx(1 / 3) and entry["accuracy"] == pytest.approx(1 / 3)
    assert found["by_method"]["coop"]["clean"] == 0.75
