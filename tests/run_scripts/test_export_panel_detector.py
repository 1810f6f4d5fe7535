"""`biomedclip export` of a panel detector, and `biomedclip panels` with the result."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from biomedclip import (
    ExportedPanelDetector,
    PanelDetectionConfig,
    PanelDetectionImageProcessor,
    PanelDetectionModel,
)
from biomedclip.processing.panels.detection import PanelDetector
from biomedclip.processing.panels.synthesis.drawn_singles import figures_without_data
from biomedclip.run_scripts.main import main
from biomedclip.run_scripts.panel_rows import exports
from biomedclip.run_scripts.panel_rows.exports import measure_errors


SMALL = {"image_size": 64, "widths": [8] * 6, "depths": [0] * 6, "neck_width": 8}


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A detector with random weights, for which all figures have several panels."""
    folder = tmp_path_factory.mktemp("source") / "detector"
    torch.manual_seed(0)
    model = PanelDetectionModel(PanelDetectionConfig(printed_labels=["A", "B"], image_types=["x", "y"], **SMALL))
    torch.nn.init.constant_(model.compound_head.bias, 5.0)
    torch.nn.init.normal_(model.panel_head.score.weight)
    torch.nn.init.zeros_(model.panel_head.score.bias)
    model.save_pretrained(folder)
    PanelDetectionImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """A folder with six figures and a damaged one."""
    folder = tmp_path_factory.mktemp("figures") / "figures"
    folder.mkdir()
    for number in range(6):
        noise = np.random.default_rng(number).integers(0, 256, (40 + number, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:200])
    return folder


