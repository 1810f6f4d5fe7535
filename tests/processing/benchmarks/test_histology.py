"""LC25000 and TCGA-TIL."""

import shutil

import pytest
from helpers.benchmark_files import write_lc25000, write_tcga_til

from biomedclip.processing import load_benchmark, read_image
from biomedclip.processing.benchmarks import facts
from biomedclip.processing.images.reading import ImageError


def test_lc25000_is_read_from_any_folder_of_its_tree(tmp_path):
    write_lc25000(tmp_path, images=3, size=16)
    tree = tmp_path / "lung_colon_image_set"
    lung = [load_benchmark("lc25000_lung", path) for path in (tmp_path, tree, tree / "lung_image_sets")]
    assert len({benchmark.fingerprint for benchmark in lung}) == 1
    for benchmark in lung:
        assert benchmark.images.labels == ["lung_aca"] * 3 + ["lung_n"] * 3 + ["lung_scc"] * 3
    assert lung[0].class_names == ["lung adenocarcinomas", "normal lung tissue", "lung squamous cell carcinomas"]
    assert lung[0].positive is None
    assert "9 images, but the published test split has 15,000." in lung[0].notes
    colon = load_benchmark("lc25000_colon", tmp_path)
    assert (colon.images.labels, colon.positive) == (["colon_aca"] * 3 + ["colon_n"] * 3, "colon_aca")
    assert colon.templates == ["a photo of {}", "{} presented in image"]


def test_lc25000_has_no_splits_and_warns_of_copies_of_the_same_original(tmp_path):
    write_lc25000(tmp_path, images=10, size=16)
    with pytest.raises(ValueError, match="there is no train split"):
        load_benchmark("lc25000_lung", tmp_path, split="train")
    train = load_benchmark("lc25000_lung", tmp_path, split="train", held_out=0.2)
    assert len(train) == 18
    assert any("1,250 originals" in note for note in train.notes)


def test_missing_classes_and_images_are_refused(tmp_path):
    write_lc25000(tmp_path, images=1, size=16)
    sets = tmp_path / "lung_colon_image_set" / "lung_image_sets"
    (sets / "lung_n" / "lungn1.jpeg").unlink()
    with pytest.raises(FileNotFoundError, match="no images of lung_n. LC25000, lung comes from https://github.com"):
        load_benchmark("lc25000_lung", tmp_path)
    shutil.rmtree(sets / "lung_scc")
    with pytest.raises(FileNotFoundError, match="no folder lung_scc"):
        load_benchmark("lc25000_lung", tmp_path)
    with pytest.raises(FileNotFoundError, match="the file or folder does not exist"):
        load_benchmark("lc25000_lung", tmp_path / "nowhere")


def test_a_damaged_image_is_found_only_when_it_is_read(tmp_path):
    write_lc25000(tmp_path, images=2, size=16)
    damaged = tmp_path / "lung_colon_image_set" / "lung_image_sets" / "lung_n" / "lungn1.jpeg"
    damaged.write_bytes(damaged.read_bytes()[:200])
    benchmark = load_benchmark("lc25000_lung", tmp_path)
    assert len(benchmark) == 6
    with pytest.raises(ImageError, match="lungn1.jpeg"):
        read_image(benchmark.images[2]["image"])


