"""Annotated figures are read from PanelSeg, MedICaT and JSON lines. Faulty ones are left out, counted and listed."""

import json
import logging

import pytest
from PIL import Image

from biomedclip.processing.panels.annotations import (
    AnnotatedCaption,
    AnnotatedPanel,
    read_annotations,
    read_split_captions,
)


COLUMNS = "figure,panel_x0,panel_y0,panel_x1,panel_y1,label_x0,label_y0,label_x1,label_y1,label"
LEFT, RIGHT = [0, 0, 90, 100], [110, 0, 200, 100]


@pytest.fixture
def images(tmp_path):
    """A folder with pictures of 200 x 100 pixels, and those of an article in a folder of its own."""
    folder = tmp_path / "images"
    for name in ("a.png", "b.png", "PMC7.2/c.png", "PMC7.10/c.png", "PMC8/d.png", "abc_2-Figure1-1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (200, 100), "white").save(folder / name)
    (folder / "damaged.png").write_bytes(b"no picture")
    return folder


def write_lines(folder, *rows):
    path = folder / "table.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def write_panelseg(folder, *rows):
    path = folder / "panelseg.csv"
    path.write_text("\n".join([COLUMNS, *rows]), encoding="utf-8")
    return path


def row(file="a.png", *boxes, **fields):
    return {"file": file, "panels": [{"box": box} for box in boxes or (LEFT, RIGHT)], **fields}


def test_a_table_of_panelseg_has_panels_with_labels_and_their_places(tmp_path, images):
    table = write_panelseg(
        tmp_path,
        "a.png,0,0,90,100,1,2,11,12,a",
        "PMC7_c.png,0,0,200,100,,,,,",
        "a.png,110,0,200,100,111,2,121,12,b",
        "PMC8_d.png,0,0,90,100,,,,,II",
    )
    first, second, third = read_annotations(table, images, strict=True)
    assert first.panels == (
        AnnotatedPanel((0, 0, 90, 100), "A", (1, 2, 11, 12)),
        AnnotatedPanel((110, 0, 200, 100), "B", (111, 2, 121, 12)),
    )
    assert (first.compound, first.article, first.has_label_boxes) == (True, "a.png", True)
    assert (second.compound, second.article, second.has_label_boxes) == (False, "PMC7", True)
    assert third.compound is None and not third.has_label_boxes
    assert third.panels[0].label == "II"
    assert first.open().size == (200, 100) and first.open().mode == "RGB"


def test_a_table_of_medicat_has_panels_around_the_corners_and_no_labels(tmp_path, images):
    corners = [[5, 2], [5, 48], [45, 48], [44, 2]]
    figure = {"pdf_hash": "abc", "fig_uri": "2-Figure1-1.png", "fig_key": "Figure1", "width": 100, "height": 50}
    panels = [{"points": corners}, {"points": [[x + 50, y] for x, y in corners]}]
    (found,) = read_annotations(write_lines(tmp_path, {**figure, "subfigures": panels}), images, strict=True)
    assert [panel.box for panel in found.panels] == [(10, 4, 90, 96), (110, 4, 190, 96)], "scaled to the picture"
    assert (found.compound, found.article, found.has_labels, found.has_label_boxes) == (True, "abc", False, False)


def test_lines_in_our_format_have_types_and_the_parts_of_the_caption(tmp_path, images):
    panels = [{"box": LEFT, "label": "a", "type": "Ultrasound", "label_box": [1, 1, 9, 9]}, {"box": RIGHT}]
    texts = {
        "caption": "Heart. (a) Atrium.",
        "sub_captions": {"a": "Atrium."},
        "context": "Heart.",
        "context_extra": ["Bars."],
    }
    table = write_lines(
        tmp_path, {"file": "c.png", "pmcid": "PMC7", "compound": True, "panels": panels, **texts}, row("b.png")
    )
    first, second = read_annotations(table, images, strict=True)
    assert first.panels[0] == AnnotatedPanel(tuple(LEFT), "A", (1, 1, 9, 9), "Ultrasound")
    assert first.split_caption == AnnotatedCaption(
        "Heart. (a) Atrium.", ("A",), {"A": "Atrium."}, {"A": "Heart. Atrium. Bars."}, "PMC7"
    )
    assert len({first, second}) == 2, "figures can be keys of a cache"
    assert (first.caption, second.compound, second.split_caption, second.caption) == (
        texts["caption"],
        None,
        None,
        None,
    )


def test_rows_of_the_command_panels_can_be_annotations(tmp_path, images):
    panels = [
        {"box": LEFT, "label": "A", "score": 0.9, "type": "unknown", "type_score": 0.1, "sub_caption": "CT."},
        {"box": RIGHT, "label": None, "score": 0.9, "type": "Endoscopy", "type_score": 0.4, "sub_caption": None},
    ]
    written = {
        "file": "scans/a.png",
        "caption": "(A) CT.",
        "compound": True,
        "compound_score": 1.0,
        "panels": panels,
        "error": None,
    }
    (figure,) = read_annotations(write_lines(tmp_path, written), images, strict=True)
    assert figure.file == images / "a.png" and figure.split_caption.panels == {"A": "CT."}
    assert [panel.image_type for panel in figure.panels] == [None, "Endoscopy"]


@pytest.mark.parametrize(
    ("file", "article", "path"),
    [
        ("a.png", "PMC1", "a.png"),
        ("c.png", "PMC7", "PMC7.10/c.png"),
        ("d.png", "PMC8", "PMC8/d.png"),
        ("PMC7.2/c.png", None, "PMC7.2/c.png"),
        ("/somewhere/PMC8/d.png", None, "PMC8/d.png"),
        ("scans\\a.png", None, "a.png"),
    ],
)
def test_pictures_are_found_in_the_folder_or_that_of_their_article(tmp_path, images, file, article, path):
    (figure,) = read_annotations(write_lines(tmp_path, row(file, pmcid=article)), images, strict=True)
    assert figure.file == images / path


FAULTS = [
    (row("a.png", [0, 0, 300, 100]), "outside the picture of 200 x 100 pixels"),
    (row("a.png", [-50, 0, 90, 100]), "outside the picture"),
    (row("a.png", [0, 0, 0, 100]), "which is empty"),
    (row("a.png", [90, 0, 0, 100]), "which is empty"),
    (row("a.png", [0, 0, float("nan"), 100]), "not [left, top, right, bottom]"),
    (row("a.png", [0, 0, 10**400, 100]), "not [left, top, right, bottom]"),
    (row("a.png", [0, 0, "90", 100]), "not [left, top, right, bottom]"),
    (row("a.png", [0, 0, 90]), "not [left, top, right, bottom]"),
    (row("a.png", None), "not [left, top, right, bottom]"),
    (row("a.png", compound=False), "compound is false, but there are 2 panels"),
    (row("a.png", compound="yes"), "compound is 'yes'"),
    (row("a.png", width=200), "not two sizes"),
    (row("a.png", width=100, height=100), "200 x 100 pixels, not 100 x 100"),
    (row("a.png", sub_captions=["CT"]), "sub_captions is not an object"),
    (row("a.png", sub_captions={"A": 1}), "sub_captions is not an object"),
    (row("a.png", caption=5), "caption is '5', not a text"),
    (row("a.png", context_extra="Bars."), "context_extra is not a list of texts"),
    ({"file": "a.png", "panels": []}, "panels is empty"),
    ({"file": "a.png", "error": "damaged"}, "panels is empty"),
    ({"file": "a.png", "panels": [{"box": LEFT, "type": "Painting"}]}, "type of panel 1 is 'Painting'"),
    ({"file": "a.png", "panels": [{"box": LEFT, "label": "A" * 99}]}, "more than 12 characters"),
    ({"file": "a.png", "panels": [{"box": LEFT, "label_box": LEFT}]}, "label_box without a label"),
    ({"file": "a.png", "panels": [{"box": LEFT, "label": "A", "label_box": [9]}]}, "label_box of panel 1 is [9]"),
    ({"panels": [{"box": LEFT}]}, "file is 'None'"),
    (row("../a.png"), "not the path of a picture"),
    (row("C:/a.png"), "not the path of a picture"),
    (row("damaged.png"), "the picture cannot be read"),
    ({"pdf_hash": "abc", "fig_uri": "2-Figure1-1.png", "subfigures": [{"points": []}]}, "box of panel 1 is None"),
    (
        {"pdf_hash": "abc", "fig_uri": "2-Figure1-1.png", "subfigures": [{"points": [[1, "2"]]}]},
        "box of panel 1 is None",
    ),
    ({"pdf_hash": "abc", "fig_uri": "2-Figure1-1.png", "subfigures": 3}, "panels is empty"),
]


@pytest.mark.parametrize(("faulty", "problem"), FAULTS, ids=[problem for _, problem in FAULTS])
def test_faulty_figures_are_left_out_and_listed_with_their_line(tmp_path, images, caplog, faulty, problem):
    table = write_lines(tmp_path, faulty, row("b.png"))
    with caplog.at_level(logging.WARNING):
        figures = read_annotations(table, images)
    assert [figure.name for figure in figures] == ["b.png"]
    assert "1 of 2 figures have faults: line 1: " in caplog.text and problem in caplog.text
    with pytest.raises(ValueError, match="line 1: "):
        read_annotations(table, images, strict=True)


@pytest.mark.parametrize("numbers", ["0,0,300,100", "0,0,,100", "x,0,90,100", "nan,0,90,100", "50,0,20,100"])
def test_faulty_boxes_of_panelseg_leave_out_the_figure(tmp_path, images, caplog, numbers):
    table = write_panelseg(tmp_path, f"a.png,{numbers},,,,,", "a.png,110,0,200,100,,,,,", "b.png,0,0,90,100,,,,,")
    assert [figure.name for figure in read_annotations(table, images)] == ["b.png"]
    assert "1 of 2 figures have faults: line 2: box of panel 1 is [" in caplog.text


def test_boxes_that_exceed_the_picture_by_few_pixels_are_cut_off(tmp_path, images):
    (figure,) = read_annotations(write_lines(tmp_path, row("a.png", [-3, -1, 203, 101])), images)
    assert figure.panels[0].box == (0, 0, 200, 100)


def test_missing_pictures_are_counted_and_listed_or_an_error(tmp_path, images, caplog):
    table = write_lines(tmp_path, row("x.png"), row("b.png"), row("\ud800.png", pmcid="PMC7"))
    assert [figure.name for figure in read_annotations(table, images)] == ["b.png"]
    assert f"2 of 3 pictures are not in {images}: x.png, \\ud800.png" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"2 of 3 pictures .*x\.png, \\ud800\.png"):
        read_annotations(table, images, strict=True)


