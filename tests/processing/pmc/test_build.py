"""The build from a mirror to shards, whole, damaged and interrupted."""

import errno
import io
import json
import os
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.mirror_writer import build_set, figure_xml, png_bytes, write_inventory
from PIL import Image

from biomedclip.processing.pmc import journal, steps
from biomedclip.processing.pmc.bucket import SourceUnavailable
from biomedclip.processing.pmc.splits import SPLITS, parse_fractions, split_by_hash
from biomedclip.processing.pmc.verify import verify_dataset


def rows_of(folder, columns=None) -> list[dict]:
    return [
        row
        for path in sorted(folder.glob("data/*.parquet"))
        for row in pq.read_table(path, columns=columns).to_pylist()
    ]


def skipped(folder) -> list[tuple[str, str]]:
    return [(row["article"], row["reason"]) for row in map(json.loads, (folder / "skipped.jsonl").open())]


def bytes_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "data").iterdir())}


def test_every_figure_becomes_a_row_with_its_columns(mirror, tmp_path):
    mirror.plain_articles(5)
    report = build_set(mirror.root, tmp_path / "out")
    rows = {row["pair_id"]: row for row in rows_of(tmp_path / "out")}
    assert len(rows) == report["pairs"] == 10
    row = rows["PMC1003.1/F1/a1003-g1"]
    content = png_bytes(10031)
    assert row["image"] == {"bytes": content, "path": "a1003-g1.png"}
    assert row["caption"] == "Caption 1 of article 1003."
    assert (row["pmcid"], row["version"], row["license"], row["doi"]) == ("PMC1003", 1, "CC BY", "10.1/1003")
    assert (row["width"], row["height"]) == (40, 30)


def test_the_files_do_not_depend_on_tasks_or_workers(mirror, tmp_path):
    mirror.plain_articles(30)
    for name, tasks, workers in (("one", 1, 1), ("many", 7, 1), ("parallel", 4, 2)):
        build_set(mirror.root, tmp_path / name, tasks=tasks, workers=workers)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "many") == bytes_of(tmp_path / "parallel")


def test_the_seed_changes_the_order_and_not_the_splits(mirror, tmp_path):
    mirror.plain_articles(30)
    orders = []
    for seed in (0, 1):
        build_set(mirror.root, tmp_path / str(seed), seed=seed)
        orders.append([(row["split"], row["pair_id"]) for row in rows_of(tmp_path / str(seed), ["split", "pair_id"])])
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_an_article_falls_into_one_split_and_no_split_is_empty(mirror, tmp_path):
    mirror.plain_articles(4, figures_each=3)
    report = build_set(mirror.root, tmp_path / "out")
    splits = {(row["pmcid"], row["split"]) for row in rows_of(tmp_path / "out")}
    assert len(splits) == 4
    assert set(report["splits"]) == set(SPLITS)


def test_splits_follow_the_fractions():
    counts = Counter(split_by_hash(f"PMC{number}", (0.8, 0.1, 0.1)) for number in range(20_000))
    # Three standard deviations of a binomial count are 170 for train and 127 for the others.
    assert abs(counts["train"] - 16_000) < 170
    assert abs(counts["validation"] - 2_000) < 127 and abs(counts["test"] - 2_000) < 127


def test_too_few_articles_for_the_splits_is_a_clear_error(mirror, tmp_path):
    mirror.plain_articles(2)
    with pytest.raises(ValueError, match="Only 2 article"):
        build_set(mirror.root, tmp_path / "out")
    assert not (tmp_path / "out" / "data").exists()
    report = build_set(mirror.root, tmp_path / "out", split_fractions=(1, 0, 0))
    assert list(report["splits"]) == ["train"]


@pytest.mark.parametrize("choice", ["0.8,0.1", "1,1,1", "a,b,c", "1.2,-0.1,-0.1"])
def test_fractions_that_make_no_sense_are_refused(choice):
    with pytest.raises(ValueError, match="split-fractions"):
        parse_fractions(choice)


