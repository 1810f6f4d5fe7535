"""PCam: HDF5, Kaggle's files and folders."""

import multiprocessing
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers.benchmark_files import save_drawn, write_pcam, write_pcam_of_kaggle, write_table
from PIL import Image

from biomedclip.processing import load_benchmark, read_image
from biomedclip.processing.images.reading import ImageError


h5py = pytest.importorskip("h5py")

X, Y = ("camelyonpatch_level_2_split_test_x.h5", "camelyonpatch_level_2_split_test_y.h5")


@pytest.fixture
def folder(tmp_path):
    write_pcam(tmp_path / "pcam", images=40, distinct=40)
    return tmp_path / "pcam"


def test_rows_of_hdf5_are_images_with_their_labels(folder):
    benchmark = load_benchmark("pcam", folder)
    with h5py.File(folder / X) as x, h5py.File(folder / Y) as y:
        pixels, labels = x["x"][:], y["y"][:].reshape(-1)
    assert len(benchmark) == 40
    assert benchmark.images.labels == [("normal", "tumor")[label] for label in labels]
    for number in (0, 17, 39, -1):
        assert np.array_equal(read_image(benchmark.images.images[number]), pixels[number])
    with pytest.raises(IndexError):
        benchmark.images.images[40]
    assert [image.size for image in benchmark.images.images] == [(96, 96)] * 40, "and they can be walked through"
    assert benchmark.images.names[17] == "test/17"
    assert load_benchmark("pcam", folder / X).fingerprint == benchmark.fingerprint, "one of the files will do"
    assert (benchmark.classes, benchmark.positive, benchmark.metric) == (["normal", "tumor"], "tumor", "accuracy")
    assert benchmark.class_names == ["normal lymph node", "lymph node metastasis"]
    assert benchmark.templates == ["this is an image of {}", "{} presented in image"]
    assert benchmark.paper == {"accuracy": 0.7341}
    assert benchmark.notes == ["40 images, but the published test split has 32,768."]


def test_other_splits_have_their_own_files_and_no_published_value(folder):
    write_pcam(folder, "valid", images=8, distinct=8)
    benchmark = load_benchmark("pcam", folder, split="validation")
    assert (len(benchmark), benchmark.paper) == (8, {})
    with pytest.raises(
        FileNotFoundError, match="no camelyonpatch_level_2_split_train_x.h5.*zenodo.org/records/2546921"
    ):
        load_benchmark("pcam", folder, split="train")


@pytest.mark.parametrize(("chunk_rows", "compression"), [(None, None), (1, None), (64, "gzip")])
def test_chunks_and_compression_do_not_change_the_benchmark(folder, tmp_path, chunk_rows, compression):
    write_pcam(tmp_path / "other", images=40, distinct=40, chunk_rows=chunk_rows, compression=compression)
    assert load_benchmark("pcam", tmp_path / "other").fingerprint == load_benchmark("pcam", folder).fingerprint


def _one_pixel(benchmark, number):
    return read_image(benchmark.images.images[number]).getpixel((3, 5))


