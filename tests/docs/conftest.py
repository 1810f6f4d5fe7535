"""One quickstart model for the examples of all pages."""

from pathlib import Path

import pytest
from helpers.benchmark_files import save_drawn, write_pcam, write_rsna, write_tcga_til, write_vqa_rad
from helpers.commands import ROOT
from helpers.open_clip_folders import write_open_clip_folder

from biomedclip.run_scripts.main import main


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory) -> Path:
    """Return the folder in which the examples run.

    It has a small quickstart model in `out/`, a small model in place of the published one in `published/`, an image,
    labeled images, a table of images and reports, and small benchmarks.
    """
    folder = tmp_path_factory.mktemp("documentation")
    out = str(folder / "out")
    arguments = ["--figures", "300", "--max-steps", "20", "--lora-steps", "2"]
    assert main(["quickstart", "--output-dir", out, *arguments]) == 0
    assert main(["convert", str(write_open_clip_folder(folder / "source")), str(folder / "published")]) == 0
    (folder / "tests").symlink_to(ROOT / "tests")
    save_drawn(folder / "figure.png", 0, 80)
    for split, count in {"train": 8, "validation": 4, "test": 4}.items():
        for label in ("cells", "tissue"):
            for number in range(count):
                save_drawn(folder / "scans" / split / label / f"{number}.png", [number, count], 64, label == "cells")
    rows = ["image_path,report,patient,finding"]
    for number in range(40):
        save_drawn(folder / "images" / f"{number}.png", [number, 9], 64, number % 2 == 0)
        rows.append(f"images/{number}.png,Report {number} of the scan.,p{number // 2},{('mass', 'normal')[number % 2]}")
    (folder / "reports.csv").write_text("\n".join(rows), encoding="utf-8")
    for part in ("train", "valid", "test"):
        write_pcam(folder / "benchmarks" / "pcam", part, 32, distinct=32)
    patients = {f"patient-{number}": [number % 3 // 2] for number in range(60)}
    write_rsna(folder / "benchmarks" / "rsna", patients)
    write_tcga_til(
        folder / "benchmarks" / "tcga_til", ["luad", "brca"], {"train": (4, 2), "val": (2, 1), "test": (8, 2)}
    )
    write_vqa_rad(
        folder / "VQA_RAD",
        [
            {"phrase_type": kind, "image_name": f"synpic{kind}{number // 2}.jpg", "answer": ["Yes", "No"][number % 2]}
            for kind, count in {"freeform": 16, "test_freeform": 8}.items()
            for number in range(count)
        ],
    )
    return folder
