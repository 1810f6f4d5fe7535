"""Write benchmarks in their published formats, with synthetic images."""

import csv
import json
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


PCAM_SIZES = {"train": 262_144, "valid": 32_768, "test": 32_768}


def drawn_pixels(seed: int | Sequence[int], size: int, positive: bool = False) -> np.ndarray:
    """Return an image of soft colors for a seed, of shape (size, size, 3), with dark spots if it is `positive`."""
    randomness = np.random.default_rng(seed)
    clouds = Image.fromarray(randomness.integers(90, 256, (8, 8, 3), dtype=np.uint8)).resize((size, size))
    pixels = np.asarray(clouds).copy()
    if positive:
        rows, columns = np.mgrid[:size, :size]
        for row, column in randomness.integers(0, size, (6, 2)):
            pixels[(rows - row) ** 2 + (columns - column) ** 2 < (size / 12) ** 2] = (60, 20, 80)
    return pixels


def save_drawn(path: Path, seed: int | Sequence[int], size: int, positive: bool = False, mode: str = "RGB") -> None:
    """Save the image of a seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn_pixels(seed, size, positive)).convert(mode).save(path)


def draw_images(folder: Path, of_class: dict[str, int], seed: int = 0) -> Path:
    """Class folders of noise, darker in some classes than in others."""
    generator = np.random.default_rng(seed)
    for darkest, (name, count) in zip((0, 120, 150), of_class.items(), strict=False):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(darkest, darkest + 100, size=(16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:04}.png")
    return folder


def write_pcam(
    folder: Path,
    part: str = "test",
    images: int = PCAM_SIZES["test"],
    *,
    distinct: int = 512,
    chunk_rows: int | None = 16,
    compression: str | None = None,
    slides: Sequence[str] | None = None,
    patches: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Write `camelyonpatch_level_2_split_{part}_{x,y}.h5`, and return the labels.

    After `distinct` images, they repeat with a few different pixels. `patches` are the negative and the positive
    images, and replace the drawn ones. With `slides`, write their table too.
    """
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    randomness = np.random.default_rng(list(part.encode()))
    labels = randomness.integers(0, 2, images).astype(np.uint8)
    patches = patches or [
        np.stack([drawn_pixels([*part.encode(), number, label], 96, bool(label)) for number in range(distinct)])
        for label in (0, 1)
    ]
    stem = folder / f"camelyonpatch_level_2_split_{part}"
    with h5py.File(f"{stem}_x.h5", "w") as file:
        chunks = (min(chunk_rows, images), 96, 96, 3) if chunk_rows else None
        x = file.create_dataset("x", (images, 96, 96, 3), np.uint8, chunks=chunks, compression=compression)
        for start in range(0, images, 1024):
            numbers = np.arange(start, min(start + 1024, images))
            negative, positive = (images_of_label[numbers % len(images_of_label)] for images_of_label in patches)
            rows = np.where(labels[numbers, None, None, None] == 1, positive, negative)
            rows[:, 0, :, 0] = randomness.integers(0, 256, (len(rows), 96))
            x[start : start + len(rows)] = rows
    with h5py.File(f"{stem}_y.h5", "w") as file:
        file["y"] = labels.reshape(-1, 1, 1, 1)
    if slides is not None:
        write_table(
            Path(f"{stem}_meta.csv"),
            ["", "coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi"],
            [(row, 0, 0, bool(label), bool(label), slides[row]) for row, label in enumerate(labels)],
        )
    return labels


def write_pcam_of_kaggle(folder: Path, labels: Sequence[int]) -> None:
    """Write `train/<40 hex digits>.tif` and `train_labels.csv`."""
    names = [f"{number:040x}" for number in range(len(labels))]
    for number, (name, label) in enumerate(zip(names, labels, strict=True)):
        save_drawn(folder / "train" / f"{name}.tif", number, 96, bool(label))
    write_table(folder / "train_labels.csv", ["id", "label"], zip(names, labels, strict=True))


def write_lc25000(folder: Path, images: int = 5000, size: int = 768) -> None:
    """Write `lung_colon_image_set/{lung,colon}_image_sets/<class>/<name><number>.jpeg`."""
    for organ, classes in {"lung": ("lung_aca", "lung_n", "lung_scc"), "colon": ("colon_aca", "colon_n")}.items():
        for order, label in enumerate(classes):
            of_label = folder / "lung_colon_image_set" / f"{organ}_image_sets" / label
            for number in range(1, images + 1):
                path = of_label / f"{label.replace('_', '')}{number}.jpeg"
                save_drawn(path, [order, number], size, label.endswith(("aca", "scc")))


