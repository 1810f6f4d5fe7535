"""One folder for the examples of all pages, with real images where `../shared/data` exists."""

import os
import shutil
from pathlib import Path

import pytest
from conftest import SHARED_DATA
from filelock import FileLock
from helpers import real_images
from helpers.benchmark_files import save_drawn, write_pcam, write_rsna, write_table, write_tcga_til, write_vqa_rad
from helpers.commands import ROOT
from helpers.open_clip_folders import write_open_clip_folder

from biomedclip.run_scripts.main import main


SCANS = {"train": range(8), "validation": range(8, 12), "test": range(12, 16)}
ARTICLES = slice(80, 120)  # they have 22 test pairs, and a page measures among 16
QUESTIONS = {"freeform": 16, "test_freeform": 8}


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory) -> Path:
    """Return the folder in which the examples run. All processes of pytest-xdist share it, so tests must copy it.

    It has a small quickstart model in `out/`, a small model in place of the published one in `published/`, an image,
    labeled images, tables of images with reports and with findings, and small benchmarks.
    Images, articles and questions are real where
    `../shared/data` exists, except those of RSNA and TCGA-TIL.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / "documentation", base / "documentation.done"
    with FileLock(base / "documentation.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            write_models(folder)
            write_benchmarks(folder / "benchmarks")
            if SHARED_DATA.is_dir():
                write_real_images(folder)
            else:
                write_drawn_images(folder)
            write_findings(folder)
            done.touch()
    return folder


def write_models(folder: Path) -> None:
    corpus, out = folder / "corpus", folder / "out"
    source = ["--figures", "300"]
    if SHARED_DATA.is_dir():
        real_images.write_articles(SHARED_DATA, corpus, ARTICLES)
        source = ["--source", str(corpus)]
    assert main(["quickstart", "--output-dir", str(out), *source, "--max-steps", "4", "--lora-steps", "1"]) == 0
    if corpus.exists():
        corpus.rename(out / "corpus")
    assert main(["convert", str(write_open_clip_folder(folder / "source")), str(folder / "published")]) == 0
    (folder / "tests").symlink_to(ROOT / "tests")


def write_real_images(folder: Path) -> None:
    figures = real_images.files_of_kind(SHARED_DATA, "figure")
    real_images.save_scaled(figures[0], folder / "figure.png", 160)
    for split, numbers in SCANS.items():
        for label in ("chest", "head"):
            for number, file in enumerate(real_images.files_of_kind(SHARED_DATA, label)[numbers.start : numbers.stop]):
                real_images.save_scaled(file, folder / "scans" / split / label / f"{number}.png", 64)
    rows = []
    for organ in ("CHEST", "HEAD"):
        for file, report, case in real_images.radiographs(SHARED_DATA, organ, 20):
            path = f"images/{len(rows)}.png"
            real_images.save_scaled(file, folder / path, 96)
            rows.append((path, report, case, organ.lower()))
    write_table(folder / "reports.csv", ["image_path", "report", "patient", "finding"], rows)
    questions = [
        row
        for kind, count in QUESTIONS.items()
        for row in real_images.vqa_rad_questions(SHARED_DATA, phrase_type=kind)[:count]
    ]
    real_images.write_real_vqa_rad(SHARED_DATA, folder / "VQA_RAD", questions)


def write_drawn_images(folder: Path) -> None:
    save_drawn(folder / "figure.png", 0, 80)
    for split, numbers in SCANS.items():
        for label in ("chest", "head"):
            for number, seed in enumerate(numbers):
                save_drawn(folder / "scans" / split / label / f"{number}.png", seed, 64, label == "chest")
    rows = []
    for number in range(40):
        save_drawn(folder / "images" / f"{number}.png", [number, 9], 64, number % 2 == 0)
        finding = ("mass", "normal")[number % 2]
        rows.append((f"images/{number}.png", f"Report {number} of the scan.", f"p{number // 2}", finding))
    write_table(folder / "reports.csv", ["image_path", "report", "patient", "finding"], rows)
    questions = [
        {"phrase_type": kind, "image_name": f"synpic{kind}{number // 2}.jpg", "answer": ["Yes", "No"][number % 2]}
        for kind, count in QUESTIONS.items()
        for number in range(count)
    ]
    write_vqa_rad(folder / "VQA_RAD", questions)


def write_findings(folder: Path) -> None:
    """Write tables with two findings for each image of `reports.csv`, and with labels and splits. They are invented."""
    splits = [
        (f"images/{n}.png", "ab"[n % 2], f"p{n // 2}", ("train", "train", "val", "test")[n // 2 % 4]) for n in range(40)
    ]
    write_table(folder / "splits.csv", ["image", "label", "patient", "split"], splits)
    rows = []
    for number in range(40):
        effusion, nodule = [1, 0, 0, -1][number % 4], ["0", "1", ""][number % 3]
        rows.append((f"images/{number}.png", f"p{number // 2}", effusion, nodule))
    write_table(folder / "findings.csv", ["image", "patient", "effusion", "nodule"], rows)


def write_benchmarks(folder: Path) -> None:
    patches = real_images.pcam_patches(SHARED_DATA) if SHARED_DATA.is_dir() else None
    for part in ("train", "valid", "test"):
        write_pcam(folder / "pcam", part, 32, distinct=32, patches=patches)
    patients = {f"patient-{number}": [number % 3 // 2] for number in range(60)}
    write_rsna(folder / "rsna", patients)
    for split, numbers in SCANS.items():
        for order, label in enumerate(("Cyst", "Normal", "Stone", "Tumor")):
            for number in numbers:
                save_drawn(folder.parent / "organs" / split / label / f"{number}.png", [order, number], 48, order < 2)
    write_tcga_til(folder / "tcga_til", ["luad", "brca"], {"train": (4, 2), "val": (2, 1), "test": (8, 2)})
