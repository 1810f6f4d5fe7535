"""Images and patients that the test split shares with the validation split, on which decisions are fitted."""

import shutil
from types import SimpleNamespace

import pytest
from helpers.benchmark_files import draw_images

from biomedclip.processing import load_benchmark
from biomedclip.run_scripts.classification.seen_images import SEEN_UNKNOWN
from biomedclip.run_scripts.evaluation.leaks import look_for_seen, validation_leaks


OPTIONS = SimpleNamespace(calibrate=True, sensitivity=[], specificity=[], coverage=[], find_leaks=True)


@pytest.fixture
def table(tmp_path) -> str:
    """Twelve images of six patients. Patient p2 and a copy of a validation image are in the test split."""
    scans = draw_images(tmp_path / "scans", {"benign": 6, "malignant": 6})
    names = sorted(path.relative_to(scans).as_posix() for path in scans.rglob("*.png"))
    shutil.copy(scans / names[0], scans / names[11])
    lines = ["image,label,patient,split"]
    for number, name in enumerate(names):
        split = "validation" if number < 5 else "test"
        lines.append(f"{name},{name.split('/')[0]},p{number // 2},{split}")
    (scans / "table.csv").write_text("\n".join(lines), encoding="utf-8")
    return str(scans / "table.csv")


def splits_of(table: str, **columns: str) -> list:
    options = {"split_column": "split", **columns}
    return [load_benchmark("imagefolder", table, split=split, **options) for split in ("validation", "test")]


def test_images_and_patients_of_the_validation_split_are_found_in_the_test_split(table, capsys):
    found = validation_leaks(*splits_of(table, group_column="patient"), OPTIONS)
    assert found.notes == [
        "Leak: 1 groups, such as p2, have images in both the validation and the test split.",
        "Leak: 2 of 7 test images are, or look like, validation images, on which decisions were fitted.",
    ]
    leaks = found.data["validation_leaks"]
    assert (leaks["same_group"], leaks["same_bytes"], leaks["validation_images"]) == (1, 1, 5)
    assert leaks["examples"]["same_bytes"] == [{"test": "malignant/0005.png", "validation": "benign/0000.png"}]
    assert "Leak: 2 of 7" in " ".join(capsys.readouterr().out.split())
    found = validation_leaks(*splits_of(table), OPTIONS)
    assert len(found.notes) == 1 and found.data["validation_leaks"]["same_group"] is None


def test_nothing_is_looked_for_without_decisions_or_with_no_find_leaks(table):
    validation, test = splits_of(table)
    for change in ({"calibrate": False}, {"find_leaks": False}):
        found = validation_leaks(validation, test, SimpleNamespace(**vars(OPTIONS) | change))
        assert (found.data, found.notes) == ({}, [])
    assert validation_leaks(None, test, OPTIONS).notes == []


def test_a_classifier_without_a_record_of_its_images_has_a_note(tmp_path):
    for model in (str(tmp_path), "lab/classifier"):
        seen = look_for_seen(model, [], [], OPTIONS)
        assert seen.notes == [SEEN_UNKNOWN] and seen.data == {"seen_in_training": None} and seen.fitted_on == {}
    assert look_for_seen(str(tmp_path), [], [], SimpleNamespace(find_leaks=False)).notes == []
