"""Holds a converted checkpoint against open_clip: the same images and labels through both, stage by stage."""

import importlib.util
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import model_info

from biomedclip import to_open_clip
from biomedclip.conversion import load_any_layout
from biomedclip.conversion.open_clip import OPEN_CLIP_CONFIG, PUBLISHED_NAMES, bert_config_of
from biomedclip.conversion.open_clip_settings import is_at_hand, is_clip_text
from biomedclip.processing import read_image
from biomedclip.processing.images.folders import find_images, warn_of_left_out
from biomedclip.processing.images.reading import ImageError
from biomedclip.processing.synthetic_corpus.figures import FIGURE_KINDS

from ..cli.reporting import say, show_table
from .open_clip_folders import load_with_open_clip


logger = logging.getLogger(__name__)

# The example of the published model card.
TEMPLATE = "this is a photo of {}"
LABELS = (
    "adenocarcinoma histopathology",
    "brain MRI",
    "covid line chart",
    "squamous cell carcinoma histopathology",
    "immunohistochemistry histopathology",
    "bone X-ray",
    "chest X-ray",
    "pie chart",
    "hematoxylin and eosin histopathology",
)
BATCH_SIZE = 16
# Equal to the last bit is usual; other shapes of products on other processors may round otherwise.
LARGEST_DIFFERENCE = 2e-6


def verify(source: Path, result: Path, layout: str, images: Sequence[str]) -> dict[str, Any]:
    """Runs open_clip and transformers on the labels of the published card and on images, on the CPU in float32.

    Args:
        source: Folder that was converted.
        result: Folder that it was converted to.
        layout: Layout of the result, `transformers` or `open_clip`; the other side of the comparison is the source, or
            where that is in another layout, the result written once more.
        images: Files, or folders of them; drawn figures where there are none.

    Returns:
        The largest difference of each stage, on how many images both implementations agree about the best label,
        whether that is `equal` within `LARGEST_DIFFERENCE`, and whether open_clip had to be told the configuration of
        its BERT (`bert_assumed`), whose heads and epsilon then are not part of what was compared.

    Raises:
        ImportError: open_clip is not installed.
        FileNotFoundError: No images where they should be.
    """
    if importlib.util.find_spec("open_clip") is None:
        raise ImportError(
            "--verify compares with open_clip, which is not installed: pip install 'biomedclip[open_clip]'"
        )
    pictures = pictures_to_compare(images)
    with tempfile.TemporaryDirectory() as scratch:
        written = result
        if layout == "transformers":
            model, processor = load_any_layout(result)
            written = source
        else:
            model, processor = load_any_layout(source)
        if not (written / OPEN_CLIP_CONFIG).is_file():
            written = Path(scratch) / "written"
            to_open_clip(model, processor, written)
        loadable = _loadable(written, model.config.text_config, Path(scratch))
        ours, theirs = _ours(model, processor, pictures), _theirs(loadable, pictures)
    stages = {name: (ours[name].double() - theirs[name].double()).abs().max().item() for name in ours}
    agreement = (ours["probabilities"].argmax(dim=1) == theirs["probabilities"].argmax(dim=1)).sum().item()
    return {
        "images": len(pictures),
        "labels": len(LABELS),
        "largest_difference": stages,
        "same_best_label": agreement,
        "equal": stages["token ids"] == stages["temperature"] == 0
        and max(stages["image embeddings"], stages["text embeddings"]) <= LARGEST_DIFFERENCE,
        "bert_assumed": loadable != written,
    }


def show_verification(verified: dict[str, Any]) -> None:
    """Prints the largest difference of each stage."""
    rows = [(name, f"{difference:.2g}") for name, difference in verified["largest_difference"].items()]
    rows.append(("images with the same best label", f"{verified['same_best_label']} of {verified['images']}"))
    show_table("Against open_clip", rows, ["", "largest difference"])
    if verified["bert_assumed"]:
        say("The BERT that open_clip names cannot be reached: its heads and epsilon were taken from the conversion.")


