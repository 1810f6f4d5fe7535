"""Builds from a mirror: intact, damaged and interrupted."""

import errno
import io
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.mirror_writer import (
    build_set,
    dataset_files,
    figure_xml,
    png_bytes,
    rows_of,
    shards_of,
    skipped_rows,
    write_inventory,
)
from PIL import Image

from biomedclip.processing.pmc import journal, steps
from biomedclip.processing.pmc.splits import SPLITS
from biomedclip.processing.pmc.verify import verify_dataset


ONE_SPLIT = {"split_fractions": (1, 0, 0)}


def test_every_figure_becomes_a_row(mirror, tmp_path):
    mirror.plain_articles(5)
    report = build_set(mirror.root, tmp_path / "out")
    rows = {row["pair_id"]: row for row in rows_of(tmp_path / "out")}
    assert len(rows) == report["pairs"] == 10
    row = rows["PMC1003.1/F1/a1003-g1"]
    assert row["image"] == {"bytes": png_bytes(10031), "path": "a1003-g1.png"}
    assert row["caption"] == "Caption 1 of article 1003."
    assert (row["pmcid"], row["version"], row["license"], row["doi"]) == ("PMC1003", 1, "CC BY", "10.1/1003")
    assert (row["width"], row["height"]) == (40, 30)


def test_the_seed_changes_the_order_but_not_the_splits(mirror, tmp_path):
    mirror.plain_articles(20)
    orders = []
    for seed in (0, 1):
        build_set(mirror.root, tmp_path / str(seed), seed=seed)
        orders.append([(row["split"], row["pair_id"]) for row in rows_of(tmp_path / str(seed), ["split", "pair_id"])])
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_each_article_is_in_one_split_and_no_split_is_empty(mirror, tmp_path):
    mirror.plain_articles(4, figures_each=3)
    report = build_set(mirror.root, tmp_path / "out")
    assert len({(row["pmcid"], row["split"]) for row in rows_of(tmp_path / "out", ["pmcid", "split"])}) == 4
    assert set(report["splits"]) == set(SPLITS)


def test_too_few_articles_for_the_splits_are_refused(mirror, tmp_path):
    mirror.plain_articles(2)
    with pytest.raises(ValueError, match="Only 2 article"):
        build_set(mirror.root, tmp_path / "out")
    assert not (tmp_path / "out" / "data").exists()
    assert list(build_set(mirror.root, tmp_path / "out", **ONE_SPLIT)["splits"]) == ["train"]


def test_the_number_of_figures_of_one_article_is_limited(mirror, tmp_path):
    mirror.plain_articles(3)
    figures = "".join(figure_xml(f"F{number}", "The same image.", "g") for number in range(1_200))
    mirror.article(1, figures=figures, media={"g.png": png_bytes(1)})
    report = build_set(mirror.root, tmp_path / "out")
    assert report["pairs"] == 1_006
    assert report["figures"] == {"seen": 1_206, "skipped": {"too many figures": 200}}
    assert skipped_rows(tmp_path / "out") == [
        {
            "article": "PMC1.1",
            "item": "F1000",
            "reason": "too many figures",
            "detail": "200 of 1,200, from here on: max_figures_per_article is 1000",
            "count": 200,
        }
    ]
    assert verify_dataset(tmp_path / "out").faults == []
    assert build_set(mirror.root, tmp_path / "fewer", max_figures_per_article=10)["pairs"] == 16


def test_only_allowed_licenses_are_used(mirror, tmp_path):
    for number, code in enumerate(["CC BY", "CC0", "CC BY-NC", "CC BY-ND", "TDM"]):
        figures = figure_xml("F1", f"Under {code}.", "g")
        mirror.article(number, figures=figures, media={"g.png": png_bytes(1)}, license_code=code)
    for choice, expected in {
        "commercial": {"CC BY", "CC0", "CC BY-ND"},
        "noncommercial": {"CC BY", "CC0", "CC BY-NC", "CC BY-ND"},
        "all": {"CC BY", "CC0", "CC BY-NC", "CC BY-ND", "TDM"},
        "CC0,TDM": {"CC0", "TDM"},
    }.items():
        assert set(build_set(mirror.root, tmp_path / choice, license=choice, **ONE_SPLIT)["licenses"]) == expected


def test_the_largest_file_that_can_be_decoded_is_stored_unchanged(mirror, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((90, 120), dtype=np.uint16)).save(buffer, "TIFF")
    media = {"g.gif": png_bytes(1), "g.tif": buffer.getvalue(), "g.jpg": b"?", "g.pdf": b"%PDF", "h.png": png_bytes(2)}
    mirror.article(1, figures=figure_xml("F1", "Three files.", "g"), media=media)
    build_set(mirror.root, tmp_path / "out", **ONE_SPLIT)
    (row,) = rows_of(tmp_path / "out")
    assert row["image"]["bytes"] == media["g.tif"]
    assert (row["width"], row["height"]) == (120, 90)


