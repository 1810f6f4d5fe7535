"""Conversion of checkpoints of open_clip and the community port, compared with open_clip."""

import json
import logging
import os
import pickle
import re
import shutil
import string
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from helpers.commands import run_python
from helpers.open_clip_folders import (
    TRAINED_LOGIT_SCALE,
    WORDS,
    change_config,
    convertible_model,
    published_clip_tokenizer,
    read_config,
    same_weights,
    write_model,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertConfig, BertTokenizer, CLIPTokenizer, ViTConfig
from transformers.image_utils import PILImageResampling

from biomedclip import (
    BiomedCLIPConfig,
    BiomedCLIPForImageClassification,
    BiomedCLIPModel,
    from_open_clip,
    to_open_clip,
)
from biomedclip.conversion import load_any_layout, save_with_processor
from biomedclip.conversion.open_clip import _TIMM_TOWERS, PUBLISHED_BERT, open_clip_obstacle
from biomedclip.conversion.tensors import from_open_clip_tensors, to_open_clip_tensors
from biomedclip.conversion.vision_text import text_config_of, vision_config_of
from biomedclip.processing import BiomedCLIPImageProcessor, BiomedCLIPProcessor


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pictures():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (200 + 9 * n, 300, 3), dtype=np.uint8)) for n in range(3)]


def older_keys(folder: Path) -> None:
    path = folder / "open_clip_config.json"
    path.write_text(path.read_text().replace("hf_proj_type", "proj").replace("hf_pooler_type", "pooler_type"))


def as_pickle(folder: Path, *, stale: bool = True, wrapped: bool = False) -> None:
    tensors = load_file(folder / "open_clip_model.safetensors")
    (folder / "open_clip_model.safetensors").unlink()
    if stale:
        tensors["text.transformer.embeddings.position_ids"] = torch.arange(512)[None]
    content = {"epoch": 3, "state_dict": {f"module.{name}": each for name, each in tensors.items()}}
    torch.save(content if wrapped else tensors, folder / "open_clip_pytorch_model.bin")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def add_bias(folder: Path, value: float) -> None:
    """Give the checkpoint the bias of the SigLIP loss."""
    path = folder / "open_clip_model.safetensors"
    save_file(load_file(path) | {"logit_bias": torch.tensor(value)}, path)
    change_config(folder, "model_cfg", init_logit_bias=-10)


@torch.no_grad()
@pytest.mark.parametrize("trained_here", [False, True])
def test_the_siglip_bias_is_converted_both_ways(folder, tmp_path, trained_here):
    add_bias(folder, -7.5)
    model, processor = from_open_clip(folder)
    assert model.logit_bias.item() == -7.5 and model.config.logit_bias_init_value == -10
    if trained_here:
        model.open_clip_config = None
    to_open_clip(model, processor, tmp_path / "back")
    theirs, _ = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'back'}")
    assert theirs.logit_bias.item() == -7.5


@torch.no_grad()
def test_a_converted_checkpoint_equals_open_clip_bit_for_bit(folder, pictures):
    theirs, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")
    texts = ["a chest x-ray", "caption &amp; figure", "chart " * 60]
    image_embeds, text_embeds, scale = theirs.eval()(
        torch.stack([preprocess(picture) for picture in pictures]), tokens(texts)
    )

    model, processor = from_open_clip(folder)
    outputs = model(**processor(text=texts, images=pictures, padding="max_length", return_tensors="pt"))
    assert torch.equal(outputs.image_embeds, image_embeds)
    assert torch.equal(outputs.text_embeds, text_embeds)
    assert torch.equal(model.logit_scale.exp(), scale)
    assert model.logit_scale.item() == pytest.approx(TRAINED_LOGIT_SCALE)
    assert not model.training and processor.tokenizer.model_max_length == 40


