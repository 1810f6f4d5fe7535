"""The step that adds a row for each panel of a figure."""

import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from PIL import Image

from ..bit_depth_biomedclip import to_8_bit
from ..images.reading import read_image
from ..panels.detector import Detector
from ..panels.figure_panels import FigurePanels, Panel, pixel_box
from ..panels.image_types import TypeScore
from ..panels.mentions import mentions_of_panels
from ..panels.pairing import labels_for, split_for
from ..retries import lasting_error
from .articles import PANEL_COUNTS, Article, Dropped
from .bucket import md5_of
from .images import MIN_SIDE, ImageIndex, inspect_image
from .steps import MAX_ARTICLE_BYTES, ArticleStep, MentionLimit, article_too_large


DETECTOR_FAILED = "panels not found"
NOT_KEPT = "image of another type"
TOO_SMALL = "panel too small"
# Panels of JPEG files are stored as JPEG, without subsampling of colors, and others as PNG.
JPEG_QUALITY = 95
DECIMALS = 4  # of scores
_JPEG = ("JPEG", "MPO")
_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


class FindPanels(ArticleStep):
    """Find the panels of each figure, and its type.

    Args:
        detector: Finds the panels.
        mode: `also` adds a row for each panel of a compound figure. `only` replaces the row of the figure by them.
        keep_types: Types of the rows to keep (default: all).
        benchmark: Panels similar to these images are skipped.
    """

    name = "Find panels"

    def __init__(
        self,
        detector: Detector,
        mode: str,
        keep_types: Sequence[str] | None = None,
        benchmark: ImageIndex | None = None,
    ):
        super().__init__()
        self.detector = detector
        self.mode = mode
        self.keep_types = keep_types
        self.benchmark = benchmark

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Load the detector, so that its own errors are not those of an article, and process the articles."""
        self.detector.prepare()
        yield from super().run(data, rank, world_size)

    def process(self, article: Article) -> None:
        """Set the rows of an article."""
        work = _PanelRows(self, article)
        article.pairs = [row for pair in article.pairs for row in work.of(pair)]
        article.panel_counts = {name: work.counts[name] for name in PANEL_COUNTS}
        if not article.pairs:
            raise Dropped("no usable panel")


class _PanelRows:
    """Makes the rows of the figures of an article, within the limits per article."""

    def __init__(self, step: FindPanels, article: Article):
        self.step = step
        self.article = article
        self.counts: Counter[str] = Counter()
        self.pair_ids = {row["pair_id"] for row in article.pairs}
        self.found: dict[tuple[str, str], FigurePanels | str] = {}
        self.mentions = MentionLimit(article)
        self.bytes_left = MAX_ARTICLE_BYTES

    def of(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the rows of a figure."""
        item = row["pair_id"].removeprefix(f"{self.article.name}/")
        self.counts["examined_figures"] += 1
        image, figure = self._examine(row)
        if image is None or isinstance(figure, str):
            self.counts["failed_figures"] += 1
            self.article.skip(item, DETECTOR_FAILED, str(figure))
            yield from self._kept(item, row)
            return
        image_type = type_of_compound(figure.panels) if figure.compound else figure.panels[0].image_type
        row |= {"compound": figure.compound, **_type_columns(image_type)}
        if not figure.compound:
            row["caption_match"] = "none"
            if self.step.mode == "only":
                whole = {"panel_box": [0, 0, *image.size], "panel_score": _rounded(figure.panels[0].score)}
                row |= {"figure_pair_id": row["pair_id"], **whole}
            yield from self._kept(item, row)
            return
        self.counts["compound_figures"] += 1
        split, texts = split_for(figure, row["caption"])
        self.counts["split_captions"] += split.match != "none"
        row["caption_match"] = split.match
        if self.step.mode == "also":
            yield from self._kept(item, row)
        labels = labels_for(figure, split)
        mentions = mentions_of_panels(row["label"], labels, row["mentions"])
        source = storable(image)
        parts = zip(figure.panels, labels, texts, mentions, strict=True)
        for number, (panel, label, text, cited) in enumerate(parts, start=1):
            own = {"panel": label, "caption": row["caption"] if text is None else text, "mentions": cited}
            own |= {"context": None if text is None else split.context}
            own |= {"caption_match": "none" if text is None else split.match}
            yield from self._panel(f"{item}/panel-{number}", row, source, panel, own)

    def _examine(self, row: dict[str, Any]) -> "tuple[Image.Image | None, FigurePanels | str]":
        """Return the image of a figure and its panels, or the error as text.

        Each file is examined once with each caption.
        """
        key = (row["image_md5"], row["caption"])
        if isinstance(known := self.found.get(key), str):
            return None, known
        try:
            image = read_image(row["image"])
            if known is None:
                (known,) = self.step.detector([image], [row["caption"]])
                _check(known)
        except MemoryError:
            raise
        except Exception as error:  # of any kind, because images are not trusted
            if lasting_error(error) is not None:
                raise
            reason = f"{type(error).__name__}: {error}"
            self.found[key] = reason
            return None, reason
        self.found[key] = known
        return image, known

    def _kept(self, item: str, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if self.step.keep_types is None or row.get("image_type") in self.step.keep_types:
            yield row
        else:
            self.article.skip(item, NOT_KEPT, row.get("image_type") or "unknown")

    def _panel(
        self, item: str, figure: dict[str, Any], source: Image.Image, panel: Panel, own: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Yield the row of a panel, unless it is skipped."""
        box = pixel_box(panel.box, source.size)
        sides = (box[2] - box[0], box[3] - box[1])
        columns = _type_columns(panel.image_type)
        if min(sides) < MIN_SIDE:
            self.article.skip(item, TOO_SMALL, f"{sides[0]} x {sides[1]} pixels, but each side must have {MIN_SIDE}")
            return
        if not any(self._kept(item, columns)):
            return
        pair_id = f"{self.article.name}/{item}"
        if pair_id in self.pair_ids:
            self.article.skip(item, "duplicate image")
            return
        content, suffix = encode(source.crop(box), source.format)
        image = inspect_image(content)
        size = len(content) + len(own["caption"]) + len(own["context"] or "")
        if self.step.benchmark is not None and self.step.benchmark.contains(image.perceptual_hash):
            self.article.skip(item, "similar to a benchmark image")
        elif size > self.bytes_left:
            self.article.skip(item, "article too large", str(article_too_large()))
        else:
            self.bytes_left -= size
            self.pair_ids.add(pair_id)
            name = f"{PurePosixPath(figure['image']['path']).stem}_{item.rpartition('/')[2]}{suffix}"
            yield (
                figure
                | own
                | columns
                | {
                    "pair_id": pair_id,
                    "image": {"bytes": content, "path": name},
                    "mentions": self.mentions.kept(item, own["mentions"]),
                    "width": image.width,
                    "height": image.height,
                    "mode": image.mode,
                    "frames": image.frames,
                    "file_size": len(content),
                    "image_md5": md5_of(content),
                    "perceptual_hash": image.perceptual_hash,
                    "figure_pair_id": figure["pair_id"],
                    "compound": False,
                    "panel_box": list(box),
                    "panel_score": _rounded(panel.score),
                }
            )


def type_of_compound(panels: "Sequence[Panel]") -> TypeScore:
    """Return the type with the largest part of the area of all panels, weighted by the probability of each type."""
    areas = [max(panel.box[2] - panel.box[0], 0) * max(panel.box[3] - panel.box[1], 0) for panel in panels]
    weights: dict[str, float] = {}
    for panel, area in zip(panels, areas, strict=True):
        if panel.image_type.name is not None:
            weight = area * (panel.image_type.score or 0.0)
            weights[panel.image_type.name] = weights.get(panel.image_type.name, 0.0) + weight
    if not weights or not sum(areas):
        return TypeScore()
    name = max(weights, key=weights.__getitem__)
    return TypeScore(name, weights[name] / sum(areas))


def storable(image: Image.Image) -> Image.Image:
    """Return an image in a mode that JPEG or PNG, by its format, can store without loss, and without metadata."""
    kind = image.format
    if kind not in _JPEG and image.mode not in _PNG_MODES:
        if image.mode.startswith("I;16"):
            image = image.convert("I")  # of other byte order
        lowest, highest = image.getextrema() if image.mode == "I" else (-1, -1)
        if not 0 <= lowest <= highest < 2**16:  # type: ignore[operator]
            image = to_8_bit(image)
            if image.mode not in _PNG_MODES:
                image = image.convert("RGBA" if image.mode in ("PA", "La", "RGBa") else "RGB")
    result = image.copy()
    result.info = {name: value for name, value in image.info.items() if name == "transparency"}
    result.format = kind
    return result


def encode(image: Image.Image, source_format: str | None) -> tuple[bytes, str]:
    """Return the bytes of a panel from a file in a format, and the suffix of its name."""
    buffer = io.BytesIO()
    if source_format in _JPEG:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        return buffer.getvalue(), ".jpg"
    image.save(buffer, "PNG")
    return buffer.getvalue(), ".png"


def _check(figure: FigurePanels) -> None:
    if not figure.panels:
        raise ValueError("the detector returned no panel")
    for panel in figure.panels:
        if not all(map(math.isfinite, (*panel.box, panel.score, panel.image_type.score or 0.0))):
            raise ValueError(f"the detector returned {panel}")


def _type_columns(image_type: TypeScore) -> dict[str, Any]:
    score = image_type.score
    return {"image_type": image_type.name, "image_type_score": None if score is None else _rounded(score)}


def _rounded(score: float) -> float:
    return round(float(score), DECIMALS)
