"""TCGA-TIL: folders of patches from TCGA studies, with and without tumor-infiltrating lymphocytes."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..images.folders import split_folders
from .benchmark import Content
from .files import find_folder, incomplete, labeled_folders


PAPER_CANCER = "luad"
_ALL = "pancancer"  # folder that combines all studies
_PATIENT = re.compile(r"TCGA-\w{2}-\w{4}(?![0-9A-Za-z])")


def read(path: Path, split: str, facts: dict[str, Any], *, cancer: str = PAPER_CANCER) -> Content:
    """Read a split of a study.

    `path` is the folder `TCGA-TILs` or `images-tcga-tils`, its parent folder, or the folder of the study. `cancer` is
    the study (`luad`, `brca`, ...) in upper or lower case, or `all`.
    """
    name = cancer.lower().removeprefix("tcga-")
    name = _ALL if name == "all" else name
    studies = find_folder(path, "images-tcga-tils")
    known = {folder.name.lower(): folder for folder in sorted(studies.iterdir()) if folder.is_dir()} if studies else {}
    study = known.get(name) if studies else find_folder(path, name, name.upper())
    if study is None or not study.is_dir():
        names = ", ".join("all" if folder == _ALL else folder for folder in known) or "none"
        raise incomplete(path, f"no folder of the cancer {cancer!r}, only {names}", facts)
    splits = split_folders(study)
    if split not in splits:
        raise incomplete(study, f"no folder of the {split} split (found: {', '.join(splits) or 'none'})", facts)
    folders = {label: splits[split] / label for label in facts["classes"]}
    for label, folder in folders.items():
        if not folder.is_dir():
            raise incomplete(splits[split], f"no folder {label}", facts)
    images = labeled_folders(study, folders, facts)
    patients = [_PATIENT.search(name) for name in images.names]
    if all(patients):
        images = replace(images, groups=[patient.group() for patient in patients if patient])
    positive = images.labels.count(facts["positive"])
    fraction = positive / len(images)
    selection = {
        "cancer": "all" if name == _ALL else name,
        "folder": splits[split].name,
        "images": len(images),
        "positive": positive,
        "positive_fraction": fraction,
    }
    notes = [
        f"Cancer {selection['cancer']}, folder {selection['folder']}: {len(images):,} images, {fraction:.1%} positive."
    ]
    published = facts["images"]["test"], facts["positive_fraction"]["test"]
    of_the_paper = f"{published[0]:,} images, {published[1]:.1%} of them positive"
    if name != PAPER_CANCER:
        notes.append(f"The paper's value is for {PAPER_CANCER} ({of_the_paper}). It is not shown.")
        return Content(images, notes, selection, facts={"paper": {}, "images": {}})
    if split == "test" and (len(images), round(fraction, 3)) != published:
        notes.append(
            f"The paper's test set is {PAPER_CANCER} with {of_the_paper}. Its value was measured on different images."
        )
    return Content(images, notes, selection)
