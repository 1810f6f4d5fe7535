"""Fills cards from measured results."""

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any


_SIZE_CATEGORIES = [
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
]

_FROM_PMC = """\
Figures and captions come from the PMC Article Datasets of the U.S. National Library of Medicine (NLM). The copy is as
current as the inventory above; articles are corrected and retracted later. NLM does not endorse this data set. Captions
describe what authors saw, not ground truth; clinical use is out of scope."""
_DRAWN = """\
Every article here is invented: a program drew its pictures, and its captions say what was drawn. Nothing comes from
PubMed Central, the licences and dates above are part of the drawing, and no number in it means anything. It is there to
try the software on."""


PUBLISHED = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
_USAGE = {
    "transformers": """\
```python
import modeling_biomedclip  # or trust_remote_code=True in the calls below
from PIL import Image
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained("path/or/id"), AutoProcessor.from_pretrained("path/or/id")
labels = [f"this is a photo of {label}" for label in ("brain MRI", "chest X-ray", "pie chart")]
inputs = processor(text=labels, images=Image.open("figure.png"), return_tensors="pt")
print(model(**inputs).logits_per_image.softmax(-1))
```""",
    "open_clip": """\
```python
import open_clip

model, preprocess = open_clip.create_model_from_pretrained("local-dir:path/of/this/folder")
tokenizer = open_clip.get_tokenizer("local-dir:path/of/this/folder")
```""",
}


def fill_model_card(report: Mapping[str, Any]) -> str:
    """
    The model card of a converted checkpoint.

    Args:
        report: What `biomedclip convert` reports.

    Returns:
        Markdown with the metadata block that the Hub reads.
    """
    published = report["source"] == PUBLISHED
    verified = report["verification"]
    template = Template((Path(__file__).parent / "model_card.md").read_text())
    return template.substitute(
        title=f"BiomedCLIP, converted from {_public_name(report['source'])}",
        license="mit" if published else "other",
        license_note="MIT, as the published weights."
        if published
        else f"That of `{_public_name(report['source'])}`, which see.",
        library=report["layout"],
        layout=report["layout"],
        source=_public_name(report["source"]),
        version=report["versions"]["biomedclip"],
        parameters=f"{report['parameters']:,}",
        logit_scale=f"{report['logit_scale']:.4f}",
        dtype=report["dtype"],
        usage=_USAGE[report["layout"]],
        verification=_verification(verified) if verified else "Not checked: convert with `--verify`.",
    )


def _verification(verified: Mapping[str, Any]) -> str:
    rows = [(name, f"{difference:.2g}") for name, difference in verified["largest_difference"].items()]
    return (
        f"The same {verified['images']} images and {verified['labels']} labels through both, in float32 on a CPU; the "
        f"best label is the same for {verified['same_best_label']}.\n\n"
        f"| stage | largest difference |\n|---|---:|\n{_rows(rows)}"
        + ("\n\nThe text tower's heads and epsilon were taken as usual." if verified["bert_assumed"] else "")
    )


def fill_dataset_card(report: Mapping[str, Any]) -> str:
    """
    The dataset card of a build.

    Args:
        report: What `biomedclip build` reports.

    Returns:
        Markdown with the metadata block that the Hub reads.
    """
    articles, figures, splits = report["articles"], report["figures"], report["splits"]
    left_out = {f"article: {reason}": count for reason, count in articles["dropped"].items()}
    left_out |= {f"figure: {reason}": count for reason, count in figures["skipped"].items()}
    template = Template((Path(__file__).parent / "dataset_card.md").read_text())
    drawn = report.get("drawn", False)
    return template.substitute(
        title="Drawn figure-caption pairs" if drawn else "Figure-caption pairs from PubMed Central",
        acknowledgement=_DRAWN if drawn else _FROM_PMC,
        pairs=f"{report['pairs']:,}",
        articles_seen=f"{articles['seen']:,}",
        articles_kept=f"{articles['kept']:,}",
        figures_seen=f"{figures['seen']:,}",
        source=_public_name(report["source"]),
        inventory_date=report["inventory_date"] or "none in the source",
        size_category=next((name for limit, name in _SIZE_CATEGORIES if report["pairs"] < limit), "n>100M"),
        data_files="\n".join(f"  - split: {split}\n    path: data/{split}-*.parquet" for split in splits),
        splits=_rows([(split, count["articles"], count["pairs"]) for split, count in splits.items()]),
        licenses=_rows(list(report["licenses"].items())),
        left_out=_rows(list(left_out.items())) or "| nothing | 0 |",
    )


def _public_name(source: str) -> str:
    """A URL or Hub id as it is, of a local path its last part: a card carries no path of the machine that made it."""
    return Path(source).name if "://" not in source and Path(source).exists() else source


def _rows(rows: list[tuple[Any, ...]]) -> str:
    return "\n".join(
        "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row) + " |" for row in rows
    )
