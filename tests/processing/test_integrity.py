"""No damaged byte of a built dataset is returned as another row."""

import hashlib
import itertools
import json
import logging
import random
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.mirror_writer import MirrorWriter, build_set
from helpers.pair_shards import pair_row, write_shards

from biomedclip.processing import PairStream, load_pmc15m, shard_reader
from biomedclip.processing.integrity import DamagedFile, read_columns
from biomedclip.processing.pmc import shards
from biomedclip.processing.pmc.images import ImageIndex
from biomedclip.processing.pmc.plan import read_articles
from biomedclip.processing.pmc.shards import pair_schema
from biomedclip.processing.pmc.verify import verify_dataset
from biomedclip.processing.shard_reader import ShardReader


FLIPS = 240
COLUMNS = ("pair_id", "image", "caption", "mentions", "license")


@pytest.fixture(scope="module")
def small_set(tmp_path_factory) -> Path:
    """A built dataset of 12 articles with small shards."""
    root = tmp_path_factory.mktemp("small")
    mirror = MirrorWriter(root / "mirror")
    mirror.plain_articles(12)
    build_set(root / "mirror", root / "set", max_shard_size=60_000)
    assert len(list((root / "set" / "data").glob("train-*"))) > 1
    return root / "set"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def copy(small_set, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(shard_reader, "FIRST_PAUSE", 0.001)
    shutil.copytree(small_set, tmp_path / "set")
    return tmp_path / "set"


def shard_of(folder: Path) -> Path:
    """The last training shard. The first one is also opened for its columns."""
    return sorted((folder / "data").glob("train-*.parquet"))[-1]


def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def pages_of(path: Path, column: str) -> tuple[int, int]:
    """Return the position and the size of the first row group's data of a column."""
    group = pq.read_metadata(path).row_group(0)
    chunks = [group.column(number) for number in range(group.num_columns)]
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
    return chunk.dictionary_page_offset or chunk.data_page_offset, chunk.total_compressed_size


def flips(path: Path, positions: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Flip each bit of a file at positions, one at a time."""
    intact = path.read_bytes()
    for position, bit in itertools.product(positions, range(8)):
        path.write_bytes(intact)
        flip(path, position, bit)
        yield position, bit


def damage_page(path: Path, column: str) -> None:
    """Flip a bit at the end of the first row group's data of a column."""
    flip(path, sum(pages_of(path, column)) - 5)


def by_stream(folder):
    stream = PairStream(folder, columns=COLUMNS)
    return stream.rows(0, 0, len(stream))


def by_set(folder):
    return list(load_pmc15m(folder, columns=COLUMNS, decode=False))


def by_batches(folder):
    """Read row groups in batches of a few rows, like large ones."""
    with pytest.MonkeyPatch.context() as small:
        small.setattr(shard_reader, "GROUP_BYTES_KEPT", 0)
        small.setattr(shard_reader, "BATCH_BYTES", 1500)
        return by_stream(folder)


def by_random_access(folder):
    return list(load_pmc15m(folder, columns=COLUMNS, decode=False, streaming=False))


@pytest.mark.slow
def test_no_flipped_bit_changes_rows(copy):
    path = shard_of(copy)
    expected = {reader: reader(copy) for reader in (by_stream, by_set)}
    intact = path.read_bytes()
    positions = random.Random(0)
    outcomes = {"same": 0, "error": 0}
    for number in range(FLIPS):
        footer = len(intact) - 8 - int.from_bytes(intact[-8:-4], "little")
        low, high = (0, footer) if number % 3 else (footer, len(intact))
        path.write_bytes(intact)
        flip(path, positions.randrange(low, high), positions.randrange(8))
        reader = (by_stream, by_set)[number % 2]
        try:
            assert reader(copy) == expected[reader]
            outcomes["same"] += 1
        except (OSError, ValueError) as error:
            assert path.name in str(error)
            outcomes["error"] += 1
    assert outcomes["error"] > FLIPS / 2


@pytest.mark.parametrize("reader", [by_stream, by_set, by_random_access])
@pytest.mark.parametrize("column", ["image", "caption"])
def test_a_flipped_bit_of_a_page_names_the_shard(copy, reader, column):
    path = shard_of(copy)
    damage_page(path, column)
    with pytest.raises(DamagedFile, match=path.name):
        reader(copy)


@pytest.fixture(scope="module")
def shortened_list(tmp_path_factory) -> Path:
    """A dataset with a flipped bit in the header of a page, for which Arrow returns a shorter list."""
    folder = write_shards(tmp_path_factory.mktemp("shortened"), shards=1, rows=10)
    path = shard_of(folder)
    table = pq.read_table(path)
    pq.write_table(table, path, write_page_checksum=True)
    group = pq.read_metadata(path).row_group(0)
    chunks = [group.column(number) for number in range(group.num_columns)]
    start = next(chunk.data_page_offset for chunk in chunks if chunk.path_in_schema.startswith("mentions"))
    for _ in flips(path, range(start, start + 40)):
        try:
            found = pq.ParquetFile(path, page_checksum_verification=True).read()
        except (OSError, pa.ArrowException):
            continue
        if not found.equals(table):
            return folder
    pytest.skip("this version of Arrow detects every flipped bit in the header of a page")


@pytest.mark.parametrize(
    "read",
    [
        by_stream,
        by_set,
        by_batches,
        by_random_access,
        lambda folder: list(load_pmc15m(folder, columns=COLUMNS, decode=False, streaming=False, licenses="all")),
        lambda folder: read_columns(shard_of(folder)),
        lambda folder: shards._OldShard(str(shard_of(folder)), None, shards.pair_schema()).row(0),
    ],
)
def test_a_flipped_bit_in_the_header_of_a_page_of_lists_is_detected(shortened_list, read):
    # The header has no checksum. A smaller number of values in it shortens the last list of the page.
    with pytest.raises(DamagedFile, match=r"column 'mentions' is damaged: values are missing"):
        read(shortened_list)


@pytest.mark.slow
@pytest.mark.parametrize("column", ["pair_id", "caption"])
def test_a_flipped_bit_in_the_header_of_a_page_loses_no_row_of_a_large_row_group(copy, column):
    # With a smaller number of values, Arrow ends the batches early without an error.
    expected = by_batches(copy)
    path = shard_of(copy)
    start, _ = pages_of(path, column)
    for position, bit in flips(path, range(start, start + 20)):
        try:
            assert by_batches(copy) == expected, (position - start, bit)
        except OSError as error:
            assert path.name in str(error)


@pytest.mark.parametrize("reader", [by_stream, by_set, by_random_access])
def test_a_footer_that_is_not_the_one_of_the_report_is_refused(copy, reader):
    # A valid Parquet file, but not the one that was built.
    path = shard_of(copy)
    table = pq.read_table(path)
    pq.write_table(table.slice(0, table.num_rows - 1), path, write_page_checksum=True)
    # A stream compares the sizes of all shards before it reads the first.
    why = "it has .* bytes, but" if reader in (by_stream, by_random_access) else "its SHA-256 is not the one in"
    with pytest.raises(OSError, match=rf"{path.name}: .* damaged: {why} report.json"):
        reader(copy)


def test_a_footer_of_the_same_size_that_is_not_the_one_of_the_report_is_refused(copy):
    flip(shard_of(copy), -30)
    with pytest.raises(OSError, match=rf"{shard_of(copy).name}: .*footer is damaged: its SHA-256 is not the one in"):
        by_stream(copy)


def test_rows_that_the_report_states_wrongly_are_detected(copy):
    path = copy / "report.json"
    report = json.loads(path.read_text())
    name = f"data/{shard_of(copy).name}"
    report["files"][name]["rows"][0] -= 1
    path.write_text(json.dumps(report))
    with pytest.raises(DamagedFile, match=r"its row groups are not those in report.json"):
        by_stream(copy)
    assert any("its row groups are not those in report.json" in fault for fault in verify_dataset(copy).faults)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": []},
        {"rows": [0]},
        {"rows": [-4]},
        {"rows": "4"},
        {"rows": 4},
        {"rows": [None]},
        {"rows": [4.0]},
        {"rows": [True]},
        {"rows": [10**30]},
        {"bytes": "x"},
        {"bytes": None},
    ],
    ids=str,
)
def test_entries_of_the_report_that_are_no_counts_are_refused(copy, change):
    path = copy / "report.json"
    report = json.loads(path.read_text())
    name = f"data/{shard_of(copy).name}"
    report["files"][name] |= change
    path.write_text(json.dumps(report))
    with pytest.raises(DamagedFile, match=rf"the entry of {name} in report.json is damaged"):
        PairStream(copy)


