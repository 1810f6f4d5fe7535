"""The recipe of the paper's GPT row: CLIP's text encoder with random weights and a ViT."""

import string
from pathlib import Path

import pytest
import torch
import yaml
from helpers.commands import losses
from helpers.pair_shards import write_shards
from helpers.training_runs import assert_equal_runs, train, train_error
from transformers import AutoModel, AutoProcessor, CLIPTextConfig, CLIPTokenizer, ViTConfig, ViTModel

from biomedclip import BiomedCLIPForVisualQuestionAnswering, BiomedCLIPTextModel
from biomedclip.run_scripts.main import main


TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {"model_type": "clip_text_model", "hidden_act": "gelu", "max_position_embeddings": 24} | TOWER
# Options of the recipe that need a GPU or many steps.
SMALL = {"bf16": False, "dataloader_num_workers": 0, "warmup_steps": 1, "max_length": 24, "use_cpu": True}


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """Pairs, a ViT, a tokenizer like that of CLIP, and the recipe with smaller encoders."""
    folder = tmp_path_factory.mktemp("start")
    write_shards(folder, image_size=(40, 30))
    write_shards(folder, image_size=(40, 30), split="test", shards=1)
    torch.manual_seed(0)
    ViTModel(ViTConfig(**TOWER, image_size=32, patch_size=8)).save_pretrained(folder / "vit")
    words = [" ".join([*string.printable, "caption mention of figure"])] * 2
    tokenizer = CLIPTokenizer(model_max_length=24).train_new_from_iterator(words, 600, show_progress=False)
    tokenizer.save_pretrained(folder / "tokenizer")
    config = {"projection_dim": 16, "text_config": TEXT | {"vocab_size": len(tokenizer)}}
    options = {"vision_model": str(folder / "vit"), "tokenizer": str(folder / "tokenizer"), "model_config": config}
    recipe = {"base": "gpt_77_8_epochs", "train": options | SMALL}
    (folder / "small.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def options(start) -> dict:
    """Options of a run of four steps, with a checkpoint after two."""
    options = {"config": start / "small.yaml", "train_data": start, "max_steps": 4}
    return options | {"save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def run(options, tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("run"), **options)


def test_the_trained_model_loads_with_both_encoders(start, run):
    model, processor = AutoModel.from_pretrained(run), AutoProcessor.from_pretrained(run)
    assert isinstance(model.config.text_config, CLIPTextConfig)
    assert model.config.text_config.eos_token_id == processor.tokenizer.eos_token_id
    assert model.config.vision_config.layer_norm_eps == 1e-6 and processor.tokenizer.model_max_length == 24
    # The image encoder starts from the checkpoint.
    vit = ViTModel.from_pretrained(start / "vit").embeddings.patch_embeddings.projection.weight
    torch.testing.assert_close(model.vision_model.embeddings.patch_embedding.weight, vit, atol=5e-3, rtol=0)
    assert len(set(losses(run))) == 4
    # The end of a text is pooled, and padding has no effect.
    alone = processor(text=["caption 3 of figure"], return_tensors="pt")
    padded = processor(text=["caption 3 of figure", "caption 3 of figure 4 5 6 7"], return_tensors="pt")
    embeds = [model.get_text_features(**inputs).pooler_output for inputs in (alone, padded)]
    torch.testing.assert_close(embeds[0][0], embeds[1][0])
    assert (embeds[1][0] - embeds[1][1]).abs().max() > 1e-3


def test_a_resumed_run_equals_an_uninterrupted_one(options, run, tmp_path):
    resumed = train(tmp_path / "again", **options, resume_from_checkpoint=run / "checkpoint-2")
    assert_equal_runs(resumed, run)


def test_the_trained_model_is_evaluated_and_described(start, run, tmp_path):
    data = ["--model", str(run), "--data", str(start), "--output-dir", str(tmp_path / "results")]
    assert main(["evaluate", "retrieval", *data]) == 0
    assert (tmp_path / "results" / "results.json").is_file()
    assert main(["card", str(run)]) == 0
    assert "CLIP" in (run / "README.md").read_text()


@pytest.mark.parametrize("model_class", [BiomedCLIPTextModel, BiomedCLIPForVisualQuestionAnswering])
def test_models_with_a_bert_text_encoder_do_not_load_it(run, model_class):
    with pytest.raises(ValueError, match="clip_text_model"):
        model_class.from_pretrained(run)


@pytest.mark.parametrize(
    ("status", "config", "tokenizer", "message"),
    [
        (2, TEXT, None, "requires --tokenizer"),
        (1, TEXT, "bert", "must add an eos_token"),
        (1, TEXT | {"model_type": "gpt2"}, "clip", "biomedclip_text_model, clip_text_model"),
        (1, TEXT | {"hidden_dropout": 0.1}, "clip", "CLIPTextConfig has no field hidden_dropout"),
    ],
)
def test_invalid_text_encoders_are_errors(status, config, tokenizer, message, start, small_processor, tmp_path, capsys):
    small_processor.tokenizer.save_pretrained(tmp_path / "bert")
    folders = {"bert": tmp_path / "bert", "clip": start / "tokenizer", None: None}
    options = {"train_data": start, "model_config": {"text_config": config}, "tokenizer": folders[tokenizer]}
    assert message in train_error(capsys, tmp_path / "run", status, **options)
