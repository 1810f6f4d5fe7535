"""`biomedclip classify`, beside `ZeroShotClassifier`, the pipelines of transformers and scikit-learn."""

import csv
import io
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.benchmark_files import drawn_pixels, save_drawn
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score
from transformers import AutoModelForImageClassification, pipeline

from biomedclip import (
    BiomedCLIPForImageClassification,
    BiomedCLIPModel,
    BiomedCLIPProcessor,
    ZeroShotClassifier,
    read_image,
    saliency_map,
)
from biomedclip.processing.images.errors import ImageError
from biomedclip.processing.images.inputs import InputImage
from biomedclip.run_scripts.classification import overlays
from biomedclip.run_scripts.classification.classifiers import Classifier
from biomedclip.run_scripts.classification.predictions import predict
from biomedclip.run_scripts.cli.overlays import draw_overlay
from biomedclip.run_scripts.main import main
from biomedclip.weights_fingerprint import weights_fingerprint


LABELS = ["chest x-ray", "brain mri", "line chart"]


def read_json(text: str):
    def refuse(name: str):
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Seven images in folders, two damaged ones, and two other files."""
    folder = tmp_path_factory.mktemp("inputs") / "scans"
    for number in range(5):
        save_drawn(folder / f"{number}.png", number, 48, number % 2 == 0)
    save_drawn(folder / "below" / "ümlaut, 5.png", 5, 48)
    save_drawn(folder / "below" / "gray.tif", 6, 48, mode="L")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:200])
    (folder / "empty.jpg").touch()
    (folder / "notes.xml").write_text("<a/>", encoding="utf-8")
    (folder / "notes.txt").write_text("text", encoding="utf-8")
    return folder


READABLE = ["0.png", "1.png", "2.png", "3.png", "4.png", "below/gray.tif", "below/ümlaut, 5.png"]
DAMAGED = ["cut.png", "empty.jpg"]


@pytest.fixture(scope="module")
def expected(scans, small_checkpoint) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and similarities of the readable images."""
    model = BiomedCLIPModel.from_pretrained(small_checkpoint).eval()
    classifier = ZeroShotClassifier(model, BiomedCLIPProcessor.from_pretrained(small_checkpoint), LABELS)
    images = [read_image(scans / name) for name in READABLE]
    return classifier(images).numpy(), classifier.similarities(images).numpy()


