"""Steps on one article: its files, its pairs, and the limits on both."""

import errno
import io
import time
from itertools import permutations

import pytest
from helpers.mirror_writer import png_bytes
from PIL import Image

from biomedclip.processing.pmc import steps
from biomedclip.processing.pmc.articles import Article
from biomedclip.processing.pmc.bucket import Bucket
from biomedclip.processing.pmc.jats import Figure, Graphic, parse_figures
from biomedclip.processing.pmc.steps import FetchImages, Media, PairFigures, ParseFigures, ReadArticles


def figure(number: int, *hrefs: str, mentions: tuple[str, ...] = ()) -> Figure:
    return Figure(f"F{number}", None, f"Caption {number}.", tuple(Graphic((href,)) for href in hrefs), mentions)


def article(figures: list[Figure], files: list[str], images: dict[str, bytes] | None = None) -> Article:
    urls = [f"s3://pmc-oa-opendata/PMC1.1/{name}" for name in files]
    return Article("PMC1", [1], version=1, metadata={"media_urls": urls}, figures=figures, images=dict(images or {}))


def files_of(hrefs: tuple[str, ...], files: list[str]) -> list[str]:
    return Media(article([], files)).files_of(Graphic(hrefs))


@pytest.mark.parametrize(
    ("href", "name"),
    [
        ("fig-1", "fig-1.jpg"),
        ("fig-1.tif", "fig-1.jpg"),
        ("962025.002", "962025.002.jpg"),
        ("info:doi/10.1371/journal.pone.0012.g001", "journal.pone.0012.g001.png"),
        ("FIG1", "fig1.JPG"),
        ("fig?1", "fig?1.jpg"),
    ],
)
def test_an_href_finds_its_file(href, name):
    assert files_of((href,), ["other.jpg", f"{name}.xml", name, "fig-11.jpg", ".jpg", "jpg"]) == [name]
    assert files_of(("Fig1",), ["FIG1.jpg", "Fig1.jpg"]) == ["Fig1.jpg"], "case matters if a file matches it"


def test_files_are_sorted_by_format_and_name():
    files = ["g.gif", "g.jpg", "g.png", "g.tif"]
    best_first = ["g.png", "g.tif", "g.jpg", "g.gif"]
    assert all(files_of(("g",), list(order)) == best_first for order in permutations(files))
    assert files_of(("b", "a"), ["b.jpg", "a.jpg"]) == ["a.jpg", "b.jpg"]


def encoded(format: str) -> bytes:
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(png_bytes(3)))
    (picture.quantize(256) if format == "GIF" else picture).save(buffer, format)
    return buffer.getvalue()


def test_the_largest_file_is_used_and_of_equal_ones_that_with_the_best_format():
    contents = {"g.gif": encoded("GIF"), "g.jpg": encoded("JPEG")}
    for order in permutations(contents):
        taken = article([figure(1, "g")], list(order), contents)
        PairFigures().process(taken)
        assert [row["image"]["path"] for row in taken.pairs] == ["g.jpg"]
    larger = article([figure(1, "g")], [*contents], contents | {"g.gif": png_bytes(1, (80, 60))})
    PairFigures().process(larger)
    assert [row["image"]["path"] for row in larger.pairs] == ["g.gif"]


def test_images_beyond_the_size_limit_of_an_article_are_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "MAX_ARTICLE_BYTES", 10_000)
    (tmp_path / "PMC1.1").mkdir()
    files = [f"g{number}.png" for number in range(6)]
    for number, name in enumerate(files):
        (tmp_path / "PMC1.1" / name).write_bytes(png_bytes(number))  # 3.7 kB each
    large = article([figure(number, name) for number, name in enumerate(files)], files)
    FetchImages(Bucket(str(tmp_path))).process(large)
    assert sum(isinstance(content, bytes) for content in large.images.values()) == 3
    PairFigures().process(large)
    assert len(large.pairs) == 2 and sum(row["file_size"] for row in large.pairs) <= 10_000
    assert [reason for _, reason, _ in large.skipped] == ["article too large"] * 4


def test_an_image_of_several_figures_counts_each_time_and_is_decoded_once(monkeypatch):
    content = png_bytes(1)
    monkeypatch.setattr(steps, "MAX_ARTICLE_BYTES", 5 * len(content))
    decoded, inspect = [], steps.inspect_image
    monkeypatch.setattr(steps, "inspect_image", lambda content: decoded.append(1) or inspect(content))
    repeated = article([figure(number, "g") for number in range(10)], ["g.png"], {"g.png": content})
    PairFigures().process(repeated)
    assert len(repeated.pairs) == 4 and len(repeated.skipped) == 6 and len(decoded) == 1


