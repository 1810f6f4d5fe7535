"""The steps of the first pass, one `run` each, as datatrove chains them: from a work list to journals of pairs."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
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
from .bucket import Bucket, ObjectDamaged, ObjectError, SourceUnavailable, md5_of, split_url, verified_md5
from .dates import check_published
from .jats import MAX_XML_BYTES, Figure, Graphic, JatsError, find_figures, parse_article, parse_figures
from .journal import TaskJournal, journal_path, read_journal
from .pictures import PictureIndex, inspect_picture
from .shards import pair_schema


logger = logging.getLogger(__name__)

# A page scanned at 400 dpi, uncompressed, has 45 MB; of 475 pictures of PMC the largest has 0.2 MB. Sixteen articles
# are fetched at a time, and each of their pictures is in memory.
MAX_PICTURE_BYTES = 50_000_000
MAX_ARTICLE_BYTES = 300_000_000  # of the pictures of an article, fetched and again as stored
MAX_MENTION_BYTES = 20_000_000  # of an article: a paragraph is stored with each picture that it refers to
NOT_FIRST = "not the first image of its figure"
_ARTICLES_AT_A_TIME = 1000  # a task may have half a million, and as Python objects they take ten times the memory
# Best first: without loss, of those first what every viewer shows; GIF, with its 256 colours, last.
_IMAGE_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg", ".webp", ".gif")


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
        articles = open_parquet(self.work_list).read_row_group(rank).slice(done)
        for batch in articles.to_batches(max_chunksize=_ARTICLES_AT_A_TIME):
            for row in batch.to_pylist():
                yield Document(text=row["pmcid"], id=row["pmcid"], metadata={"article": Article(**row)})


class ArticleStep(PipelineStep):
    """A step that works on one article at a time; an article that fails is dropped, listed, and the run goes on.

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
            if lasting_error(error) is not None:
                raise  # nor is a fault of this machine
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
        except ObjectDamaged as error:
            raise Dropped("metadata damaged", str(error)) from error
        except ObjectError as error:
            raise Dropped("metadata unreadable", str(error)) from error


class ParseFigures(ArticleStep):
    """Takes the figures out of the XML.

    Args:
        max_figures: Images of figures that are taken of an article at most; what comes after them is listed.
        published_until: Last day of publication. Later articles and articles without a date are skipped. None for no
            limit.
        first_image_only: Whether to use only the first image of each figure. The others are skipped.
    """

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
        xml, article.xml = article.xml, b""
        try:
            if self.published_until is None:
                article.figures = parse_figures(xml)
            else:
                root = parse_article(xml)
                check_published(root, self.published_until)
                article.figures = find_figures(root)
        except JatsError as error:
            raise Dropped("XML damaged", str(error)) from error
        if not article.figures:
            raise Dropped("no figures")
        if self.first_image_only:
            self._keep_first_images(article)
        self._cut(article)

    def _keep_first_images(self, article: Article) -> None:
        for figure in article.figures:
            if figure.caption and (others := len(figure.graphics) - 1) > 0:
                article.skip(figure.figure_id, NOT_FIRST, "--first-image-only", others)
        article.figures = [replace(figure, graphics=figure.graphics[:1]) for figure in article.figures]

    def _cut(self, article: Article) -> None:
        """Keeps the first `max_figures` images; a figure without caption or image counts as one."""
        figures, total = article.figures, sum(map(_images, article.figures))
        if total <= self.max_figures:
            return
        left = self.max_figures
        first_cut = figures[0].figure_id
        for number, figure in enumerate(figures):
            if left < _images(figure):
                kept = [replace(figure, graphics=figure.graphics[:left])] if left else []
                article.figures, first_cut = [*figures[:number], *kept], figure.figure_id
                break
            left -= _images(figure)
        article.figures_cut = len(figures) - len(article.figures)
        cut = total - self.max_figures
        detail = f"{cut:,} of {total:,}, from here on: the limit is --max-figures-per-article {self.max_figures}"
        article.skip(first_cut, "too many figures", detail, cut)


