"""Any labeled images as a benchmark."""

import pytest
from helpers.benchmark_files import save_radiograph
from PIL import Image

from biomedclip.processing import load_benchmark, read_image


@pytest.fixture
def folder(tmp_path):
    for label in ("brain_mri", "chest"):
        for number in range(10):
            path = tmp_path / "images" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (20, 20), number).save(path)
    return tmp_path / "images"


def test_images_without_splits_are_the_test_split(folder):
    benchmark = load_benchmark("imagefolder", folder)
    assert len(benchmark) == 20
    assert benchmark.classes == ["brain_mri", "chest"]
    assert benchmark.class_names == ["brain mri", "chest"]
    assert benchmark.templates == ["this is a photo of {}"]
    assert read_image(benchmark.images[3]["image"]).getpixel((0, 0)) == 3
    assert benchmark.notes == ["The images come without splits: all of them are the test split."]
    with pytest.raises(
        ValueError, match="all of them are the test split, and there is no validation split.*held_out=0.2"
    ):
        load_benchmark("imagefolder", folder.parent / "images", split="validation")


def test_a_share_is_held_out_for_each_split_and_no_image_is_in_two(folder):
    splits = {
        split: load_benchmark("imagefolder", folder, split=split, held_out=0.2).images.names
        for split in ("train", "validation", "test")
    }
    assert {split: len(names) for split, names in splits.items()} == {"train": 12, "validation": 4, "test": 4}
    assert len({name for names in splits.values() for name in names}) == 20
    with pytest.raises(ValueError, match="must lie between 0 and 0.5, not 0.5"):
        load_benchmark("imagefolder", folder, held_out=0.5)


def test_a_share_for_validation_alone_is_as_large(folder):
    for label in ("brain_mri", "chest"):
        for split in ("train", "test"):
            (folder.parent / "splits" / split / label).mkdir(parents=True)
        for file in (folder / label).iterdir():
            file.rename(folder.parent / "splits" / ("test" if file.stem < "5" else "train") / label / file.name)
    splits = folder.parent / "splits"
    assert len(load_benchmark("imagefolder", splits, split="train")) == 10
    with pytest.raises(ValueError, match="there is no validation split, only train, test"):
        load_benchmark("imagefolder", splits, split="validation")
    assert len(load_benchmark("imagefolder", splits, split="validation", held_out=0.4)) == 4
    assert len(load_benchmark("imagefolder", splits, split="train", held_out=0.4)) == 6
    assert len(load_benchmark("imagefolder", splits, held_out=0.4)) == 10


def test_class_folders_may_hold_dicom(tmp_path):
    pytest.importorskip("pydicom")
    for number, label in enumerate(("a", "b")):
        save_radiograph(tmp_path / label / "scan.dcm", number, 32)
    benchmark = load_benchmark("imagefolder", tmp_path)
    assert read_image(benchmark.images[1]["image"]).size == (32, 32)


def test_a_set_of_the_datasets_library_is_read(tmp_path):
    import datasets

    rows = {"picture": [Image.new("L", (20, 20), 7 * number) for number in range(6)], "finding": ["a", "b"] * 3}
    features = datasets.Features({"picture": datasets.Image(), "finding": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    benchmark = load_benchmark("imagefolder", tmp_path / "set", image_column="picture", label_column="finding")
    assert benchmark.classes == ["a", "b"]
    assert read_image(benchmark.images[4]["image"]).getpixel((0, 0)) == 28


def test_a_built_set_is_pairs_to_retrieve(built):
    benchmark = load_benchmark("pmc15m", built)
    pair = benchmark.pairs[0]
    assert pair["caption"] and read_image(pair["image"]).size
    assert benchmark.paper["text_to_image"]["recall_at_1"] == 0.696
    assert "where the published test split has 725,739" in benchmark.notes[0]
    assert load_benchmark("pmc15m", built, split="train").fingerprint != benchmark.fingerprint


def test_prompts_can_come_from_a_file(folder, tmp_path):
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("templates: ['an image of {}']\nclass_names: {chest: chest X-ray}\n")
    benchmark = load_benchmark("imagefolder", folder, prompts=prompts)
    assert benchmark.class_names == ["brain mri", "chest X-ray"]
    assert benchmark.templates == ["an image of {}"]
    assert set(benchmark.template_sets) == {"model_card", "prompts.yaml"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("templates: an image of {}", "must be a list of texts with one {} each"),
        ("templates: [no place for the name]", "must be a list of texts with one {} each"),
        ("class_names: {foot: foot}", "no class is called foot; there are brain_mri, chest"),
        ("class_names: [chest]", "must be a mapping"),
        ("prompts: [a]", "prompts are `templates`"),
        ("a: [", "not a YAML file that can be read"),
    ],
)
def test_a_file_of_prompts_that_holds_something_else_is_refused(folder, tmp_path, content, message):
    (tmp_path / "prompts.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_benchmark("imagefolder", folder, prompts=tmp_path / "prompts.yaml")


def test_unknown_names_are_refused(folder):
    with pytest.raises(ValueError, match="No benchmark is called 'PCAM'; there are pcam, lc25000_lung"):
        load_benchmark("PCAM", folder)
    with pytest.raises(ValueError, match="No split is called 'val'"):
        load_benchmark("imagefolder", folder, split="val")
    with pytest.raises(ValueError, match="neither a set of templates \\(model_card\\) nor a YAML file"):
        load_benchmark("imagefolder", folder, prompts="paper")


def test_the_fingerprint_knows_the_data_and_not_where_it_lies(folder, tmp_path):
    before = load_benchmark("imagefolder", folder).fingerprint
    moved = folder.rename(tmp_path / "moved")
    assert load_benchmark("imagefolder", moved).fingerprint == before
    Image.new("L", (20, 20), 99).save(moved / "chest" / "9.png")
    assert load_benchmark("imagefolder", moved).fingerprint != before
