"""Other image sizes and patch dropout, compared with timm and open_clip."""

import copy

import open_clip
import pytest
import torch
from helpers.open_clip_models import open_clip_model, with_same_weights
from timm.layers import resample_abs_pos_embed
from transformers import AutoModel

from biomedclip import BiomedCLIPModel
from biomedclip.modeling_biomedclip import patches_kept


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The model of open_clip with two layers and patch dropout of 0.5, and ours."""
    theirs = open_clip_model(tmp_path_factory.mktemp("bert"), 2, patch_dropout=0.5)
    return theirs, with_same_weights(theirs, 2, patch_dropout=0.5)


@torch.no_grad()
def test_patch_dropout_gives_the_features_of_open_clip_for_the_same_seed(models):
    theirs, ours = (model.train() for model in models)
    images = torch.randn(3, 3, 224, 224)
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = theirs.encode_image(images)
        torch.manual_seed(seed)
        assert torch.equal(ours.get_image_features(images).pooler_output, expected)
    assert not torch.equal(ours.get_image_features(images).pooler_output, expected), "other patches at each call"


@torch.no_grad()
def test_open_clips_own_layer_keeps_the_same_patches_from_the_same_noise(models, monkeypatch):
    embeddings = models[1].vision_model.embeddings.train()
    layer, theirs = embeddings.patch_dropout, open_clip.transformer.PatchDropout(0.5, exclude_first_token=True)
    tokens = torch.randn(4, 197, 8)
    noise = torch.randn(4, 196)
    monkeypatch.setattr(torch, "randn", lambda *shape, **kwargs: noise)
    ours = layer(tokens)
    # open_clip keeps the largest values, and timm the smallest.
    monkeypatch.setattr(torch, "randn", lambda *shape, **kwargs: -noise)
    assert torch.equal(ours, theirs(tokens)) and ours.shape == (4, 99, 8)


@torch.no_grad()
def test_no_patch_is_dropped_in_evaluation_or_with_a_dropout_of_zero(models):
    ours = copy.deepcopy(models[1])
    images = torch.randn(2, 3, 224, 224)
    state = torch.get_rng_state()
    expected = ours.eval().get_image_features(images).pooler_output
    ours.set_patch_dropout(0.0)
    assert torch.equal(ours.train().get_image_features(images).pooler_output, expected)
    assert torch.equal(torch.get_rng_state(), state), "the random state does not change"
    plain = BiomedCLIPModel(ours.config).train()
    plain.load_state_dict(ours.state_dict())
    assert torch.equal(plain.get_image_features(images).pooler_output, expected)


def test_each_image_keeps_other_patches_and_the_class_token(models):
    embeddings = models[1].vision_model.embeddings.train()
    numbered = torch.arange(197.0)[None, :, None].expand(8, -1, 4)
    kept = embeddings.patch_dropout(numbered)[:, :, 0]
    assert kept.shape == (8, 99) and (kept[:, 0] == 0).all()
    assert all(len(row.unique()) == 99 for row in kept), "no patch is repeated"
    assert len({tuple(row.tolist()) for row in kept}) == 8


def test_at_least_one_patch_is_kept():
    assert patches_kept(196, 0.5) == 98 and patches_kept(196, 0.75) == 49 and patches_kept(4, 0.9) == 1


@pytest.mark.parametrize("share", [1.0, -0.1])
def test_an_invalid_patch_dropout_is_an_error(small_model, share):
    with pytest.raises(ValueError, match="patch_dropout must be at least 0 and less than 1"):
        small_model.set_patch_dropout(share)


def test_patch_dropout_is_saved_with_the_model(small_model, tmp_path):
    small_model.set_patch_dropout(0.25)
    small_model.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).vision_model.embeddings.patch_dropout.fraction == 0.25


@pytest.mark.parametrize("size", [16, 32, 48, 64])
def test_interpolated_position_embeddings_are_those_of_timm(small_model, size):
    positions = small_model.vision_model.embeddings.position_embedding.detach().clone()
    small_model.resize_images(size)
    ours = small_model.vision_model.embeddings.position_embedding
    assert torch.equal(ours, resample_abs_pos_embed(positions, [size // 8, size // 8]))
    assert ours.requires_grad and ours.shape[1] == (size // 8) ** 2 + 1


def test_a_resized_model_accepts_the_new_size_and_loads(small_model, tmp_path):
    small_model.resize_images(48)
    images = torch.randn(2, 3, 48, 48)
    small_model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.vision_config.image_size == 48
    assert torch.equal(
        loaded.get_image_features(images).pooler_output, small_model.get_image_features(images).pooler_output
    )
    with pytest.raises(ValueError, match="the model expects 48 x 48"):
        small_model.get_image_features(torch.randn(2, 3, 32, 32))
    with pytest.raises(ValueError, match="must be a multiple of patch_size"):
        small_model.resize_images(50)
