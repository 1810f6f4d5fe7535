"""Writes small mirrors of PMC's bucket for tests."""

import dataclasses
import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from biomedclip.processing.pmc.inventory import INVENTORY


def png_bytes(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """A small picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class MirrorWriter:
    """Writes articles into a folder in the layout of PMC's bucket."""

    def __init__(self, root: Path):
        self.root = root
        (root / "metadata").mkdir(parents=True)

    def article(
        self, number: int, *, figures: str, media: dict[str, bytes], version: int = 1, dates: str = "", **metadata
    ) -> str:
        """Adds an article whose XML holds `figures` in its body and `dates` in its front; returns its name."""
        front = f"<front><article-meta>{dates}</article-meta></front>" if dates else "<front/>"
        xml = (
            '<article xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:mml="http://www.w3.org/1998/Math/MathML">'
            f"{front}<body><sec>{figures}</sec></body></article>"
        )
        return self.raw_article(number, xml=xml.encode(), media=media, version=version, **metadata)

    def raw_article(self, number: int, *, xml: bytes, media: dict[str, bytes], version: int = 1, **metadata) -> str:
        """Adds an article with this XML; returns its name."""
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
            "is_manuscript": False,
            "is_historical_ocr": False,
            "is_retracted": False,
            "license_code": "CC BY",
            "xml_url": url(f"{name}.xml", xml),
            "media_urls": [url(file, bytes_) for file, bytes_ in media.items()],
        } | metadata
        for path in (self.root / name / f"{name}.json", self.root / "metadata" / f"{name}.json"):
            path.write_text(json.dumps(content))
        return name

    def plain_articles(self, count: int, *, figures_each: int = 2, first: int = 1000) -> None:
        """Adds articles with nothing special about them."""
        for number in range(first, first + count):
            figures = "".join(
                figure_xml(f"F{n}", f"Caption {n} of article {number}.", f"a{number}-g{n}") for n in range(figures_each)
            )
            media = {f"a{number}-g{n}.png": png_bytes(number * 10 + n) for n in range(figures_each)}
            self.article(number, figures=figures, media=media)


def figure_xml(figure_id: str, caption: str, href: str) -> str:
    """One `<fig>` with a plain caption."""
    return (
        f'<fig id="{figure_id}"><label>Figure {figure_id}</label><caption><p>{caption}</p></caption>'
        f'<graphic xlink:href="{href}"/></fig>'
    )


def write_inventory(root, rows: dict[str, str], date: str = "2026-01-18T01-00Z", files: int = 1, **manifest) -> None:
    """An inventory of article versions with their ETags, as S3 writes it."""
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
    """Builds a data set with options of `BuildOptions` and `build_dataset` alike."""
    from biomedclip.processing.pmc.build import BuildOptions, build_dataset
    from biomedclip.processing.pmc.executors import Engine

    names = {option.name for option in dataclasses.fields(BuildOptions)}
    what = BuildOptions(str(source), **{name: value for name, value in options.items() if name in names})
    how = {name: value for name, value in options.items() if name not in names}
    return build_dataset(what, output, **{"engine": Engine(workers=workers, retries=0)} | how)
