"""Reading of a bucket in PMC's layout."""

import errno
import hashlib
import os
import pickle
import socket
import time
from pathlib import Path

import fsspec
import pytest
from helpers.mirror_writer import build_set, write_inventory
from helpers.unreliable_server import UnreliableServer

from biomedclip.processing.pmc.bucket import (
    Bucket,
    BucketError,
    ObjectDamaged,
    ObjectError,
    SourceUnavailable,
    split_url,
)
from biomedclip.processing.pmc.inventory import INVENTORY, read_work_list


CALLS = {"read": "cat_file", "etag": "info", "names": "ls"}  # of the file system, for methods of a bucket


def with_failing(source, error: BaseException, failures: int = 10**9, *, calls=("cat_file", "info", "ls")) -> Bucket:
    """Return a bucket with a file system of which some calls fail a number of times."""
    bucket = source if isinstance(source, Bucket) else Bucket(str(source.root))
    filesystem, left = bucket._filesystem, [failures]

    class Flaky:
        def __getattr__(self, name: str):
            def flaky(*arguments, **options):
                left[0] -= 1
                if left[0] >= 0:
                    raise error
                return getattr(filesystem, name)(*arguments, **options)

            return flaky if name in calls else getattr(filesystem, name)

    bucket.__dict__["_opened"] = (Flaky(), bucket._root)
    return bucket


def refused_by_s3(code: str, status: int | None = None) -> Exception:
    """Return the error of s3fs for an error code of S3."""
    exceptions = pytest.importorskip("botocore.exceptions")
    errors = pytest.importorskip("s3fs.errors")
    return errors.translate_boto_error(
        exceptions.ClientError(
            {
                "Error": {"Code": code, "Message": f"about {code}"},
                "ResponseMetadata": {"HTTPStatusCode": status} if status else {},
            },
            "GetObject",
        )
    )


