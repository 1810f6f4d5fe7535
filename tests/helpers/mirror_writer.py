"""Write small mirrors of PMC's bucket, build datasets from them, and read the results."""

import dataclasses
import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from biomedclip.processing.pmc.inventory import INVENTORY


def png_bytes(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """Return a small image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class MirrorWriter:
    """Writes articles to a folder in the layout of PMC's bucket."""

    def __init__(self, root: Path):
        self.root = root
        (root / "metadata").mkdir(parents=True)

    def article(
        self, number: int, *, figures: str, media: dict[str, bytes], version: int = 1, dates: str = "", **metadata
    ) -> str:
        """Add an article with `figures` in its body and `dates` in its front. Return its name."""
        front = f"<front><article-meta>{dates}</article-meta></front>" if dates else "<front/>"
        xml = (
            '<article xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:mml="http://www.w3.org/1998/Math/MathML">'
            f"{front}<body><sec>{figures}</sec></body></article>"
        )
        return self.raw_article(number, xml=xml.encode(), media=media, version=version, **metadata)

    def raw_article(self, number: int, *, xml: bytes, media: dict[str, bytes], version: int = 1, **metadata) -> str:
        """Add an article with this XML. Return its name."""
        name = f"PMC{number}.{version}"
        (self.root / name).mkdir()

        def url(file: str, content: bytes) -> str:
            (self.root / name / file).write_bytes(content)
            return f"s3://pmc-oa-opendata/{name}/{file}?md5={hashlib.md5(content).hexdigest()}"

        content = {
            "pmcid": f"PMC{number}",
            "version": version,
            "pmid": str(number),
            "doi": f"10.1/{number}",
            "citation": "Journal. 2020",
            "is_pmc_openaccess": True,
            **dict.fromkeys(("is_manuscript", "is_historical_ocr", "is_retracted"), False),
            "license_code": "CC BY",
            "xml_url": url(f"{name}.xml", xml),
            "media_urls": [url(file, bytes_) for file, bytes_ in media.items()],
        } | metadata
        for path in (self.root / name / f"{name}.json", self.root / "metadata" / f"{name}.json"):
            path.write_text(json.dumps(content))
        return name

    def plain_articles(self, count: int, *, figures_each: int = 2, first: int = 1000) -> None:
        """Add articles without special properties."""
        for number in range(first, first + count):
            figures = "".join(
                figure_xml(f"F{n}", f"Caption {n} of article {number}.", f"a{number}-g{n}") for n in range(figures_each)
            )
            media = {f"a{number}-g{n}.png": png_bytes(number * 10 + n) for n in range(figures_each)}
            self.article(number, figures=figures, media=media)


def figure_xml(figure_id: str, caption: str, *hrefs: str) -> str:
    """Return a `<fig>` with a plain caption and images."""
    graphics = "".join(f'<graphic xlink:href="{href}"/>' for href in hrefs)
    label = f"<label>Figure {figure_id}</label>"
    return f'<fig id="{figure_id}">{label}<caption><p>{caption}</p></caption>{graphics}</fig>'


def write_inventory(root, rows: dict[str, str], date: str = "2026-01-18T01-00Z", files: int = 1, **manifest) -> None:
    """Write an inventory of article versions and their ETags, in the format of S3."""
    folder = root / INVENTORY
    (folder / date).mkdir(parents=True)
    (folder / "data").mkdir(exist_ok=True)
    lines = [f'"pmc-oa-opendata","metadata/{name}.json","2026-01-08","{etag}"\n' for name, etag in rows.items()]
    entries = []
    for number in range(files):
        content = gzip.compress("".join(lines[number::files]).encode())
        key = f"{INVENTORY}/data/{date}-{number}.csv.gz"
        (root / key).write_bytes(content)
        entries.append({"key": key, "MD5checksum": hashlib.md5(content).hexdigest()})
    (folder / date / "manifest.json").write_text(json.dumps({"files": entries} | manifest))


def build_set(source: str | Path, output: Path, *, workers: int = 1, **options: Any) -> dict[str, Any]:
    """Build a dataset with arguments of `BuildOptions`, `Engine` and `build_dataset`."""
    from biomedclip.processing.pmc.build import build_dataset
    from biomedclip.processing.pmc.executors import Engine
    from biomedclip.processing.pmc.options import BuildOptions

    def take(option_class: type) -> dict[str, Any]:
        names = [option.name for option in dataclasses.fields(option_class)]
        return {name: options.pop(name) for name in names if name in options}

    engine = Engine(**{"workers": workers, "retries": 0} | take(Engine))
    return build_dataset(BuildOptions(str(source), **take(BuildOptions)), output, engine=engine, **options)


def interrupt(*arguments: object, **options: object) -> None:
    """Interrupt a build. Use it in place of a function."""
    raise KeyboardInterrupt


def rows_of(folder: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Return the rows of all shards of a dataset."""
    shards = sorted((folder / "data").glob("*.parquet"))
    return [row for path in shards for row in pq.read_table(path, columns=columns).to_pylist()]


def skipped_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of `skipped.jsonl`."""
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def dataset_files(folder: Path) -> dict[str, bytes]:
    """Return the contents of the shards, `articles.parquet` and `skipped.jsonl`."""
    return shards_of(folder) | {name: (folder / name).read_bytes() for name in ("articles.parquet", "skipped.jsonl")}


def shards_of(folder: Path) -> dict[str, bytes]:
    """Return the contents of the shards."""
    return {path.name: path.read_bytes() for path in sorted((folder / "data").iterdir())}
