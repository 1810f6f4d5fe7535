"""Reading a bucket in PMC's layout."""

import pickle

import fsspec
import pytest

from processing.pmc import bucket as bucket_module
from processing.pmc.bucket import Bucket, BucketError, ObjectError, SourceUnavailable


def test_a_missing_source_is_a_clear_error(tmp_path):
    with pytest.raises(BucketError, match="no such folder"):
        Bucket(str(tmp_path / "nowhere"))


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
        assert set(bucket.names("metadata")) == {"PMC1000.1.json"}
        assert bucket.read(bucket.read_metadata("PMC1000.1")["xml_url"]).startswith(b"<article")
    finally:
        memory.rm("/bucket", recursive=True)


class Flaky:
    """A file system that fails a number of times before it reads."""

    def __init__(self, filesystem, failures: int):
        self.filesystem, self.failures = filesystem, failures

    def cat_file(self, *arguments, **options):
        self.failures -= 1
        if self.failures >= 0:
            raise TimeoutError("no answer")
        return self.filesystem.cat_file(*arguments, **options)


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


@pytest.mark.parametrize("size", [0, 10, 11])
def test_an_object_of_more_bytes_than_allowed_is_refused(tmp_path, size):
    (tmp_path / "object").write_bytes(b"x" * size)
    if size <= 10:
        assert Bucket(str(tmp_path)).read("object", max_bytes=10) == b"x" * size
    else:
        with pytest.raises(ObjectError, match="more than 10 bytes"):
            Bucket(str(tmp_path)).read("object", max_bytes=10)


def test_over_http_an_answer_that_was_broken_off_is_asked_for_again(mirror, serve, monkeypatch):
    monkeypatch.setattr(bucket_module, "FIRST_PAUSE", 0.001)
    mirror.plain_articles(3)
    server = serve(mirror.root, failing=0.4)
    over_http, local = Bucket(server.url), Bucket(str(mirror.root))
    for name in ("PMC1000.1", "PMC1001.1", "PMC1002.1"):
        metadata = over_http.read_metadata(name)
        assert metadata == local.read_metadata(name)
        for url in metadata["media_urls"]:
            assert over_http.read(url) == local.read(url)
    assert server.failures > 2
    with pytest.raises(ObjectError, match="cannot be read"):
        over_http.read("PMC1000.1/absent.jpg")
