"""What the options of `biomedclip train` do to pairs, images and towers, through the command."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.commands import losses
from helpers.pair_shards import LICENSES, pair_row, write_shards
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel, TrainingArguments

from biomedclip import ContrastiveTrainingArguments
from biomedclip.run_scripts.evaluation.pools import draw_pool
from biomedclip.run_scripts.main import main
from biomedclip.run_scripts.train import PairHandling, _validation_pairs, train
from biomedclip.run_scripts.training.adapters import AdapterOptions, add_adapter
from biomedclip.run_scripts.training.models import ModelOptions, set_up_model
from biomedclip.run_scripts.training.runs import set_batch_size
from biomedclip.run_scripts.training.towers import lock_image_tower, part_of


SHORT = ["--max-steps", "2", "--logging-steps", "1", "--batch-size", "16", "--save-strategy", "no", "--report-to"]
SHORT += ["none", "--learning-rate", "1e-2", "--lr-scheduler-type", "constant"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """150 pairs under five licences, with mentions."""
    return write_shards(tmp_path_factory.mktemp("shards"), image_size=(40, 30))


@pytest.fixture
def run(small_checkpoint, shards, tmp_path):
    """Trains the small checkpoint for two steps with further options; returns the folder of the run."""

    def run(name: str, *options: str) -> Path:
        arguments = ["--model-name-or-path", str(small_checkpoint), "--train-data", str(shards), *SHORT]
        assert main(["train", *arguments, "--output-dir", str(tmp_path / name), *options]) == 0
        return tmp_path / name

    return run


def error_of(capsys, *options: str, status: int = 2) -> str:
    assert main(["train", *options]) == status
    return capsys.readouterr().err


def test_the_batch_is_that_of_all_devices(run):
    assert json.loads((run("batch") / "train_results.json").read_text())["batch_size"] == 16


@pytest.mark.parametrize(("devices", "share"), [(1, 48), (3, 16), (16, 3)])
def test_devices_share_the_batch_evenly(devices, share, tmp_path):
    args = TrainingArguments(str(tmp_path), per_device_train_batch_size=5, use_cpu=True)
    set_batch_size(args, 48, devices)
    assert args.per_device_train_batch_size == share
    set_batch_size(args, None, devices)
    assert args.per_device_train_batch_size == share, "nothing is said, nothing is changed"
    with pytest.raises(ValueError, match="--batch-size 50 cannot be shared evenly by 16 devices. Choose a multiple"):
        set_batch_size(args, 50, 16)


@pytest.fixture
def trained_stream(small_checkpoint, shards, tmp_path):
    """The training pairs of a run whose handling is given."""

    def of(**handling):
        args = ContrastiveTrainingArguments(
            str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=8, use_cpu=True, report_to="none"
        )
        args.save_strategy = "no"
        trainer, _ = train(
            str(shards), PairHandling(**handling), ModelOptions(model_name_or_path=str(small_checkpoint)), args
        )
        return trainer.pair_stream

    return of


def test_only_pairs_of_the_licences_are_trained_on(trained_stream):
    stream = trained_stream(licenses="commercial")
    ids = {row["pair_id"] for row in stream.rows(0, 0, len(stream))}
    assert {"CC BY", "CC0"} <= set(LICENSES)
    assert ids == {row["pair_id"] for row in map(pair_row, range(150)) if row["license"] in ("CC BY", "CC0")}


@pytest.mark.parametrize("fast", [False, True])
def test_fast_decoding_is_for_training_alone(small_checkpoint, shards, tmp_path, fast):
    args = ContrastiveTrainingArguments(
        str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=8, use_cpu=True, report_to="none"
    )
    args.save_strategy = "no"
    model = ModelOptions(model_name_or_path=str(small_checkpoint))
    trainer, _ = train(str(shards), PairHandling(fast_decode=fast), model, args)
    assert trainer.data_collator.fast_decode == fast and not trainer.eval_data_collator.fast_decode


def test_a_large_validation_split_is_sampled_alike_whatever_the_seed_of_the_run(shards, tmp_path):
    folder = write_shards(tmp_path / "set", shards=2, split="validation")
    chosen = _validation_pairs(str(folder), 20)["pair_id"]
    assert list(chosen) == [pair_row(row)["pair_id"] for row in draw_pool(50, 20, seed=0)]
    assert list(chosen) != [pair_row(row)["pair_id"] for row in range(20)], "not the first ones"
    assert len(_validation_pairs(str(folder), 50)) == len(_validation_pairs(str(folder), 51)) == 50


def test_a_run_that_evaluates_each_epoch_keeps_its_best_checkpoint_and_resumes(small_checkpoint, tmp_path):
    """The options of the recipe `biomedclip`: evaluation at each epoch, checkpoints at other steps."""
    folder = write_shards(tmp_path / "set", shards=2, image_size=(40, 30))  # three steps of 16 pairs
    write_shards(folder, shards=1, split="validation", image_size=(40, 30))
    arguments = ["train", "--model-name-or-path", str(small_checkpoint), "--train-data", str(folder), "--report-to"]
    arguments += ["none", "--batch-size", "16", "--num-train-epochs", "2", "--eval-strategy", "epoch"]
    arguments += ["--max-eval-pairs", "10", "--output-dir", str(tmp_path / "run")]

    def evaluated(name: str) -> list[int]:
        state = json.loads((tmp_path / name / "trainer_state.json").read_text())
        return [entry["step"] for entry in state["log_history"] if "eval_loss" in entry]

    assert main([*arguments, "--save-steps", "4"]) == 0
    assert evaluated("run") == [3, 6]
    assert json.loads((tmp_path / "run" / "train_results.json").read_text())["validation_pairs"] == 10
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    assert main([*arguments, "--save-steps", "4", "--resume-from-checkpoint", "true"]) == 0
    assert evaluated("run") == [3, 6]
    best = ["--save-strategy", "epoch", "--load-best-model-at-end", "--output-dir", str(tmp_path / "best")]
    assert main([*arguments, *best]) == 0
    state = json.loads((tmp_path / "best" / "trainer_state.json").read_text())
    assert Path(state["best_model_checkpoint"]).name in ("checkpoint-3", "checkpoint-6")


@pytest.mark.parametrize("text", ["mentions", "caption_and_mentions"])
def test_the_text_is_what_is_asked_for(trained_stream, text):
    stream = trained_stream(text=text)
    cited = [row for row in stream.rows(0, 0, 150) if pair_row(int(row["pair_id"][3:-8]))["mentions"]]
    assert len(cited) > 50
    for row in cited:
        assert "Mention" in row["caption"] and ("Caption" in row["caption"]) == (text == "caption_and_mentions")


def test_a_vocabulary_is_learned_from_the_texts_that_are_trained_on(shards, tmp_path):
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = {"vision_config": tower | {"image_size": 32, "patch_size": 8}, "text_config": tower, "projection_dim": 8}
    words = {}
    for text in ("caption", "mentions"):
        options = ["--model-config", json.dumps(model), "--train-data", str(shards), *SHORT, "--text", text]
        assert main(["train", *options, "--output-dir", str(tmp_path / text)]) == 0
        words[text] = set(AutoProcessor.from_pretrained(tmp_path / text).tokenizer.get_vocab())
    assert "mention" in words["mentions"] and "mention" not in words["caption"]


def test_another_image_size_reaches_pixels_and_positions(run, small_checkpoint):
    folder = run("larger", "--image-size", "48")
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert model.config.vision_config.image_size == 48
    assert model.vision_model.embeddings.position_embedding.shape[1] == 37
    assert processor.image_processor.crop_size["height"] == 48
    assert processor.image_processor.size["shortest_edge"] == 48
    assert AutoModel.from_pretrained(small_checkpoint).config.vision_config.image_size == 32, "the base is untouched"


def test_patch_dropout_trains_on_other_tokens_and_stays_in_the_checkpoint(run):
    whole, dropped, none = run("whole"), run("dropped", "--patch-dropout", "0.5"), run("none", "--patch-dropout", "0")
    assert losses(whole) == losses(none) != losses(dropped)
    assert AutoModel.from_pretrained(dropped).config.vision_config.patch_dropout == 0.5


def test_a_locked_image_tower_stays_what_it_was_while_its_projection_learns(run, small_checkpoint):
    before = AutoModel.from_pretrained(small_checkpoint).state_dict()
    folder = run("locked", "--lock-image-tower", "true")
    after = AutoModel.from_pretrained(folder).state_dict()
    changed = {part_of(name) for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"image projection", "text tower", "text projection", "temperature"}
    locked = sum(value.numel() for name, value in after.items() if name.startswith("vision_model."))
    results = json.loads((folder / "train_results.json").read_text())
    assert results["parameters"] - results["trainable_parameters"] == locked


def test_the_whole_model_in_training_leaves_a_locked_tower_in_evaluation(small_model):
    lock_image_tower(small_model)
    small_model.train()
    assert small_model.text_model.training and small_model.text_model.layers[0].training
    assert not any(module.training for module in small_model.vision_model.modules())
    assert small_model.visual_projection.weight.requires_grad


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_locked_tower_keeps_nothing_for_a_backward_pass(small_model, checkpointing):
    lock_image_tower(small_model)
    small_model.train()
    if checkpointing:  # which makes what leaves the patch embedding require gradients
        small_model.gradient_checkpointing_enable({"use_reentrant": False})
    assert not small_model.vision_model(torch.randn(2, 3, 32, 32)).pooler_output.requires_grad
    assert small_model.get_image_features(torch.randn(2, 3, 32, 32)).pooler_output.requires_grad


def test_what_is_not_locked_learns_as_beside_a_frozen_tower(small_model):
    frozen = copy.deepcopy(small_model)
    frozen.vision_model.requires_grad_(False)
    lock_image_tower(small_model)
    locked = copy.deepcopy(small_model)  # bound to the copy, not to the model it was copied from
    del small_model
    inputs = {"pixel_values": torch.randn(4, 3, 32, 32), "input_ids": torch.randint(5, 120, (4, 9))}
    for model in (frozen, locked):
        model(**inputs, return_loss=True).loss.backward()
    expected = {name: parameter.grad for name, parameter in frozen.named_parameters()}
    for name, parameter in locked.named_parameters():
        assert (parameter.grad is None) == (expected[name] is None) == name.startswith("vision_model."), name
        assert parameter.grad is None or torch.equal(parameter.grad, expected[name])
    assert locked.vision_model.forward.__self__ is locked.vision_model


def small_clip() -> CLIPModel:
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = text | {"image_size": 32, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text | {"vocab_size": 64}, vision_config=vision, projection_dim=16))


def test_the_tower_of_clip_is_locked_too():
    model = set_up_model(small_clip(), ModelOptions(model_name_or_path="clip", lock_image_tower=True))
    trained = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"image projection", "text tower", "text projection", "temperature"}


@pytest.mark.parametrize("options", [{"image_size": 48}, {"patch_dropout": 0.5}])
def test_what_only_our_model_has_is_refused_for_others(options):
    with pytest.raises(ValueError, match="is for a BiomedCLIPModel, not for a CLIPModel"):
        set_up_model(small_clip(), ModelOptions(model_name_or_path="clip", **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora-rank", "2", "--image-size", "48"], "--image-size changes the base of an adapter"),
        (["--lora-rank", "2", "--lock-image-tower", "true"], "with --lora-rank all of the base is frozen"),
        (["--patch-dropout", "1"], "--patch-dropout must be at least 0 and less than 1"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message, small_checkpoint, shards, tmp_path, capsys):
    base = ["--model-name-or-path", str(small_checkpoint), "--train-data", str(shards), *SHORT]
    assert message in error_of(capsys, *base, "--output-dir", str(tmp_path / "run"), *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image-size", "50"], "must be a multiple of patch_size"),
        (["--licenses", "CC BY-ND"], "no pair under CC BY-ND"),
    ],
)
def test_options_that_do_not_fit_model_or_data_fail(options, message, small_checkpoint, shards, tmp_path, capsys):
    base = ["--model-name-or-path", str(small_checkpoint), "--train-data", str(shards), *SHORT]
    assert message in error_of(capsys, *base, "--output-dir", str(tmp_path / "run"), *options, status=1)


def test_a_run_without_data_says_what_is_missing(capsys, tmp_path):
    assert "--train-data is missing" in error_of(capsys, "--output-dir", str(tmp_path / "run"))


def test_an_adapter_of_a_tower_belongs_to_it(small_model):
    model = add_adapter(small_model, AdapterOptions(lora_rank=2))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {part_of(name) for name in names} == {
        "image tower",
        "text tower",
        "text projection",
    }