@pytest.mark.parametrize("older", [False, True], ids=["newer keys", "older keys"])
@pytest.mark.parametrize("form", ["pickle", "pickle without stale buffer", "training checkpoint"])
def test_all_file_formats_give_the_same_model(original, folder, older, form):
    as_pickle(folder, stale=form == "pickle", wrapped=form == "training checkpoint")
    if older:
        older_keys(folder)
    assert same_weights(from_open_clip(folder)[0], from_open_clip(original)[0])


@pytest.mark.parametrize("older", [False, True], ids=["newer keys", "older keys"])
def test_a_round_trip_gives_the_same_files(folder, tmp_path, older):
    if older:
        older_keys(folder)
    model, processor = from_open_clip(folder)
    save_with_processor(model, processor, tmp_path / "transformers")
    assert "open_clip" not in (tmp_path / "transformers" / "config.json").read_text()
    assert same_weights(AutoModel.from_pretrained(tmp_path / "transformers"), model)
    model, processor = load_any_layout(tmp_path / "transformers")
    to_open_clip(model, processor, tmp_path / "back")
    before, after = contents(folder), contents(tmp_path / "back")
    for name in ("open_clip_model.safetensors", "open_clip_config.json", "tokenizer.json"):
        assert before[name] == after[name], name

    model, processor = from_open_clip(tmp_path / "back")
    save_with_processor(model, processor, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "transformers")


def test_the_published_configuration_is_written_byte_for_byte(shared_data, tmp_path, monkeypatch):
    tokenizer = BertTokenizer.from_pretrained(shared_data / "biomedclip_tokenizer")
    with torch.device("meta"):
        model = BiomedCLIPModel(BiomedCLIPConfig())
    monkeypatch.setattr("biomedclip.conversion.open_clip.save_file", lambda tensors, path: None)
    to_open_clip(model, BiomedCLIPProcessor(BiomedCLIPImageProcessor(), tokenizer), tmp_path)
    for name in ("open_clip_config.json", "vocab.txt", "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (shared_data / "biomedclip_tokenizer" / name).read_bytes(), name


def test_the_reason_why_open_clip_cannot_load_a_repository_is_given(shared_data, small_processor, small_model):
    tokenizer = BertTokenizer.from_pretrained(shared_data / "biomedclip_tokenizer", model_max_length=256)
    processor = BiomedCLIPProcessor(BiomedCLIPImageProcessor(), tokenizer)
    towers = {"vision_config": vision_config_of(ViTConfig()), "text_config": text_config_of(BertConfig())}
    with torch.device("meta"):
        model = BiomedCLIPModel(BiomedCLIPConfig())
        started_from_vit_and_bert = BiomedCLIPModel(BiomedCLIPConfig(**towers))
        deep = BiomedCLIPModel(BiomedCLIPConfig(text_config={"num_hidden_layers": 13}))
        precise = BiomedCLIPModel(BiomedCLIPConfig(vision_config={"layer_norm_eps": 1e-12}))
    assert open_clip_obstacle(model, processor) is None
    assert open_clip_obstacle(started_from_vit_and_bert, processor) is None
    other = BiomedCLIPProcessor(BiomedCLIPImageProcessor(), small_processor.tokenizer)
    assert "vocabulary of this one differs" in open_clip_obstacle(model, other)
    assert "num_hidden_layers is 13, but the published BERT has 12" in open_clip_obstacle(deep, processor)
    assert "vision_config.layer_norm_eps is 1e-12" in open_clip_obstacle(precise, processor)
    assert "none has the shape of this one" in open_clip_obstacle(small_model, small_processor)
    processor.image_processor.do_center_crop = False
    assert "do_center_crop" in open_clip_obstacle(model, processor)


@pytest.mark.parametrize(
    ("part", "field", "value", "keys"),
    [
        ("tokenizer", "model_max_length", 20, ["model_cfg", "text_cfg", "context_length"]),
        ("config", "logit_bias_init_value", -3, ["model_cfg", "init_logit_bias"]),
        ("image_processor", "image_mean", [0.1, 0.2, 0.3], ["preprocess_cfg", "mean"]),
        ("image_processor", "image_std", [0.6, 0.7, 0.8], ["preprocess_cfg", "std"]),
        ("image_processor", "resample", PILImageResampling.BILINEAR, ["preprocess_cfg", "interpolation"]),
    ],
)
def test_changes_after_a_conversion_are_written(folder, tmp_path, part, field, value, keys):
    add_bias(folder, -7.5)
    model, processor = from_open_clip(folder)
    setattr(model.config if part == "config" else getattr(processor, part), field, value)
    to_open_clip(model, processor, tmp_path / "back")
    written = read_config(tmp_path / "back")
    for key in keys:
        written = written[key]
    assert written == ("bilinear" if field == "resample" else value)


def test_all_plain_image_towers_of_timm_are_known():
    named = {f"vit_{size}_patch{patch}_{side}" for size, (*_, sides) in _TIMM_TOWERS.items() for patch, side in sides}
    plain = re.compile(rf"vit_({'|'.join(_TIMM_TOWERS)})_patch\d+_\d+")
    assert named == set(filter(plain.fullmatch, timm.list_models("vit_*")))
    for name in named:
        size, patch, side = re.fullmatch(r"vit_([a-z]+)_patch(\d+)_(\d+)", name).groups()
        with torch.device("meta"):
            tower = timm.create_model(name)
        assert _TIMM_TOWERS[size][:3] == (tower.embed_dim, len(tower.blocks), tower.blocks[0].attn.num_heads)
        assert tower.patch_embed.patch_size == (int(patch),) * 2 and tower.patch_embed.img_size == (int(side),) * 2


def test_an_unpublished_text_tower_is_described_in_the_folder(folder, tmp_path, caplog):
    model, processor = from_open_clip(folder)
    model.open_clip_config = None  # as of a model that was trained here
    processor.image_processor.image_mean = BiomedCLIPImageProcessor.image_mean
    to_open_clip(model, processor, tmp_path / "own")
    assert "No BERT on the Hub has the shape" in caplog.text
    theirs, _ = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'own'}")
    assert theirs.text.config.num_hidden_layers == 2
    texts = torch.randint(5, 90, (2, 12))
    with torch.no_grad():
        assert torch.equal(theirs.eval().encode_text(texts), model.get_text_features(texts).pooler_output)


