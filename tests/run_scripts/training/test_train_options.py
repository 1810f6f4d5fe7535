"""Options of `biomedclip train` and their effect on pairs, images and encoders."""

import copy
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.commands import logged, losses
from helpers.pair_shards import LICENSES, pair_row, write_shards
from helpers.training_runs import results, train, train_error
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel, TrainingArguments

from biomedclip.processing.pmc.shards import pair_schema
from biomedclip.run_scripts.evaluation.pools import draw_pool
from biomedclip.run_scripts.train import task_of
from biomedclip.run_scripts.training import contrastive, runs, visual_question_answering
from biomedclip.run_scripts.training.adapters import AdapterOptions, add_adapter
from biomedclip.run_scripts.training.contrastive import TrainData, set_batch_size
from biomedclip.run_scripts.training.dry_run import DryRunOptions, part_of
from biomedclip.run_scripts.training.models import ModelOptions, lock_image_tower, set_up_model
from biomedclip.run_scripts.training.pairs import PairHandling, training_pairs, validation_pairs
from biomedclip.run_scripts.training.zero_shot_validation import ZeroShotOptions


TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def base(small_checkpoint, shards) -> dict:
    """Options of a run of two steps from the small checkpoint."""
    options = {"model_name_or_path": small_checkpoint, "train_data": shards}
    return options | {"learning_rate": 1e-2, "lr_scheduler_type": "constant"}


@pytest.fixture(scope="module")
def plain(base, tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("plain") / "run", **base)


def test_vqa_is_an_alias_of_the_task():
    assert task_of(["--task", "vqa"]) is visual_question_answering
    assert task_of([]) is contrastive


def test_an_unknown_task_is_an_error(capsys, tmp_path):
    error = train_error(capsys, tmp_path, 2, task="image-clasification")
    assert (
        "--task image-clasification is unknown. Did you mean 'image-classification'? Choose from contrastive" in error
    )


def test_the_batch_size_is_that_of_all_devices(plain):
    assert results(plain)["batch_size"] == 16


@pytest.mark.parametrize(("devices", "share"), [(1, 48), (3, 16), (16, 3)])
def test_the_batch_is_divided_evenly_among_the_devices(devices, share, tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    set_batch_size(args, None, devices)
    assert args.per_device_train_batch_size == 8, "the default of transformers"
    with pytest.raises(ValueError, match="--batch-size 50 cannot be divided evenly among 16 devices"):
        set_batch_size(args, 50, 16)
    set_batch_size(args, 48, devices)
    assert args.per_device_train_batch_size == share


def test_only_pairs_with_the_given_licenses_are_used(shards):
    stream = training_pairs(str(shards), PairHandling(licenses="commercial"), seed=0)
    ids = {row["pair_id"] for row in stream.rows(0, 0, len(stream))}
    assert {"CC BY", "CC0"} <= set(LICENSES)
    assert ids == {row["pair_id"] for row in map(pair_row, range(150)) if row["license"] in ("CC BY", "CC0")}


def test_only_panels_of_the_given_types_are_used(tmp_path):
    rows = [
        pair_row(number)
        | {"image_type": ("PET", "Ultrasound")[number % 2], "compound": number % 3 == 0}
        | {"figure_pair_id": f"figure {number}" if number % 3 == 1 else None}
        for number in range(30)
    ]
    (tmp_path / "data").mkdir()
    table = pa.Table.from_pylist(rows, schema=pair_schema(panels=True))
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    for options, numbers in (
        ({"panels": "only"}, [n for n in range(30) if n % 3]),
        ({"panels": "none", "image_types": ["PET"]}, [n for n in range(30) if n % 3 != 1 and n % 2 == 0]),
        ({"panels": "also"}, range(30)),
    ):
        stream = training_pairs(str(tmp_path), PairHandling(**options), seed=0)
        assert {row["pair_id"] for row in stream.rows(0, 0, 30)} == {rows[number]["pair_id"] for number in numbers}


@pytest.mark.parametrize("text", ["mentions", "caption_and_mentions"])
def test_the_text_option_selects_caption_or_mentions(shards, text):
    stream = training_pairs(str(shards), PairHandling(text=text), seed=0)
    cited = [row for row in stream.rows(0, 0, 150) if pair_row(int(row["pair_id"][3:-8]))["mentions"]]
    assert len(cited) > 50
    for row in cited:
        assert "Mention" in row["caption"] and ("Caption" in row["caption"]) == (text == "caption_and_mentions")


@pytest.mark.parametrize("fast", [True, False])
def test_fast_decoding_is_the_default_of_training_only(small_checkpoint, shards, tmp_path, fast):
    args = contrastive.ContrastiveTrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=8, use_cpu=True, save_strategy="no"
    )
    model = ModelOptions(model_name_or_path=str(small_checkpoint))
    handling = PairHandling() if fast else PairHandling(fast_decode=False)
    options = [handling, model, AdapterOptions(), ZeroShotOptions(), DryRunOptions(), args]
    trainer, _ = contrastive.run(TrainData(str(shards)), *options)
    assert trainer.data_collator.fast_decode == fast and trainer.data_collator.training
    assert not trainer.eval_data_collator.training, "evaluation always decodes exactly"


