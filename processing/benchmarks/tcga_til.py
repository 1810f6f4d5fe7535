"""TCGA-TIL: patches of the studies of TCGA, with and without tumor-infiltrating lymphocytes, in folders."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..images.labeled import LabeledImages, split_folders
from .facts import facts_of
from .files import find_folder, incomplete, labeled_folders


DEFAULT_CANCER = "luad"
_ALL = "pancancer"  # folder of all studies together
_PATIENT = re.compile(r"TCGA-\w{2}-\w{4}(?![0-9A-Za-z])")


def is_of_the_paper(cancer: str) -> bool:
    """Return whether the paper's value is about this study."""
    return _folder_name(cancer) == DEFAULT_CANCER


def read_tcga_til(root: Path, split: str, cancer: str) -> tuple[LabeledImages, list[str], dict[str, Any]]:
    """Read a split of a study.

    Args:
        root: The folder `TCGA-TILs` or `images-tcga-tils`, one above it, or that of the study.
        split: `train`, `validation` or `test`.
        cancer: The study (`luad`, `brca`, ...), in any case, or `all`.

    Returns:
        The images, notes, and the selection with its counts.

    Raises:
        FileNotFoundError: If the study, the split or the folder of a class is missing.
    """
    name = _folder_name(cancer)
    cancers = find_folder(root, "images-tcga-tils")
    known = {path.name.lower(): path for path in sorted(cancers.iterdir()) if path.is_dir()} if cancers else {}
    folder = known.get(name) if cancers else find_folder(root, name, name.upper())
    if folder is None or not folder.is_dir():
        there = ", ".join("all" if study == _ALL else study for study in known) or "none"
        raise incomplete(root, f"no folder of the cancer {cancer!r}; there are {there}", "tcga_til")
    splits = split_folders(folder)
    if split not in splits:
        raise incomplete(folder, f"no folder of the {split} split; there are {', '.join(splits) or 'none'}", "tcga_til")
    facts = facts_of("tcga_til")
    folders = {label: splits[split] / label for label in facts["classes"]}
    for label, of_label in folders.items():
        if not of_label.is_dir():
            raise incomplete(splits[split], f"no folder {label}", "tcga_til")
    images = labeled_folders(folder, folders, "tcga_til")
    patients = [_PATIENT.search(name) for name in images.names]
    if all(patients):
        images = replace(images, groups=[patient.group() for patient in patients if patient])
    positive = images.labels.count(facts["positive"])
    share = positive / len(images)
    selection = {
        "cancer": "all" if name == _ALL else name,
        "folder": splits[split].name,
        "images": len(images),
        "positive": positive,
        "positive_fraction": share,
    }
    notes = [
        f"Cancer {selection['cancer']}, folder {selection['folder']}: {len(images):,} images, {share:.1%} positive."
    ]
    published, published_share = facts["images"]["test"], facts["positive_fraction"]["test"]
    of_the_paper = f"{published:,} images, {published_share:.1%} of them positive"
    if not is_of_the_paper(cancer):
        notes.append(f"The paper's value is for {DEFAULT_CANCER} ({of_the_paper}). It is not shown.")
    elif split == "test" and (len(images), round(share, 3)) != (published, published_share):
        notes.append(f"The paper's test set is {DEFAULT_CANCER} with {of_the_paper}: its value is for other images.")
    return images, notes, selection


def _folder_name(cancer: str) -> str:
    name = cancer.lower().removeprefix("tcga-")
    return _ALL if name == "all" else name


__all__ = ["DEFAULT_CANCER", "is_of_the_paper", "read_tcga_til"]
