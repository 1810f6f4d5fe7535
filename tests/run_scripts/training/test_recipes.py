"""The recipes have the sizes, steps and published metrics of the paper's configurations and ablations."""

import itertools
import json
from typing import NamedTuple

import open_clip
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from biomedclip import BiomedCLIPConfig
from biomedclip.run_scripts.cli.options import RECIPES, recipe_names
from biomedclip.run_scripts.main import main


class Row(NamedTuple):
    """A row of the tables in the paper."""

    epochs: int
    recall: str | None = None  # R@1 image to text and text to image on the validation pairs, if in the paper
    batch: int = 4096
    context: int = 256
    pixels: int = 224
    tower: str = "base"


# arXiv 2303.00915, ablations: epochs, R@1, and what differs from batch 4,096, context 256, 224 px and ViT-B/16.
ROWS = {
    "biomedclip": Row(32, "82.90 81.86"),
    "pmc15m_2022": Row(32, "82.90 81.86"),
    "context_256": Row(8, "73.50 72.26"),
    "context_77": Row(8, "69.03 67.41", context=77),
    "gpt_77_8_epochs": Row(8, "64.53 63.56", context=77),
    "gpt_77": Row(32, "81.57 80.89", context=77, tower="clip"),
    "vit_s": Row(8, "69.45 68.02", tower="small"),
    "vit_m": Row(8, "71.85 70.22", tower="medium"),
    "vit_b": Row(8, "73.50 72.26"),
    "vit_l": Row(8, tower="large"),
    "random_start": Row(32, "83.15 81.75"),
    "image_384": Row(32, "84.63 83.56", pixels=384),
    "batch_2k": Row(32, "79.69 78.43", batch=2048),
    "batch_4k_40_epochs": Row(40, "83.98 82.71"),
    "batch_64k_first": Row(8, "87.32 86.66"),
    "siglip": Row(32),
    "mentions": Row(32),
    "caption_and_mentions": Row(32),
    "commercial": Row(32),
    "panels": Row(32),
    "panels_and_figures": Row(32),
    "medical_only": Row(32),
    "patch_dropout": Row(32),
    "locked_image_tower": Row(32),
}
OTHERS = {
    "batch_64k",
    "quickstart",
    "lora_contrastive",
    "lora_classification",
    "lora_merged",
    "panel_detector",
    "vqa_rad",
    "vqa_slake",
}


def opening(name: str) -> str:
    """Return the comment at the beginning of a recipe."""
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    assert lines[0].startswith("# "), name
    return " ".join(comment)


@pytest.fixture(scope="module")
def image_encoders() -> dict[str, int]:
    """Number of parameters of the image encoders of timm and open_clip, without projection."""
    with torch.device("meta"):
        towers = {
            "small": timm.create_model("vit_small_patch16_224", num_classes=0),
            "medium": VisionTransformer(embed_dim=512, depth=12, num_heads=8, num_classes=0),
            "base": timm.create_model("vit_base_patch16_224", num_classes=0),
            "base at 384": timm.create_model("vit_base_patch16_384", num_classes=0),
            "large": timm.create_model("vit_large_patch16_224", num_classes=0),
        }
        clip = open_clip.CLIP(**open_clip.get_model_config("ViT-B-16"))
    counts = {name: sum(parameter.numel() for parameter in tower.parameters()) for name, tower in towers.items()}
    counts["clip"] = sum(parameter.numel() for parameter in clip.visual.parameters()) - clip.visual.proj.numel()
    counts["whole clip"] = sum(parameter.numel() for parameter in clip.parameters())
    return counts


