"""Convert BiomedCLIP checkpoints between the layouts of open_clip and transformers.

biomedclip convert microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224 published --verify
biomedclip convert published open_clip_folder --to open_clip
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biomedclip import to_open_clip
from biomedclip.conversion import load_any_layout, local_checkpoint, save_with_processor
from biomedclip.model_cards.formatting import public_name
from biomedclip.model_cards.model_card import fill_model_card

from .cli.fields import REQUIRED, option
from .cli.options import parse_options
from .cli.permissions import apply_umask
from .cli.reporting import refuse_filled, say, show_table, versions, write_json, write_text
from .evaluation.verification import LARGEST_DIFFERENCE, show_verification, verify
from .hub.card_facts import CONVERSION, card_facts, describe_model


EXAMPLE = "biomedclip convert open_clip_folder_or_hub_id published --verify"


@dataclass
class ConvertOptions:
    """Options of `biomedclip convert`."""

    source: str = option(
        REQUIRED,
        "Folder or Hub id in the layout of open_clip, transformers or chuhac/BiomedCLIP-vit-bert-hf, or an "
        "epoch_N.pt of open_clip's training. Can be the first positional argument.",
    )
    output_dir: str = option(REQUIRED, "Folder for the result. Can be the second positional argument.")
    to: str = option("transformers", "Layout of the result (default: transformers).", ["transformers", "open_clip"])
    verify: bool = option(
        False, "Run open_clip and transformers on the same images and labels, on the CPU, and compare them."
    )
    images: list[str] = option([], "Images for --verify, as for biomedclip embed (default: synthetic figures).")
    revision: str | None = option(None, "Branch, tag or commit of a Hub id.")
    overwrite: bool = option(False, "Write into a folder that is not empty.")


def main(arguments: Sequence[str]) -> None:
    """Run `biomedclip convert`."""
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
    rows = [(name.replace("_", " "), report[name]) for name in ("parameters", "logit_scale", "dtype", "seconds")]
    show_table(f"{options.source}, converted to the layout of {options.to}", rows, ["", "value"])
    if verified:
        show_verification(verified)
    say(f"Model and {CONVERSION} in {options.output_dir}")
    if verified and not verified["equal"]:
        raise ValueError(
            f"The embeddings differ from those of open_clip by more than {LARGEST_DIFFERENCE}. Do not use the result "
            "before you know why."
        )


def convert(options: ConvertOptions) -> dict[str, Any]:
    """Convert a checkpoint. Write the model, its card and `conversion.json`, and return the content of the last."""
    output_dir = Path(options.output_dir)
    refuse_filled(output_dir, overwrite=options.overwrite)
    started = time.monotonic()
    with local_checkpoint(options.source, options.revision) as source:
        model, processor = load_any_layout(source)
        save = to_open_clip if options.to == "open_clip" else save_with_processor
        save(model, processor, output_dir)
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
        described["sentence_transformers"] = (output_dir / "modules.json").is_file()
        del model, processor  # the verification loads two models
        if options.verify:
            report["verification"] = verify(source, output_dir, options.to, options.images)
    title = f"BiomedCLIP, converted from {public_name(options.source)}"
    write_text(output_dir / "README.md", fill_model_card(card_facts(described, conversion=report, title=title)))
    write_json(output_dir / CONVERSION, report)
    return report
