"""Reading a bucket in PMC's layout."""

import gzip
import json
import pickle

import fsspec
import pytest

from processing.pmc import bucket as bucket_module
from processing.pmc.bucket import INVENTORY, Bucket, BucketError, ObjectError, SourceUnavailable


def write_inventory(mirror, names: list[str], date: str = "2026-01-18T01-00Z") -> None:
    folder = mirror.root / INVENTORY
    (folder / date).mkdir(parents=True)
    (folder / "data").mkdir(exist_ok=True)
    rows = "".join(f'"pmc-oa-opendata","metadata/{name}.json","2026-01-08","etag"\n' for name in names)
    (folder / "data" / f"{date}.csv.gz").write_bytes(gzip.compress(rows.encode()))
    manifest = {"files": [{"key": f"{INVENTORY}/data/{date}.csv.gz"}]}
    (folder / date / "manifest.json").write_text(json.dumps(manifest))


def test_the_work_list_comes_from_the_newest_inventory(mirror):
    mirror.plain_articles(3)
    write_inventory(mirror, ["PMC1000.1"], date="2026-01-01T01-00Z")
    write_inventory(mirror, ["PMC1001.1", "PMC1002.1"])
    bucket = Bucket(str(mirror.root))
    assert bucket.work_list() == ["PMC1001.1", "PMC1002.1"]
    assert bucket.inventory_date() == "2026-01-18T01-00Z"


def test_without_inventory_it_comes_from_the_folder_of_metadata(mirror):
    mirror.plain_articles(2)
    assert Bucket(str(mirror.root)).work_list() == ["PMC1000.1", "PMC1001.1"]


def test_without_metadata_it_comes_from_the_folders_of_articles(mirror):
    mirror.plain_articles(2)
    for path in (mirror.root / "metadata").iterdir():
        path.unlink()
    (mirror.root / "metadata").rmdir()
    bucket = Bucket(str(mirror.root))
    assert bucket.work_list() == ["PMC1000.1", "PMC1001.1"]
    assert bucket.read_metadata("PMC1000.1")["pmcid"] == "PMC1000"


def test_of_each_article_the_newest_version_is_taken(mirror):
    for version in (1, 2, 10):
        mirror.article(7, figures="", media={}, version=version)
    assert Bucket(str(mirror.root)).work_list() == ["PMC7.10"]


def test_a_list_of_pmcids_finds_the_newest_version_or_the_one_that_is_named(mirror):
    for version in (1, 3):
        mirror.article(7, figures="", media={}, version=version)
    mirror.article(8, figures="", media={})
    bucket = Bucket(str(mirror.root))
    assert bucket.work_list(["PMC8", "PMC7"]) == ["PMC7.3", "PMC8.1"]
    assert bucket.work_list(["PMC7.1"]) == ["PMC7.1"]


def test_a_pmcid_that_is_not_there_is_named(mirror):
    mirror.plain_articles(1)
    with pytest.raises(BucketError, match="PMC999 is not there"):
        Bucket(str(mirror.root)).work_list(["PMC1000", "PMC999"])
    with pytest.raises(BucketError, match="'12345' is not a PMCID"):
        Bucket(str(mirror.root)).work_list(["12345"])


def test_a_missing_source_is_a_clear_error(tmp_path):
    with pytest.raises(BucketError, match="no such folder"):
        Bucket(str(tmp_path / "nowhere"))


def test_an_empty_source_is_a_clear_error(tmp_path):
    with pytest.raises(BucketError, match="no articles there"):
        Bucket(str(tmp_path)).work_list()


def test_a_damaged_inventory_is_a_clear_error_and_not_a_short_list(mirror):
    mirror.plain_articles(1)
    write_inventory(mirror, ["PMC1000.1"])
    table = next((mirror.root / INVENTORY / "data").iterdir())
    table.write_bytes(table.read_bytes()[:-9])
    with pytest.raises(BucketError, match="inventory .* damaged"):
        Bucket(str(mirror.root)).work_list()


def test_content_is_held_against_its_md5(mirror):
    mirror.plain_articles(1)
    bucket = Bucket(str(mirror.root))
    url = bucket.read_metadata("PMC1000.1")["media_urls"][0]
    assert bucket.read(url).startswith(b"\x89PNG")
    (mirror.root / "PMC1000.1" / "a1000-g0.png").write_bytes(b"other")
    with pytest.raises(ObjectError, match="MD5"):
        bucket.read(url)


def test_a_key_cannot_point_out_of_the_bucket(mirror):
    (mirror.root.parent / "secret").write_text("secret")
    mirror.plain_articles(1)
    with pytest.raises(ObjectError, match="out of the bucket"):
        Bucket(str(mirror.root)).read("s3://pmc-oa-opendata/../secret")


def test_any_file_system_of_fsspec_will_do(mirror):
    mirror.plain_articles(1)
    memory = fsspec.filesystem("memory")
    memory.put(str(mirror.root), "/bucket", recursive=True)
    try:
        bucket = pickle.loads(pickle.dumps(Bucket("memory://bucket")))
        assert bucket.work_list() == ["PMC1000.1"]
        assert bucket.read(bucket.read_metadata("PMC1000.1")["xml_url"]).startswith(b"<article")
    finally:
        memory.rm("/bucket", recursive=True)


class Flaky:
    """A file system whose `open` fails a number of times before it works."""

    def __init__(self, filesystem, failures: int):
        self.filesystem, self.failures = filesystem, failures

    def open(self, *arguments):
        self.failures -= 1
        if self.failures >= 0:
            raise TimeoutError("no answer")
        return self.filesystem.open(*arguments)


@pytest.mark.parametrize(("failures", "works"), [(2, True), (99, False)])
def test_a_passing_fault_is_tried_again_and_an_outage_stops_the_run(mirror, monkeypatch, failures, works):
    mirror.plain_articles(1)
    reader = Bucket(str(mirror.root))
    monkeypatch.setattr(bucket_module, "FIRST_PAUSE", 0.001)
    reader.__dict__["_opened"] = (Flaky(reader._filesystem, failures), reader._root)
    if works:
        assert reader.read("metadata/PMC1000.1.json").startswith(b"{")
    else:
        with pytest.raises(SourceUnavailable, match="no answer"):
            reader.read("metadata/PMC1000.1.json")
