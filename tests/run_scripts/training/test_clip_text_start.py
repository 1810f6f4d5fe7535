"""The recipe of the paper's GPT row: a text tower of CLIP's shape with random weights beside a ViT, by the command."""

import json
import string
from pathlib import Path

import pytest
import torch
import yaml
from helpers.commands import losses
from helpers.pair_shards import write_shards
from transformers import AutoModel, AutoProcessor, CLIPTextConfig, CLIPTokenizer, ViTConfig, ViTModel

from biomedclip import BiomedCLIPForVisualQuestionAnswering, BiomedCLIPTextModel
from biomedclip.run_scripts.main import main


TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {"model_type": "clip_text_model", "hidden_act": "gelu", "max_position_embeddings": 24} | TOWER
# Less than a GPU has; everything else is the recipe's.
SMALL = {"batch_size": 16, "bf16": False, "dataloader_num_workers": 0, "logging_steps": 1, "warmup_steps": 1}
SMALL |= {"eval_strategy": "no", "report_to": "none", "max_length": 24, "use_cpu": True}


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """Pairs, a ViT, a tokenizer like CLIP's, and the recipe with smaller towers."""
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


def train(start: Path, folder: Path, *options: str) -> int:
    recipe = ["--config", str(start / "small.yaml"), "--train-data", str(start)]
    return main(["train", *recipe, "--output-dir", str(folder), *options])


@pytest.fixture(scope="module")
def run(start, tmp_path_factory) -> Path:
    """Four steps, with a checkpoint after two."""
    folder = tmp_path_factory.mktemp("run")
    assert train(start, folder, "--max-steps", "4", "--save-steps", "2") == 0
    return folder


def test_the_trained_model_loads_with_both_towers(start, run):
    model, processor = AutoModel.from_pretrained(run), AutoProcessor.from_pretrained(run)
    assert isinstance(model.config.text_config, CLIPTextConfig)
    assert model.config.text_config.eos_token_id == processor.tokenizer.eos_token_id
    assert model.config.vision_config.layer_norm_eps == 1e-6 and processor.tokenizer.model_max_length == 24
    # The image tower has come from the checkpoint, and the text tower has moved away from its random weights.
    vit = ViTModel.from_pretrained(start / "vit").embeddings.patch_embeddings.projection.weight
    torch.testing.assert_close(model.vision_model.embeddings.patch_embedding.weight, vit, atol=5e-3, rtol=0)
    assert len(set(losses(run))) == 4
    # The end of a text is pooled, and what follows it does not count.
    alone = processor(text=["caption 3 of figure"], return_tensors="pt")
    padded = processor(text=["caption 3 of figure", "caption 3 of figure 4 5 6 7"], return_tensors="pt")
    embeds = [model.get_text_features(**inputs).pooler_output for inputs in (alone, padded)]
    torch.testing.assert_close(embeds[0][0], embeds[1][0])
    assert (embeds[1][0] - embeds[1][1]).abs().max() > 1e-3


def test_a_resumed_run_ends_with_the_weights_of_the_whole_one(start, run, tmp_path):
    whole = AutoModel.from_pretrained(run).state_dict()
    checkpoint = str(run / "checkpoint-2")
    assert train(start, tmp_path / "again", "--max-steps", "4", "--resume-from-checkpoint", checkpoint) == 0
    resumed = AutoModel.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_the_trained_model_is_evaluated_by_the_command(start, run, tmp_path):
    data = ["--model", str(run), "--data", str(start), "--output-dir", str(tmp_path / "results")]
    assert main(["evaluate", "retrieval", *data]) == 0
    assert (tmp_path / "results" / "results.json").is_file()


def test_the_card_names_the_kind_of_the_text_tower(run):
    assert main(["card", str(run)]) == 0
    assert "a text tower (CLIP's, with a causal mask)" in (run / "README.md").read_text()


def test_what_needs_a_bert_text_tower_is_refused_by_name(run):
    for model_class in (BiomedCLIPTextModel, BiomedCLIPForVisualQuestionAnswering):
        with pytest.raises(ValueError, match="clip_text_model"):
            model_class.from_pretrained(run)


@pytest.mark.parametrize(
    ("config", "tokenizer", "message"),
    [
        (TEXT, None, "needs --tokenizer"),
        (TEXT, "bert", "texts must end with an eos_token"),
        (TEXT | {"model_type": "gpt2"}, "clip", "Choose one of biomedclip_text_model, clip_text_model"),
        (TEXT | {"hidden_dropout": 0.1}, "clip", "hidden_dropout: not a field of CLIPTextConfig"),
    ],
)
def test_a_text_tower_that_cannot_be_made_is_refused(
    config, tokenizer, message, start, small_processor, tmp_path, capsys
):
    small_processor.tokenizer.save_pretrained(tmp_path / "bert")
    folders = {"bert": tmp_path / "bert", "clip": start / "tokenizer"}
    options = ["--train-data", str(start), "--model-config", json.dumps({"text_config": config})]
    options += ["--tokenizer", str(folders[tokenizer])] if tokenizer else []
    assert main(["train", *options, "--output-dir", str(tmp_path / "run"), "--max-steps", "1"]) != 0
    assert message in " ".join(capsys.readouterr().err.split())
