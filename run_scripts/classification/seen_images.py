"""Remember which images a classifier was trained on, so that an evaluation on them can be recognized.

`seen_images.json` contains sorted hashes of files and pixels. They show only whether a given image was used. The
file is not published with the model.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from biomedclip.processing.benchmarks.same_images import looks_of

from ..cli.fields import WORKERS
from ..cli.reporting import write_json


FILE = "seen_images.json"
SPLITS = ("train", "validation")
SEEN_UNKNOWN = f"The classifier has no {FILE}, so whether it was trained on these images is unknown."  # note
_SCHEMA = 1


def write_seen_images(folders: Sequence[Path], splits: Mapping[str, Any]) -> None:
    """Write the hashes of the training and validation images into folders of a classifier."""
    hashes = {
        split: sorted(set().union(*_hashes(splits[split].images, "Hashes of images")))
        for split in SPLITS
        if split in splits
    }
    for folder in folders:
        write_json(folder / FILE, {"schema": _SCHEMA, **hashes})


def count_seen_images(model: str, images: Sequence[Any]) -> dict[str, int] | None:
    """Return how many images a classifier was trained on, and how many of the others were its validation images.

    An image is recognized by its file or its pixels, but not if it was resized or cropped. None if the folder of the
    model does not state its images, or the model is on the Hub.

    Raises:
        ValueError: If the file is damaged.
    """
    path = Path(model) / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        seen = {split: set(map(str, content[split])) for split in SPLITS if split in content}
        if content["schema"] != _SCHEMA:
            raise ValueError("schema is not 1")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}). Remove it: the evaluation then does not look for them."
        ) from error
    counts = dict.fromkeys(seen, 0)
    for own in _hashes(images, "Images of the training"):
        for split, hashes in seen.items():
            if own & hashes:
                counts[split] += 1
                break
    return counts


def notes_on_seen(counts: Mapping[str, int] | None, images: int) -> list[str]:
    """Return a note for the images on which a classifier was trained, and one for its validation images."""
    of = {name: f"{count:,} of {images:,} images" for name, count in (counts or {}).items() if count}
    notes = []
    if "train" in of:
        notes.append(f"{of['train']} were used to train the classifier. Its metrics on them are too good.")
    if "validation" in of:
        notes.append(
            f"{of['validation']} were validation images of the training, on which settings or a checkpoint were chosen."
        )
    return notes


def notes_on_seen_validation(counts: Mapping[str, int] | None, images: int) -> list[str]:
    """Return notes like [`notes_on_seen`] for the validation images, on which decisions are fitted."""
    of = {name: f"{count:,} of {images:,} validation images" for name, count in (counts or {}).items() if count}
    notes = []
    if "train" in of:
        notes.append(
            f"{of['train']} were used to train the classifier, which is too certain about them. The calibration and "
            "the decisions are wrong for other images. Fit them on images that the classifier has not seen."
        )
    if "validation" in of:
        notes.append(f"{of['validation']} were those of the training, on which settings or a checkpoint were chosen.")
    return notes


def _hashes(images: Sequence[Any], title: str) -> list[set[str]]:
    """Return the hashes of the file and of the pixels of each image. Those of an unreadable one may be empty."""

    def of_row(row: int) -> set[str]:
        looks = looks_of(images[row])
        return {digest[:8].hex() for digest in (looks.file, looks.pixels) if digest}

    with ThreadPoolExecutor(WORKERS) as pool:
        rows = range(len(images))
        return list(tqdm(pool.map(of_row, rows), title, total=len(rows), unit="image", delay=2, dynamic_ncols=True))
