"""Rows from S3 and from the Hub equal those from a disk, and no other bytes are requested."""

import socket
from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest
from helpers.hub_server import HubServer
from helpers.object_store import KEYS
from helpers.pair_shards import pair_row, write_shards
from torch.utils.data import DataLoader

from biomedclip.processing import PairStream, load_pmc15m, shard_reader
from biomedclip.processing.pmc.shards import pair_schema


SHARDS = 6
# Arrow reads the last 64 KiB of a file for its footer.
FOOTER_BYTES = 65_536


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """150 pairs of 20 kB in 6 shards of three row groups each."""
    return write_shards(tmp_path_factory.mktemp("pairs"), shards=SHARDS, image_size=(100, 66))


@pytest.fixture
def s3(pairs, object_store):
    """The URL of the pairs on S3."""
    return object_store.upload(pairs, "a-bucket", "sets/pairs")


def read(view, path, **options):
    """Return the rows of an epoch with undecoded images."""
    if view == "set":
        return list(load_pmc15m(path, decode=False, **{"seed": 0, **options}))
    stream = PairStream(path, **{"columns": shard_reader.TRAINING_COLUMNS, **options})
    return stream.rows(0, 0, len(stream))


def data_bytes(store):
    """Return the number of bytes sent per shard."""
    sent = dict.fromkeys(range(SHARDS), 0)
    for method, path, size in store.sent:
        if method == "GET" and path.endswith(".parquet"):
            sent[int(path.rsplit("/", 1)[1].split("-")[1])] += size
    return sent


def chunk_bytes(pairs, columns, *, first_group=0):
    """Return the size of columns in the row groups of a dataset."""
    return sum(
        metadata.row_group(group).column(column).total_compressed_size
        for path in (pairs / "data").iterdir()
        for metadata in [pq.read_metadata(path)]
        for group in range(first_group, metadata.num_row_groups)
        for column in range(metadata.num_columns)
        if metadata.row_group(group).column(column).path_in_schema.split(".")[0] in columns
    )


@pytest.mark.parametrize("view", ["set", "stream"])
@pytest.mark.parametrize("access", ["anonymous", "keys", "keys of the environment"])
def test_rows_from_s3_equal_those_from_a_disk(pairs, object_store, s3, view, access):
    if access != "anonymous":
        s3 = object_store.upload(pairs, "private-bucket", public=False)
    options = {"anonymous": {"anon": True}, "keys": KEYS}.get(access)
    rows = read(view, s3, storage_options=options, licenses="commercial", text="mentions")
    assert rows == read(view, pairs, licenses="commercial", text="mentions") and len(rows) > 30


@pytest.mark.parametrize("view", ["set", "stream"])
def test_a_private_bucket_without_keys_is_a_clear_error(pairs, object_store, view):
    private = object_store.upload(pairs, "private-bucket", public=False)
    with pytest.raises(PermissionError, match="s3://private-bucket.*Check the credentials"):
        read(view, private, storage_options={"anon": True})


def test_a_missing_connection_is_a_clear_error(object_store, monkeypatch):
    import s3fs

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(ConnectionError, match="s3://bucket/set: no connection .*Check the network"):
            load_pmc15m("s3://bucket/set")


@pytest.mark.slow
@pytest.mark.parametrize("view", ["set", "stream"])
def test_loader_workers_read_from_s3(s3, view):
    if view == "set":
        rows = list(DataLoader(load_pmc15m(s3, columns=["pair_id"]), batch_size=None, num_workers=2))
    else:
        stream = PairStream(s3, columns=["pair_id"])
        loader = iter(DataLoader(stream.batches(30), batch_size=None, num_workers=2))
        rows = [row for _ in range(5) for row in next(loader)]
    assert sorted(row["pair_id"] for row in rows) == sorted(pair_row(number)["pair_id"] for number in range(150))


