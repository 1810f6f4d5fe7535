"""Training of the panel detector through the command."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.commands import losses
from helpers.training_runs import assert_equal_runs, results, train, train_error
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForObjectDetection, pipeline

from biomedclip import PanelDetectionConfig, PanelDetectionModel, PanelDetector
from biomedclip.processing.panels.annotations import read_annotations
from biomedclip.processing.panels.image_types import IMAGE_TYPES
from biomedclip.processing.panels.scores import average_precision
from biomedclip.processing.panels.singles import singles_of_annotation, singles_of_dataset, singles_of_folder
from biomedclip.processing.panels.synthesis.labels import CLASSES
from biomedclip.run_scripts.training.panel_detection import measure_drawn


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 200, (60, 80, 3), dtype=np.uint8))


class Figures(list):
    """Stands for drawn figures."""

    figure = list.__getitem__


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A dataset of 12 single figures of 12 articles, and three others."""
    rows = [(png(noise(n)), f"g{n}.png", "Radiograph of the chest.", f"PMC{n}") for n in range(5, 17)]
    rows.append((png(noise(90)), "a.png", "(A) Radiograph. (B) MRI.", "PMC90"))
    rows.append((png(noise(91)), "b.png", "Radiograph, left, and MRI, right.", "PMC91"))
    grid = Image.new("RGB", (400, 200), "white")
    grid.paste(noise(92).resize((180, 190)), (0, 0))
    grid.paste(noise(93).resize((180, 190)), (220, 0))
    rows.append((png(grid), "c.png", "Radiographs.", "PMC92"))
    folder = tmp_path_factory.mktemp("figures")
    (folder / "data").mkdir()
    images = [{"bytes": content, "path": name} for content, name, _, _ in rows]
    columns = {"image": images, "caption": [row[2] for row in rows], "pmcid": [row[3] for row in rows]}
    pq.write_table(pa.table(columns), folder / "data" / "train-00000.parquet")
    return folder


@pytest.fixture(scope="module")
def small_detector(tmp_path_factory):
    small = {"image_size": 64, "widths": [4, 8, 8, 8, 8, 8], "depths": [0] * 6, "neck_width": 8}
    folder = tmp_path_factory.mktemp("detector")
    config = PanelDetectionConfig(printed_labels=list(CLASSES), image_types=list(IMAGE_TYPES), **small)
    PanelDetectionModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def options(dataset, small_detector):
    options = {"config": "panel_detector", "train_data": dataset, "model_name_or_path": small_detector, "figures": 64}
    options |= {"plots": 2, "validation_figures": 4, "per_device_train_batch_size": 4, "num_train_epochs": None}
    return options | {"batch_size": None, "max_steps": 4, "use_cpu": "true"}


def test_single_figures_are_told_by_caption_and_picture(dataset):
    figures = list(singles_of_dataset(dataset))
    assert [figure.kind for figure in figures] == [f"PMC{n}" for n in range(5, 17)]
    assert {figure.image_type for figure in figures} == {"X-Ray 2D Radiography"}
    assert all(figure.is_photograph for figure in figures)
    assert [figure.kind for figure in figures if figure.held_out] == ["PMC14"], "by the name of the article, for good"
    rest = list(singles_of_dataset(dataset, ["PMC5/g5.png", "PMC6/g5.png"]))
    assert [figure.kind for figure in rest] == [f"PMC{n}" for n in range(6, 17)]


def test_rows_of_panels_are_no_single_figures(dataset, tmp_path):
    table = pq.read_table(dataset / "data" / "train-00000.parquet")
    ids = [f"id{number}" for number in range(table.num_rows)]
    figures = [ids[number] if number % 3 == 0 else f"{ids[number]}/whole" for number in range(table.num_rows)]
    figures[1::3] = [None] * len(figures[1::3])
    (tmp_path / "data").mkdir()
    table = table.append_column("pair_id", pa.array(ids)).append_column("figure_pair_id", pa.array(figures))
    pq.write_table(table, tmp_path / "data" / "train-00000.parquet")
    panels = {f"PMC{pmcid}" for pmcid in range(7, 17, 3)}
    everything = {figure.kind for figure in singles_of_dataset(dataset)}
    assert {figure.kind for figure in singles_of_dataset(tmp_path)} == everything - panels != everything


def test_photographs_of_a_folder_have_its_name_and_type(tmp_path):
    for number in range(3):
        noise(number).save(tmp_path / f"{number}.png")
    figures = list(singles_of_folder(tmp_path, "Endoscopy"))
    assert [(figure.kind, figure.image_type) for figure in figures] == [(tmp_path.name, "Endoscopy")] * 3
    assert figures[0].open().getpixel((5, 5)) == noise(0).getpixel((5, 5))


