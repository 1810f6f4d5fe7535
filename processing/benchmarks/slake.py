"""SLAKE: questions about radiology images, in English and Chinese."""

from pathlib import Path
from typing import Any

from .benchmark import Content
from .files import find_file, incomplete
from .questions import questions_of, read_rows


_FILES = {"train": "train.json", "validation": "validate.json", "test": "test.json"}


def read(
    path: Path, split: str, facts: dict[str, Any], *, image_folder: str | Path | None = None, language: str = "en"
) -> Content:
    """Read a split from a folder with `train.json`, `validate.json`, `test.json` and, by default, `imgs`."""
    if language not in ("en", "zh", "all"):
        raise ValueError(f"Unknown language {language!r} of SLAKE. Choose en, zh or all.")
    file = find_file(path, _FILES[split])
    if file is None:
        raise incomplete(path, f"no {_FILES[split]}", facts)
    rows = read_rows(file, ["qid", "img_name", "question", "answer", "answer_type", "q_lang"])
    rows = [row for row in rows if language in (row["q_lang"], "all")]
    questions = questions_of(rows, file, "img_name", image_folder, ["imgs"], facts, "content_type")
    return Content(questions, [f"Questions of language: {language}."])
