"""Read questions about images from a JSON file, the format of VQA-RAD and SLAKE."""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..tables import read_text
from .benchmark import VisualQuestion
from .files import check_images, find_folder, incomplete


def read_rows(file: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Read a list of questions from a JSON file. Raise `ValueError` if a question lacks one of the keys."""
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


def questions_of(
    rows: list[dict[str, Any]],
    file: Path,
    image_key: str,
    image_folder: str | Path | None,
    folder_names: Sequence[str],
    facts: dict[str, Any],
    kind_key: str,
) -> list[VisualQuestion]:
    """Return the questions in the rows of a file.

    `image_key` is the key of the image name, and `kind_key` that of the kind of question, which rows may lack. The
    images are in `image_folder`, or by default in a folder next to the file that has one of `folder_names`.
    """
    if not rows:
        raise ValueError(f"{file}: no questions of this split.")
    folder = find_folder(file.parent, *folder_names) if image_folder is None else Path(image_folder)
    if folder is None or not folder.is_dir():
        raise incomplete(folder or file.parent, f"no folder of images ({folder_names[0]})", facts)
    names = list(dict.fromkeys(str(row[image_key]) for row in rows))
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
            raise ValueError(f"{file}: {image_key} {name[:100]!r} is outside the folder of images.")
    check_images(folder, names, file, facts)
    questions = []
    for row in rows:
        answer_type: Any = str(row["answer_type"]).strip().lower()
        if answer_type not in ("open", "closed"):
            raise ValueError(f"{file}: question {row['qid']} is {row['answer_type']!r}, neither OPEN nor CLOSED.")
        name = str(row[image_key])
        texts = str(row["question"]).strip(), str(row["answer"]).strip()
        kind = str(row.get(kind_key) or "").strip()
        questions.append(VisualQuestion(*texts, answer_type, folder / name, name, str(row["qid"]), kind))
    return questions