def dry_run(name: str, folder, *options: str) -> dict:
    arguments = ["train", "--config", name, "--dry-run", "--processes", "16", "--output-dir", str(folder)]
    assert main([*arguments, *options]) == 0
    return json.loads((folder / "dry_run.json").read_text())


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_has_the_values_of_its_row_in_the_paper(name, image_encoders, tmp_path):
    row = ROWS[name]
    plan = dry_run(name, tmp_path)
    schedule = plan["schedule"]
    assert schedule["per_device_batch_size"] * schedule["processes"] == schedule["batch_size"] == row.batch
    assert schedule["steps"] == row.epochs * (13_900_000 // row.batch)
    assert schedule["epochs"] == pytest.approx(row.epochs, rel=5e-3), "whole batches of each epoch"
    assert schedule["warmup_steps"] == 2000 and schedule["learning_rate"] == 5e-4
    assert (schedule["text_length"], schedule["image_size"]) == (row.context, row.pixels)
    tower = f"{row.tower} at {row.pixels}" if row.pixels != 224 else row.tower
    assert plan["parts"]["image encoder"]["parameters"] == image_encoders[tower]
    for value in (row.recall or "").split():
        assert value in opening(name)


@pytest.mark.parametrize("name", ["vit_s", "vit_m", "vit_b"])
def test_the_sizes_in_a_recipe_are_those_of_its_model_and_of_timm(name, tmp_path):
    models = {"vit_s": "small_patch16_224", "vit_m": "medium_patch16_gap_256", "vit_b": "base_patch16_224"}
    timm_name = f"vit_{models[name]}"
    with torch.device("meta"):
        whole, trunk = timm.create_model(timm_name), timm.create_model(timm_name, num_classes=0)
    stated = [sum(parameter.numel() for parameter in model.parameters()) for model in (whole, trunk)]
    parts = dry_run(name, tmp_path)["parts"]
    tower, projection = parts["image encoder"]["parameters"], parts["image projection"]["parameters"]
    if name == "vit_m":
        assert tower != stated[1] and round((tower + projection) / 1e6) == round(stated[0] / 1e6) == 39
        stated += [tower, tower + projection]
        # The statements of the recipe about timm's model.
        assert trunk.cls_token is None and trunk.global_pool == "avg" and trunk.pos_embed.shape == (1, 256, 512)
        block = trunk.blocks[0]
        assert block.attn.qkv.bias is None and type(block.ls1).__name__ == "LayerScale"
        assert (len(trunk.blocks), block.attn.num_heads) == (12, 8)
    else:
        assert tower == stated[1]
    for number in stated:
        assert f"{number / 1e6:.2f} M" in opening(name)


def test_the_published_configuration_has_the_published_size_and_steps(tmp_path):
    plan = dry_run("biomedclip", tmp_path)
    assert plan["model"]["parameters"] == plan["model"]["trainable_parameters"] == 195_902_721
    assert any("google/vit-base-patch16-224: its layer_norm_eps is 1e-12" in note for note in plan["notes"])
    assert plan["schedule"]["steps"] == 108_576 and plan["schedule"]["samples"] == pytest.approx(445e6, rel=1e-3)


def test_the_gpt_variant_is_openai_clip(image_encoders, tmp_path):
    plan = dry_run("gpt_77", tmp_path)
    assert plan["model"]["class"] == "CLIPModel"
    assert plan["model"]["parameters"] == image_encoders["whole clip"] == 149_620_737


def test_the_random_gpt_variant_has_the_encoders_of_open_clip(image_encoders, tmp_path):
    with torch.device("meta"):
        clip = open_clip.CLIP(
            embed_dim=512,
            vision_cfg={"timm_model_name": "vit_base_patch16_224", "timm_pool": "", "timm_proj": "linear"},
            text_cfg={"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
        )
    plan = dry_run("gpt_77_8_epochs", tmp_path)
    assert plan["model"]["parameters"] == sum(parameter.numel() for parameter in clip.parameters())
    assert plan["model"]["trainable_parameters"] == plan["model"]["parameters"]


def test_the_second_part_of_the_64k_schedule_continues_the_first(tmp_path):
    BiomedCLIPConfig().save_pretrained(tmp_path / "first")
    plan = dry_run("batch_64k", tmp_path / "plan", "--model-name-or-path", str(tmp_path / "first"))
    schedule = plan["schedule"]
    assert (schedule["batch_size"], schedule["per_device_batch_size"]) == (65536, 4096)
    assert schedule["mini_batch_size"] == 256
    assert schedule["steps"] == 32 * (13_900_000 // 65536) and schedule["warmup_steps"] == 2000
    assert plan["model"]["parameters"] == 195_902_721
    first = dry_run("batch_64k_first", tmp_path / "plan")
    activations = [part["memory_mib"]["with_checkpointing"]["activations"] for part in (plan, first)]
    assert activations[0] == pytest.approx(activations[1], abs=1), "the batch of the first part is one mini-batch"
    assert "27,144" in opening("batch_64k") and first["schedule"]["steps"] == 27_144
    for value in ("87.32", "86.66"):
        assert value in opening("batch_64k")


def test_the_recipe_siglip_adds_a_bias_to_each_initial_model(tmp_path):
    assert dry_run("siglip", tmp_path)["model"]["parameters"] == 195_902_721 + 1
    BiomedCLIPConfig().save_pretrained(tmp_path / "checkpoint")
    plan = dry_run("siglip", tmp_path, "--model-name-or-path", str(tmp_path / "checkpoint"))
    assert plan["model"]["parameters"] == 195_902_721 + 1


def test_a_locked_image_encoder_is_not_trained(tmp_path):
    plan = dry_run("locked_image_tower", tmp_path)
    image_encoder = plan["parts"]["image encoder"]
    assert image_encoder["trainable_parameters"] == 0
    assert plan["model"]["trainable_parameters"] == 195_902_721 - image_encoder["parameters"]


def test_each_recipe_has_a_description():
    assert set(recipe_names()) == set(ROWS) | OTHERS
    for name in recipe_names():
        assert len(opening(name)) > 40
