"""Reading a bucket in PMC's layout."""

import errno
import hashlib
import pickle
import time

import fsspec
import pytest

from processing.pmc import bucket as bucket_module
from processing.pmc.bucket import Bucket, BucketError, ObjectError, SourceUnavailable, split_url


def with_failing(bucket: Bucket, error: BaseException | None, failures: int = 10**9, *, calls=("cat_file",)) -> Bucket:
    """The bucket on a file system of which some calls fail at first."""
    bucket.__dict__["_opened"] = (Flaky(bucket._filesystem, error, failures, calls), bucket._root)
    return bucket


def refused_by_s3(code: str) -> Exception:
    """What s3fs makes of an answer of S3."""
    exceptions = pytest.importorskip("botocore.exceptions")
    errors = pytest.importorskip("s3fs.errors")
    return errors.translate_boto_error(
        exceptions.ClientError({"Error": {"Code": code, "Message": f"about {code}"}}, "GetObject")
    )


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
    """A file system of which some calls fail a number of times before they work."""

    def __init__(self, filesystem, error: BaseException, failures: int, calls: tuple[str, ...]):
        self.filesystem, self.error, self.failures, self.calls = filesystem, error, failures, calls

    def __getattr__(self, name: str):
        call = getattr(self.filesystem, name)

        def flaky(*arguments, **options):
            self.failures -= 1
            if self.failures >= 0:
                raise self.error
            return call(*arguments, **options)

        return flaky if name in self.calls else call


@pytest.mark.parametrize("call", ["cat_file", "info", "ls"])
@pytest.mark.parametrize(("failures", "works"), [(7, True), (99, False)])
def test_a_passing_fault_is_tried_again_and_an_outage_stops_the_run(mirror, monkeypatch, failures, works, call):
    mirror.plain_articles(1)
    monkeypatch.setattr(bucket_module, "FIRST_PAUSE", 0.001)
    bucket = with_failing(Bucket(str(mirror.root)), TimeoutError("no answer"), failures, calls=(call,))
    ask, key = {
        "cat_file": (bucket.read, "metadata/PMC1000.1.json"),
        "info": (bucket.state, "metadata/PMC1000.1.json"),
        "ls": (bucket.names, "metadata"),
    }[call]
    if works:
        assert ask(key)
    else:
        with pytest.raises(SourceUnavailable, match="no answer"):
            ask(key)


def test_an_outage_of_a_minute_is_waited_for(mirror, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    bucket = with_failing(Bucket(str(mirror.root)), TimeoutError("no answer"))
    with pytest.raises(SourceUnavailable):
        bucket.read("a")
    assert 60 <= sum(pauses) <= 70


@pytest.mark.parametrize(
    "code",
    ["ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed", "InvalidToken"],
)
@pytest.mark.parametrize("call", ["read", "state", "names"])
def test_credentials_that_are_refused_stop_the_run_and_do_not_thin_the_set(mirror, code, call):
    mirror.plain_articles(1)
    bucket = with_failing(Bucket(str(mirror.root)), refused_by_s3(code), calls=("cat_file", "info", "ls"))
    with pytest.raises(SourceUnavailable, match=f"credentials are refused .*about {code}.* Renew them"):
        getattr(bucket, call)("metadata/PMC1000.1.json")


def test_a_head_that_does_not_say_why_it_is_refused_is_followed_by_a_get_that_does(mirror):
    mirror.plain_articles(1)
    key = "metadata/PMC1000.1.json"
    bucket = with_failing(Bucket(str(mirror.root)), refused_by_s3("403"), calls=("info",))
    assert bucket.state(key) is None
    bucket = with_failing(bucket, refused_by_s3("ExpiredToken"), calls=("cat_file",))
    with pytest.raises(SourceUnavailable, match="credentials are refused"):
        bucket.state(key)


@pytest.mark.parametrize("code", ["AccessDenied", "NoSuchKey", "InvalidObjectState", "KeyTooLongError"])
def test_a_refusal_of_one_object_is_its_own_fault(mirror, code):
    mirror.plain_articles(1)
    bucket = with_failing(Bucket(str(mirror.root)), refused_by_s3(code))
    with pytest.raises(ObjectError, match="PMC1000.1.json: cannot be read"):
        bucket.read("metadata/PMC1000.1.json")


def test_a_bucket_that_is_gone_is_no_fault_of_the_object(mirror, monkeypatch):
    monkeypatch.setattr(bucket_module, "FIRST_PAUSE", 0.001)
    with pytest.raises(SourceUnavailable, match="NoSuchBucket"):
        with_failing(Bucket(str(mirror.root)), refused_by_s3("NoSuchBucket")).read("a")


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "no", "/a/machine/path"),
        OSError(errno.ENAMETOOLONG, "no", "/a/machine/path"),
        OSError(errno.ELOOP, "no", "/a/machine/path"),
        FileNotFoundError(errno.ENOENT, "no", "/a/machine/path"),
        IsADirectoryError(errno.EISDIR, "no", "/a/machine/path"),
        ValueError("embedded null byte in /a/machine/path"),
    ],
)
def test_the_fault_of_an_object_is_told_without_a_path_of_the_machine(mirror, error):
    with pytest.raises(ObjectError, match="^PMC1.1/g.png: cannot be read") as refusal:
        with_failing(Bucket(str(mirror.root)), error).read("PMC1.1/g.png")
    assert "machine" not in str(refusal.value)


