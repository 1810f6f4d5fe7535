"""VQA-RAD: questions about radiology images."""

from pathlib import Path
from typing import Any

from .benchmark import Content
from .files import find_file, incomplete
from .questions import questions_of, read_rows


_FILES = ("VQA_RAD Dataset Public.json", "VQA_RAD_Dataset_Public.json")
_FOLDERS = ("VQA_RAD Image Folder", "VQA_RAD_Image_Folder", "images")


def read(path: Path, split: str, facts: dict[str, Any], *, image_folder: str | Path | None = None) -> Content:
    """Read a split.

    The folder contains `VQA_RAD Dataset Public.json` (1,797 training and 451 test questions, split by `phrase_type`),
    or `trainset.json` and `testset.json` (3,064 and 451 questions), which other papers use. The former is preferred. By
    default, the images are in `VQA_RAD Image Folder` next to the questions.
    """
    if split == "validation":
        raise ValueError(f"{path}: VQA-RAD has no validation split, only train and test.")
    file = find_file(path, *_FILES)
    columns = ["qid", "image_name", "question", "answer", "answer_type"]
    if file:
        rows = read_rows(file, [*columns, "phrase_type"])
        is_test = [str(row["phrase_type"]).strip().lower().startswith("test") for row in rows]
        rows = [row for row, test in zip(rows, is_test, strict=True) if test == (split == "test")]
        note = "The published split: 1,797 training questions and 451 test questions."
    else:
        file = find_file(path, f"{split}set.json")
        if file is None:
            raise incomplete(path, f"neither {_FILES[0]} nor {split}set.json", facts)
        rows = read_rows(file, columns)
        note = "The split of trainset.json and testset.json: 3,064 training questions and 451 test questions."
    return Content(questions_of(rows, file, "image_name", image_folder, _FOLDERS, facts, "question_type"), [note])