def test_a_picture_of_two_rows_is_used_once(tmp_path, images, caplog):
    table = write_lines(tmp_path, row("a.png"), row("scans/a.png", LEFT))
    assert len(read_annotations(table, images)) == 1
    assert "line 2: another row has the same picture" in caplog.text


def test_links_that_lead_out_of_the_folder_are_not_followed(tmp_path, images, caplog):
    Image.new("L", (200, 100)).save(tmp_path / "secret.png")
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    (images / "inside.png").symlink_to(images / "a.png")
    figures = read_annotations(write_lines(tmp_path, row("link.png"), row("inside.png")), images)
    assert [figure.name for figure in figures] == ["inside.png"]
    assert "a link that leads out of" in caplog.text


@pytest.mark.parametrize("content", ["", f"{COLUMNS}\n", json.dumps(row("x.png"))])
def test_a_table_without_a_usable_figure_is_an_error(tmp_path, images, content):
    table = tmp_path / ("table.csv" if content.startswith("figure") else "table.jsonl")
    table.write_text(content)
    with pytest.raises(ValueError, match="no usable figures"):
        read_annotations(table, images)


def test_a_table_or_folder_that_does_not_exist_is_an_error(tmp_path, images):
    with pytest.raises(FileNotFoundError, match="the file does not exist"):
        read_annotations(tmp_path / "none.csv", images)
    with pytest.raises(FileNotFoundError, match="the folder does not exist"):
        read_annotations(write_lines(tmp_path, row()), tmp_path / "none")


