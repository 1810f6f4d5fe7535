"""Write a synthetic corpus in the layout of PubMed Central's bucket: articles, images, metadata and inventory."""

import csv
import gzip
import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pyarrow import parquet
from tqdm.auto import tqdm

from .articles import LICENSES, Article, ArticleFigure, article_xml, write_caption
from .figures import FIGURE_KINDS


BUCKET = "pmc-oa-opendata"
KINDS_FILE = "figure_kinds.csv"
_INVENTORY = f"inventory-reports/{BUCKET}/metadata"
_INVENTORY_DATE = "2026-01-18T01-00Z"
_LAST_MODIFIED = "2026-01-17T09:30:00.000Z"
_FIRST_ARTICLE = 9_000_001
_FORMATS = {"jpg": 0.8, "png": 0.12, "gif": 0.04, "tif": 0.04}  # probability of each option
_LEFT_OUT = 0.02  # fraction of articles that a build must skip, half of them retracted and half not open access
_README = f"""Synthetic data in the layout of the PMC Article Datasets, for tests and demonstrations.

A program generated the images and the captions. No article comes from PubMed Central. {KINDS_FILE} contains the kind of
each figure.
"""


def write_synthetic_corpus(
    output_dir: str | os.PathLike[str], *, figures: int = 3000, seed: int = 0, progress: bool = False
) -> None:
    """Write synthetic articles as a mirror of PubMed Central's bucket.

    An article has two to five figures. `figures` is the number of figures in the articles that a build keeps. All kinds
    are equally frequent. A build skips the other articles: retracted ones, those that are not open access, and an older
    version of one article. The same seed produces the same bytes.

    Raises:
        FileExistsError: If `output_dir` is a file or is not empty.
        ValueError: If `figures` is less than 1 or more than the number of different figures, or `seed` is negative.
    """
    root = Path(output_dir)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} exists and is not an empty folder. Choose another `output_dir`.")
    most = len(FIGURE_KINDS) * min(kind.combinations for kind in FIGURE_KINDS.values())
    if not 1 <= figures <= most:
        raise ValueError(f"`figures` must be between 1 and {most}, not {figures}.")
    if seed < 0:
        raise ValueError(f"`seed` must be 0 or larger, not {seed}.")
    (root / "metadata").mkdir(parents=True)
    inventory, kinds = [], [("pair_id", "kind")]
    for number, (planned, status) in enumerate(tqdm(_plan(figures, seed), desc="Articles", disable=not progress)):
        for version in (1, 2) if status == "updated" else (1,):
            article = _write_article(root, _FIRST_ARTICLE + number, version, planned, status, seed)
            metadata = (root / "metadata" / f"{article.name}.json").read_bytes()
            inventory.append((BUCKET, f"metadata/{article.name}.json", _LAST_MODIFIED, _md5(metadata)))
        if status in ("current", "updated"):
            for figure in article.figures:
                kinds.append((f"{article.name}/{figure.figure_id}/{Path(figure.file).stem}", figure.kind))
    _write_inventory(root, sorted(inventory))
    (root / KINDS_FILE).write_bytes(_csv(kinds))
    (root / "README.txt").write_text(_README, encoding="utf-8", newline="\n")


def write_labels(corpus: str | os.PathLike[str], dataset: str | os.PathLike[str]) -> None:
    """Write the kinds of the figures in a corpus to `labels.csv` in the dataset that was built from it."""
    built = set(parquet.read_table(Path(dataset) / "data", columns=["pair_id"])["pair_id"].to_pylist())
    with (Path(corpus) / KINDS_FILE).open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    kept = [tuple(row) for row in rows if row[0] in built]
    (Path(dataset) / "labels.csv").write_bytes(_csv([tuple(header), *kept]))


