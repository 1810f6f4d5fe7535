"""The steps of the first pass, one `run` each, as datatrove chains them: from a work list to journals of pairs."""

import logging
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from ..images import ImageError
from .articles import Article, Dropped, choose_version
from .bucket import Bucket, ObjectError, SourceUnavailable, md5_of, verified_md5
from .jats import MAX_XML_BYTES, Figure, Graphic, JatsError, parse_figures
from .journal import TaskJournal, journal_path, read_journal
from .pictures import PictureIndex, inspect_picture
from .shards import pair_schema


logger = logging.getLogger(__name__)

MAX_PICTURE_BYTES = 100_000_000  # a page scanned at 600 dpi, uncompressed, has as much
_ARTICLES_AT_A_TIME = 1000  # a task may have half a million, and as Python objects they take ten times the memory
_IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".tif", ".tiff", ".bmp", ".webp")


class ReadWorkList(PipelineStep):
    """Yields the articles of this task, a run of the work list, from the first that its journal does not hold."""

    name = "Read work list"
    type = "PMC"

    def __init__(self, work_list: str, journals: str):
        super().__init__()
        self.work_list = work_list
        self.journals = journals

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        # The last step has opened the journal, and cut off what was half done, before it asks for the first article.
        done = sum(1 for _ in read_journal(journal_path(Path(self.journals), rank)))
        articles = pq.ParquetFile(self.work_list).read_row_group(rank).slice(done)
        for batch in articles.to_batches(max_chunksize=_ARTICLES_AT_A_TIME):
            for row in batch.to_pylist():
                yield Document(text=row["pmcid"], id=row["pmcid"], metadata={"article": Article(**row)})


class ArticleStep(PipelineStep):
    """
    A step that works on one article at a time; an article that fails is dropped, listed, and the run goes on.

    Args:
        concurrency: Articles that are worked on at a time, by threads: for steps that wait for answers. They leave in
            the order in which they came.
    """

    type = "PMC"

    def __init__(self, concurrency: int = 1):
        super().__init__()
        self.concurrency = concurrency

    def process(self, article: Article) -> None:
        """Takes the article one step further; raises `Dropped` to leave it out."""
        raise NotImplementedError

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        if self.concurrency == 1:
            for document in data:
                self._process_or_drop(document.metadata["article"])
                yield document
            return
        with ThreadPoolExecutor(self.concurrency) as pool:
            under_way: deque[tuple[Document, Any]] = deque()
            for document in data:
                under_way.append((document, pool.submit(self._process_or_drop, document.metadata["article"])))
                if len(under_way) > self.concurrency:
                    yield self._finished(*under_way.popleft())
            while under_way:
                yield self._finished(*under_way.popleft())

    def _finished(self, document: Document, future: Any) -> Document:
        future.result()
        return document

    def _process_or_drop(self, article: Article) -> None:
        if article.outcome:
            return
        try:
            self.process(article)
        except Dropped as drop:
            article.drop(drop.reason, drop.detail)
        except (MemoryError, SourceUnavailable):
            raise  # no fault of the article: the task fails, and the same command takes it up again
        except Exception as error:  # whatever an untrusted article provokes costs that article, not the run
            logger.exception("%s failed on %s", self.name, article.name)
            article.drop("unexpected error", f"{type(error).__name__}: {error}")


class ReadArticles(ArticleStep):
    """Reads the metadata JSON, decides by it, and reads the XML of the version that is taken."""

    name = "Read articles"

    def __init__(self, bucket: Bucket, licenses: frozenset[str] | None, concurrency: int = 1):
        super().__init__(concurrency)
        self.bucket = bucket
        self.licenses = licenses

    def process(self, article: Article) -> None:
        choose_version(article, self._read_metadata, self.licenses)
        try:
            article.xml = self.bucket.read(article.metadata["xml_url"], max_bytes=MAX_XML_BYTES)
        except ObjectError as error:
            raise Dropped("XML unreadable", str(error)) from error

    def _read_metadata(self, name: str) -> dict[str, Any]:
        try:
            return self.bucket.read_metadata(name)
        except ObjectError as error:
            raise Dropped("metadata unreadable", str(error)) from error


class ParseFigures(ArticleStep):
    """Takes the figures out of the XML."""

    name = "Parse figures"

    def process(self, article: Article) -> None:
        xml, article.xml = article.xml, b""
        try:
            article.figures = parse_figures(xml)
        except JatsError as error:
            raise Dropped("XML damaged", str(error)) from error
        if not article.figures:
            raise Dropped("no figures")


class FetchPictures(ArticleStep):
    """Reads every file that a figure with a caption can mean."""

    name = "Fetch pictures"

    def __init__(self, bucket: Bucket, concurrency: int = 1):
        super().__init__(concurrency)
        self.bucket = bucket

    def process(self, article: Article) -> None:
        media = media_of(article)
        for figure in article.figures:
            for graphic in figure.graphics if figure.caption else ():
                for name in files_of(graphic, media):
                    if name not in article.pictures:
                        article.pictures[name] = self._read(media[name])

    def _read(self, url: str) -> bytes | ObjectError:
        try:
            return self.bucket.read(url, max_bytes=MAX_PICTURE_BYTES)
        except ObjectError as error:
            return error


