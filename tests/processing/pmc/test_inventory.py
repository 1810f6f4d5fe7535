"""The work list: the articles and versions of a source."""

import gzip
import hashlib
import json
import os
import shutil
from datetime import UTC, datetime

import pytest
from helpers.mirror_writer import write_inventory

from biomedclip.processing.pmc.bucket import Bucket, BucketError, SourceUnavailable
from biomedclip.processing.pmc.inventory import INVENTORY, find_manifest, read_work_list


def listed(bucket: Bucket, *arguments, **options) -> list[tuple]:
    return [tuple(row.values()) for row in read_work_list(bucket, *arguments, **options)[0].to_pylist()]


def names(bucket: Bucket, *arguments, **options) -> dict[str, list[int]]:
    return {pmcid: versions for pmcid, versions, _ in listed(bucket, *arguments, **options)}


@pytest.fixture
def bucket(mirror) -> Bucket:
    """A mirror of two articles without an inventory."""
    mirror.plain_articles(2)
    return Bucket(str(mirror.root))


def test_articles_are_read_from_the_newest_or_the_chosen_inventory_and_sorted(mirror, bucket):
    write_inventory(mirror.root, {"PMC1000.1": "a"}, date="2026-01-01T01-00Z")
    write_inventory(mirror.root, {"PMC20.2": "c", "PMC3.1": "d", "PMC20.1": "b"}, files=2)
    assert listed(bucket) == [("PMC3", [1], "1:d"), ("PMC20", [1, 2], "1:b 2:c")]
    assert read_work_list(bucket)[1] == "2026-01-18T01-00Z"
    assert find_manifest(bucket) == f"{INVENTORY}/2026-01-18T01-00Z/manifest.json"
    assert names(bucket, inventory="2026-01-01T01-00Z") == {"PMC1000": [1]}
    with pytest.raises(BucketError, match="no inventory '2020-01-01'.*2026-01-01T01-00Z, 2026-01-18T01-00Z"):
        read_work_list(bucket, inventory="2020-01-01")


def test_the_manifest_names_the_columns_other_objects_are_ignored_and_keys_are_decoded(mirror, bucket):
    rows = {"PMC1.1": "a", "README": "b", "PMC7%2E2": "c", "PMC1.1.bak": "d"}
    write_inventory(mirror.root, rows, fileSchema="Bucket, Key, ETag, Size")
    assert listed(bucket) == [("PMC1", [1], "1:2026-01-08"), ("PMC7", [2], "2:2026-01-08")]


@pytest.mark.parametrize("metadata", ["folder", "nothing", "FIFO", "file"])
def test_without_an_inventory_the_folder_metadata_or_the_folders_of_articles_are_listed(
    mirror, bucket, impatient, metadata
):
    path = mirror.root / "metadata"
    if metadata != "folder":
        shutil.rmtree(path)
    if metadata == "FIFO":
        os.mkfifo(path)
    elif metadata == "file":
        path.write_text("no folder")
    assert names(bucket) == {"PMC1000": [1], "PMC1001": [1]}
    assert bucket.read_metadata("PMC1000.1")["pmcid"] == "PMC1000"


@pytest.mark.parametrize("folder", ["metadata", "PMC1001.1"])
def test_the_etag_changes_only_with_the_metadata(mirror, bucket, folder):
    if folder != "metadata":
        shutil.rmtree(mirror.root / "metadata")
    before = listed(bucket)
    (mirror.root / "PMC1000.1" / "thumbs.db").write_text("changes the folder")
    path = mirror.root / folder / "PMC1001.1.json"
    path.write_text(path.read_text() + " ")
    after = listed(bucket)
    assert before[0] == after[0] and before[1][2] != after[1][2]
    if folder != "metadata":
        path.unlink()
        assert listed(bucket)[1] == ("PMC1001", [1], "1:missing")


@pytest.mark.slow
def test_without_metadata_on_s3_the_etag_is_that_of_the_object(mirror, object_store):
    mirror.plain_articles(2)
    shutil.rmtree(mirror.root / "metadata")
    content = (mirror.root / "PMC1001.1" / "PMC1001.1.json").read_bytes()
    rows = listed(Bucket(object_store.upload(mirror.root, "mirror")))
    assert rows[1] == ("PMC1001", [1], f"1:{hashlib.md5(content).hexdigest()}")


def test_the_name_of_the_used_inventory_is_returned(mirror, bucket, monkeypatch):
    assert read_work_list(bucket)[1] is None
    write_inventory(mirror.root, {"PMC1000.1": "a"})
    assert read_work_list(bucket)[1] == "2026-01-18T01-00Z"
    rows, inventory = read_work_list(bucket, ["PMC1000", "PMC1001"])
    assert inventory is None and rows.num_rows == 2, "the articles of a short list are requested"
    rows, inventory = read_work_list(bucket, ["PMC1000"], inventory="2026-01-18T01-00Z")
    assert inventory == "2026-01-18T01-00Z" and rows.column("source_etag").to_pylist() == ["1:a"]
    monkeypatch.setattr("biomedclip.processing.pmc.inventory._MAX_REQUESTED", 0)
    assert read_work_list(bucket, ["PMC1000"])[1] == "2026-01-18T01-00Z"


