"""The datatrove steps that turn articles into pairs, from the work list to the journals."""

import bisect
import itertools
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from ..images.reading import ImageError
from ..integrity import open_parquet
from ..retries import lasting_error
from .articles import FIGURES_PER_ARTICLE, Article, Dropped, choose_version, storable_text
from .bucket import Bucket, ObjectDamaged, ObjectError, SourceUnavailable, md5_of, split_url
from .dates import check_published
from .images import ImageIndex, inspect_image
from .jats import MAX_XML_BYTES, Figure, Graphic, JatsError, find_figures, parse_article
from .journal import TaskJournal, journal_path, read_journal
from .shards import pair_schema


logger = logging.getLogger(__name__)

# The images of 16 articles are in memory at a time. An uncompressed page at 400 dpi takes 45 MB.
MAX_IMAGE_BYTES = 50_000_000
MAX_ARTICLE_BYTES = 300_000_000  # of the images of an article
MAX_MENTION_BYTES = 20_000_000  # per article, because a paragraph is stored with each image that it refers to
NOT_FIRST = "not the first image of its figure"
_BATCH_ARTICLES = 1000  # a task may have half a million, and Python objects would take ten times the memory
# Best first: lossless formats, the most common of them first. GIF is last, because it is limited to 256 colors.
_IMAGE_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg", ".webp", ".gif")


class ReadWorkList(PipelineStep):
    """Read the articles of this task from the work list, except those already in its journal."""

    name = "Read work list"
    type = "PMC"

    def __init__(self, work_list: str, journals: str):
        super().__init__()
        self.work_list = work_list
        self.journals = journals

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the articles of this task."""
        # The last step opens the journal and removes an incomplete article before it requests the first article.
        done = sum(1 for _ in read_journal(journal_path(Path(self.journals), rank)))
        articles = open_parquet(self.work_list).read_row_group(rank).slice(done)
        for batch in articles.to_batches(max_chunksize=_BATCH_ARTICLES):
            for row in batch.to_pylist():
                yield Document(text=row["pmcid"], id=row["pmcid"], metadata={"article": Article(**row)})


class ArticleStep(PipelineStep):
    """A step that processes single articles. If an article fails, it is dropped and the run continues.

    `concurrency` articles are processed in parallel threads. Their order does not change.
    """

    type = "PMC"

    def __init__(self, concurrency: int = 1):
        super().__init__()
        self.concurrency = concurrency

    def process(self, article: Article) -> None:
        """Process an article. Raise `Dropped` to drop it."""
        raise NotImplementedError

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Process the articles and yield them in order."""
        if self.concurrency == 1:
            for document in data:
                self._process_or_drop(document.metadata["article"])
                yield document
            return
        with ThreadPoolExecutor(self.concurrency) as pool:
            pending: deque[tuple[Document, Any]] = deque()
            for document in data:
                pending.append((document, pool.submit(self._process_or_drop, document.metadata["article"])))
                if len(pending) > self.concurrency:
                    yield self._finished(*pending.popleft())
            while pending:
                yield self._finished(*pending.popleft())

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
            raise  # the article is not at fault: the task fails and can be resumed
        except Exception as error:  # any other error on untrusted input only drops the article
            if lasting_error(error) is not None:
                raise  # a fault of this machine
            logger.exception("%s failed on %s", self.name, article.name)
            article.drop("unexpected error", f"{type(error).__name__}: {error}")


class ReadArticles(ArticleStep):
    """Read the metadata of an article, choose a version, and read its XML."""

    name = "Read articles"

    def __init__(self, bucket: Bucket, licenses: frozenset[str] | None, concurrency: int = 1):
        super().__init__(concurrency)
        self.bucket = bucket
        self.licenses = licenses

    def process(self, article: Article) -> None:
        """Set the version, metadata and XML of an article."""
        choose_version(article, self._read_metadata, self.licenses)
        try:
            article.xml = self.bucket.read(article.metadata["xml_url"], max_bytes=MAX_XML_BYTES)
        except ObjectError as error:
            raise Dropped("XML unreadable", str(error)) from error

    def _read_metadata(self, name: str) -> dict[str, Any]:
        try:
            return self.bucket.read_metadata(name)
        except ObjectError as error:
            state = "damaged" if isinstance(error, ObjectDamaged) else "unreadable"
            raise Dropped(f"metadata {state}", str(error)) from error


