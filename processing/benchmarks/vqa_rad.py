"""VQA-RAD: questions about radiology images."""

from pathlib import Path
from typing import Any

from .benchmark import Content
from .files import find_file, find_folder, incomplete
from .questions import questions_of, read_rows


_FILES = ("VQA_RAD Dataset Public.json", "VQA_RAD_Dataset_Public.json")
_FOLDERS = ("VQA_RAD Image Folder", "VQA_RAD_Image_Folder", "images")


def read(path: Path, split: str, facts: dict[str, Any], *, image_folder: str | Path | None = None) -> Content:
    """Read a split.

    Args:
        path: Folder with `VQA_RAD Dataset Public.json` (1,797 training and 451 test questions, split by `phrase_type`)
            and `VQA_RAD Image Folder`; or with `trainset.json` and `testset.json` (3,064 and 451 questions), which
            other papers use. If a folder contains both, the former is read.
        split: `train` or `test`.
        facts: Entry in `benchmarks.yaml`.
        image_folder: Folder of the images, if it is not next to the questions.

    Raises:
        FileNotFoundError: If the questions or images are missing.
        ValueError: If a file has unexpected content, or `split` is `validation`, which does not exist.
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
    folder = Path(image_folder) if image_folder is not None else find_folder(file.parent, *_FOLDERS)
    return Content(questions_of(rows, file, "image_name", folder, _FOLDERS[0], facts), [note])
