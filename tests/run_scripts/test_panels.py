"""`biomedclip panels`: one row for each figure, with its panels, their labels and captions."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from biomedclip import PanelDetectionConfig, PanelDetectionImageProcessor, PanelDetectionModel
from biomedclip.processing.panels.image_types import GROUPS, PROMPTS
from biomedclip.run_scripts.main import main


BOXES = [(0, 0, 180, 190), (220, 0, 400, 190)]


def noise(size, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 200, (*size[::-1], 3), dtype=np.uint8))


@pytest.fixture
def figures(tmp_path):
    """A compound figure, a single one, a damaged one, and a file that is no image."""
    folder = tmp_path / "figures"
    folder.mkdir()
    compound = Image.new("RGB", (400, 190), "white")
    for number, box in enumerate(BOXES):
        compound.paste(noise((180, 190), number), box)
    compound.save(folder / "a.png")
    noise((120, 80)).save(folder / "b.png")
    (folder / "c.png").write_bytes((folder / "b.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text("file,caption\na.png,Scans. (A) Before. (B) After treatment.\nb.png,A scan.\n", encoding="utf-8")
    return path


def run(capsys, *arguments):
    """Run the command, with the recursive X-Y cut unless there is another detector."""
    capsys.readouterr()
    detector = [] if "--detector" in arguments else ["--detector", "x-y-cut"]
    status = main(["panels", *map(str, arguments), *detector])
    output = capsys.readouterr()
    return status, [json.loads(line) for line in output.out.splitlines() if line.startswith("{")], output.err


def test_the_detector_of_the_package_is_the_default(figures, tmp_path):
    output = tmp_path / "panels.jsonl"
    assert main(["panels", str(figures / "a.png"), "--output", str(output)]) == 0
    (row,) = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    assert all(panel["type"] in PROMPTS and 0 < panel["type_score"] <= 1 for panel in row["panels"])
    assert json.loads(output.with_name("panels.jsonl.run.json").read_text())["model"] == {
        "name": "detector of the package"
    }


def test_each_figure_has_a_row_and_a_damaged_one_an_error(figures, capsys, caplog):
    status, rows, error = run(capsys, figures)
    assert status == 1 and "1 of 3 images cannot be read" in error and "notes.txt" in caplog.text
    compound, single, damaged = rows
    assert [row["file"] for row in rows] == [str(figures / name) for name in ("a.png", "b.png", "c.png")]
    assert compound["compound"] and [tuple(panel["box"]) for panel in compound["panels"]] == BOXES
    assert not single["compound"] and [panel["box"] for panel in single["panels"]] == [[0, 0, 120, 80]]
    assert set(single["panels"][0]) == {
        "box",
        "label",
        "score",
        "type",
        "type_score",
        "type_margin",
        "group",
        "group_score",
        "sub_caption",
    }
    assert single["panels"][0]["label"] is None and single["error"] is None
    assert damaged["panels"] is None and damaged["error"]


def test_captions_are_split_by_panels(figures, captions, capsys):
    _, (compound, single, _), _ = run(capsys, figures, "--captions", captions)
    assert [panel["sub_caption"] for panel in compound["panels"]] == ["Before.", "After treatment."]
    assert (compound["context"], compound["caption_match"]) == ("Scans.", "caption")
    assert (single["context"], single["caption_match"]) == ("A scan.", "none")
    assert single["panels"][0]["sub_caption"] is None


def test_json_lines_of_captions_give_the_same_rows(figures, captions, tmp_path, capsys):
    lines = [
        '{"file": "a.png", "caption": "Scans. (A) Before. (B) After treatment."}',
        '{"file": "b.png", "caption": "A scan."}',
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert (
        run(capsys, figures, "--captions", captions)[1]
        == run(capsys, figures, "--captions", tmp_path / "captions.jsonl")[1]
    )


def test_rows_of_a_dataset_bring_their_captions(figures, tmp_path, capsys):
    image = {"bytes": (figures / "a.png").read_bytes(), "path": "a.png"}
    table = pa.table({"pair_id": ["PMC1/F1/a"], "image": [image], "caption": ["(a) Before. (b) After."]})
    pq.write_table(table, tmp_path / "pairs.parquet")
    status, (row,), _ = run(capsys, tmp_path / "pairs.parquet")
    assert status == 0 and row["file"] == "PMC1/F1/a"
    assert [panel["sub_caption"] for panel in row["panels"]] == ["Before.", "After."]


def test_a_file_a_record_and_pictures_are_written(figures, tmp_path, capsys):
    output, overlay = tmp_path / "panels.jsonl", tmp_path / "overlay"
    assert run(capsys, figures, "--output", output, "--overlay", overlay)[0] == 1
    assert len(output.read_text(encoding="utf-8").splitlines()) == 3
    record = json.loads((tmp_path / "panels.jsonl.run.json").read_text(encoding="utf-8"))
    assert (record["figures"], record["unreadable"], record["model"]["name"]) == (3, 1, "x-y-cut")
    assert sorted(path.name for path in overlay.iterdir()) == ["000000_a.png", "000001_b.png"]
    drawn = np.asarray(Image.open(overlay / "000000_a.png").convert("RGB"))
    assert drawn.shape == (190, 400, 3) and tuple(drawn[95, 0]) == (0xD6, 0x27, 0x28), "the first box is red"


@pytest.fixture
def detector(tmp_path):
    """A detector with random weights, for which all figures are single, and types are about equally probable."""
    small = {"image_size": 64, "widths": [4, 8, 8, 8, 8, 8], "depths": [0] * 6, "neck_width": 8}
    model = PanelDetectionModel(PanelDetectionConfig(printed_labels=["A"], image_types=["x", "y"], **small))
    torch.nn.init.constant_(model.compound_head.bias, -20.0)
    model.save_pretrained(tmp_path / "detector")
    PanelDetectionImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "detector")
    return tmp_path / "detector"


def test_a_detector_of_transformers_is_used(figures, detector, capsys):
    arguments = ["--detector", detector, "--device", "cpu"]
    status, rows, _ = run(capsys, figures / "a.png", figures / "b.png", *arguments)
    assert status == 0 and all(row["panels"][0]["type"] in ("x", "y") for row in rows)
    assert not any(row["compound"] for row in rows), "the cut finds two panels in the first"


def test_a_model_tells_the_type_of_each_crop_as_classify_does(figures, small_checkpoint, tmp_path, capsys):
    status, (compound, single), _ = run(capsys, figures / "a.png", figures / "b.png", "--model", small_checkpoint)
    assert status == 0 and compound["compound"]
    whole = Image.open(figures / "a.png")
    for number, box in enumerate(BOXES):
        whole.crop(box).save(tmp_path / f"{number}.png")
    prompts = {
        name: [text for prompt in own for text in (prompt, f"the figure shows {prompt}")]
        for name, own in PROMPTS.items()
    }
    (tmp_path / "labels.yaml").write_text(json.dumps(prompts), encoding="utf-8")
    crops = [tmp_path / "0.png", tmp_path / "1.png", figures / "b.png"]
    labels = ["--labels", tmp_path / "labels.yaml", "--format", "json", "--top-k", "30"]
    assert main(["classify", *map(str, [*crops, "--model", small_checkpoint, *labels])]) == 0
    classified = json.loads(capsys.readouterr().out)
    for panel, crop in zip([*compound["panels"], *single["panels"]], crops, strict=True):
        of_crop = {row["label"]: row["probability"] for row in classified if row["file"] == str(crop)}
        of_group = {group: sum(of_crop[name] for name in names) for group, names in GROUPS.items()}
        # Of names with the same unknown words, rounding decides which is the best.
        assert of_group[panel["group"]] == pytest.approx(max(of_group.values()), abs=1e-5)
        assert panel["group_score"] == pytest.approx(of_group[panel["group"]], abs=1e-5)
        names = GROUPS[panel["group"]]
        assert panel["type"] in names
        assert of_crop[panel["type"]] == pytest.approx(max(of_crop[name] for name in names), abs=1e-5)
        assert panel["type_score"] == pytest.approx(of_crop[panel["type"]], abs=1e-5)
        first, second = sorted(of_crop.values())[:-3:-1]
        assert panel["type_margin"] == pytest.approx(first - second, abs=1e-5)


def test_a_model_replaces_the_types_of_the_detector(figures, detector, small_checkpoint, tmp_path, capsys):
    output = tmp_path / "panels.jsonl"
    arguments = ["--detector", detector, "--device", "cpu", "--output", output]
    assert run(capsys, figures / "b.png", *arguments, "--model", small_checkpoint)[0] == 0
    (panel,) = json.loads(output.read_text(encoding="utf-8"))["panels"]
    assert panel["type"] in PROMPTS
    record = json.loads((tmp_path / "panels.jsonl.run.json").read_text(encoding="utf-8"))
    assert record["image_types"]["model"] == str(small_checkpoint) and len(record["image_types"]["weights"]) == 16


def test_types_below_the_threshold_are_unknown(figures, detector, small_checkpoint, capsys):
    by_model = ["--model", small_checkpoint, "--unknown-below"]
    _, ((panel,),), _ = panels_of(run(capsys, figures / "b.png", *by_model, "0.999"))
    assert panel["type"] == panel["group"] == "unknown" and panel["type_score"] < 0.999
    _, ((panel,),), _ = panels_of(run(capsys, figures / "b.png", *by_model, "0.001"))
    assert panel["type"] in PROMPTS
    by_detector = ["--detector", detector, "--device", "cpu", "--unknown-below"]
    _, ((panel,),), _ = panels_of(run(capsys, figures / "b.png", *by_detector, "0.6"))
    assert (panel["type"], panel["group"]) == ("unknown", "unknown") and 0.4 < panel["type_score"] < 0.6
    _, ((panel,),), _ = panels_of(run(capsys, figures / "b.png", *by_detector, "0.4"))
    assert panel["type"] in ("x", "y")


def test_a_threshold_is_refused_for_a_detector_that_tells_no_types(figures, detector, capsys):
    config = json.loads((detector / "config.json").read_text(encoding="utf-8"))
    del config["image_types"]
    (detector / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (detector / "model.safetensors").unlink()
    PanelDetectionModel(PanelDetectionConfig.from_dict(config)).save_pretrained(detector)
    status, rows, error = run(capsys, figures / "b.png", "--detector", detector, "--unknown-below", "0.5")
    assert status == 2 and not rows and "Omit --unknown-below, or pass --model" in " ".join(error.split())


def panels_of(result):
    status, rows, error = result
    return status, [row["panels"] for row in rows], error


def test_transparent_parts_of_crops_are_white(figures, small_checkpoint, tmp_path, capsys):
    opaque = Image.open(figures / "b.png").convert("RGBA")
    opaque.paste((255, 255, 255, 255), (0, 0, 60, 80))
    hidden = opaque.copy()
    hidden.paste((0, 0, 0, 0), (0, 0, 60, 80))
    opaque.save(tmp_path / "opaque.png")
    hidden.save(tmp_path / "hidden.png")
    _, (first, second), _ = panels_of(
        run(capsys, tmp_path / "opaque.png", tmp_path / "hidden.png", "--model", small_checkpoint)
    )
    assert first == second


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["{figures}", "--captions", "/nowhere.csv"], 1, "--captions /nowhere.csv: the file does not exist"),
        (["{figures}", "--captions", "{other}"], 1, "none of its 1 files is one of the images"),
        (["{figures}", "--detector", "/nowhere/at/all"], 1, "/nowhere/at/all"),
        (["{figures}", "--overlay", "{figures}"], 1, "contains files"),
        (["{figures}", "--device", "cpu"], 2, "--device has no effect with --detector x-y-cut"),
        (["{figures}", "--unknown-below", "0.5"], 2, "--unknown-below has no effect with --detector x-y-cut"),
        (["{figures}", "--model", "{figures}", "--unknown-below", "1.5"], 2, "must be above 0 and at most 1"),
        (["{figures}", "--model", "{figures}", "--trust-remote-code"], 2, "no effect without the folder or Hub id"),
        (["{figures}", "--model", "{figures}"], 1, "a folder of images, not a model"),
        (["{figures}", "--model", "{detector}"], 1, "panels requires a dual encoder"),
        (["{figures}", "--batch-size", "0"], 2, "--batch-size must be at least 1"),
        (["/nowhere"], 1, "/nowhere: the file or folder does not exist"),
    ],
)
def test_an_error_is_a_message_before_any_work(figures, detector, tmp_path, capsys, arguments, status, message):
    (tmp_path / "other.csv").write_text("file,caption\nz.png,x\n", encoding="utf-8")
    filled = [each.format(figures=figures, other=tmp_path / "other.csv", detector=detector) for each in arguments]
    found, rows, error = run(capsys, *filled)
    assert found == status and not rows and message in " ".join(error.split()) and "Traceback" not in error
