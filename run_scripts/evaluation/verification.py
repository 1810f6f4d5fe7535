"""Compare a converted checkpoint with open_clip: the same images and labels through both, stage by stage."""

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
from biomedclip.conversion.open_clip import OPEN_CLIP_CONFIG, PUBLISHED_NAMES
from biomedclip.conversion.open_clip_settings import is_at_hand, is_clip_text
from biomedclip.conversion.vision_text import bert_config_of
from biomedclip.processing.images.inputs import find_inputs
from biomedclip.processing.images.reading import ImageError, read_row_image
from biomedclip.processing.synthetic_corpus.figures import FIGURE_KINDS

from ..cli.models import import_optional
from ..cli.reporting import say, show_table
from .dual_encoders import OpenClipModel
from .open_clip_folders import INSTALL, load_with_open_clip


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
# Embeddings are usually bitwise equal. Other processors may round differently.
LARGEST_DIFFERENCE = 2e-6


def verify(source: Path, result: Path, layout: str, images: Sequence[str]) -> dict[str, Any]:
    """Run open_clip and transformers on images and on the labels of the published card, on the CPU in float32.

    `layout` is that of the result, `transformers` or `open_clip`. Return the largest difference at each stage, the
    number of images for which both have the same best label, and `equal`: whether the embeddings differ by at most
    `LARGEST_DIFFERENCE`. `bert_assumed` is true if open_clip could not find the configuration of its BERT. Then the
    heads and the epsilon of the BERT are not verified.
    """
    import_optional("open_clip", "--verify compares with open_clip, and", INSTALL)
    pictures = pictures_to_compare(images)
    with tempfile.TemporaryDirectory() as scratch:
        converted = layout == "transformers"
        model, processor = load_any_layout(result if converted else source)
        written = source if converted else result
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
    """Print the largest difference at each stage."""
    rows = [(name, f"{difference:.2g}") for name, difference in verified["largest_difference"].items()]
    rows.append(("images with the same best label", f"{verified['same_best_label']} of {verified['images']}"))
    show_table("Compared with open_clip", rows, ["", "largest difference"])
    if verified["bert_assumed"]:
        say(
            "The BERT that open_clip refers to cannot be reached. Its heads and epsilon were taken from the conversion."
        )


def _ours(model: Any, processor: Any, pictures: list[Any]) -> dict[str, torch.Tensor]:
    model.float().set_attn_implementation("sdpa")
    texts = processor(text=[TEMPLATE.format(label) for label in LABELS], padding="max_length", return_tensors="pt")
    return _stages(model, texts["input_ids"], processor(images=pictures, return_tensors="pt")["pixel_values"])


def _theirs(folder: Path, pictures: list[Any]) -> dict[str, torch.Tensor]:
    model, preprocess, tokenizer = load_with_open_clip(folder)
    tokens = tokenizer([TEMPLATE.format(label) for label in LABELS])
    return _stages(OpenClipModel(model.eval()), tokens, torch.stack([preprocess(picture) for picture in pictures]))


@torch.no_grad()
def _stages(model: Any, tokens: torch.Tensor, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    images = torch.cat([model.get_image_features(batch).pooler_output for batch in pixels.split(BATCH_SIZE)])
    texts = model.get_text_features(tokens).pooler_output
    images, texts = (torch.nn.functional.normalize(embeds, dim=-1) for embeds in (images, texts))
    return {
        "token ids": tokens,
        "pixels": pixels,
        "image embeddings": images,
        "text embeddings": texts,
        "temperature": model.logit_scale,
        "probabilities": (model.logit_scale.exp() * images @ texts.t()).softmax(dim=-1),
    }


def _loadable(folder: Path, text_config: Any, scratch: Path) -> Path:
    """Return a folder that open_clip can load.

    open_clip builds the text tower from the configuration of a named BERT. If it cannot be reached, the returned folder
    refers to a local folder with the same configuration, and links to the other files.
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
    """Return whether the configuration of a BERT is in a folder, in the cache, or on a Hub that can be reached."""
    if is_at_hand(name) or name not in PUBLISHED_NAMES:  # no request is sent for any other name in a file
        return is_at_hand(name)
    try:
        model_info(name, timeout=10)
    except Exception as error:  # each HTTP client has its own exception types
        logger.info("%s cannot be reached (%s). Its configuration is written to a folder instead.", name, error)
        return False
    return True


def pictures_to_compare(values: Sequence[str]) -> list[Any]:
    """Return the images that a user specified, as for [`find_inputs`], or one synthetic figure of each kind.

    Images that cannot be read or have more than 8 bits are skipped with a warning. Raise `ValueError` if none is left,
    and the errors of [`find_inputs`].
    """
    if not values:
        return [kind.draw(kind.combination(0), np.random.default_rng(0)) for kind in FIGURE_KINDS.values()]
    inputs = find_inputs(values)
    pictures = []
    for image in inputs.rows(0, len(inputs)):
        try:
            picture = read_row_image(image.image)
        except ImageError as error:
            logger.warning("Skipped in the comparison: %s", error)
            continue
        if picture.mode.startswith(("I", "F")):
            logger.warning("Skipped in the comparison: %s has more than 8 bits, which open_clip clips.", image.id)
        else:
            pictures.append(picture)
    if not pictures:
        raise ValueError(f"--images {' '.join(values)}: none of the {len(inputs)} images can be compared.")
    return pictures
