"""Anyone's model gives through our interface what its own library gives."""

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import normalize
from transformers import (
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    SiglipConfig,
    SiglipModel,
)

from biomedclip import embed_texts
from biomedclip.run_scripts.evaluation.dual_encoders import load_dual_encoder
from biomedclip.run_scripts.training.adapters import AdapterOptions, add_adapter


TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXTS = ["a chest x-ray", "a line chart of the article", "brain mri"]


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(256, size=(50, 60, 3), dtype=np.uint8)) for _ in range(3)]


def pixels_of(encoder, images):
    return encoder.processor.image_processor(images, return_tensors="pt")["pixel_values"]


def test_biomedclip_and_an_adapter_of_it(small_checkpoint, images, tmp_path):
    plain = load_dual_encoder(str(small_checkpoint))
    assert plain.type == "biomedclip" and len(plain.weights) == 16
    adapted = add_adapter(plain.model, AdapterOptions(lora_rank=2))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = load_dual_encoder(str(tmp_path / "adapter"))
    assert loaded.type == "biomedclip" and loaded.weights != plain.weights
    expected = normalize(adapted.get_image_features(pixel_values=pixels_of(loaded, images)).pooler_output, dim=-1)
    torch.testing.assert_close(loaded.embed_pixels(pixels_of(loaded, images)), expected.detach(), rtol=0, atol=1e-6)
    unadapted = load_dual_encoder(str(small_checkpoint))
    assert not torch.allclose(unadapted.embed_pixels(pixels_of(unadapted, images)), expected, atol=1e-3)


def test_clip(images, tmp_path):
    vocabulary = {
        token: number for number, token in enumerate(["<|startoftext|>", "<|endoftext|>", *map(chr, range(33, 127))])
    }
    vocabulary |= {f"{chr(code)}</w>": len(vocabulary) + code for code in range(33, 127)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"), model_max_length=40
    )
    torch.manual_seed(0)
    config = CLIPConfig(
        projection_dim=16,
        vision_config=TOWER | {"image_size": 32, "patch_size": 8},
        text_config=TOWER
        | {"vocab_size": 256, "max_position_embeddings": 40, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
    )
    model = CLIPModel(config).eval()
    processor = CLIPProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), tokenizer
    )
    model.save_pretrained(tmp_path / "clip"), processor.save_pretrained(tmp_path / "clip")
    encoder = load_dual_encoder(str(tmp_path / "clip"))
    assert encoder.type == "clip"
    with torch.no_grad():
        theirs = model(**processor(text=TEXTS, images=images, padding=True, return_tensors="pt"))
    torch.testing.assert_close(encoder.embed_pixels(pixels_of(encoder, images)), theirs.image_embeds, rtol=0, atol=1e-6)
    texts = embed_texts(encoder.model, encoder.processor, TEXTS)
    torch.testing.assert_close(texts, theirs.text_embeds, rtol=0, atol=1e-6)
    assert encoder.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert encoder.embed_pixels(pixels_of(encoder, images), "hidden").shape == (3, 32)


def test_siglip_gets_texts_of_the_full_length(small_processor, images, tmp_path):
    torch.manual_seed(0)
    config = SiglipConfig(
        vision_config=TOWER | {"image_size": 32, "patch_size": 8},
        text_config=TOWER | {"vocab_size": 128, "max_position_embeddings": 24, "projection_size": 32},
    )
    model = SiglipModel(config).eval()
    tokenizer = small_processor.tokenizer
    model.save_pretrained(tmp_path)
    small_processor.save_pretrained(tmp_path)
    encoder = load_dual_encoder(str(tmp_path))
    assert encoder.type == "siglip"
    padded = tokenizer(TEXTS, padding="max_length", max_length=24, truncation=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(
            input_ids=padded["input_ids"],
            attention_mask=padded["attention_mask"],
            pixel_values=pixels_of(encoder, images),
        )
    texts = embed_texts(encoder.model, encoder.processor, TEXTS, max_length=24)
    torch.testing.assert_close(texts, theirs.text_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder.embed_pixels(pixels_of(encoder, images)), theirs.image_embeds, rtol=0, atol=1e-6)


def test_an_open_clip_folder_of_another_model_than_biomedclip(images, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    configuration = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    preprocessing = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": configuration, "preprocess_cfg": preprocessing})
    )
    torch.manual_seed(0)
    model = CLIP(**configuration).eval()
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()},
        tmp_path / "open_clip_model.safetensors",
    )
    encoder = load_dual_encoder(str(tmp_path))
    assert encoder.type == "open_clip"
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    _, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    with torch.no_grad():
        image_embeds = model.encode_image(torch.stack([preprocess(image) for image in images]), normalize=True)
        text_embeds = model.encode_text(tokenizer(TEXTS), normalize=True)
    ours = encoder.embed_pixels(pixels_of(encoder, images))
    torch.testing.assert_close(ours, image_embeds, rtol=0, atol=1e-6)
    texts = embed_texts(encoder.model, encoder.processor, TEXTS)
    torch.testing.assert_close(texts, text_embeds, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="use --probe-features embeds"):
        encoder.embed_pixels(pixels_of(encoder, images), "hidden")


