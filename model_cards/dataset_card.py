"""Fill a dataset card from the report of a build."""

import shlex
from bisect import bisect
from collections.abc import Mapping
from typing import Any

from huggingface_hub import DatasetCardData

from .escaping import Markdown, code_block, one_line
from .formatting import public_name, render


_SIZE_CATEGORIES = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "n>100M"]

# Name, feature type in `datasets`, and description in Markdown of each column.
_COLUMNS = [
    ("pair_id", "string", "`PMCID.version/figure/graphic`; the same in every build"),
    ("image", "image", "the bytes of the image file, unchanged"),
    ("caption", "string", "title and all paragraphs of the caption, as plain text"),
    ("label", "string", "label of the figure, such as `Figure 2`, or null"),
    ("panel", "string", "panel that the image shows, if the XML states it, or null"),
    ("mentions", ["string"], "paragraphs that cite the figure"),
    ("pmcid", "string", "id of the article in PubMed Central"),
    ("version", "int32", "version of the article in PubMed Central"),
    ("pmid", "string", "id of the article in PubMed, or null"),
    ("doi", "string", "DOI of the article, or null"),
    ("title", "string", "title of the article"),
    ("citation", "string", "journal and year, with volume and pages if they are known"),
    ("license", "string", "license of the article, which applies to the pair"),
    ("width", "int32", "width of the image in pixels"),
    ("height", "int32", "height of the image in pixels"),
    ("mode", "string", "mode of the image file in Pillow: RGB, L, P, CMYK, I;16, ..."),
    ("frames", "int32", "number of frames or pages of the image file, of which the first is used"),
    ("file_size", "int32", "size of the image file in bytes"),
    ("image_md5", "string", "MD5 of the image file, as stated by PubMed Central"),
    (
        "perceptual_hash",
        "string",
        "64 bits as hexadecimal digits; copies of an image differ in at most 6 bits; empty for a blank image",
    ),
    ("split", "string", "`train`, `validation` or `test`"),
]

# Columns of a dataset with panels, and other meanings of columns in it.
_PANEL_COLUMNS = [
    ("figure_pair_id", "string", "`pair_id` of the figure that a panel belongs to; null for a figure"),
    ("compound", "bool", "whether the image has several panels; null if the detector failed"),
    ("panel_box", ["int32"], "left, top, right and bottom of a panel in pixels of its figure"),
    ("panel_score", "float64", "score of a panel, between 0 and 1"),
    ("context", "string", "text of the caption for all panels; null if the caption was not split"),
    (
        "caption_match",
        "string",
        "how the caption was split: by `labels` or `some labels` in the figure, by the `caption` alone, or `none`",
    ),
    (
        "image_type",
        "string",
        "type of the image after ImageCLEF 2015, or null; of a compound figure that of most of its area",
    ),
    ("image_type_score", "float64", "probability of the type"),
]
_WITH_PANELS = {
    "pair_id": "`PMCID.version/figure/graphic`, of a panel with `/panel-1` and so on; the same in every build",
    "image": "of a figure the bytes of the image file, unchanged; of a panel its part of the figure, as JPEG of "
    "quality 95 without color subsampling if the figure is a JPEG file, otherwise as PNG",
    "caption": "plain text of the caption; of a panel its part of the caption, or the whole if it was not split",
    "panel": "label of the panel that the image shows, or null",
    "mentions": "paragraphs that cite the figure; of a panel those that cite it, such as `Fig. 2B`",
    "image_md5": "MD5 of the image file",
}

# Options that do not change the pairs.
_OF_THE_MACHINE = """
    output_dir overwrite update executor tasks workers retries connections memory_gb
    slurm_partition slurm_time slurm_args push_to private
""".split()


def fill_dataset_card(report: Mapping[str, Any]) -> str:
    """Fill a dataset card from the report of `biomedclip build`. Return Markdown with the metadata for the Hub."""
    title = "Synthetic figure-caption pairs" if report["synthetic"] else "Figure-caption pairs from PubMed Central"
    left_out = [(f"article: {reason}", count) for reason, count in report["articles"]["dropped"].items()]
    left_out += [(f"figure: {reason}", count) for reason, count in report["figures"]["skipped"].items()]
    columns = columns_of(report)
    return render(
        "dataset_card.md",
        title=title,
        metadata=Markdown(_metadata(title, report)),
        report=public_report(report),
        columns=[(Markdown(f"`{name}`"), Markdown(meaning)) for name, _, meaning in columns],
        has_types=bool((report.get("composition") or {}).get("image_types", {}).keys() - {"unknown"}),
        left_out=sorted(left_out, key=lambda row: -row[1]),
        command=code_block(_command(report["options"]), "bash"),
    )


def columns_of(report: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """Return name, feature type in `datasets`, and description in Markdown of each column of a dataset."""
    if not report.get("composition"):
        return _COLUMNS
    return [(name, kind, _WITH_PANELS.get(name, meaning)) for name, kind, meaning in _COLUMNS] + _PANEL_COLUMNS


def public_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report that contains only the last part of each local path."""
    tokenizer = report["caption_length"]["tokenizer"]
    return {
        **report,
        "source": public_name(report["source"]),
        "built_with": _public_values(report["built_with"]),
        "caption_length": report["caption_length"] | {"tokenizer": tokenizer and public_name(tokenizer)},
        "options": _public_values(report["options"]),
    }


def _metadata(title: str, report: Mapping[str, Any]) -> str:
    splits, size = report["splits"], sum(counts["bytes"] for counts in report["splits"].values())
    data = DatasetCardData(
        language=["en"],
        license="other",
        license_name="per-article-creative-commons",
        license_link="https://pmc.ncbi.nlm.nih.gov/about/copyright/",
        pretty_name=title,
        task_categories=["zero-shot-image-classification", "image-to-text"],
        tags=["biology", "medical", "pubmed-central", "biomedclip"],
        size_categories=[_SIZE_CATEGORIES[bisect([10**power for power in range(3, 9)], report["pairs"])]],
        configs=[
            {
                "config_name": "default",
                "data_files": [
                    {"split": one_line(split), "path": f"data/{one_line(split)}-*.parquet"} for split in splits
                ],
            }
        ],
        dataset_info={
            "features": [
                {"name": name, "list": kind[0]} if isinstance(kind, list) else {"name": name, "dtype": kind}
                for name, kind, _ in columns_of(report)
            ],
            "splits": [
                {"name": one_line(split), "num_bytes": counts["bytes"], "num_examples": counts["pairs"]}
                for split, counts in splits.items()
            ],
            "download_size": size,
            "dataset_size": size,
        },
    )
    return data.to_yaml()


def _public_values(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: public_name(value) if isinstance(value, str) else value for key, value in options.items()}


def _command(options: Mapping[str, Any]) -> str:
    """Return the command that produces the same pairs."""
    words = ["biomedclip build"]
    for name, value in options.items():
        if value is None or value is False or name in _OF_THE_MACHINE:
            continue
        if isinstance(value, list):
            words.append(
                " ".join([f"--{name.replace('_', '-')}", *(shlex.quote(public_name(str(item))) for item in value)])
            )
            continue
        text = public_name(str(value))
        text = text if len(text) < 100 else f"{text[:80]}..."
        words.append(f"--{name.replace('_', '-')}" + ("" if value is True else f" {shlex.quote(text)}"))
    return " \\\n  ".join([*words, "--output-dir out"])