def _images(figure: Figure) -> int:
    """What a figure counts for."""
    return max(len(figure.graphics), 1) if figure.caption else 1


class FetchPictures(ArticleStep):
    """Reads every file that a figure with a caption can mean."""

    name = "Fetch pictures"

    def __init__(self, bucket: Bucket, concurrency: int = 1):
        super().__init__(concurrency)
        self.bucket = bucket

    def process(self, article: Article) -> None:
        media = Media(article)
        fetched = 0
        for name in dict.fromkeys(name for figure in article.figures for name in media.files_of_figure(figure)):
            if fetched >= MAX_ARTICLE_BYTES:
                article.pictures[name] = _article_too_large()
                continue
            try:
                content = self.bucket.read(media.urls[name], max_bytes=MAX_PICTURE_BYTES)
            except ObjectError as error:
                article.pictures[name] = error
            else:
                article.pictures[name] = content
                fetched += len(content)


class PairFigures(ArticleStep):
    """Pairs each graphic of a figure with the caption.

    Args:
        benchmark: Pictures that are kept out, with all that look like them.
    """

    name = "Pair figures"

    def __init__(self, benchmark: PictureIndex | None = None):
        super().__init__()
        self.benchmark = benchmark

    def process(self, article: Article) -> None:
        pairing = _Pairing(article, self.benchmark)
        files = [pairing.media.files_of_figure(figure) for figure in article.figures]
        last_uses = {name: number for number, names in enumerate(files) for name in names}
        for number, figure in enumerate(article.figures):
            if not figure.caption:
                article.skip(figure.figure_id, "no caption")
            elif not figure.graphics:
                article.skip(figure.figure_id, "no graphic")
            else:
                for graphic in figure.graphics:
                    pairing.add(figure, graphic)
            pairing.let_go(name for name in files[number] if last_uses[name] == number)
        if not article.pairs:
            raise Dropped("no usable figure")


class _Pairing:
    """The pairs of one article, and what they may still take."""

    def __init__(self, article: Article, benchmark: PictureIndex | None):
        self.article = article
        self.benchmark = benchmark
        self.media = Media(article)
        self.pair_ids: set[str] = set()
        self.inspected: dict[str, dict[str, Any] | Exception] = {}
        self.bytes_left = MAX_ARTICLE_BYTES
        self.mention_bytes_left = MAX_MENTION_BYTES

    def add(self, figure: Figure, graphic: Graphic) -> None:
        """Adds the pair of one graphic, or lists why there is none."""
        article = self.article
        item = f"{figure.figure_id}/{_stem(graphic.hrefs[0])}"
        names = self.media.files_of(graphic)
        if not names:
            article.skip(item, "image missing", "no such file among media_urls")
            return
        if f"{article.name}/{item}" in self.pair_ids:
            article.skip(item, "picture named twice")
            return
        picture = self._best_picture(item, names)
        if picture is None:
            return
        size = picture["file_size"] + len(figure.caption)
        if self.benchmark is not None and self.benchmark.contains(picture["perceptual_hash"]):
            article.skip(item, "like a picture of the benchmark")
        elif size > self.bytes_left:
            article.skip(item, "article too large", str(_article_too_large()))
        else:
            row = {**_columns(article, figure, graphic), **picture, "mentions": self._mentions(item, figure)}
            self.bytes_left -= size
            self.pair_ids.add(row["pair_id"])
            article.pairs.append(row)

    def _mentions(self, item: str, figure: Figure) -> list[str]:
        """The mentions that can still be stored; the first that cannot be ends them for the whole article."""
        kept: list[str] = []
        for mention in figure.mentions:
            if self.mention_bytes_left >= 0:
                self.mention_bytes_left -= len(mention.encode())
            if self.mention_bytes_left < 0:
                left_out = len(figure.mentions) - len(kept)
                self.article.skip(item, "mentions left out", f"{left_out} of {len(figure.mentions)}")
                break
            kept.append(mention)
        return kept

    def _best_picture(self, item: str, names: list[str]) -> dict[str, Any] | None:
        """The columns of the largest file that decodes, of several the first; all faults are listed."""
        best: dict[str, Any] | None = None
        faults: list[tuple[str, str, str]] = []
        for name in names:
            picture = self._inspect(name)
            if isinstance(picture, Exception):
                reason = picture.reason if isinstance(picture, ImageError) else "image unreadable"
                faults.append((f"{item}/{name}", reason, str(picture)))
            elif best is None or picture["width"] * picture["height"] > best["width"] * best["height"]:
                best = picture
        for name, reason, detail in faults:
            self.article.skip(name, reason if best is None else f"{reason}, another file taken", detail)
        return best

    def _inspect(self, name: str) -> dict[str, Any] | Exception:
        """The columns of a file, or why there are none; each is decoded once, however many graphics mean it."""
        if name not in self.inspected:
            try:
                self.inspected[name] = _picture_columns(name, self.article.pictures[name], self.media.urls[name])
            except (ObjectError, ImageError) as error:
                self.inspected[name] = error
        return self.inspected[name]

    def let_go(self, names: Iterable[str]) -> None:
        """Forgets files that no later figure needs."""
        for name in names:
            self.article.pictures.pop(name, None)
            self.inspected.pop(name, None)


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