@pytest.mark.parametrize(
    ("supported", "bf16", "warns"), [(False, True, True), (True, True, False), (False, False, False)]
)
def test_bfloat16_on_a_cpu_without_it_is_slow_and_warned_of(
    shards, tmp_path, caplog, monkeypatch, supported, bf16, warns
):
    monkeypatch.setattr(runs, "cpu_has_bfloat16", lambda: supported)
    args = contrastive.ContrastiveTrainingArguments(str(tmp_path / "run"), use_cpu=True, bf16=bf16)
    runs.start_run(args, [])
    assert ("Pass --bf16 false" in caplog.text) == warns


def test_the_sample_of_a_large_validation_split_is_the_same_in_all_runs(tmp_path):
    folder = str(write_shards(tmp_path, shards=2, split="validation"))
    chosen = list(validation_pairs(folder, 20)["pair_id"])
    assert chosen == [pair_row(row)["pair_id"] for row in draw_pool(50, 20, seed=0)]
    assert chosen != [pair_row(row)["pair_id"] for row in range(20)]
    assert len(validation_pairs(folder, 50)) == len(validation_pairs(folder, 51)) == 50


def test_a_run_with_evaluation_each_epoch_resumes_and_keeps_the_best_checkpoint(small_checkpoint, tmp_path):
    folder = write_shards(tmp_path / "set", shards=2, image_size=(40, 30))  # three steps of 16 pairs
    write_shards(folder, shards=1, split="validation", image_size=(40, 30))
    options = {"model_name_or_path": small_checkpoint, "train_data": folder, "max_steps": None, "num_train_epochs": 2}
    options |= {"eval_strategy": "epoch", "max_eval_pairs": 10}

    def evaluated(name: str) -> list[int]:
        state = json.loads((tmp_path / name / "trainer_state.json").read_text())
        return [entry["step"] for entry in state["log_history"] if "eval_loss" in entry]

    saved = options | {"save_strategy": "steps", "save_steps": 4}
    assert results(train(tmp_path / "run", **saved))["validation_pairs"] == 10 and evaluated("run") == [3, 6]
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    train(tmp_path / "run", **saved, resume_from_checkpoint="true")
    assert evaluated("run") == [3, 6]
    train(tmp_path / "best", **options | {"save_strategy": "epoch", "load_best_model_at_end": "true"})
    best = json.loads((tmp_path / "best" / "trainer_state.json").read_text())["best_model_checkpoint"]
    losses_by_step = dict(zip((3, 6), logged(tmp_path / "best", "eval_loss"), strict=True))
    assert Path(best).name == f"checkpoint-{min(losses_by_step, key=losses_by_step.get)}"


def test_the_vocabulary_is_learned_from_the_training_texts(shards, tmp_path):
    model = {"vision_config": TOWER | {"image_size": 32, "patch_size": 8}, "text_config": TOWER, "projection_dim": 8}
    words = {}
    for text in ("caption", "mentions"):
        folder = train(tmp_path / text, model_config=model, train_data=shards, text=text, max_steps=1)
        words[text] = set(AutoProcessor.from_pretrained(folder).tokenizer.get_vocab())
    assert "mention" in words["mentions"] and "mention" not in words["caption"]


def test_the_image_size_changes_pixels_and_position_embeddings(base, tmp_path):
    folder = train(tmp_path / "larger", **base, image_size=48)
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert model.config.vision_config.image_size == 48
    assert model.vision_model.embeddings.position_embedding.shape[1] == 37
    assert processor.image_processor.crop_size["height"] == processor.image_processor.size["shortest_edge"] == 48
    assert AutoModel.from_pretrained(base["model_name_or_path"]).config.vision_config.image_size == 32


def test_patch_dropout_changes_the_losses_and_is_saved(base, plain, tmp_path):
    dropped, zero = (train(tmp_path / str(share), **base, patch_dropout=share) for share in (0.5, 0))
    assert losses(plain) == losses(zero) != losses(dropped)
    assert AutoModel.from_pretrained(dropped).config.vision_config.patch_dropout == 0.5