def test_scale_and_bias_of_one_dimension_become_scalars():
    """With `nonscalar_logit_scale`, open_clip saves such tensors."""
    theirs = {"logit_scale": torch.ones(1), "logit_bias": torch.ones(1), "visual.head.proj.weight": torch.ones(1, 1)}
    ours = from_open_clip_tensors(theirs, ["logit_scale", "logit_bias", "visual_projection.weight"])
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == {
        "logit_scale": (),
        "logit_bias": (),
        "visual_projection.weight": (1, 1),
    }


CLIP_TEXTS = ["a chest x-ray", "Caption &amp; figure", "chart " * 60]


@pytest.fixture(scope="module")
def clip_tokenizer():
    """A small tokenizer like that of CLIP, for texts of 24 tokens."""
    words = [" ".join([*string.printable, *WORDS])] * 2
    return CLIPTokenizer(model_max_length=24).train_new_from_iterator(words, 400, show_progress=False)


def write_clip_folder(folder: Path, tokenizer, **settings) -> Path:
    """Write an open_clip model of class `CLIP` with random weights and an image tower of timm."""
    text_cfg = {"hf_tokenizer_name": "clip", "context_length": 24, "vocab_size": 410, "width": 48, "layers": 2}
    text_cfg |= {"heads": 4, "mlp_ratio": 2.0, **settings.pop("text_cfg", {})}
    vision_cfg = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "image_size": 224}
    config = {"embed_dim": 32, "vision_cfg": vision_cfg, "text_cfg": text_cfg, **settings}
    tokenizer.save_pretrained(folder)
    return write_model(folder, open_clip.CLIP, {"model_cfg": config, "preprocess_cfg": {}})


