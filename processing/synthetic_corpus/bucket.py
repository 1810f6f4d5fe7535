"""A drawn corpus in the layout of PubMed Central's bucket: articles, pictures, metadata and inventory."""

import csv
import gzip
import hashlib
import io
import json
import os
import tempfile
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from .articles import JOURNALS, Article, ArticleFigure, article_xml, choose_figure_id_form
from .captions import topic_of, write_caption, write_short_caption
from .figures import FIGURE_KINDS
from .randomness import pick


BUCKET = "pmc-oa-opendata"
_INVENTORY = f"inventory-reports/{BUCKET}/metadata"
_INVENTORY_DATE = "2026-01-18T01-00Z"
_LAST_MODIFIED = "2026-01-17T09:30:00.000Z"
_FIRST_NUMBER = 9_000_001
_LICENSES = ("CC BY", "CC BY", "CC BY", "CC0", "CC BY-NC", "CC BY-SA", "CC BY-ND", "CC BY-NC-SA", "CC BY-NC-ND")
# Extensions of a figure's files, with the odds of each.
_FILES: dict[tuple[str, ...], float] = {
    ("jpg",): 0.78,
    ("jpg", "gif"): 0.05,
    ("png",): 0.11,
    ("gif",): 0.03,
    ("tif",): 0.03,
}
_SHORT_CAPTIONS = 0.15  # share of the figures whose caption names no more than their kind
_README = """A corpus of drawn figures in the layout of the PMC Article Datasets.

Every article here is invented: its pictures are drawn by a program, its captions say what was drawn. Nothing comes
from PubMed Central, and no number in it means anything. figure_kinds.csv holds the kind of each figure that can be
kept.
"""

# Each part of the corpus draws its random numbers from a stream of its own: `[seed, stream, number]`.
_PLAN_STREAM, _ARTICLE_STREAM, _FIGURE_STREAM = range(3)


@dataclass(frozen=True)
class DrawnCorpus:
    """What was drawn.

    Args:
        path: The root of the mirror.
        articles: Articles that a builder can keep.
        figures: Their figures.
        kinds: How many of these are of each kind.
    """

    path: Path
    articles: int
    figures: int
    kinds: dict[str, int]


@dataclass(frozen=True)
class _PlannedFigure:
    number: int
    kind: str
    combination: int


@dataclass(frozen=True)
class _PlannedArticle:
    """An article to write; `status` is "current", "updated" (has an older version), "retracted" or "closed"."""

    number: int
    figures: tuple[_PlannedFigure, ...]
    status: str

    @property
    def kept(self) -> bool:
        return self.status in ("current", "updated")


