"""What datasets and models share when they are published: access, retries, and the check of what was uploaded."""

import huggingface_hub
import pytest

from biomedclip.run_scripts.hub import publishing
from biomedclip.run_scripts.hub.publishing import check_write_access, commit, create_repository, list_files


@pytest.mark.parametrize("repo_id", ["pairs", "lab/", "lab/a/b", "lab/pa irs", "/tmp/lab", "lab/a--b", "lab/a.git", ""])
def test_an_invalid_repository_id_is_refused(hub, repo_id):
    with pytest.raises(ValueError, match="--push-to '.*' is not a valid repository id.*my-lab/pmc-pairs"):
        check_write_access(repo_id)
    assert not hub.requests


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        (None, "lab/pairs", "no token.*hf auth login"),
        ("hf_unknown", "lab/pairs", "push lab/pairs: the Hub rejects the token.*hf auth login"),
        ("hf_reader", "lab/pairs", "is read-only.*hf auth login"),
        ("hf_writer", "strangers/pairs", "is not allowed to write to strangers.*lab, someone"),
        ("hf_writer", "museum/pairs", "is not allowed to write to museum.*lab, someone"),
    ],
)
def test_missing_write_access_is_reported_without_writing(hub, monkeypatch, token, repo_id, message):
    monkeypatch.setattr(publishing, "get_token", lambda: token)
    monkeypatch.setenv("HF_TOKEN", token or "")
    with pytest.raises(PermissionError, match=message):
        check_write_access(repo_id, "push")
    assert not hub.repositories and {method for method, _ in hub.requests} <= {"GET"}


def test_a_hub_that_does_not_respond_is_reported(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="does not respond"):
        check_write_access("lab/pairs")


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_a_private_repository_is_created_but_a_public_one_is_not_reused(hub, repo_type):
    api = check_write_access("lab/new")
    create_repository(api, "lab/new", repo_type, private=True)
    assert hub.repositories[repo_type, "lab/new"].private
    hub.add("lab/public", {"README.md": b""}, repo_type=repo_type)
    with pytest.raises(ValueError, match="exists and is public"):
        create_repository(api, "lab/public", repo_type, private=True)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/preupload/"), ("POST", "/info/lfs/objects/batch"), ("PUT", "/lfs/"), ("POST", "/commit/")],
)
def test_a_server_error_does_not_stop_an_upload(hub, method, path):
    hub.add("lab/model", {".gitattributes": b""})
    hub.fail(method, path, status=500)
    commit(huggingface_hub.HfApi(), "lab/model", "model", {"a.safetensors": b"weights", "b.txt": b"text"}, "Add files")
    assert set(hub.repositories["model", "lab/model"].files) == {".gitattributes", "a.safetensors", "b.txt"}


def test_a_rejected_request_is_not_repeated(hub):
    hub.add("lab/model", {".gitattributes": b""})
    hub.fail("POST", "/commit/", status=403, times=99)
    with pytest.raises(OSError, match="stopped at 'Add files'.*Run the same command again"):
        commit(huggingface_hub.HfApi(), "lab/model", "model", {"b.txt": b"text"}, "Add files")
    assert len([path for _, path in hub.requests if "/commit/" in path]) == 1


def test_a_file_that_the_hub_stores_incorrectly_is_found(hub):
    hub.add("lab/model", {"old.txt": b""})
    api, files = huggingface_hub.HfApi(), {"a.safetensors": b"weights", "b.txt": b"text"}
    _, sent = commit(api, "lab/model", "model", files, "Add files", delete=["old.txt"])
    publishing.verify_upload(list_files(api, "lab/model", "model"), sent, ["old.txt"])
    for wrong in ({"a.safetensors": b"Weights"}, {"b.txt": b"longer text"}, {"old.txt": b""}):
        hub.add("lab/model", {**files, **wrong})
        with pytest.raises(OSError, match=f"differ from those that were sent: {next(iter(wrong))}"):
            publishing.verify_upload(list_files(api, "lab/model", "model"), sent, ["old.txt"])