def run(capsys, *arguments) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["classify", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_a_mixed_folder_to_csv_equals_zero_shot_classifier(capsys, caplog, scans, small_checkpoint, expected, tmp_path):
    scans = shutil.copytree(scans, tmp_path / "copy")  # what is ignored in a folder is logged once
    status, out, err = run(capsys, scans, "--model", small_checkpoint, "--labels", *LABELS, "--batch-size", 4)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == ["file", "rank", "label", "probability", "similarity", "error"]
    good = [row for row in rows if not row["error"]]
    assert [row["file"] for row in good[::3]] == [str(scans / name) for name in READABLE]
    assert [row["rank"] for row in good] == ["1", "2", "3"] * len(READABLE)
    for number, (probabilities, similarities) in enumerate(zip(*expected, strict=True)):
        of_image = good[3 * number : 3 * number + 3]
        assert [row["label"] for row in of_image] == [LABELS[place] for place in np.argsort(-probabilities)]
        # Float32: the images are in other batches.
        for row in of_image:
            place = LABELS.index(row["label"])
            assert float(row["probability"]) == pytest.approx(probabilities[place], abs=1e-5)
            assert float(row["similarity"]) == pytest.approx(similarities[place], abs=1e-6)
    bad = [row for row in rows if row["error"]]
    assert [row["file"] for row in bad] == [str(scans / name) for name in DAMAGED]
    assert all(not row[name] for row in bad for name in ("rank", "label", "probability", "similarity"))
    assert status == 1
    assert "2 of 9 images cannot be read (column error)" in err and "traceback" not in err
    assert "2 files are not images and are ignored" in caplog.text and "notes.xml" in caplog.text


def test_json_is_strict_and_has_null_for_an_unreadable_image(capsys, scans, small_checkpoint):
    arguments = [scans / "0.png", scans / "cut.png", "--model", small_checkpoint, "--labels", *LABELS]
    status, out, _ = run(capsys, *arguments, "--format", "json", "--top-k", 1)
    first, second = read_json(out)
    assert status == 1
    assert first["file"] == str(scans / "0.png") and first["rank"] == 1 and first["error"] is None
    assert (
        second["label"] is None and second["probability"] is None and second["error"].startswith("damaged or truncated")
    )


def test_a_model_with_nan_gives_null(capsys, scans, small_checkpoint, tmp_path):
    model = BiomedCLIPModel.from_pretrained(small_checkpoint)
    with torch.no_grad():
        model.visual_projection.weight.fill_(torch.nan)
    shutil.copytree(small_checkpoint, tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    _, out, _ = run(capsys, scans / "0.png", "--model", tmp_path / "model", "--labels", *LABELS, "--format", "json")
    assert [row["probability"] for row in read_json(out)] == [None] * 3


def test_wide_has_one_column_for_each_label(capsys, scans, small_checkpoint, expected, tmp_path):
    output = tmp_path / "wide.parquet"
    arguments = ["--model", small_checkpoint, "--labels", *LABELS, "--wide", "--output", output]
    status, out, _ = run(capsys, scans, *arguments)
    table = pq.read_table(output)
    assert status == 1 and out == ""
    assert table.column_names == ["file", *LABELS, "error"]
    found = [row for row in table.to_pylist() if row["error"] is None]
    values = np.array([[row[label] for label in LABELS] for row in found])
    np.testing.assert_allclose(values, expected[0], atol=1e-5)


def test_prompts_of_a_label_are_averaged(capsys, scans, small_checkpoint, tmp_path):
    """Compared with the average of normalized embeddings in NumPy."""
    prompts = {"chest": ["chest x-ray", "a chest"], "brain": ["brain mri", "a brain", "mri"]}
    (tmp_path / "labels.yaml").write_text(json.dumps(prompts), encoding="utf-8")
    labels = ["--labels", tmp_path / "labels.yaml", "--format", "json"]
    status, out, _ = run(capsys, scans / "0.png", "--model", small_checkpoint, *labels)
    model = BiomedCLIPModel.from_pretrained(small_checkpoint).eval()
    processor = BiomedCLIPProcessor.from_pretrained(small_checkpoint)

    def unit(array: np.ndarray) -> np.ndarray:
        return array / np.linalg.norm(array, axis=-1, keepdims=True)

    with torch.no_grad():
        pixels = processor(images=read_image(scans / "0.png"), return_tensors="pt")
        image = unit(model.get_image_features(**pixels).pooler_output.numpy())[0]
        similarities = {}
        for label, texts in prompts.items():
            tokens = processor(text=texts, padding=True, return_tensors="pt")
            embeds = unit(model.get_text_features(**tokens).pooler_output.numpy())
            similarities[label] = float(unit(embeds.mean(axis=0)) @ image)
    assert status == 0
    assert {row["label"]: row["similarity"] for row in read_json(out)} == pytest.approx(similarities, abs=1e-6)


def test_a_repeated_template_is_one_prompt_more(capsys, scans, small_checkpoint):
    arguments = [scans / "1.png", "--model", small_checkpoint, "--labels", *LABELS, "--format", "json"]
    _, out, _ = run(capsys, *arguments, "--template", "a {}", "--template", "photo of {}")
    classifier = ZeroShotClassifier(
        BiomedCLIPModel.from_pretrained(small_checkpoint).eval(),
        BiomedCLIPProcessor.from_pretrained(small_checkpoint),
        LABELS,
        ["a {}", "photo of {}"],
    )
    wanted = classifier([read_image(scans / "1.png")])[0].tolist()
    found = {row["label"]: row["probability"] for row in read_json(out)}
    assert [found[label] for label in LABELS] == pytest.approx(wanted, abs=1e-5)


def test_top_k_is_five_by_default(capsys, scans, small_checkpoint):
    arguments = [scans / "1.png", "--model", small_checkpoint, "--labels", "taxonomy:imagetypes"]
    _, out, _ = run(capsys, *arguments)
    assert len(out.splitlines()) == 6
    _, out, _ = run(capsys, *arguments, "--top-k", 100)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 30 and sum(float(row["probability"]) for row in rows) == pytest.approx(1, abs=1e-5)


def test_inputs_of_every_kind_are_classified(capsys, scans, small_checkpoint, tmp_path, monkeypatch):
    rows = [{"id": f"row-{number}", "image": drawn_pixels(number, 40)} for number in range(3)]
    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()})
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "set.parquet")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{scans / '1.png'}\n{tmp_path / 'missing.png'}\n"))
    arguments = ["-", scans / "[2-4].png", tmp_path / "set.parquet", "--model", small_checkpoint]
    status, out, _ = run(capsys, *arguments, "--labels", *LABELS, "--top-k", 1)
    found = list(csv.DictReader(io.StringIO(out)))
    files = sorted([tmp_path / "missing.png", *(scans / f"{number}.png" for number in range(1, 5))])
    assert [row["file"] for row in found] == [*map(str, files), "row-0", "row-1", "row-2"]
    assert [row["file"] for row in found if row["error"]] == [str(tmp_path / "missing.png")]
    assert status == 1


