"""Drawn compound figures: the same for the same seed, with panels and labels where they say."""

import hashlib
import io
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from biomedclip.processing.panels.annotations import AnnotatedFigure, AnnotatedPanel
from biomedclip.processing.panels.image_types import IMAGE_TYPES
from biomedclip.processing.panels.singles import SingleFigure
from biomedclip.processing.panels.synthesis import compounds, plots
from biomedclip.processing.panels.synthesis.compounds import Single, draw_figure
from biomedclip.processing.panels.synthesis.examples import DrawnFigures, collate, example_of
from biomedclip.processing.panels.synthesis.labels import CLASSES, label_class, random_style
from biomedclip.processing.panels.synthesis.layouts import GRIDS, random_layout
from biomedclip.processing.panels.synthesis.plots import KINDS, draw_plot


def colored(rng, kind):
    """Return a picture of one color, which no other thing in a figure has."""
    color = (int(rng.integers(60, 200)), int(rng.integers(60, 200)), 30)
    return Single(Image.new("RGB", (120, 90), color), "Endoscopy", "color", True)


@pytest.fixture(scope="module")
def figures():
    return [draw_figure(np.random.default_rng([5, number]), colored) for number in range(120)]


def inside(box, size, slack=1):
    return box[0] >= -slack and box[1] >= -slack and box[2] <= size[0] + slack and box[3] <= size[1] + slack


def test_a_quarter_of_figures_has_one_panel_and_others_have_several(figures):
    singles = sum(not figure.is_compound for figure in figures)
    assert 13 <= singles <= 47, "30 are expected"  # 3.5 standard deviations of a binomial distribution
    for figure in figures:
        if not figure.is_compound:
            assert figure.panels[0].box == pytest.approx((0, 0, *figure.image.size)) and figure.panels[0].label is None
    assert len({len(figure.panels) for figure in figures}) > 5


def test_boxes_lie_in_the_figure_and_panels_do_not_overlap(figures):
    for figure in figures:
        for number, panel in enumerate(figure.panels):
            assert inside(panel.box, figure.image.size)
            assert panel.box[2] - panel.box[0] > 3 and panel.box[3] - panel.box[1] > 3
            for other in figure.panels[:number]:
                common_x = min(panel.box[2], other.box[2]) - max(panel.box[0], other.box[0])
                common_y = min(panel.box[3], other.box[3]) - max(panel.box[1], other.box[1])
                assert min(common_x, common_y) <= 1.5


def test_pictures_reach_each_edge_of_their_panel_and_not_beyond(figures):
    checked = 0
    for figure in figures:
        colors = np.asarray(figure.image).astype(int)
        blue = colors[..., 2]
        if (np.abs(blue - 30) < 15).mean() < 0.01 or np.ptp(colors, axis=2).max() < 20:
            continue  # the colors of the figure were changed
        for panel in figure.panels if figure.is_compound else ():
            left, top, right, bottom = (round(edge) for edge in panel.box)
            if min(right - left, bottom - top) < 16:
                continue
            content = blue[max(0, top) : bottom, max(0, left) : right]
            # Blue is 30 in pictures, and after compression still far from white. Letters and arrows cover some of it.
            for strip in (content[:4], content[-4:], content[:, :4], content[:, -4:]):
                checked += 1
                assert (strip < 100).mean() > 0.1
    assert checked > 500


def test_some_figures_have_images_of_one_kind_that_nearly_touch(monkeypatch):
    monkeypatch.setattr(compounds, "MOSAICS", 1.0)
    figures = [draw_figure(np.random.default_rng([6, number]), colored) for number in range(60)]
    distances = []
    for figure in figures:
        for panel in figure.panels if figure.is_compound else ():
            right = [
                other.box[0] - panel.box[2]
                for other in figure.panels
                if other.box[0] >= panel.box[2] - 1
                and min(other.box[3], panel.box[3]) > max(other.box[1], panel.box[1])
            ]
            distances += [min(right)] if right else []
    assert len(distances) > 30 and max(distances) <= 7  # gaps of 4 pixels, widened by a fifth or by rounding
    assert min(distances) < 1


def test_labels_differ_within_a_figure_and_have_boxes_at_their_panel(figures):
    labeled = 0
    for figure in figures:
        names = [panel.label for panel in figure.panels if panel.label is not None]
        assert len(set(names)) == len(names)
        for panel in figure.panels:
            assert (panel.label is None) == (panel.label_box is None)
            if panel.label_box is not None:
                labeled += 1
                assert inside(panel.label_box, figure.image.size, 3) and label_class(panel.label) < len(CLASSES)
                x = (panel.label_box[0] + panel.label_box[2]) / 2
                y = (panel.label_box[1] + panel.label_box[3]) / 2
                assert panel.box[0] - 60 < x < panel.box[2] + 60 and panel.box[1] - 60 < y < panel.box[3] + 60
    assert labeled > 150


def test_layouts_cover_grids_up_to_five_by_five_and_their_cells_do_not_overlap():
    rng = np.random.default_rng(0)
    layouts = [random_layout(rng) for _ in range(600)]
    grids = Counter((layout.rows, layout.columns) for layout in layouts)
    assert grids[1, 2] > grids[3, 3] > 0 and max(rows for rows, _ in GRIDS) == max(columns for _, columns in GRIDS) == 5
    for layout in layouts:
        area = sum((right - left) * (bottom - top) for left, top, right, bottom in layout.cells)
        assert 0.5 < area <= 1 + 1e-9 and len(layout.cells) > 1