def test_damage_is_listed_and_everything_else_is_kept(mirror, tmp_path):
    mirror.plain_articles(6)
    good = {"g.png": png_bytes(1)}
    mirror.raw_article(1, xml=b"<article><body><fig>", media=good)
    mirror.article(2, figures=figure_xml("F1", "", "g"), media=good)
    mirror.article(3, figures=figure_xml("F1", "No file.", "absent"), media=good)
    mirror.article(4, figures=figure_xml("F1", "Cut off.", "g"), media={"g.png": png_bytes(1)[:500]})
    mirror.article(5, figures=figure_xml("F1", "Dot.", "g"), media={"g.png": png_bytes(1, (3, 3))})
    mirror.article(6, figures="<p>No figures.</p>", media={})
    mirror.article(7, figures=figure_xml("F1", "Retracted.", "g"), media=good, is_retracted=True)
    mirror.article(8, figures=figure_xml("F1", "Closed.", "g"), media=good, is_pmc_openaccess=False)
    mirror.article(9, figures=figure_xml("F1", "Changed.", "g"), media=good)
    (mirror.root / "PMC9.1" / "g.png").write_bytes(png_bytes(2))
    mirror.article(10, figures=figure_xml("F1", "Unreadable.", "g"), media=good)
    for path in (mirror.root / "metadata" / "PMC10.1.json", mirror.root / "PMC10.1" / "PMC10.1.json"):
        path.write_text("{")
    mirror.article(11, figures=figure_xml("F1", "Not an image.", "g"), media={"g.jpg": b"%PDF-1.4"})
    mirror.article(12, figures=figure_xml("F1", "Odd metadata.", "g"), media=good, media_urls=17)

    report = build_set(mirror.root, tmp_path / "out")
    listed = skipped(tmp_path / "out")
    for number, reason in [
        (1, "XML damaged"),
        (2, "no caption"),
        (3, "image missing"),
        (4, "image damaged"),
        (5, "image too small"),
        (6, "no figures"),
        (7, "retracted"),
        (8, "not open access"),
        (9, "image unreadable"),
        (10, "metadata unreadable"),
        (11, "image of unknown format"),
        (12, "metadata damaged"),
    ]:
        assert (f"PMC{number}.1", reason) in listed
    assert report["pairs"] == 12
    assert report["articles"]["seen"] == 18 and report["articles"]["kept"] == 6
    assert sum(report["articles"]["dropped"].values()) == 12


def test_the_number_of_figures_of_one_article_is_limited(mirror, tmp_path):
    mirror.plain_articles(3)
    figures = "".join(figure_xml(f"F{number}", "The same image.", "g") for number in range(2_500))
    mirror.article(1, figures=figures, media={"g.png": png_bytes(1)})
    report = build_set(mirror.root, tmp_path / "out")
    assert report["pairs"] == 1_006
    assert report["figures"] == {"seen": 2_506, "skipped": {"too many figures": 1_500}}
    (row,) = map(json.loads, (tmp_path / "out" / "skipped.jsonl").open())
    assert row == {
        "article": "PMC1.1",
        "item": "F1000",
        "reason": "too many figures",
        "detail": "1,500 of 2,500, from here on: the limit is --max-figures-per-article 1000",
        "count": 1_500,
    }
    assert verify_dataset(tmp_path / "out").faults == []
    assert build_set(mirror.root, tmp_path / "fewer", max_figures_per_article=10)["pairs"] == 16
    assert build_set(mirror.root, tmp_path / "all", max_figures_per_article=9_999)["figures"]["skipped"] == {}
    with pytest.raises(ValueError, match="--max-figures-per-article must be at least 1"):
        build_set(mirror.root, tmp_path / "none", max_figures_per_article=0)


