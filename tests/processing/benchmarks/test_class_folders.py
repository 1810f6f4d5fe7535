"""The eleven sets of BiomedCoOp in the layouts of their downloads."""

import json
from collections import Counter
from pathlib import Path

import pytest
from helpers.benchmark_files import save_drawn, write_medmnist

from biomedclip.processing import load_benchmark, read_image
from biomedclip.processing.benchmarks.facts import facts_of, published_few_shot


KIDNEY = "CT-KIDNEY-DATASET-Normal-Cyst-Tumor-Stone"
RADIOGRAPHY = "COVID-19_Radiography_Dataset"
# A file of each class in the original download, by set, with the split if there is one.
LAYOUTS = {
    "btmri": [
        f"{split}/{label}/{name}_0010.jpg"
        for split, name in (("Training", "Tr-gl"), ("Testing", "Te-gl"))
        for label in ("glioma", "meningioma", "notumor", "pituitary")
    ],
    "busi": [f"Dataset_BUSI_with_GT/{label}/{label} (1).png" for label in ("benign", "malignant", "normal")],
    "chmnist": [
        f"Kather_texture_2016_image_tiles_5000/{label}/10009_CRC-Prim-HE-03_009.tif_Row_301_Col_151.tif"
        for label in (
            *("01_TUMOR", "02_STROMA", "03_COMPLEX", "04_LYMPHO"),
            *("05_DEBRIS", "06_MUCOSA", "07_ADIPOSE", "08_EMPTY"),
        )
    ],
    "covid_qu_ex": [
        f"{RADIOGRAPHY}/{label}/images/{label}-1.png"
        for label in ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
    ],
    "ctkidney": [f"{KIDNEY}/{KIDNEY}/{label}/{label}- (1).jpg" for label in ("Cyst", "Normal", "Stone", "Tumor")],
    "kneexray": [
        f"{split}/{grade}/9001104L.png" for split in ("train", "val", "test", "auto_test") for grade in range(5)
    ],
    "kvasir": [
        f"kvasir-dataset-v2/{label}/0a7bdce4-ac0d-44ef-93ee-92dae8fe0b81.jpg"
        for label in (
            *("dyed-lifted-polyps", "dyed-resection-margins", "esophagitis", "normal-cecum"),
            *("normal-pylorus", "normal-z-line", "polyps", "ulcerative-colitis"),
        )
    ],
    "lungcolon": [
        f"lung_colon_image_set/{organ}_image_sets/{label}/{label.replace('_', '')}1.jpeg"
        for organ, labels in (("colon", ("colon_aca", "colon_n")), ("lung", ("lung_aca", "lung_n", "lung_scc")))
        for label in labels
    ],
    "retina": [f"dataset/{label}/1.jpg" for label in ("cataract", "diabetic_retinopathy", "glaucoma", "normal")],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_original_download_is_read(name, tmp_path):
    for number, file in enumerate(LAYOUTS[name]):
        save_drawn(tmp_path / file, number, 32)
    benchmark = load_benchmark(name, tmp_path)
    assert Counter(benchmark.images.labels) == dict.fromkeys(facts_of(name)["classes"], 1)
    assert benchmark.class_names == [label.replace("_", " ") for label in benchmark.classes]
    assert benchmark.templates == ["a photo of a {}."]
    assert read_image(benchmark.images[0]["image"]).size == (32, 32)
    if name in ("btmri", "kneexray"):
        train = load_benchmark(name, tmp_path, split="train")
        assert not set(train.images.names) & set(benchmark.images.names) and len(train) == len(benchmark)
    else:
        assert "no splits" in benchmark.notes[0]


@pytest.mark.parametrize("name", ["dermamnist", "octmnist"])
def test_files_of_medmnist_have_the_names_of_biomedcoop(name, tmp_path):
    classes = facts_of(name)["sets"][name]
    write_medmnist(tmp_path / f"{name}_224.npz", len(classes), {"train": 14, "val": 7, "test": 14})
    benchmark = load_benchmark(name, tmp_path)
    assert benchmark.class_names == classes and len(benchmark) == 14


def write_split(folder: Path, name: str, classes: list[str], **changed) -> Path:
    parts: dict[str, list] = {"train": [], "val": [], "test": []}
    for number, label in enumerate(classes):
        for order, part in enumerate(parts):
            image = f"{label.replace(' ', '_')}/{part} ({number}).png"
            save_drawn(folder / name / name / image, [number, order], 32)
            parts[part].append([image, number, label])
    file = folder / name / f"split_{name}.json"
    file.write_text(json.dumps(parts | changed, indent=4), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    "name, folder",
    [("busi", "BUSI"), ("kneexray", "KneeXray"), ("covid_qu_ex", "COVID_19"), ("dermamnist", "DermaMNIST")],
)
def test_the_splits_of_biomedcoop_are_read(name, folder, tmp_path):
    facts = facts_of(name)
    classes = list(facts["classes"].values()) or facts["sets"][name]
    write_split(tmp_path, folder, classes)
    for split, part in (("train", "train"), ("validation", "val"), ("test", "test")):
        benchmark = load_benchmark(name, tmp_path / folder, split=split)
        assert benchmark.class_names == classes
        assert [Path(image).parent.name for image in benchmark.images.images] == benchmark.images.labels
        assert all(image.stem.startswith(part) for image in benchmark.images.images)
        assert f"The splits and the class names are those of split_{folder}.json." in benchmark.notes


def test_of_several_split_files_the_one_of_the_benchmark_is_read(tmp_path):
    for name, folder in (("btmri", "BTMRI"), ("ctkidney", "CTKidney")):
        write_split(tmp_path, folder, list(facts_of(name)["classes"].values()))
    assert load_benchmark("ctkidney", tmp_path).classes == list(facts_of("ctkidney")["classes"])
    with pytest.raises(ValueError, match="2 split files, and none named like RETINA.*BTMRI/split_BTMRI.json, CTKidney"):
        load_benchmark("retina", tmp_path)
    with pytest.raises(
        ValueError, match="split_BTMRI.json: not the split file of CTKidney. Its classes are glioma tum"
    ):
        load_benchmark("ctkidney", tmp_path / "BTMRI")
    write_split(tmp_path / "other name", "mine", list(facts_of("btmri")["classes"].values()))
    assert len(load_benchmark("btmri", tmp_path / "other name")) == 4


@pytest.mark.parametrize("linked", ["x", "x/secret.png"])
def test_a_split_file_reads_no_images_through_links_that_lead_out(linked, tmp_path):
    save_drawn(tmp_path / "other" / "secret.png", 1, 32)
    file = write_split(tmp_path, "BUSI", BUSI, test=[["x/secret.png", 0, "benign tumor"]])
    link = file.parent / "BUSI" / linked
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "other" / ("secret.png" if "/" in linked else ""))
    with pytest.raises(ValueError, match="the image 'x/secret.png' is a link that leads out of"):
        load_benchmark("busi", tmp_path / "BUSI")


