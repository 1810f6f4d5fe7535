"""Read real figures whose panels were annotated: PanelSeg, MedICaT, and JSON lines in our own format.

Tables and pictures are untrusted. Pictures lie below one folder, and no name leads out of it.
"""

import logging
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from PIL import Image

from ..bit_depth_biomedclip import to_8_bit
from ..files import leads_out
from ..images.errors import ImageError
from ..images.folders import first_names
from ..images.reading import open_image, read_image
from ..tables import read_json_lines, read_table
from .image_types import IMAGE_TYPES, UNKNOWN


logger = logging.getLogger(__name__)

Box = tuple[float, float, float, float]
Row = Mapping[str, Any]
EDGES = ("x0", "y0", "x1", "y1")
SLACK = 0.02  # how far a box may lie outside the picture, in parts of the longer side
LONGEST_LABEL = 12  # characters


@dataclass(frozen=True)
class AnnotatedPanel:
    """A panel of an annotated figure.

    Attributes:
        box: Left, top, right and bottom in pixels of the picture.
        label: Printed label in upper case, None if there is none or labels were not annotated.
        label_box: Where the label is printed, None if this was not annotated.
        image_type: Name of its type in ImageCLEF 2015, None if it was not annotated.
    """

    box: Box
    label: str | None = None
    label_box: Box | None = None
    image_type: str | None = None


@dataclass(frozen=True)
class AnnotatedCaption:
    """A caption that was split by hand.

    Attributes:
        text: The whole caption.
        labels: Labels that are printed in the figure, in upper case.
        panels: Part about each panel by its label. Empty if it is known only together with the text for all panels.
        with_context: The part about each panel together with the text for all panels.
        article: Its article, or the name of the figure if the article is unknown.
    """

    text: str
    labels: tuple[str, ...]
    panels: Mapping[str, str] = field(hash=False)
    with_context: Mapping[str, str] = field(hash=False)
    article: str


@dataclass(frozen=True)
class AnnotatedFigure:
    """A figure whose panels were annotated.

    Attributes:
        file: The picture, or its bytes.
        panels: Its panels.
        compound: Whether the figure has several panels, None if this was not annotated.
        article: Its article, or its own name if the article is unknown.
        name: Name of the picture in the table.
        has_labels: Whether printed labels were annotated. Otherwise, panels without a label may have one.
        caption: Caption, None if it is unknown.
        split_caption: Caption that was split by hand, None if it was not.
    """

    file: Path | bytes
    panels: tuple[AnnotatedPanel, ...]
    compound: bool | None
    article: str
    name: str = ""
    has_labels: bool = True
    caption: str | None = None
    split_caption: AnnotatedCaption | None = None

    @property
    def has_label_boxes(self) -> bool:
        """Whether all printed labels are known together with their places."""
        return self.has_labels and all((panel.label is None) == (panel.label_box is None) for panel in self.panels)

    def open(self) -> Image.Image:
        """Return the picture in RGB."""
        return to_8_bit(read_image(self.file)).convert("RGB")


