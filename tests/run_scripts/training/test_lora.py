"""Contrastive fine-tuning with LoRA: what is trained, what is saved, and how it loads."""

import json
import shutil
import warnings
from pathlib import Path

import datasets
import pytest
import torch
from helpers.commands import biomedclip, losses
from helpers.training_runs import assert_equal_runs, assert_losses_of_one, command, results, train, train_error
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, pipeline

from biomedclip.run_scripts.training.adapters import AdapterOptions, add_adapter


@pytest.fixture(scope="module")
def base(small_checkpoint, tmp_path_factory) -> Path:
    """The small model with a logit scale above the bound of training."""
    folder = tmp_path_factory.mktemp("lora") / "base"
    shutil.copytree(small_checkpoint, folder)
    model = AutoModel.from_pretrained(folder)
    model.logit_scale.data.fill_(5.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def options(base, shards) -> dict:
    """Options of six steps with the recipe `lora_contrastive`."""
    options = {"config": "recipes/lora_contrastive.yaml", "model_name_or_path": base, "train_data": shards}
    options |= {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "batch_size": 32, "learning_rate": 1e-2}
    return options | {"dataloader_num_workers": 0, "lora_dropout": 0.1}


@pytest.fixture(scope="module")
def adapted(options, tmp_path_factory) -> Path:
    """A run with an adapter and the merged model."""
    return train(tmp_path_factory.mktemp("lora") / "adapted", **options, merge_adapter="true")


@pytest.fixture(scope="module")
def without_dropout(options, tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("lora") / "plain", **options | {"lora_dropout": 0})


@pytest.fixture
def inputs(base):
    image = Image.effect_mandelbrot((50, 40), (-2, -1.5, 1, 1.5), 20)
    texts = ["chest x-ray", "brain mri of article 1007"]
    return AutoProcessor.from_pretrained(base)(text=texts, images=image, return_tensors="pt", padding=True)


def logits(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs).logits_per_image


def test_the_adapter_is_saved_alone_with_its_processor(adapted, base):
    names = {path.name for path in adapted.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "processor_config.json", "tokenizer.json"} <= names
    assert not {"model.safetensors", "config.json"} & names
    card = (adapted / "README.md").read_text()
    assert "| rank | 16 |" in card and "More Information Needed" not in card and str(base.parent) not in card
    assert not list(adapted.glob("checkpoint-*/README.md")), "the template of PEFT"
    config = json.loads((adapted / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    tensors = load_file(adapted / "adapter_model.safetensors")
    assert all(".lora_A." in name or ".lora_B." in name for name in tensors)
    parts = ("vision_model.layers.1.mlp.fc2", "text_model.layers.1.self_attn.q_proj", "visual_projection")
    for part in (*parts, "text_projection.fc1"):
        trained = tensors[f"base_model.model.{part}.lora_B.weight"]
        assert trained.abs().max() > 0, f"{part} starts at zero and is trained"


def test_the_adapter_loads_with_peft_and_with_transformers(adapted, base, inputs):
    with_peft = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(adapted))
    expected = logits(with_peft, inputs)
    assert torch.equal(logits(AutoModel.from_pretrained(adapted), inputs), expected)
    assert (logits(AutoModel.from_pretrained(base), inputs) - expected).abs().max() > 1e-2


def test_the_merged_model_equals_base_and_adapter(adapted, base, inputs):
    unmerged = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(adapted)).eval()
    merged = AutoModel.from_pretrained(adapted / "merged").eval()
    assert not any("lora" in name for name in load_file(adapted / "merged" / "model.safetensors"))
    with torch.no_grad():
        ours, theirs = merged(**inputs), unmerged(**inputs)
    for name in ("image_embeds", "text_embeds"):
        # Unit vectors in float32: (W + B A) x and W x + B (A x) differ by rounding.
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-5)
    for name, weight in AutoModel.from_pretrained(base).state_dict().items():
        if name.endswith((".bias", "norm1.weight", "embeddings.weight", "logit_scale")):
            assert torch.equal(merged.state_dict()[name], weight), f"{name} has no adapter and is frozen"


def test_the_merged_model_runs_in_the_pipeline_without_peft(adapted):
    classify = pipeline("zero-shot-image-classification", model=str(adapted / "merged"), device="cpu")
    image = Image.new("RGB", (50, 40), "gray")
    answers = classify(image, candidate_labels=["chest x-ray", "brain mri"], hypothesis_template="{}")
    assert {answer["label"] for answer in answers} == {"chest x-ray", "brain mri"}
    assert not hasattr(classify.model, "peft_config")


