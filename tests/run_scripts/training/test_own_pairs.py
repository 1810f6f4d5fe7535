"""`biomedclip train` and `evaluate retrieval` on the user's own tables."""

import json
import re
import shutil
from pathlib import Path

import pytest
from helpers.benchmark_files import save_drawn
from helpers.commands import losses
from helpers.mirror_writer import png_bytes
from helpers.training_runs import assert_equal_runs, results, train, train_error

from biomedclip import ContrastiveCollator, ContrastiveTrainer, ContrastiveTrainingArguments, load_pairs
from biomedclip.run_scripts.main import main
from biomedclip.run_scripts.training.pairs import PairHandling, open_pairs


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> Path:
    """A CSV file of 60 pairs of 20 patients, one of them without a text and one with a damaged image."""
    folder = tmp_path_factory.mktemp("reports")
    lines = ["image_path,report,patient,finding"]
    for number in range(60):
        (folder / "images").mkdir(exist_ok=True)
        (folder / "images" / f"{number}.png").write_bytes(png_bytes(number, (40, 30)))
        lines.append(f"images/{number}.png,Report {number} of a scan.,p{number // 3},{['normal', 'mass'][number % 2]}")
    lines[31] = lines[31].replace("Report 30 of a scan.", "")
    (folder / "images" / "40.png").write_bytes(png_bytes(40, (40, 30))[:60])
    (folder / "reports.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder / "reports.csv"


@pytest.fixture(scope="module")
def base(small_checkpoint, reports) -> dict:
    columns = {"image_column": "image_path", "text_column": "report", "group_column": "patient"}
    return columns | {"model_name_or_path": small_checkpoint, "train_data": reports, "use_cpu": "true"}


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory) -> Path:
    """A run of six steps of 16 pairs, two epochs."""
    steps = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 3}
    return train(tmp_path_factory.mktemp("whole") / "run", **base, **steps)


def test_a_run_states_which_pairs_it_used(whole):
    found = results(whole)
    assert found["training_pairs"] + found["validation_pairs"] == 59 and found["validation_pairs"] in range(4, 7)
    own = found["own_pairs"]
    assert own["pairs_without_text"] == 1 and own["held_out_pairs"] == found["validation_pairs"]
    assert own["training_groups"] + own["held_out_groups"] == 20
    assert "reports.csv, line 32" in own["notes"][0] and "held out for validation" in own["notes"][1]
    assert found["substituted_rows"] + found["substituted_rows_in_evaluation"] >= 1, "the damaged image"


def test_a_resumed_run_equals_an_uninterrupted_one(whole, base, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copytree(whole / "checkpoint-4", folder / "checkpoint-4")
    steps = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 3}
    resumed = train(folder, **base, **steps, resume_from_checkpoint="true")
    assert results(resumed)["resumed_from_step"] == 4
    assert_equal_runs(resumed, whole)


def test_the_trainer_takes_loaded_pairs(reports, small_checkpoint, whole, tmp_path):
    from transformers import AutoModel, AutoProcessor

    pairs = load_pairs(reports, image_column="image_path", text_column="report", group_column="patient", seed=42)
    model, processor = (kind.from_pretrained(small_checkpoint) for kind in (AutoModel, AutoProcessor))
    args = ContrastiveTrainingArguments(
        str(tmp_path), max_steps=6, per_device_train_batch_size=16, use_cpu=True, logging_steps=1, report_to="none"
    )
    collate = {"seed": 42, "on_error": "substitute"}
    trainer = ContrastiveTrainer(
        model,
        args,
        train_dataset=pairs["train"],
        eval_dataset=pairs["validation"],
        data_collator=ContrastiveCollator(processor, training=True, **collate),
        eval_data_collator=ContrastiveCollator(processor, **collate),
        processing_class=processor,
    )
    trainer.train()
    ours = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert ours == losses(whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"licenses": "commercial"}, "--licenses has no effect on .*reports.csv"),
        ({"text": "mentions"}, "--text has no effect on .*reports.csv"),
        ({"panels": "only"}, "--panels has no effect on .*reports.csv"),
        ({"image_types": "PET"}, "--image-types has no effect on .*reports.csv"),
        ({"validation_fraction": 0}, "--group-column has no effect, because no pairs are held out"),
        ({"validation_fraction": 1}, "--validation-fraction 1.0 must be"),
    ],
)
def test_options_without_effect_on_own_pairs_are_errors(base, capsys, tmp_path, options, message):
    error = train_error(capsys, tmp_path / "run", 2, **base | options)
    assert re.search(message, error)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_column", "image"),
        ("text_column", "caption"),
        ("image_root", "."),
        ("group_column", "pmcid"),
        ("validation_fraction", 0.2),
    ],
)
def test_options_of_own_pairs_are_errors_with_a_built_dataset(shards, name, value):
    option = name.replace("_", "-")
    with pytest.raises(ValueError, match=f"--{option} has no effect on .*, which biomedclip build wrote"):
        open_pairs(str(shards), PairHandling(**{name: value}), 0, evaluates=False)


def test_evaluation_needs_pairs_that_are_held_out(reports):
    handling = PairHandling(image_column="image_path", text_column="report", validation_fraction=0.0)
    assert len(open_pairs(str(reports), handling, 0, evaluates=False).stream) == 59
    with pytest.raises(ValueError, match="--validation-fraction 0 leaves no pairs for evaluation"):
        open_pairs(str(reports), handling, 0, evaluates=True)


def test_retrieval_is_measured_on_a_table(base, whole, capsys, tmp_path):
    columns = ["--image-column", "image_path", "--text-column", "report", "--group-column", "patient"]
    arguments = ["evaluate", "retrieval", "--model", str(whole), "--data", str(base["train_data"]), *columns]
    assert main([*arguments, "--output-dir", str(tmp_path / "all")]) == 0
    found = json.loads((tmp_path / "all" / "results.json").read_text())
    assert found["metrics"]["pairs"] == 58 and found["metrics"]["articles"] == 20
    assert found["data"]["damaged"][0]["name"] == "reports.csv, line 42"
    assert "all pairs are the test split" in found["data"]["notes"][0]
    assert "58 pairs of 20 groups, test split" in " ".join(capsys.readouterr().out.split())
    assert main([*arguments, "--split", "validation", "--output-dir", str(tmp_path / "held")]) == 0
    held = json.loads((tmp_path / "held" / "results.json").read_text())
    assert held["metrics"]["pairs"] + len(held["data"]["damaged"]) == results(whole)["validation_pairs"]
    assert main([*arguments, "--validation-fraction", "0.5", "--output-dir", str(tmp_path / "no")]) == 2
    assert "--validation-fraction has no effect on the test split" in capsys.readouterr().err


def test_a_classifier_is_trained_on_a_table(small_checkpoint, tmp_path):
    lines = ["scan,patient,finding"]
    for number in range(24):
        save_drawn(tmp_path / "scans" / f"{number}.png", [number, 1], 40, number % 2 == 0)
        lines.append(f"{number}.png,p{number // 4},{['normal', 'mass'][number % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    options = {"task": "image-classification", "train_data": tmp_path / "labels.csv", "image_column": "scan"}
    options |= {"label_column": "finding", "image_root": tmp_path / "scans", "group_column": "patient"}
    options |= {"model_name_or_path": small_checkpoint, "batch_size": None, "per_device_train_batch_size": 8}
    found = results(train(tmp_path / "run", **options, validation_fraction=0.34, use_cpu="true"))
    assert found["classes"] == ["mass", "normal"] and found["validation"]["images"] == 8
    assert found["groups"] == {"train": 4, "validation": 2}