TRAVERSALS = [
    "../secret",
    "s3://pmc-oa-opendata/../secret",
    "s3://pmc-oa-opendata/PMC1000.1/../../secret?md5=00",
    "PMC1000.1/../../secret",
    "metadata/..",
    "PMC1000.1\\..\\..\\secret",
    "..\\secret",
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("key", TRAVERSALS)
def test_a_key_that_leads_out_of_the_bucket_is_not_requested(mirror, key, call):
    bucket = with_failing(mirror, AssertionError("asked for"))
    if call == "etag":
        assert bucket.etag(key) is None and "out of the bucket" in bucket.refusal
        return
    with pytest.raises((ObjectError, BucketError), match="out of the bucket"):
        getattr(bucket, call)(key)


def secret_beside(mirror) -> Path:
    secret = mirror.root.parent / "secret"
    secret.write_text("secret")
    mirror.plain_articles(1)
    return secret


@pytest.mark.parametrize("over_http", [False, True])
def test_no_form_of_a_key_reads_files_outside_the_bucket(mirror, serve, over_http):
    secret = secret_beside(mirror)
    bucket = Bucket(serve(mirror.root).url if over_http else str(mirror.root))
    encoded = ["%2e%2e/secret", "%2E%2E%2Fsecret", "..%2fsecret", "%252e%252e/secret", "PMC1000.1/%2e%2e/%2e%2e/secret"]
    absolute = [f"{start}{secret}" for start in ("", "/", "s3://b/", "file://", "s3://b//", "local://")]
    for key in (*TRAVERSALS, *encoded, *absolute, "~/secret", "C:\\secret", "\\\\host\\secret"):
        with pytest.raises(ObjectError):
            bucket.read(key)


@pytest.mark.parametrize(
    ("target", "key"),
    [("../secret", "link"), ("..", "link/secret"), ("second", "link"), ("../nowhere", "link"), ("link", "link")],
    ids=["file", "folder", "chain", "broken", "loop"],
)
def test_a_link_that_leads_out_of_a_mirror_is_refused(mirror, target, key):
    secret_beside(mirror)
    (mirror.root / "link").symlink_to(target)
    (mirror.root / "second").symlink_to("../secret")
    with pytest.raises(ObjectError, match="cannot be read") as refusal:
        Bucket(str(mirror.root)).read(key)
    assert target == "link" or "a link leads out of the mirror" in str(refusal.value)


def test_links_within_a_mirror_and_a_link_to_a_mirror_are_followed(mirror, tmp_path):
    mirror.plain_articles(1)
    (mirror.root / "PMC5.1").symlink_to("PMC1000.1")
    (mirror.root / "link.png").symlink_to(mirror.root / "PMC1000.1" / "a1000-g0.png")
    (tmp_path / "linked").symlink_to(mirror.root)
    for source in (mirror.root, tmp_path / "linked"):
        bucket = Bucket(str(source))
        content = bucket.read("PMC1000.1/a1000-g0.png")
        assert bucket.read("link.png") == bucket.read("PMC5.1/a1000-g0.png") == content


def put_in_place(path: Path, kind: str) -> None:
    """Replace a file by something else."""
    path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        folder = os.open(path.parent, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as server:  # via /proc, because names of sockets are short
            server.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["FIFO", "socket", "folder"])
@pytest.mark.parametrize("file", ["metadata/PMC1000.1.json", "PMC1000.1/PMC1000.1.xml", "PMC1000.1/a1000-g0.png"])
def test_a_path_that_is_not_a_file_costs_only_its_article(mirror, tmp_path, impatient, kind, file):
    mirror.plain_articles(3)
    put_in_place(mirror.root / file, kind)
    report = build_set(mirror.root, tmp_path / "out", split_fractions=(1, 0, 0))
    skipped = (tmp_path / "out" / "skipped.jsonl").read_text()
    if kind == "folder" and "metadata" in file:
        assert report["pairs"] == 6 and skipped == "", "the metadata in the folder of the article are used"
    else:
        assert report["pairs"] == (5 if "png" in file else 4)
        assert f"{file}: cannot be read " in skipped and str(tmp_path) not in skipped
        assert kind == "folder" or f"(it is a {kind})" in skipped


@pytest.mark.parametrize("kind", ["FIFO", "socket"])
def test_a_source_or_an_inventory_that_is_not_a_file_is_refused(mirror, tmp_path, impatient, kind):
    mirror.plain_articles(1)
    write_inventory(mirror.root, {"PMC1000.1": "etag"})
    put_in_place(mirror.root / INVENTORY / "2026-01-18T01-00Z" / "manifest.json", kind)
    with pytest.raises(BucketError, match=f"inventory .* damaged or incomplete .*it is a {kind}"):
        read_work_list(Bucket(str(mirror.root)))
    put_in_place(tmp_path / "source", kind)
    (tmp_path / "file").write_text("a file")
    for name, message in (("source", "is not a folder"), ("file", "is not a folder"), ("nothing", "does not exist")):
        with pytest.raises(BucketError, match=message):
            Bucket(str(tmp_path / name))


def test_any_file_system_of_fsspec_can_be_used(mirror):
    mirror.plain_articles(1)
    memory = fsspec.filesystem("memory")
    memory.put(str(mirror.root), "/bucket", recursive=True)
    try:
        bucket = pickle.loads(pickle.dumps(Bucket("memory://bucket")))
        assert set(bucket.names("metadata")) == {"PMC1000.1.json"}
        assert bucket.read(bucket.read_metadata("PMC1000.1")["xml_url"]).startswith(b"<article")
    finally:
        memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("call", CALLS)
def test_a_transient_error_is_retried_and_an_outage_stops_the_run_after_a_minute(mirror, monkeypatch, call):
    mirror.plain_articles(1)
    key = "metadata" if call == "names" else "metadata/PMC1000.1.json"
    assert getattr(with_failing(mirror, TimeoutError("no answer"), 7, calls=CALLS[call]), call)(key)
    pauses = []
    monkeypatch.undo()  # the shortened pauses of other tests
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(SourceUnavailable, match="no answer"):
        getattr(with_failing(mirror, TimeoutError("no answer"), calls=CALLS[call]), call)(key)
    assert 60 <= sum(pauses) <= 70


@pytest.mark.parametrize(
    "code",
    ["ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed", "InvalidToken"],
)
@pytest.mark.parametrize("call", CALLS)
def test_refused_credentials_stop_the_run(mirror, code, call):
    with pytest.raises(SourceUnavailable, match=f"credentials were rejected .*about {code}.* Renew them"):
        getattr(with_failing(mirror, refused_by_s3(code)), call)("metadata/PMC1000.1.json")


def test_a_refused_head_is_followed_by_a_get_that_states_the_reason(mirror):
    mirror.plain_articles(1)
    key = "metadata/PMC1000.1.json"
    bucket = with_failing(mirror, refused_by_s3("403"), calls=("info",))
    assert bucket.etag(key) is None
    bucket = with_failing(bucket, refused_by_s3("ExpiredToken"), calls=("cat_file",))
    with pytest.raises(SourceUnavailable, match="credentials were rejected"):
        bucket.etag(key)


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        *((code, ObjectError, "^a: cannot be read") for code in ("AccessDenied", "NoSuchKey", "InvalidObjectState")),
        ("KeyTooLongError", ObjectError, "^a: cannot be read"),
        ("NoSuchBucket", SourceUnavailable, "NoSuchBucket"),
    ],
)
def test_a_denied_object_concerns_only_this_object_and_a_missing_bucket_all(mirror, code, error, message):
    with pytest.raises(error, match=message):
        with_failing(mirror, refused_by_s3(code)).read("a")


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
def test_the_error_of_an_object_contains_no_local_path(mirror, error):
    with pytest.raises(ObjectError, match="^PMC1.1/g.png: cannot be read") as refusal:
        with_failing(mirror, error).read("PMC1.1/g.png")
    assert "machine" not in str(refusal.value)


