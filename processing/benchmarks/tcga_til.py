"""TCGA-TIL: patches of many cancers with or without lymphocytes that infiltrate the tumour, in folders."""

import re
from dataclasses import replace
from pathlib import Path

from ..labelled_images import LabelledImages, split_folders
from .facts import facts_of
from .files import find_folder, incomplete, labelled_folders


_PATIENT = re.compile(r"TCGA-\w{2}-\w{4}(?![0-9A-Za-z])")


def read_tcga_til(root: Path, split: str, cancer: str) -> tuple[LabelledImages, list[str]]:
    """
    A split of TCGA-TIL, and notes.

    Args:
        root: The folder `TCGA-TILs` or `images-tcga-tils`, one above it, or that of a cancer.
        split: `train`, `validation` or `test`.
        cancer: Folder of a cancer, or `pancancer`.

    Raises:
        FileNotFoundError: The cancer, the split or the folder of a class is missing.
    """
    cancers = find_folder(root, "images-tcga-tils")
    folder = cancers / cancer if cancers else find_folder(root, cancer)
    if folder is None or not folder.is_dir():
        known = sorted(path.name for path in cancers.iterdir() if path.is_dir()) if cancers else []
        raise incomplete(
            root, f"no folder of the cancer {cancer!r}; there are {', '.join(known) or 'none'}", "tcga_til"
        )
    splits = split_folders(folder)
    if split not in splits:
        raise incomplete(folder, f"no folder of the {split} split; there are {', '.join(splits) or 'none'}", "tcga_til")
    folders = {label: splits[split] / label for label in facts_of("tcga_til")["classes"]}
    for label, of_label in folders.items():
        if not of_label.is_dir():
            raise incomplete(splits[split], f"no folder {label}", "tcga_til")
    images = labelled_folders(folder, folders, "tcga_til")
    patients = [_PATIENT.search(name) for name in images.names]
    if all(patients):
        images = replace(images, groups=[patient.group() for patient in patients if patient])
    positive = images.labels.count("til-positive")
    return images, [
        f"Cancer {cancer}, folder {splits[split].name}: {len(images):,} images, {positive / len(images):.1%} positive. "
        "The published value is of 2,480 images, 5.9 % of them positive."
    ]


__all__ = ["read_tcga_til"]
