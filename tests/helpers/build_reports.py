"""Invented reports of builds: one of all of PMC, and one of a single pair."""

from collections import Counter
from typing import Any

import numpy as np

from biomedclip.processing.pmc.statistics import summarize


def full_scale_report() -> dict[str, Any]:
    """Return an invented report of a build of all of PMC."""
    random = np.random.default_rng(0)
    captions = random.lognormal(4.4, 0.85, 20_000).astype(int) + 2
    sides = random.lognormal(6.2, 0.5, 20_000).astype(int) + 40
    counts = {
        "caption_lengths": {length: 787 * count for length, count in Counter(captions.tolist()).items()},
        "shorter_sides": {side: 787 * count for side, count in Counter(sides.tolist()).items()},
        "licenses": {
            "CC BY": 11_903_117,
            "CC BY-NC": 1_502_331,
            "CC BY-NC-ND": 1_830_221,
            "CC BY-NC-SA": 310_447,
            "CC0": 160_112,
            "CC BY-SA": 30_999,
            "CC BY-ND": 4_011,
        },
        "modes": {"RGB": 12_811_327, "L": 2_702_114, "CMYK": 201_330, "P": 25_102, "RGBA": 1_360, "I;16": 5},
        "formats": {"JPEG": 15_310_887, "PNG": 310_119, "GIF": 100_232, "TIFF": 20_000},
        "other": {
            "pairs": 15_741_238,
            "with_mentions": 14_502_101,
            "mentions": 25_903_222,
            "panels": 610_227,
            "animated": 15,
        },
    }
    return {
        "source": "s3://pmc-oa-opendata",
        "inventory_date": "2026-11-23",
        "built": "2026-11-24",
        "license_choice": "noncommercial",
        "articles": {
            "seen": 8_012_345,
            "kept": 4_871_204,
            "dropped": {
                "not open access": 812_345,
                "license not allowed": 611_002,
                "no figure with a caption and an image that could be read": 1_490_113,
                "an earlier version of an article that is here": 201_310,
                "retracted": 24_115,
                "historical OCR": 1_984,
                "XML cannot be parsed": 271,
                "MD5 differs": 1,
            },
        },
        "versions": {
            "python": "3.12.3",
            "biomedclip": "0.1.0",
            "datasets": "5.2.0",
            "machine": "Linux x86_64, 64 cores",
        },
        "figures": {
            "seen": 21_903_117,
            "skipped": {
                "no caption": 1_802_310,
                "no such file": 3_120_411,
                "image cannot be decoded": 20_117,
                "image is too small": 311_804,
                "same bytes as another image of the article": 1_407_222,
                "animated": 15,
            },
        },
        **summarize([counts], "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"),
        "splits": {
            "train": {"articles": 4_625_208, "pairs": 14_946_305, "shards": 2990, "bytes": 1_464_737_890_000},
            "validation": {"articles": 4_384, "pairs": 14_167, "shards": 3, "bytes": 1_388_366_000},
            "test": {"articles": 241_612, "pairs": 780_766, "shards": 157, "bytes": 76_515_068_000},
        },
        "split_fractions": [0.9495, 0.0009, 0.0496],
        "articles_moved_to_fill_a_split": {},
        "duplicates": {"same_bytes": 1_407_222, "same_image": 210_118},
        "update": {"unchanged": 7_990_011, "new": 20_114, "changed": 2_220, "removed": 31},
        "built_with": {"source": "/home/someone/mirror"},
        "seconds": 40_215.3,
        "synthetic": False,
        "options": {
            "source": "s3://pmc-oa-opendata",
            "pmcids": None,
            "license": "noncommercial",
            "split_fractions": None,
            "max_shard_size": "500MB",
            "executor": "slurm",
            "workers": 64,
            "overwrite": False,
            "output_dir": "/scratch/someone/pmc15m",
            "seed": 0,
        },
    }


def report_with_panels(panels: str = "also") -> dict[str, Any]:
    """Return a report of a build with panels."""
    rows = {"panels": 5_102, "compound figures": 1_001, "single figures": 1_203, "figures not examined": 7}
    if panels == "only":
        del rows["compound figures"]
    composition = {
        "rows": rows,
        "image_types": {"PET": 4_111, "Light microscopy": 1_190, "unknown": 1_004},
        "image_groups": {"radiology": 4_111, "microscopy": 1_190, "unknown": 1_004},
        "caption_match_of_panels": {"labels": 3_601, "none": 1_501},
    }
    counts = {"examined_figures": 2_211, "compound_figures": 1_001, "split_captions": 777, "failed_figures": 7}
    report = full_scale_report() | {"pairs": sum(rows.values()), "composition": composition, "panel_detection": counts}
    report["built_with"] |= {"panels": panels, "keep_types": None, "detector": "x-y-cut"}
    report["options"] |= {
        "panels": panels,
        "keep_types": ["PET", "Light microscopy"],
        "detector": "/home/someone/thing",
    }
    return report


def smallest_report() -> dict[str, Any]:
    """Return a report of one article with one pair."""
    counts = {
        "caption_lengths": {8: 1},
        "shorter_sides": {8: 1},
        "licenses": {"CC BY": 1},
        "modes": {"L": 1},
        "formats": {"PNG": 1},
        "other": dict.fromkeys(("with_mentions", "mentions", "panels", "animated"), 0) | {"pairs": 1},
    }
    return full_scale_report() | {
        "source": "/home/someone/mirror",
        "inventory_date": None,
        "articles": {"seen": 1, "kept": 1, "dropped": {}},
        "figures": {"seen": 1, "skipped": {}},
        **summarize([counts], None),
        "splits": {"train": {"articles": 1, "pairs": 1, "shards": 1, "bytes": 21_004}},
        "split_fractions": [1.0, 0.0, 0.0],
        "duplicates": {"same_bytes": 0, "same_image": 0},
        "update": None,
        "built_with": {"source": "/home/someone/mirror"},
        "seconds": 0.4,
        "options": {"source": "/home/someone/mirror", "license": "noncommercial", "output_dir": "/home/someone/out"},
    }
