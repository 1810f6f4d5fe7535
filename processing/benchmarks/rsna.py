"""RSNA pneumonia: chest radiographs in DICOM format. The label of a patient is the largest `Target`."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from ..images.dicom import require_pydicom
from ..images.labeled import LabeledImages
from ..tables import read_table
from .benchmark import Content
from .files import check_images, check_names, check_values, find_file, incomplete


_TABLE = "stage_2_train_labels.csv"
_FOLDER = "stage_2_train_images"
# Kaggle's own test images have no published labels. Table 1 of the paper counts 18,678 / 4,003 / 9,069 of the 26,684
# labeled patients, so its splits overlap, and its lists were never published. 9,069 is 30 % of the 30,227 rows of the
# table, rounded up. Two rules produce disjoint splits of these sizes.
RsnaSplit = Literal["paper-test", "paper-fractions"]
RSNA_SPLITS = get_args(RsnaSplit)


def split_patients(patients: Iterable[str], seed: int = 0, rule: RsnaSplit = "paper-test") -> dict[str, list[str]]:
    """Split the ids of patients by the order of their hashes, and return the sorted ids of each split.

    The rule `paper-test` selects the number of test patients in Table 1 of the paper (9,069 of 26,684), and 10 % for
    validation. `paper-fractions` selects 70 % for training, 15 % for validation and 15 % for testing, which are the
    training and validation sizes of Table 1 (18,678 and 4,003) and 4,003 test patients.
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


def read(
    path: Path, split: str, facts: dict[str, Any], *, seed: int = 0, rsna_split: RsnaSplit = "paper-test"
) -> Content:
    """Read a split of the labeled patients. `rsna_split` is the rule of [`split_patients`]."""
    require_pydicom()
    file = find_file(path, _TABLE)
    if file is None:
        raise incomplete(path, f"no {_TABLE}", facts)
    table = read_table(file, ["patientId", "Target"])
    check_names(table, "patientId")
    check_values(table, "Target", ("0", "1"))
    # The table has one row per opacity of a patient.
    with_opacity = {row["patientId"] for row in table.rows if row["Target"] == "1"}
    patients = list(dict.fromkeys(row["patientId"] for row in table.rows))
    folder = file.parent / _FOLDER
    check_images(folder, [f"{patient}.dcm" for patient in patients], file, facts)
    splits = split_patients(patients, seed, rsna_split)
    chosen = splits[split]
    if not chosen:
        raise ValueError(f"{file}: none of its {len(patients)} patients is in the {split} split.")
    labels = ["pneumonia" if patient in with_opacity else "normal" for patient in chosen]
    sizes = {name: len(members) for name, members in splits.items()}
    positive = labels.count("pneumonia")
    notes = [
        f"Patients split by hash, seed {seed}: {', '.join(f'{name} {size:,}' for name, size in sizes.items())} (rule "
        f"{rsna_split}). {positive / len(chosen):.1%} of {split} are positive. "
        "Table 1 of the paper lists train 18,678, validation 4,003, test 9,069, which is more than the 26,684 patients "
        "that have labels. Its lists were never published, so the images differ from the paper's."
    ]
    if rsna_split == "paper-fractions":
        notes.append(
            "paper-fractions is inferred: 18,678 and 4,003 are 70 and 15 % of the patients. The remaining 15 % are "
            "4,003, not 9,069."
        )
    return Content(
        LabeledImages([folder / f"{patient}.dcm" for patient in chosen], labels, chosen, chosen),
        notes,
        {
            "rsna_split": rsna_split,
            "seed": seed,
            "patients": sizes,
            "positive": positive,
            "positive_fraction": positive / len(chosen),
        },
    )
