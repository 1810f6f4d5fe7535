"""A corpus with every kind of damage: all of it is listed, and everything else is in the shards."""

import io
import zlib
from collections import Counter

import numpy as np
import pytest
from helpers.mirror_writer import (
    build_set,
    figure_xml,
    png_bytes,
    rows_of,
    shards_of,
    skipped_rows,
    write_inventory,
)
from PIL import Image


GOOD_ARTICLES = 60
PNG = {"g.png": png_bytes(1)}
FORBIDDEN = "g.jpeg"  # the server responds with 403
XML = f'<article xmlns:xlink="http://www.w3.org/1999/xlink"><body>{figure_xml("F1", "Boom &d;", "g")}</body></article>'
BOMB = f'<!ENTITY a "boom"><!ENTITY b "{"&a;" * 50}"><!ENTITY c "{"&b;" * 50}"><!ENTITY d "{"&c;" * 50}">'


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(size: tuple[int, int], dtype=np.uint8, bands: tuple[int, ...] = (3,)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (size[1], size[0], *bands)).astype(dtype)


FRAMES = [Image.open(io.BytesIO(png_bytes(seed))).quantize(16) for seed in (5, 6, 7)]
JPEG = encoded(Image.fromarray(noise((60, 50))), "JPEG")
TINY = encoded(Image.fromarray(noise((10, 300))), "JPEG")
GIF = encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:])
CMYK = encoded(Image.fromarray(noise((60, 50), bands=(4,)), "CMYK"), "JPEG")
SIXTEEN_BITS = encoded(Image.fromarray(noise((50, 40), np.uint16, ()) * 16), "TIFF")


