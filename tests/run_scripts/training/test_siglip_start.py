"""The recipe of SigLIP's loss on a set of one's own, whatever it starts from, through the command."""

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.commands import losses
from helpers.pair_shards import write_shards
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from biomedclip import BiomedCLIPModel
from biomedclip.run_scripts.main import main


TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
# What the published recipe asks of a GPU, and more of the machine than a test has.
SMALL = ["--batch-size", "16", "--max-steps", "2", "--logging-steps", "1", "--bf16", "false", "--warmup-steps", "0"]
SMALL += ["--gradient-checkpointing", "false", "--dataloader-num-workers", "0", "--save-strategy", "no"]
SMALL += ["--eval-strategy", "no", "--report-to", "none", "--learning-rate", "1e-3", "--lr-scheduler-type", "constant"]
AT_FIRST = {"logit_bias": -10.0, "logit_scale": math.log(10)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), image_size=(40, 30))


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> dict[str, str]:
    """A ViT and a BERT, as saved by transformers, and a tokenizer beside the latter."""
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    ViTModel(ViTConfig(**TOWER, image_size=32, patch_size=8)).save_pretrained(folder / "vit")
    BertModel(BertConfig(**TOWER, vocab_size=64, max_position_embeddings=64)).save_pretrained(folder / "bert")
    tokenizer = BertTokenizer(model_max_length=64)
    tokenizer.train_new_from_iterator(["caption 0 1 2 3 4 5 6 7 8 9 ."], 64, show_progress=False).save_pretrained(
        folder / "bert"
    )
    return {"vision": str(folder / "vit"), "text": str(folder / "bert")}


@pytest.fixture
def run(shards, tmp_path):
    """Trains by the recipe for two steps; returns the folder of the run."""

    def run(*options: str) -> Path:
        folder = tmp_path / "run"
        arguments = ["--config", "siglip", "--train-data", str(shards), *SMALL, "--max-length", "32"]
        assert main(["train", *arguments, "--output-dir", str(folder), *options]) == 0
        return folder

    return run


def starts(towers: dict[str, str], checkpoint: Path) -> dict[str, list[str]]:
    drawn = {
        "projection_dim": 16,
        "vision_config": TOWER | {"image_size": 32, "patch_size": 8},
        "text_config": TOWER | {"max_position_embeddings": 64},
    }
    text_alone = {name: value for name, value in drawn.items() if name != "vision_config"}
    return {
        "two towers": ["--vision-model", towers["vision"], "--text-model", towers["text"]],
        "one tower": ["--vision-model", towers["vision"], "--model-config", json.dumps(text_alone)],
        "drawn": ["--model-config", json.dumps(drawn)],
        "checkpoint": ["--model-name-or-path", str(checkpoint)],
    }


@pytest.mark.parametrize("start", ["two towers", "one tower", "drawn", "checkpoint"])
def test_any_start_gets_the_bias_and_temperature_of_siglip_and_trains_both(start, run, towers, small_checkpoint):
    model = BiomedCLIPModel.from_pretrained(run(*starts(towers, small_checkpoint)[start]))
    config = model.config
    assert config.logit_bias_init_value == -10.0
    assert config.logit_scale_init_value == pytest.approx(math.log(10))
    for name, value in AT_FIRST.items():
        # Two steps of Adam, each about as long as the learning rate.
        assert 0 < abs(getattr(model, name).item() - value) < 2.5e-3, name


def test_at_the_start_the_wrong_pairs_do_not_outweigh_the_right_ones(run, small_checkpoint):
    # -10 plus at most 10: nothing but the right pair, of 16, is to be paid for. InfoNCE's temperature alone would cost
    # 16 x log 2 at least.
    first = losses(run("--model-name-or-path", str(small_checkpoint)))[0]
    assert first < 16 * math.log(2)


def test_a_checkpoint_that_is_given_a_bias_is_told_of_by_a_warning(run, small_checkpoint, caplog):
    run("--model-name-or-path", str(small_checkpoint))
    assert "has no logit_bias" in caplog.text and "temperature starts afresh" in caplog.text


def test_a_checkpoint_with_a_bias_keeps_it_and_its_temperature(run, small_model, small_processor, tmp_path):
    small_model.start_logit_bias(-4.0, 3.0)
    small_model.save_pretrained(tmp_path / "base")
    small_processor.save_pretrained(tmp_path / "base")
    model = AutoModel.from_pretrained(run("--model-name-or-path", str(tmp_path / "base")))
    assert model.logit_bias.item() == pytest.approx(-4, abs=2.5e-3)
    assert model.logit_scale.item() == pytest.approx(3, abs=2.5e-3)


def test_fields_of_the_users_own_win(run, small_checkpoint, towers):
    drawn = json.loads(starts(towers, small_checkpoint)["drawn"][1]) | {"logit_bias_init_value": -3.0}
    assert BiomedCLIPModel.from_pretrained(run("--model-config", json.dumps(drawn))).config.logit_bias_init_value == -3


def test_siglips_own_checkpoint_needs_nothing(run, small_processor, tmp_path):
    text = TOWER | {"vocab_size": 128, "max_position_embeddings": 64, "projection_size": 32}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=TOWER | {"image_size": 32, "patch_size": 8}))
    model.save_pretrained(tmp_path / "base")
    small_processor.save_pretrained(tmp_path / "base")
    assert AutoModel.from_pretrained(run("--model-name-or-path", str(tmp_path / "base"))).logit_bias.shape == (1,)


def refusal(capsys, shards, tmp_path, *options: str) -> str:
    arguments = ["--config", "siglip", "--train-data", str(shards), *SMALL, "--output-dir", str(tmp_path / "run")]
    assert main(["train", *arguments, *options]) == 1
    return capsys.readouterr().err


def test_a_model_without_a_place_for_a_bias_is_refused(shards, small_processor, tmp_path, capsys):
    text = TOWER | {"vocab_size": 128}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=TOWER | {"image_size": 32, "patch_size": 8}, projection_dim=16)
    ).save_pretrained(tmp_path / "clip")
    small_processor.save_pretrained(tmp_path / "clip")
    message = refusal(capsys, shards, tmp_path, "--model-name-or-path", str(tmp_path / "clip"))
    assert "for which CLIPModel has no place" in message


@pytest.mark.parametrize("dry", [True, False])
def test_an_adapter_cannot_bring_a_bias(dry, shards, small_checkpoint, tmp_path, capsys):
    options = ["--model-name-or-path", str(small_checkpoint), "--lora-rank", "2", *(["--dry-run"] if dry else [])]
    assert "cannot bring one" in refusal(capsys, shards, tmp_path, *options)
