"""The network that finds panels: its outputs, its loss, and loading it through transformers."""

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, pipeline

from biomedclip import PanelDetectionConfig, PanelDetectionImageProcessor, PanelDetectionModel, modeling_panel_detection
from biomedclip.modeling_panel_detection import _boxes, _generalized_iou, _targets, detection_losses


SMALL = {"image_size": 64, "widths": [4, 8, 8, 8, 8, 8], "depths": [0, 0, 0, 0, 0, 0], "neck_width": 8}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PanelDetectionModel(
        PanelDetectionConfig(printed_labels=["A", "B"], image_types=["x", "y", "z"], **SMALL)
    ).eval()


def labels(**changes):
    truth = {
        "boxes": torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]),
        "types": torch.tensor([0, -1]),
        "label_boxes": torch.tensor([[0.02, 0.02, 0.1, 0.1]]),
        "letters": torch.tensor([1]),
        "compound": torch.tensor(1),
    }
    return truth | changes


NOTHING = labels(
    boxes=torch.zeros(0, 4),
    types=torch.zeros(0, dtype=torch.long),
    label_boxes=torch.zeros(0, 4),
    letters=torch.zeros(0, dtype=torch.long),
    compound=torch.tensor(-1),
)


def test_the_published_network_is_small():
    config = PanelDetectionConfig(printed_labels=["A"] * 54, image_types=["x"] * 30)
    assert 2e6 < sum(parameter.numel() for parameter in PanelDetectionModel(config).parameters()) < 4e6


def test_outputs_have_a_row_for_each_cell(model):
    output = model(torch.zeros(2, 3, 64, 64))
    assert output.logits.shape == (2, 64, 1) and output.pred_boxes.shape == (2, 64, 4)
    assert output.type_logits.shape == (2, 64, 3) and output.letter_logits.shape == (2, 64, 2)
    assert output.compound_logits.shape == (2,) and output.loss is None
    assert output.logits.sigmoid().max() < 0.1, "a new network finds nothing"


def test_boxes_are_measured_from_the_center_of_their_cell():
    distances = torch.zeros(1, 4, 2, 2)
    distances[0, :, 0, 1] = torch.tensor([0.25, 0.125, 0.125, 0.5])  # left, top, right and bottom of (0.75, 0.25)
    center_x, center_y, width, height = _boxes(distances)[0, 1].tolist()
    assert (center_x - width / 2, center_y - height / 2) == (0.5, 0.125)
    assert (center_x + width / 2, center_y + height / 2) == (0.875, 0.75)


def test_generalized_iou_equals_that_of_torchvision():
    ops = pytest.importorskip("torchvision.ops")
    corners = torch.rand(2, 50, 2, 2, generator=torch.Generator().manual_seed(0)).sort(dim=2).values.flatten(2)
    expected = ops.generalized_box_iou(*corners).diagonal()
    torch.testing.assert_close(_generalized_iou(*corners), expected)


def test_targets_are_one_at_centers_and_belong_to_the_smallest_box():
    boxes = torch.tensor([[0.6, 0.6, 0.9, 0.9], [0.0, 0.0, 1.0, 1.0]])
    heat, gold, classes, weights = _targets(boxes, torch.tensor([5, 6]), 8, spread=0.5)
    large, small = 8 * 4 + 4, 8 * 6 + 6
    assert torch.nonzero(heat == 1).flatten().tolist() == [large, small] and heat.max() == 1
    assert torch.equal(gold[small], boxes[0]) and torch.equal(gold[large], boxes[1])
    assert (classes[small], classes[large]) == (5, 6) and set(classes.tolist()) == {-1, 5, 6}
    assert weights[classes == 5].sum() == pytest.approx(1) and weights[classes == -1].sum() == 0


