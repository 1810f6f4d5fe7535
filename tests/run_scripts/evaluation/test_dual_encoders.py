"""Models of other libraries give the embeddings of these libraries."""

import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from helpers.model_results import read_results
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import normalize
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from biomedclip import embed_images, embed_texts
from biomedclip.processing import load_pmc15m
from biomedclip.run_scripts.evaluation.dual_encoders import DualEncoder, load_dual_encoder
from biomedclip.run_scripts.main import main
from biomedclip.run_scripts.training.adapters import AdapterOptions, add_adapter


TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXTS = ["a chest x-ray", "H&E stain of breast tissue", "Findings: no pneumonia. " * 40]
CLASSES = ["brain mri", "chest x-ray"]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    shapes = [(224, 300, 3), (301, 240, 3), (500, 224, 3), (224, 224, 3)]
    return [Image.fromarray(generator.integers(256, size=shape, dtype=np.uint8)) for shape in shapes]


def fill(model: nn.Module) -> nn.Module:
    """Give biases, norms and statistics values other than zero and one, so that a lost tensor changes the output."""
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            noise = torch.rand_like(tensor) * 0.2
            tensor.copy_(1 + noise if "var" in name or tensor.mean() > 0.5 else noise)
    return model.eval()


def check_embeddings(encoder: DualEncoder, images: list, embed, atol: float) -> None:
    image_embeds, text_embeds = embed(images, TEXTS)
    ours = embed_images(encoder.model, encoder.processor, images)
    torch.testing.assert_close(ours, image_embeds, rtol=0, atol=atol)
    torch.testing.assert_close(embed_texts(encoder.model, encoder.processor, TEXTS), text_embeds, rtol=0, atol=atol)


def check_commands(model: Path, images: list, built: Path, embed, folder: Path) -> None:
    """Compare the results of two commands with similarities of embeddings that another library made."""
    for number, image in enumerate(images):
        of_class = folder / "classes" / CLASSES[number % 2]
        of_class.mkdir(parents=True, exist_ok=True)
        image.save(of_class / f"{number}.png")

    def evaluate(task: str, data: Path, *options: str) -> dict:
        arguments = [task, "--model", str(model), "--data", str(data), "--output-dir", str(folder / task), *options]
        assert main(["evaluate", *arguments]) == 0
        return read_results(folder / task)["metrics"]

    template = "a photo of {}"
    zero_shot = evaluate("zero-shot", folder / "classes", "--templates", template)
    files = [path for name in CLASSES for path in sorted((folder / "classes" / name).iterdir())]
    image_embeds, text_embeds = embed([Image.open(path) for path in files], [template.format(name) for name in CLASSES])
    predicted = (image_embeds @ text_embeds.T).argmax(1)
    correct = [CLASSES[row] == path.parent.name for row, path in zip(predicted, files, strict=True)]
    assert zero_shot["accuracy"] == pytest.approx(np.mean(correct)) and zero_shot["images"] == len(files)

    rows = list(load_pmc15m(built, split="test"))
    retrieval = evaluate("retrieval", built)
    image_embeds, text_embeds = embed([row["image"] for row in rows], [row["caption"] for row in rows])
    scores = (image_embeds @ text_embeds.T).numpy()
    better = (scores > scores.diagonal()[:, None] + 1e-6).sum(1)
    at_least = (scores >= scores.diagonal()[:, None] - 1e-6).sum(1)
    recall = retrieval["image_to_text"]["recall_at_5"]
    # Equal captions tie. The mean over all orders lies between all ties lost and all ties won.
    assert (at_least <= 5).mean() - 1e-6 <= recall <= (better < 5).mean() + 1e-6


