"""Converts BiomedCLIP's checkpoints: open_clip's layout, or a community port's, to transformers', and back.

biomedclip convert microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224 biomedclip --verify
biomedclip convert biomedclip open_clip_folder --to open_clip
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from biomedclip import to_open_clip
from biomedclip.conversion import load_any_layout, local_checkpoint, save_with_processor
from biomedclip.model_cards.fill import public_name
from biomedclip.model_cards.model_card import fill_model_card

from .cli.options import parse_options
from .cli.permissions import apply_umask
from .cli.reporting import refuse_filled, say, show_table, versions, write_json, write_text
from .evaluation.verification import LARGEST_DIFFERENCE, show_verification, verify
from .hub.card_facts import CONVERSION, card_facts, describe_model


EXAMPLE = "biomedclip convert open_clip_folder_or_hub_id biomedclip --verify"


@dataclass
class ConvertOptions:
    """What is converted to what."""

    source: str = field(
        metadata={
            "help": "Folder or Hub id in open_clip's layout, that of chuhac/BiomedCLIP-vit-bert-hf or transformers', "
            "or an epoch_N.pt of open_clip's training. May stand without its name."
        }
    )
    output_dir: str = field(metadata={"help": "Folder for the result. May stand without its name."})
    to: str = field(
        default="transformers", metadata={"help": "Layout of the result.", "choices": ["transformers", "open_clip"]}
    )
    verify: bool = field(
        default=False,
        metadata={"help": "Run open_clip and transformers on the same images and labels, and compare."},
    )
    images: list[str] = field(
        default_factory=list,
        metadata={"help": "Images, or folders of them, to compare on. Drawn figures if left out."},
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub id."})
    overwrite: bool = field(default=False, metadata={"help": "Write into a folder that is not empty."})


def main(arguments: Sequence[str]) -> None:
    """Runs `biomedclip convert`."""
    (options,) = parse_options(
        "convert",
        [ConvertOptions],
        arguments,
        description=__doc__.split("\n\n")[0],
        example=EXAMPLE,
        positionals=["source", "output_dir"],
    )
    report = convert(options)
    verified = report["verification"]
    rows = [(name, report[name]) for name in ("parameters", "logit_scale", "dtype", "seconds")]
    show_table(f"{options.source} in the layout of {options.to}", rows, ["", "value"])
    if verified:
        show_verification(verified)
    say(f"In {options.output_dir}, with {CONVERSION}")
    if verified and not verified["equal"]:
        raise ValueError(
            f"the embeddings differ by more than {LARGEST_DIFFERENCE}: do not use the result before you know why."
        )


def convert(options: ConvertOptions) -> dict[str, Any]:
    """Converts a checkpoint and writes its card and `conversion.json` beside it.

    Args:
        options: What is converted to what.

    Returns:
        The report that `conversion.json` holds.

    Raises:
        FileExistsError: `output_dir` is not empty, and no word of overwriting.
        FileNotFoundError: The source, or a file of it, is missing.
        ValueError: Weights or settings that are not BiomedCLIP's.
    """
    output_dir = Path(options.output_dir)
    refuse_filled(output_dir, overwrite=options.overwrite)
    with local_checkpoint(options.source, options.revision) as source:
        report, described = _convert(source, output_dir, options)
    title = f"BiomedCLIP, converted from {public_name(options.source)}"
    write_text(output_dir / "README.md", fill_model_card(card_facts(described, conversion=report, title=title)))
    write_json(output_dir / CONVERSION, report)
    return report


def _convert(source: Path, output_dir: Path, options: ConvertOptions) -> tuple[dict[str, Any], dict[str, Any]]:
    """Converts a folder; gives the report and the description of the model for its card."""
    started = time.monotonic()
    model, processor = load_any_layout(source)
    if options.to == "open_clip":
        to_open_clip(model, processor, output_dir)
    else:
        save_with_processor(model, processor, output_dir)
    apply_umask(output_dir)
    report: dict[str, Any] = {
        "source": options.source,
        "revision": options.revision,
        "layout": options.to,
        "parameters": model.num_parameters(),
        "logit_scale": model.logit_scale.item(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "seconds": round(time.monotonic() - started, 1),
        "verification": None,
        "versions": versions(),
    }
    described = describe_model(model, processor) | {"layout": options.to}
    del model, processor
    if options.verify:
        report["verification"] = verify(source, output_dir, options.to, options.images)
    return report, described