class PairFigures(ArticleStep):
    """
    Pairs each graphic of a figure with the caption.

    Args:
        benchmark: Pictures that are kept out, with all that look like them.
    """

    name = "Pair figures"

    def __init__(self, benchmark: PictureIndex | None = None):
        super().__init__()
        self.benchmark = benchmark

    def process(self, article: Article) -> None:
        media = media_of(article)
        for figure in article.figures:
            if not figure.caption:
                article.skip(figure.figure_id, "no caption")
            elif not figure.graphics:
                article.skip(figure.figure_id, "no graphic")
            else:
                for graphic in figure.graphics:
                    self._pair(article, figure, graphic, media)
        article.pictures.clear()
        if not article.pairs:
            raise Dropped("no usable figure")

    def _pair(self, article: Article, figure: Figure, graphic: Graphic, media: dict[str, str]) -> None:
        item = f"{figure.figure_id}/{_stem(graphic.hrefs[0])}"
        names = files_of(graphic, media)
        if not names:
            article.skip(item, "image missing", "no such file among media_urls")
            return
        picture = self._best_picture(article, item, names, media)
        if picture is None:
            return
        row = {**_columns(article, figure, graphic), **picture}
        if any(pair["pair_id"] == row["pair_id"] for pair in article.pairs):
            article.skip(item, "picture named twice")
        elif self.benchmark is not None and self.benchmark.contains(row["perceptual_hash"]):
            article.skip(item, "like a picture of the benchmark")
        else:
            article.pairs.append(row)

    def _best_picture(
        self, article: Article, item: str, names: list[str], media: dict[str, str]
    ) -> dict[str, Any] | None:
        """The columns of the largest file that decodes; all faults are listed."""
        best: dict[str, Any] | None = None
        faults: list[tuple[str, str, str]] = []
        for name in names:
            content = article.pictures[name]
            try:
                picture = _picture_columns(name, content, media[name])
            except ObjectError as error:
                faults.append((f"{item}/{name}", "image unreadable", str(error)))
            except ImageError as error:
                faults.append((f"{item}/{name}", error.reason, str(error)))
            else:
                if best is None or picture["width"] * picture["height"] > best["width"] * best["height"]:
                    best = picture
        for name, reason, detail in faults:
            article.skip(name, reason if best is None else f"{reason}, another file taken", detail)
        return best


class WriteArticles(PipelineStep):
    """Writes what has become of each article into the journal of the task."""

    name = "Write articles"
    type = "PMC"

    def __init__(self, journals: str):
        super().__init__()
        self.journals = journals

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        with TaskJournal(Path(self.journals), rank, pair_schema()) as journal:
            for document in data:
                article = document.metadata["article"]
                journal.add(article)
                self.stat_update("articles", value=1)
                self.stat_update("pairs", value=len(article.pairs))
                yield document


def media_of(article: Article) -> dict[str, str]:
    """The URLs of an article's files by their names."""
    urls = (url for url in article.metadata.get("media_urls") or () if isinstance(url, str))
    return {url.split("?")[0].rsplit("/", 1)[-1]: url for url in urls}


def files_of(graphic: Graphic, media: dict[str, str]) -> list[str]:
    """Names of the files that a graphic can mean, each once, best first."""
    return list(dict.fromkeys(name for href in graphic.hrefs for name in matching_media(href, media)))


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


@lru_cache(maxsize=10_000)  # each graphic of an article looks at all files of it
def _stem(href: str) -> str:
    """The last part of a path without an image's extension; other dots belong to the name."""
    name = href.rsplit("/", 1)[-1]
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in _IMAGE_EXTENSIONS else name


def _picture_columns(name: str, content: bytes | Exception, url: str) -> dict[str, Any]:
    """The columns that come from the picture's file, which was read from `url`."""
    if isinstance(content, Exception):
        raise content
    picture = inspect_picture(content)
    return {
        "image": {"bytes": content, "path": name},
        "width": picture.width,
        "height": picture.height,
        "mode": picture.mode,
        "frames": picture.frames,
        "file_size": len(content),
        "image_md5": verified_md5(url) or md5_of(content),
        "perceptual_hash": picture.perceptual_hash,
    }


def _columns(article: Article, figure: Figure, graphic: Graphic) -> dict[str, Any]:
    """The columns that come from the metadata and the XML."""
    metadata = article.metadata
    return {
        "pair_id": f"{article.name}/{figure.figure_id}/{_stem(graphic.hrefs[0])}",
        "caption": figure.caption,
        "label": figure.label,
        "panel": graphic.panel,
        "mentions": list(figure.mentions),
        "pmcid": article.pmcid,
        "version": article.version,
        "pmid": _text(metadata.get("pmid")),
        "doi": _text(metadata.get("doi")),
        "citation": _text(metadata.get("citation")),
        "license": _text(metadata.get("license_code")),
    }


def _text(value: Any) -> str | None:
    """A value of the metadata as text that can be stored: JSON may hold numbers, and halves of characters."""
    return str(value).encode("utf-8", "replace").decode() if value not in (None, "") else None