def test_an_adapter_gives_the_embeddings_of_the_adapted_model(small_checkpoint, images, tmp_path):
    plain = load_dual_encoder(str(small_checkpoint))
    assert plain.type == "biomedclip" and len(plain.weights) == 16
    before = embed_images(plain.model, plain.processor, images)
    adapted = add_adapter(plain.model, AdapterOptions(lora_rank=2))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(tmp_path)
    loaded = load_dual_encoder(str(tmp_path))
    assert loaded.type == "biomedclip" and loaded.weights != plain.weights
    embeds = embed_images(loaded.model, loaded.processor, images)
    torch.testing.assert_close(embeds, embed_images(adapted, plain.processor, images), rtol=0, atol=1e-6)
    assert not torch.allclose(embeds, before, atol=1e-3)


def test_siglip_gets_texts_padded_to_the_full_length(small_processor, images, tmp_path):
    torch.manual_seed(0)
    config = SiglipConfig(
        vision_config=TOWER | {"image_size": 32, "patch_size": 8},
        text_config=TOWER | {"vocab_size": 128, "max_position_embeddings": 24, "projection_size": 32},
    )
    model = SiglipModel(config).eval()
    model.save_pretrained(tmp_path)
    small_processor.save_pretrained(tmp_path)
    encoder = load_dual_encoder(str(tmp_path))
    assert encoder.type == "siglip"
    tokens = small_processor.tokenizer(TEXTS, padding="max_length", max_length=24, truncation=True, return_tensors="pt")
    pixels = encoder.processor.image_processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        theirs = model(**tokens, pixel_values=pixels)
    texts = embed_texts(encoder.model, encoder.processor, TEXTS, max_length=24)
    torch.testing.assert_close(texts, theirs.text_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder.embed_pixels(pixels), theirs.image_embeds, rtol=0, atol=1e-6)
    assert encoder.embed_pixels(pixels, "hidden").shape == (4, 32)


def write_open_clip(name: str, folder: Path):
    """Write a narrow model of open_clip, and return the model and its own way to embed."""
    settings = open_clip.get_model_config(name)
    settings["embed_dim"] = 32
    if name.startswith("RN50"):  # the paper compares with it, and transformers does not have it
        assert settings["vision_cfg"] == {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": None}
        settings["vision_cfg"] |= {"image_size": 64, "layers": [1, 1, 2, 1], "width": 8}
    else:
        settings["vision_cfg"] |= {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    settings["text_cfg"] |= {"width": 32, "heads": 2, "layers": 2}
    model = fill(open_clip.CLIP(**settings))
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": {}}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    _, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")

    @torch.no_grad()
    def embed(pictures, texts):
        pixels = torch.stack([preprocess(picture.convert("RGB")) for picture in pictures])
        return model.encode_image(pixels, normalize=True), model.encode_text(tokenize(texts), normalize=True)

    return model, embed


@pytest.mark.parametrize(
    ("name", "visual"),
    [("ViT-B-32", "VisionTransformer"), ("RN50", "ModifiedResNet"), ("RN50-quickgelu", "ModifiedResNet")],
)
def test_an_open_clip_folder_is_embedded_as_by_open_clip(name, visual, images, tmp_path):
    model, embed = write_open_clip(name, tmp_path)
    encoder = load_dual_encoder(str(tmp_path))
    assert encoder.type == "open_clip" and type(encoder.model.model.visual).__name__ == visual
    assert encoder.logit_scale == pytest.approx(model.logit_scale.exp().item())
    check_embeddings(encoder, images, embed, atol=1e-6)
    with pytest.raises(ValueError, match="Use --probe-features embeds"):
        encoder.embed_pixels(torch.zeros(1, 3, 32, 32), "hidden")


@pytest.mark.slow
def test_commands_evaluate_a_resnet_clip_as_open_clip_does(images, built, tmp_path):
    (tmp_path / "model").mkdir()
    _, embed = write_open_clip("RN50", tmp_path / "model")
    check_commands(tmp_path / "model", images, built, embed, tmp_path)


# Two generations of files: OpenAI's checkpoints of 2022, which PubMedCLIP copies, and those that transformers wrote a
# year later, such as PLIP's. Both name an image processor that transformers 5 does not have.
PREPROCESSING = {"do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3} | {
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": list(OPENAI_CLIP_MEAN),
    "image_std": list(OPENAI_CLIP_STD),
}
PUBLISHED = {
    "pubmed-clip-vit-base-patch32": PREPROCESSING | {"crop_size": 224, "size": 224},
    "plip": PREPROCESSING
    | {"crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 224}, "do_convert_rgb": True}
    | {"do_rescale": True, "rescale_factor": 1 / 255, "image_processor_type": "CLIPFeatureExtractor"},
}
CLIP_TEXT = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}


def write_clip(folder: Path, preprocessing: dict):
    """Write the files of a CLIP ViT-B/32 repository with narrow towers, and return transformers' own way to embed."""
    tower = TOWER | {"hidden_act": "quick_gelu"}
    towers = {"text_config": tower | CLIP_TEXT, "vision_config": tower | {"image_size": 224, "patch_size": 32}}
    config = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 16, **towers}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    vocabulary = SimpleTokenizer()
    named = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    words = {named.get(word, word): number for word, number in vocabulary.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(words))
    merges = [" ".join(pair) for pair in sorted(vocabulary.bpe_ranks, key=vocabulary.bpe_ranks.__getitem__)]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    end = "<|endoftext|>"
    special = {"bos_token": "<|startoftext|>", "eos_token": end, "pad_token": end, "unk_token": end}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(special | settings))
    model = fill(CLIPModel(CLIPConfig.from_pretrained(folder)))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    transform = CLIPImageProcessorPil.from_pretrained(folder)

    @torch.no_grad()
    def embed(pictures, texts):
        """One image and one text at a time, without any of our code."""
        pixels = [transform(picture.convert("RGB"), return_tensors="pt") for picture in pictures]
        tokens = [tokenizer([text], truncation=True, max_length=77, return_tensors="pt") for text in texts]
        image_embeds = torch.cat([model.get_image_features(**batch).pooler_output for batch in pixels])
        text_embeds = torch.cat([model.get_text_features(**batch).pooler_output for batch in tokens])
        return normalize(image_embeds, dim=-1), normalize(text_embeds, dim=-1)

    return tokenizer, embed