def test_a_file_is_freed_after_the_last_figure_that_uses_it(monkeypatch):
    held, add = [], steps._Pairing.add

    def record(self, figure, graphic):
        held.append(sorted(self.article.images))
        add(self, figure, graphic)

    monkeypatch.setattr(steps._Pairing, "add", record)
    pictures = {f"{name}.png": png_bytes(seed) for seed, name in enumerate("abc")}
    taken = article([figure(1, "a", "b"), figure(2, "b"), figure(3, "c")], [*pictures], pictures)
    PairFigures().process(taken)
    assert held == [["a.png", "b.png", "c.png"], ["a.png", "b.png", "c.png"], ["b.png", "c.png"], ["c.png"]]
    assert taken.images == {} and len(taken.pairs) == 4


def test_mentions_beyond_the_size_limit_of_an_article_are_omitted(monkeypatch):
    monkeypatch.setattr(steps, "MAX_MENTION_BYTES", 100)
    mentions = ("x" * 30, "é" * 10)
    figures = [figure(number, f"g{number}", mentions=mentions) for number in range(4)]
    pictures = {f"g{number}.png": png_bytes(number) for number in range(4)}
    taken = article(figures, [*pictures], pictures)
    PairFigures().process(taken)
    assert [row["mentions"] for row in taken.pairs] == [list(mentions), list(mentions), [], []]
    assert taken.skipped == [("F2/g2", "mentions omitted", "2 of 2"), ("F3/g3", "mentions omitted", "2 of 2")]


def parsed(figures: list[Figure], limit: int, monkeypatch) -> Article:
    monkeypatch.setattr(steps, "parse_article", lambda xml: None)
    monkeypatch.setattr(steps, "find_figures", lambda root: figures)
    taken = article([], [])
    ParseFigures(limit).process(taken)
    return taken


def test_images_beyond_the_limit_on_their_number_are_skipped_and_counted(monkeypatch):
    figures = [figure(1, "a", "b"), figure(2, "a"), figure(3, "a", "c", "d"), figure(4, "e"), figure(5, "a")]
    taken = parsed(figures, 4, monkeypatch)
    hrefs = [[graphic.hrefs[0] for graphic in kept.graphics] for kept in taken.figures]
    assert hrefs == [["a", "b"], ["a"], ["a"]], "a repeated file counts again"
    detail = "4 of 8, from here on: max_figures_per_article is 4"
    assert taken.skipped == [("F3", "too many figures", detail, 4)]
    assert len(taken.figures) + taken.figures_cut == 5
    at_an_edge = parsed(figures, 3, monkeypatch)
    assert [kept.figure_id for kept in at_an_edge.figures] == ["F1", "F2"]
    assert at_an_edge.skipped[0][0] == "F3" and at_an_edge.skipped[0][3] == 5


@pytest.mark.parametrize(("limit", "kept", "cut"), [(1, 1, 2), (2, 2, 1), (3, 3, 0), (4, 3, 0)])
def test_a_figure_without_caption_or_image_counts_as_one(monkeypatch, limit, kept, cut):
    figures = [figure(1), Figure("F2", None, "", (Graphic(("a",)), Graphic(("b",))), ()), figure(3, "a")]
    taken = parsed(figures, limit, monkeypatch)
    assert len(taken.figures) == kept and taken.figures_cut == cut
    assert [row[-1] for row in taken.skipped] == ([cut] if cut > 1 else [row[-1] for row in taken.skipped])
    assert bool(taken.skipped) == bool(cut)


def test_no_real_article_reaches_the_limit(shared_data):
    files = [*(shared_data / "pmc_mirror").glob("PMC*/*.xml"), *(shared_data / "jats_xml").glob("*.*ml")]
    assert len(files) > 200
    for file in files:
        assert sum(map(steps.count_images, parse_figures(file.read_bytes()))) < steps.FIGURES_PER_ARTICLE / 4


@pytest.mark.parametrize("step", [ReadArticles, FetchImages])
def test_an_error_of_this_machine_stops_the_run_and_drops_no_article(tmp_path, monkeypatch, step):
    bucket = Bucket(str(tmp_path))

    def fail(*arguments, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(bucket, "_read_once", fail)
    taken = article([figure(1, "g")], ["g.png"])
    with pytest.raises(OSError, match="Too many open files"):
        step(bucket, None)._process_or_drop(taken) if step is ReadArticles else step(bucket)._process_or_drop(taken)
    assert not taken.outcome and not taken.images


@pytest.mark.slow
def test_the_run_time_is_linear_in_the_number_of_files_and_images():
    count = 20_000
    names = [f"g{number}.png" for number in range(count)]
    damaged = article([figure(1, *names)], names, dict.fromkeys(names, b"no picture"))
    one_file = article([], ["g.png"], {"g.png": png_bytes(1)})
    one_file.figures = [Figure("F1", None, "Caption.", tuple(Graphic((name, "g")) for name in names), ())]
    started = time.process_time()
    with pytest.raises(steps.Dropped, match="no usable figure"):
        PairFigures().process(damaged)
    PairFigures().process(one_file)
    assert len(one_file.pairs) == count
    assert time.process_time() - started < 20  # about 3 s. A quadratic run time would be 100 s