def test_a_stream_opens_no_shard_before_it_reads_it_unless_the_report_is_older(copy, monkeypatch):
    opened = []
    plain = ShardReader._open_file
    monkeypatch.setattr(ShardReader, "_open_file", lambda self, *a, **o: opened.append(a[1]) or plain(self, *a, **o))
    stream = PairStream(copy)
    assert len(opened) == 1, "the first one, for its columns"
    rows = stream.rows(0, 0, len(stream))
    path = copy / "report.json"
    report = json.loads(path.read_text())
    for stated in report["files"].values():
        stated.pop("rows", None)
    path.write_text(json.dumps(report))
    opened.clear()
    older = PairStream(copy)
    assert len(set(opened)) == len(older.shards(0)) > 2
    assert older.rows(0, 0, len(older)) == rows


def test_the_report_has_the_hashes_of_all_files_and_footers(small_set):
    report = json.loads((small_set / "report.json").read_text())
    names = {f"data/{path.name}" for path in (small_set / "data").iterdir()}
    assert set(report["files"]) == names | {"articles.parquet", "skipped.jsonl"}
    for name, stated in report["files"].items():
        content = (small_set / name).read_bytes()
        assert stated["sha256"] == hashlib.sha256(content).hexdigest()
        assert stated["bytes"] == len(content)
        if name.endswith(".parquet"):
            footer = content[-8 - int.from_bytes(content[-8:-4], "little") :]
            assert stated["footer_sha256"] == hashlib.sha256(footer).hexdigest()


