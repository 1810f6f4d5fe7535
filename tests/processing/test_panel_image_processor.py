"""The image processor of the panel detector: squares of figures, and boxes in pixels of the original."""

import numpy as np
import pytest
import torch
from PIL import Image

from biomedclip.processing import PanelDetectionImageProcessor
from biomedclip.processing.image_processing_panel_detection import letterbox, suppressed


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (37, 37), (1, 1), (4000, 3), (640, 480)])
def test_a_figure_of_any_shape_stands_in_the_upper_left_of_a_white_square(size):
    square = letterbox(Image.new("RGB", size, "black"), 64)
    width, height = (max(1, round(side * 64 / max(size))) for side in size)
    assert square.shape == (64, 64, 3)
    assert square[:height, :width].max() == 0
    assert (square[height:] == 255).all() and (square[:, width:] == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_every_mode_is_read(mode):
    image = Image.new("L", (20, 10), 255).convert(mode) if mode != "I;16" else Image.new("I;16", (20, 10), 65535)
    assert letterbox(image, 32).shape == (32, 32, 3)


def test_transparent_parts_are_white():
    square = letterbox(Image.new("RGBA", (10, 10), (0, 0, 0, 0)), 16)
    assert (square == 255).all()


def test_values_are_between_minus_one_and_one():
    values = PanelDetectionImageProcessor()(Image.new("RGB", (8, 4), "black"), return_tensors="pt")["pixel_values"]
    assert values.shape == (1, 3, 512, 512) and values.dtype == torch.float32
    assert values.min() == -1 and values.max() == 1


def test_several_figures_give_a_batch_equal_to_single_ones():
    figures = [Image.effect_noise((90 + 10 * number, 50), 90) for number in range(3)]
    processor = PanelDetectionImageProcessor(size={"height": 64, "width": 64})
    together = processor(figures, return_tensors="np")["pixel_values"]
    assert together.shape == (3, 3, 64, 64)
    for figure, values in zip(figures, together, strict=True):
        assert np.array_equal(processor(figure, return_tensors="np")["pixel_values"][0], values)


def test_suppression_equals_that_of_torchvision():
    ops = pytest.importorskip("torchvision.ops")
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(200, 2, 2, generator=generator).sort(dim=1).values.flatten(1)
    scores = torch.rand(200, generator=generator)
    for overlap in (0.1, 0.5, 0.9):
        assert torch.equal(suppressed(boxes, scores, overlap), ops.nms(boxes, scores, overlap))
    assert suppressed(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []


class Outputs:
    logits = torch.tensor([[[4.0], [3.0], [-9.0]]])
    pred_boxes = torch.tensor([[[0.25, 0.25, 0.5, 0.5], [0.26, 0.25, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]])


def test_boxes_are_in_pixels_of_the_original_and_overlapping_ones_are_removed():
    (found,) = PanelDetectionImageProcessor().post_process_object_detection(Outputs, 0.5, [(200, 400)])
    assert found["boxes"].tolist() == [[0.0, 0.0, 200.0, 200.0]] and found["labels"].tolist() == [0]
    assert found["scores"].tolist() == pytest.approx([torch.tensor(4.0).sigmoid().item()])
    (parts,) = PanelDetectionImageProcessor().post_process_object_detection(Outputs, 0.5)
    assert parts["boxes"].tolist() == [[0.0, 0.0, 0.5, 0.5]]
