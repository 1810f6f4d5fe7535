"""The recipes of docs/building_blocks.md give what LLaVA, timm and NumPy give."""

import copy

import numpy as np
import pytest
import torch
from conftest import SMALL_CONFIG
from helpers.benchmark_files import save_drawn
from helpers.commands import ROOT
from helpers.open_clip_models import open_clip_model, with_same_weights
from helpers.pages import blocks_of
from transformers import AutoModelForImageTextToText

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel, BiomedCLIPVisionModel, embed_images


pytestmark = pytest.mark.slow
PAGE = ROOT / "docs" / "building_blocks.md"


@pytest.fixture(scope="module")
def page(small_processor, tmp_path_factory):
    """The names that the blocks of the page define, except the first block, and the folder in which they ran."""
    folder = tmp_path_factory.mktemp("page")
    config = copy.deepcopy(SMALL_CONFIG)
    config["vision_config"]["num_hidden_layers"] = 4
    BiomedCLIPModel(BiomedCLIPConfig(**config)).save_pretrained(folder / "out" / "model")
    small_processor.save_pretrained(folder / "out" / "model")
    save_drawn(folder / "figure.png", 0, 80)
    for number in range(5):
        save_drawn(folder / "scans" / "test" / f"{number}.png", number, 64)
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in blocks_of(PAGE)[1:]:
            if block.language == "python" and not block.not_run:
                exec(compile(block.code, str(PAGE), "exec"), names)
    return names, folder


@torch.no_grad()
def test_llava_of_transformers_takes_the_same_tokens(page):
    names, folder = page
    llava, pixel_values = names["llava"], names["pixel_values"]
    projector = llava.model.multi_modal_projector
    ours = projector(names["patch_tokens"](names["vision"], pixel_values))
    theirs = llava.get_image_features(pixel_values, vision_feature_layer=-2, vision_feature_select_strategy="default")
    torch.testing.assert_close(ours, torch.stack(list(theirs.pooler_output)))
    assert names["image_tokens"].shape == (1, 16, 512)
    reloaded = AutoModelForImageTextToText.from_pretrained(folder / "llava")
    assert isinstance(reloaded.model.vision_tower, BiomedCLIPVisionModel)
    logits = reloaded(input_ids=names["input_ids"], pixel_values=pixel_values).logits
    torch.testing.assert_close(logits, names["logits"])


@torch.no_grad()
def test_tiles_are_features_of_the_class_token_in_the_order_of_names(page):
    names, folder = page
    saved = np.load(folder / "slide.npz")
    assert saved["names"].tolist() == [f"{number}.png" for number in range(5)]
    model = BiomedCLIPModel.from_pretrained(folder / "out" / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        images = names["tiles"][0:5]
    embeds = torch.nn.functional.normalize(model.visual_projection(torch.tensor(saved["features"])), dim=-1)
    processor = type("Processor", (), {"image_processor": names["image_processor"]})
    torch.testing.assert_close(embeds, embed_images(model, processor, images), rtol=0, atol=1e-6)


@torch.no_grad()
def test_features_are_those_of_timm(page, tmp_path):
    theirs = open_clip_model(tmp_path, 3).eval()
    trunk, vision = theirs.visual.trunk, with_same_weights(theirs, 3).vision_model.eval()
    pixel_values = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(vision(pixel_values).last_hidden_state, trunk.forward_features(pixel_values))
    expected = trunk.forward_intermediates(pixel_values, indices=[0, 2], intermediates_only=True)
    maps = page[0]["feature_maps"](vision, pixel_values, [0, 2])
    assert [each.shape for each in maps] == [(2, 768, 14, 14)] * 2
    for ours, timms in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, timms)
    assert trunk.num_features == vision.config.hidden_size