@pytest.fixture(scope="module")
def clip_original(clip_tokenizer, tmp_path_factory) -> Path:
    """A folder with a model of class `CLIP`, which no test changes."""
    return write_clip_folder(tmp_path_factory.mktemp("clip"), clip_tokenizer)


@torch.no_grad()
def assert_embeds_as_open_clip(model, processor, folder: Path, images) -> None:
    theirs, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(CLIP_TEXTS)
    pixels = torch.stack([preprocess(image) for image in images])
    image_embeds, text_embeds, scale = theirs.eval()(pixels, ids)[:3]
    inputs = processor(text=CLIP_TEXTS, images=images, padding="max_length", return_tensors="pt")
    outputs = model.eval()(**inputs)
    assert torch.equal(inputs["input_ids"], ids) and torch.equal(inputs["pixel_values"], pixels)
    torch.testing.assert_close(outputs.image_embeds, image_embeds, rtol=0, atol=2e-6)
    torch.testing.assert_close(outputs.text_embeds, text_embeds, rtol=0, atol=2e-6)
    assert torch.equal(model.logit_scale.exp(), scale)
    assert (text_embeds[0] - text_embeds[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("quick_gelu", "pool_type"), [(False, "eos"), (True, "argmax")])
def test_the_text_tower_of_clip_is_converted_both_ways(clip_tokenizer, pictures, tmp_path, quick_gelu, pool_type):
    text_cfg = {"pool_type": pool_type, "eos_id": clip_tokenizer.eos_token_id}
    source = write_clip_folder(tmp_path / "source", clip_tokenizer, quick_gelu=quick_gelu, text_cfg=text_cfg)
    model, processor = from_open_clip(source)
    assert_embeds_as_open_clip(model, processor, source, pictures)

    model.open_clip_config = None  # as of a model that was trained here
    to_open_clip(model, processor, tmp_path / "back")
    assert_embeds_as_open_clip(model, processor, tmp_path / "back", pictures)
    weights = "open_clip_model.safetensors"
    assert (tmp_path / "back" / weights).read_bytes() == (source / weights).read_bytes()
    again = from_open_clip(tmp_path / "back")[0]
    assert same_weights(again, model) and again.config.text_config.to_dict() == model.config.text_config.to_dict()


def test_a_fractional_mlp_ratio_is_written(clip_tokenizer, pictures, tmp_path):
    text = {"model_type": "clip_text_model", "hidden_size": 49, "intermediate_size": 103, "num_attention_heads": 7}
    text |= {"vocab_size": 400, "max_position_embeddings": 24}
    text |= {"bos_token_id": None, "eos_token_id": clip_tokenizer.eos_token_id}
    model, processor = convertible_model(clip_tokenizer, **text)
    to_open_clip(model, processor, tmp_path / "written")
    assert_embeds_as_open_clip(model, processor, tmp_path / "written", pictures)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, True) for key in ("embed_cls", "no_causal_mask", "proj_bias", "qk_norm", "scale_fc", "output_tokens")),
        ("ls_init_value", 0.1),
        ("norm_kwargs", {"eps": 1e-3}),
        ("act_kwargs", {"approximate": "tanh"}),
        ("block_type", "custom"),
        ("pool_type", "last"),
        ("pool_type", "eos"),  # open_clip's default eos_id is 2
        ("proj_type", "none"),
        ("heads", 5),
        ("heads", 0),
        ("context_length", 20),
        ("hf_tokenizer_name", ""),
        ("custom_text", True),
    ],
)
def test_an_unsupported_setting_of_the_clip_text_tower_is_named(clip_original, tmp_path, key, value):
    folder = shutil.copytree(clip_original, tmp_path / "source")
    change_config(folder, "model_cfg" if key == "custom_text" else "text_cfg", **{key: value})
    with pytest.raises(ValueError, match=rf"open_clip_config\.json.*{key}"):
        from_open_clip(folder)


