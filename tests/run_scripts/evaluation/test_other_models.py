"""Models that the paper compares with are evaluated as their own libraries embed images and texts."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from biomedclip import embed_images, embed_texts
from biomedclip.processing import load_pmc15m
from biomedclip.run_scripts.evaluation.dual_encoders import load_dual_encoder
from biomedclip.run_scripts.main import main


TEXTS = ["a chest x-ray", "H&E stain of breast tissue", "Findings: no pneumonia. " * 40]
CLASSES = ["chest x-ray", "brain mri"]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    shapes = [(224, 300, 3), (301, 240, 3), (500, 224, 3), (224, 224, 3)]
    return [Image.fromarray(generator.integers(256, size=shape, dtype=np.uint8)) for shape in shapes]


@pytest.fixture
def classes(images, tmp_path) -> Path:
    """Images in a folder for each class."""
    for number, image in enumerate(images):
        folder = tmp_path / "classes" / CLASSES[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number}.png")
    return tmp_path / "classes"


def evaluate(task: str, model: Path, data: Path, folder: Path, *options: str) -> dict:
    arguments = [task, "--model", str(model), "--data", str(data), "--output-dir", str(folder), *options]
    assert main(["evaluate", *arguments]) == 0
    return json.loads((folder / "results.json").read_text())


def check_commands(model: Path, classes: Path, built: Path, embed, folder: Path) -> None:
    """Compare both commands with similarities of embeddings that another library made."""
    template = "a photo of {}"
    zero_shot = evaluate("zero-shot", model, classes, folder / "zero_shot", "--templates", template)
    names = sorted(CLASSES)
    files = [path for name in names for path in sorted((classes / name).iterdir())]
    images, texts = embed([Image.open(path) for path in files], [template.format(name) for name in names])
    correct = [names[row] == path.parent.name for row, path in zip((images @ texts.T).argmax(1), files, strict=True)]
    assert zero_shot["metrics"]["accuracy"] == pytest.approx(np.mean(correct))
    assert zero_shot["metrics"]["images"] == len(files)

    rows = list(load_pmc15m(built, split="test"))
    retrieval = evaluate("retrieval", model, built, folder / "retrieval")
    images, texts = embed([row["image"] for row in rows], [row["caption"] for row in rows])
    similarities = (images @ texts.T).numpy()
    higher = (similarities > similarities.diagonal()[:, None] + 1e-6).sum(1)
    as_high = (similarities >= similarities.diagonal()[:, None] - 1e-6).sum(1)
    recall = retrieval["metrics"]["image_to_text"]["recall_at_5"]
    # Captions that are equal tie. The mean over all orders lies between all ties lost and all ties won.
    assert (as_high <= 5).mean() - 1e-6 <= recall <= (higher < 5).mean() + 1e-6


def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Give biases, norms and statistics values that are not zeros and ones, so that a lost tensor shows."""
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            noise = torch.rand_like(tensor) * 0.2
            tensor.copy_(1 + noise if "var" in name or tensor.mean() > 0.5 else noise)
    return model.eval()


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_resnet_clip_of_open_clip_is_evaluated_as_open_clip_does(quick_gelu, images, classes, built, tmp_path):
    """The rows of the paper with ResNet-50 need CLIP's own ResNet, which transformers does not have."""
    settings = open_clip.get_model_config("RN50-quickgelu" if quick_gelu else "RN50")
    assert settings["vision_cfg"] == {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": None}
    settings["embed_dim"] = 32
    settings["vision_cfg"] |= {"image_size": 64, "layers": [1, 1, 2, 1], "width": 8}
    settings["text_cfg"] |= {"width": 32, "heads": 2, "layers": 2}
    model = fill(open_clip.CLIP(**settings))
    folder = tmp_path / "rn50"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": {}}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")

    encoder = load_dual_encoder(str(folder))
    assert encoder.type == "open_clip" and type(encoder.model.model.visual).__name__ == "ModifiedResNet"
    assert encoder.logit_scale == pytest.approx(model.logit_scale.exp().item())
    _, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")

    @torch.no_grad()
    def embed(pictures, texts):
        pixels = torch.stack([preprocess(picture.convert("RGB")) for picture in pictures])
        return model.encode_image(pixels, normalize=True), model.encode_text(tokenize(texts), normalize=True)

    image_embeds, text_embeds = embed(images, TEXTS)
    ours = embed_images(encoder.model, encoder.processor, images)
    torch.testing.assert_close(ours, image_embeds, rtol=0, atol=1e-6)
    ours = embed_texts(encoder.model, encoder.processor, TEXTS)
    torch.testing.assert_close(ours, text_embeds, rtol=0, atol=1e-6)
    check_commands(folder, classes, built, embed, tmp_path)


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
TEXT_TOWER = {"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8} | {
    "num_hidden_layers": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
IMAGE_TOWER = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12} | {
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
}
CLIP_B_32 = {"projection_dim": 512, "text_config_dict": None, "vision_config_dict": None}


