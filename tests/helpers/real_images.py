"""Small copies of the real images and articles in `../shared/data`, which are never part of the repository."""

import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from helpers.benchmark_files import write_vqa_rad
from helpers.mirror_writer import MirrorWriter
from PIL import Image


KINDS = {
    "chest": "mednist/CXR/*.jpeg",
    "head": "mednist/HeadCT/*.jpeg",
    "figure": "pmc_mirror/PMC*/*.jpg",
    "normal": "camelyon_sample/normal/*.png",
    "tumor": "camelyon_sample/tumor/*.png",
}
VQA_RAD = Path("vqa_rad", "data", "osfstorage")


@cache
def files_of_kind(data: Path, kind: str) -> list[Path]:
    """Return the files of a kind, sorted by path."""
    return sorted(data.glob(KINDS[kind]))


def scaled(file: Path, size: int) -> Image.Image:
    """Return an image whose longer side is at most `size`."""
    with Image.open(file) as image:
        image.draft(None, (size, size))
        image.thumbnail((size, size))
        return image.copy()


def save_scaled(file: Path, path: Path, size: int) -> None:
    """Save a scaled copy of an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scaled(file, size).save(path)


def pcam_patches(data: Path) -> list[np.ndarray]:
    """Return the centers of normal and of tumor patches, each of shape (patches, 96, 96, 3)."""
    center = (80, 80, 176, 176)
    return [
        np.stack([np.asarray(Image.open(file).convert("RGB").crop(center)) for file in files_of_kind(data, kind)])
        for kind in ("normal", "tumor")
    ]


def write_articles(data: Path, folder: Path, articles: slice, size: int = 160) -> None:
    """Write a mirror of PMC's bucket with some articles of `pmc_mirror` and scaled copies of their figures."""
    mirror = MirrorWriter(folder)
    source = data / "pmc_mirror"
    for file in sorted((source / "metadata").glob("*.json"))[articles]:
        article = source / file.stem
        content = json.loads(file.read_text(encoding="utf-8"))
        number = int(content.pop("pmcid").removeprefix("PMC"))
        metadata = {name: value for name, value in content.items() if not name.endswith(("_url", "_urls"))}
        media = {}
        for figure in sorted(article.glob("*.jpg")):
            buffer = io.BytesIO()
            scaled(figure, size).save(buffer, "JPEG")
            media[figure.name] = buffer.getvalue()
        mirror.raw_article(number, xml=(article / f"{file.stem}.xml").read_bytes(), media=media, **metadata)


def vqa_rad_questions(data: Path, **fields: str) -> list[dict]:
    """Return the questions of VQA-RAD that have these values, in the order of the file."""
    questions = json.loads((data / VQA_RAD / "VQA_RAD Dataset Public.json").read_text(encoding="utf-8"))
    return [row for row in questions if all(row[name] == value for name, value in fields.items())]


def radiographs(data: Path, organ: str, count: int) -> list[tuple[Path, str, str]]:
    """Return the image, a question with its answer, and the case, of the first cases of VQA-RAD for an organ."""
    of_case = {row["image_case_url"]: row for row in reversed(vqa_rad_questions(data, image_organ=organ))}
    return [
        (data / VQA_RAD / "VQA_RAD Image Folder" / row["image_name"], f"{row['question']} {row['answer']}", case)
        for case, row in sorted(of_case.items())[:count]
    ]


def write_real_vqa_rad(data: Path, folder: Path, questions: Sequence[dict], size: int = 64) -> None:
    """Write some questions of VQA-RAD, and scaled copies of their images."""
    write_vqa_rad(folder, questions)
    for path in (folder / "VQA_RAD Image Folder").iterdir():
        save_scaled(data / VQA_RAD / "VQA_RAD Image Folder" / path.name, path, size)
