"""Contrastive fine-tuning with LoRA, through the command: what is trained, what is saved, and how it loads."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from helpers.commands import losses, on_two_processes
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, pipeline

from biomedclip.run_scripts.main import main
from biomedclip.run_scripts.training.adapters import AdapterOptions, add_adapter


SHORT = ["--max-steps", "6", "--save-strategy", "steps", "--save-steps", "3", "--logging-steps", "1"]
SHORT += ["--per-device-train-batch-size", "32", "--dataloader-num-workers", "0", "--learning-rate", "1e-2"]
SHORT += ["--eval-strategy", "no", "--lora-dropout", "0.1"]


@pytest.fixture(scope="module")
def base(small_checkpoint, tmp_path_factory) -> Path:
    """The small model with a temperature beyond the bound that training keeps it in."""
    folder = tmp_path_factory.mktemp("lora") / "base"
    shutil.copytree(small_checkpoint, folder)
    model = AutoModel.from_pretrained(folder)
    model.logit_scale.data.fill_(5.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def train(base, built):
    """Runs the recipe `lora_contrastive` for six steps, with further options; returns the exit status."""

    def run(output_dir: Path, *options: str, recipe: str = "recipes/lora_contrastive.yaml") -> int:
        arguments = ["train", "--config", recipe, "--model-name-or-path", base, "--train-data", built, *SHORT]
        return main([*map(str, arguments), "--output-dir", str(output_dir), *options])

    return run


@pytest.fixture(scope="module")
def adapted(train, tmp_path_factory) -> Path:
    """What six steps leave, with the merged model."""
    folder = tmp_path_factory.mktemp("lora") / "adapted"
    assert train(folder, "--merge-adapter", "true") == 0
    return folder


@pytest.fixture
def inputs(base):
    image = Image.effect_mandelbrot((50, 40), (-2, -1.5, 1, 1.5), 20)
    return AutoProcessor.from_pretrained(base)(
        text=["chest x-ray", "brain mri of article 1007"], images=image, return_tensors="pt", padding=True
    )


def logits(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs).logits_per_image


def test_the_adapter_is_saved_alone_with_its_processor(adapted, base):
    names = {path.name for path in adapted.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "processor_config.json", "tokenizer.json"} <= names
    assert not {"model.safetensors", "config.json"} & names
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


def test_the_merged_model_answers_through_the_pipeline_without_peft(adapted, inputs):
    classify = pipeline("zero-shot-image-classification", model=str(adapted / "merged"), device="cpu")
    image = Image.new("RGB", (50, 40), "gray")
    answers = classify(image, candidate_labels=["chest x-ray", "brain mri"], hypothesis_template="{}")
    assert {answer["label"] for answer in answers} == {"chest x-ray", "brain mri"}
    assert not hasattr(classify.model, "peft_config")


def test_the_temperature_is_the_bases_own(adapted, base):
    """An adapter cannot hold `logit_scale`; were it trained, or clamped to its bound, loading would lose that."""
    assert AutoModel.from_pretrained(adapted / "merged").logit_scale.item() == 5.0
    model = add_adapter(AutoModel.from_pretrained(base), AdapterOptions(lora_rank=4))
    scale = model.base_model.model.logit_scale
    assert not scale.requires_grad and scale.item() == 5.0


def test_adapters_need_no_method_of_transformers_that_asks_for_another_peft(base, tmp_path, inputs, monkeypatch):
    def refuse(min_version):
        raise ValueError(f"PEFT >= {min_version} is needed.")

    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", refuse)
    model = add_adapter(AutoModel.from_pretrained(base), AdapterOptions(lora_rank=4)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(tmp_path)).eval()
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))


def test_adding_an_adapter_warns_of_nothing(base):
    model = AutoModel.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        add_adapter(model, AdapterOptions(lora_rank=4))


def test_the_results_hold_memory_and_trainable_share(adapted, train, tmp_path, capsys):
    results = json.loads((adapted / "train_results.json").read_text())
    tensors = load_file(adapted / "adapter_model.safetensors")
    assert results["trainable_parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert results["trainable_share"] == results["trainable_parameters"] / results["parameters"]
    assert 100 < results["peak_memory_mib"] < 100_000
    assert train(tmp_path / "one", "--max-steps", "1") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("trainable parameters", "trainable share", "peak memory MiB"))
    assert max(map(len, printed.splitlines())) <= 80


def test_a_run_that_goes_on_from_a_checkpoint_equals_an_undisturbed_one(adapted, train, tmp_path):
    # What is there after a kill between the third step and the sixth.
    shutil.copytree(adapted / "checkpoint-3", tmp_path / "killed" / "checkpoint-3")
    assert train(tmp_path / "killed", "--resume-from-checkpoint", "true") == 0
    assert len(losses(adapted)) == 6 and losses(tmp_path / "killed") == losses(adapted)
    resumed, undisturbed = (
        load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "killed", adapted)
    )
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)


def test_gradient_checkpointing_changes_no_loss(train, tmp_path):
    for folder, options in (("plain", []), ("checkpointed", ["--gradient-checkpointing", "true"])):
        assert train(tmp_path / folder, "--lora-dropout", "0", *options) == 0
    # Float32: a kernel that runs a second time may round otherwise.
    assert losses(tmp_path / "checkpointed") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


def test_two_processes_train_one_adapter(train, base, built, tmp_path):
    assert train(tmp_path / "alone", "--lora-dropout", "0") == 0
    command = [
        "-m",
        "biomedclip.run_scripts.main",
        "train",
        "--config",
        "lora_contrastive",
        "--model-name-or-path",
        base,
    ]
    command += ["--train-data", built, "--output-dir", tmp_path / "two", *SHORT, "--lora-dropout", "0"]
    on_two_processes(*command, "--per-device-train-batch-size", "16", "--merge-adapter")
    # Float32: sums over two processes in another order, and an optimizer that divides by small ones.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "alone"), rel=2e-3)
    assert losses(tmp_path / "two")[0] == pytest.approx(losses(tmp_path / "alone")[0], rel=1e-5)
    assert (tmp_path / "two" / "merged" / "model.safetensors").exists()


def test_the_recipe_for_export_leaves_a_merged_model_of_the_attention_alone(train, base, tmp_path):
    assert train(tmp_path / "run", recipe="lora_merged") == 0
    merged = load_file(tmp_path / "run" / "merged" / "model.safetensors")
    changed = {
        name.split(".")[-2]
        for name, weight in load_file(base / "model.safetensors").items()
        if not torch.equal(merged[name], weight)
    }
    assert changed == {"q_proj", "k_proj", "v_proj", "out_proj"}


def test_pairs_of_another_source_need_an_image_and_a_caption_alone(train, base, built, tmp_path):
    """Parquet that another program wrote: no `pair_id`, no card, no other column."""
    import datasets

    (tmp_path / "mine").mkdir()
    for split in ("train", "validation"):
        shards = str(built / "data" / f"{split}-*.parquet")
        rows = datasets.load_dataset("parquet", data_files=shards, split="train").select_columns(["image", "caption"])
        rows.to_parquet(tmp_path / "mine" / f"{split}-00000-of-00001.parquet")
    options = ["--train-data", str(tmp_path / "mine"), "--eval-strategy", "steps", "--eval-steps", "6"]
    assert train(tmp_path / "run", *options) == 0
    assert len(losses(tmp_path / "run")) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora-targets", "q_proj", "query"], "BiomedCLIPModel has no layer query. It has fc1, fc2, k_proj"),
        (["--lora-rank", "0"], "must be 1 or more"),
        (["--model-name-or-path", "nowhere"], "--model-name-or-path nowhere: there is no such folder"),
        (["--model-name-or-path", "{adapted}"], "is an adapter. Start from its base model"),
        (["--model-config", "{}"], "--lora-rank needs --model-name-or-path"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(options, message, train, adapted, tmp_path, capsys):
    filled = [option.replace("{adapted}", str(adapted)) for option in options]
    if "--model-config" in options:
        arguments = ["train", "--train-data", "x", "--output-dir", str(tmp_path / "run"), "--lora-rank", "4", *options]
        assert main(arguments) == 2
    else:
        assert train(tmp_path / "run", *filled) == (2 if "--lora-rank" in options else 1)
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_options_of_an_adapter_need_a_rank():
    for options in ({"lora_alpha": 8}, {"lora_dropout": 0.1}, {"lora_targets": ["fc1"]}, {"merge_adapter": True}):
        with pytest.raises(ValueError, match="need --lora-rank"):
            AdapterOptions(**options)