@pytest.mark.parametrize(
    "key",
    ["", "a\0b", "a\nb", "a\x7f", "\ud800.xml", "x" * 256, "é" * 128, "/".join(["x" * 200] * 6), "s3://bucket/?md5=0"],
    ids=ascii,
)
def test_a_key_that_no_source_can_hold_is_refused_before_it_is_asked_for(mirror, key):
    with pytest.raises(ObjectError, match="key (is empty|holds|has more)"):
        with_failing(Bucket(str(mirror.root)), AssertionError("asked for")).read(key)


def test_only_metadata_that_are_missing_are_looked_for_in_the_folder_of_the_article(mirror):
    mirror.plain_articles(2)
    bucket = Bucket(str(mirror.root))
    (mirror.root / "metadata" / "PMC1000.1.json").unlink()
    assert bucket.read_metadata("PMC1000.1")["pmcid"] == "PMC1000"
    bucket = with_failing(bucket, refused_by_s3("AccessDenied"), failures=1)
    with pytest.raises(ObjectError, match="metadata/PMC1001.1.json"):
        bucket.read_metadata("PMC1001.1")


def test_metadata_of_more_bytes_than_any_are_refused(mirror):
    (mirror.root / "metadata" / "PMC1.1.json").write_bytes(b'{"a": [' + b"{}," * 3_400_000 + b"{}]}")
    with pytest.raises(ObjectError, match="more than 10,000,000 bytes"):
        Bucket(str(mirror.root)).read_metadata("PMC1.1")


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("s3://b/a.jpg?md5=AB", ("s3://b/a.jpg", "ab")),
        ("s3://b/a.jpg?md5=ab&x=1", ("s3://b/a.jpg", "ab")),
        ("s3://b/a.jpg?x=1&md5=ab", ("s3://b/a.jpg", "ab")),
        ("s3://b/a?1.jpg?md5=ab", ("s3://b/a?1.jpg", "ab")),
        ("s3://b/a?1.jpg", ("s3://b/a?1.jpg", "")),
        ("s3://b/a.jpg", ("s3://b/a.jpg", "")),
    ],
)
def test_the_md5_of_a_url_is_found_among_its_parameters(url, parts):
    assert split_url(url) == parts


def test_a_folder_is_listed_anew_each_time(mirror, object_store):
    mirror.plain_articles(1)
    bucket = Bucket(object_store.upload(mirror.root, "mirror"))
    before = bucket.names("metadata")
    mirror.plain_articles(1, first=2000)
    object_store.upload(mirror.root, "mirror")
    assert {*bucket.names("metadata")} - {*before} == {"PMC2000.1.json"}


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


def test_over_http_a_failing_server_does_not_make_an_object_absent(mirror, serve, monkeypatch):
    monkeypatch.setattr(bucket_module, "FIRST_PAUSE", 0.001)
    mirror.plain_articles(20)
    server = serve(mirror.root, failing=0.7)
    bucket = Bucket(server.url)
    assert all(bucket.state(f"metadata/PMC{number}.1.json") for number in range(1000, 1020))
    assert bucket.state("metadata/PMC1.1.json") is None
    monkeypatch.setattr(server, "fate", lambda path: "refused")
    with pytest.raises(SourceUnavailable):
        bucket.state("metadata/PMC1000.1.json")


def test_over_http_what_is_forbidden_or_empty_is_a_matter_of_one_object(tmp_path, serve):
    for name in ("secret.png", "empty.png"):
        (tmp_path / name).write_bytes(b"")
    bucket = Bucket(serve(tmp_path, forbidden=["secret.png"]).url)
    assert bucket.read("empty.png") == b""
    with pytest.raises(ObjectError, match=r"secret.png: cannot be read \(access is denied\)"):
        bucket.read("secret.png")
    assert bucket.state("secret.png") is None


@pytest.mark.parametrize("name", ["fig#1.png", "fig%41.png", "fig?1.png", "fig+1 x.png", "Abb. ü.png"])
def test_over_http_any_name_finds_its_file(tmp_path, serve, name):
    (tmp_path / name).write_bytes(b"content")
    bucket = Bucket(serve(tmp_path).url)
    assert bucket.read(f"s3://bucket/{name}?md5={hashlib.md5(b'content').hexdigest()}") == b"content"
    assert bucket.state(name)