def test_the_record_describes_the_run(capsys, scans, small_checkpoint, tmp_path):
    output = tmp_path / "new" / "rows.csv"
    status, _, err = run(capsys, scans, "--model", small_checkpoint, "--labels", *LABELS, "--output", output)
    record = read_json((tmp_path / "new" / "rows.csv.run.json").read_text(encoding="utf-8"))
    weights = weights_fingerprint(BiomedCLIPModel.from_pretrained(small_checkpoint))
    assert record["model"] == {"name": str(small_checkpoint), "type": "biomedclip", "weights": weights}
    assert record["command"].startswith("biomedclip classify ") and record["device"]
    assert record["start"] <= record["end"] and record["versions"]["biomedclip"]
    assert (record["images"], record["unreadable"]) == (9, 2) and sum(record["predicted"].values()) == 7
    assert record["prompts"]["brain mri"] == ["this is a photo of brain mri"]
    assert status == 1 and "rows.csv.run.json" in err.replace("\n", "")


def test_true_labels_give_the_metrics_of_scikit_learn(capsys, caplog, scans, small_checkpoint, tmp_path):
    truth = {name: LABELS[number % 2] for number, name in enumerate(READABLE[:6])}
    lines = [f'"{scans / name}","{label}"' for name, label in truth.items()]
    (tmp_path / "truth.csv").write_text("\n".join(["file,label", *lines, f"{tmp_path}/no.png,{LABELS[0]}"]) + "\n")
    arguments = ["--model", small_checkpoint, "--labels", *LABELS, "--output", tmp_path / "rows.csv"]
    status, _, err = run(capsys, scans, *arguments, "--true-labels", tmp_path / "truth.csv")
    with open(tmp_path / "rows.csv", encoding="utf-8", newline="") as file:
        predicted = {row["file"]: row["label"] for row in csv.DictReader(file) if row["rank"] == "1"}
    pairs = [(label, predicted[str(scans / name)]) for name, label in truth.items()]
    true, answers = zip(*pairs, strict=True)
    metrics = read_json((tmp_path / "rows.csv.run.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["images"] == 6
    assert metrics["accuracy"] == pytest.approx(accuracy_score(true, answers))
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true, answers))
    recalls = recall_score(true, answers, labels=LABELS[:2], average=None)
    assert [metrics["recall_of_class"][label] for label in LABELS[:2]] == pytest.approx(recalls.tolist())
    assert metrics["recall_of_class"][LABELS[2]] is None
    assert "rows that name no image: 1 (" in caplog.text and "images without a true label: 3 (" in caplog.text
    assert "balanced accuracy" in err
    assert status == 1