def write_tcga_til(folder: Path, cancers: Sequence[str], images: dict[str, tuple[int, int]]) -> None:
    """Write `TCGA-TILs/images-tcga-tils/<cancer>/<split>/{til-negative,til-positive}/*.png`.

    `images` has the numbers of negative and positive images of each split.
    """
    for cancer in cancers:
        for split, numbers in images.items():
            for label, wanted in zip(("til-negative", "til-positive"), numbers, strict=True):
                for number in range(wanted):
                    patient = f"TCGA-{split[:2].upper()}-{number // 2:04d}"
                    name = f"{patient}-01Z-00-DX1-{number}.png"
                    path = folder / "TCGA-TILs" / "images-tcga-tils" / cancer / split / label / name
                    save_drawn(path, [len(split), number, len(label)], 100, label == "til-positive")


def write_rsna(folder: Path, targets: dict[str, Sequence[int]], size: int = 64) -> None:
    """Write `stage_2_train_images/<patientId>.dcm` and `stage_2_train_labels.csv` with the `Target` of each row."""
    rows: list[tuple] = []
    for number, (patient, values) in enumerate(targets.items()):
        save_radiograph(folder / "stage_2_train_images" / f"{patient}.dcm", number, size, any(values))
        rows += [(patient, *((10.0, 10.0, 20.0, 20.0) if value else ("", "", "", "")), value) for value in values]
    write_table(folder / "stage_2_train_labels.csv", ["patientId", "x", "y", "width", "height", "Target"], rows)


def save_radiograph(path: Path, seed: int, size: int, positive: bool = False) -> None:
    """Save the image of a seed as DICOM with a JPEG stream, like those of RSNA."""
    import io

    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, SecondaryCaptureImageStorage, generate_uid

    stream = io.BytesIO()
    Image.fromarray(drawn_pixels(seed, size, positive)).convert("L").save(stream, "JPEG")
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.stem])
    dataset.PatientID = path.stem
    dataset.Rows = dataset.Columns = size
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def write_medmnist(
    file: Path, classes: int, images: dict[str, int], shape: tuple[int, ...] = (28, 28), labels: int = 1
) -> None:
    """Write an `.npz` with `{train,val,test}_{images,labels}`. Labels go from 0 to `classes` - 1."""
    randomness = np.random.default_rng(0)
    arrays = {}
    for split, number in images.items():
        arrays[f"{split}_images"] = randomness.integers(0, 256, (number, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(number * labels).reshape(number, labels) % classes).astype(np.uint8)
    np.savez_compressed(file, **arrays)


def write_vqa_rad(folder: Path, questions: Iterable[dict], name: str = "VQA_RAD Dataset Public.json") -> None:
    """Write the JSON of VQA-RAD and `VQA_RAD Image Folder`. Missing fields of the questions have defaults."""
    rows = []
    for number, given in enumerate(questions):
        row = {
            "qid": number,
            "phrase_type": "freeform",
            "image_name": "synpic1.jpg",
            "image_organ": "CHEST",
            "question": "Is there a mass?",
            "question_type": "PRES",
            "answer": "Yes",
            "answer_type": "CLOSED",
        }
        rows.append(row | given)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(rows, indent=3), encoding="utf-8")
    for number, image in enumerate(sorted({row["image_name"] for row in rows})):
        save_drawn(folder / "VQA_RAD Image Folder" / image, number, 64)


def draw_slake_images(folder: Path, questions: Iterable[Path], size: int = 32) -> None:
    """Write a different image for each image name of SLAKE's questions."""
    names = {row["img_name"] for file in questions for row in json.loads(file.read_text(encoding="utf-8"))}
    for name in names:
        save_drawn(folder / name, int("".join(filter(str.isdigit, name))), size)


def add_spots_benchmark(monkeypatch, folder: Path) -> None:
    """Add the benchmark `spots` with one reader file and one entry, as `CONTRIBUTING.md` describes it."""
    from biomedclip.processing import benchmarks
    from biomedclip.processing.benchmarks import facts

    folder.mkdir()
    reader = """
        from ..images.labeled import LabeledImages
        from .benchmark import Content

        def read(path, split, facts, *, ending="png"):
            files = sorted(path.glob(f"*.{ending}"))
            names = [file.stem for file in files]
            return Content(LabeledImages(files, [name.split("-")[1] for name in names], names))
        """
    (folder / "spots.py").write_text(textwrap.dedent(reader))
    entry = """
      spots:
        title: Spots
        download: https://example.org/spots
        images: {}
        classes: {few: few spots, many: many spots}
        positive: many
        template_sets: {paper: ["a picture of {}"]}
        task: zero-shot
        metric: accuracy
        paper: {accuracy: 0.5}
        source: invented
    """
    entry = textwrap.indent(textwrap.dedent(entry), "  ")
    (folder / "benchmarks.yaml").write_text(facts.FILE.read_text(encoding="utf-8") + entry, encoding="utf-8")
    monkeypatch.setattr(facts, "FILE", folder / "benchmarks.yaml")
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, f"{benchmarks.__name__}.spots", raising=False)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