@pytest.mark.parametrize("damage", ["cut", "not an object", "another shard's"])
def test_a_damaged_report_is_named(copy, damage):
    path = copy / "report.json"
    report = json.loads(path.read_text())
    if damage == "cut":
        path.write_text(path.read_text()[:-100])
    elif damage == "not an object":
        path.write_text("[1]")
    else:
        del report["files"][f"data/{shard_of(copy).name}"]
        path.write_text(json.dumps(report))
    with pytest.raises(DamagedFile, match="report.json"):
        PairStream(copy)


@pytest.mark.parametrize("report", [None, "{}"])
def test_a_dataset_without_hashes_is_read_and_reported_once(tmp_path, caplog, report):
    write_shards(tmp_path)
    if report is not None:
        (tmp_path / "report.json").write_text(report)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert len(PairStream(tmp_path)) == 150
            assert len(list(load_pmc15m(tmp_path, columns=["pair_id"]))) == 150
    notes = [record.getMessage() for record in caplog.records if "not verifiable" in record.getMessage()]
    assert len(notes) == 1 and str(tmp_path) in notes[0]


def test_the_report_is_found_from_the_folder_of_shards(copy):
    path = shard_of(copy)
    pq.write_table(pq.read_table(path), path)
    with pytest.raises(OSError, match="bytes, but report.json states"):
        PairStream(copy / "data")


def test_damage_to_the_table_of_articles_is_detected(copy):
    path = copy / "articles.parquet"
    assert read_articles(copy).num_rows == 12
    flip(path, 40)
    with pytest.raises(DamagedFile, match="articles.parquet"):
        read_articles(copy)
    shutil.copy(shard_of(copy), path)
    with pytest.raises(DamagedFile, match="articles.parquet"):
        read_articles(copy)


def test_an_update_refuses_a_damaged_set(tmp_path):
    mirror = MirrorWriter(tmp_path / "mirror")
    mirror.plain_articles(4)
    build_set(mirror.root, tmp_path / "set")
    mirror.plain_articles(1, first=2000)
    path = shard_of(tmp_path / "set")
    damage_page(path, "caption")
    damaged = path.read_bytes()
    with pytest.raises(Exception, match=path.name):
        build_set(mirror.root, tmp_path / "set", update=True)
    assert path.read_bytes() == damaged, "the dataset is unchanged"


