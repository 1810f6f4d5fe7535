"""Single figures for the synthesis of compound ones: from built datasets, and from folders of photographs."""

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from ..bit_depth_biomedclip import to_8_bit
from ..images.errors import ImageError
from ..images.folders import find_images
from ..images.reading import read_image
from .annotations import AnnotatedFigure
from .captions import split_caption
from .cutting import cut_panels
from .figure_panels import Box, pixel_box
from .image_types import GROUP_OF, type_in_caption


HELD_OUT = 10  # one of ten articles and photographs is held out
PHOTOGRAPHS = ("radiology", "visible light photo", "microscopy")
LEAST_PHOTOGRAPH, LEAST_PLOT = 0.5, 0.85  # part of an annotated panel that must be left without its label
_COLUMNS = ("image", "caption", "pmcid")
_PARTS = re.compile(r"\b(?:left|right|panels?|upper|lower|top|bottom|respectively)\b", re.IGNORECASE)


@dataclass(frozen=True)
class SingleFigure:
    """A figure with one panel.

    Attributes:
        content: File of the image, or its bytes.
        kind: Name of images that look alike: an article, or a folder of photographs.
        image_type: Name of its type in ImageCLEF 2015, if it is known.
        is_photograph: Whether a part of it looks like the whole, as in photographs and scans.
        held_out: Whether it is kept for validation, as all figures of its article.
    """

    content: Path | bytes
    kind: str
    image_type: str | None
    is_photograph: bool
    held_out: bool

    def open(self) -> Image.Image:
        """Return the image in RGB."""
        return to_8_bit(read_image(self.content)).convert("RGB")


def singles_of_dataset(folder: Path, without: Collection[str] = ()) -> Iterator[SingleFigure]:
    """Yield the figures of a dataset that `biomedclip build` wrote, if caption and picture suggest a single panel.

    Rows of panels are left out: their files have other names, so that `without` would not exclude them.

    Args:
        folder: The dataset.
        without: Names of figure files to leave out, `PMCID/FILE`, for example those of a test set.
    """
    shards = sorted((folder / "data").glob("*.parquet"))
    if not shards:
        raise FileNotFoundError(f"{folder}: it has no data/*.parquet. Pass a folder that biomedclip build wrote.")
    excluded = set(without)
    for shard in shards:
        file = pq.ParquetFile(shard)
        columns = [*_COLUMNS, *(name for name in ("pair_id", "figure_pair_id") if name in file.schema_arrow.names)]
        for batch in file.iter_batches(64, columns=columns):
            for row in batch.to_pylist():
                is_panel = row.get("figure_pair_id") not in (None, row.get("pair_id"))
                if not is_panel and f"{row['pmcid']}/{row['image']['path']}" not in excluded:
                    figure = _single(row)
                    if figure is not None:
                        yield figure


def _single(row: dict) -> SingleFigure | None:
    caption = row["caption"]
    if split_caption(caption).match != "none" or _PARTS.search(caption):
        return None
    image_type = type_in_caption(caption)
    figure = _of_type(row["image"]["bytes"], row["pmcid"], image_type, is_held_out(row["pmcid"]))
    try:
        return figure if len(cut_panels(figure.open())) == 1 else None
    except ImageError:
        return None


def singles_of_annotation(figure: AnnotatedFigure) -> Iterator[SingleFigure]:
    """Yield an annotated figure with one panel, or the panels of a compound one, without labels printed on them.

    A label is cut off with the strip of the panel beside it. If most of the panel is lost, it is left out.
    """
    held_out = is_held_out(figure.article)
    if figure.compound is False:
        yield _of_type(figure.file, figure.article, figure.panels[0].image_type, held_out)
    elif figure.has_label_boxes and figure.compound:
        picture = figure.open()
        labels = [panel.label_box for panel in figure.panels if panel.label_box is not None]
        for panel in figure.panels:
            box = _without_labels(panel.box, labels)
            least = LEAST_PHOTOGRAPH if _shows_itself_in_parts(panel.image_type) else LEAST_PLOT
            if _area(box) >= least * _area(panel.box):
                file = BytesIO()
                picture.crop(pixel_box(box, picture.size)).save(file, format="PNG")
                yield _of_type(file.getvalue(), figure.article, panel.image_type, held_out)


def _without_labels(box: Box, labels: Sequence[Box]) -> Box:
    """Return the largest part of a box beside the labels, each time above, below, left or right of one."""
    for label in labels:
        if _overlap(box, label):
            (left, top, right, bottom), (x0, y0, x1, y1) = box, label
            parts = [
                (left, top, x0, bottom),
                (left, top, right, y0),
                (x1, top, right, bottom),
                (left, y1, right, bottom),
            ]
            box = max(parts, key=_area)
    return box


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _of_type(content: Path | bytes, kind: str, image_type: str | None, held_out: bool) -> SingleFigure:
    return SingleFigure(content, kind, image_type, _shows_itself_in_parts(image_type), held_out)


def _shows_itself_in_parts(image_type: str | None) -> bool:
    return image_type is not None and GROUP_OF[image_type] in PHOTOGRAPHS


def _overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    return all(max(first[i], second[i]) < min(first[i + 2], second[i + 2]) for i in (0, 1))


def singles_of_folder(folder: Path, image_type: str | None = None) -> Iterator[SingleFigure]:
    """Yield the photographs or scans of a folder, all of one type if it is known."""
    files = find_images(folder).images
    if not files:
        raise FileNotFoundError(f"{folder}: it contains no images")
    for file in files:
        yield SingleFigure(file, folder.name, image_type, True, is_held_out(file.name))


def is_held_out(name: str) -> bool:
    """Return whether an article or photograph is kept for validation, by the hash of its name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % HELD_OUT == 0