@pytest.fixture(scope="module")
def exported(detector, figures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "out"
    precisions = ["--precision", "float32", "int8"]
    assert main(["export", str(detector), str(folder), *precisions, "--images", str(figures)]) == 0
    return folder


def run(capsys, *arguments):
    capsys.readouterr()
    status = main([*map(str, arguments)])
    output = capsys.readouterr()
    return status, output.out, " ".join(output.err.split())


@pytest.mark.slow
def test_the_graphs_and_their_errors_are_written(exported):
    assert {path.name for path in (exported / "onnx").iterdir()} == {"model.onnx", "model_int8.onnx"}
    report = json.loads((exported / "export_report.json").read_text(encoding="utf-8"))
    assert report["precision"] == "float32" and list(report["errors"]) == ["float32", "int8"]
    assert report["calibration_figures"] == 3
    for name, largest in (("float32", 1e-5), ("int8", 0.1)):
        error = report["errors"][name]
        assert error["figures"] == 3 and 0 < error["largest_score_difference"] < largest
        assert 0 < error["largest_box_difference"] < largest
    assert report["errors"]["float32"]["same_number_of_panels"] == 1.0


@pytest.mark.slow
def test_panels_are_those_of_the_detector(exported, detector, figures, capsys):
    paths = [figures / f"{number}.png" for number in range(6)]
    _, expected, _ = run(capsys, "panels", *paths, "--detector", detector, "--device", "cpu")
    status, found, _ = run(capsys, "panels", *paths, "--detector", exported)
    assert status == 0
    rows = [[json.loads(line) for line in text.splitlines() if line.startswith("{")] for text in (found, expected)]
    assert len(rows[0]) == 6 and any(len(row["panels"]) > 1 for row in rows[1])
    for ours, theirs in zip(*rows, strict=True):
        assert [panel["box"] for panel in ours["panels"]] == [panel["box"] for panel in theirs["panels"]]
        for key in ("label", "type", "group"):
            assert [panel[key] for panel in ours["panels"]] == [panel[key] for panel in theirs["panels"]]


@pytest.mark.slow
def test_it_is_evaluated_like_the_detector(exported, figures, tmp_path, capsys):
    rows = [{"file": f"{number}.png", "panels": [{"box": [0, 0, 60, 40 + number]}]} for number in range(6)]
    (tmp_path / "gold.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    gold = ["evaluate", "panels", "--data", tmp_path / "gold.jsonl", "--images", figures]
    status, _, _ = run(capsys, *gold, "--detector", exported, "--output-dir", tmp_path / "results")
    model = json.loads((tmp_path / "results" / "results.json").read_text(encoding="utf-8"))["model"]
    assert status == 0 and model["type"] == "biomedclip_panel_detection" and len(model["weights"]) == 16


@pytest.mark.slow
def test_figures_are_drawn_without_images_and_none_for_float32_are_calibrated(detector, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(exports, "CALIBRATION", 2)
    monkeypatch.setattr(exports, "MEASUREMENT", 1)
    status, out, _ = run(capsys, "export", detector, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "export_report.json").read_text(encoding="utf-8"))
    assert status == 0 and report["calibration_figures"] == 0 and report["error"]["figures"] == 1
    assert "largest difference" in out and max(map(len, out.splitlines())) <= 80
    status, _, _ = run(capsys, "export", detector, tmp_path / "out", "--precision", "int8", "--overwrite")
    report = json.loads((tmp_path / "out" / "export_report.json").read_text(encoding="utf-8"))
    assert status == 0 and report["calibration_figures"] == 2 and report["precision"] == "int8"


@pytest.mark.slow
def test_the_detector_of_the_package_is_exported_by_its_name(figures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, _ = run(capsys, "export", exports.OWN_DETECTOR, tmp_path / "out", "--images", figures / "0.png")
    assert status == 0
    model, packaged = ExportedPanelDetector(tmp_path / "out"), PanelDetector.from_pretrained()
    pixels = packaged.image_processor(Image.open(figures / "0.png"), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels).logits, packaged.model(pixels).logits, rtol=0, atol=1e-3)
    (tmp_path / exports.OWN_DETECTOR).mkdir()
    status, _, error = run(capsys, "export", exports.OWN_DETECTOR, tmp_path / "other")
    assert status == 1 and "Traceback" not in error, "a folder of this name comes first"


def test_drawn_figures_are_determined_by_the_seed():
    first, again, other = (figures_without_data(3, seed).figure(0).image for seed in (0, 0, 1))
    assert first.tobytes() == again.tobytes() and first.tobytes() != other.tobytes()


class Moved(torch.nn.Module):
    """A detector whose scores and boxes differ from those of another one by fixed numbers."""

    device = torch.device("cpu")

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.config = model.config

    def forward(self, pixel_values):
        output = self.model(pixel_values)
        output.logits[0, :-5] = -9.0
        output.pred_boxes = output.pred_boxes + 0.25
        return output


def test_the_error_is_the_largest_difference_of_scores_and_of_boxes_that_are_found(detector):
    model = PanelDetectionModel.from_pretrained(detector).eval()
    processor = PanelDetectionImageProcessor.from_pretrained(detector)
    image = Image.effect_noise((60, 60), 90)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        scores = model(pixels).logits.sigmoid()
    exact, moved = (PanelDetector(each, processor) for each in (model, Moved(model)))
    assert (scores >= 0.3).any()
    error = measure_errors(exact, {"moved": moved, "same": exact}, [image, image])
    changed = torch.full_like(scores, -9.0).sigmoid()
    changed[0, -5:] = scores[0, -5:]
    assert error["moved"]["largest_score_difference"] == pytest.approx((scores - changed).abs().max().item(), abs=1e-6)
    assert error["moved"]["largest_box_difference"] == pytest.approx(0.25, abs=1e-6)
    assert error["moved"]["same_number_of_panels"] == 0.0
    assert error["same"]["same_number_of_panels"] == 1.0 and error["same"]["largest_score_difference"] == 0.0
    torch.nn.init.zeros_(model.panel_head.score.weight)
    torch.nn.init.constant_(model.panel_head.score.bias, -9.0)
    assert measure_errors(exact, {"same": exact}, [image])["same"]["largest_box_difference"] is None


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--texts", "labels.txt"], 2, "--texts has no effect"),
        (["--format", "openvino"], 1, "panel detectors are exported to onnx only"),
        (["--precision", "float16"], 1, "panel detectors are exported in float32 and int8 only"),
        (["--images", "/nowhere"], 1, "/nowhere: the file or folder does not exist"),
        (["--images", "{figures}/cut.png"], 1, "none of the 1 images can be read"),
    ],
)
def test_an_option_without_effect_is_an_error(detector, figures, tmp_path, capsys, arguments, status, message):
    filled = [each.format(figures=figures) for each in arguments]
    found, _, error = run(capsys, "export", detector, tmp_path / "out", *filled)
    assert found == status and message in error and "Traceback" not in error
    assert not (tmp_path / "out" / "onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["panels", "{figures}", "--detector", "{exported}", "--device", "cuda"], 2, "runs only on the CPU"),
        (["panels", "{figures}", "--detector", "{exported}", "--trust-remote-code"], 2, "contains no code"),
        (["panels", "{figures}", "--model", "{exported}"], 1, "Pass an exported dual encoder instead"),
        (["panels", "{figures}", "--detector", "{other}"], 1, "makes figures of 32 pixels, but the graph reads 64"),
        (["classify", "{figures}", "--model", "{exported}", "--labels", "a", "b"], 1, "an exported dual encoder"),
        (["export", "{detector}", "{exported}"], 1, "is not empty"),
    ],
)
def test_an_exported_detector_is_refused_where_it_cannot_run(
    detector, exported, figures, tmp_path, capsys, arguments, status, message
):
    other = tmp_path / "other"
    (other / "onnx").mkdir(parents=True)
    for name in ("config.json", "export.json", "onnx/model.onnx"):
        (other / name).write_bytes((exported / name).read_bytes())
    PanelDetectionImageProcessor(size={"height": 32, "width": 32}).save_pretrained(other)
    names = {"detector": detector, "exported": exported, "figures": figures, "other": other}
    found, _, error = run(capsys, *(each.format(**names) for each in arguments))
    assert found == status and message in error and "Traceback" not in error