# Locked image encoder


def test_a_locked_image_encoder_does_not_change_while_its_projection_learns(base, tmp_path):
    before = AutoModel.from_pretrained(base["model_name_or_path"]).state_dict()
    folder = train(tmp_path / "locked", **base, lock_image_tower="true")
    after = AutoModel.from_pretrained(folder).state_dict()
    changed = {part_of(name) for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"image projection", "text encoder", "text projection", "logit scale"}
    locked = sum(value.numel() for name, value in after.items() if name.startswith("vision_model."))
    assert results(folder)["parameters"] - results(folder)["trainable_parameters"] == locked


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_locked_image_encoder_runs_in_evaluation_mode_without_activations(small_model, checkpointing):
    lock_image_tower(small_model)
    small_model.train()
    if checkpointing:  # makes the patch embeddings require gradients
        small_model.gradient_checkpointing_enable({"use_reentrant": False})
    assert not small_model.vision_model(torch.randn(2, 3, 32, 32)).pooler_output.requires_grad
    assert not any(module.training for module in small_model.vision_model.modules())
    assert small_model.text_model.layers[0].training and torch.is_grad_enabled()
    assert small_model.get_image_features(torch.randn(2, 3, 32, 32)).pooler_output.requires_grad
    with pytest.raises(ValueError, match="the model expects 32 x 32"):
        small_model.vision_model(torch.randn(2, 3, 16, 16))
    assert torch.is_grad_enabled()


def test_gradients_with_a_locked_encoder_equal_those_with_a_frozen_one(small_model):
    frozen = copy.deepcopy(small_model)
    frozen.vision_model.requires_grad_(False)
    lock_image_tower(small_model)
    locked = copy.deepcopy(small_model)
    inputs = {"pixel_values": torch.randn(4, 3, 32, 32), "input_ids": torch.randint(5, 120, (4, 9))}
    for model in (frozen, locked):
        model(**inputs, return_loss=True).loss.backward()
    expected = {name: parameter.grad for name, parameter in frozen.named_parameters()}
    for name, parameter in locked.named_parameters():
        assert (parameter.grad is None) == (expected[name] is None) == name.startswith("vision_model."), name
        assert parameter.grad is None or torch.equal(parameter.grad, expected[name])


def small_clip() -> CLIPModel:
    vision = TOWER | {"image_size": 32, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=TOWER | {"vocab_size": 64}, vision_config=vision, projection_dim=16))


def test_the_image_encoder_of_clip_can_be_locked():
    model = set_up_model(small_clip(), ModelOptions(model_name_or_path="clip", lock_image_tower=True))
    trained = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"image projection", "text encoder", "text projection", "logit scale"}


def test_parameters_of_an_adapter_belong_to_the_part_that_they_adapt(small_model):
    model = add_adapter(small_model, AdapterOptions(lora_rank=2))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {part_of(name) for name in names} == {"image encoder", "text encoder", "text projection"}


# Errors


def test_options_of_our_model_are_refused_for_others():
    for options in ({"image_size": 48}, {"patch_dropout": 0.5}):
        with pytest.raises(ValueError, match="requires a BiomedCLIPModel, not a CLIPModel"):
            set_up_model(small_clip(), ModelOptions(model_name_or_path="clip", **options))


@pytest.mark.parametrize(
    ("status", "options", "message"),
    [
        (2, {"lora_rank": 2, "image_size": 48}, "--image-size cannot be combined with --lora-rank"),
        (2, {"lora_rank": 2, "lock_image_tower": "true"}, "--lock-image-tower cannot be combined with --lora-rank"),
        (2, {"patch_dropout": 1}, "--patch-dropout must be at least 0 and less than 1"),
        (2, {"mini_batch_size": 17}, "is larger than the batch of a process"),
        (2, {"max_eval_pairs": 5}, "--max-eval-pairs has no effect without evaluation"),
        (2, {"per_device_train_batch_size": 4}, "both set the batch size"),
        (2, {"train_data": None}, "--train-data is missing"),
        (1, {"image_size": 50}, "must be a multiple of patch_size"),
        (1, {"licenses": "CC BY-ND"}, "no pair under CC BY-ND"),
        (1, {"panels": "only"}, "has no column 'compound', by which rows are selected. Build the dataset with panels"),
        (2, {"image_types": "pets"}, "'pets' is neither a type nor a group of images"),
    ],
)
def test_invalid_options_are_errors(status, options, message, base, tmp_path, capsys):
    assert message in train_error(capsys, tmp_path / "run", status, **base | options)
