"""The steps of the build, one `run` each, as datatrove chains them: from a list of names to tables of pairs."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from ..images import ImageError, read_image
from .articles import Article, Dropped, decide
from .bucket import Bucket, ObjectError, SourceUnavailable
from .jats import Figure, Graphic, JatsError, parse_figures
from .shards import ROWS_PER_GROUP, pair_schema


logger = logging.getLogger(__name__)

MIN_SIDE = 16  # pixels; smaller pictures are spacers and icons
_IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".tif", ".tiff", ".bmp", ".webp")


class ReadWorkList(PipelineStep):
    """Yields the articles of this task: every `world_size`-th line of the work list."""

    name = "Read work list"
    type = "PMC"

    def __init__(self, work_list: str):
        super().__init__()
        self.work_list = work_list

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        names = Path(self.work_list).read_text().split()
        for name in names[rank::world_size]:
            yield Document(text=name, id=name, metadata={"article": Article(name)})


class ArticleStep(PipelineStep):
    """A step that works on one article at a time; an article that fails is dropped, listed, and the run goes on."""

    type = "PMC"

    def process(self, article: Article) -> None:
        """Takes the article one step further; raises `Dropped` to leave it out."""
        raise NotImplementedError

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in data:
            article = document.metadata["article"]
            if not article.dropped:
                try:
                    with self.track_time():
                        self.process(article)
                except Dropped as drop:
                    self._drop(article, drop.reason, drop.detail)
                except (MemoryError, SourceUnavailable):
                    raise  # no fault of the article: the task fails, and the same command takes it up again
                except Exception as error:  # whatever an untrusted article provokes costs that article, not the run
                    logger.exception("%s failed on %s", self.name, article.name)
                    self._drop(article, "unexpected error", f"{type(error).__name__}: {error}")
            yield document

    def _drop(self, article: Article, reason: str, detail: str) -> None:
        article.dropped = True
        article.pairs.clear()
        article.skip("", reason, detail)
        self.stat_update(f"dropped: {reason}")


class ReadMetadata(ArticleStep):
    """Reads the metadata JSON and decides by it."""

    name = "Read metadata"

    def __init__(self, bucket: Bucket, licenses: frozenset[str] | None):
        super().__init__()
        self.bucket = bucket
        self.licenses = licenses

    def process(self, article: Article) -> None:
        try:
            article.metadata = self.bucket.read_metadata(article.name)
        except ObjectError as error:
            raise Dropped("metadata unreadable", str(error)) from error
        decide(article.metadata, self.licenses)


class ParseFigures(ArticleStep):
    """Reads the XML and takes its figures out."""

    name = "Parse figures"

    def __init__(self, bucket: Bucket):
        super().__init__()
        self.bucket = bucket

    def process(self, article: Article) -> None:
        try:
            article.figures = parse_figures(self.bucket.read(article.metadata["xml_url"]))
        except (ObjectError, JatsError) as error:
            raise Dropped("XML unreadable", str(error)) from error
        if not article.figures:
            raise Dropped("no figures")
        self.stat_update("figures", value=len(article.figures))


class PairFigures(ArticleStep):
    """Fetches the pictures and pairs each with its caption."""

    name = "Pair figures"

    def __init__(self, bucket: Bucket):
        super().__init__()
        self.bucket = bucket

    def process(self, article: Article) -> None:
        media = {url.split("?")[0].rsplit("/", 1)[-1]: url for url in article.metadata.get("media_urls") or ()}
        for figure in article.figures:
            if not figure.caption:
                article.skip(figure.figure_id, "no caption")
            elif not figure.graphics:
                article.skip(figure.figure_id, "no graphic")
            else:
                for graphic in figure.graphics:
                    self._pair(article, figure, graphic, media)
        if not article.pairs:
            raise Dropped("no usable figure")

    def _pair(self, article: Article, figure: Figure, graphic: Graphic, media: dict[str, str]) -> None:
        item = f"{figure.figure_id}/{_stem(graphic.hrefs[0])}"
        names = [name for href in graphic.hrefs for name in matching_media(href, media)]
        if not names:
            article.skip(item, "image missing", "no such file among media_urls")
            return
        best: dict[str, Any] | None = None
        faults: list[tuple[str, str, str]] = []
        for name in dict.fromkeys(names):
            try:
                picture = self._picture(media[name])
            except (ObjectError, ImageError) as error:
                reason = "image unreadable" if isinstance(error, ObjectError) else "image damaged"
                faults.append((f"{item}/{name}", reason, str(error)))
                continue
            if best is None or picture["width"] * picture["height"] > best["width"] * best["height"]:
                best = picture
        for name, reason, detail in faults:
            article.skip(name, reason if best is None else f"{reason}, another file taken", detail)
        if best is None:
            return
        if min(best["width"], best["height"]) < MIN_SIDE:
            article.skip(item, "image too small", f"{best['width']} x {best['height']} pixels")
            return
        row = {**_columns(article, figure, graphic), **best}
        if any(pair["pair_id"] == row["pair_id"] for pair in article.pairs):
            article.skip(item, "picture named twice")
            return
        article.pairs.append(row)

    def _picture(self, url: str) -> dict[str, Any]:
        content = self.bucket.read(url)
        image = read_image(content)
        return {
            "image": {"bytes": content, "path": url.split("?")[0].rsplit("/", 1)[-1]},
            "image_md5": hashlib.md5(content, usedforsecurity=False).hexdigest(),
            "width": image.width,
            "height": image.height,
        }


class WritePairs(PipelineStep):
    """Writes the pairs of a task to one Parquet file, and what was left out beside it; complete or not at all."""

    name = "Write pairs"
    type = "PMC"

    def __init__(self, folder: str):
        super().__init__()
        self.folder = folder

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        folder = Path(self.folder)
        names = {kind: folder / kind / f"{rank:05d}" for kind in ("pairs", "skipped", "counts", "progress")}
        for path in names.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        counts: Counter[str] = Counter()
        with ExitStack() as files:
            table = files.enter_context(pq.ParquetWriter(f"{names['pairs']}.partial", pair_schema()))
            skipped = files.enter_context(open(f"{names['skipped']}.partial", "w"))
            progress = files.enter_context(open(names["progress"], "w"))
            rows: list[dict[str, Any]] = []
            for document in data:
                article = document.metadata["article"]
                rows += article.pairs
                counts.update(articles=1, figures=len(article.figures), articles_kept=bool(article.pairs))
                for row in article.skipped:
                    skipped.write(json.dumps(row) + "\n")
                if len(rows) >= ROWS_PER_GROUP:
                    table.write_table(pa.Table.from_pylist(rows, schema=table.schema))
                    rows = []
                progress.write(".")  # a byte an article: whoever watches the folder can count them
                progress.flush()
                yield document
            if rows:
                table.write_table(pa.Table.from_pylist(rows, schema=table.schema))
        with open(f"{names['counts']}.partial", "w") as file:
            json.dump(counts, file)
        for kind in ("skipped", "counts", "pairs"):
            os.replace(f"{names[kind]}.partial", names[kind])


def matching_media(href: str, media: dict[str, str]) -> list[str]:
    """
    The files that an `xlink:href` can mean.

    Args:
        href: With or without extension, now and then a URL or an identifier with slashes. A dot need not start an
            extension (`OXIMED2011-962025.002`).
        media: File names of the article (the values are not looked at).

    Returns:
        Names whose stem is the href's, in the order of `media`.
    """
    stem = _stem(href)
    exact = [name for name in media if _stem(name) == stem and name.lower().endswith(_IMAGE_EXTENSIONS)]
    return exact or [
        name for name in media if _stem(name).lower() == stem.lower() and name.lower().endswith(_IMAGE_EXTENSIONS)
    ]


def _stem(href: str) -> str:
    """The last part of a path without an image's extension; other dots belong to the name."""
    name = href.rsplit("/", 1)[-1]
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in _IMAGE_EXTENSIONS else name


def _columns(article: Article, figure: Figure, graphic: Graphic) -> dict[str, Any]:
    """The columns that come from the metadata and the XML."""
    metadata = article.metadata
    pmcid, version = article.name.split(".")
    return {
        "pair_id": f"{article.name}/{figure.figure_id}/{_stem(graphic.hrefs[0])}",
        "caption": figure.caption,
        "label": figure.label,
        "panel": graphic.panel,
        "mentions": list(figure.mentions),
        "pmcid": pmcid,
        "version": int(version),
        "pmid": str(metadata["pmid"]) if metadata.get("pmid") else None,
        "doi": metadata.get("doi"),
        "citation": metadata.get("citation"),
        "license": metadata.get("license_code"),
    }