@pytest.mark.parametrize("place", ["beside the images", "elsewhere with file names"])
def test_true_labels_may_be_relative_to_their_table(capsys, scans, small_checkpoint, tmp_path, monkeypatch, place):
    copy = shutil.copytree(scans, tmp_path / "copy")
    table = (copy if place == "beside the images" else tmp_path) / "truth.csv"
    names = ["0.png", "below/gray.tif"] if place == "beside the images" else ["0.png", "gray.tif"]
    table.write_text("label;file\n" + "".join(f"{LABELS[0]};{name}\n" for name in names), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    arguments = ["copy", "--model", small_checkpoint, "--labels", *LABELS, "--output", "rows.csv"]
    run(capsys, *arguments, "--true-labels", table)
    assert read_json((tmp_path / "rows.csv.run.json").read_text(encoding="utf-8"))["metrics"]["images"] == 2


def test_a_fine_tuned_classifier_equals_the_pipeline_of_transformers(capsys, scans, fine_tuned):
    status, out, _ = run(capsys, scans / "1.png", scans / "2.png", "--model", fine_tuned[0], "--format", "json")
    classify = pipeline("image-classification", model=str(fine_tuned[0]), device="cpu")
    rows = read_json(out)
    for number, name in enumerate(["1.png", "2.png"]):
        wanted = {answer["label"]: answer["score"] for answer in classify(str(scans / name))}
        found = {row["label"]: row["probability"] for row in rows[3 * number : 3 * number + 3]}
        assert found == pytest.approx(wanted, abs=1e-5)
    assert status == 0 and {row["similarity"] for row in rows} == {None}


def test_the_adapter_of_a_classifier_equals_the_model_in_transformers(capsys, scans, fine_tuned):
    _, adapter = fine_tuned
    status, out, err = run(capsys, scans / "1.png", "--model", adapter, "--format", "json")
    config = BiomedCLIPForImageClassification.config_class.from_pretrained(adapter / "config")
    model = AutoModelForImageClassification.from_pretrained(adapter, config=config).eval()
    processor = BiomedCLIPProcessor.from_pretrained(model.peft_config["default"].base_model_name_or_path)
    with torch.no_grad():
        logits = model(**processor(images=read_image(scans / "1.png"), return_tensors="pt")).logits
    wanted = dict(zip(["benign", "malignant", "other"], logits.softmax(dim=-1)[0].tolist(), strict=True))
    # Float32: (W + B A) x and W x + B (A x) differ by rounding.
    assert {row["label"]: row["probability"] for row in read_json(out)} == pytest.approx(wanted, abs=1e-4)
    assert status == 0 and "newly initialized" not in err


def test_saliency_writes_the_maps_of_the_listed_labels(capsys, scans, small_checkpoint, tmp_path):
    arguments = [scans, "--model", small_checkpoint, "--labels", *LABELS, "--top-k", 2, "--format", "json"]
    status, out, _ = run(capsys, *arguments, "--saliency", tmp_path / "maps")
    assert status == 1
    best = [row for row in read_json(out) if row["file"] == str(scans / "0.png")]
    names = [f"000000_0_{rank}_{row['label'].replace(' ', '_')}.png" for rank, row in enumerate(best, 1)]
    written = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert written[:2] == names and len(written) == 2 * len(READABLE)

    model = BiomedCLIPModel.from_pretrained(small_checkpoint).eval()
    processor = BiomedCLIPProcessor.from_pretrained(small_checkpoint)
    image = read_image(scans / "0.png")
    maps = saliency_map(model, processor, image, [f"this is a photo of {row['label']}" for row in best])
    for name, saliency in zip(names, maps, strict=True):
        overlay = draw_overlay(image, saliency, scale=float(maps.nan_to_num(0).max()))
        # The command computes the maps of other prompts in the same batch, so sums may differ in the last bit.
        written = np.asarray(Image.open(tmp_path / "maps" / name), dtype=int)
        np.testing.assert_allclose(written, np.asarray(overlay, dtype=int), rtol=0, atol=1)


def test_an_image_that_disappears_before_its_saliency_map_keeps_its_prediction(
    capsys, caplog, scans, small_checkpoint, tmp_path, monkeypatch
):
    def disappeared(image):
        raise ImageError("0.png: the file does not exist")

    monkeypatch.setattr(overlays, "read_row_image", disappeared)
    arguments = [scans / "0.png", "--model", small_checkpoint, "--labels", *LABELS, "--format", "json"]
    status, out, _ = run(capsys, *arguments, "--saliency", tmp_path / "maps")
    assert status == 0 and len(read_json(out)) == len(LABELS)
    assert "no saliency map: 0.png" in caplog.text


def test_saliency_of_a_large_image_is_smaller_than_the_image(capsys, small_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(overlays, "LARGEST", 64)
    pixels = np.random.default_rng(0).integers(0, 65536, (90, 128), dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    status, _, _ = run(
        capsys,
        tmp_path / "large.png",
        "--model",
        small_checkpoint,
        "--labels",
        *LABELS,
        "--saliency",
        tmp_path / "maps",
    )
    assert status == 0
    assert {Image.open(path).size for path in (tmp_path / "maps").iterdir()} == {(64, 45)}


def test_an_exported_model_classifies_like_the_model(capsys, scans, small_checkpoint, tmp_path):
    assert main(["export", str(small_checkpoint), str(tmp_path / "exported")]) == 0
    arguments = [scans / "0.png", scans / "1.png", "--labels", *LABELS, "--format", "json"]
    of_model, of_export = (
        read_json(run(capsys, *arguments, "--model", name)[1]) for name in (small_checkpoint, tmp_path / "exported")
    )
    for ours, theirs in zip(of_export, of_model, strict=True):
        assert [ours["file"], ours["label"]] == [theirs["file"], theirs["label"]]
        assert ours["similarity"] == pytest.approx(theirs["similarity"], abs=1e-5)  # float32 kernels of ONNX Runtime
    exported = [*arguments, "--model", tmp_path / "exported"]
    status, _, err = run(capsys, *exported, "--saliency", tmp_path / "maps")
    assert status == 2 and "computes no gradients" in err and not (tmp_path / "maps").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--model", "CLASSIFIER", "--labels", "a", "b"], 2, "is a fine-tuned classifier without a text tower"),
        (["--model", "CLASSIFIER", "--saliency", "MAPS"], 2, "Omit --saliency"),
        (["--model", "MODEL", "--labels", "a", "b", "--saliency", "FOLDER"], 1, "contains files"),
        (["--model", "MODEL", "--labels", "a", "b", "--precision", "int8"], 1, "float32 or bfloat16"),
        (["--model", "CLASSIFIER", "--template", "a {}"], 2, "--template has no effect without --labels"),
        (["--model", "MODEL"], 2, "needs --labels"),
        (["--model", "MODEL", "--labels", "a", "b", "--wide", "--top-k", "1"], 2, "Omit --top-k"),
        (["--model", "MODEL", "--labels", "a", "error", "--wide"], 2, "a label named file or error"),
        (["--model", "MODEL", "--labels", "a", "b", "--top-k", "0"], 2, "--top-k must be at least 1"),
        (["--model", "MODEL", "--labels", "a", "b", "--format", "parquet"], 2, "--output FILE.parquet"),
        (["--model", "MODEL", "--labels", "a", "b", "--device", "tpu"], 2, "must be auto, cpu, cuda"),
        (["--model", "MODEL", "--labels", "a", "b", "--device", "cuda:63"], 1, "CUDA devices"),
        (["--model", "MODEL", "--labels", "a", "b", "--output", "FOLDER"], 2, "pass --format, or a file name"),
        (["--model", "MODEL", "--labels", "a", "b", "--output", "FOLDER", "--format", "csv"], 1, "is a folder"),
        (["--model", "FOLDER", "--labels", "a", "b"], 1, "a folder of images, not a model"),
        (["--model", "no-such-model", "--labels", "a", "b"], 1, "neither a folder nor an id"),
        (["--model", "MODEL", "--labels", "a", "b", "--true-labels", "TRUTH"], 1, "'c' is not one of the labels"),
        (["--model", "MODEL", "--labels", "c", "b", "--true-labels", "TRUTH"], 1, "none of its 1 files"),
    ],
)
def test_everything_is_checked_before_the_model_is_loaded(
    capsys, scans, small_checkpoint, fine_tuned, tmp_path, monkeypatch, arguments, status, message
):
    for name in ("load_zero_shot", "load_fine_tuned"):
        monkeypatch.setattr(f"biomedclip.run_scripts.classify.{name}", lambda *a, **k: pytest.fail("loaded"))
    (tmp_path / "truth.csv").write_text("file,label\nnowhere.png,c\n", encoding="utf-8")
    places = {
        "CLASSIFIER": fine_tuned[0],
        "MODEL": small_checkpoint,
        "FOLDER": scans / "below",
        "MAPS": tmp_path / "maps",
        "TRUTH": tmp_path / "truth.csv",
    }
    found, out, err = run(capsys, scans, *(places.get(word, word) for word in arguments))
    assert message in err and out == ""
    assert found == status


@pytest.mark.parametrize("missing", ["nowhere", "*.bmp"])
def test_a_missing_input_is_named(capsys, scans, small_checkpoint, missing):
    status, _, err = run(capsys, scans / missing, "--model", small_checkpoint, "--labels", *LABELS)
    assert status == 1 and missing in err


def test_an_adapter_without_its_labels_is_named(capsys, scans, fine_tuned, tmp_path):
    copy = shutil.copytree(fine_tuned[1], tmp_path / "adapter")
    shutil.rmtree(copy / "config")
    status, _, err = run(capsys, scans, "--model", copy)
    assert status == 1 and "config/config.json with its labels is missing" in err


def test_bfloat16_changes_probabilities_by_little(capsys, scans, small_checkpoint, expected):
    arguments = [scans / "0.png", "--model", small_checkpoint, "--labels", *LABELS, "--format", "json"]
    status, out, _ = run(capsys, *arguments, "--precision", "bfloat16", "--device", "cpu")
    found = {row["label"]: row["similarity"] for row in read_json(out)}
    # Bfloat16 has 8 significant bits, and the model has two layers.
    assert [found[label] for label in LABELS] == pytest.approx(expected[1][0].tolist(), abs=0.03)
    assert [found[label] for label in LABELS] != pytest.approx(expected[1][0].tolist(), abs=1e-7)
    assert status == 0


def test_images_are_read_ahead_in_a_bounded_number_of_batches(scans):
    """With a slow model, at most `workers + 1` batches wait in memory."""
    read, done, ahead = [], [], []

    class Inputs:
        def __len__(self):
            return 40

        def rows(self, first, last):
            for number in range(first, last):
                read.append(number)
                yield InputImage(str(number), scans / "0.png")

    class Processor:
        def __call__(self, images, return_tensors):
            return {"pixel_values": torch.zeros(len(images), 3, 2, 2)}

    def slow(pixels):
        ahead.append(len(read) - len(done))
        done.extend(range(len(pixels)))
        return torch.full((len(pixels), 2), 0.5), None

    classifier = Classifier("m", "fake", ["a", "b"], Processor(), "", torch.device("cpu"), None, slow)
    found = list(predict(classifier, Inputs(), batch_size=4, workers=2))
    assert [prediction.image.id for prediction in found] == [str(number) for number in range(40)]
    assert max(ahead) <= 4 * 3