def test_other_processes_can_read_the_images(folder):
    benchmark = load_benchmark("pcam", folder)
    expected = [_one_pixel(benchmark, number) for number in range(4)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.starmap_async(_one_pixel, [(benchmark, number) for number in range(4)])
        assert results.get(timeout=60) == expected
    assert _one_pixel(pickle.loads(pickle.dumps(benchmark)), 1) == expected[1]


def test_slides_are_groups_if_their_table_exists(folder):
    write_pcam(folder, images=40, distinct=40, slides=[f"slide_{number // 10}" for number in range(40)])
    assert load_benchmark("pcam", folder).images.groups[:11] == ["slide_0"] * 10 + ["slide_1"]
    table = folder / "camelyonpatch_level_2_split_test_meta.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-3]))
    with pytest.raises(ValueError, match="37 rows for 40 images"):
        load_benchmark("pcam", folder)


def test_truncated_missing_and_compressed_files_are_refused_with_advice(folder):
    with (folder / X).open("r+b") as file:
        file.truncate(100_000)
    with pytest.raises(ValueError, match=f"{X}: not an HDF5 file, or a truncated one .*Download it again"):
        load_benchmark("pcam", folder)
    (folder / Y).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {Y}. PatchCamelyon .*comes from https://zenodo"):
        load_benchmark("pcam", folder)
    (folder / X).rename(folder / f"{X}.gz")
    with pytest.raises(FileNotFoundError, match=f"Run: gunzip {X}.gz"):
        load_benchmark("pcam", folder)


@pytest.mark.parametrize(
    ("file", "key", "values", "message"),
    [
        (Y, "y", np.zeros((39, 1, 1, 1), np.uint8), "39 labels for the 40 images of .*test_x.h5"),
        (Y, "y", np.full((40, 1, 1, 1), 3, np.uint8), "labels must be 0 or 1, but there are 3"),
        (Y, "y", np.zeros((40, 1, 1, 1)), "expected one integer for each image"),
        (Y, "y", np.zeros((40, 2), np.uint8), "expected one integer for each image"),
        (Y, "labels", np.zeros(40, np.uint8), "no array 'y', only labels"),
        (X, "x", np.zeros((40, 96, 96), np.uint8), "in 'x', found uint8 of shape"),
        (X, "x", np.zeros((40, 9, 9, 3), np.float32), "in 'x', found float32"),
    ],
)
def test_files_with_unexpected_content_are_refused(folder, file, key, values, message):
    with h5py.File(folder / file, "w") as opened:
        opened[key] = values
    with pytest.raises(ValueError, match=message):
        load_benchmark("pcam", folder)


def test_links_out_of_a_file_are_not_followed(folder, tmp_path):
    shutil.copy(folder / Y, tmp_path / "elsewhere.h5")
    with h5py.File(folder / Y, "w") as file:
        file["y"] = h5py.ExternalLink(str(tmp_path / "elsewhere.h5"), "y")
    with pytest.raises(ValueError, match="no array 'y'"):
        load_benchmark("pcam", folder)
    (tmp_path / "secret").write_bytes(bytes(40))
    with h5py.File(folder / Y, "w") as file:
        file.create_dataset("y", (40, 1, 1, 1), np.uint8, external=[(str(tmp_path / "secret"), 0, 40)])
    with pytest.raises(ValueError, match="are stored in external files"):
        load_benchmark("pcam", folder)


def test_a_damaged_row_is_an_error_only_when_it_is_read(folder):
    write_pcam(folder, images=40, distinct=40, compression="gzip", chunk_rows=8)
    with h5py.File(folder / X) as file:
        chunk = file["x"].id.get_chunk_info(1)
    with (folder / X).open("r+b") as file:
        file.seek(chunk.byte_offset + 20)
        file.write(b"\xff" * 500)
    benchmark = load_benchmark("pcam", folder)
    read_image(benchmark.images[7]["image"])
    with pytest.raises(ImageError, match=f"{X}, row 9: cannot be read"):
        read_image(benchmark.images[9]["image"])
    read_image(benchmark.images[16]["image"])


def test_without_h5py_the_error_names_the_extra(folder):
    code = (
        "import sys; sys.modules['h5py'] = None\n"
        "from biomedclip.processing import load_benchmark\n"
        f"try:\n    load_benchmark('pcam', {str(folder)!r})\n"
        "except ImportError as error:\n    print(error)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 'pip install "biomedclip[hdf5]"' in output


def test_kaggles_files_are_read_and_have_no_published_values(tmp_path):
    write_pcam_of_kaggle(tmp_path, [0, 1, 1, 0, 1, 0, 0, 1, 1, 0])
    benchmark = load_benchmark("pcam", tmp_path)
    assert benchmark.paper == {} and any("from PCam's training split" in note for note in benchmark.notes)
    assert benchmark.images.labels[:3] == ["normal", "tumor", "tumor"]
    assert benchmark.images.names[1] == f"{1:040x}"
    assert read_image(benchmark.images[1]["image"]).size == (96, 96)
    split = load_benchmark("pcam", tmp_path, split="train", held_out=0.2)
    assert len(split) == 6 and "drawn from the training images" in split.notes[0]
    (tmp_path / "train" / f"{3:040x}.tif").unlink()
    with pytest.raises(FileNotFoundError, match=f"1 of 10 images of train_labels.csv are missing: {3:040x}.tif"):
        load_benchmark("pcam", tmp_path)


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        (["name", "label"], ["a", 0], "no column id. The columns are name, label"),
        (["id", "label"], ["../../etc/passwd", 0], "is not a file name"),
        (["id", "label"], ["a", 7], "label must be 0 or 1, but there are 7"),
        (["id", "label"], ["a"], "line 2: the row ends too early"),
    ],
)
def test_a_table_with_unexpected_content_is_refused(tmp_path, columns, row, message):
    write_table(tmp_path / "train_labels.csv", columns, [row])
    with pytest.raises(ValueError, match=message):
        load_benchmark("pcam", tmp_path)


def test_folders_of_images_are_read(tmp_path):
    for number in range(6):
        save_drawn(tmp_path / "test" / ("normal" if number < 4 else "tumor") / f"{number}.png", number, 96)
        save_drawn(tmp_path / "train" / ("0" if number < 4 else "1") / f"{number}.png", number, 96)
    assert load_benchmark("pcam", tmp_path).images.labels == ["normal"] * 4 + ["tumor"] * 2
    assert load_benchmark("pcam", tmp_path, split="train").images.labels == ["normal"] * 4 + ["tumor"] * 2
    shutil.rmtree(tmp_path / "test" / "tumor")
    with pytest.raises(FileNotFoundError, match="no folder of images named tumor or 1"):
        load_benchmark("pcam", tmp_path)


def test_real_patches_are_read(shared_data, tmp_path):
    benchmark = load_benchmark("pcam", shared_data / "camelyon_sample")
    assert benchmark.images.labels == ["normal"] * 10 + ["tumor"] * 10
    assert {read_image(image).size for image in benchmark.images.images} == {(256, 256)}
    rows = []
    for file in sorted((shared_data / "pcam_kaggle_sample").glob("*.jpg")):
        kind, name = file.stem.split("_")
        (tmp_path / "train").mkdir(exist_ok=True)
        with Image.open(file) as image:
            image.save(tmp_path / "train" / f"{name}.tif")
        rows.append((name, int(kind == "c")))
    write_table(tmp_path / "train_labels.csv", ["id", "label"], rows)
    benchmark = load_benchmark("pcam", tmp_path)
    assert benchmark.images.labels.count("tumor") == 4
    assert {read_image(image).size for image in benchmark.images.images} == {(96, 96)}
