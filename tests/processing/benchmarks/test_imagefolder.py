"""Any labeled images as a benchmark, and what all benchmarks have in common."""

import pytest
from helpers.benchmark_files import add_spots_benchmark, save_radiograph
from PIL import Image

from biomedclip.processing import load_benchmark, read_image
from biomedclip.processing.benchmarks import facts


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
    assert benchmark.classes == ["brain_mri", "chest"] and benchmark.class_names == ["brain mri", "chest"]
    assert benchmark.templates == ["this is a photo of {}", "{} presented in image"]
    assert read_image(benchmark.images[3]["image"]).getpixel((0, 0)) == 3
    assert benchmark.notes == ["The images have no splits, so all of them are the test split."]
    with pytest.raises(ValueError, match="all of them are the test split, and there is no validation"):
        load_benchmark("imagefolder", folder, split="validation")


def test_a_fraction_is_held_out_for_each_split_and_no_image_is_in_two(folder):
    splits = {
        split: load_benchmark("imagefolder", folder, split=split, held_out=0.2)
        for split in ("train", "validation", "test")
    }
    assert {split: len(benchmark) for split, benchmark in splits.items()} == {"train": 12, "validation": 4, "test": 4}
    assert len({name for benchmark in splits.values() for name in benchmark.images.names}) == 20
    assert all(len(benchmark.notes) == 2 for benchmark in splits.values())
    assert "The test split was drawn from the training images: 4 of 20" in splits["train"].notes[0]
    with pytest.raises(ValueError, match="must be between 0 and 0.5, .* not 0.5"):
        load_benchmark("imagefolder", folder, held_out=0.5)


def test_the_validation_split_is_held_out_if_only_the_test_split_exists(folder):
    splits = folder.parent / "splits"
    for label in ("brain_mri", "chest"):
        for split in ("train", "test"):
            (splits / split / label).mkdir(parents=True)
        for file in (folder / label).iterdir():
            file.rename(splits / ("test" if file.stem < "5" else "train") / label / file.name)
    assert len(load_benchmark("imagefolder", splits, split="train")) == 10
    with pytest.raises(ValueError, match="there is no validation split with labeled images, only train, test"):
        load_benchmark("imagefolder", splits, split="validation")
    for split, images in {"validation": 4, "train": 6, "test": 10}.items():
        assert len(load_benchmark("imagefolder", splits, split=split, held_out=0.4)) == images


def test_class_folders_may_contain_dicom(tmp_path):
    pytest.importorskip("pydicom")
    for number, label in enumerate(("a", "b")):
        save_radiograph(tmp_path / label / "scan.dcm", number, 32)
    benchmark = load_benchmark("imagefolder", tmp_path)
    assert read_image(benchmark.images[1]["image"]).size == (32, 32)


def test_a_datasets_set_is_read(tmp_path):
    import datasets

    rows = {"picture": [Image.new("L", (20, 20), 7 * number) for number in range(6)], "finding": ["a", "b"] * 3}
    features = datasets.Features({"picture": datasets.Image(), "finding": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    benchmark = load_benchmark("imagefolder", tmp_path / "set", image_column="picture", label_column="finding")
    assert benchmark.classes == ["a", "b"]
    assert read_image(benchmark.images[4]["image"]).getpixel((0, 0)) == 28


def test_a_built_dataset_is_a_retrieval_benchmark(built):
    benchmark = load_benchmark("pmc15m", built)
    pair = benchmark.pairs[0]
    assert pair["caption"] and read_image(pair["image"]).size
    assert benchmark.paper["text_to_image"]["recall_at_1"] == 0.696
    assert "pairs, but the published test split has 725,739" in benchmark.notes[0]
    assert load_benchmark("pmc15m", built, split="train").fingerprint != benchmark.fingerprint


def test_prompts_can_come_from_a_file(folder, tmp_path):
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("templates: ['an image of {}']\nclass_names: {chest: chest X-ray}\n")
    benchmark = load_benchmark("imagefolder", folder, prompts=prompts)
    assert benchmark.class_names == ["brain mri", "chest X-ray"]
    assert benchmark.templates == ["an image of {}"]
    assert set(benchmark.template_sets) == {"default", "model_card", "prompts.yaml"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("templates: an image of {}", "must be a list of texts with one {} each"),
        ("templates: [no place for the name]", "must be a list of texts with one {} each"),
        ("class_names: {foot: foot}", "unknown class foot. The classes are brain_mri, chest"),
        ("class_names: [chest]", "must be a mapping"),
        ("prompts: [a]", "prompts must be `templates`"),
        ("a: [", "not a readable YAML file"),
    ],
)
def test_an_invalid_file_of_prompts_is_refused(folder, tmp_path, content, message):
    (tmp_path / "prompts.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_benchmark("imagefolder", folder, prompts=tmp_path / "prompts.yaml")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("PCAM", {}, "Unknown benchmark 'PCAM'. Choose one of pcam, lc25000_lung"),
        ("imagefolder", {"split": "val"}, "Unknown split 'val'"),
        ("imagefolder", {"prompts": "paper"}, "neither a set of prompts .default, model_card. nor a YAML file"),
        (
            "imagefolder",
            {"cancer": "brca"},
            "cancer has no effect on imagefolder. Its options: image_column, lab",
        ),
        (
            "lc25000_lung",
            {"rsna_split": "paper-test"},
            "rsna_split has no effect on lc25000_lung. Its options: none",
        ),
    ],
)
def test_unknown_names_and_options_are_refused(folder, name, options, message):
    with pytest.raises(ValueError, match=message):
        load_benchmark(name, folder, **options)


def test_the_fingerprint_depends_on_the_content_and_not_on_the_path(folder, tmp_path):
    before = load_benchmark("imagefolder", folder).fingerprint
    moved = folder.rename(tmp_path / "moved")
    assert load_benchmark("imagefolder", moved).fingerprint == before
    Image.new("L", (20, 20), 99).save(moved / "chest" / "9.png")
    assert load_benchmark("imagefolder", moved).fingerprint != before


def test_a_reader_and_an_entry_make_a_benchmark(tmp_path, monkeypatch):
    add_spots_benchmark(monkeypatch, tmp_path / "registry")
    assert "spots" in facts.benchmark_names("zero-shot")
    for name in ("0-few", "1-many"):
        Image.new("L", (20, 20)).save(tmp_path / f"{name}.png")
    benchmark = load_benchmark("spots", tmp_path, ending="png")
    assert benchmark.images.labels == ["few", "many"] and benchmark.class_names == ["few spots", "many spots"]
    assert benchmark.paper == {"accuracy": 0.5} and benchmark.metric == "accuracy"
    with pytest.raises(ValueError, match="color has no effect on spots. Its options: ending"):
        load_benchmark("spots", tmp_path, color=True)
