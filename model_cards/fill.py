"""Fills the card of a data set, and what the cards share."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from .escaping import Markdown, code, code_block, markdown, table_rows, yaml_text


# The repository in the examples of a card, until it is pushed to one.
PLACEHOLDER = "ORG/NAME"

_SIZE_CATEGORIES = [
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
]

_DRAWN = """\
## Limits

Every article here is invented: a program drew its pictures, and its captions say what was drawn. Nothing comes from
PubMed Central, the licences and dates above are part of the drawing, and no number in it means anything. It is there to
try the software on.
"""

# Name, type as `datasets` writes it, meaning.
_COLUMNS = [
    ("pair_id", "dtype: string", "PMCID.version/figure/graphic; the same in every build"),
    ("image", "dtype: image", "the file as the publisher gave it, byte for byte"),
    ("caption", "dtype: string", "title and all paragraphs of the caption as plain text"),
    ("label", "dtype: string", "such as `Figure 2`; null where the article has none"),
    ("panel", "dtype: string", "the panel that the graphic is, where the XML says so; otherwise null"),
    ("mentions", "list: string", "the paragraphs that cite the figure"),
    ("pmcid", "dtype: string", "the article"),
    ("version", "dtype: int32", "its version in PMC"),
    ("pmid", "dtype: string", "the article in PubMed; null where it is not there"),
    ("doi", "dtype: string", "its DOI, or null"),
    ("title", "dtype: string", "title of the article"),
    ("citation", "dtype: string", "journal and year, with volume and pages where PMC states them"),
    ("license", "dtype: string", "the licence of the article, and so of the pair"),
    ("width", "dtype: int32", "of the image in pixels"),
    ("height", "dtype: int32", "of the image in pixels"),
    ("mode", "dtype: string", "what the file holds, in Pillow's words: RGB, L, P, CMYK, I;16, ..."),
    ("frames", "dtype: int32", "more than 1 for an animation or a file of several pages, of which the first is shown"),
    ("file_size", "dtype: int32", "of the image in bytes"),
    ("image_md5", "dtype: string", "MD5 of the image's bytes, as PMC states it"),
    (
        "perceptual_hash",
        "dtype: string",
        "64 bits as hex digits, of which the same picture shares 58 or more however it was saved; empty if blank",
    ),
    ("split", "dtype: string", "`train`, `validation` or `test`"),
]

# Where and how fast a build runs, which says nothing about what comes out.
_OF_THE_MACHINE = """
    output_dir overwrite update executor tasks workers retries connections memory_gb
    slurm_partition slurm_time slurm_args push_to private
