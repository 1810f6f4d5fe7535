"""From the output of a network to panels: one panel for a single figure, labels at their panels, reading order."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from biomedclip.processing import PanelDetectionImageProcessor
from biomedclip.processing.panels.detection import PanelDetector, _in_reading_order, _snapped
from biomedclip.processing.panels.figure_panels import Panel, pixel_box


SIDE = 16  # cells of a row
GRID = [(0, 0, 0.45, 0.45), (0.5, 0, 1, 0.45), (0, 0.5, 0.45, 1), (0.5, 0.5, 1, 1)]
LETTERS = ["A", "B", "C", "D", "ii"]
TYPES = ["plot", "scan"]
NO_MARKS = np.zeros((0, 4))


class Network:
    """Returns an output that was written by hand, for figures of any content."""

    device = torch.device("cpu")
    config = SimpleNamespace(printed_labels=LETTERS, image_types=TYPES)

    def __init__(self, panels, labels=(), compound=5.0):
        self.output = SimpleNamespace(compound_logits=torch.tensor([compound]))
        self.output.logits, self.output.pred_boxes, self.output.type_logits = self.cells(panels, 2)
        self.output.label_logits, self.output.label_boxes, self.output.letter_logits = self.cells(labels, 5)

    @staticmethod
    def cells(objects, classes):
        scores = torch.full((1, SIDE * SIDE, 1), -9.0)
        boxes, kinds = torch.zeros(1, SIDE * SIDE, 4), torch.zeros(1, SIDE * SIDE, classes)
        for box, kind in objects:
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            cell = int(y * SIDE) * SIDE + int(x * SIDE)
            scores[0, cell] = 3.0
            boxes[0, cell] = torch.tensor([x, y, box[2] - box[0], box[3] - box[1]])
            kinds[0, cell, kind] = 4.0
        return scores, boxes, kinds

    def eval(self):
        return self

    def __call__(self, pixel_values):
        return self.output


def detect(network, image=None, caption=None):
    image = image or Image.new("RGB", (400, 400), "white")
    detector = PanelDetector(network, PanelDetectionImageProcessor(size={"height": 64, "width": 64}))
    (figure,) = detector([image], [caption])
    return figure


def marks(names):
    return [
        ((box[0] + 0.02, box[1] + 0.02, box[0] + 0.06, box[1] + 0.06), LETTERS.index(name))
        for box, name in zip(GRID, names, strict=False)
    ]


def test_a_compound_figure_has_its_panels_in_pixels_with_labels_and_types():
    figure = detect(Network([(box, number % 2) for number, box in enumerate(GRID)], marks("ABCD")))
    assert figure.compound and figure.compound_score > 0.99
    assert [panel.label for panel in figure.panels] == ["A", "B", "C", "D"]
    assert [panel.box for panel in figure.panels] == [pytest.approx(tuple(400 * edge for edge in box)) for box in GRID]
    assert [panel.image_type.name for panel in figure.panels] == ["plot", "scan"] * 2
    assert all(0.9 < panel.image_type.score < 1 and 0.9 < panel.score < 1 for panel in figure.panels)


def test_a_single_figure_has_one_panel_without_a_label():
    figure = detect(Network([(GRID[0], 1)], marks("A"), compound=-5.0), Image.new("RGB", (300, 200)))
    (panel,) = figure.panels
    assert not figure.compound and panel.box == (0, 0, 300, 200) and panel.label is None
    assert panel.image_type.name == "scan"


def test_without_labels_panels_are_in_reading_order():
    figure = detect(Network([(box, 0) for box in reversed(GRID)]))
    assert [panel.label for panel in figure.panels] == [None] * 4
    assert [panel.box[:2] for panel in figure.panels] == [pytest.approx((400 * box[0], 400 * box[1])) for box in GRID]


def test_the_same_letter_is_not_read_twice():
    network = Network([(box, 0) for box in GRID[:2]], marks("AA"))
    network.output.letter_logits[..., LETTERS.index("B")] += 3.0
    assert {panel.label for panel in detect(network).panels} == {"A", "B"}


def test_roman_numerals_are_written_in_capitals_and_a_distant_label_belongs_to_no_panel():
    far = [((0.46, 0.93, 0.5, 0.97), 0)]
    figure = detect(Network([(box, 0) for box in GRID[:2]], marks(["A", "ii"]) + far))
    assert [panel.label for panel in figure.panels] == ["A", "II"]


def test_a_caption_makes_the_types_that_it_names_more_probable():
    network = Network([(box, 0) for box in GRID[:2]], marks("AB"))
    network.config = SimpleNamespace(printed_labels=LETTERS, image_types=["Light microscopy", "PET"])
    network.output.type_logits[:] = torch.tensor([1.0, 0.0])
    alone = detect(network)
    assert [panel.image_type.name for panel in alone.panels] == ["Light microscopy"] * 2
    captioned = detect(network, caption="Findings: (A) PET before, and (B) after treatment.")
    assert [panel.image_type.name for panel in captioned.panels] == ["PET", "Light microscopy"]
    odds = 25 * math.exp(-1)
    assert captioned.panels[0].image_type.score == pytest.approx(odds / (1 + odds), rel=1e-5)
    shared = detect(network, caption="PET scans (A) before and (B) after treatment.")
    assert [panel.image_type.name for panel in shared.panels] == ["PET"] * 2, "the text for all panels"
    single = detect(Network([(GRID[0], 1)], compound=-5.0), caption="A figure without such words.")
    assert single == detect(Network([(GRID[0], 1)], compound=-5.0))


def test_weak_panels_count_if_the_caption_names_as_many():
    network = Network([(box, 0) for box in GRID], marks("ABC"))
    cells = (network.output.logits[0, :, 0] > 0).nonzero()[:, 0]
    network.output.logits[0, cells[-1]] = math.log(0.12 / 0.88)
    assert len(detect(network).panels) == len(detect(network, caption="(A) CT, (B) MRI, (C) PET.").panels) == 3
    figure = detect(network, caption="(A) One, (B) two, (C) three, (D) four.")
    assert [panel.label for panel in figure.panels] == ["A", "B", "C", "D"]
    network.output.logits[0, cells[-1]] = math.log(0.01 / 0.99)
    assert len(detect(network, caption="(A) One, (B) two, (C) three, (D) four.").panels) == 3


def test_an_image_whose_letter_the_caption_does_not_name_belongs_to_another_panel():
    """Its mark is faint, so without a caption it is C, the next letter."""
    network = Network([(box, 0) for box in GRID[:3]], marks("ABC"))
    cells = (network.output.label_logits[0, :, 0] > 0).nonzero()[:, 0]
    network.output.letter_logits[0, cells[-1]] = 0.0
    assert [panel.label for panel in detect(network).panels] == ["A", "B", "C"]
    figure = detect(network, caption="(A) One and (B) two.")
    assert [panel.label for panel in figure.panels] == ["A", "B"]
    left, top, right, bottom = figure.panels[0].box
    assert bottom > 200 and right < 200, "the third image is below the first"


def test_figures_whose_panels_are_not_found_are_cut_at_empty_stripes():
    image = Image.new("RGB", (420, 200), "white")
    image.paste("black", (0, 0, 200, 200))
    image.paste("black", (220, 0, 420, 200))
    figure = detect(Network([]), image)
    assert figure.compound and [panel.box for panel in figure.panels] == [(0, 0, 200, 200), (220, 0, 420, 200)]
    blank = detect(Network([]))
    assert not blank.compound and len(blank.panels) == 1


def test_edges_move_to_the_nearest_content_and_stay_without_it():
    image = Image.new("RGB", (400, 300), "white")
    image.paste("gray", (50, 60, 200, 160))
    near = np.array([[46.0, 63.0, 204.0, 157.0]])
    assert _snapped(near, image, NO_MARKS).round().tolist() == [[50, 60, 200, 160]]
    far = np.array([[20.0, 20.0, 300.0, 250.0]])
    assert _snapped(far, image, NO_MARKS).tolist() == far.tolist()


def test_printed_labels_beside_a_panel_are_no_part_of_it():
    image = Image.new("RGB", (400, 300), "white")
    image.paste("gray", (50, 60, 200, 160))
    image.paste("black", (120, 163, 126, 169))
    with_label = np.array([[52.0, 61.0, 199.0, 168.0]])
    assert _snapped(with_label, image, NO_MARKS)[0, 3] == 169
    assert _snapped(with_label, image, np.array([[120.0, 163.0, 126.0, 169.0]]))[0, 3] == 160


def test_reading_order_ends_for_boxes_without_height():
    flat = [Panel((0, 5, 10, 5), 1.0), Panel((0, 5, 10, 4), 1.0), Panel((0, 0, 10, 10), 1.0)]
    assert len(_in_reading_order(flat)) == 3


def test_reading_order_follows_complete_labels_and_otherwise_rows():
    boxes = [(0, 0, 10, 10), (20, 1, 30, 12), (0, 20, 10, 30)]
    named = [Panel(box, 1.0, label) for box, label in zip(boxes, "CAB", strict=True)]
    assert [panel.label for panel in _in_reading_order(named)] == ["A", "B", "C"]
    roman = [Panel(boxes[0], 0.5, name) for name in ("X", "IV", "V", "I", "II", "III", "VI", "VII", "VIII", "IX")]
    assert [panel.label for panel in _in_reading_order(roman)] == "I II III IV V VI VII VIII IX X".split()
    partly = [Panel(boxes[2], 1.0), Panel(boxes[1], 1.0, "A"), Panel(boxes[0], 1.0, "B")]
    assert [panel.box for panel in _in_reading_order(partly)] == boxes


@pytest.mark.parametrize(
    ("box", "pixels"),
    [
        ((0.4, 1.6, 9.6, 5.5), (0, 2, 10, 6)),
        ((-3, -3, 99, 99), (0, 0, 20, 10)),
        ((4.0, 4.0, 4.0, 4.0), (4, 4, 5, 5)),
        ((20.0, 10.0, 20.0, 10.0), (19, 9, 20, 10)),
        ((7.0, 3.0, 5.0, 1.0), (7, 3, 8, 4)),
    ],
)
def test_a_box_has_whole_pixels_inside_the_figure_and_at_least_one(box, pixels):
    assert pixel_box(box, (20, 10)) == pixels


class OtherProcessor:
    """Image processor of another detector of transformers."""

    def __call__(self, images, return_tensors):
        return PanelDetectionImageProcessor(size={"height": 64, "width": 64})(images, return_tensors=return_tensors)

    def post_process_object_detection(self, outputs, threshold, target_sizes):
        boxes = torch.tensor([[200.0, 0, 400, 300], [0, 0, 190, 300], [2, 0, 190, 300]])
        return [{"boxes": boxes, "scores": torch.tensor([0.8, 0.9, 0.5]), "labels": torch.zeros(3)}]


def test_another_detector_of_transformers_tells_boxes_only():
    class Other:
        device = torch.device("cpu")

        def eval(self):
            return self

        def __call__(self, pixel_values):
            return SimpleNamespace(logits=None)

    (figure,) = PanelDetector(Other(), OtherProcessor())([Image.new("RGB", (400, 300))])
    assert figure.compound and [panel.box[0] for panel in figure.panels] == [0, 200]
    assert all(panel.label is panel.image_type.name is None for panel in figure.panels)
    assert json.dumps([panel.box for panel in figure.panels])
