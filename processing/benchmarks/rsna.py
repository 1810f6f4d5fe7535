"""RSNA pneumonia: chest radiographs in DICOM; a patient's largest `Target` tells whether they show pneumonia."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from ..dicom import require_pydicom
from ..labelled_images import LabelledImages
from ..tables import read_table
from .files import check_images, check_names, check_values, find_file, incomplete


_TABLE = "stage_2_train_labels.csv"
_FOLDER = "stage_2_train_images"
# Kaggle's own test images have no published labels. The paper's list of 9,069 of the 26,684 labelled patients was never
# published either: as many are drawn.
_SHARES = {"test": 9069 / 26684, "validation": 0.1}


def split_patients(patients: Iterable[str], seed: int = 0) -> dict[str, list[str]]:
    """
    Splits patients by the order of their hashes.

    Args:
        patients: Their ids.
        seed: Another one gives another split.

    Returns:
        Ids of `train`, `validation` (10 %) and `test` (9,069 of 26,684), each sorted; the same wherever and in whatever
        order the ids come.

    Example:

    ```python
    >>> from processing.benchmarks.rsna import split_patients

    >>> split_patients(["a", "b", "c"])
    ```"""
    drawn = sorted(set(patients), key=lambda patient: hashlib.blake2b(f"{seed}:{patient}".encode()).digest())
    splits, start = {}, 0
    for split, share in _SHARES.items():
        end = start + round(share * len(drawn))
        splits[split], start = sorted(drawn[start:end]), end
    return {"train": sorted(drawn[start:]), **splits}


def read_rsna(root: Path, split: str, seed: int) -> tuple[LabelledImages, list[str]]:
    """
    A split of the labelled patients, and notes.

    Args:
        root: Folder with `stage_2_train_labels.csv` and `stage_2_train_images`.
        split: `train`, `validation` or `test`.
        seed: Of the split.

    Raises:
        FileNotFoundError: The table, the folder, or images of the table are missing.
        ImportError: pydicom is not installed.
        ValueError: A table that holds something else.
    """
    require_pydicom()
    table = find_file(root, _TABLE)
    if table is None:
        raise incomplete(root, f"no {_TABLE}", "rsna")
    targets = _targets(table)
    folder = table.parent / _FOLDER
    check_images(folder, [f"{patient}.dcm" for patient in targets], table, "rsna")
    splits = split_patients(targets, seed)
    patients = splits[split]
    if not patients:
        raise ValueError(f"{table}: of its {len(targets)} patients none falls into the {split} split.")
    images = LabelledImages(
        [folder / f"{patient}.dcm" for patient in patients],
        [targets[patient] for patient in patients],
        patients,
        patients,
    )
    numbers = ", ".join(f"{name} {len(members):,}" for name, members in splits.items())
    return images, [
        f"Patients split by hash, seed {seed}: {numbers}. The list of the paper's 9,069 test images was never "
        "published, so that these are others."
    ]


def _targets(table: Path) -> dict[str, str]:
    """Label of each patient, of whom a table has one row for each opacity."""
    read = read_table(table, ["patientId", "Target"])
    check_names(read, "patientId")
    check_values(read, "Target", ("0", "1"))
    positive = {row["patientId"] for row in read.rows if row["Target"] == "1"}
    return {row["patientId"]: "pneumonia" if row["patientId"] in positive else "normal" for row in read.rows}


__all__ = ["read_rsna", "split_patients"]