def test_random_access_from_s3(s3, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    data_set = load_pmc15m(s3, streaming=False, columns=["pair_id"], storage_options={"anon": True})
    assert list(data_set) == list(load_pmc15m(pairs, columns=["pair_id"]))


@pytest.mark.parametrize("view", ["set", "stream"])
@pytest.mark.parametrize("licenses", [None, "all", "commercial"])
def test_only_the_requested_columns_are_read(pairs, object_store, s3, view, licenses):
    rows = read(view, s3, columns=["caption"], licenses=licenses)
    assert set(rows[0]) - {"epoch"} == {"caption"}
    # A stream first reads all footers to count rows. `load_pmc15m` reads the first one, and again for licenses.
    footers = {"set": SHARDS + (licenses == "commercial"), "stream": 2 * SHARDS}[view] * FOOTER_BYTES
    sent = sum(data_bytes(object_store).values()) - footers
    if licenses == "commercial":
        # Arrow joins ranges that are less than 8 KiB apart, so small columns between them may be read.
        small = {*pair_schema().names} - {"image"}
        assert chunk_bytes(pairs, ["caption", "license"]) <= sent <= chunk_bytes(pairs, small) * 1.5
    else:
        assert sent == chunk_bytes(pairs, ["caption"])
    assert sent < chunk_bytes(pairs, ["image"]) / 100


def test_a_dataset_that_starts_late_does_not_read_earlier_rows(pairs, object_store, s3):
    (row, *_) = list(load_pmc15m(s3, columns=["pair_id", "image"], decode=False, start=4 * 25 + 12))
    assert row["pair_id"] == pair_row(112)["pair_id"]
    sent = data_bytes(object_store)
    group = chunk_bytes(pairs, ["pair_id", "image"]) // 15  # of ten rows out of 150
    assert all(sent[shard] <= 2 * FOOTER_BYTES for shard in range(4))
    # The second and third of its row groups, which hold 15 of its 25 rows.
    assert 1.4 * group < sent[4] - 2 * FOOTER_BYTES < 1.6 * group
    assert 2.4 * group < sent[5] - 2 * FOOTER_BYTES < 2.6 * group


def test_row_groups_are_read_once_and_not_at_all_before_the_resume_position(pairs, object_store, s3):
    stream = PairStream(s3)
    object_store.sent.clear()
    batches = iter(stream.batches(4))
    for _ in range(37):
        next(batches)
    whole = chunk_bytes(pairs, shard_reader.TRAINING_COLUMNS)
    assert sum(data_bytes(object_store).values()) == SHARDS * FOOTER_BYTES + whole
    # The three columns are adjacent: one request for each of three row groups.
    assert len([path for method, path, _ in object_store.sent if method == "GET"]) == SHARDS * (1 + 3)
    object_store.sent.clear()
    stream = PairStream(s3)
    next(iter(stream.batches(4, samples_seen=100)))
    assert sum(data_bytes(object_store).values()) < (SHARDS + 1) * FOOTER_BYTES + whole / 10


@pytest.mark.parametrize(
    ("view", "how", "times"),
    [
        ("set", "503", 1),
        ("stream", "503", 1),
        ("set", "reset", 1),
        pytest.param("stream", "reset", 7, marks=pytest.mark.slow),
    ],
)
def test_a_temporary_fault_changes_nothing(pairs, object_store, s3, monkeypatch, view, how, times):
    # s3fs itself tries five times, so seven faults need retries of the reader.
    monkeypatch.setattr(shard_reader, "FIRST_PAUSE", 0.01)
    expected = read(view, pairs)
    object_store.fail("train-00003", how, times)
    object_store.fail("train-00005", how, times)
    assert read(view, s3) == expected
    assert object_store.faults_left == 0


@pytest.mark.parametrize("view", ["set", "stream"])
def test_a_shard_that_vanishes_from_s3_is_named(object_store, s3, view):
    if view == "set":
        rows = iter(load_pmc15m(s3, columns=["pair_id"]))
    else:
        stream = PairStream(s3, columns=["pair_id"])
        rows = (row for n in range(150) for row in stream.rows(0, n, n + 1))
    next(rows)
    opened = {path for method, path, size in object_store.sent if size > 0 and path.endswith(".parquet")}
    if view == "set":
        assert len(opened) == 1, "load_pmc15m opens only the first shard"
    lost = f"{s3}/data/train-00003-of-00006.parquet"
    object_store.delete(lost)
    with pytest.raises(FileNotFoundError, match=f"{lost}: the shard no longer exists"):
        list(rows)


@pytest.fixture
def hub(pairs) -> Iterator[HubServer]:
    """A Hub with the dataset `someone/pairs`."""
    with HubServer() as server:
        files = {str(path.relative_to(pairs)): path.read_bytes() for path in pairs.rglob("*") if path.is_file()}
        server.add("someone/pairs", files, repo_type="dataset")
        yield server


def test_rows_from_the_hub_equal_those_from_a_disk_without_reading_images(hub, pairs):
    options = {
        "storage_options": {"endpoint": hub.endpoint},
        "columns": ["pair_id", "caption"],
        "licenses": "commercial",
    }
    for view in ("set", "stream"):
        assert read(view, "hf://datasets/someone/pairs", **options) == read(
            view, pairs, columns=["pair_id", "caption"], licenses="commercial"
        )
    assert hub.bytes_sent < 4 * SHARDS * FOOTER_BYTES
    with pytest.raises(FileNotFoundError, match="repository not found"):
        PairStream("hf://datasets/someone/else", storage_options={"endpoint": hub.endpoint})


@pytest.mark.slow
def test_both_views_read_from_the_hub_that_the_environment_names(hub, tmp_path):
    code = """
from biomedclip.processing import PairStream, load_pmc15m
from torch.utils.data import DataLoader

path = "hf://datasets/someone/pairs"
stream = PairStream(path, seed=3)
rows = [row["pair_id"] for row in stream.rows(0, 0, len(stream))]
assert len(set(rows)) == 150
assert [row["pair_id"] for row in load_pmc15m(path, seed=3)] == rows
assert list(load_pmc15m(path, seed=3, streaming=False)["pair_id"]) == rows
workers = DataLoader(load_pmc15m(path, columns=["pair_id"]), batch_size=None, num_workers=2)
assert sorted(row["pair_id"] for row in workers) == sorted(rows)
"""
    assert hub.python(f"{code}print('the same')\n", tmp_path) == "the same\n"


def test_footers_of_a_built_dataset_state_the_rows_by_license_and_the_report_all_rows(built, object_store):
    s3 = object_store.upload(built, "built")
    sent = {}
    for choice in ("CC BY", None):
        before = object_store.bytes_sent()
        stream = PairStream(s3, licenses=choice)
        assert len(stream) == len(PairStream(built)) > 100
        sent[choice] = object_store.bytes_sent() - before
    shards = len(list((built / "data").glob("train-*")))
    assert sent[None] < sent["CC BY"] <= sent[None] + shards * FOOTER_BYTES
    with pytest.raises(ValueError, match=r"no pair under CC0. The licenses are: CC BY \(\d+ pairs\)"):
        PairStream(s3, licenses="CC0")
