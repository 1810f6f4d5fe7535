"""Few-shot heads: fitted, saved without the encoder, and used by transformers and `biomedclip classify`."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.benchmark_files import save_drawn
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    pipeline,
)

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel, embed_images
from biomedclip.configuration_few_shot import FewShotConfig
from biomedclip.few_shot_head import METHODS
from biomedclip.modeling_few_shot import FewShotForImageClassification
from biomedclip.run_scripts.evaluation.few_shot import methods
from biomedclip.run_scripts.main import main
from biomedclip.run_scripts.training import few_shot_head


CLASSES = ("brain mri", "chest x-ray", "line_chart")


@pytest.fixture(scope="session")
def scans(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for order, label in enumerate(CLASSES):
        for number in range(6):
            save_drawn(folder / label / f"{number}.png", [order, number], 32, positive=order == 1)
    return folder


@pytest.fixture
def base(small_checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(small_checkpoint, tmp_path / "base"))


@pytest.fixture
def train(base, scans, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "STEPS", dict.fromkeys(methods.STEPS, 10))

    def run(*options: str, out: str = "head") -> Path:
        folder = tmp_path / out
        command = ["train", "--task", "few-shot-head", "--model-name-or-path", str(base), "--train-data", str(scans)]
        assert main([*command, "--output-dir", str(folder), *options]) == 0
        return folder

    return run


def images_of(scans: Path) -> list[Image.Image]:
    return [Image.open(scans / label / "5.png") for label in CLASSES]


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_head_gives_the_logits_of_the_head_that_was_fitted(method, train, scans, base):
    folder = train("--method", method)
    model = AutoModelForZeroShotImageClassification.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    with torch.no_grad():
        output = model(**processor(images=images_of(scans), return_tensors="pt"))
        embeds = embed_images(BiomedCLIPModel.from_pretrained(base), processor, images_of(scans))
        torch.testing.assert_close(output.logits, model.head(embeds), rtol=0, atol=1e-5)
    assert list(model.config.id2label.values()) == sorted(CLASSES) and model.config.method == method
    assert output.logits_per_image is not None and output.logits_per_image.shape == (3, 3)
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.pt"))
    assert (folder / "model.safetensors").stat().st_size < 10_000 < (base / "model.safetensors").stat().st_size


def test_pipelines_use_the_head_for_its_classes_in_any_order_and_refuse_others(train, scans):
    folder = str(train())
    model = AutoModelForImageClassification.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    (image, *_) = images_of(scans)
    with torch.no_grad():
        logits = model(**processor(images=image, return_tensors="pt")).logits[0]
    classify = pipeline("zero-shot-image-classification", model=folder)
    chances = {answer["label"]: answer["score"] for answer in classify(image, ["line chart", "brain mri"])}
    expected = logits[[2, 0]].softmax(dim=-1).tolist()
    assert chances == {"line chart": pytest.approx(expected[0]), "brain mri": pytest.approx(expected[1])}
    answers = pipeline("image-classification", model=folder)(image)
    assert {answer["label"]: round(answer["score"], 5) for answer in answers} == {
        label: round(score, 5) for label, score in zip(sorted(CLASSES), logits.softmax(dim=-1).tolist(), strict=True)
    }
    with pytest.raises(ValueError, match="Text 2 names none of the classes of this few-shot head: brain mri"):
        classify(image, ["brain mri", "figure"])


def test_a_text_names_the_class_with_the_longest_name_in_it(train):
    model = AutoModelForZeroShotImageClassification.from_pretrained(train("--method", "zero-shot"))
    model.config.class_token_ids = [[[5, 6]], [[7, 8]], [[5, 6, 9], [4]]]
    assert model.classes_of([[1, 5, 6, 2], [1, 5, 6, 9, 2], [4, 0, 0]]) == [0, 2, 2]
    with pytest.raises(ValueError, match="Text 2 names several of the classes"):
        model.classes_of([[5, 6], [5, 6, 7, 8]])


def test_classify_uses_the_classes_of_the_head(train, scans, tmp_path):
    folder = train("--method", "linear-probe")
    output = tmp_path / "predictions.csv"
    assert main(["classify", str(scans), "--model", str(folder), "--wide", "--output", str(output)]) == 0
    header, *rows = output.read_text(encoding="utf-8").splitlines()
    assert header.split(",")[1:4] == sorted(CLASSES) and len(rows) == 18
    assert main(["classify", str(scans), "--model", str(folder), "--labels", "a", "b"]) == 2


def test_a_base_with_other_weights_is_refused(train, base, scans):
    folder = train()
    torch.manual_seed(1)
    config = BiomedCLIPConfig.from_pretrained(base)
    BiomedCLIPModel(config).save_pretrained(base)
    with pytest.raises(ValueError, match="was fitted on a model with the weights [0-9a-f]{16}.*has the weights"):
        AutoModelForZeroShotImageClassification.from_pretrained(folder)


def test_a_base_that_was_moved_is_an_error_and_can_be_passed(train, base):
    folder = train()
    moved = base.rename(base.with_name("moved"))
    with pytest.raises(FileNotFoundError, match="folder .* does not exist.*correct base_model_name_or_path in "):
        AutoModelForZeroShotImageClassification.from_pretrained(folder)
    model = AutoModelForZeroShotImageClassification.from_pretrained(folder, base_model_name_or_path=str(moved))
    assert model.config.method == "tip-adapter-f"


def test_a_base_whose_settings_would_run_code_is_refused(train, base):
    folder = train()
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"attn_implementation": "owner/kernel"}), encoding="utf-8")
    with pytest.raises(ValueError, match="a kernel that would be downloaded"):
        AutoModelForZeroShotImageClassification.from_pretrained(folder)


def test_a_base_that_is_passed_is_checked_too(train, base):
    folder = train("--method", "zero-shot")
    moved = shutil.copytree(base, base.with_name("moved"))
    config = json.loads((moved / "config.json").read_text(encoding="utf-8"))
    (moved / "config.json").write_text(json.dumps(config | {"attn_implementation": "owner/kernel"}), encoding="utf-8")
    with pytest.raises(ValueError, match="a kernel that would be downloaded"):
        FewShotForImageClassification.from_pretrained(folder, base_model_name_or_path=str(moved))
    own = FewShotConfig.from_pretrained(folder)
    own.base_model_name_or_path = str(moved)
    with pytest.raises(ValueError, match="a kernel that would be downloaded"):
        FewShotForImageClassification.from_pretrained(folder, config=own)
    with pytest.raises(ValueError, match="head: the dual encoder .*head is itself a few-shot head"):
        FewShotForImageClassification.from_pretrained(folder, base_model_name_or_path=str(folder))


@pytest.mark.parametrize("place", [5, ["base"], None, ""])
def test_a_base_that_is_no_name_is_an_error_with_the_head(place, train):
    folder = train("--method", "zero-shot")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = place
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="head.*: base_model_name_or_path is .*must be"):
        FewShotForImageClassification.from_pretrained(folder)


def test_damaged_heads_are_errors_with_the_file(train):
    folder = train("--method", "zero-shot")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match="model.safetensors: damaged"):
        AutoModelForZeroShotImageClassification.from_pretrained(folder)
    file.write_bytes(whole)
    save_file({"class_embeds": load_file(file)["class_embeds"][:2].clone()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="the head has 2 classes, but config.json has 3 labels"):
        AutoModelForZeroShotImageClassification.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"head_settings": {"logit_scale": None}}), encoding="utf-8")
    with pytest.raises(ValueError, match="model.safetensors: damaged, or not a few-shot head of its config.json"):
        AutoModelForZeroShotImageClassification.from_pretrained(folder)


def test_shots_prompts_and_the_accuracy_are_recorded(train, tmp_path):
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("class_names: {line_chart: chart of a line}\ntemplates: ['a figure of {}']\n", encoding="utf-8")
    folder = train("--shots", "2", "--method", "tip-adapter", "--prompts", str(prompts))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["class_names"] == ["brain mri", "chest x-ray", "chart of a line"]
    assert config["templates"] == ["a figure of {}"]
    assert config["training"]["images"] == dict.fromkeys(sorted(CLASSES), 2)
    assert 0 <= config["training"]["validation_accuracy"] <= 1
    results = json.loads((folder / "train_results.json").read_text(encoding="utf-8"))
    assert results["base_weights"] == config["base_weights"] and results["chosen"].keys() == {"alpha", "beta"}


@pytest.mark.parametrize(
    "options, message",
    [
        (["--shots", "6"], "--shots 6: no class of"),
        (["--shots", "0"], "--shots must be at least 1, not 0"),
        (["--method", "zero-shot", "--shots", "1"], "--shots has no effect on --method zero-shot"),
        (["--method", "linear-probe", "--templates", "a {}"], "--templates has no effect on --method linear-probe"),
        (["--method", "linear-probe", "--max-length", "9"], "--max-length has no effect on --method linear-probe"),
        (["--templates", "a photo"], "has no {} for the class name"),
        (["--max-steps", "3"], "--max-steps does not exist"),
        (["--model-name-or-path", "nowhere"], "--model-name-or-path nowhere"),
    ],
)
def test_options_without_effect_and_missing_models_are_errors(options, message, base, scans, tmp_path, capsys):
    command = ["train", "--task", "few-shot-head", "--model-name-or-path", str(base), "--train-data", str(scans)]
    assert main([*command, "--output-dir", str(tmp_path / "head"), *options]) != 0
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "head").exists()


def test_several_processes_are_refused(base, scans, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(few_shot_head, "use_device", lambda name: SimpleNamespace(num_processes=2))
    command = ["train", "--task", "few-shot-head", "--model-name-or-path", str(base), "--train-data", str(scans)]
    assert main([*command, "--output-dir", str(tmp_path / "head")]) == 2
    assert "runs in one process, not 2. Run it without torchrun" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "head").exists()


def test_one_image_of_a_class_is_not_enough(base, tmp_path, capsys):
    for number in range(2):
        save_drawn(tmp_path / "single" / f"class {number}" / "1.png", number, 32)
    command = ["train", "--task", "few-shot-head", "--model-name-or-path", str(base)]
    assert main([*command, "--train-data", str(tmp_path / "single"), "--output-dir", str(tmp_path / "head")]) != 0
    assert "there are no validation images" in " ".join(capsys.readouterr().err.split())


def test_a_folder_with_files_is_not_written_to(train, capsys, tmp_path):
    train()
    with pytest.raises(AssertionError):
        train()
    assert "contains files. Choose a new or empty folder" in " ".join(capsys.readouterr().err.split())
