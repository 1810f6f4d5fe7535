"""PMC's bucket on an S3 server gives the same results as a folder."""

import hashlib
import socket

import fsspec
import pyarrow.compute as pc
import pytest
from helpers.mirror_writer import build_set, figure_xml, png_bytes, shards_of, write_inventory

from biomedclip.processing.pmc.bucket import Bucket, BucketError, ObjectError, SourceUnavailable
from biomedclip.processing.pmc.inventory import find_manifest, read_work_list


pytestmark = pytest.mark.slow
PMC = "pmc-oa-opendata"


def names(bucket: Bucket, *arguments) -> list[str]:
    rows = read_work_list(bucket, *arguments)[0].to_pylist()
    return [f"{row['pmcid']}.{version}" for row in rows for version in row["versions"]]


@pytest.fixture
def both(mirror, object_store) -> tuple[Bucket, Bucket]:
    """A mirror of 31 articles with an inventory, and a bucket with the same objects."""
    mirror.plain_articles(30)
    mirror.article(7, figures=figure_xml("F1", "Of two versions.", "g"), media={"g.png": png_bytes(7)})
    mirror.article(7, figures=figure_xml("F1", "The second.", "g"), media={"g.png": png_bytes(8)}, version=2)
    etags = {path.stem: hashlib.md5(path.read_bytes()).hexdigest() for path in (mirror.root / "metadata").iterdir()}
    write_inventory(mirror.root, etags, files=2)
    return Bucket(str(mirror.root)), Bucket(object_store.upload(mirror.root, PMC))


def test_the_work_list_comes_from_the_inventory(both, object_store):
    folder, s3 = both
    assert read_work_list(s3) == read_work_list(folder) and read_work_list(s3)[0].num_rows == 31
    assert find_manifest(s3) == find_manifest(folder)
    assert names(s3, ["PMC7", "PMC1003.1"]) == names(folder, ["PMC7", "PMC1003.1"]) == ["PMC7.1", "PMC7.2", "PMC1003.1"]
    assert not [path for _, path, _ in object_store.sent if "PMC1004.1" in path], "articles are not requested"
    requested, _ = read_work_list(s3, ["PMC1003"])  # its ETag is that of the inventory
    assert requested == read_work_list(s3)[0].filter(pc.field("pmcid") == "PMC1003")


def test_every_object_equals_the_file_and_its_md5_is_checked(both, object_store):
    folder, s3 = both
    for name in names(s3):
        metadata = s3.read_metadata(name)
        assert metadata == folder.read_metadata(name)
        for url in (metadata["xml_url"], *metadata["media_urls"]):
            assert s3.read(url) == folder.read(url)
    object_store.client().put_object(Bucket=PMC, Key="PMC1000.1/a1000-g0.png", Body=b"other")
    with pytest.raises(ObjectError, match="MD5"):
        s3.read(s3.read_metadata("PMC1000.1")["media_urls"][0])


def test_a_missing_object_and_a_missing_bucket_are_named(both):
    with pytest.raises(ObjectError, match="g9.png: cannot be read"):
        both[1].read("PMC1000.1/g9.png")
    with pytest.raises(BucketError, match="none of the 1 PMCID.* PMC999"):
        read_work_list(both[1], ["PMC999"])
    with pytest.raises(BucketError, match="the folder or bucket does not exist"):
        Bucket("s3://no-such-bucket")


def without_keys(monkeypatch) -> None:
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("name", [PMC, "a-mirror"])
@pytest.mark.parametrize(
    ("environment", "signer"),
    [
        ({}, ""),
        ({"AWS_ACCESS_KEY_ID": "of-the-environment", "AWS_SECRET_ACCESS_KEY": "secret"}, "of-the-environment"),
        ({"AWS_SHARED_CREDENTIALS_FILE": "keys", "AWS_PROFILE": "default"}, "of-a-profile"),
        ({"AWS_SHARED_CREDENTIALS_FILE": "keys", "AWS_PROFILE": "lab"}, "of-a-profile"),
        ({}, "of-the-settings"),
        ({"AWS_PROFILE": "nobody"}, None),
    ],
    ids=["anonymous", "environment", "default profile", "profile", "fsspec", "missing profile"],
)
def test_credentials_of_the_environment_a_profile_or_the_fsspec_settings_are_used(
    mirror, object_store, monkeypatch, tmp_path, name, environment, signer
):
    mirror.plain_articles(1)
    source = object_store.upload(mirror.root, name)
    without_keys(monkeypatch)
    monkeypatch.chdir(tmp_path)
    key = "aws_access_key_id = of-a-profile\naws_secret_access_key = secret\n"
    (tmp_path / "keys").write_text(f"[default]\n{key}[lab]\n{key}")
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    if signer == "of-the-settings":
        monkeypatch.setitem(fsspec.config.conf, "s3", {"key": signer, "secret": "secret"})
    if signer is None:
        with pytest.raises(BucketError, match=f"{source}: the AWS credentials .* \\(.*nobody.*unset them"):
            Bucket(source)
    else:
        assert Bucket(source).read_metadata("PMC1000.1")["pmcid"] == "PMC1000"
        assert object_store.signers == {signer}


def test_without_a_network_the_error_states_that_there_is_no_connection(object_store, monkeypatch):
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    with socket.socket() as server:  # no server listens at this port
        server.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(SourceUnavailable, match=f"s3://{PMC}: no connection .*Check the network"):
            Bucket(f"s3://{PMC}")


def test_a_bucket_without_read_access_is_not_reported_as_missing(mirror, object_store, monkeypatch):
    mirror.plain_articles(1)
    source = object_store.upload(mirror.root, "closed", public=False)
    without_keys(monkeypatch)
    with pytest.raises(BucketError, match=r"closed: none of the 1 PMCID.*access is denied\): HTTP 403"):
        read_work_list(Bucket(source), ["PMC1000"])


@pytest.mark.parametrize("how", ["503", "reset"])
def test_a_transient_error_of_the_server_is_retried(both, object_store, how):
    object_store.fail("PMC1000.1.xml", how)
    url = both[0].read_metadata("PMC1000.1")["xml_url"]
    assert both[1].read(url) == both[0].read(url)
    assert object_store.faults_left == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_from_s3_gives_the_same_files_as_from_a_folder(both, tmp_path, workers):
    folder, s3 = both
    reports = [
        build_set(source, tmp_path / name, tasks=3, workers=workers)
        for source, name in ((folder.source, "folder"), (s3.source, "s3"))
    ]
    assert reports[0]["pairs"] == reports[1]["pairs"] == 61
    assert shards_of(tmp_path / "s3") == shards_of(tmp_path / "folder")


def test_real_articles_from_s3_give_the_same_files(shared_data, object_store, tmp_path):
    source = object_store.upload(shared_data / "pmc_mirror", PMC)
    report = build_set(source, tmp_path / "s3", workers=2, license="all")
    build_set(shared_data / "pmc_mirror", tmp_path / "folder", workers=2, license="all")
    assert report["articles"]["seen"] == 140 and report["inventory_date"] is not None
    assert shards_of(tmp_path / "s3") == shards_of(tmp_path / "folder")