def _plan(figures: int, seed: int) -> list[tuple[list[tuple[int, str, int]], str]]:
    """Return the figures (number, kind, combination) and the status of each article."""
    rng = np.random.default_rng(seed)
    names = list(FIGURE_KINDS)
    combinations = {name: rng.permutation(kind.combinations).tolist() for name, kind in FIGURE_KINDS.items()}
    planned = [
        (number, name, combinations[name][number // len(names)])
        for number in range(figures)
        for name in [names[number % len(names)]]
    ]
    planned = [planned[place] for place in rng.permutation(figures)]
    articles: list[tuple[list[tuple[int, str, int]], str]] = []
    while planned:
        size = int(rng.integers(2, 6))
        articles.append((planned[:size], "current" if articles else "updated"))
        planned = planned[size:]
    # The articles that a build skips repeat figures.
    for number in range(max(2, round(_LEFT_OUT * len(articles)))):
        articles.append((articles[number % len(articles)][0], ("retracted", "closed")[number % 2]))
    return [articles[place] for place in rng.permutation(len(articles))]


def _write_article(
    root: Path, number: int, version: int, planned: Sequence[tuple[int, str, int]], status: str, seed: int
) -> Article:
    """Write the files of a version of an article and its metadata."""
    rng = np.random.default_rng([seed, number])  # both versions have the same figures
    folder = root / f"PMC{number}.{version}"
    folder.mkdir()
    figures = []
    for place, (sample, kind, combination) in enumerate(planned, 1):
        image = FIGURE_KINDS[kind].draw(FIGURE_KINDS[kind].combination(combination), rng)
        suffix = rng.choice(list(_FORMATS), p=list(_FORMATS.values()))
        file = f"synthetic-{number}-g{place:03d}.{suffix}"
        image.save(folder / file)
        figures.append(ArticleFigure(f"F{place}", kind, write_caption(kind, combination, sample, rng), file))
    article = Article(
        number=number,
        version=version,
        title=f"{'Retracted: ' * (status == 'retracted')}{FIGURE_KINDS[planned[0][1]].topic}",
        year=int(rng.integers(2005, 2026)),
        license_code="TDM" if status == "closed" else str(rng.choice(LICENSES)),
        figures=figures,
    )
    (folder / f"{article.name}.xml").write_bytes(article_xml(article, floats=bool(rng.random() < 0.3)))
    text = "\n".join([article.title, *(" ".join(figure.caption).strip() for figure in figures)])
    (folder / f"{article.name}.txt").write_text(text, encoding="utf-8", newline="\n")
    urls = {
        path.name: f"s3://{BUCKET}/{article.name}/{path.name}?md5={_md5(path.read_bytes())}"
        for path in sorted(folder.iterdir())
    }
    metadata = {
        "pmcid": f"PMC{number}",
        "version": version,
        "pmid": None,
        "doi": article.doi,
        "title": article.title,
        "citation": f"{article.journal}. {article.year}",
        "is_pmc_openaccess": status != "closed",
        "is_manuscript": status == "updated" and version == 1,
        "is_historical_ocr": False,
        "is_retracted": status == "retracted",
        "license_code": article.license_code,
        "xml_url": urls.pop(f"{article.name}.xml"),
        "text_url": urls.pop(f"{article.name}.txt"),
        "pdf_url": None,
        "media_urls": list(urls.values()),
    }
    for path in (folder, root / "metadata"):
        (path / f"{article.name}.json").write_text(json.dumps(metadata, indent=1), encoding="utf-8", newline="\n")
    return article


def _write_inventory(root: Path, rows: list[tuple[str, ...]]) -> None:
    """Write the inventory: bucket, key, date and ETag of each metadata file."""
    content = gzip.compress(_csv(rows), mtime=0)
    key = f"{_INVENTORY}/data/synthetic.csv.gz"
    manifest = {
        "sourceBucket": BUCKET,
        "destinationBucket": f"arn:aws:s3:::{BUCKET}",
        "version": "2016-11-30",
        "fileFormat": "CSV",
        "fileSchema": "Bucket, Key, LastModifiedDate, ETag",
        "files": [{"key": key, "size": len(content), "MD5checksum": _md5(content)}],
    }
    for path, data in (
        (root / key, content),
        (root / _INVENTORY / _INVENTORY_DATE / "manifest.json", json.dumps(manifest, indent=1).encode()),
    ):
        path.parent.mkdir(parents=True)
        path.write_bytes(data)


def _csv(rows: Sequence[tuple[str, ...]]) -> bytes:
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows(rows)
    return table.getvalue().encode()


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
