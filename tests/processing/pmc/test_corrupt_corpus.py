"""A corpus with every kind of damage, over a server that is slow and fails: all of it is listed, all else is kept."""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.mirror_writer import build_set, figure_xml, png_bytes, write_inventory
from PIL import Image

from biomedclip.processing.pmc import bucket as bucket_module


GOOD_ARTICLES = 120
XML = '<article xmlns:xlink="http://www.w3.org/1999/xlink"><body>{}</body></article>'
BOMB = (
    '<!DOCTYPE article [<!ENTITY a "boom"><!ENTITY b "'
    + "&a;" * 50
    + '"><!ENTITY c "'
    + "&b;" * 50
    + '"><!ENTITY d "'
    + "&c;" * 50
    + '">]>'
)


def jpeg(size: tuple[int, int] = (60, 50), mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(Image.new(mode, (1, 1)).getbands())))
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8).squeeze(), mode).save(buffer, "JPEG")
    return buffer.getvalue()


def animation() -> bytes:
    frames = [Image.open(io.BytesIO(png_bytes(seed))).quantize(16) for seed in (5, 6, 7)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def sixteen_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 4096, (40, 50)).astype(np.uint16)).save(buffer, "TIFF")
    return buffer.getvalue()


def header_of_a_bomb() -> bytes:
    """A PNG of some hundred bytes that says it has 40,000 x 40,000 pixels."""
    content = bytearray(png_bytes(1))
    content[16:24] = (40_000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    return bytes(content)


# Damage by article: what is written, and the reason that has to stand in the list.
FORBIDDEN = "g.jpeg"  # answered with 403


def damaged_xml(mirror, number: int) -> None:
    whole = XML.format(figure_xml("F1", "Cut off.", "g"))
    mirror.raw_article(number, xml=whole.encode()[: len(whole) // 2], media={"g.png": png_bytes(1)})


def entity_bomb(mirror, number: int) -> None:
    xml = BOMB + XML.format(figure_xml("F1", "Boom &d;", "g"))
    mirror.raw_article(number, xml=xml.encode(), media={"g.png": png_bytes(1)})


def picture(content: bytes, name: str = "g.jpg"):
    def write(mirror, number: int) -> None:
        mirror.article(number, figures=figure_xml("F1", f"Picture {number}.", "g"), media={name: content})

    return write


def changed_object(name: str):
    def write(mirror, number: int) -> None:
        mirror.article(number, figures=figure_xml("F1", "Changed.", "g"), media={"g.png": png_bytes(1)})
        path = mirror.root / f"PMC{number}.1" / name.format(number)
        path.write_bytes(path.read_bytes() + b" ")

    return write


def lost_object(name: str):
    def write(mirror, number: int) -> None:
        mirror.article(number, figures=figure_xml("F1", "Lost.", "g"), media={"g.png": png_bytes(1)})
        (mirror.root / f"PMC{number}.1" / name.format(number)).unlink()

    return write


def metadata(**change):
    def write(mirror, number: int) -> None:
        mirror.article(number, figures=figure_xml("F1", "Odd.", "g"), media={"g.png": png_bytes(1)}, **change)

    return write


def unreadable_metadata(mirror, number: int) -> None:
    metadata()(mirror, number)
    for folder in (mirror.root / "metadata", mirror.root / f"PMC{number}.1"):
        (folder / f"PMC{number}.1.json").write_bytes(b'{"pmcid": "PMC')


DAMAGE = [
    (damaged_xml, "XML damaged"),
    (entity_bomb, "XML damaged"),
    (changed_object("PMC{}.1.xml"), "XML unreadable"),
    (lost_object("PMC{}.1.xml"), "XML unreadable"),
    (changed_object("g.png"), "image unreadable"),
    (lost_object("g.png"), "image unreadable"),
    (picture(jpeg()[:400]), "image damaged"),
    (picture(b""), "image damaged"),
    (picture(jpeg()[:400], FORBIDDEN), "image unreadable"),
    (picture(b"%PDF-1.4"), "image of unknown format"),
    (picture(jpeg((10, 300))), "image too small"),
    (picture(header_of_a_bomb(), "g.png"), "image too large"),
    (unreadable_metadata, "metadata unreadable"),
    (metadata(media_urls=17), "metadata damaged"),
    (metadata(media_urls=[17, None]), "metadata damaged"),
    (metadata(media_urls=None), "image missing"),
    (metadata(xml_url=None), "metadata without xml_url"),
    (metadata(xml_url="s3://pmc-oa-opendata/?md5=00"), "XML unreadable"),
    (metadata(xml_url="s3://pmc-oa-opendata/PMC1.1/a\0b.xml?md5=00"), "XML unreadable"),
    (metadata(xml_url="s3://pmc-oa-opendata/PMC1.1/\ud800.xml?md5=00"), "XML unreadable"),
    (metadata(media_urls=["s3://pmc-oa-opendata/" + "a" * 300 + "/g.png?md5=00"]), "image unreadable"),
    (metadata(media_urls=["s3://pmc-oa-opendata/PMC1.1/g.png?md5=\ud800"]), "image unreadable"),
    (metadata(license_code="CC BY\ud800"), "licence not asked for"),
    (metadata(license_code=None), "licence not asked for"),
    (metadata(is_pmc_openaccess=None), "not open access"),
    (metadata(is_pmc_openaccess="false"), "metadata damaged"),
    (metadata(is_retracted=True), "retracted"),
    (metadata(is_historical_ocr=True), "historical OCR"),
]
HANDLED = [picture(animation(), "g.gif"), picture(jpeg(mode="CMYK")), picture(sixteen_bits(), "g.tif")]


def skipped(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "skipped.jsonl").open()]


@pytest.fixture
def corpus(mirror):
    """The mirror with its inventory; 5 % of the requests will be slow and 5 % will fail."""
    mirror.plain_articles(GOOD_ARTICLES)
    for number, write in enumerate([write for write, _ in DAMAGE] + HANDLED, start=1):
        write(mirror, number)
    names = {path.stem: "etag" for path in (mirror.root / "metadata").iterdir()} | {"PMC99.1": "gone since"}
    write_inventory(mirror.root, names)
    return mirror


def test_every_damage_is_in_the_report_and_everything_else_in_the_shards(corpus, serve, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket_module, "FIRST_PAUSE", 0.001)
    with_faults = serve(corpus.root, failing=0.05, slow=0.05, forbidden=[FORBIDDEN])
    report = build_set(with_faults.url, tmp_path / "out", inventory="2026-01-18T01-00Z", tasks=3, concurrency=8)
    assert with_faults.failures > 20
    listed = {(row["article"], row["reason"]) for row in skipped(tmp_path / "out")}
    for number, (_, reason) in enumerate(DAMAGE, start=1):
        assert (f"PMC{number}.1", reason) in listed, reason
    assert ("PMC99.1", "metadata unreadable") in listed
    assert {article for article, _ in listed} == {f"PMC{n}.1" for n in [*range(1, len(DAMAGE) + 1), 99]}

    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    kept = Counter(row["pmcid"] for row in rows)
    assert {f"PMC{1000 + number}": 2 for number in range(GOOD_ARTICLES)}.items() <= kept.items()
    assert len(rows) == 2 * GOOD_ARTICLES + len(HANDLED) == report["pairs"]
    handled = [row for row in rows if int(row["pmcid"][3:]) < 100]
    assert sorted((row["mode"], row["frames"]) for row in handled) == [("CMYK", 1), ("I;16", 1), ("P", 3)]
    assert report["animated"] == 1

    assert report["articles"]["seen"] == GOOD_ARTICLES + len(DAMAGE) + len(HANDLED) + 1
    assert report["articles"]["kept"] + sum(report["articles"]["dropped"].values()) == report["articles"]["seen"]
    reasons = report["articles"]["dropped"] | report["figures"]["skipped"]
    assert {reason for _, reason in DAMAGE} <= set(reasons)

    build_set(corpus.root, tmp_path / "undisturbed")
    shards = [sorted((tmp_path / name / "data").iterdir()) for name in ("out", "undisturbed")]
    assert [path.read_bytes() for path in shards[0]] == [path.read_bytes() for path in shards[1]]
    # Over HTTP the inventory was used, which has one article more, and one file was forbidden.
    over_http, from_folder = [
        [row for row in skipped(tmp_path / name) if row["article"] != "PMC99.1" and FORBIDDEN not in row["item"]]
        for name in ("out", "undisturbed")
    ]
    assert over_http == from_folder and str(tmp_path) not in str(from_folder)


def test_original_bytes_survive_whatever_the_mode(corpus, tmp_path):
    build_set(corpus.root, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "data", columns=["image", "pmcid", "file_size"]).to_pylist()
    contents = {row["image"]["bytes"] for row in rows if int(row["pmcid"][3:]) < 100}
    assert contents == {animation(), jpeg(mode="CMYK"), sixteen_bits()}
    assert all(row["file_size"] == len(row["image"]["bytes"]) for row in rows)