@pytest.mark.parametrize(
    "key",
    ["", "a\0b", "a\nb", "a\x7f", "\ud800.xml", "x" * 256, "é" * 128, "/".join(["x" * 200] * 6), "s3://bucket/?md5=0"],
    ids=ascii,
)
def test_an_invalid_key_is_not_requested(mirror, key):
    with pytest.raises(ObjectError, match="key (is empty|contains|has more)"):
        with_failing(mirror, AssertionError("asked for")).read(key)


@pytest.mark.parametrize("name", ["ENOSPC", "EFBIG", "EROFS", "EMFILE", "ENFILE"])
@pytest.mark.parametrize("call", CALLS)
def test_an_error_of_this_machine_is_raised_at_once(mirror, monkeypatch, name, call):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it is tried again"))
    wrapped = ConnectionError("cannot connect")
    wrapped.__cause__ = OSError(getattr(errno, name), "text")
    with pytest.raises(OSError) as raised:
        getattr(with_failing(mirror, wrapped), call)("metadata")
    assert raised.value.errno == getattr(errno, name)


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        ("[]", "not a JSON object"),
        ('"text"', "not a JSON object"),
        ("null", "not a JSON object"),
        ('{"is_retracted": true, "is_retracted": false}', "contains 'is_retracted' twice"),
        ('{"a": {"b": 1, "b": 1}}', "contains 'b' twice"),
    ],
)
def test_metadata_must_be_an_object_with_unique_names(mirror, content, detail):
    (mirror.root / "metadata" / "PMC1.1.json").write_text(content)
    with pytest.raises(ObjectDamaged, match=f"PMC1.1.json.*{detail}"):
        Bucket(str(mirror.root)).read_metadata("PMC1.1")


def test_repeated_names_are_found_in_linear_time(mirror):
    content = ",".join(f'"{number}":0' for number in range(300_000)) + ',"299999":0'
    (mirror.root / "metadata" / "PMC1.1.json").write_text(f"{{{content}}}")
    started = time.process_time()
    with pytest.raises(ObjectDamaged, match="contains '299999' twice"):
        Bucket(str(mirror.root)).read_metadata("PMC1.1")
    assert time.process_time() - started < 5


def test_missing_metadata_are_read_from_the_folder_of_the_article(mirror):
    mirror.plain_articles(2)
    bucket = Bucket(str(mirror.root))
    (mirror.root / "metadata" / "PMC1000.1.json").unlink()
    assert bucket.read_metadata("PMC1000.1")["pmcid"] == "PMC1000"
    bucket = with_failing(bucket, refused_by_s3("AccessDenied"), failures=1)
    with pytest.raises(ObjectError, match="metadata/PMC1001.1.json"):
        bucket.read_metadata("PMC1001.1")


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
def test_the_md5_is_one_of_the_parameters_of_a_url(url, parts):
    assert split_url(url) == parts


@pytest.mark.slow
def test_listings_are_not_cached(mirror, object_store):
    mirror.plain_articles(1)
    bucket = Bucket(object_store.upload(mirror.root, "mirror"))
    before = bucket.names("metadata")
    mirror.plain_articles(1, first=2000)
    object_store.upload(mirror.root, "mirror")
    assert {*bucket.names("metadata")} - {*before} == {"PMC2000.1.json"}


LARGE = b"x" * 20_000_000