def test_tcga_til_is_read_by_cancer_and_split_and_both_are_named(tmp_path):
    write_tcga_til(tmp_path, ["pancancer", "luad"], {"train": (4, 2), "val": (2, 1), "test": (8, 2)})
    write_tcga_til(tmp_path, ["brca"], {"train": (1, 1), "val": (2, 1), "test": (1, 1)})
    benchmark = load_benchmark("tcga_til", tmp_path)
    assert benchmark.images.labels == ["til-negative"] * 8 + ["til-positive"] * 2
    assert (benchmark.metric, benchmark.paper, benchmark.positive) == ("auroc", {"auroc": 0.6704}, "til-positive")
    assert benchmark.class_names == ["none", "tumor infiltrating lymphocytes"]
    assert benchmark.notes[0] == "Cancer luad, folder test: 10 images, 20.0% positive."
    assert "2,480 images, 5.9% of them positive. Its value was measured on different images" in benchmark.notes[1]
    assert benchmark.selection == {
        **{"cancer": "luad", "folder": "test", "images": 10, "positive": 2, "positive_fraction": 0.2},
    }
    assert benchmark.images.groups[:3] == ["TCGA-TE-0000", "TCGA-TE-0000", "TCGA-TE-0001"]
    folder = tmp_path / "TCGA-TILs" / "images-tcga-tils"
    brca = load_benchmark("tcga_til", folder, split="validation", cancer="brca")
    assert len(brca) == 3 and "Cancer brca, folder val" in brca.notes[0]
    with pytest.raises(FileNotFoundError, match="no folder of the cancer 'acc', only brca, luad, all.*zenodo"):
        load_benchmark("tcga_til", tmp_path, cancer="acc")
    shutil.rmtree(folder / "brca" / "train")
    with pytest.raises(FileNotFoundError, match="no folder of the train split .found: .*test"):
        load_benchmark("tcga_til", tmp_path, cancer="brca", split="train")
    shutil.rmtree(folder / "brca" / "test" / "til-positive")
    with pytest.raises(FileNotFoundError, match="no folder til-positive"):
        load_benchmark("tcga_til", tmp_path, cancer="brca")


@pytest.mark.parametrize(
    ("cancer", "folder"), [("all", "pancancer"), ("pancancer", "pancancer"), ("BRCA", "brca"), ("TCGA-BRCA", "brca")]
)
def test_other_studies_have_no_value_of_the_paper(tmp_path, cancer, folder):
    write_tcga_til(tmp_path, ["luad", folder], {"test": (8, 2)})
    benchmark = load_benchmark("tcga_til", tmp_path, cancer=cancer)
    assert benchmark.paper == {}
    assert f"/{folder}/test/" in benchmark.images.images[0].as_posix()
    shown = "all" if folder == "pancancer" else folder
    assert benchmark.selection["cancer"] == shown
    assert benchmark.notes == [
        f"Cancer {shown}, folder test: 10 images, 20.0% positive.",
        "The paper's value is for luad (2,480 images, 5.9% of them positive). It is not shown.",
    ]


def test_a_test_set_of_the_papers_size_and_balance_has_no_warning(tmp_path, monkeypatch):
    entry = facts._read(facts.FILE)["benchmarks"]["tcga_til"]
    monkeypatch.setitem(entry, "images", {"test": 17})
    monkeypatch.setitem(entry, "positive_fraction", {"test": 0.059})
    write_tcga_til(tmp_path, ["luad"], {"test": (16, 1)})
    assert load_benchmark("tcga_til", tmp_path).notes == ["Cancer luad, folder test: 17 images, 5.9% positive."]
    entry["positive_fraction"]["test"] = 0.2
    notes = load_benchmark("tcga_til", tmp_path).notes
    assert len(notes) == 2 and "17 images, 20.0% of them positive. Its value was measured on different" in notes[1]


def test_the_folder_of_a_study_itself_is_read(tmp_path):
    write_tcga_til(tmp_path, ["luad"], {"test": (8, 2)})
    studies = tmp_path / "TCGA-TILs" / "images-tcga-tils"
    alone = (studies / "luad").rename(tmp_path / "LUAD")
    shutil.rmtree(studies.parent)
    for root in (alone, tmp_path):
        assert len(load_benchmark("tcga_til", root)) == 10


def test_real_images_of_lc25000_are_read(shared_data):
    lung = load_benchmark("lc25000_lung", shared_data / "lc25000_sample")
    colon = load_benchmark("lc25000_colon", shared_data / "lc25000_sample")
    assert (len(lung), len(colon)) == (15, 10)
    assert {read_image(image).size for image in [*lung.images.images, *colon.images.images]} == {(768, 768)}


def test_benchmark_images_are_found_by_content_and_other_files_are_listed(tmp_path, caplog):
    write_lc25000(tmp_path, images=2, size=16)
    folder = tmp_path / "lung_colon_image_set" / "lung_image_sets" / "lung_n"
    first = min(folder.iterdir())
    first.rename(first.with_name("unnamed"))
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    benchmark = load_benchmark("lc25000_lung", tmp_path)
    assert benchmark.images.labels.count("lung_n") == 2 and "lung_n/unnamed" in benchmark.images.names
    assert "1 file is not an image and is ignored (.db 1; lung_n/Thumbs.db)" in caplog.text