def test_only_licences_that_were_asked_for_are_taken(mirror, tmp_path):
    for number, code in enumerate(["CC BY", "CC0", "CC BY-NC", "CC BY-ND", "TDM"]):
        mirror.article(
            number, figures=figure_xml("F1", f"Under {code}.", "g"), media={"g.png": png_bytes(1)}, license_code=code
        )
    taken = {}
    for choice in ("commercial", "noncommercial", "all", "CC0,TDM"):
        report = build_set(mirror.root, tmp_path / choice, license=choice, split_fractions=(1, 0, 0))
        taken[choice] = set(report["licenses"])
    assert taken == {
        "commercial": {"CC BY", "CC0", "CC BY-ND"},
        "noncommercial": {"CC BY", "CC0", "CC BY-NC", "CC BY-ND"},
        "all": {"CC BY", "CC0", "CC BY-NC", "CC BY-ND", "TDM"},
        "CC0,TDM": {"CC0", "TDM"},
    }


def test_the_largest_file_that_decodes_is_taken_with_its_own_bytes(mirror, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((90, 120), dtype=np.uint16)).save(buffer, "TIFF")
    media = {
        "g.gif": png_bytes(1),
        "g.tif": buffer.getvalue(),
        "g.jpg": b"broken",
        "g.pdf": b"%PDF",
        "h.png": png_bytes(2),
    }
    mirror.article(1, figures=figure_xml("F1", "Three files.", "g"), media=media)
    build_set(mirror.root, tmp_path / "out", split_fractions=(1, 0, 0))
    (row,) = rows_of(tmp_path / "out")
    assert row["image"]["bytes"] == media["g.tif"]
    assert (row["width"], row["height"]) == (120, 90)


def test_a_full_disk_leaves_nothing_that_looks_whole_and_the_same_command_goes_on(mirror, tmp_path, monkeypatch):
    mirror.plain_articles(30)
    build_set(mirror.root, tmp_path / "undisturbed", tasks=3)

    process, calls = steps.PairFigures.process, []

    def count(self, article):
        calls.append(article.name)
        return process(self, article)

    monkeypatch.setattr(steps.PairFigures, "process", count)
    add = journal.TaskJournal.add

    def full(self, article):
        if len(calls) > 15:
            raise OSError(errno.ENOSPC, "No space left on device")
        return add(self, article)

    monkeypatch.setattr(journal.TaskJournal, "add", full)
    with pytest.raises(OSError, match="No space left"):
        build_set(mirror.root, tmp_path / "out", tasks=3)
    assert not (tmp_path / "out" / "data").exists()

    monkeypatch.setattr(journal.TaskJournal, "add", add)
    calls.clear()
    build_set(mirror.root, tmp_path / "out", tasks=3)
    assert len(calls) == 30 - 15, "what was complete is not done again"
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "undisturbed")
    assert not (tmp_path / "out" / ".build").exists()


def test_a_set_that_is_there_is_kept_unless_it_may_be_replaced(mirror, tmp_path):
    mirror.plain_articles(5)
    build_set(mirror.root, tmp_path / "out")
    with pytest.raises(FileExistsError, match="--overwrite"):
        build_set(mirror.root, tmp_path / "out")
    mirror.plain_articles(5, first=2000)
    assert build_set(mirror.root, tmp_path / "out", overwrite=True)["pairs"] == 20
    assert len(rows_of(tmp_path / "out")) == 20


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_report_is_a_clear_error_and_the_set_can_be_built_anew(mirror, tmp_path, content):
    mirror.plain_articles(3)
    options = {"split_fractions": (1, 0, 0)}
    build_set(mirror.root, tmp_path / "out", **options)
    (tmp_path / "out" / "report.json").write_text(content)
    for also in ({}, {"update": True}):
        with pytest.raises(ValueError, match="report.json is damaged.*--overwrite"):
            build_set(mirror.root, tmp_path / "out", **options, **also)
    assert build_set(mirror.root, tmp_path / "out", **options, overwrite=True)["pairs"] == 6


def test_a_tokenizer_folder_with_a_fifo_is_refused(mirror, tmp_path, impatient):
    (tmp_path / "tokenizer").mkdir()
    os.mkfifo(tmp_path / "tokenizer" / "vocab.txt")
    with pytest.raises(OSError, match="vocab.txt is a FIFO, not a file"):
        build_set(mirror.root, tmp_path / "out", tokenizer=str(tmp_path / "tokenizer"))
    assert not (tmp_path / "out").exists()