class ParseFigures(ArticleStep):
    """Parse the figures of the XML, with the limits of [`BuildOptions`]."""

    name = "Parse figures"

    def __init__(
        self,
        max_figures: int = FIGURES_PER_ARTICLE,
        published_until: date | None = None,
        first_image_only: bool = False,
    ):
        super().__init__()
        self.max_figures = max_figures
        self.published_until = published_until
        self.first_image_only = first_image_only

    def process(self, article: Article) -> None:
        """Set the figures of an article."""
        xml, article.xml = article.xml, b""
        try:
            root = parse_article(xml)
            if self.published_until is not None:
                check_published(root, self.published_until)
            article.figures = find_figures(root)
        except JatsError as error:
            raise Dropped("XML damaged", str(error)) from error
        if not article.figures:
            raise Dropped("no figures")
        if self.first_image_only:
            for figure in article.figures:
                if figure.caption and (others := len(figure.graphics) - 1) > 0:
                    article.skip(figure.figure_id, NOT_FIRST, "first_image_only", others)
            article.figures = [replace(figure, graphics=figure.graphics[:1]) for figure in article.figures]
        self._limit_images(article)

    def _limit_images(self, article: Article) -> None:
        figures, edges = article.figures, [0, *itertools.accumulate(map(count_images, article.figures))]
        total = edges[-1]
        if total <= self.max_figures:
            return
        number = bisect.bisect(edges, self.max_figures) - 1  # of the figure that contains the first image beyond
        left = self.max_figures - edges[number]
        kept = [replace(figures[number], graphics=figures[number].graphics[:left])] if left else []
        article.figures, first_cut = [*figures[:number], *kept], figures[number].figure_id
        article.figures_cut = len(figures) - len(article.figures)
        cut = total - self.max_figures
        detail = f"{cut:,} of {total:,}, from here on: max_figures_per_article is {self.max_figures}"
        article.skip(first_cut, "too many figures", detail, cut)


def count_images(figure: Figure) -> int:
    """Return the number of images of a figure. A figure without a caption or image counts as one."""
    return max(len(figure.graphics), 1) if figure.caption else 1


class FetchImages(ArticleStep):
    """Read every image file that may belong to a figure with a caption."""

    name = "Fetch images"

    def __init__(self, bucket: Bucket, concurrency: int = 1):
        super().__init__(concurrency)
        self.bucket = bucket

    def process(self, article: Article) -> None:
        """Read the image files of an article."""
        media = Media(article)
        fetched = 0
        for name in dict.fromkeys(name for figure in article.figures for name in media.files_of_figure(figure)):
            if fetched >= MAX_ARTICLE_BYTES:
                article.images[name] = article_too_large()
                continue
            try:
                content = self.bucket.read(media.urls[name], max_bytes=MAX_IMAGE_BYTES)
            except ObjectError as error:
                article.images[name] = error
            else:
                article.images[name] = content
                fetched += len(content)


class PairFigures(ArticleStep):
    """Pair each image of a figure with its caption. Images similar to those of `benchmark` are skipped."""

    name = "Pair figures"

    def __init__(self, benchmark: ImageIndex | None = None):
        super().__init__()
        self.benchmark = benchmark

    def process(self, article: Article) -> None:
        """Set the pairs of an article."""
        pairing = _Pairing(article, self.benchmark)
        files = [pairing.media.files_of_figure(figure) for figure in article.figures]
        last_uses = {name: number for number, names in enumerate(files) for name in names}
        for number, figure in enumerate(article.figures):
            if not figure.caption:
                article.skip(figure.figure_id, "no caption")
            elif not figure.graphics:
                article.skip(figure.figure_id, "no image")
            else:
                for graphic in figure.graphics:
                    pairing.add(figure, graphic)
            for name in files[number]:
                if last_uses[name] == number:  # free its memory
                    article.images.pop(name, None)
                    pairing.inspected.pop(name, None)
        if not article.pairs:
            raise Dropped("no usable figure")


class _Pairing:
    """Adds pairs to an article, within the limits per article."""

    def __init__(self, article: Article, benchmark: ImageIndex | None):
        self.article = article
        self.benchmark = benchmark
        self.media = Media(article)
        self.pair_ids: set[str] = set()
        self.inspected: dict[str, dict[str, Any] | Exception] = {}
        self.bytes_left = MAX_ARTICLE_BYTES
        self.mentions = MentionLimit(article)

    def add(self, figure: Figure, graphic: Graphic) -> None:
        """Add the pair of an image, or record why the image is skipped."""
        article = self.article
        item = f"{figure.figure_id}/{_stem(graphic.hrefs[0])}"
        names = self.media.files_of(graphic)
        if not names:
            article.skip(item, "image missing", "no such file in media_urls")
            return
        if f"{article.name}/{item}" in self.pair_ids:
            article.skip(item, "duplicate image")
            return
        image = self._best_image(item, names)
        if image is None:
            return
        size = image["file_size"] + len(figure.caption)
        if self.benchmark is not None and self.benchmark.contains(image["perceptual_hash"]):
            article.skip(item, "similar to a benchmark image")
        elif size > self.bytes_left:
            article.skip(item, "article too large", str(article_too_large()))
        else:
            mentions = self.mentions.kept(item, figure.mentions)
            row = {**_columns(article, figure, graphic), **image, "mentions": mentions}
            self.bytes_left -= size
            self.pair_ids.add(row["pair_id"])
            article.pairs.append(row)

    def _best_image(self, item: str, names: list[str]) -> dict[str, Any] | None:
        """Return the columns of the largest file that can be decoded, and record the errors of the others."""
        best: dict[str, Any] | None = None
        faults: list[tuple[str, str, str]] = []
        for name in names:
            image = self._inspect(name)
            if isinstance(image, Exception):
                reason = image.reason if isinstance(image, ImageError) else "image unreadable"
                faults.append((f"{item}/{name}", reason, str(image)))
            elif best is None or image["width"] * image["height"] > best["width"] * best["height"]:
                best = image
        for name, reason, detail in faults:
            self.article.skip(name, reason if best is None else f"{reason}, another file used", detail)
        return best

    def _inspect(self, name: str) -> dict[str, Any] | Exception:
        """Return the columns of a file, or its error. Each file is decoded once."""
        if name not in self.inspected:
            try:
                self.inspected[name] = _image_columns(name, self.article.images[name], self.media.urls[name])
            except (ObjectError, ImageError) as error:
                self.inspected[name] = error
        return self.inspected[name]


