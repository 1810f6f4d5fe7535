"""The exported panel detector beside the model: the same panels in float32, almost the same in 8 bits."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from biomedclip import (
    ExportedModel,
    ExportedPanelDetector,
    PanelDetectionConfig,
    PanelDetectionImageProcessor,
    PanelDetectionModel,
    export_panel_detector,
)
from biomedclip.panel_detector_export import OUTPUTS
from biomedclip.processing.panels.detection import PanelDetector
from biomedclip.processing.panels.synthesis.drawn_singles import figures_without_data


pytestmark = pytest.mark.slow
SMALL = {"image_size": 64, "widths": [8, 8, 16, 16, 16, 16], "depths": [0, 1, 1, 0, 0, 0], "neck_width": 16}
PROCESSOR = PanelDetectionImageProcessor(size={"height": 64, "width": 64})


def halves(across: bool, gap: int = 4, shade: int = 0) -> Image.Image:
    """Return a figure of two panels, beside each other or one above the other."""
    image = np.full((64, 64), 255, dtype=np.uint8)
    image[:, : 32 - gap // 2] = image[:, 32 + gap // 2 :] = shade
    return Image.fromarray(image if across else image.T)


@pytest.fixture(scope="module")
def model() -> PanelDetectionModel:
    """A network that has learned to find two panels beside or above each other."""
    torch.manual_seed(0)
    model = PanelDetectionModel(PanelDetectionConfig(printed_labels=["A", "B"], image_types=["x", "y", "z"], **SMALL))
    boxes = torch.tensor([[0.0, 0.0, 0.47, 1.0], [0.53, 0.0, 1.0, 1.0]])
    others = {"types": torch.tensor([0, 1]), "compound": torch.tensor(1)}
    truth = [{"boxes": boxes, **others}, {"boxes": boxes[:, [1, 0, 3, 2]], **others}]
    pixels = PROCESSOR([halves(True), halves(False)], return_tensors="pt")["pixel_values"]
    optimizer = torch.optim.AdamW(model.train().parameters(), 0.01)
    for _ in range(80):
        loss = model(pixels, labels=truth).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def inputs(count: int, seed: int = 0) -> torch.Tensor:
    """Return drawn figures, figures of two panels, and noise."""
    drawn = figures_without_data(2, seed)
    figures = [halves(True), halves(False), *(drawn.figure(number).image for number in range(2))]
    pixels = PROCESSOR(figures, return_tensors="pt")["pixel_values"]
    noise = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.cat([pixels, noise])[:count]


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    calibration = [
        PROCESSOR(halves(True, gap, shade), return_tensors="pt")["pixel_values"]
        for gap in (2, 4, 6)
        for shade in (0, 40)
    ]
    export_panel_detector(model, folder, precision=["float32", "int8"], calibration=[*calibration, inputs(6, 1)])
    PROCESSOR.save_pretrained(folder)
    return folder


@pytest.fixture
def damaged(folder, tmp_path):
    """A copy of the export, to change."""
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize("count", [1, 3, 6])
def test_float32_equals_the_model_for_every_batch_size(model, folder, count):
    pixels = inputs(count)
    with torch.inference_mode():
        expected = model(pixels)
    found = ExportedPanelDetector(folder)(pixels)
    for name in OUTPUTS:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-4)
    assert found.pred_boxes.shape == (count, 64, 4)


@pytest.mark.parametrize("count", [1, 3])
def test_8_bits_find_the_same_panels(model, folder, count):
    """Scores differ by less than 0.05, boxes of panels by less than 2 % of the input."""
    pixels = inputs(count)
    with torch.inference_mode():
        expected = model(pixels)
    found = ExportedPanelDetector(folder, precision="int8")(pixels)
    for name in ("logits", "label_logits", "compound_logits"):
        torch.testing.assert_close(found[name].sigmoid(), expected[name].sigmoid(), rtol=0, atol=0.05)
    cells = expected.logits[..., 0].sigmoid() > 0.3
    assert cells.sum() >= 2 * min(count, 2)
    torch.testing.assert_close(found.pred_boxes[cells], expected.pred_boxes[cells], rtol=0, atol=0.02)
    assert not torch.equal(found.logits, ExportedPanelDetector(folder)(pixels).logits)


def test_8_bits_are_smaller(folder):
    sizes = [(folder / "onnx" / name).stat().st_size for name in ("model.onnx", "model_int8.onnx")]
    kinds = [
        {tensor.data_type for tensor in onnx.load(folder / "onnx" / name).graph.initializer}
        for name in ("model.onnx", "model_int8.onnx")
    ]
    assert onnx.TensorProto.INT8 in kinds[1] - kinds[0] and sizes[1] > 0


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_it_takes_the_place_of_the_model(model, folder, precision):
    exported = PanelDetector(ExportedPanelDetector(folder, precision=precision), PROCESSOR)
    figures = [halves(True), Image.new("RGB", (80, 40), "gray")]
    for found, expected in zip(exported(figures), PanelDetector(model, PROCESSOR)(figures), strict=True):
        assert (found.compound, len(found.panels)) == (expected.compound, len(expected.panels))
        assert [panel.image_type.name for panel in found.panels] == [panel.image_type.name for panel in expected.panels]
    assert exported.image_types == ("x", "y", "z")
    assert len(exported([halves(True)])[0].panels) == 2


def test_graphs_name_no_files_of_this_machine(folder):
    for path in (folder / "onnx").iterdir():
        assert b"modeling_panel_detection.py" not in path.read_bytes()


def test_the_model_stays_as_it_was(model, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_panel_detector(model.train(), tmp_path / "out")
    assert model.training
    model.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert ExportedPanelDetector(tmp_path / "out")(inputs(1)).logits.shape == (1, 64, 1)


def test_the_number_of_threads_is_that_of_pytorch_or_given(folder, monkeypatch):
    import onnxruntime

    options = []
    start = onnxruntime.InferenceSession

    def recorded(content, settings, **keywords):
        options.append(settings.intra_op_num_threads)
        return start(content, settings, **keywords)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recorded)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    ExportedPanelDetector(folder)
    ExportedPanelDetector(folder, threads=1)
    assert options == [3, 1]


def changed(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def with_external_data(path, location):
    """Let a weight of the graph be read from another file."""
    graph = onnx.load(path)
    tensor = graph.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(graph.SerializeToString())


def of_another_model(path):
    value = onnx.helper.make_tensor_value_info("pixel_values", onnx.TensorProto.FLOAT, ["batch", 3, 64, 64])
    result = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3, 64, 64])
    node = onnx.helper.make_node("Relu", ["pixel_values"], ["logits"])
    graph = onnx.helper.make_graph([node], "other", [value], [result])
    opset = onnx.helper.make_opsetid("", 20)
    path.write_bytes(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda folder: (folder / "export.json").unlink(), FileNotFoundError, "Export the model with"),
        (lambda folder: (folder / "export.json").write_text("{"), ValueError, "export.json is not JSON"),
        (lambda folder: (folder / "export.json").write_text("[]"), ValueError, "Export the model again"),
        (lambda folder: changed(folder / "export.json", model_type=None), ValueError, "an exported dual encoder. Pass"),
        (lambda folder: changed(folder / "export.json", precisions="int8"), ValueError, "precisions is missing"),
        (lambda folder: changed(folder / "export.json", format=["onnx"]), ValueError, "format or precisions"),
        (lambda folder: changed(folder / "export.json", precisions=["float16"]), ValueError, "float32 and int8 only"),
        (lambda folder: (folder / "config.json").unlink(), FileNotFoundError, "config.json is missing"),
        (lambda folder: changed(folder / "config.json", image_size="x"), ValueError, "config.json is not the config"),
        (
            lambda folder: changed(folder / "config.json", image_size=128),
            ValueError,
            "logits, pixel_values, pred_boxes",
        ),
        (lambda folder: changed(folder / "config.json", printed_labels=["A"]), ValueError, "letter_logits differ"),
        (lambda folder: changed(folder / "config.json", image_types=["x"] * 4), ValueError, "type_logits differ"),
        (lambda folder: (folder / "onnx/model.onnx").unlink(), FileNotFoundError, "model.onnx is missing"),
        (lambda folder: (folder / "onnx/model.onnx").write_bytes(b"graph"), ValueError, "damaged or no ONNX graph"),
        (lambda folder: (folder / "onnx/model.onnx").write_bytes(b""), ValueError, "damaged or no ONNX graph"),
        (lambda folder: with_external_data(folder / "onnx/model.onnx", "../w"), ValueError, "refers to other files"),
        (lambda folder: with_external_data(folder / "onnx/model.onnx", "w"), ValueError, "refers to other files"),
        (lambda folder: of_another_model(folder / "onnx/model.onnx"), ValueError, "compound_logits, label_boxes"),
    ],
)
def test_a_damaged_or_foreign_folder_gives_an_error_with_a_remedy(damaged, change, error, message):
    change(damaged)
    with pytest.raises(error, match=message) as raised:
        ExportedPanelDetector(damaged)
    assert str(damaged) in str(raised.value) or "precision" in str(raised.value)


def test_outputs_of_other_shapes_than_the_graph_states_are_an_error(folder):
    detector = ExportedPanelDetector(folder)
    run = detector._session.run
    detector._session = SimpleNamespace(
        run=lambda *arguments: [array[:, :5] for array in run(*arguments)[:6]] + run(*arguments)[6:]
    )
    with pytest.raises(ValueError, match="Export the detector again"):
        detector(inputs(1))


def test_a_truncated_graph_is_an_error_at_every_length(damaged):
    path = damaged / "onnx" / "model.onnx"
    content = path.read_bytes()
    for length in range(1, len(content), len(content) // 20):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="Export the detector again"):
            ExportedPanelDetector(damaged)


def test_a_precision_that_was_not_exported_and_wrong_arguments_are_refused(model, folder, tmp_path):
    with pytest.raises(ValueError, match="contains graphs in float32, int8, but `precision` is 'float16'"):
        ExportedPanelDetector(folder, precision="float16")
    with pytest.raises(ValueError, match="an exported biomedclip_panel_detection. Pass an exported dual encoder"):
        ExportedModel(folder)
    for precision, calibration, message in (
        ("float16", None, "float32 and int8 only"),
        ([], None, "`precision` is empty"),
        ("int8", None, "`calibration` is required"),
        ("int8", [], "`calibration` is required"),
        ("float32", [inputs(1)], "has no effect without it"),
    ):
        with pytest.raises(ValueError, match=message):
            export_panel_detector(model, tmp_path / "out", precision=precision, calibration=calibration)
    assert not (tmp_path / "out").exists()