def write_clip(folder: Path, preprocessing: dict, depth: int) -> CLIPModel:
    """Write the files of a CLIP ViT-B/32 repository, with random weights, fewer layers, and CLIP's own vocabulary."""
    towers = {"text_config": TEXT_TOWER | {"num_hidden_layers": depth}}
    towers |= {"vision_config": IMAGE_TOWER | {"num_hidden_layers": depth}}
    config = {"architectures": ["CLIPModel"], "model_type": "clip", **CLIP_B_32, **towers}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    vocabulary = SimpleTokenizer()
    words = {word.replace("<start_of_text>", "<|startoftext|>"): number for word, number in vocabulary.encoder.items()}
    words = {word.replace("<end_of_text>", "<|endoftext|>"): number for word, number in words.items()}
    (folder / "vocab.json").write_text(json.dumps(words))
    merges = [" ".join(pair) for pair in sorted(vocabulary.bpe_ranks, key=vocabulary.bpe_ranks.__getitem__)]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    special |= {"unk_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True})
    )
    model = fill(CLIPModel(CLIPConfig.from_pretrained(folder)))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_pubmedclip_and_plip_are_evaluated_as_transformers_does(name, images, classes, built, tmp_path):
    model = write_clip(tmp_path / name, PUBLISHED[name], depth=1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
    transform = CLIPImageProcessorPil.from_pretrained(tmp_path / name)
    theirs = open_clip.get_tokenizer("ViT-B-32")(TEXTS)
    ids = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt")["input_ids"]
    for ours, expected in zip(ids, theirs, strict=True):
        used = int(expected.argmax()) + 1
        assert ours[:used].tolist() == expected[:used].tolist(), "CLIP's vocabulary"

    @torch.no_grad()
    def embed(pictures, texts):
        """One image and one text at a time, without anything of ours."""
        image_embeds, text_embeds = [], []
        for picture in pictures:
            pixels = transform(picture.convert("RGB"), return_tensors="pt")
            image_embeds.append(normalize(model.get_image_features(**pixels).pooler_output, dim=-1))
        for text in texts:
            tokens = tokenizer([text], truncation=True, max_length=77, return_tensors="pt")
            text_embeds.append(normalize(model.get_text_features(**tokens).pooler_output, dim=-1))
        return torch.cat(image_embeds), torch.cat(text_embeds)

    encoder = load_dual_encoder(str(tmp_path / name))
    assert encoder.type == "clip" and encoder.model.config.vision_config.patch_size == 32
    image_embeds, text_embeds = embed(images, TEXTS)
    ours = embed_images(encoder.model, encoder.processor, images)
    torch.testing.assert_close(ours, image_embeds, rtol=0, atol=2e-6)
    ours = embed_texts(encoder.model, encoder.processor, TEXTS)
    torch.testing.assert_close(ours, text_embeds, rtol=0, atol=2e-6)
    check_commands(tmp_path / name, classes, built, embed, tmp_path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_configuration_of_pubmedclip_and_plip_has_the_size_of_clip_vit_b_32(name):
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(**CLIP_B_32, text_config=TEXT_TOWER, vision_config=IMAGE_TOWER))
        theirs = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32-quickgelu"))
    assert model.num_parameters() == sum(parameter.numel() for parameter in theirs.parameters()) == 151_277_313