@pytest.mark.parametrize("kind", ["folder", "http", pytest.param("s3", marks=pytest.mark.slow)])
def test_the_md5_of_a_large_object_covers_its_last_byte(tmp_path, serve, request, kind):
    for name, content in (("whole", LARGE), ("damaged", LARGE[:-1] + b"y"), ("short", LARGE[:-1])):
        (tmp_path / name).write_bytes(content)
    if kind == "s3":
        source = request.getfixturevalue("object_store").upload(tmp_path, "bucket")
    else:
        source = str(tmp_path) if kind == "folder" else serve(tmp_path).url
    bucket, digest = Bucket(source), hashlib.md5(LARGE).hexdigest()
    assert bucket.read(f"s3://pmc-oa-opendata/whole?md5={digest}") == LARGE
    for url in (f"damaged?md5={digest}", f"short?md5={digest.upper()}", f"damaged?x=1&md5={digest}", "whole?md5=0"):
        with pytest.raises(ObjectError, match="the MD5 differs"):
            bucket.read(f"s3://pmc-oa-opendata/{url}")


def test_an_object_above_the_size_limit_is_refused(mirror):
    bucket = Bucket(str(mirror.root))
    for size in (0, 10):
        (mirror.root / "object").write_bytes(b"x" * size)
        assert bucket.read("object", max_bytes=10) == b"x" * size
    (mirror.root / "object").write_bytes(b"x" * 11)
    with pytest.raises(ObjectError, match="more than 10 bytes"):
        bucket.read("object", max_bytes=10)
    (mirror.root / "metadata" / "PMC1.1.json").write_bytes(b'{"a": [' + b"{}," * 3_400_000 + b"{}]}")
    with pytest.raises(ObjectError, match="more than 10,000,000 bytes"):
        bucket.read_metadata("PMC1.1")


def test_over_http_an_interrupted_response_is_requested_again(mirror, serve, monkeypatch):
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


def test_over_http_a_failing_server_is_not_a_missing_object(mirror, serve, monkeypatch):
    mirror.plain_articles(20)
    server = serve(mirror.root, failing=0.7)
    bucket = Bucket(server.url)
    assert all(bucket.etag(f"metadata/PMC{number}.1.json") for number in range(1000, 1020))
    assert bucket.etag("metadata/PMC1.1.json") is None
    monkeypatch.setattr(server, "next_fault", lambda: "refused")
    with pytest.raises(SourceUnavailable):
        bucket.etag("metadata/PMC1000.1.json")


@pytest.mark.parametrize("call", ["read", "etag"])
def test_without_a_connection_the_run_stops_after_three_attempts(monkeypatch, call):
    with socket.socket() as server:  # no server listens at this port
        server.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(SourceUnavailable, match=f"{url}: no connection in 3 attempts .*Check the network"):
            getattr(Bucket(url), call)("a.json")


def test_a_lost_connection_is_retried_if_the_source_has_responded(mirror, monkeypatch):
    mirror.plain_articles(1)
    with UnreliableServer(mirror.root) as server:
        bucket = Bucket(server.url)
        assert bucket.etag("metadata/PMC1000.1.json")
    fsspec.get_filesystem_class("http").clear_instance_cache()  # and its open connections
    with pytest.raises(SourceUnavailable, match="no connection in 8 attempts"):
        pickle.loads(pickle.dumps(bucket)).read("metadata/PMC1000.1.json")


def test_over_http_an_object_may_be_empty_or_forbidden_and_the_status_is_reported(mirror, serve):
    mirror.plain_articles(1)
    (mirror.root / "empty.png").touch()
    bucket = Bucket(serve(mirror.root, forbidden=["PMC1000.1.json"]).url)
    assert bucket.read("empty.png") == b""
    assert bucket.etag("metadata/PMC1000.1.json") is None
    with pytest.raises(ObjectError, match=r"^metadata/PMC1000.1.json: cannot be read \(access is denied\): HTTP 403$"):
        bucket.read_metadata("PMC1000.1")
    with pytest.raises(BucketError, match=r"none of the 1 PMCID\(s\) .* PMC1000 \(.*access is denied.*HTTP 403"):
        read_work_list(bucket, ["PMC1000"])
    with pytest.raises(ObjectError, match=r"access is denied\): HTTP 403, AccessDenied"):
        with_failing(mirror, refused_by_s3("AccessDenied", 403)).read("metadata/PMC1000.1.json")


@pytest.mark.parametrize("name", ["fig#1.png", "fig%41.png", "fig?1.png", "fig+1 x.png", "Abb. ü.png"])
def test_over_http_names_are_quoted(tmp_path, serve, name):
    (tmp_path / name).write_bytes(b"content")
    bucket = Bucket(serve(tmp_path).url)
    assert bucket.read(f"s3://bucket/{name}?md5={hashlib.md5(b'content').hexdigest()}") == b"content"
    assert bucket.etag(name)