@pytest.mark.parametrize("name", PUBLISHED)
def test_pubmedclip_and_plip_are_embedded_as_by_transformers(name, images, tmp_path):
    tokenizer, embed = write_clip(tmp_path / name, PUBLISHED[name])
    theirs = open_clip.get_tokenizer("ViT-B-32")(TEXTS)
    ids = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt")["input_ids"]
    for ours, expected in zip(ids, theirs, strict=True):
        used = int(expected.argmax()) + 1
        assert ours[:used].tolist() == expected[:used].tolist(), "CLIP's vocabulary"
    encoder = load_dual_encoder(str(tmp_path / name))
    assert encoder.type == "clip" and encoder.model.config.vision_config.patch_size == 32
    check_embeddings(encoder, images, embed, atol=2e-6)


@pytest.mark.slow
def test_commands_evaluate_plip_as_transformers_does(images, built, tmp_path):
    _, embed = write_clip(tmp_path / "plip", PUBLISHED["plip"])
    check_commands(tmp_path / "plip", images, built, embed, tmp_path)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("biovil-t", ImportError, "requires the package health_multimodal. Install it: pip install hi-ml-multimodal"),
        ("nowhere", FileNotFoundError, "is neither a folder nor an id on the Hub"),
        ("{tmp}", (OSError, ValueError), "config.json|model_type"),
    ],
)
def test_the_error_for_a_model_that_cannot_be_loaded_names_the_cause(name, error, message, tmp_path, monkeypatch):
    for module in ("health_multimodal", "health_multimodal.image.utils"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(error, match=message):
        load_dual_encoder(name.format(tmp=tmp_path))


def test_a_model_with_one_tower_is_refused(small_processor, tmp_path):
    BertModel(BertConfig(vocab_size=128, **TOWER)).save_pretrained(tmp_path)
    small_processor.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a BertModel, not a dual encoder"):
        load_dual_encoder(str(tmp_path))