@pytest.mark.parametrize(
    ("field", "value"), [("layer_norm_eps", 1e-6), ("hidden_act", "relu"), ("max_position_embeddings", 30)]
)
def test_a_field_of_the_clip_text_tower_unknown_to_open_clip_is_named(clip_original, tmp_path, field, value):
    model, processor = from_open_clip(clip_original)
    setattr(model.config.text_config, field, value)
    with pytest.raises(ValueError, match=f"text_config.{field} is {value!r}.*with transformers"):
        to_open_clip(model, processor, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_open_clip_can_load_the_clip_text_tower_with_the_clip_tokenizer(clip_tokenizer):
    published = published_clip_tokenizer()
    with torch.device("meta"):
        model = BiomedCLIPModel(BiomedCLIPConfig(text_config={"model_type": "clip_text_model"}))
    assert open_clip_obstacle(model, BiomedCLIPProcessor(BiomedCLIPImageProcessor(), published)) is None
    other = BiomedCLIPProcessor(BiomedCLIPImageProcessor(), clip_tokenizer)
    assert "model_max_length of the tokenizer is 24" in open_clip_obstacle(model, other)
    model.config.text_config.max_position_embeddings = 24
    assert "vocabulary of this one differs" in open_clip_obstacle(model, other)


def test_half_precision_is_kept(folder, tmp_path):
    path = folder / "open_clip_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    model, processor = from_open_clip(folder)
    assert model.dtype == torch.bfloat16
    to_open_clip(model, processor, tmp_path / "back")
    assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        *((name, None, f"missing {name}") for name in ("visual.trunk.blocks.3.attn.qkv.bias", "logit_scale")),
        *((name, (3,), f"unexpected {name}") for name in ("visual.trunk.norm_pre.weight", "logit_bias")),
        ("text.proj.2.weight", None, "missing text.proj.2.weight"),
        ("text.transformer.pooler.dense.bias", (3,), "unexpected text.transformer.pooler.dense.bias"),
        (
            "visual.head.proj.weight",
            (48, 192),
            r"visual_projection.weight has shape \(48, 192\) instead of \(32, 192\)",
        ),
    ],
)
def test_a_missing_or_unexpected_tensor_or_shape_is_named(folder, name, shape, message):
    path = folder / "open_clip_model.safetensors"
    tensors = {key: tensor for key, tensor in load_file(path).items() if key != name}
    save_file(tensors if shape is None else tensors | {name: torch.zeros(shape)}, path)
    with pytest.raises(ValueError, match=message) as error:
        from_open_clip(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("count", [8, 9, 20])
def test_at_most_eight_missing_tensors_are_named(count):
    names = [f"logit_scale.t{number}" for number in range(count)]
    shown = ", ".join(sorted(names)[:8])
    rest = f" and {count - 8} more" if count > 8 else ""
    with pytest.raises(ValueError) as error:
        from_open_clip_tensors({}, names)
    assert str(error.value) == f"missing {shown}{rest}"


def test_a_context_length_of_zero_and_a_missing_field_are_named(folder):
    change_config(folder, "text_cfg", context_length=0)
    with pytest.raises(ValueError, match="context_length is 0. It must be a number from 1 to"):
        from_open_clip(folder)
    config = read_config(folder)
    del config["model_cfg"]["embed_dim"]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'embed_dim' is missing"):
        from_open_clip(folder)


def test_a_guessed_bert_configuration_is_reported(folder, caplog):
    change_config(folder, "text_cfg", hf_model_name="nobody/no-such-bert")
    model, _ = from_open_clip(folder)
    assert "nobody/no-such-bert is neither in a folder nor in the cache" in caplog.text
    assert model.config.text_config.num_attention_heads == 1, "64 channels; the real one has four heads"


def test_a_part_of_the_model_is_refused(small_model, small_processor, tmp_path):
    small_model.save_pretrained(tmp_path / "whole")
    small_processor.save_pretrained(tmp_path / "whole")
    BiomedCLIPForImageClassification.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "classifier")
    assert same_weights(load_any_layout(tmp_path / "whole")[0], small_model)
    with pytest.raises(ValueError, match="contains BiomedCLIPForImageClassification, not a complete BiomedCLIPModel"):
        load_any_layout(tmp_path / "classifier")