class MentionLimit:
    """Limits the mentions of all rows of an article. After the first that exceeds the limit, no more are added."""

    def __init__(self, article: Article):
        self.article = article
        self.bytes_left = MAX_MENTION_BYTES

    def kept(self, item: str, mentions: Sequence[str]) -> list[str]:
        """Return the mentions within the limit, and record those of `item` that are omitted."""
        kept: list[str] = []
        for mention in mentions:
            if self.bytes_left >= 0:
                self.bytes_left -= len(mention.encode())
            if self.bytes_left < 0:
                self.article.skip(item, "mentions omitted", f"{len(mentions) - len(kept)} of {len(mentions)}")
                break
            kept.append(mention)
        return kept


class WriteArticles(PipelineStep):
    """Write the outcome of each article to the journal of the task."""

    name = "Write articles"
    type = "PMC"

    def __init__(self, journals: str, *, panels: bool = False):
        super().__init__()
        self.journals = journals
        self.panels = panels

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Write the articles and yield them."""
        with TaskJournal(Path(self.journals), rank, pair_schema(panels=self.panels)) as journal:
            for document in data:
                article = document.metadata["article"]
                journal.add(article)
                self.stat_update("articles", value=1)
                self.stat_update("pairs", value=len(article.pairs))
                yield document


class Media:
    """The image files of an article. Finds the files to which the images of figures refer."""

    def __init__(self, article: Article):
        urls = {split_url(url)[0].rsplit("/", 1)[-1]: url for url in article.metadata.get("media_urls") or ()}
        self.urls = {name: url for name, url in urls.items() if _extension(name) in _IMAGE_EXTENSIONS}
        self._by_stem: dict[str, list[str]] = {}
        self._by_lower_stem: dict[str, list[str]] = {}
        for name in self.urls:
            self._by_stem.setdefault(_stem(name), []).append(name)
            self._by_lower_stem.setdefault(_stem(name).lower(), []).append(name)

    def files_of(self, graphic: Graphic) -> list[str]:
        """Return the names of the files that an image may refer to, by format, then by name.

        An `xlink:href` may lack an extension. It may be a URL or an identifier with slashes. A dot does not always
        start an extension (`OXIMED2011-962025.002`). Case is ignored only if no file matches it.
        """
        stems = map(_stem, graphic.hrefs)
        names = {
            name for stem in stems for name in self._by_stem.get(stem) or self._by_lower_stem.get(stem.lower()) or ()
        }
        return sorted(names, key=lambda name: (_IMAGE_EXTENSIONS.index(_extension(name)), name))

    def files_of_figure(self, figure: Figure) -> list[str]:
        """Return the names of the files that the pairs of a figure may use. The result is empty without a caption."""
        return [name for graphic in figure.graphics for name in self.files_of(graphic)] if figure.caption else []


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _stem(href: str) -> str:
    """Return the last part of a path without an image extension."""
    name = href.rsplit("/", 1)[-1]
    return os.path.splitext(name)[0] if _extension(name) in _IMAGE_EXTENSIONS else name


def article_too_large() -> ImageError:
    """Return the error for images beyond the limit of an article."""
    return ImageError(f"the images of the article have more than {MAX_ARTICLE_BYTES:,} bytes", "article too large")


def _image_columns(name: str, content: bytes | Exception, url: str) -> dict[str, Any]:
    if isinstance(content, Exception):
        raise content
    image = inspect_image(content)
    return {
        "image": {"bytes": content, "path": name},
        "width": image.width,
        "height": image.height,
        "mode": image.mode,
        "frames": image.frames,
        "file_size": len(content),
        "image_md5": split_url(url)[1] or md5_of(content),  # the bucket has checked the MD5 of the URL
        "perceptual_hash": image.perceptual_hash,
    }


def _columns(article: Article, figure: Figure, graphic: Graphic) -> dict[str, Any]:
    """Return the columns from the metadata and the XML."""
    metadata = article.metadata
    return {
        "pair_id": f"{article.name}/{figure.figure_id}/{_stem(graphic.hrefs[0])}",
        "caption": figure.caption,
        "label": figure.label,
        "panel": graphic.panel,
        "pmcid": article.pmcid,
        "version": article.version,
        **{name: _text(metadata.get(name)) for name in ("pmid", "doi", "title", "citation")},
        "license": _text(metadata.get("license_code")),
    }


def _text(value: Any) -> str | None:
    """Return a metadata value, such as a number, as text that can be stored."""
    return storable_text(str(value)) if value not in (None, "") else None