def test_an_outage_is_not_a_damaged_inventory(mirror, bucket, monkeypatch):
    write_inventory(mirror.root, {"PMC1000.1": "a"})

    def silent(*arguments, **options):
        raise TimeoutError("no answer")

    monkeypatch.setattr(bucket._filesystem, "cat_file", silent)
    with pytest.raises(SourceUnavailable, match="no answer"):
        read_work_list(bucket)


def test_over_http_articles_are_requested_in_parallel_with_retries(mirror, serve, monkeypatch):
    mirror.plain_articles(30)
    server = serve(mirror.root, failing=0.3, slow=1, delay=0.02)
    wanted = [f"PMC{number}" for number in range(1000, 1031)]
    found = names(Bucket(server.url), wanted)
    assert found == {pmcid: [1] for pmcid in wanted[:-1]} | {"PMC1030": []}
    assert server.most_at_once >= 4


def test_a_pmcid_selects_all_versions_or_one(mirror):
    for version in (1, 3):
        mirror.article(7, figures="", media={}, version=version)
    mirror.article(8, figures="", media={})
    bucket = Bucket(str(mirror.root))
    assert names(bucket, ["PMC8", "PMC7"]) == {"PMC7": [1, 3], "PMC8": [1]}
    assert names(bucket, ["PMC7.1", "PMC7.1"]) == {"PMC7": [1]}


@pytest.mark.parametrize("probed", [0, 1000])
def test_a_missing_pmcid_has_a_row_without_versions(mirror, bucket, monkeypatch, probed):
    # A long list is looked up in the inventory.
    monkeypatch.setattr("biomedclip.processing.pmc.inventory._MAX_REQUESTED", probed)
    write_inventory(mirror.root, {"PMC1000.1": "a", "PMC5.1": "b"})
    assert names(bucket, ["PMC999", "PMC1000"]) == {"PMC999": [], "PMC1000": [1]}


def test_invalid_and_missing_pmcids_and_an_empty_source_are_refused(bucket, tmp_path):
    with pytest.raises(BucketError, match="'12345' is not a PMCID"):
        read_work_list(bucket, ["PMC1000", "12345"])
    with pytest.raises(BucketError, match="none of the 1 PMCID.* PMC999"):
        read_work_list(bucket, ["PMC999"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BucketError, match="no articles found"):
        read_work_list(Bucket(str(tmp_path / "empty")))


@pytest.mark.parametrize("damage", ["truncated", "changed", "flipped", "missing", "manifest"])
def test_a_damaged_inventory_is_refused(mirror, bucket, damage):
    write_inventory(mirror.root, {"PMC1000.1": "a"})
    table = next((mirror.root / INVENTORY / "data").iterdir())
    manifest = next((mirror.root / INVENTORY).glob("2026*/manifest.json"))
    content = table.read_bytes()
    if damage in ("truncated", "flipped"):  # the first compressed byte is flipped, so that zlib finds the error
        flipped = content[:10] + bytes([content[10] ^ 0xFF]) + content[11:]
        table.write_bytes(content[:-9] if damage == "truncated" else flipped)
        manifest.write_text(json.dumps({"files": [{"key": f"{INVENTORY}/data/{table.name}"}]}))
    elif damage == "changed":
        table.write_bytes(gzip.compress(b'"b","metadata/PMC2.1.json","d","e"\n'))
    elif damage == "missing":
        table.unlink()
    else:
        manifest.write_text("{")
    with pytest.raises(BucketError, match="inventory .* damaged"):
        read_work_list(bucket)


def test_over_http_the_inventories_of_the_last_days_are_requested(mirror, serve):
    mirror.plain_articles(2)
    bucket = Bucket(serve(mirror.root).url)
    with pytest.raises(BucketError, match="Pass `inventory` or `pmcids`"):
        read_work_list(bucket)
    today = f"{datetime.now(UTC):%Y-%m-%d}T01-00Z"
    write_inventory(mirror.root, {"PMC1000.1": "a", "PMC1001.1": "b"}, date=today)
    assert names(bucket) == {"PMC1000": [1], "PMC1001": [1]}
    assert names(bucket, ["PMC1001"]) == {"PMC1001": [1]}


def test_the_real_inventory_lists_all_articles(shared_data):
    root = shared_data / "pmc_mirror"
    folders = {path.name for path in root.glob("PMC*")}
    work_list = read_work_list(Bucket(str(root)))[0].to_pylist()
    assert {f"{row['pmcid']}.{version}" for row in work_list for version in row["versions"]} == folders
    for row in work_list:
        content = (root / "metadata" / f"{row['pmcid']}.1.json").read_bytes()
        assert row["source_etag"] == f"1:{hashlib.md5(content).hexdigest()}"