def test_wrong_types_in_configuration_and_weights_are_refused(folder):
    change_config(folder, "model_cfg", embed_dim="32")
    with pytest.raises(ValueError, match="open_clip_config.json.*projection_dim"):
        from_open_clip(folder)
    (folder / "open_clip_model.safetensors").unlink()
    torch.save([torch.zeros(3)], folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match="does not contain a state dictionary"):
        from_open_clip(folder)


class Malicious:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused(folder, tmp_path):
    (folder / "open_clip_model.safetensors").unlink()
    content = {"logit_scale": Malicious(tmp_path / "it_ran")}
    for write in (
        lambda path: path.write_bytes(pickle.dumps(content, protocol=2)),
        lambda path: torch.save(content, path),
    ):
        write(folder / "open_clip_pytorch_model.bin")
        with pytest.raises(ValueError, match="contains more than tensors"):
            from_open_clip(folder)
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_weights_are_reported(folder, kind, share):
    if kind == "pickle":
        as_pickle(folder)
    (path,) = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match="damaged or truncated"):
        from_open_clip(folder)


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a Hub id"):
        from_open_clip(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="open_clip_config.json"):
        from_open_clip(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="contains no tokenizer"):
        from_open_clip(folder)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no weights"):
        from_open_clip(folder)
    (folder / "open_clip_config.json").write_text("{")
    with pytest.raises(ValueError, match="open_clip_config.json is not JSON"):
        from_open_clip(folder)


