"""Each setting of an open_clip configuration is applied as in open_clip, or refused by name."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from helpers.open_clip_folders import change_config, read_config
from open_clip.coca_model import MultimodalCfg
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg
from PIL import Image
from safetensors.torch import load_file, save_file

from biomedclip import from_open_clip, to_open_clip
from biomedclip.conversion.open_clip import PUBLISHED_NAMES
from biomedclip.conversion.open_clip_settings import KNOWN, check_safe
from biomedclip.run_scripts.evaluation.dual_encoders import load_dual_encoder
from biomedclip.run_scripts.main import main


TEXTS = ["A Chest X-ray, of the article!", "brain mri", "chart " * 30]


@torch.no_grad()
def assert_equals_open_clip(folder: Path) -> None:
    """Compare token ids, pixels and embeddings with open_clip on the same folder."""
    theirs, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (230, 300, 3), dtype=np.uint8))
    pixels = preprocess(picture)[None]
    model, processor = from_open_clip(folder)
    inputs = processor(text=TEXTS, images=picture, padding="max_length", return_tensors="pt")
    assert torch.equal(inputs["input_ids"], tokens)
    assert torch.equal(inputs["pixel_values"], pixels)
    theirs = theirs.eval()
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(model.get_image_features(pixels).pooler_output, theirs.encode_image(pixels), **close)
    torch.testing.assert_close(model.get_text_features(tokens).pooler_output, theirs.encode_text(tokens), **close)
    assert torch.equal(model.logit_scale, theirs.logit_scale.reshape(()))


def test_the_lists_of_known_settings_are_open_clips():
    older = {"proj", "pooler_type"}
    for section, theirs in (
        ("vision_cfg", CLIPVisionCfg),
        ("text_cfg", CLIPTextCfg),
        ("multimodal_cfg", MultimodalCfg),
        ("preprocess_cfg", PreprocessCfg),
    ):
        assert KNOWN[section] - older == {field.name for field in dataclasses.fields(theirs)}, section


@pytest.mark.parametrize(
    ("section", "fields"), [("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg), ("preprocess_cfg", PreprocessCfg)]
)
def test_the_default_of_every_setting_is_accepted(folder, section, fields):
    """Except defaults that BiomedCLIP does not support, such as the pooling."""
    set_by_the_folder = {"timm_model_name", "timm_pool", "image_size", "context_length"}
    for field in dataclasses.fields(fields):
        if field.name not in set_by_the_folder and not field.name.startswith("hf_"):
            # open_clip's own default of this one, null, makes its tokenizer fail.
            change_config(folder, section, **{field.name: {} if field.name == "tokenizer_kwargs" else field.default})
    assert_equals_open_clip(folder)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("vision_cfg", "image_size", [224, 224]),
        ("vision_cfg", "timm_pool", "token"),
        ("vision_cfg", "timm_model_pretrained", True),
        ("vision_cfg", "width", 96),  # open_clip reads no width of a tower of timm's
        ("vision_cfg", "output_tokens", True),
        ("text_cfg", "vocab_size", 7),
        ("text_cfg", "hf_model_pretrained", True),
        ("text_cfg", "tokenizer_kwargs", {}),
        ("text_cfg", "tokenizer_kwargs", {"clean": "whitespace", "strip_sep_token": False}),
        ("text_cfg", "context_length", 20),
        ("model_cfg", "quick_gelu", True),
        ("model_cfg", "custom_text", True),
        ("model_cfg", "init_logit_scale", 1.0),
        ("model_cfg", "nonscalar_logit_scale", True),
        ("preprocess_cfg", "size", 64),  # open_clip takes the size of the model
        ("preprocess_cfg", "mean", 0.5),
        ("preprocess_cfg", "std", [0.5]),
        ("preprocess_cfg", "mean", None),
        ("preprocess_cfg", "interpolation", "bilinear"),
        ("preprocess_cfg", "interpolation", "random"),
        ("preprocess_cfg", "fill_color", 9),
    ],
)
def test_a_setting_is_applied_as_in_open_clip(folder, section, key, value):
    change_config(folder, section, **{key: value})
    assert_equals_open_clip(folder)


def test_patch_dropout_is_honored_in_training(folder):
    change_config(folder, "vision_cfg", patch_dropout=0.25)
    assert from_open_clip(folder)[0].config.vision_config.patch_dropout == 0.25


def test_a_temperature_with_a_dimension_is_read(folder):
    path = folder / "open_clip_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"logit_scale": tensors["logit_scale"][None]}, path)
    assert_equals_open_clip(folder)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        *((section, "no_such_setting", 1) for section in ("model_cfg", "vision_cfg", "text_cfg", "preprocess_cfg")),
        ("model_cfg", "multimodal_cfg", {"layers": 1}),
        ("vision_cfg", "timm_proj_bias", True),
        ("vision_cfg", "timm_proj", "mlp"),
        ("vision_cfg", "timm_pool", "avg"),
        ("vision_cfg", "timm_drop", 0.1),
        ("vision_cfg", "timm_drop_path", 0.1),
        ("vision_cfg", "image_size", 256),
        ("vision_cfg", "image_size", [224, 160]),
        *(("vision_cfg", "timm_model_name", name) for name in (5, "resnet50", "vit_base_patch16_clip_224")),
        ("text_cfg", "output_tokens", True),
        ("text_cfg", "tokenizer_mode", "clips"),
        ("text_cfg", "context_length", 600),
        ("text_cfg", "context_length", "20"),
        ("text_cfg", "hf_tokenizer_name", ""),
        ("text_cfg", "hf_proj_type", "linear"),
        ("text_cfg", "hf_pooler_type", "mean_pooler"),
        ("text_cfg", "tokenizer_kwargs", {"clean": "canonicalize"}),
        ("text_cfg", "tokenizer_kwargs", {"clean": "lower"}),
        ("text_cfg", "tokenizer_kwargs", {"strip_sep_token": True}),
        ("text_cfg", "tokenizer_kwargs", {"language": "en"}),
        ("text_cfg", "tokenizer_kwargs", {"do_lower_case": False}),
        ("text_cfg", "tokenizer_kwargs", {"trust_remote_code": True}),
        ("text_cfg", "tokenizer_kwargs", ["clean"]),
        ("preprocess_cfg", "mode", "L"),
        ("preprocess_cfg", "interpolation", "nearest"),
        ("preprocess_cfg", "resize_mode", "squash"),
        ("preprocess_cfg", "resize_mode", "longest"),
        ("preprocess_cfg", "mean", [0.5, 0.5]),
        ("preprocess_cfg", "mean", "0.5"),
        ("preprocess_cfg", "std", [0.5, 0.0, 0.5]),
    ],
)
def test_an_unsupported_setting_is_refused_by_name(folder, section, key, value):
    change_config(folder, section, **{key: value})
    with pytest.raises(ValueError, match=key) as error:
        from_open_clip(folder)
    assert "open_clip_config.json" in str(error.value)
    assert not isinstance(value, str) or repr(value) in str(error.value) or not value


@pytest.mark.parametrize("content", ["[]", '"text"', "{}", '{"model_cfg": 3}', '{"model_cfg": {"text_cfg": [1]}}'])
def test_a_file_of_another_shape_is_refused(folder, content):
    (folder / "open_clip_config.json").write_text(content)
    with pytest.raises(ValueError, match="open_clip_config.json"):
        from_open_clip(folder)
    with pytest.raises(ValueError, match="open_clip_config.json"):
        load_dual_encoder(str(folder))


def test_settings_that_came_with_a_model_are_checked_before_they_are_written(folder, tmp_path):
    model, processor = from_open_clip(folder)
    change_config(folder, "text_cfg", tokenizer_kwargs={"trust_remote_code": True})
    model.open_clip_config = json.dumps(read_config(folder))
    with pytest.raises(ValueError, match="trust_remote_code"):
        to_open_clip(model, processor, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def plant(folder: Path, marker: Path, *files: str) -> None:
    """Write code that leaves a marker, and refer to it in the settings of tokenizer and model."""
    folder.mkdir(exist_ok=True)
    (folder / "planted.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Planted: pass\n")
    auto_map = dict.fromkeys(("AutoConfig", "AutoModel"), "planted.Planted") | {
        "AutoTokenizer": [None, "planted.Planted"]
    }
    for file in files:
        path = folder / file
        content = json.loads(path.read_text()) if path.is_file() else {"model_type": "planted"}
        content.pop("tokenizer_class", None)
        path.write_text(json.dumps(content | {"auto_map": auto_map}))


@pytest.fixture
def other(tmp_path, original):
    """A folder that only open_clip can load, because of its text tower."""
    folder = Path(shutil.copytree(original, tmp_path / "other"))
    change_config(folder, "text_cfg", hf_pooler_type="mean_pooler")
    return folder


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "the_code_has_run"


def test_another_model_of_open_clip_is_evaluated_by_open_clip(other):
    encoder = load_dual_encoder(str(other))
    assert encoder.type == "open_clip"
    tokens = open_clip.get_tokenizer(f"local-dir:{other}")(TEXTS)
    assert encoder.processor(TEXTS)["input_ids"] == tokens.tolist()


@pytest.mark.parametrize("clean", ["canonicalize", "lower", "whitespace"])
def test_safe_arguments_of_tokenizers_reach_open_clip(other, clean):
    change_config(other, "text_cfg", tokenizer_kwargs={"clean": clean, "strip_sep_token": True})
    tokens = open_clip.get_tokenizer(f"local-dir:{other}")(TEXTS)
    assert load_dual_encoder(str(other)).processor(TEXTS)["input_ids"] == tokens.tolist()


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_cfg", "tokenizer_kwargs", {"trust_remote_code": True}),
        ("text_cfg", "tokenizer_kwargs", {"bpe_path": "/etc/passwd"}),
        ("text_cfg", "tokenizer_kwargs", {"clean": 3}),
        ("text_cfg", "tokenizer_kwargs", {"vocab_file": "/etc/passwd"}),
        ("text_cfg", "hf_model_name", "someone/else"),
        ("text_cfg", "hf_model_name", "https://example.org/model"),
        ("vision_cfg", "timm_model_name", "hf-hub:someone/else"),
        ("vision_cfg", "timm_model_name", "hf_hub:someone/else"),
        ("vision_cfg", "timm_model_name", "local-dir:/somewhere"),
        ("model_cfg", "multimodal_cfg", {"hf_model_name": "someone/else"}),
        *((section, "no_such_setting", 1) for section in ("model_cfg", "vision_cfg", "text_cfg", "preprocess_cfg")),
    ],
)
def test_settings_that_are_not_safe_are_refused_before_open_clip_sees_them(other, monkeypatch, section, key, value):
    change_config(other, section, **{key: value})
    plant(other, other / "ran", "tokenizer_config.json")
    monkeypatch.setattr(open_clip, "create_model_from_pretrained", lambda *arguments, **options: pytest.fail("seen"))
    name = next(iter(value)) if isinstance(value, dict) else key
    with pytest.raises(ValueError, match=name):
        load_dual_encoder(str(other))
    assert not (other / "ran").exists()


def test_code_of_the_folder_and_of_its_text_model_is_not_run(other, marker, tmp_path):
    for file in ("tokenizer_config.json", "config.json"):
        folder = Path(shutil.copytree(other, tmp_path / file))
        plant(folder, marker, file)
        # Not the layout of transformers, whose loader would be taken.
        with pytest.raises((ValueError, OSError)):
            load_dual_encoder(str(folder))
    plant(tmp_path / "text_model", marker, "config.json")
    change_config(other, "text_cfg", hf_model_name=str(tmp_path / "text_model"))
    with pytest.raises((ValueError, OSError)):
        load_dual_encoder(str(other))
    assert not marker.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_kernel_that_the_text_model_names_is_refused_before_open_clip_sees_it(original, other, tmp_path, key):
    text_model = Path(shutil.copytree(original.parent / "bert", tmp_path / "text_model"))
    settings = json.loads((text_model / "config.json").read_text())
    (text_model / "config.json").write_text(json.dumps(settings | {key: "someone/kernel"}))
    change_config(other, "text_cfg", hf_model_name=str(text_model))
    with pytest.raises(ValueError, match=f"{key} is 'someone/kernel', a kernel"):
        load_dual_encoder(str(other))


def test_a_folder_without_weights_is_refused(other):
    (other / "open_clip_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights"):
        load_dual_encoder(str(other))


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["evaluate", "convert", "verify"])
def test_no_command_passes_trust_from_the_file_to_open_clip(folder, other, marker, tmp_path, capsys, verb):
    source = other if verb == "evaluate" else folder
    change_config(source, "text_cfg", tokenizer_kwargs={"trust_remote_code": True})
    plant(source, marker, "tokenizer_config.json")
    command = {
        "evaluate": ["evaluate", "zero-shot", "--model", source, "--data", tmp_path / "classes", "--output-dir"],
        "convert": ["convert", source],
        "verify": ["convert", source, "--verify"],
    }[verb]
    for number in range(4):
        (tmp_path / "classes" / f"class_{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number, 9, 9)).save(tmp_path / "classes" / f"class_{number % 2}" / f"{number}.png")
    assert main([*map(str, command), str(tmp_path / "out")]) == 1
    assert "trust_remote_code" in capsys.readouterr().err and not marker.exists()


def test_names_of_published_text_models_may_be_looked_up():
    config = {"model_cfg": {"vision_cfg": {}, "text_cfg": {"hf_model_name": PUBLISHED_NAMES[0]}}}
    check_safe(config, Path("file"), reachable=PUBLISHED_NAMES)
    with pytest.raises(ValueError, match="hf download"):
        check_safe(config, Path("file"))