def test_damage_to_a_dataset_to_decontaminate_is_detected(copy):
    path = shard_of(copy)
    damage_page(path, "perceptual_hash")
    with pytest.raises(ValueError, match=rf"`decontaminate`.*{path.name}.*CRC"):
        ImageIndex.from_path(path)


def write_group(folder: Path, rows: int, image_bytes: int, **options) -> Path:
    """Write a set of one shard with one row group."""
    path = folder / "data" / "train-00000-of-00001.parquet"
    path.parent.mkdir()
    content = random.Random(0)
    pairs = [pair_row(n) | {"image": {"bytes": content.randbytes(image_bytes), "path": "a"}} for n in range(rows)]
    pq.write_table(pa.Table.from_pylist(pairs, schema=pair_schema()), path, row_group_size=rows, **options)
    return folder


def test_a_large_row_group_is_read_in_batches_within_the_bound(tmp_path, monkeypatch):
    folder = write_group(tmp_path, 120, 200_000, use_content_defined_chunking=True)
    expected = by_stream(folder)
    whole = pa.total_allocated_bytes()
    monkeypatch.setattr(shard_reader, "GROUP_BYTES_KEPT", 1_000_000)
    monkeypatch.setattr(shard_reader, "BATCH_BYTES", 1_000_000)
    monkeypatch.setattr(shard_reader, "PAGE_BUFFER_BYTES", 500_000)
    stream = PairStream(folder, columns=COLUMNS)
    before = pa.total_allocated_bytes()
    assert before <= whole
    kept, rows = 0, []
    for low in range(0, 120, 8):
        rows += stream.rows(0, low, low + 8)
        kept = max(kept, pa.total_allocated_bytes() - before)
    assert rows == expected
    # Two batches of about 1 MB, and a buffer and a page of each column. The row group has 24 MB.
    assert kept < 8_000_000


@pytest.mark.parametrize("licenses", [None, "commercial"])
def test_rows_of_a_large_row_group_are_the_same_in_any_order(tmp_path, monkeypatch, licenses):
    write_shards(tmp_path, shards=2, rows=40, rows_per_group=20)
    options = {"licenses": licenses, "text": "mentions"}
    whole = PairStream(tmp_path, **options)
    expected = whole.rows(1, 0, len(whole))
    monkeypatch.setattr(shard_reader, "GROUP_BYTES_KEPT", 0)
    monkeypatch.setattr(shard_reader, "BATCH_BYTES", 1500)
    stream = PairStream(tmp_path, **options)
    assert stream.rows(1, 0, len(stream)) == expected
    for low, high in ((7, 12), (3, 9), (len(stream) - 3, len(stream)), (0, 1), (11, 30)):
        assert stream.rows(1, low, high) == expected[low:high]
    in_set = [row["pair_id"] for row in load_pmc15m(tmp_path, columns=["pair_id"], licenses=licenses, start=5)]
    assert len(in_set) == len(stream) - 5


def test_a_row_group_that_is_too_large_is_refused(tmp_path, monkeypatch):
    folder = write_shards(tmp_path, shards=1)
    monkeypatch.setattr(shard_reader, "MAX_GROUP_BYTES", 1000)
    for view in (lambda: PairStream(folder).rows(0, 0, 1), lambda: next(iter(load_pmc15m(folder)))):
        with pytest.raises(ValueError, match=r"row group 0 has [\d,]+ bytes, and at most 1,000 are read"):
            view()


def test_the_path_of_an_image_with_bytes_is_ignored(tmp_path, monkeypatch):
    # `datasets.Image` prefers a local file with the path of the row to its bytes.
    write_shards(tmp_path, shards=1)
    monkeypatch.chdir(tmp_path)
    for number in range(25):
        Path(f"g{number}.png").write_text("not this")
    for streaming in (True, False):
        row = next(iter(load_pmc15m(tmp_path, columns=["image"], streaming=streaming)))
        assert row["image"].size == (8, 6)
    raw = next(iter(load_pmc15m(tmp_path, columns=["image"], decode=False)))
    assert raw["image"]["bytes"] == pair_row(0)["image"]["bytes"]
    assert isinstance(load_pmc15m(tmp_path, columns=["image"]).features["image"], datasets.Image)