def row(file, boxes, labels=None, **more):
    """Return a row of annotated panels."""
    names = labels or [None] * len(boxes)
    panels = [{"box": box, "label": name, "type": "Endoscopy"} for box, name in zip(boxes, names, strict=True)]
    return {"pmcid": "PMC71", "file": file, "compound": len(boxes) > 1, "panels": panels, **more}


@pytest.fixture
def annotations(tmp_path):
    """A table of a single figure, a compound one without labels, and one whose right panel has a label in it."""
    noise(1).save(tmp_path / "single.png")
    for name in ("compound.png", "labeled.png"):
        noise(2).save(tmp_path / name)
    boxes = [[0, 0, 38, 60], [42, 0, 80, 60]]
    labeled = row("labeled.png", boxes, ["A", "B"])
    labeled["panels"][0]["label_box"], labeled["panels"][1]["label_box"] = [38, 2, 42, 8], [44, 2, 50, 8]
    rows = [row("single.png", [[0, 0, 80, 60]]), row("compound.png", boxes), labeled]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return tmp_path / "table.jsonl"


def test_annotated_figures_give_singles_and_panels_without_the_strip_of_their_label(annotations):
    figures = read_annotations(annotations, annotations.parent)
    singles = [single for figure in figures for single in singles_of_annotation(figure)]
    sizes = [single.open().size for single in singles]
    assert sizes == [(80, 60), (38, 60), (38, 60), (38, 60), (38, 52)]
    assert {(single.kind, single.image_type, single.is_photograph) for single in singles} == {
        ("PMC71", "Endoscopy", True)
    }
    left, right = (singles[number].open() for number in (1, 2))
    assert left.tobytes() == noise(2).crop((0, 0, 38, 60)).tobytes()
    assert right.tobytes() == noise(2).crop((42, 0, 80, 60)).tobytes()
    assert singles[4].open().tobytes() == noise(2).crop((42, 8, 80, 60)).tobytes()


@pytest.mark.parametrize(("image_type", "count"), [("Endoscopy", 5), ("Flowcharts", 4), ("unknown", 4)])
def test_plots_lose_less_to_a_label_than_photographs(annotations, image_type, count):
    table = annotations.read_text(encoding="utf-8").replace("[44, 2, 50, 8]", "[44, 12, 50, 16]")
    annotations.write_text(table.replace("Endoscopy", image_type), encoding="utf-8")
    figures = read_annotations(annotations, annotations.parent)
    assert sum(len(list(singles_of_annotation(figure))) for figure in figures) == count


def test_annotated_compound_figures_are_examples_and_replace_those_of_the_dataset(options, annotations, tmp_path):
    options |= {"annotations": f"{annotations}={annotations.parent}", "max_steps": 1, "validation_figures": 0}
    found = results(train(tmp_path / "run", **options))
    assert (found["single_figures"], found["annotated_compound_figures"]) == (16, 2)
    table = annotations.read_text(encoding="utf-8").replace("PMC71", "PMC5").replace("single.png", "g5.png")
    annotations.write_text(table, encoding="utf-8")
    (annotations.parent / "single.png").rename(annotations.parent / "g5.png")
    assert results(train(tmp_path / "again", **options))["single_figures"] == 15, "one was in both"


def test_figures_to_leave_out_are_used_neither_from_the_dataset_nor_from_tables(options, annotations, tmp_path, capsys):
    table = annotations.read_text(encoding="utf-8")
    unknown = row("unknown.png", [[0, 0, 38, 60], [42, 0, 80, 60]]) | {"pmcid": None}
    panelseg = row("PMC72_scan.png", [[0, 0, 38, 60], [42, 0, 80, 60]]) | {"pmcid": "PMC72"}
    annotations.write_text(table + "".join(json.dumps(each) + "\n" for each in (unknown, panelseg)), encoding="utf-8")
    for name in ("unknown.png", "PMC72_scan.png"):
        noise(3).save(annotations.parent / name)
    options |= {"annotations": f"{annotations}={annotations.parent}", "max_steps": 1, "validation_figures": 0}
    found = results(train(tmp_path / "all", **options))
    assert (found["single_figures"], found["annotated_compound_figures"]) == (20, 4)
    options["leave_out"] = tmp_path / "left_out.txt"
    options["leave_out"].write_text("PMC5/g5.png\nPMC71/labeled.png\n\nunknown.png\nPMC72/scan.png\n", encoding="utf-8")
    found = results(train(tmp_path / "left_out", **options))
    assert (found["single_figures"], found["annotated_compound_figures"]) == (13, 1)
    options["leave_out"].write_text("\n", encoding="utf-8")
    assert "left_out.txt: the file is empty" in train_error(capsys, tmp_path / "run", 1, **options)