def test_labels_are_of_four_kinds_in_six_or_more_fonts_and_8_to_40_pixels_high():
    rng = np.random.default_rng(0)
    styles = [random_style(rng) for _ in range(2000)]
    drawn = [style for style in styles if style is not None]
    assert 100 < len(styles) - len(drawn) < 500, "some figures have no labels"
    assert {style.kind for style in drawn} == {"upper", "lower", "number", "roman"}
    assert len({style.font for style in drawn}) >= 6
    assert {style.place for style in drawn} == {"inside", "above", "below", "left"}
    assert min(style.size for style in drawn) >= 8 and max(style.size for style in drawn) <= 40
    assert [label_class(name) for name in ("A", "a", "12", "iv", "IV", "I", "21")] == [0, 0, 37, 48, 48, 8, -1]


@pytest.mark.parametrize("kind", KINDS)
def test_plots_of_each_kind_are_drawn_and_have_a_type(kind, monkeypatch):
    monkeypatch.setattr(plots, "KINDS", {kind: KINDS[kind]})
    for number in range(3):
        image, image_type = draw_plot(np.random.default_rng(number))
        assert image.mode == "RGB" and min(image.size) > 30 and image_type in IMAGE_TYPES
        assert np.asarray(image).std() > 5


@pytest.fixture
def singles():
    pictures = [Image.new("RGB", (90, 60), (40 * number, 90, 30)) for number in range(4)]
    contents = []
    for picture in pictures:
        file = io.BytesIO()
        picture.save(file, format="PNG")
        contents.append(file.getvalue())
    return [SingleFigure(content, f"PMC{n // 2}", "Ultrasound", True, False) for n, content in enumerate(contents)]


def test_rare_types_are_chosen_more_often_than_they_occur(singles):
    rare = SingleFigure(singles[0].content, "PMC9", "PET", True, False)
    many = [SingleFigure(single.content, f"PMC{n}", "Ultrasound", True, False) for n, single in enumerate(singles * 12)]
    shares = {}
    for balance in (0.0, 0.5, 1.0):
        figures = DrawnFigures([*many, rare], 10, plots=1, plot_share=0.0, balance=balance)
        rng = np.random.default_rng(0)
        chosen = [figures._single(rng, None).image_type for _ in range(400)]
        shares[balance] = np.mean([image_type == "PET" for image_type in chosen])
    assert shares[0.0] < 0.06 < shares[0.5] < 0.25 < 0.4 < shares[1.0] < 0.6


def test_a_figure_is_determined_by_seed_and_index(singles):
    first, second = (DrawnFigures(singles, 10, plots=2, seed=3) for _ in range(2))
    for index in (7, 0):
        one, other = first[index], second[index]
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(first[0]["pixel_values"], first[1]["pixel_values"])
    changed = DrawnFigures(singles, 10, plots=2, seed=4)
    assert not torch.equal(first[0]["pixel_values"], changed[0]["pixel_values"])


def test_layouts_and_labels_of_a_seed_never_change():
    rng = np.random.default_rng([0, 0])
    drawn = repr([(random_layout(rng), random_style(rng)) for _ in range(20)])
    assert hashlib.sha256(drawn.encode()).hexdigest()[:16] == "190667a57e643a43"


def test_examples_are_tensors_in_parts_of_the_longer_side(figures):
    figure = next(figure for figure in figures if figure.is_compound and figure.panels[0].label_box)
    example = example_of(figure, 64)
    assert example["pixel_values"].shape == (3, 64, 64) and example["pixel_values"].dtype == torch.uint8
    expected = torch.tensor([panel.box for panel in figure.panels]) / max(figure.image.size)
    torch.testing.assert_close(example["boxes"], expected.float())
    assert example["types"].tolist() == [IMAGE_TYPES.index("Endoscopy")] * len(figure.panels)
    assert len(example["letters"]) == len(example["label_boxes"]) and example["compound"] == 1
    batch = collate([example, example])
    assert batch["pixel_values"].shape == (2, 3, 64, 64) and batch["pixel_values"].abs().max() <= 1
    assert len(batch["labels"]) == 2 and "pixel_values" not in batch["labels"][0]


def test_annotated_figures_are_a_part_of_the_examples_with_the_labels_that_are_known(singles):
    picture = Image.new("RGB", (400, 200), "white")
    file = io.BytesIO()
    picture.save(file, format="PNG")
    boxes = [(10.0, 10.0, 190.0, 190.0), (210.0, 10.0, 390.0, 190.0)]
    unknown = AnnotatedFigure(file.getvalue(), tuple(AnnotatedPanel(box, "A") for box in boxes), True, "PMC1")
    label = (12.0, 12.0, 30.0, 30.0)
    known = tuple(AnnotatedPanel(box, name, label, "PET") for box, name in zip(boxes, "AB", strict=True))
    options = {"plots": 2, "annotated_share": 1.0}
    example = DrawnFigures(singles, 1, annotated=[unknown], **options)[0]
    assert "label_boxes" not in example and example["compound"] == 1 and (example["types"] == -1).all()
    drawn = DrawnFigures(singles, 40, annotated=[AnnotatedFigure(file.getvalue(), known, True, "PMC1")], **options)
    figure = next(figure for figure in map(drawn.figure, range(40)) if figure.image.size == (400, 200))
    assert [panel.box for panel in figure.panels] == boxes and figure.panels[0].label_box == label
    assert drawn[0]["letters"].tolist() == [0, 1] and len(drawn[0]["label_boxes"]) == 2
    assert len({figure.image.size for figure in map(drawn.figure, range(40))}) > 10, "cut and scaled at random"
    mixed = DrawnFigures(singles, 400, annotated=[unknown], plots=2, annotated_share=0.25)
    share = np.mean(["label_boxes" not in example_of(mixed.figure(number), 64) for number in range(100)])
    assert 0.1 < share < 0.4
