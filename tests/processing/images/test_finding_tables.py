"""Tables with several findings for each image: layouts, policies for uncertain and blank labels, and errors."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from biomedclip.processing.images.finding_tables import layouts, read_finding_splits
from biomedclip.processing.images.labeled import choose_split, shared_groups


def draw(folder, *names) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), len(name)).save(folder / name)


def write(path, *lines) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def table(tmp_path) -> str:
    draw(tmp_path, *(f"{number}.png" for number in range(4)))
    return write(
        tmp_path / "table.csv",
        "image,patient,edema,mass",
        "0.png,a,1,0.0",
        "1.png,a,-1.0,",
        "2.png,b,0,1",
        "3.png,c,,-1",
    )


@pytest.mark.parametrize(
    ("policies", "targets"),
    [
        ({}, [[1, 0], [np.nan, 0], [0, 1], [0, np.nan]]),
        ({"uncertain": "one", "blank": "ignore"}, [[1, 0], [1, np.nan], [0, 1], [np.nan, 1]]),
        ({"uncertain": "zero"}, [[1, 0], [0, 0], [0, 1], [0, 0]]),
    ],
)
def test_uncertain_and_blank_labels_follow_the_policies_and_are_counted(table, policies, targets):
    images = read_finding_splits(table, label_columns=["edema", "mass"], group_column="patient", **policies)["train"]
    np.testing.assert_array_equal(images.targets, targets)
    assert images.findings == ["edema", "mass"] and images.groups == ["a", "a", "b", "c"]
    assert images.names == ["0.png", "1.png", "2.png", "3.png"]
    uncertain, blank = policies.get("uncertain", "ignore"), policies.get("blank", "zero")
    how = {"zero": "count as 0", "one": "count as 1", "ignore": "are ignored"}
    assert images.notes == [
        f"2 of 8 labels are uncertain. They {how[uncertain]} (uncertain='{uncertain}').",
        f"2 of 8 labels are blank. They {how[blank]} (blank='{blank}').",
    ]
    np.testing.assert_array_equal(images.select([2, 0])[0]["label"], targets[2])


@pytest.mark.parametrize("prefix", ["CheXpert-v1.0-small/", "CheXpert-v1.0/", ""])
def test_chexpert_is_read_as_it_unpacks_with_its_patients(tmp_path, prefix):
    findings = layouts()["chexpert"].label_columns
    assert len(findings) == 14
    header = ",".join(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *findings])
    folder = tmp_path / "archive"  # as Kaggle names it, whatever the paths begin with
    for split, patients in (("train", ("00001", "00002")), ("valid", ("64541",))):
        paths = [f"{split}/patient{number}/study{study}/view1_frontal.jpg" for number in patients for study in (1, 2)]
        draw(folder, *paths)
        labels = [",".join(["1.0", "-1.0", *[value] * 10, "", "0.0"]) for value in ("", "1.0")]
        rows = [f"{prefix}{path},Female,68,Frontal,AP,{labels[row % 2]}" for row, path in enumerate(paths)]
        write(folder / f"{split}.csv", header, *rows)
    splits = read_finding_splits(folder, label_columns=["chexpert"])
    assert list(splits) == ["train", "validation"]
    assert splits["train"].findings == [name for name in findings if name != "Fracture"]
    assert splits["train"].notes[0] == "Left out, because all labels are blank: Fracture."
    assert splits["train"].groups == ["patient00001"] * 2 + ["patient00002"] * 2
    np.testing.assert_array_equal(splits["validation"].targets[0], [1, np.nan, *[0] * 11])
    assert shared_groups(splits) == []
    of_table = read_finding_splits(folder / "train.csv", label_columns=["chexpert"])
    np.testing.assert_array_equal(of_table["train"].targets, splits["train"].targets)


@pytest.mark.parametrize("place", ["images", "images_001/images"])
def test_nih_is_read_with_its_lists_of_splits_and_patients(tmp_path, place):
    rows = {"00000001_000.png": "Cardiomegaly", "00000001_001.png": "Cardiomegaly|Emphysema"}
    rows |= {"00000002_000.png": "No Finding", "00000003_000.png": "Hernia|Pleural_Thickening"}
    draw(tmp_path / place, *rows)
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    header += "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
    lines = [f"{name},{found},0,{int(name[:8])},58,M,PA,2682,2749,0.143,0.143," for name, found in rows.items()]
    write(tmp_path / "Data_Entry_2017.csv", header, *lines)
    write(tmp_path / "train_val_list.txt", *list(rows)[:3])
    write(tmp_path / "test_list.txt", list(rows)[3])
    splits = read_finding_splits(tmp_path, label_columns=["nih"])
    train, test = splits["train"], splits["test"]
    assert train.groups == ["1", "1", "2"] and test.groups == ["3"] and len(train.findings) == 14
    found = {
        name: dict(zip(train.findings, row, strict=True)) for name, row in zip(train.names, train.targets, strict=True)
    }
    assert {finding for finding, value in found["00000001_001.png"].items() if value} == {"Cardiomegaly", "Emphysema"}
    assert not any(found["00000002_000.png"].values())
    assert test.targets[0].sum() == 2
    (tmp_path / "test_list.txt").unlink()
    with pytest.raises(FileNotFoundError, match="test_list.txt is missing, but there are lists of other splits"):
        read_finding_splits(tmp_path, label_columns=["nih"])


def test_images_in_no_list_and_names_without_a_row_are_counted(tmp_path):
    draw(tmp_path / "images", "0.png", "1.png", "2.png", "3.png")
    rows = [f"{number}.png,Mass,{number}" for number in range(4)]
    write(tmp_path / "Data_Entry_2017.csv", "Image Index,Finding Labels,Patient ID", *rows)
    write(tmp_path / "train_val_list.txt", "1.png", "8.png")
    write(tmp_path / "test_list.txt", "2.png")
    splits = read_finding_splits(tmp_path, label_columns=["nih"])
    assert [images.names for images in splits.values()] == [["1.png"], ["2.png"]]
    for images in splits.values():
        assert images.notes == [
            "Left out, because they are in no list of a split: 2 of 4 images of Data_Entry_2017.csv, such as 0.png.",
            "1 of 3 names in the lists of the splits have no row in Data_Entry_2017.csv, such as 8.png.",
        ]
    write(tmp_path / "train_val_list.txt", "images/1.png")
    write(tmp_path / "test_list.txt", "")
    with pytest.raises(ValueError) as error:
        read_finding_splits(tmp_path, label_columns=["nih"])
    assert str(tmp_path) in str(error.value)
    assert "Data_Entry_2017.csv is '0.png', that in train_val_list.txt is 'images/1.png'." in str(error.value)


def test_a_column_with_lists_has_the_findings_that_occur(tmp_path):
    draw(tmp_path, "a.png", "b.png", "c.png")
    table = write(
        tmp_path / "t.jsonl",
        *(
            f'{{"image": "{name}.png", "found": "{found}"}}'
            for name, found in (("a", "mass; edema"), ("b", "No Finding"), ("c", ""))
        ),
    )
    images = read_finding_splits(table, label_columns=["found"], label_separator=";", blank="ignore")["train"]
    assert images.findings == ["edema", "mass"]
    np.testing.assert_array_equal(images.targets, [[1, 1], [0, 0], [np.nan, np.nan]])


def test_a_dataset_on_disk_gives_the_same_targets(table, tmp_path):
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageColumn

    images = read_finding_splits(table, label_columns=["edema", "mass"])["train"]
    content = defaultdict(list)
    for path, labels in zip(images.images, [(1, 0), (-1, None), (0, 1), (None, -1)], strict=True):
        for name, value in zip(("scan", "edema", "mass"), (str(path), *labels), strict=True):
            content[name].append(value)
    features = Features({"scan": ImageColumn(), "edema": Value("int8"), "mass": Value("int8")})
    Dataset.from_dict(content, features=features).save_to_disk(tmp_path / "set")
    read = read_finding_splits(tmp_path / "set", label_columns=["edema", "mass"], image_column="scan")["train"]
    np.testing.assert_array_equal(read.targets, images.targets)


def test_held_out_splits_keep_patients_together_and_shared_patients_are_a_leak(tmp_path):
    draw(tmp_path, *(f"{number}.png" for number in range(40)))
    lines = [f"{number}.png,p{number // 4},{number % 2},{number % 3 // 2}" for number in range(40)]
    table = write(tmp_path / "t.csv", "image,patient,a,b", *lines)
    splits = read_finding_splits(table, label_columns=["a", "b"], group_column="patient")
    parts = {split: choose_split(splits, table, split, 0.2) for split in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == 40 and shared_groups(parts) == []
    without = choose_split(read_finding_splits(table, label_columns=["a", "b"]), table, "test", 0.2)
    assert len(without) == 8 and "20% of the images, seed 0. Images of one patient may be in both" in without.notes[-1]
    mixed = {"train": splits["train"].select(range(10)), "test": splits["train"].select(range(10, 40))}
    assert shared_groups(mixed) == ["Leak: 1 groups, such as p2, have images in both the training and the test split."]


def test_groups_that_any_two_splits_share_are_a_leak(tmp_path):
    draw(tmp_path, *(f"{number}.png" for number in range(6)))
    rows = [f"{number}.png,p{number // 2},{number % 2},{1 - number % 2}" for number in range(6)]
    images = read_finding_splits(
        write(tmp_path / "t.csv", "image,patient,a,b", *rows), label_columns=["a", "b"], group_column="patient"
    )["train"]
    splits = {"validation": images.select([0, 2]), "test": images.select([1, 4]), "train": images.select([3, 5])}
    ends = ("the training and the validation", "the training and the test", "the validation and the test")
    found = [
        f"Leak: 1 groups, such as {group}, have images in both {end} split."
        for group, end in zip(("p1", "p2", "p0"), ends, strict=True)
    ]
    assert shared_groups(splits) == found
    without_groups = {"validation": replace(splits["validation"], groups=None), "test": splits["test"]}
    assert shared_groups(without_groups) == []


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["image,a,b", "0.png,1,yes"], {}, r"table.csv, line 2: b is 'yes'. The label of a finding must be 1, 0, -1"),
        (["image,a,b", "0.png,1,2"], {}, "line 2: b is '2'. .* or omit the column from label_columns"),
        (["image,a", "0.png,1"], {}, "no column 'b'. The columns are image, a. Pass label_columns"),
        (["image,a,b", "0.png,1,", "1.png,0,"], {}, "the finding 'b' has no label, all 2 rows are blank. Omit it"),
        (["image,a,b", "0.png,1,0", "0.png,1,1"], {}, "line 3: 0.png has other labels than in line 2"),
        (["image,a,b", "0.png,1,0"], {"group_column": "patient"}, "no column 'patient'.* Pass group_column"),
        (
            ["image,a,b", "0.png,1,0"],
            {"uncertain": "two"},
            "uncertain='two' is unknown. Choose one of zero, one, ignore",
        ),
        (["image,a,b", "0.png,1,0"], {"label_columns": ["a"]}, "has only 'a'. Pass two or more columns of findings"),
        (["image,a,b", "0.png,1,0"], {"label_columns": ["a", "a"]}, "has 'a' twice"),
        (["image,a,b", "0.png,1,0"], {"label_separator": "|"}, "is for one column with lists of findings"),
        (["image,a,b", "gone.png,1,0"], {}, "images are missing"),
        (["image,a,b", "../0.png,1,0"], {}, "may be outside"),
    ],
)
def test_an_error_names_the_place_and_the_remedy(tmp_path, lines, options, message):
    draw(tmp_path, "0.png", "1.png")
    table = write(tmp_path / "table.csv", *lines)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_finding_splits(table, **{"label_columns": ["a", "b"], **options})


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("No Finding|mass", "is 'No Finding|mass', which is both 'No Finding' and a finding"),
        ("tumour", "'tumour' is unknown. The findings are Atelectasis"),
    ],
)
def test_a_list_with_an_unknown_or_contradictory_entry_is_an_error(tmp_path, cell, message):
    draw(tmp_path / "images", "0.png")
    write(tmp_path / "Data_Entry_2017_v2020.csv", "Image Index,Finding Labels,Patient ID", f"0.png,{cell},1")
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        read_finding_splits(tmp_path, label_columns=["nih"])