def test_real_articles_are_built_without_loss(shared_data, tmp_path):
    files = {
        path.name
        for path in (shared_data / "pmc_mirror").glob("PMC*/*")
        if path.suffix not in (".xml", ".json", ".txt")
    }
    build_set(shared_data / "pmc_mirror", tmp_path / "out", workers=2, license="all")
    rows = rows_of(tmp_path / "out")
    assert {row["image"]["path"] for row in rows} == files
    assert all(row["caption"] and row["pair_id"].startswith(row["pmcid"]) for row in rows)
    assert len({row["pair_id"] for row in rows}) == len(rows)


def test_an_outage_stops_the_build_and_does_not_thin_the_data_set(mirror, tmp_path, monkeypatch):
    mirror.plain_articles(6)
    parse = steps.ParseFigures.process

    def outage(self, article):
        if article.name == "PMC1004.1":
            raise SourceUnavailable("the source does not answer")
        return parse(self, article)

    monkeypatch.setattr(steps.ParseFigures, "process", outage)
    with pytest.raises(SourceUnavailable):
        build_set(mirror.root, tmp_path / "out")
    assert not (tmp_path / "out" / "data").exists()
    monkeypatch.setattr(steps.ParseFigures, "process", parse)
    assert build_set(mirror.root, tmp_path / "out")["pairs"] == 12


def test_a_source_that_was_mended_is_read_again(mirror, tmp_path):
    mirror.plain_articles(4)
    for path in mirror.root.glob("PMC*/*.png"):
        path.rename(path.with_suffix(".lost"))
    with pytest.raises(ValueError, match="None of the 4 article.*no usable figure"):
        build_set(mirror.root, tmp_path / "out")
    for path in mirror.root.glob("PMC*/*.lost"):
        path.rename(path.with_suffix(".png"))
    assert build_set(mirror.root, tmp_path / "out")["pairs"] == 8


def test_a_build_that_fails_as_a_whole_says_why_and_keeps_the_list_of_causes(mirror, serve, tmp_path):
    mirror.plain_articles(12)
    names = [f"PMC{1000 + number}.1.json" for number in range(12)]
    server = serve(mirror.root, forbidden=names)
    write_inventory(mirror.root, {name.removesuffix(".json"): "etag" for name in names})
    with pytest.raises(ValueError) as failure:
        build_set(server.url, tmp_path / "out", inventory="2026-01-18T01-00Z")
    message = str(failure.value)
    assert "metadata unreadable (12)" in message
    assert "metadata/PMC1000.1.json: cannot be read (access is denied): HTTP 403" in message
    assert str(tmp_path / "out" / "skipped.jsonl") in message
    rows = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").open()]
    assert len(rows) == 12 and all("HTTP 403" in row["detail"] for row in rows)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["skipped.jsonl"]
    server.forbidden = []
    assert build_set(server.url, tmp_path / "out", inventory="2026-01-18T01-00Z")["pairs"] == 24
    assert (tmp_path / "out" / "skipped.jsonl").read_text() == ""


def test_the_list_of_causes_of_a_failed_build_does_not_replace_that_of_the_set_that_is_there(mirror, tmp_path):
    mirror.plain_articles(4)
    build_set(mirror.root, tmp_path / "out")
    for path in mirror.root.glob("PMC*/*.png"):
        path.rename(path.with_suffix(".lost"))
    with pytest.raises(ValueError, match="no such object.*skipped-failed.jsonl"):
        build_set(mirror.root, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "skipped.jsonl").read_text() == ""
    assert "no such object" in (tmp_path / "out" / "skipped-failed.jsonl").read_text()
    for path in mirror.root.glob("PMC*/*.lost"):
        path.rename(path.with_suffix(".png"))
    build_set(mirror.root, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "skipped-failed.jsonl").exists()


