"""Results as `biomedclip evaluate` writes them, with invented numbers."""

import json
from pathlib import Path
from typing import Any


WEIGHTS = "0123456789abcdef"
LEAKS = {
    "train_images": 262_144,
    "test_images": 32_768,
    "same_group": 12,
    "same_name": None,
    "same_bytes": 0,
    "same_picture": 3,
    "leaked": 14,
    "unreadable": [],
    "examples": {"same_group": [{"test": "a.png", "train": "b.png"}]},
}


def zero_shot_result(weights: str = WEIGHTS, **other: Any) -> dict[str, Any]:
    """Return a result of PCam with damaged images and leaks."""
    return {
        "schema": 1,
        "task": "zero-shot",
        "benchmark": "pcam",
        "command": "biomedclip evaluate zero-shot --model /home/someone/run --data /data/pcam --benchmark pcam",
        "date": "2026-11-24",
        "model": {"name": "/home/someone/run", "type": "biomedclip", "weights": weights},
        "data": {
            "path": "/data/pcam",
            "split": "test",
            "fingerprint": "00ffaa1122334455",
            "rows": 32_768,
            "damaged": [{"name": f"picture|{number}.png", "reason": "truncated <img>"} for number in range(7)],
            "leaks": LEAKS,
            "notes": ["read from HDF5"],
        },
        "metrics": {
            "accuracy": 0.5123,
            "accuracy_interval": [0.5001, 0.5245],
            "balanced_accuracy": 0.5117,
            "auroc": 0.5334,
            "chance": 0.5,
            "images": 32_768,
            "classes": ["0", "1"],
            "recall_of_class": {"normal lymph node": 0.9071, "lymph node metastasis": 0.1163},
            "confusion_matrix": [[1, 2], [3, 4]],
        },
        "paper": {"accuracy": 0.7341},
        "paper_source": "arXiv 2303.00915",
        "published": [
            {"model": "BiomedCLIP", "values": {"accuracy": 0.7341}, "source": "a paper", "read_from_figure": False},
            {"model": "Other", "values": {"accuracy": 0.7007}, "source": "its figure", "read_from_figure": True},
        ],
        "settings": {"template_set": "paper", "seed": 0},
        "seconds": 12.3,
        "versions": {"python": "3.11.7", "torch": "2.14.1"},
    } | other


def retrieval_result(weights: str = WEIGHTS, **other: Any) -> dict[str, Any]:
    """Return a result of retrieval among 20 pairs."""
    there = {"recall_at_1": 0.1011, "recall_at_1_interval": [0.05, 0.15], "recall_at_10": 0.6012, "median_rank": 7.5}
    back = {"recall_at_1": 0.2013, "recall_at_1_interval": [0.1, 0.3], "recall_at_10": 0.7014, "median_rank": 6.5}
    return (
        zero_shot_result(weights)
        | {
            "task": "retrieval",
            "benchmark": "pmc15m",
            "command": "biomedclip evaluate retrieval --model run --data out --output-dir results",
            "data": {"path": "out", "split": "test", "fingerprint": "01", "rows": 20, "damaged": [], "leaks": None},
            "metrics": {"pairs": 20, "chance_at_1": 0.05, "image_to_text": there, "text_to_image": back},
            "paper": {"text_to_image": {"recall_at_1": 0.696}},
            "published": [],
        }
        | other
    )


def write_result(folder: Path, result: dict[str, Any]) -> Path:
    """Write a result to `results.json` of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(result))
    return folder / "results.json"


def read_results(folder: Path) -> dict[str, Any]:
    """Return the content of `results.json` of a folder. NaN and infinities fail."""
    return json.loads((folder / "results.json").read_text(), parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON.")
