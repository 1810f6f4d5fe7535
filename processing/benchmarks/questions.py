"""Questions about images: VQA-RAD and SLAKE, each a JSON file beside a folder of images."""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ..tables import read_text
from .benchmark import VisualQuestion
from .files import check_images, find_file, find_folder, incomplete


_VQA_RAD_FILES = ("VQA_RAD Dataset Public.json", "VQA_RAD_Dataset_Public.json")
_VQA_RAD_FOLDERS = ("VQA_RAD Image Folder", "VQA_RAD_Image_Folder", "images")
_SLAKE_FILES = {"train": "train.json", "validation": "validate.json", "test": "test.json"}
_ANSWER_TYPES: dict[str, Literal["open", "closed"]] = {"open": "open", "closed": "closed"}


def read_vqa_rad(root: Path, split: str, image_folder: Path | None) -> tuple[list[VisualQuestion], list[str]]:
    """A split of VQA-RAD, and notes.

    Args:
        root: Folder with `VQA_RAD Dataset Public.json` (1,797 questions to train on and 451 to test with, by
            `phrase_type`) and `VQA_RAD Image Folder`; or with `trainset.json` and `testset.json`, the split of 3,064
            and 451 questions that other papers use. Where there are both, the former counts: name the folder of the
            latter.
        split: `train` or `test`.
        image_folder: Folder of the images, where it does not lie beside the questions.

    Raises:
        FileNotFoundError: The questions or images are missing.
        ValueError: A file that holds something else, or `validation`, which does not exist.
    """
    if split == "validation":
        raise ValueError(f"{root}: VQA-RAD has no validation split, only train and test.")
    file = find_file(root, *_VQA_RAD_FILES)
    if file:
        is_test = split == "test"
        rows = _read_rows(file, ("qid", "image_name", "question", "answer", "answer_type", "phrase_type"))
        rows = [row for row in rows if str(row["phrase_type"]).strip().lower().startswith("test") == is_test]
        notes = ["The published split: 1,797 questions to train on, 451 to test with."]
    else:
        file = find_file(root, f"{split}set.json")
        if file is None:
            raise incomplete(root, f"neither {_VQA_RAD_FILES[0]} nor {split}set.json", "vqa_rad")
        rows = _read_rows(file, ("qid", "image_name", "question", "answer", "answer_type"))
        notes = ["The split of trainset.json and testset.json: 3,064 questions to train on, 451 to test with."]
    folder = image_folder or find_folder(file.parent, *_VQA_RAD_FOLDERS)
    return _questions(rows, file, "image_name", folder, "vqa_rad", _VQA_RAD_FOLDERS[0]), notes


def read_slake(
    root: Path, split: str, image_folder: Path | None, language: str
) -> tuple[list[VisualQuestion], list[str]]:
    """A split of SLAKE, and notes.

    Args:
        root: Folder with `train.json`, `validate.json`, `test.json` and `imgs`.
        split: `train`, `validation` or `test`.
        image_folder: Folder of the images, where it is not `imgs`.
        language: `en`, `zh` or `all`.

    Raises:
        FileNotFoundError: The questions or images are missing.
        ValueError: A file that holds something else, or another language.
    """
    if language not in ("en", "zh", "all"):
        raise ValueError(f"SLAKE's questions are in en, zh or all of them, not {language!r}.")
    file = find_file(root, _SLAKE_FILES[split])
    if file is None:
        raise incomplete(root, f"no {_SLAKE_FILES[split]}", "slake")
    rows = _read_rows(file, ("qid", "img_name", "question", "answer", "answer_type", "q_lang"))
    rows = [row for row in rows if language in (row["q_lang"], "all")]
    folder = image_folder or find_folder(file.parent, "imgs")
    return _questions(rows, file, "img_name", folder, "slake", "imgs"), [f"Questions of language: {language}."]


def _read_rows(file: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    try:
        rows = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not a JSON file, or a truncated one ({error}). Download it again.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file}: not a list of questions.")
    for number, row in enumerate(rows):
        if missing := [key for key in keys if row.get(key) is None]:
            raise ValueError(f"{file}: question {number} has no {', '.join(missing)}.")
    return rows


def _questions(
    rows: list[dict[str, Any]], file: Path, image_key: str, folder: Path | None, benchmark: str, folder_name: str
) -> list[VisualQuestion]:
    if not rows:
        raise ValueError(f"{file}: no questions of this split in it.")
    if folder is None or not folder.is_dir():
        raise incomplete(folder or file.parent, f"no folder of images ({folder_name})", benchmark)
    names = list(dict.fromkeys(str(row[image_key]) for row in rows))
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
            raise ValueError(f"{file}: {image_key} {name[:100]!r} leads out of the folder of images.")
    check_images(folder, names, file, benchmark)
    return [_question(row, file, image_key, folder) for row in rows]


def _question(row: dict[str, Any], file: Path, image_key: str, folder: Path) -> VisualQuestion:
    answer_type = _ANSWER_TYPES.get(str(row["answer_type"]).strip().lower())
    if answer_type is None:
        raise ValueError(f"{file}: question {row['qid']} is {row['answer_type']!r}, neither OPEN nor CLOSED.")
    return VisualQuestion(
        question=str(row["question"]).strip(),
        answer=str(row["answer"]).strip(),
        answer_type=answer_type,
        image=folder / str(row[image_key]),
        image_name=str(row[image_key]),
        name=str(row["qid"]),
    )


__all__ = ["read_slake", "read_vqa_rad"]
