"""RSNA pneumonia: chest radiographs in DICOM; a patient's largest `Target` tells whether they show pneumonia."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from ..images.dicom import require_pydicom
from ..images.labeled import LabeledImages
from ..tables import read_table
from .files import check_images, check_names, check_values, find_file, incomplete


_TABLE = "stage_2_train_labels.csv"
_FOLDER = "stage_2_train_images"
# Kaggle's own test images have no published labels. Table 1 of the paper counts 18,678 / 4,003 / 9,069 of the 26,684
# labeled patients, which overlap, and its lists were never published. Two rules draw disjoint splits of such sizes.
RsnaSplit = Literal["paper-test", "paper-fractions"]
RSNA_SPLITS = get_args(RsnaSplit)


def split_patients(patients: Iterable[str], seed: int = 0, rule: RsnaSplit = "paper-test") -> dict[str, list[str]]:
    """Split patients by the order of their hashes.

    Args:
        patients: Ids of the patients.
        seed: Each seed gives another split.
        rule: Sizes of the splits. `paper-test`: as many test patients as in Table 1 of the paper (9,069 of 26,684), and
            10 % for validation. `paper-fractions`: 70 % for training, 15 % for validation, 15 % for testing, which
            gives the training and validation sizes of Table 1 (18,678 and 4,003) and 4,003 test patients.

    Returns:
        Ids of `train`, `validation` and `test`, each sorted. They depend on the ids, the seed and the rule alone, and
        do not overlap.

    Raises:
        ValueError: If the rule is unknown.

    Example:
    ```python
    >>> from biomedclip.processing.benchmarks.rsna import split_patients

    >>> split_patients(["a", "b", "c"])
    ```
    """
    drawn = sorted(set(patients), key=lambda patient: hashlib.blake2b(f"{seed}:{patient}".encode()).digest())
    if rule == "paper-test":
        test, validation = round(9069 / 26684 * len(drawn)), round(0.1 * len(drawn))
    elif rule == "paper-fractions":
        rest = len(drawn) - 7 * len(drawn) // 10
        validation, test = rest // 2, rest - rest // 2
    else:
        raise ValueError(f"rsna_split={rule!r} is unknown. Choose one of {', '.join(RSNA_SPLITS)}.")
    return {
        "train": sorted(drawn[test + validation :]),
        "test": sorted(drawn[:test]),
        "validation": sorted(drawn[test : test + validation]),
    }


def read_rsna(
    root: Path, split: str, seed: int, rule: RsnaSplit = "paper-test"
) -> tuple[LabeledImages, list[str], dict[str, Any]]:
    """Read a split of the labeled patients.

    Args:
        root: Folder with `stage_2_train_labels.csv` and `stage_2_train_images`.
        split: `train`, `validation` or `test`.
        seed: Seed of the split.
        rule: Sizes of the splits, as [`split_patients`] takes it.

    Returns:
        The images, notes, and the selection with its counts.

    Raises:
        FileNotFoundError: If the table, the folder, or images of the table are missing.
        ImportError: If pydicom is not installed.
        ValueError: If the table holds something else, or the rule is unknown.
    """
    require_pydicom()
    table = find_file(root, _TABLE)
    if table is None:
        raise incomplete(root, f"no {_TABLE}", "rsna")
    targets = _targets(table)
    folder = table.parent / _FOLDER
    check_images(folder, [f"{patient}.dcm" for patient in targets], table, "rsna")
    splits = split_patients(targets, seed, rule)
    patients = splits[split]
    if not patients:
        raise ValueError(f"{table}: of its {len(targets)} patients none falls into the {split} split.")
    images = LabeledImages(
        [folder / f"{patient}.dcm" for patient in patients],
        [targets[patient] for patient in patients],
        patients,
        patients,
    )
    sizes = {name: len(members) for name, members in splits.items()}
    numbers = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    positive = images.labels.count("pneumonia")
    selection = {
        "rsna_split": rule,
        "seed": seed,
        "patients": sizes,
        "positive": positive,
        "positive_fraction": positive / len(images),
    }
    notes = [
        f"Patients split by hash, seed {seed}: {numbers} (rule {rule}). {positive / len(images):.1%} of {split} are "
        "positive. "
        "Table 1 of the paper gives train 18,678, validation 4,003, test 9,069, which is more than the 26,684 patients "
        "that have labels. Its lists were never published, so that these images are others."
    ]
    if rule == "paper-fractions":
        notes.append(
            "paper-fractions is inferred: 18,678 and 4,003 are 70 and 15 % of the patients. The 15 % that are left are "
            "4,003, not 9,069."
        )
    return images, notes, selection


def _targets(table: Path) -> dict[str, str]:
    """Label of each patient, of whom a table has one row for each opacity."""
    read = read_table(table, ["patientId", "Target"])
    check_names(read, "patientId")
    check_values(read, "Target", ("0", "1"))
    positive = {row["patientId"] for row in read.rows if row["Target"] == "1"}
    return {row["patientId"]: "pneumonia" if row["patientId"] in positive else "normal" for row in read.rows}


__all__ = ["RSNA_SPLITS", "RsnaSplit", "read_rsna", "split_patients"]