def read_annotations(table: Path, images: Path, *, strict: bool = False) -> list[AnnotatedFigure]:
    """Return the annotated figures of a table whose pictures are in a folder.

    The format is detected.

    - PanelSeg: CSV with a row for each panel and the columns `figure`, `panel_x0`, `panel_y0`, `panel_x1`, `panel_y1`,
      `label_x0`, `label_y0`, `label_x1`, `label_y1` and `label`. The last five may be empty.
    - MedICaT (`subcaptions_public.jsonl`): JSON lines with `pdf_hash`, `fig_uri`, `width`, `height`, and `subfigures`,
      each with the corners of a polygon as `points`. Its labels are not read. Pictures are `PDF-HASH_FIG-URI`.
    - Our own: JSON lines with `file` and `panels`, each with a `box` and, if known, `label`, `label_box` and `type`. A
      figure may have `pmcid`, `compound`, `width`, `height`, `caption`, `sub_captions`, `context` and `context_extra`,
      and `has_labels` is false if labels were not annotated. Rows of `biomedclip panels`, whose panels have a
      `sub_caption`, are such rows.

    Boxes are scaled if the picture has another size than `width` and `height`. A picture is `IMAGES/FILE`,
    `IMAGES/PMCID/FILE` or `IMAGES/PMCID.VERSION/FILE`. Folders at the beginning of `file` that do not exist are
    ignored.

    Args:
        table: The table.
        images: Folder of the pictures.
        strict: Whether a figure without a picture, or with a faulty row, is an error. Otherwise such figures are left
            out, and their number, the first names and the reasons are logged.

    Raises:
        FileNotFoundError: If the table or the folder does not exist, or, with `strict`, a picture.
        ValueError: If the table is damaged or has no usable figure, or, with `strict`, any row is faulty.
    """
    if not images.is_dir():
        raise FileNotFoundError(f"{images}: the folder does not exist.")
    pictures = _Pictures(images)
    found: dict[Path | bytes, AnnotatedFigure] = {}

    def read(row: Row) -> None:
        figure = _figure(row, pictures)
        if figure.file in found:
            raise ValueError("another row has the same picture")
        found[figure.file] = figure

    _read_rows(table, read, strict=strict, missing=f"pictures are not in {images}")
    return list(found.values())


def read_split_captions(table: Path) -> list[AnnotatedCaption]:
    """Return the captions of a table that were split by hand. Rows whose caption was not split are left out.

    Args:
        table: JSON lines with `caption` and `panels` or `sub_captions`, as [`read_annotations`] describes them. Instead
            of a `sub_caption`, panels may have a `sub_caption_with_context`. The name of the figure is `file` or
            `figure`, and boxes are not read.

    Raises:
        FileNotFoundError: If the table does not exist.
        ValueError: If the table is damaged, any row is faulty, or no caption was split.
    """
    captions = []

    def read(row: Row) -> None:
        name = row.get("file", row.get("figure"))
        if not isinstance(name, str):
            raise ValueError(f"file is {str(name)[:50]!r}, not the name of a figure")
        caption = _split_caption(row, _panels(row), _article(row, name))
        captions.extend([caption] if caption else [])

    _read_rows(table, read, strict=True)
    if not captions:
        raise ValueError(f"{table}: no caption was split by panels. Pass captions with sub_captions.")
    return captions


def _read_rows(table: Path, read: Callable[[Row], None], *, strict: bool, missing: str = "") -> None:
    """Read all rows. Raise an error, or log a warning, if rows are faulty or their pictures are missing."""
    if not table.exists():
        raise FileNotFoundError(f"{table}: the file does not exist.")
    rows = _panelseg_rows(table) if table.suffix.lower() == ".csv" else _json_rows(table)
    total, absent, faults = 0, [], []
    for where, row in rows:
        total += 1
        try:
            read(row)
        except FileNotFoundError as error:
            absent.append(str(error))
        except ValueError as error:
            faults.append(f"{where}: {error}")
    problems = []
    if absent:
        problems.append(f"{len(absent):,} of {total:,} {missing}: {first_names(absent)}")
    if faults:
        problems.append(f"{len(faults):,} of {total:,} figures have faults: {first_names(faults)}")
    if strict and absent:
        raise FileNotFoundError(f"{table}: {problems[0]}. Add them, or pass the folder that contains them.")
    if strict and faults:
        raise ValueError(f"{table}: {problems[0]}. Correct these rows, or remove them.")
    if total == len(absent) + len(faults):
        raise ValueError(f"{table}: no usable figures: {'; '.join(problems) or 'the table is empty'}.")
    if problems:
        logger.warning("%s: left out are: %s.", table, "; ".join(problems))