def test_a_run_saves_a_detector_and_its_scores_on_drawn_figures(options, tmp_path, capsys):
    run = train(tmp_path / "run", **options)
    assert len(losses(run)) == 4 and all(np.isfinite(losses(run)))
    found = results(run)
    assert (found["single_figures"], found["held_out_single_figures"]) == (11, 1)
    validation = found["validation"]
    assert validation["figures"] == 4
    names = ("average_precision", "average_precision_of_panels", "recall", "precision", "compound_accuracy")
    assert all(0 <= validation[name] <= 1 for name in names)
    assert isinstance(AutoModelForObjectDetection.from_pretrained(run), PanelDetectionModel)
    assert "Panel detection" in capsys.readouterr().out


def test_the_average_precision_is_that_of_all_boxes_and_of_the_panels_that_are_returned():
    images = []
    for seed, gap in enumerate((30, 0)):
        image = Image.new("RGB", (400 + gap, 190), "white")
        for number, left in enumerate((0, 200 + gap)):
            image.paste(noise(2 * seed + number).resize((200, 190)), (left, 0))
        images.append(image)
    detect = PanelDetector.from_pretrained()
    detector = pipeline("object-detection", model=detect.model, image_processor=detect.image_processor)
    all_boxes = [
        [(list(box["box"].values()), box["score"]) for box in detector(image, threshold=0.01)] for image in images
    ]
    # Each box is a true panel, also those that are too weak to be returned.
    truth = [[box for box, _ in of_image] for of_image in all_boxes]
    trainer = SimpleNamespace(model=detect.model, processing_class=detect.image_processor)
    drawn = [
        SimpleNamespace(image=image, panels=[SimpleNamespace(box=box) for box in boxes], is_compound=True)
        for image, boxes in zip(images, truth, strict=True)
    ]
    found = measure_drawn(trainer, Figures(drawn))

    def precision(of_images):
        boxes = [[box for box, _ in of_image] for of_image in of_images]
        return average_precision(boxes, [[score for _, score in of_image] for of_image in of_images], truth)

    panels = [[(panel.box, panel.score) for panel in figure.panels] for figure in detect(images)]
    assert precision(panels) < 0.9, "all boxes would give the same"
    assert found["average_precision"] == pytest.approx(precision(all_boxes), abs=1e-6)
    assert found["average_precision_of_panels"] == pytest.approx(precision(panels), abs=1e-6)


def test_training_continues_from_float16_in_float32(options, small_detector, tmp_path):
    PanelDetectionModel.from_pretrained(small_detector).half().save_pretrained(tmp_path / "half")
    options |= {"model_name_or_path": tmp_path / "half", "max_steps": 1, "validation_figures": 0}
    saved = load_file(train(tmp_path / "run", **options) / "model.safetensors")
    assert {value.dtype for name, value in saved.items() if "num_batches" not in name} == {torch.float32}


def test_a_resumed_run_equals_an_uninterrupted_one(options, tmp_path):
    options |= {"validation_figures": 0, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    whole = train(tmp_path / "whole", **options)
    train(tmp_path / "parts", **options | {"max_steps": 2})
    train(tmp_path / "parts", **options, resume_from_checkpoint="true")
    assert_equal_runs(tmp_path / "parts", whole)


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"train_data": "/nowhere"}, 1, "/nowhere: it has no data/*.parquet"),
        ({"photographs": "/tmp=Endoskopie"}, 1, "'Endoskopie' is no type"),
        ({"annotations": "table.jsonl"}, 1, "it must be a table and the folder of its pictures, TABLE=FOLDER"),
        ({"annotations": "/nowhere.jsonl=/tmp"}, 1, "/nowhere.jsonl: the file does not exist"),
        ({"leave_out": "/nowhere.txt"}, 1, "--leave-out /nowhere.txt: the file does not exist"),
        ({"annotated_share": 1.5}, 2, "--annotated-share must be between 0 and 1, not 1.5"),
        ({"type_balance": -1}, 2, "--type-balance must be between 0 and 1, not -1.0"),
        ({"figures": 0}, 2, "--figures must be at least 1"),
        ({"lora_rank": 4}, 1, "--lora-rank has no effect"),
    ],
)
def test_impossible_options_are_refused(options, tmp_path, capsys, changes, status, message):
    assert message in train_error(capsys, tmp_path / "run", status, **options | changes)