@torch.no_grad()
def _ours(model: Any, processor: Any, pictures: list[Any]) -> dict[str, torch.Tensor]:
    model.float().set_attn_implementation("sdpa")
    texts = processor(text=[TEMPLATE.format(label) for label in LABELS], padding="max_length", return_tensors="pt")
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
    image_embeds = torch.cat([model.get_image_features(batch).pooler_output for batch in pixels.split(BATCH_SIZE)])
    text_embeds = model.get_text_features(texts["input_ids"]).pooler_output
    return _stages(texts["input_ids"], pixels, image_embeds, text_embeds, model.logit_scale)


@torch.no_grad()
def _theirs(folder: Path, pictures: list[Any]) -> dict[str, torch.Tensor]:
    model, preprocess, tokenizer = load_with_open_clip(folder)
    tokens = tokenizer([TEMPLATE.format(label) for label in LABELS])
    pixels = torch.stack([preprocess(picture) for picture in pictures])
    model.eval()
    image_embeds = torch.cat([model.encode_image(batch) for batch in pixels.split(BATCH_SIZE)])
    return _stages(tokens, pixels, image_embeds, model.encode_text(tokens), model.logit_scale)


def _stages(
    tokens: torch.Tensor,
    pixels: torch.Tensor,
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
) -> dict[str, torch.Tensor]:
    image_embeds, text_embeds = (torch.nn.functional.normalize(each, dim=-1) for each in (image_embeds, text_embeds))
    return {
        "token ids": tokens,
        "pixels": pixels,
        "image embeddings": image_embeds,
        "text embeddings": text_embeds,
        "temperature": logit_scale,
        "probabilities": (logit_scale.exp() * image_embeds @ text_embeds.t()).softmax(dim=-1),
    }


def _loadable(folder: Path, text_config: Any, scratch: Path) -> Path:
    """A folder that open_clip can load.

    open_clip builds the text tower from the configuration of a named BERT. Where that cannot be reached (no network),
    the names are replaced by a folder with the same configuration, and the other files linked.
    """
    config = json.loads((folder / OPEN_CLIP_CONFIG).read_text(encoding="utf-8"))
    text_cfg = config["model_cfg"]["text_cfg"]
    if is_clip_text(text_cfg) or _is_within_reach(text_cfg["hf_model_name"]):
        return folder
    stand_in = scratch / "stand_in"
    stand_in.mkdir()
    for path in folder.iterdir():
        (stand_in / path.name).symlink_to(path.resolve())
    bert_config_of(text_config).save_pretrained(scratch / "bert")
    config["model_cfg"]["text_cfg"]["hf_model_name"] = str(scratch / "bert")
    (stand_in / OPEN_CLIP_CONFIG).unlink()
    (stand_in / OPEN_CLIP_CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return stand_in


def _is_within_reach(name: str) -> bool:
    """Whether the configuration of a BERT is in a folder or the cache, or a published one that the Hub answers for."""
    if is_at_hand(name):
        return True
    if name not in PUBLISHED_NAMES:  # no request for a name that stands in a file
        return False
    try:
        model_info(name, timeout=10)
    except Exception as error:  # no network, a proxy, a name that is gone: each client has its own types
        logger.info("%s cannot be reached (%s); its configuration is written down instead.", name, error)
        return False
    return True


def pictures_to_compare(paths: Sequence[str]) -> list[Any]:
    """Pillow images of at most 8 bits; what cannot be read or compared is named in a warning and left out.

    Args:
        paths: Files, or folders of them; one drawn figure of each kind where there are none.

    Raises:
        FileNotFoundError: A path that is not there, or no images.
        ValueError: None of the images can be compared.
    """
    if not paths:
        return [kind.draw(kind.combination(0), np.random.default_rng(0)) for kind in FIGURE_KINDS.values()]
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"--images {path}: there is no such file or folder.")
        if not path.is_dir():
            files.append(path)
            continue
        content = find_images(path)
        warn_of_left_out(path, [content])
        files += content.images
    if not files:
        raise FileNotFoundError(f"--images {' '.join(paths)}: no images there.")
    pictures = []
    for file in files:
        try:
            picture = read_image(file)
        except ImageError as error:
            logger.warning("Left out of the comparison: %s", error)
            continue
        if picture.mode.startswith(("I", "F")):
            logger.warning("Left out of the comparison: %s has more than 8 bits, which open_clip clips.", file)
        else:
            pictures.append(picture)
    if not pictures:
        raise ValueError(f"--images {' '.join(paths)}: none of the {len(files)} images can be compared.")
    return pictures