class _Pictures:
    """Finds pictures below a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.versions: dict[str, list[str]] = defaultdict(list)
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: (len(entry.name), entry.name), reverse=True):
                if entry.is_dir():
                    self.versions[entry.name.partition(".")[0]].append(entry.name)

    def find(self, name: str, article: str | None) -> Path:
        """Return the path of a picture, in the newest version of its article."""
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        if not parts or ".." in parts or "\0" in name or ":" in parts[0]:
            raise ValueError(f"file is {name[:200]!r}, not the path of a picture")
        folders = self.versions.get(article or "", [])
        short = parts[-1].removeprefix(f"{article}_")  # PanelSeg puts the article before the name
        options = [os.path.join(*parts[start:]) for start in range(len(parts))]
        options += [os.path.join(folder, last) for folder in folders for last in dict.fromkeys((parts[-1], short))]
        for option in options:
            path = self.folder / option
            if os.path.isfile(path):
                if leads_out(path, self.folder):
                    raise ValueError(f"file is {name[:200]!r}, a link that leads out of {self.folder}")
                return path
        raise FileNotFoundError(name[:200])


def _json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    for line, row in read_json_lines(path):
        yield f"line {line}", _of_medicat(row) if "pdf_hash" in row else row


def _of_medicat(row: Row) -> Row:
    subfigures = row.get("subfigures")
    panels = [{"box": _around(each)} for each in subfigures] if isinstance(subfigures, list) else None
    return {
        "file": f"{row['pdf_hash']}_{row.get('fig_uri')}",
        "pmcid": row["pdf_hash"],
        "compound": True if panels and len(panels) > 1 else None,
        "panels": panels,
        "has_labels": False,
        **{name: row.get(name) for name in ("width", "height")},
    }


def _around(subfigure: Any) -> Any:
    """Return the box around a polygon, or None if it is not one."""
    points = subfigure.get("points") if isinstance(subfigure, dict) else None
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        return None
    if not points or not all(_is_number(value) for point in points for value in point):
        return None
    across, down = zip(*points, strict=True)
    return [min(across), min(down), max(across), max(down)]


def _panelseg_rows(path: Path) -> Iterator[tuple[str, Row]]:
    columns = ["figure", *(f"{kind}_{edge}" for kind in ("panel", "label") for edge in EDGES), "label"]
    rows = defaultdict(list)
    for row in read_table(path, columns, filled=["figure"]).rows:
        rows[row["figure"]].append(row)
    for name, group in rows.items():
        panels = []
        for row in group:
            printed = [row[f"label_{edge}"] for edge in EDGES]
            panels.append(
                {
                    "box": [_number(row[f"panel_{edge}"]) for edge in EDGES],
                    "label": row["label"] or None,
                    "label_box": [_number(value) for value in printed] if any(printed) else None,
                }
            )
        # A single panel with a label is a part of a figure.
        compound = len(panels) > 1 or (None if panels[0]["label"] else False)
        yield f"line {group[0].line}", {"file": name, "compound": compound, "panels": panels}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9  # excludes NaN


def _figure(row: Row, pictures: _Pictures) -> AnnotatedFigure:
    name = row.get("file")
    if not isinstance(name, str):
        raise ValueError(f"file is {str(name)[:50]!r}, not the name of a picture")
    article = _article(row, name)
    file = pictures.find(name, article)
    panels = _panels(row)
    compound = row.get("compound")
    if not isinstance(compound, bool | None):
        raise ValueError(f"compound is {str(compound)[:50]!r}, not true or false")
    if compound is False and len(panels) > 1:
        raise ValueError(f"compound is false, but there are {len(panels)} panels")
    size, scale = _size_and_scale(file, row)
    return AnnotatedFigure(
        file,
        tuple(_panel(panel, number, size, scale) for number, panel in enumerate(panels, start=1)),
        compound,
        article,
        name,
        has_labels=row.get("has_labels", True) is not False,
        caption=_text(row, "caption"),
        split_caption=_split_caption(row, panels, article),
    )


def _article(row: Row, name: str) -> str:
    """Return the article of a figure, or its own name if the article is unknown."""
    found = re.search(r"PMC\d+", name)
    return _text(row, "pmcid") or (found[0] if found else Path(name).name)


def _panels(row: Row) -> list[Row]:
    panels = row.get("panels")
    if not isinstance(panels, list) or not panels or not all(isinstance(panel, dict) for panel in panels):
        raise ValueError("panels is empty or not a list of panels")
    return panels


def _size_and_scale(file: Path, row: Row) -> tuple[tuple[int, int], tuple[float, float]]:
    """Return the size of a picture, and how many of its pixels are one pixel of the annotation."""
    try:
        size = open_image(file)[0].size
    except (ImageError, ImportError) as error:  # DICOM without pydicom
        raise ValueError(f"the picture cannot be read ({error})") from error
    width, height = row.get("width"), row.get("height")
    if width is None and height is None:
        return size, (1.0, 1.0)
    if not _is_number(width) or not _is_number(height) or min(width, height) < 1:
        raise ValueError(f"width and height are {str([width, height])[:100]}, not two sizes in pixels")
    scale = size[0] / width, size[1] / height
    if not math.isclose(*scale, rel_tol=SLACK):
        raise ValueError(f"the picture has {size[0]} x {size[1]} pixels, not {width} x {height} or a scale of it")
    return size, scale


def _panel(panel: Row, number: int, size: tuple[int, int], scale: tuple[float, float]) -> AnnotatedPanel:
    label, image_type = _label(panel), _text(panel, "type")
    if image_type == UNKNOWN:
        image_type = None
    elif image_type is not None and image_type not in IMAGE_TYPES:
        raise ValueError(f"type of panel {number} is {image_type[:50]!r}, no type of {', '.join(IMAGE_TYPES)}")
    box = _box(panel.get("box"), f"box of panel {number}", size, scale)
    label_box = panel.get("label_box")
    if label_box is not None:
        if not label:
            raise ValueError(f"panel {number} has a label_box without a label")
        label_box = _box(label_box, f"label_box of panel {number}", size, scale)
    return AnnotatedPanel(box, label, label_box, image_type)


def _label(panel: Row) -> str | None:
    label = _text(panel, "label")
    if label and len(label) > LONGEST_LABEL:
        raise ValueError(f"a label has more than {LONGEST_LABEL} characters: {label[:50]!r}")
    return label.upper() if label else None


def _box(value: Any, name: str, size: tuple[int, int], scale: tuple[float, float]) -> Box:
    """Return a box within the picture. Annotations that exceed it by few pixels are cut off."""
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        raise ValueError(f"{name} is {str(value)[:100]}, not [left, top, right, bottom]")
    left, top, right, bottom = (edge * factor for edge, factor in zip(value, scale * 2, strict=True))
    slack = SLACK * max(size)
    if left < -slack or top < -slack or right > size[0] + slack or bottom > size[1] + slack:
        raise ValueError(f"{name} is {value}, outside the picture of {size[0]} x {size[1]} pixels")
    box = max(left, 0.0), max(top, 0.0), min(right, float(size[0])), min(bottom, float(size[1]))
    if box[2] - box[0] < 1 or box[3] - box[1] < 1:
        raise ValueError(f"{name} is {value}, which is empty")
    return box


def _split_caption(row: Row, panels: Sequence[Row], article: str) -> AnnotatedCaption | None:
    """Return the caption of a figure with its parts, or None if it was not split."""
    text = _text(row, "caption")
    given = row.get("sub_captions")
    own = _parts(panels, "sub_caption") if given is None else given
    if not isinstance(own, dict) or not all(isinstance(part, str) for part in own.values()):
        raise ValueError("sub_captions is not an object with a text for each label")
    own = {label.strip().upper(): part for label, part in own.items()}
    extra = row.get("context_extra") or []
    if not isinstance(extra, list) or not all(isinstance(part, str) for part in extra):
        raise ValueError("context_extra is not a list of texts")
    context = _text(row, "context") or ""
    joined = {label: " ".join(filter(None, (context, part, *extra))) for label, part in own.items()}
    joined = joined or _parts(panels, "sub_caption_with_context")
    if text is None or not joined:
        return None
    labels = [label for panel in panels if (label := _label(panel))]
    return AnnotatedCaption(text, tuple(dict.fromkeys(labels)), own, joined, article)


def _parts(panels: Sequence[Row], name: str) -> dict[str, str]:
    """Return a text of each panel that has it and a label."""
    return {label: part for panel in panels if (label := _label(panel)) and (part := _text(panel, name))}


def _text(row: Row, name: str) -> str | None:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} is {str(value)[:50]!r}, not a text")
    return (value or "").strip() or None