def draw_corpus(
    output_dir: str | os.PathLike[str], *, figures: int = 3000, seed: int = 0, progress: bool = False
) -> DrawnCorpus:
    """Draws a corpus of figures with captions and writes it as a mirror of PMC's bucket.

    Beside the articles that can be kept it holds about 2 % that must be left out (retracted, or not open access) and
    one article in an older version. The same seed gives the same bytes.

    Args:
        output_dir: Folder to write; may exist if it is empty. It appears only when all of it is there.
        figures: How many figures that can be kept, of all kinds in equal parts.
        seed: Seed of everything, 0 or larger.
        progress: Show a bar.

    Returns:
        Where it is, and the counts of what can be kept.

    Raises:
        FileExistsError: `output_dir` is a file, or a folder that is not empty.
        ValueError: `figures` is below 1, or there are not so many different ones, or `seed` is negative.
    """
    output = Path(output_dir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is there already and not empty. Choose another folder, or remove this one.")
    if seed < 0:
        raise ValueError(f"the seed must be 0 or larger, not {seed}.")
    plan = _plan(figures, seed)
    target = output.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    # A hidden neighbour, on the same disk, so that the finished corpus gets its name in one step.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as staging:
        root = Path(staging) / "corpus"
        _write_corpus(root, plan, seed, progress)
        if target.exists():
            target.rmdir()
        root.rename(target)
    kept = [article for article in plan if article.kept]
    kinds = Counter(figure.kind for article in kept for figure in article.figures)
    return DrawnCorpus(
        path=output,
        articles=len(kept),
        figures=figures,
        kinds={kind: kinds[kind] for kind in FIGURE_KINDS},
    )


def _plan(figures: int, seed: int) -> list[_PlannedArticle]:
    """Decides which article holds which figures, and which of them must be left out."""
    capacity = len(FIGURE_KINDS) * min(kind.combinations for kind in FIGURE_KINDS.values())
    if not 1 <= figures <= capacity:
        raise ValueError(f"between 1 and {capacity} different figures can be drawn, not {figures}.")
    rng = np.random.default_rng([seed, _PLAN_STREAM])
    sizes = _article_sizes(figures, rng)
    left_out = max(2, round(0.02 * len(sizes)))
    statuses = ["updated", *["current"] * (len(sizes) - 1), *(("retracted", "closed")[n % 2] for n in range(left_out))]
    sizes += rng.integers(2, 6, left_out).tolist()
    kinds = [*_balanced_kinds(figures, rng), *_balanced_kinds(sum(sizes) - figures, rng)]
    orders = {name: rng.permutation(kind.combinations).tolist() for name, kind in FIGURE_KINDS.items()}
    drawn: Counter[str] = Counter()
    planned = []
    for number, kind in enumerate(kinds):
        # Those that can be kept come first and never repeat; the rest starts again where a kind is exhausted.
        planned.append(_PlannedFigure(number, kind, orders[kind][drawn[kind] % len(orders[kind])]))
        drawn[kind] += 1
    starts = np.cumsum([0, *sizes]).tolist()
    places = rng.permutation(len(sizes)).tolist()
    articles = [
        _PlannedArticle(_FIRST_NUMBER + place, tuple(planned[start : start + size]), status)
        for start, size, status, place in zip(starts, sizes, statuses, places, strict=False)
    ]
    return sorted(articles, key=lambda article: article.number)


def _article_sizes(figures: int, rng: np.random.Generator) -> list[int]:
    """Splits figures over articles of two to five; a corpus of one figure has one article of one."""
    sizes = []
    while figures > 5:
        size = int(rng.integers(2, 6))
        if figures - size == 1:
            size -= 1 if size > 2 else -1
        sizes.append(size)
        figures -= size
    return [*sizes, figures] if figures else sizes


def _balanced_kinds(count: int, rng: np.random.Generator) -> list[str]:
    """`count` names of kinds in random order, each as often as any other, give or take one."""
    names = rng.permutation(list(FIGURE_KINDS)).tolist()
    return rng.permutation([names[number % len(names)] for number in range(count)]).tolist()


def _write_corpus(root: Path, plan: list[_PlannedArticle], seed: int, progress: bool) -> None:
    (root / "metadata").mkdir(parents=True)
    inventory: list[tuple[str, str]] = []
    with (
        (root / "figure_kinds.csv").open("w", encoding="utf-8", newline="") as kinds_file,
        tqdm(total=len(plan), desc="Articles", unit="article", disable=not progress) as bar,
    ):
        kinds_table = csv.writer(kinds_file, lineterminator="\n")
        kinds_table.writerow(("pair_id", "kind"))
        for planned in plan:
            versions = (1, 2) if planned.status == "updated" else (1,)
            for version in versions:
                article, metadata = _write_article(root, planned, version, seed)
                inventory.append((f"metadata/{article.name}.json", _md5(metadata)))
            if planned.kept:
                for figure in article.figures:
                    kinds_table.writerow((f"{article.name}/{figure.figure_id}/{figure.stem}", figure.kind))
            bar.update()
    _write_inventory(root, sorted(inventory), seed)
    (root / "README.txt").write_text(_README, encoding="utf-8", newline="\n")


def _write_article(root: Path, planned: _PlannedArticle, version: int, seed: int) -> tuple[Article, bytes]:
    """Writes all objects of one version of an article; returns it with its metadata as JSON."""
    rng = np.random.default_rng([seed, _ARTICLE_STREAM, planned.number])
    id_form = choose_figure_id_form(rng)
    folder = root / f"PMC{planned.number}.{version}"
    folder.mkdir()
    figures = []
    media: dict[str, str] = {}
    for position, figure in enumerate(planned.figures, start=1):
        stem = f"drawn-{planned.number}-g{position:03d}"
        written, files = _draw_figure(figure, id_form.format(position), stem, seed)
        figures.append(written)
        for name, content in files.items():
            (folder / name).write_bytes(content)
            media[name] = _md5(content)
    article = Article(
        pmcid=f"PMC{planned.number}",
        version=version,
        title=f"{topic_of(figures[0].kind)}: a drawn study",
        journal=pick(JOURNALS, rng),
        year=int(rng.integers(2005, 2026)),
        license_code="TDM" if planned.status == "closed" else pick(_LICENSES, rng),
        figures=tuple(figures),
    )
    if planned.status == "retracted":
        article = replace(article, title=f"Retracted: {article.title}")
    xml, text = article_xml(article, rng)
    (folder / f"{article.name}.xml").write_bytes(xml)
    (folder / f"{article.name}.txt").write_bytes(text.encode())
    media[f"{article.name}.xml"] = _md5(xml)
    media[f"{article.name}.txt"] = _md5(text.encode())
    manuscript = planned.status == "updated" and version == 1
    metadata = json.dumps(_metadata(article, planned, manuscript, media), indent=1, ensure_ascii=False).encode()
    (folder / f"{article.name}.json").write_bytes(metadata)
    (root / "metadata" / f"{article.name}.json").write_bytes(metadata)
    return article, metadata


def _metadata(article: Article, planned: _PlannedArticle, manuscript: bool, md5s: dict[str, str]) -> dict[str, Any]:
    """The metadata JSON; `md5s` by the names of the article's objects."""
    urls = {name: f"s3://{BUCKET}/{article.name}/{name}?md5={md5}" for name, md5 in md5s.items()}
    return {
        "pmcid": article.pmcid,
        "version": article.version,
        "pmid": None,
        "doi": article.doi,
        "title": article.title,
        "citation": f"{article.journal}. {article.year}",
        "is_pmc_openaccess": planned.status != "closed",
        "is_manuscript": manuscript,
        "is_historical_ocr": False,
        "is_retracted": planned.status == "retracted",
        "license_code": article.license_code,
        "xml_url": urls.pop(f"{article.name}.xml"),
        "text_url": urls.pop(f"{article.name}.txt"),
        "pdf_url": None,
        "media_urls": [urls[name] for name in sorted(urls)],
    }


def _draw_figure(
    planned: _PlannedFigure, figure_id: str, stem: str, seed: int
) -> tuple[ArticleFigure, dict[str, bytes]]:
    """One figure, with the contents of its files by name."""
    rng = np.random.default_rng([seed, _FIGURE_STREAM, planned.number])
    kind = FIGURE_KINDS[planned.kind]
    attributes = kind.combination(planned.combination)
    picture = kind.draw(attributes, rng)
    extensions = list(_FILES)[int(rng.choice(len(_FILES), p=list(_FILES.values())))]
    short = rng.random() < _SHORT_CAPTIONS
    caption = (
        write_short_caption(kind.name, planned.number, rng) if short else write_caption(kind.name, attributes, rng)
    )
    figure = ArticleFigure(figure_id, kind.name, caption, stem, extensions)
    files = {f"{stem}.{extension}": _encode(picture, extension, rng) for extension in extensions[:1]}
    for extension in extensions[1:]:
        # As in PMC, the second file is a thumbnail.
        files[f"{stem}.{extension}"] = _encode(picture.reduce(2), extension, rng)
    return figure, files


def _encode(picture: Image.Image, extension: str, rng: np.random.Generator) -> bytes:
    """The bytes of an image file; palettes are made for GIF, and for half of the colour PNGs."""
    if picture.mode == "RGB" and (extension == "gif" or (extension == "png" and rng.random() < 0.5)):
        picture = picture.quantize(128)
    buffer = io.BytesIO()
    if extension == "jpg":
        picture.save(buffer, "JPEG", quality=88)
    elif extension == "tif":
        picture.save(buffer, "TIFF", compression="tiff_lzw")
    else:
        picture.save(buffer, extension.upper())
    return buffer.getvalue()


def _write_inventory(root: Path, entries: list[tuple[str, str]], seed: int) -> None:
    """Writes the daily inventory: `entries` are the keys of the metadata objects with their ETags."""
    table = io.StringIO(newline="")
    rows = csv.writer(table, quoting=csv.QUOTE_ALL, lineterminator="\n")
    rows.writerows((BUCKET, key, _LAST_MODIFIED, etag) for key, etag in entries)
    content = gzip.compress(table.getvalue().encode(), mtime=0)
    key = f"{_INVENTORY}/data/{uuid.uuid5(uuid.NAMESPACE_URL, f's3://{BUCKET}/drawn/{seed}/{len(entries)}')}.csv.gz"
    manifest = {
        "sourceBucket": BUCKET,
        "destinationBucket": f"arn:aws:s3:::{BUCKET}",
        "version": "2016-11-30",
        "fileFormat": "CSV",
        "fileSchema": "Bucket, Key, LastModifiedDate, ETag",
        "files": [{"key": key, "size": len(content), "MD5checksum": _md5(content)}],
    }
    (root / key).parent.mkdir(parents=True)
    (root / key).write_bytes(content)
    folder = root / _INVENTORY / _INVENTORY_DATE
    folder.mkdir()
    (folder / "manifest.json").write_bytes(json.dumps(manifest, indent=1).encode())


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