def test_logit_scale_stays_that_of_the_base(adapted, base):
    """An adapter cannot store `logit_scale`, so it must not be trained or clamped."""
    assert AutoModel.from_pretrained(adapted / "merged").logit_scale.item() == 5.0
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model = add_adapter(AutoModel.from_pretrained(base), AdapterOptions(lora_rank=4))
    scale = model.base_model.model.logit_scale
    assert not scale.requires_grad and scale.item() == 5.0


def test_adapters_do_not_depend_on_the_peft_version_that_transformers_requires(base, tmp_path, inputs, monkeypatch):
    def refuse(min_version):
        raise ValueError(f"PEFT >= {min_version} is required.")

    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", refuse)
    model = add_adapter(AutoModel.from_pretrained(base), AdapterOptions(lora_rank=4)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(tmp_path)).eval()
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))


def test_the_results_contain_memory_and_trainable_parameters(adapted, options, tmp_path, capsys):
    found = results(adapted)
    tensors = load_file(adapted / "adapter_model.safetensors")
    assert found["trainable_parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert found["trainable_share"] == found["trainable_parameters"] / found["parameters"]
    assert 100 < found["peak_memory_mib"] < 100_000
    train(tmp_path / "one", **options | {"max_steps": 1})
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("trainable parameters", "trainable fraction", "peak memory MiB"))
    assert max(map(len, printed.splitlines())) <= 80


def test_a_resumed_run_equals_an_uninterrupted_one(adapted, options, tmp_path):
    shutil.copytree(adapted / "checkpoint-3", tmp_path / "killed" / "checkpoint-3")
    train(tmp_path / "killed", **options, resume_from_checkpoint="true")
    assert len(losses(adapted)) == 6
    assert_equal_runs(tmp_path / "killed", adapted)


def test_gradient_checkpointing_does_not_change_the_losses(options, without_dropout, tmp_path):
    folder = train(tmp_path / "run", **options | {"lora_dropout": 0, "gradient_checkpointing": "true"})
    # Float32: a kernel may round differently in its second run.
    assert losses(folder) == pytest.approx(losses(without_dropout), rel=1e-5)


@pytest.mark.slow
def test_two_processes_train_one_adapter(options, without_dropout, tmp_path):
    arguments = command(tmp_path / "two", **options | {"lora_dropout": 0, "merge_adapter": "true"})
    biomedclip(*arguments, processes=2)
    assert_losses_of_one(losses(tmp_path / "two"), losses(without_dropout))
    assert (tmp_path / "two" / "merged" / "model.safetensors").exists()


def test_the_recipe_lora_merged_changes_only_the_attention(options, base, tmp_path):
    folder = train(tmp_path / "run", **options | {"config": "lora_merged"})
    merged = load_file(folder / "merged" / "model.safetensors")
    weights = load_file(base / "model.safetensors")
    changed = {name.split(".")[-2] for name, weight in weights.items() if not torch.equal(merged[name], weight)}
    assert changed == {"q_proj", "k_proj", "v_proj", "out_proj"}


def test_pairs_of_another_source_need_only_image_and_caption(options, shards, tmp_path):
    (tmp_path / "mine").mkdir()
    for split in ("train", "validation"):
        files = str(shards / "data" / f"{split}-*.parquet")
        rows = datasets.load_dataset("parquet", data_files=files, split="train").select_columns(["image", "caption"])
        rows.to_parquet(tmp_path / "mine" / f"{split}-00000-of-00001.parquet")
    mine = {"train_data": tmp_path / "mine", "eval_strategy": "steps", "eval_steps": 6}
    assert len(losses(train(tmp_path / "run", **options | mine))) == 6


@pytest.mark.parametrize(
    ("status", "changes", "message"),
    [
        (
            1,
            {"lora_targets": ["q_proj", "query"]},
            "BiomedCLIPModel has no layer query. Its layers are fc1, fc2, k_proj",
        ),
        (2, {"lora_rank": 0}, "must be at least 1"),
        (1, {"model_name_or_path": "nowhere"}, "--model-name-or-path nowhere is neither a folder"),
        (1, {"model_name_or_path": "{adapted}"}, "is an adapter. Use its base model"),
        (2, {"config": None, "lora_rank": 4, "model_name_or_path": None}, "--lora-rank requires --model-name-or-path"),
    ],
)
def test_invalid_options_are_errors(status, changes, message, options, adapted, tmp_path, capsys):
    if changes.get("model_name_or_path") == "{adapted}":
        changes = {"model_name_or_path": adapted}
    assert message in train_error(capsys, tmp_path / "run", status, **options | changes)


def test_options_of_an_adapter_need_a_rank():
    for options in ({"lora_alpha": 8}, {"lora_dropout": 0.1}, {"lora_targets": ["fc1"]}, {"merge_adapter": True}):
        with pytest.raises(ValueError, match="need --lora-rank"):
            AdapterOptions(**options)