def test_the_loss_of_the_truth_is_almost_zero_and_larger_otherwise(model, monkeypatch):
    truth = labels()
    output = model(torch.zeros(1, 3, 64, 64))
    for scores, boxes, kinds, gold, gold_kinds, spread in (
        ("logits", "pred_boxes", "type_logits", truth["boxes"], truth["types"], 0.12),
        ("label_logits", "label_boxes", "letter_logits", truth["label_boxes"], truth["letters"], 0.3),
    ):
        heat, targets, classes, _ = _targets(gold, gold_kinds, 8, spread)
        output[scores] = (heat.clamp(1e-4, 1 - 1e-4).logit()[None, :, None] + 20 * (heat[None, :, None] == 1)).detach()
        output[boxes] = torch.cat([(targets[:, :2] + targets[:, 2:]) / 2, targets[:, 2:] - targets[:, :2]], 1)[None]
        output[kinds] = 50 * torch.nn.functional.one_hot(classes.clamp(min=0), output[kinds].shape[-1])[None].float()
    output.compound_logits = torch.tensor([50.0])
    certain = detection_losses(output, [truth])["types"]
    output["type_logits"] = output["type_logits"] * 0.08
    assert detection_losses(output, [truth])["types"] < 0.5 < certain, "a type should not be certain"
    output["type_logits"] = output["type_logits"] / 0.08
    monkeypatch.setattr(modeling_panel_detection, "TYPE_SMOOTHING", 0.0)
    right = detection_losses(output, [truth])
    assert all(value < 0.05 for value in right.values()), right
    output.compound_logits, output.pred_boxes = torch.tensor([-50.0]), output.pred_boxes.flip(-1)
    wrong = detection_losses(output, [truth])
    assert wrong["compound"] > 10 and wrong["boxes"] > 0.2


def test_unknown_labels_and_figures_without_panels_have_a_finite_loss(model):
    output = model(torch.zeros(2, 3, 64, 64), labels=[NOTHING, NOTHING])
    assert torch.isfinite(output.loss) and output.losses["boxes"] == output.losses["compound"] == 0
    output.loss.backward()


def test_figures_whose_labels_are_unknown_teach_panels_only(model):
    known, unknown = labels(), labels()
    del unknown["label_boxes"], unknown["letters"]
    figures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    both = model(figures, labels=[known, unknown]).losses
    alone = model(figures[:1], labels=[known]).losses
    for name in ("labels", "label_boxes", "letters"):
        torch.testing.assert_close(both[name], alone[name])
    none = model(figures[1:], labels=[unknown])
    assert none.losses["labels"] == none.losses["letters"] == 0 and none.losses["panels"] > 0
    none.loss.backward()


def test_a_small_network_learns_two_figures(model):
    torch.manual_seed(0)
    figures = torch.ones(2, 3, 64, 64)
    figures[0, :, :, :30] = figures[0, :, :, 34:] = -1
    figures[1, :, :30] = figures[1, :, 34:] = -1
    below = torch.tensor([[0.0, 0.0, 1.0, 0.47], [0.0, 0.53, 1.0, 1.0]])
    truth = [labels(), labels(boxes=below)]
    optimizer = torch.optim.AdamW(model.train().parameters(), 0.01)
    losses = []
    for _ in range(60):
        loss = model(figures, labels=truth).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 5


def test_a_saved_detector_loads_with_auto_classes_and_runs_in_the_pipeline(model, tmp_path):
    model.save_pretrained(tmp_path)
    PanelDetectionImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path)
    assert isinstance(loaded, PanelDetectionModel)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), PanelDetectionConfig)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert processor.size["height"] == 64
    image = Image.new("RGB", (80, 40), "gray")
    inputs = processor(image, return_tensors="pt")
    assert torch.equal(loaded(**inputs).pred_boxes, model(**inputs).pred_boxes)
    found = pipeline("object-detection", model=str(tmp_path), device="cpu")(image, threshold=0.0)
    assert {each["label"] for each in found} == {"panel"}


@pytest.mark.parametrize(
    ("change", "message"), [({"image_size": 500}, "multiple of 64"), ({"widths": [4]}, "6 entries")]
)
def test_an_impossible_configuration_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PanelDetectionConfig(**(SMALL | change))