class StandInImages(nn.Module):
    """The interface of health_multimodal's ImageModel, as its documentation has it; not its weights."""

    def __init__(self):
        super().__init__()
        self.projection = nn.Linear(64, 16)

    def forward(self, pixels):
        return SimpleNamespace(projected_global_embedding=self.projection(pixels.mean(dim=1).flatten(1)))


class StandInTexts(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(128, 16)

    def get_projected_text_embeddings(self, input_ids, attention_mask):
        return (self.words(input_ids) * attention_mask[..., None]).sum(dim=1)


def test_biovil_through_a_stand_in_of_its_packages_interface(monkeypatch, small_processor, images):
    """The package itself is not to be had here: this holds our side of the interface, not theirs."""
    torch.manual_seed(0)
    image_model, text_model = StandInImages(), StandInTexts()
    modes = []

    def transform(image):
        modes.append(image.mode)
        return torch.from_numpy(np.array(image.resize((8, 8)), dtype=np.float32) / 255).expand(3, -1, -1)

    package = {
        name: ModuleType(name) for name in ("health_multimodal", "health_multimodal.image", "health_multimodal.text")
    }
    image_utils, text_utils = ModuleType("health_multimodal.image.utils"), ModuleType("health_multimodal.text.utils")
    image_utils.ImageModelType = SimpleNamespace(BIOVIL_T="t", BIOVIL="plain")
    image_utils.get_image_inference = lambda kind: SimpleNamespace(model=image_model, transform=transform)
    text_utils.BertEncoderType = SimpleNamespace(BIOVIL_T_BERT="t", CXR_BERT="plain")
    text_utils.get_bert_inference = lambda kind: SimpleNamespace(model=text_model, tokenizer=small_processor.tokenizer)
    package |= {image_utils.__name__: image_utils, text_utils.__name__: text_utils}
    for name, module in package.items():
        monkeypatch.setitem(sys.modules, name, module)
    encoder = load_dual_encoder("biovil-t")
    assert encoder.type == "biovil-t" and encoder.logit_scale == 1
    embeds = encoder.embed_pixels(pixels_of(encoder, images))
    pixels = torch.stack([transform(image.convert("L")) for image in images])
    expected = normalize(image_model(pixels).projected_global_embedding, dim=-1)
    torch.testing.assert_close(embeds, expected.detach())
    assert set(modes) == {"L"}
    tokens = small_processor.tokenizer(TEXTS, padding=True, return_tensors="pt")
    projected = text_model.get_projected_text_embeddings(tokens["input_ids"], tokens["attention_mask"])
    texts = embed_texts(encoder.model, encoder.processor, TEXTS)
    torch.testing.assert_close(texts, normalize(projected, dim=-1).detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("biovil-t", ImportError, "needs the package health_multimodal: pip install hi-ml-multimodal"),
        ("nowhere", FileNotFoundError, "there is no such folder"),
        ("{tmp}", (OSError, ValueError), "config.json|model_type"),
    ],
)
def test_models_that_cannot_be_had_are_named(name, error, message, tmp_path, monkeypatch):
    for module in ("health_multimodal", "health_multimodal.image.utils"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(error, match=message):
        load_dual_encoder(name.format(tmp=tmp_path))


def test_a_model_of_one_tower_is_refused(small_checkpoint, small_processor, tmp_path):
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(vocab_size=128, num_hidden_layers=1, hidden_size=32, num_attention_heads=2)).save_pretrained(
        tmp_path
    )
    BertTokenizer.save_pretrained(small_processor.tokenizer, tmp_path)
    with pytest.raises(ValueError, match="is a BertModel, not a dual encoder"):
        load_dual_encoder(str(tmp_path))