class Media:
    """The picture files of an article, by their names and by what figures call them.

    Args:
        article: Its metadata are looked at.
    """

    def __init__(self, article: Article):
        named = {split_url(url)[0].rsplit("/", 1)[-1]: url for url in article.metadata.get("media_urls") or ()}
        self.urls = {name: url for name, url in named.items() if _extension(name) in _IMAGE_EXTENSIONS}
        self._by_stem = _grouped(self.urls, _stem)
        self._by_lower_stem = _grouped(self.urls, lambda name: _stem(name).lower())

    def files_of(self, graphic: Graphic) -> list[str]:
        """Names of the files that a graphic can mean, each once, best first: by format, then by name.

        An `xlink:href` stands with or without extension, now and then it is a URL or an identifier with slashes. A dot
        need not start an extension (`OXIMED2011-962025.002`). Capitals count where that finds a file.
        """
        names = {name for href in graphic.hrefs for name in self._matching(_stem(href))}
        return sorted(names, key=lambda name: (_IMAGE_EXTENSIONS.index(_extension(name)), name))

    def files_of_figure(self, figure: Figure) -> list[str]:
        """Names of the files that a pair of the figure can come from; none where it has no caption."""
        return [name for graphic in figure.graphics for name in self.files_of(graphic)] if figure.caption else []

    def _matching(self, stem: str) -> list[str]:
        return self._by_stem.get(stem) or self._by_lower_stem.get(stem.lower()) or []


def _grouped(names: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return groups


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _stem(href: str) -> str:
    """The last part of a path without an image's extension; other dots belong to the name."""
    name = href.rsplit("/", 1)[-1]
    return os.path.splitext(name)[0] if _extension(name) in _IMAGE_EXTENSIONS else name


def _article_too_large() -> ImageError:
    return ImageError(f"the pictures of the article have more than {MAX_ARTICLE_BYTES:,} bytes", "article too large")


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
        "pmcid": article.pmcid,
        "version": article.version,
        "pmid": _text(metadata.get("pmid")),
        "doi": _text(metadata.get("doi")),
        "title": _text(metadata.get("title")),
        "citation": _text(metadata.get("citation")),
        "license": _text(metadata.get("license_code")),
    }


def _text(value: Any) -> str | None:
    """A value of the metadata as text that can be stored: JSON may hold numbers."""
    return storable_text(str(value)) if value not in (None, "") else None