""".split()


def fill_dataset_card(report: Mapping[str, Any]) -> str:
    """The dataset card of a build.

    Args:
        report: What `biomedclip build` reports.

    Returns:
        Markdown with the metadata block that the Hub reads.
    """
    articles, figures, splits = report["articles"], report["figures"], report["splits"]
    pairs, captions, images = report["pairs"], report["caption_length"], report["image_size"]
    moved = len(report["articles_moved_to_fill_a_split"])
    left_out = {f"article: {reason}": count for reason, count in articles["dropped"].items()}
    left_out |= {f"figure: {reason}": count for reason, count in figures["skipped"].items()}
    filled = {
        "title": "Drawn figure-caption pairs" if report["drawn"] else "Figure-caption pairs from PubMed Central",
        "size_category": next((name for limit, name in _SIZE_CATEGORIES if pairs < limit), "n>100M"),
        "data_files": "\n".join(f"  - split: {yaml_text(split)}\n    path: {_yaml_path(split)}" for split in splits),
        "features": "\n".join(f"  - name: {name}\n    {kind}" for name, kind, _ in _COLUMNS),
        "split_sizes": "\n".join(
            f"  - name: {yaml_text(split)}\n    num_bytes: {count['bytes']}\n    num_examples: {count['pairs']}"
            for split, count in splits.items()
        ),
        "bytes": sum(count["bytes"] for count in splits.values()),
        "version": markdown(report["versions"]["biomedclip"]),
        "versions": markdown(", ".join(f"{name} {version}" for name, version in report["versions"].items())) + ".",
        "command": code_block(_command(report["options"]), "bash"),
        "source": markdown(public_name(report["source"])),
        "inventory_date": markdown(report["inventory_date"] or "none in the source"),
        "as_current_as": f"the inventory of {markdown(report['inventory_date'])}"
        if report["inventory_date"]
        else "its source, which has no inventory",
        "moved": f" To leave no split empty, {moved} of them were moved." if moved else "",
        "built": markdown(report["built"]),
        "snapshot": _snapshot(report),
        "license_choice": code(report["license_choice"]),
        "pairs": f"{pairs:,}",
        "articles_seen": f"{articles['seen']:,}",
        "articles_kept": f"{articles['kept']:,}",
        "figures_seen": f"{figures['seen']:,}",
        "pairs_with_mentions": f"{report['mentions']['pairs_with']:,}",
        "panels": f"{report['panels']:,}",
        "split_fractions": " / ".join(f"{fraction:g}" for fraction in report["split_fractions"]),
        "splits": table_rows(
            [
                (split, *(n[key] for key in ("articles", "pairs", "shards")), size(n["bytes"]))
                for split, n in splits.items()
            ]
        ),
        "licenses": _shares(report["licenses"], pairs),
        "images": _shares({f"format {name}": count for name, count in report["formats"].items()}, pairs)
        + "\n"
        + _shares({f"mode {name}": count for name, count in report["modes"].items()}, pairs),
        "percentile_names": " | ".join(markdown(f"{q} %") for q in captions["percentiles"]),
        "percentile_rule": "---:|" * len(captions["percentiles"]),
        "lengths": table_rows(
            [
                (name, *(f"{value:,.0f}" for value in (part["mean"], *part["percentiles"].values())))
                for name, part in ((f"{captions['unit']} of a caption", captions), (images["unit"], images))
            ]
        ),
        "caption_unit": markdown(captions["unit"])
        + (f" of {code(public_name(captions['tokenizer']))}" if captions["tokenizer"] else ""),
        "context_note": "BiomedCLIP reads 256 tokens"
        if captions["unit"] == "tokens"
        else "BiomedCLIP reads 256 tokens, of which most words are more than one",
        "within_256": percent(captions["within_256"]),
        "above_336": percent(images["above_336"]),
        "same_bytes": f"{report['duplicates']['same_bytes']:,}",
        "same_picture": f"{report['duplicates']['same_picture']:,}",
        "left_out": table_rows(_largest_first(left_out)) or "| nothing | 0 |",
        "columns": table_rows([(Markdown(f"`{name}`"), Markdown(meaning)) for name, _, meaning in _COLUMNS]),
    }
    terms = _DRAWN if report["drawn"] else template("pmc_terms.md").substitute(filled)
    return template("dataset_card.md").substitute(filled, terms=terms.strip())


def _snapshot(report: Mapping[str, Any]) -> str:
    """Return the rows of the card on `--published-until` and `--first-image-only`. Empty if neither is set."""
    rows = ""
    if snapshot := report.get("snapshot"):
        rows += (
            f"\n| published until | {markdown(snapshot['published_until'])}, by the dates in the XML; "
            f"{snapshot['articles_published_later']:,} later articles and {snapshot['articles_without_date']:,} "
            "without a date were left out |"
        )
    if report["built_with"].get("first_image_only"):
        rows += "\n| images of a figure | only the first |"
    return rows


def public_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report of a build as it can be published: of paths on the machine only their last part."""
    tokenizer = report["caption_length"]["tokenizer"]
    return {
        **report,
        "source": public_name(report["source"]),
        "built_with": _public_values(report["built_with"]),
        "caption_length": report["caption_length"] | {"tokenizer": tokenizer and public_name(tokenizer)},
        "options": _public_values(report["options"]),
    }


def _public_values(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: public_name(value) if isinstance(value, str) else value for key, value in options.items()}


def percent(fraction: float) -> str:
    """A fraction in percent, with which something never reads as nothing, nor almost all as all."""
    if 0 < fraction < 0.001:
        return "< 0.1 %"
    if 0.999 < fraction < 1:
        return "> 99.9 %"
    return f"{100 * fraction:.1f} %"


def size(count: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def _command(options: Mapping[str, Any]) -> str:
    """The command that gives these pairs again."""
    words = ["biomedclip build"]
    for name, value in options.items():
        if value is None or value is False or name in _OF_THE_MACHINE:
            continue
        text = "" if value is True else public_name(str(value))
        text = f" '{text}'" if re.search(r"[^\w.,:/-]", text) else f" {text}".rstrip()
        words.append(f"--{name.replace('_', '-')}{text if len(text) < 100 else f'{text[:80]}...'}")
    return " \\\n  ".join([*words, "--output-dir out"])


def template(name: str) -> Template:
    """A card before it is filled."""
    return Template((Path(__file__).parent / name).read_text(encoding="utf-8"))


def _yaml_path(split: str) -> str:
    """Return the pattern of a split's shards as YAML."""
    return f"data/{split}-*.parquet" if re.fullmatch(r"\w+", split, re.ASCII) else yaml_text(f"data/{split}-*.parquet")


def _largest_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda entry: -entry[1])


def _shares(counts: Mapping[str, int], total: int) -> str:
    return table_rows([(name, count, percent(count / total)) for name, count in _largest_first(counts)])


def public_name(source: str) -> str:
    """A URL or Hub id as it is, of a local path its last part: a card carries no path of the machine that made it."""
    local = source.startswith(("/", "~", "file:")) or ("://" not in source and os.path.exists(source))
    return Path(source).name if local else source
