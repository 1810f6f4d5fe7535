"""Invented reports of builds: one of all of PMC, and one of a single pair."""

from typing import Any

import numpy as np


def histogram(values: np.ndarray, edges: np.ndarray) -> dict[str, list[float]]:
    """Return counts between edges. Larger values are counted in the last bin."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def lengths(values: np.ndarray) -> dict[str, Any]:
    """Return the mean and percentiles."""
    percentiles = {str(q): float(np.percentile(values, q)) for q in (5, 50, 90, 95, 99)}
    return {"mean": float(values.mean()), "percentiles": percentiles}


def full_scale_report() -> dict[str, Any]:
    """Return an invented report of a build of all of PMC."""
    random = np.random.default_rng(0)
    captions = random.lognormal(4.4, 0.85, 20_000).round() + 2
    sides = random.lognormal(6.2, 0.5, 20_000).round() + 40
    caption_histogram = histogram(captions, np.arange(0, 1041, 16))
    side_histogram = histogram(sides, np.arange(0, 3001, 50))
    for counts in (caption_histogram, side_histogram):
        counts["counts"] = [count * 787 for count in counts["counts"]]
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
        "pairs": 15_741_238,
        "splits": {
            "train": {"articles": 4_625_208, "pairs": 14_946_305, "shards": 2990, "bytes": 1_464_737_890_000},
            "validation": {"articles": 4_384, "pairs": 14_167, "shards": 3, "bytes": 1_388_366_000},
            "test": {"articles": 241_612, "pairs": 780_766, "shards": 157, "bytes": 76_515_068_000},
        },
        "split_fractions": [0.9495, 0.0009, 0.0496],
        "articles_moved_to_fill_a_split": {},
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
        "mentions": {"pairs_with": 14_502_101, "paragraphs": 25_903_222},
        "panels": 610_227,
        "animated": 15,
        "duplicates": {"same_bytes": 1_407_222, "same_image": 210_118},
        "caption_length": lengths(captions)
        | {
            "unit": "tokens",
            "tokenizer": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
            "within_256": float((captions <= 256).mean()),
            "histogram": caption_histogram,
        },
        "image_size": lengths(sides)
        | {
            "unit": "pixels of the shorter side",
            "above_336": float((sides > 336).mean()),
            "histogram": side_histogram,
        },
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


def smallest_report() -> dict[str, Any]:
    """Return a report of one article with one pair."""
    one = {"mean": 8.0, "percentiles": {str(q): 8.0 for q in (5, 50, 90, 95, 99)}}
    return full_scale_report() | {
        "source": "/home/someone/mirror",
        "inventory_date": None,
        "articles": {"seen": 1, "kept": 1, "dropped": {}},
        "figures": {"seen": 1, "skipped": {}},
        "pairs": 1,
        "splits": {"train": {"articles": 1, "pairs": 1, "shards": 1, "bytes": 21_004}},
        "split_fractions": [1.0, 0.0, 0.0],
        "licenses": {"CC BY": 1},
        "modes": {"L": 1},
        "formats": {"PNG": 1},
        "mentions": {"pairs_with": 0, "paragraphs": 0},
        "panels": 0,
        "animated": 0,
        "duplicates": {"same_bytes": 0, "same_image": 0},
        "caption_length": one
        | {
            "unit": "words",
            "tokenizer": None,
            "within_256": 1.0,
            "histogram": {"edges": [0, 16], "counts": [1]},
        },
        "image_size": one
        | {
            "unit": "pixels of the shorter side",
            "above_336": 0.0,
            "histogram": {"edges": [0, 32], "counts": [1]},
        },
        "update": None,
        "built_with": {"source": "/home/someone/mirror"},
        "seconds": 0.4,
        "options": {"source": "/home/someone/mirror", "license": "noncommercial", "output_dir": "/home/someone/out"},
    }