def huge_png() -> bytes:
    """Return a small PNG whose header states 40,000 x 40,000 pixels."""
    content = bytearray(png_bytes(1))
    content[16:24] = (40_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    return bytes(content)


def raw_xml(xml: str):
    return lambda mirror, number: mirror.raw_article(number, xml=xml.encode(), media=PNG)


def article(media=PNG, **metadata):
    def write(mirror, number: int) -> None:
        mirror.article(number, figures=figure_xml("F1", f"Image {number}.", "g"), media=media, **metadata)

    return write


def changed(name: str, change):
    """Write an article and change one of its files, `{}` being its number."""

    def write(mirror, number: int) -> None:
        article()(mirror, number)
        for path in mirror.root.rglob(name.format(number)):
            if path.parent.name in (f"PMC{number}.1", "metadata"):
                change(path)

    return write


def append(path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


URL = "s3://pmc-oa-opendata/"
DAMAGE = [
    (raw_xml(XML[:150]), "XML damaged"),
    (raw_xml(f"<!DOCTYPE article [{BOMB}]>{XML}"), "XML damaged"),
    (changed("PMC{}.1.xml", append), "XML unreadable"),
    (changed("PMC{}.1.xml", lambda path: path.unlink()), "XML unreadable"),
    (changed("g.png", append), "image unreadable"),
    (changed("g.png", lambda path: path.unlink()), "image unreadable"),
    (changed("PMC{}.1.json", lambda path: path.write_bytes(b'{"pmcid": "PMC')), "metadata unreadable"),
    (article({"g.jpg": JPEG[:400]}), "image damaged"),
    (article({"g.jpg": b""}), "image damaged"),
    (article({FORBIDDEN: JPEG[:400]}), "image unreadable"),
    (article({"g.jpg": b"%PDF-1.4"}), "image of unknown format"),
    (article({"g.jpg": TINY}), "image too small"),
    (article({"g.png": huge_png()}), "image too large"),
    (article({}), "image missing"),
    (article(media_urls=17), "metadata damaged"),
    (article(media_urls=[17, None]), "metadata damaged"),
    (article(media_urls=None), "image missing"),
    (article(xml_url=None), "metadata without xml_url"),
    (article(xml_url=f"{URL}?md5=00"), "XML unreadable"),
    (article(xml_url=f"{URL}PMC1.1/a\0b.xml?md5=00"), "XML unreadable"),
    (article(xml_url=f"{URL}PMC1.1/\ud800.xml?md5=00"), "XML unreadable"),
    (article(media_urls=[f"{URL}{'a' * 300}/g.png?md5=00"]), "image unreadable"),
    (article(media_urls=[f"{URL}PMC1.1/g.png?md5=\ud800"]), "image unreadable"),
    (article(license_code="CC BY\ud800"), "license not allowed"),
    (article(license_code=None), "license not allowed"),
    (article(is_pmc_openaccess=None), "not open access"),
    (article(is_pmc_openaccess="false"), "metadata damaged"),
    (article(is_retracted=True), "retracted"),
    (article(is_historical_ocr=True), "historical OCR"),
    (lambda mirror, number: mirror.article(number, figures="<p>Text.</p>", media={}), "no figures"),
    (lambda mirror, number: mirror.article(number, figures=figure_xml("F1", "", "g"), media=PNG), "no caption"),
    (lambda mirror, number: mirror.article(number, figures=figure_xml("F1", "c"), media=PNG), "no image"),
]
UNUSUAL = {"g.gif": GIF, "g.jpg": CMYK, "g.tif": SIXTEEN_BITS}


@pytest.fixture
def corpus(mirror):
    mirror.plain_articles(GOOD_ARTICLES)
    unusual = [article({name: content}) for name, content in UNUSUAL.items()]
    for number, write in enumerate([write for write, _ in DAMAGE] + unusual, start=1):
        write(mirror, number)
    names = {path.stem: "etag" for path in (mirror.root / "metadata").iterdir()} | {"PMC99.1": "missing"}
    write_inventory(mirror.root, names)
    return mirror


def test_all_damage_is_listed_and_everything_else_is_in_the_shards(corpus, serve, tmp_path):
    server = serve(corpus.root, failing=0.05, slow=0.05, forbidden=[FORBIDDEN])
    report = build_set(server.url, tmp_path / "out", inventory="2026-01-18T01-00Z", tasks=3, connections=8)
    assert server.failures > 5
    listed = {(row["article"], row["reason"]) for row in skipped_rows(tmp_path / "out")}
    expected = {(f"PMC{number}.1", reason) for number, (_, reason) in enumerate(DAMAGE, start=1)}
    assert expected | {("PMC99.1", "metadata unreadable")} <= listed
    assert {name for name, _ in listed} == {name for name, _ in expected} | {"PMC99.1"}

    rows = rows_of(tmp_path / "out")
    kept = Counter(row["pmcid"] for row in rows)
    assert {f"PMC{1000 + number}": 2 for number in range(GOOD_ARTICLES)}.items() <= kept.items()
    assert len(rows) == 2 * GOOD_ARTICLES + len(UNUSUAL) == report["pairs"]
    unusual = [row for row in rows if int(row["pmcid"][3:]) < 100]
    assert sorted((row["mode"], row["frames"]) for row in unusual) == [("CMYK", 1), ("I;16", 1), ("P", 3)]
    assert {row["image"]["bytes"] for row in unusual} == set(UNUSUAL.values()), "the bytes are stored unchanged"
    assert report["animated"] == 1

    articles = report["articles"]
    assert articles["seen"] == GOOD_ARTICLES + len(DAMAGE) + len(UNUSUAL) + 1
    assert articles["kept"] + sum(articles["dropped"].values()) == articles["seen"]
    assert {reason for _, reason in DAMAGE} <= set(articles["dropped"] | report["figures"]["skipped"])

    build_set(corpus.root, tmp_path / "undisturbed")
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "undisturbed")
    # Only the inventory lists one more article, and only the server forbids a file.
    over_http, from_folder = [
        [row for row in skipped_rows(folder) if row["article"] != "PMC99.1" and FORBIDDEN not in row["item"]]
        for folder in (tmp_path / "out", tmp_path / "undisturbed")
    ]
    assert over_http == from_folder and str(tmp_path) not in str(from_folder)