def test_after_a_full_disk_the_same_command_continues(mirror, tmp_path, monkeypatch, watch):
    mirror.plain_articles(20)
    build_set(mirror.root, tmp_path / "undisturbed", tasks=3)
    calls, add = watch(steps.PairFigures), journal.TaskJournal.add

    def full(self, article):
        if len(calls) > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return add(self, article)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(journal.TaskJournal, "add", full)
        build_set(mirror.root, tmp_path / "out", tasks=3)
    assert not (tmp_path / "out" / "data").exists()

    calls.clear()
    build_set(mirror.root, tmp_path / "out", tasks=3)
    assert len(calls) == 20 - 10, "finished articles are not processed again"
    assert dataset_files(tmp_path / "out") == dataset_files(tmp_path / "undisturbed")
    assert not (tmp_path / "out" / ".build").exists()


def test_an_existing_dataset_is_only_replaced_with_overwrite(mirror, tmp_path):
    mirror.plain_articles(5)
    build_set(mirror.root, tmp_path / "out")
    with pytest.raises(FileExistsError, match="`overwrite=True`"):
        build_set(mirror.root, tmp_path / "out")
    mirror.plain_articles(5, first=2000)
    assert build_set(mirror.root, tmp_path / "out", overwrite=True)["pairs"] == 20
    assert len(rows_of(tmp_path / "out", ["pair_id"])) == 20


def test_a_dataset_with_a_damaged_report_can_only_be_overwritten(mirror, tmp_path):
    mirror.plain_articles(3)
    build_set(mirror.root, tmp_path / "out", **ONE_SPLIT)
    for content in ("", "{", "[]"):
        (tmp_path / "out" / "report.json").write_text(content)
        for also in ({}, {"update": True}):
            with pytest.raises(ValueError, match="report.json is damaged.*`overwrite=True`"):
                build_set(mirror.root, tmp_path / "out", **ONE_SPLIT, **also)
    assert build_set(mirror.root, tmp_path / "out", **ONE_SPLIT, overwrite=True)["pairs"] == 6