def test_all_figures_of_the_gold_standard_are_read(shared_data):
    figures = read_annotations(shared_data / "panels" / "gold.jsonl", shared_data / "pmc_mirror", strict=True)
    assert len(figures) == 150 and sum(len(figure.panels) for figure in figures) == 280
    assert sum(figure.compound for figure in figures) == 52 and len({figure.article for figure in figures}) == 87
    assert sum(len(figure.split_caption.panels) for figure in figures if figure.split_caption) == 154


def test_captions_that_were_split_by_hand_are_read_without_pictures(tmp_path):
    with_context = {"label": "b", "box": None, "sub_caption_with_context": "Heart. Atrium."}
    table = write_lines(
        tmp_path,
        {"figure": "1.jpg", "caption": "Heart. (b) Atrium.", "panels": [with_context]},
        {"file": "PMC5/2.jpg", "caption": "A heart.", "panels": [{"box": LEFT}]},
        {"file": "PMC5/3.jpg", "caption": "(c) CT.", "panels": [{"label": "C"}], "sub_captions": {"C": "CT."}},
    )
    assert read_split_captions(table) == [
        AnnotatedCaption("Heart. (b) Atrium.", ("B",), {}, {"B": "Heart. Atrium."}, "1.jpg"),
        AnnotatedCaption("(c) CT.", ("C",), {"C": "CT."}, {"C": "CT."}, "PMC5"),
    ]


@pytest.mark.parametrize(
    ("faulty", "problem"),
    [
        ({"figure": "1.jpg", "caption": "A.", "panels": [{"label": 3, "sub_caption": "A."}]}, "line 1: label is '3'"),
        ({"figure": "1.jpg", "caption": "A.", "panels": [{"label": "A"}]}, "no caption was split"),
        ({"caption": "A.", "panels": [{"label": "A", "sub_caption": "A."}]}, "line 1: file is 'None'"),
    ],
)
def test_a_table_without_split_captions_or_with_faulty_rows_is_an_error(tmp_path, faulty, problem):
    with pytest.raises(ValueError, match=problem):
        read_split_captions(write_lines(tmp_path, faulty))


def test_all_captions_of_the_prostate_are_read(shared_data):
    captions = read_split_captions(shared_data / "panels" / "sub_captions_prostate.jsonl")
    assert len(captions) == 196 and sum(len(caption.with_context) for caption in captions) == 849
    assert not any(caption.panels for caption in captions)