def test_models_unsupported_by_open_clip_are_refused(small_model, small_processor, folder, tmp_path):
    with pytest.raises(ValueError, match="timm has none for 2 layers of width 32"):
        to_open_clip(small_model, small_processor, tmp_path / "a")
    model, processor = from_open_clip(folder)
    processor.image_processor.do_center_crop = False
    with pytest.raises(ValueError, match="`do_center_crop` of the image processor is False"):
        to_open_clip(model, processor, tmp_path / "a")
    with pytest.raises(ValueError, match="`model` is a BiomedCLIPVisionModel"):
        to_open_clip(model.vision_model, processor, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "layer_norm_eps",
            1e-12,
            "vision_config.layer_norm_eps is 1e-12, .* supports only 1e-06. Set the field to that value",
        ),
        ("hidden_act", "relu", "vision_config.hidden_act is 'relu', .* supports only 'gelu'. Train"),
        ("num_channels", 1, "vision_config.num_channels is 1, .* supports only 3. Train"),
        (
            "intermediate_size",
            100,
            "intermediate_size is 100, .* supports only 768. That is 4 times hidden_size. Train",
        ),
        ("patch_size", 14, "vision_config.image_size is 224 and patch_size is 14.* 224 with patches of 16, .*Train"),
        ("num_hidden_layers", 11, "timm has none for 11 layers of width 192 with 3 heads .*tiny \\(12, 192, 3\\)"),
    ],
)
def test_a_field_of_the_image_tower_unknown_to_open_clip_is_named(folder, tmp_path, field, value, message):
    model, processor = from_open_clip(folder)
    setattr(model.config.vision_config, field, value)
    if "Train" in message or "timm" in message:
        model.open_clip_config = None  # as of a model that was trained here
    with pytest.raises(ValueError, match=message):
        to_open_clip(model, processor, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_hub_id_is_read_from_the_cache(folder, tmp_path):
    """The cache has the layout of `huggingface_hub`; no network is used."""
    repository = tmp_path / "hub" / "models--org--biomedclip"
    shutil.copytree(folder, repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    code = (
        "from biomedclip import from_open_clip\n"
        "print(from_open_clip('org/biomedclip')[0].num_parameters())\n"
        "try: from_open_clip('org/other')\n"
        "except FileNotFoundError as error: print(error)\n"
    )
    run = run_python("-c", code, environment={"HF_HUB_CACHE": str(tmp_path / "hub")})
    parameters, error = run.stdout.splitlines()
    assert int(parameters) == from_open_clip(folder)[0].num_parameters()
    assert error.startswith("org/other is neither a folder nor a Hub id that can be reached")


def as_community_port(model: BiomedCLIPModel, folder: Path, tokenizer) -> None:
    """Write a model in the layout of chuhac/BiomedCLIP-vit-bert-hf, with the wrong epsilon."""
    tensors = {"text_model.embeddings.position_ids": torch.arange(64)[None]}
    for name, tensor in model.state_dict().items():
        name = name.replace("layers.", "encoder.layers.")
        name = name.replace("word_embeddings", "token_embedding").replace("_embeddings.", "_embedding.")
        if name == "vision_model.embeddings.class_embedding":
            tensor = tensor[0, 0]
        elif name == "vision_model.embeddings.position_embedding":
            name, tensor = f"{name}.weight", tensor[0]
        tensors[name] = tensor.clone()
    folder.mkdir()
    torch.save(tensors, folder / "pytorch_model.bin")
    vision, text = model.config.vision_config, model.config.text_config
    shared = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    config = {
        "model_type": "clip",
        "projection_dim": model.config.projection_dim,
        "logit_scale_init_value": TRAINED_LOGIT_SCALE,
        "vision_config": {name: getattr(vision, name) for name in (*shared, "image_size", "patch_size")}
        | {"model_type": "vit", "layer_norm_eps": 1e-12, "attention_probs_dropout_prob": 0.0, "qkv_bias": True},
        "text_config": {name: getattr(text, name) for name in (*shared, "vocab_size", "max_position_embeddings")}
        | {"model_type": "bert", "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.0, "use_cache": True},
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def test_the_community_port_is_read_with_the_epsilon_of_timm(small_model, small_processor, tmp_path, caplog):
    as_community_port(small_model, tmp_path / "port", small_processor.tokenizer)
    with caplog.at_level(logging.WARNING):
        model, processor = from_open_clip(tmp_path / "port")
    assert "layer_norm_eps is 1e-12" in caplog.text and "1e-06" in caplog.text
    assert model.config.vision_config.layer_norm_eps == 1e-6
    assert model.config.text_config.layer_norm_eps == 1e-12
    images, texts = torch.randn(2, 3, 32, 32), torch.randint(5, 60, (2, 9))
    assert torch.equal(model.get_image_features(images).pooler_output, small_model.get_image_features(images)[1])
    assert torch.equal(model.get_text_features(texts).pooler_output, small_model.get_text_features(texts)[1])
    assert processor.tokenizer.model_max_length == 256
    assert processor.image_processor.crop_size["height"] == 32


def test_a_missing_tensor_of_the_community_port_is_named(small_model, small_processor, tmp_path):
    as_community_port(small_model, tmp_path / "port", small_processor.tokenizer)
    path = tmp_path / "port" / "pytorch_model.bin"
    tensors = torch.load(path)
    del tensors["text_model.encoder.layers.1.mlp.fc2.bias"]
    torch.save(tensors | {"vision_model.pre_layrnorm.weight": torch.ones(32)}, path)
    expected = r"missing text_model.encoder.layers.1.mlp.fc2.bias; unexpected vision_model.pre_layrnorm.weight"
    with pytest.raises(ValueError, match=expected):
        from_open_clip(tmp_path / "port")


def test_the_published_model_has_the_tensors_of_the_published_file():
    with torch.device("meta"):
        tensors = to_open_clip_tensors(BiomedCLIPModel(BiomedCLIPConfig()).state_dict())
    assert len(tensors) == 351
    assert tensors["visual.trunk.blocks.11.attn.qkv.weight"].shape == (2304, 768)
    assert tensors["text.proj.0.weight"].shape == (640, 768) and tensors["logit_scale"].shape == ()
    assert PUBLISHED_BERT.startswith("microsoft/")