def fifo(folder) -> str:
    folder.mkdir()
    os.mkfifo(folder / "vocab.txt")
    return str(folder)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (lambda folder: {"max_figures_per_article": 0}, ValueError, "`max_figures_per_article` must be at least 1"),
        (lambda folder: {"max_shard_size": "large"}, ValueError, "`max_shard_size` must be a size such as 500MB"),
        (lambda folder: {"published_until": "2022"}, ValueError, "`published_until` must be a date"),
        (lambda folder: {"published_until": "2999-01-01"}, ValueError, "`published_until` is in the future"),
        (lambda folder: {"caption_tokenizer": str(folder)}, ValueError, "`caption_tokenizer`"),
        (lambda folder: {"caption_tokenizer": fifo(folder / "x")}, OSError, "vocab.txt is a FIFO, not a file"),
        (lambda folder: {"decontaminate": str(folder / "nothing")}, FileNotFoundError, "`decontaminate`: .*nothing"),
        (lambda folder: {"update": True, "overwrite": True}, ValueError, "exclude each other"),
        (lambda folder: {"update": True}, FileNotFoundError, "no dataset to update"),
        (lambda folder: {"workers": 0}, ValueError, "`workers` must be at least 1"),
        (lambda folder: {"executor": "slurm"}, ValueError, "`slurm_partition` is required"),
        (lambda folder: {"executor": "cloud"}, ValueError, "`executor` must be one of local, slurm, ray"),
    ],
)
def test_invalid_options_are_refused_before_anything_is_written(mirror, tmp_path, impatient, options, error, message):
    mirror.plain_articles(1)
    with pytest.raises(error, match=message):
        build_set(mirror.root, tmp_path / "out", **options(tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_real_articles_are_built_without_loss(shared_data, tmp_path):
    texts = (".xml", ".json", ".txt")
    files = {path.name for path in (shared_data / "pmc_mirror").glob("PMC*/*") if path.suffix not in texts}
    build_set(shared_data / "pmc_mirror", tmp_path / "out", workers=2, license="all")
    rows = rows_of(tmp_path / "out")
    assert {row["image"]["path"] for row in rows} == files
    assert all(row["caption"] and row["pair_id"].startswith(row["pmcid"]) for row in rows)
    assert len({row["pair_id"] for row in rows}) == len(rows)


def test_a_failed_build_lists_all_reasons_and_the_repaired_source_is_read_again(mirror, serve, tmp_path):
    mirror.plain_articles(12)
    names = [f"PMC{1000 + number}.1.json" for number in range(12)]
    server = serve(mirror.root, forbidden=names)
    write_inventory(mirror.root, {name.removesuffix(".json"): "etag" for name in names})
    options = {"inventory": "2026-01-18T01-00Z"}
    with pytest.raises(ValueError) as failure:
        build_set(server.url, tmp_path / "out", **options)
    message = str(failure.value)
    assert "metadata unreadable (12)" in message
    assert "metadata/PMC1000.1.json: cannot be read (access is denied): HTTP 403" in message
    assert str(tmp_path / "out" / "skipped.jsonl") in message
    rows = skipped_rows(tmp_path / "out")
    assert len(rows) == 12 and all("HTTP 403" in row["detail"] for row in rows)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["skipped.jsonl"]
    server.forbidden = []
    assert build_set(server.url, tmp_path / "out", **options)["pairs"] == 24
    assert skipped_rows(tmp_path / "out") == []


def test_a_failed_build_keeps_the_list_of_the_existing_dataset(mirror, tmp_path):
    mirror.plain_articles(4)
    build_set(mirror.root, tmp_path / "out")
    for path in mirror.root.glob("PMC*/*.png"):
        path.rename(path.with_suffix(".lost"))
    with pytest.raises(ValueError, match="None of the 4 article.*no such object.*skipped-failed.jsonl"):
        build_set(mirror.root, tmp_path / "out", overwrite=True)
    assert skipped_rows(tmp_path / "out") == []
    assert "no such object" in (tmp_path / "out" / "skipped-failed.jsonl").read_text()
    for path in mirror.root.glob("PMC*/*.lost"):
        path.rename(path.with_suffix(".png"))
    build_set(mirror.root, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "skipped-failed.jsonl").exists()


def blobs(seed: int, size=(300, 240)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def test_copies_of_benchmark_images_are_skipped(mirror, tmp_path):
    mirror.plain_articles(6, figures_each=1)
    (tmp_path / "benchmark").mkdir()
    blobs(7).resize((150, 120)).save(tmp_path / "benchmark" / "test.jpg", quality=85)
    for number in (7, 8):
        buffer = io.BytesIO()
        blobs(number).save(buffer, "PNG")
        mirror.article(number, figures=figure_xml("F1", "Large.", "g"), media={"g.png": buffer.getvalue()})
    report = build_set(mirror.root, tmp_path / "out", decontaminate=str(tmp_path / "benchmark"))
    assert report["figures"]["skipped"] == {"similar to a benchmark image": 1}
    articles = {row["pmcid"] for row in rows_of(tmp_path / "out", ["pmcid"])}
    assert articles == {"PMC8", *(f"PMC{1000 + number}" for number in range(6))}


def test_the_report_counts_the_contents_of_the_shards(mirror, tmp_path, shared_data):
    mirror.plain_articles(9)
    media = {"g.png": png_bytes(10000), "h.jpg": png_bytes(5, (400, 400))}
    figures = figure_xml("F1", "Reprinted " + "word " * 300, "g") + figure_xml("F2", "Two words", "h")
    figures += '<p>See <xref ref-type="fig" rid="F2">Figure 2</xref>.</p>'
    mirror.article(1, figures=figures, media=media, license_code="CC0")
    report = build_set(mirror.root, tmp_path / "words", seed=3)
    assert report["pairs"] == sum(split["pairs"] for split in report["splits"].values()) == 20
    assert report["licenses"] == {"CC BY": 18, "CC0": 2}
    assert report["duplicates"] == {"same_bytes": 1, "same_image": 1}
    assert report["mentions"] == {"pairs_with": 1, "paragraphs": 1}
    assert report["image_size"]["above_336"] == 0.05 and report["image_size"]["largest"] == 400
    assert report["caption_length"]["unit"] == "words" and report["caption_length"]["largest"] == 301
    assert report["caption_length"]["within_256"] == 0.95
    assert sum(report["caption_length"]["histogram"]["counts"]) == 20
    sizes = {name: len(content) for name, content in shards_of(tmp_path / "words").items()}
    for split, counts in report["splits"].items():
        sizes_of_split = [size for name, size in sizes.items() if name.startswith(split)]
        assert (counts["shards"], counts["bytes"]) == (len(sizes_of_split), sum(sizes_of_split))

    tokenizer = str(shared_data / "biomedclip_tokenizer")
    report = build_set(mirror.root, tmp_path / "tokens", caption_tokenizer=tokenizer)
    assert report["caption_length"]["unit"] == "tokens" and report["caption_length"]["largest"] >= 303


def test_shards_have_the_requested_size_a_page_index_and_small_row_groups(mirror, tmp_path):
    mirror.plain_articles(40, figures_each=10)
    build_set(mirror.root, tmp_path / "out", max_shard_size=400_000, **ONE_SPLIT)
    paths = sorted((tmp_path / "out" / "data").iterdir())
    sizes = [path.stat().st_size for path in paths]
    assert len(paths) > 4 and max(sizes) < 440_000 and min(sizes) > 0.8 * max(sizes)
    for path in paths:
        metadata = pq.read_metadata(path)
        assert max(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)) <= 100
        assert metadata.row_group(0).column(0).has_offset_index and metadata.row_group(0).column(0).has_column_index
        assert str(tmp_path) not in path.read_bytes().decode("latin-1"), "shards contain no local path"