def test_pictures_of_a_benchmark_and_what_looks_like_them_are_left_out(mirror, tmp_path):
    mirror.plain_articles(6, figures_each=1)
    benchmark = tmp_path / "benchmark"
    benchmark.mkdir()
    original = Image.open(io.BytesIO(large_picture(7)))
    original.resize((150, 120)).save(benchmark / "test.jpg", quality=85)
    mirror.article(7, figures=figure_xml("F1", "A test image, larger.", "g"), media={"g.png": large_picture(7)})
    mirror.article(8, figures=figure_xml("F1", "Another.", "g"), media={"g.png": large_picture(8)})
    report = build_set(mirror.root, tmp_path / "out", decontaminate=str(benchmark))
    assert report["figures"]["skipped"] == {"like a picture of the benchmark": 1}
    assert {row["pmcid"] for row in rows_of(tmp_path / "out", ["pmcid"])} == {
        *(f"PMC{1000 + number}" for number in range(6)),
        "PMC8",
    }
    with pytest.raises(FileNotFoundError, match="--decontaminate"):
        build_set(mirror.root, tmp_path / "other", decontaminate=str(tmp_path / "nowhere"))
    assert not (tmp_path / "other").exists(), "told before anything is begun"


def large_picture(seed: int) -> bytes:
    """Smooth blobs: what a perceptual hash is made for."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((300, 240), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_report_counts_what_is_in_the_shards(mirror, tmp_path, shared_data):
    mirror.plain_articles(9)
    media = {"g.png": png_bytes(10000), "h.jpg": png_bytes(5, (400, 400))}
    figures = figure_xml("F1", "Reprinted " + "word " * 300, "g") + figure_xml("F2", "Two words", "h")
    figures += '<p>See <xref ref-type="fig" rid="F2">Figure 2</xref>.</p>'
    mirror.article(1, figures=figures, media=media, license_code="CC0")
    report = build_set(mirror.root, tmp_path / "words", seed=3)
    assert report["pairs"] == sum(split["pairs"] for split in report["splits"].values()) == 20
    assert report["licenses"] == {"CC BY": 18, "CC0": 2}
    assert report["duplicates"] == {"same_bytes": 1, "same_picture": 1}
    assert report["mentions"] == {"pairs_with": 1, "paragraphs": 1}
    assert report["image_size"]["above_336"] == 0.05 and report["image_size"]["largest"] == 400
    assert report["caption_length"]["unit"] == "words" and report["caption_length"]["largest"] == 301
    assert report["caption_length"]["within_256"] == 0.95
    assert sum(report["caption_length"]["histogram"]["counts"]) == 20
    for split, counts in report["splits"].items():
        paths = list((tmp_path / "words" / "data").glob(f"{split}-*"))
        assert counts["shards"] == len(paths)
        assert counts["bytes"] == sum(path.stat().st_size for path in paths)

    tokenizer = str(shared_data / "biomedclip_tokenizer")
    report = build_set(mirror.root, tmp_path / "tokens", tokenizer=tokenizer)
    assert report["caption_length"]["unit"] == "tokens" and report["caption_length"]["largest"] >= 303
    with pytest.raises(ValueError, match="--caption-tokenizer"):
        build_set(mirror.root, tmp_path / "other", tokenizer=str(tmp_path))


def test_shards_have_the_size_that_was_asked_for_a_page_index_and_small_row_groups(mirror, tmp_path):
    mirror.plain_articles(40, figures_each=10)
    build_set(mirror.root, tmp_path / "out", split_fractions=(1, 0, 0), max_shard_bytes=400_000)
    paths = sorted((tmp_path / "out" / "data").iterdir())
    sizes = [path.stat().st_size for path in paths]
    assert len(paths) > 4 and max(sizes) < 440_000 and min(sizes) > 0.8 * max(sizes)
    for path in paths:
        metadata = pq.read_metadata(path)
        assert max(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)) <= 100
        assert metadata.row_group(0).column(0).has_offset_index and metadata.row_group(0).column(0).has_column_index
        assert str(tmp_path) not in path.read_bytes().decode("latin-1"), "no path of the machine"
