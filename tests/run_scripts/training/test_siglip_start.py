"""The recipe of the SigLIP loss with each kind of initial model."""

import math

import pytest
import torch
from helpers.commands import losses
from helpers.training_runs import train, train_error
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from biomedclip import BiomedCLIPModel


TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = TOWER | {"vocab_size": 128, "max_position_embeddings": 64}
VISION = TOWER | {"image_size": 32, "patch_size": 8}
RANDOM = {"projection_dim": 16, "vision_config": VISION, "text_config": TOWER | {"max_position_embeddings": 64}}
# Options of the recipe that need a GPU or many steps.
SMALL = {"config": "siglip", "max_length": 32, "bf16": "false", "gradient_checkpointing": "false", "warmup_steps": 0}
SMALL |= {"dataloader_num_workers": 0, "learning_rate": 1e-3, "lr_scheduler_type": "constant"}


@pytest.fixture(scope="module")
def starts(tmp_path_factory, small_checkpoint) -> dict[str, dict]:
    """Options of each kind of initial model."""
    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    ViTModel(ViTConfig(**VISION)).save_pretrained(folder / "vit")
    BertModel(BertConfig(**TOWER, vocab_size=64, max_position_embeddings=64)).save_pretrained(folder / "bert")
    words = ["caption 0 1 2 3 4 5 6 7 8 9 ."]
    tokenizer = BertTokenizer(model_max_length=64).train_new_from_iterator(words, 64, show_progress=False)
    tokenizer.save_pretrained(folder / "bert")
    random_text = {name: value for name, value in RANDOM.items() if name != "vision_config"}
    return {
        "two encoders": {"vision_model": folder / "vit", "text_model": folder / "bert"},
        "one encoder": {"vision_model": folder / "vit", "model_config": random_text},
        "random": {"model_config": RANDOM},
        "checkpoint": {"model_name_or_path": small_checkpoint},
    }


@pytest.fixture
def run(shards, tmp_path):
    """Train with the recipe for two steps."""
    return lambda **options: train(tmp_path / "run", train_data=shards, **SMALL, **options)


@pytest.mark.parametrize("start", ["two encoders", "one encoder", "random", "checkpoint"])
def test_each_initial_model_gets_bias_and_temperature_of_siglip_and_trains_both(start, run, starts):
    model = BiomedCLIPModel.from_pretrained(run(**starts[start]))
    assert model.config.logit_bias_init_value == -10.0
    assert model.config.logit_scale_init_value == pytest.approx(math.log(10))
    for name, value in {"logit_bias": -10.0, "logit_scale": math.log(10)}.items():
        # Two steps of Adam, each about as long as the learning rate.
        assert 0 < abs(getattr(model, name).item() - value) < 2.5e-3, name


def test_a_bias_is_added_with_a_warning_and_negative_pairs_do_not_dominate(run, starts, caplog):
    # Logits are at most 0, so only the positive pair costs something. With InfoNCE's temperature and no bias, the 16
    # pairs of a row would cost at least 16 log 2.
    assert losses(run(**starts["checkpoint"]))[0] < 16 * math.log(2)
    assert "has no logit_bias" in caplog.text and "logit_scale is reset" in caplog.text


def test_a_checkpoint_with_a_bias_keeps_it_with_its_temperature(run, small_model, small_processor, tmp_path):
    small_model.start_logit_bias(-4.0, 3.0)
    small_model.save_pretrained(tmp_path / "base")
    small_processor.save_pretrained(tmp_path / "base")
    model = AutoModel.from_pretrained(run(model_name_or_path=tmp_path / "base"))
    assert model.logit_bias.item() == pytest.approx(-4, abs=2.5e-3)
    assert model.logit_scale.item() == pytest.approx(3, abs=2.5e-3)


def test_a_bias_in_the_configuration_of_the_user_is_kept(run):
    folder = run(model_config=RANDOM | {"logit_bias_init_value": -3.0})
    assert BiomedCLIPModel.from_pretrained(folder).config.logit_bias_init_value == -3


def test_a_checkpoint_of_siglip_needs_no_change(run, small_processor, tmp_path):
    config = SiglipConfig(text_config=TEXT | {"projection_size": 32}, vision_config=VISION)
    SiglipModel(config).save_pretrained(tmp_path / "base")
    small_processor.save_pretrained(tmp_path / "base")
    assert AutoModel.from_pretrained(run(model_name_or_path=tmp_path / "base")).logit_bias.shape == (1,)


def test_a_model_that_does_not_support_a_bias_is_an_error(shards, small_processor, tmp_path, capsys):
    CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)).save_pretrained(tmp_path / "clip")
    small_processor.save_pretrained(tmp_path / "clip")
    options = SMALL | {"train_data": shards, "model_name_or_path": tmp_path / "clip"}
    assert "which CLIPModel does not support" in train_error(capsys, tmp_path / "run", 1, **options)


@pytest.mark.parametrize("dry_run", ["true", "false"])
def test_an_adapter_cannot_add_a_bias(dry_run, shards, small_checkpoint, tmp_path, capsys):
    options = SMALL | {"train_data": shards, "model_name_or_path": small_checkpoint, "lora_rank": 2}
    assert "cannot add one" in train_error(capsys, tmp_path / "run", 1, **options, dry_run=dry_run)