def test_segmentations_next_to_the_images_are_left_out(tmp_path):
    for label in ("benign", "malignant", "normal"):
        for name in ("(1)", "(1)_mask", "(1)_mask_1", "(2)"):
            save_drawn(tmp_path / label / f"{label} {name}.png", 1, 32)
    assert len(load_benchmark("busi", tmp_path)) == 6


BUSI = ["benign tumor", "malignant tumor", "normal scan"]


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"val": None}, "not a split file of BiomedCoOp"),
        ({"val": [["a.png", 0]]}, "not a split file of BiomedCoOp"),
        ({"test": [["../../secret.png", 0, "benign tumor"]]}, "'../../secret.png' is not in the folder"),
        ({"test": [["/etc/secret.png", 0, "benign tumor"]]}, "'/etc/secret.png' is not in the folder"),
        ({"test": [["benign_tumor/gone.png", 0, "benign tumor"]]}, "1 of 1 images of split_BUSI.json are missing"),
        ({"test": [["benign_tumor/a.png", 1, "benign tumor"]]}, "class 1 is 'malignant tumor' and 'benign tumor'"),
        ({"test": [["b/a.png", 3, "cyst"]]}, "4 classes, but BUSI"),
    ],
)
def test_a_damaged_split_file_is_an_error_with_its_name(changed, message, tmp_path):
    write_split(tmp_path, "BUSI", BUSI, **changed)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_benchmark("busi", tmp_path)
    assert "BUSI" in str(error.value)


def test_a_missing_class_or_split_names_the_download(tmp_path):
    save_drawn(tmp_path / "Training" / "glioma" / "1.jpg", 1, 32)
    with pytest.raises(FileNotFoundError, match="no folder meningioma_tumor or meningioma.*kaggle.com"):
        load_benchmark("btmri", tmp_path, split="train")
    with pytest.raises(FileNotFoundError, match="no folder Testing"):
        load_benchmark("btmri", tmp_path)
    with pytest.raises(FileNotFoundError, match="has no validation split, only train, test"):
        load_benchmark("btmri", tmp_path, split="validation")


def test_published_means_are_those_of_the_eleven_sets():
    (published,) = published_few_shot("busi", [1, 16])
    by_method = published.values["by_method"]
    assert by_method["coop"] == {"1": {"accuracy": 0.5016}, "16": {"accuracy": 0.6962}} and "mean" in published.model
    assert published_few_shot("pcam", [1]) == published_few_shot(None, [1]) == []
    (published,) = published_few_shot("retina", [4], base_to_novel=True)
    assert published.values["by_method"].keys() == {"zero-shot"}, "the others are published for 16 images"
    (published,) = published_few_shot("retina", [16], base_to_novel=True)
    for by_shots in published.values["by_method"].values():
        for values in by_shots.values():
            assert 0 < values["harmonic_mean_accuracy"] < 1
