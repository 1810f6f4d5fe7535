"""Publishing a built set, against a Hub of our own on loopback: what is refused, what goes up, and what comes back."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.build_reports import full_scale_report
from helpers.hub_server import HubServer, Repository, log_in

from biomedclip.model_cards.fill import fill_dataset_card
from biomedclip.processing.integrity import hashes_of
from biomedclip.run_scripts.hub import publishing
from biomedclip.run_scripts.hub.publishing import COMPANIONS, push_dataset


USERS = {
    "hf_writer": {"name": "someone", "role": "write", "orgs": {"lab": "write", "museum": "read"}},
    "hf_reader": {"name": "someone", "role": "read", "orgs": {"lab": "write"}},
}


@pytest.fixture
def hub(monkeypatch):
    """A Hub, with a writer logged in."""
    with HubServer(USERS) as server:
        log_in(monkeypatch, server)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield server


@pytest.fixture
def made(built, tmp_path) -> Path:
    """A built set with everything that is published, and things that are not."""
    folder = tmp_path / "set"
    shutil.copytree(built / "data", folder / "data")
    describe(folder)
    (folder / ".build").mkdir()
    (folder / ".build" / "secret").write_text("not for others")
    (folder / "data" / ".hidden").write_text("not for others")
    (folder / "notes.txt").write_text("not for others")
    return folder


def describe(folder: Path) -> None:
    """Writes what stands beside the shards of a build."""
    splits: dict[str, dict[str, int]] = {}
    for path in sorted((folder / "data").glob("*.parquet")):
        counts = splits.setdefault(path.name.split("-")[0], {"articles": 1, "pairs": 0, "shards": 0, "bytes": 0})
        counts["pairs"] += pq.read_metadata(path).num_rows
        counts["shards"] += 1
        counts["bytes"] += path.stat().st_size
    report = full_scale_report() | {"splits": splits, "pairs": sum(counts["pairs"] for counts in splits.values())}
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "README.md").write_text(fill_dataset_card(report))
    (folder / "report.png").write_bytes(b"\x89PNG a picture")
    (folder / "skipped.jsonl").write_text("")
    pq.write_table(pa.table({"pmcid": ["PMC1"]}), folder / "articles.parquet")


def push(folder: Path, repo_id: str = "lab/pairs", **options) -> str:
    return push_dataset(folder, repo_id, report=json.loads((folder / "report.json").read_text()), **options)


def shards(folder: Path) -> dict[str, bytes]:
    return {f"data/{path.name}": path.read_bytes() for path in (folder / "data").glob("*.parquet")}


def uploads(hub: HubServer) -> list[str]:
    return [path for method, path in hub.requests if method == "PUT"]


def rewrite(path: Path, change) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def test_all_that_belongs_to_the_set_goes_up_and_nothing_else(hub, made):
    assert push(made) == f"{hub.endpoint}/datasets/lab/pairs"
    files = {name: file.content for name, file in hub.repositories["dataset", "lab/pairs"].files.items()}
    assert set(files) == {*shards(made), *COMPANIONS, ".gitattributes"}
    for name, content in (shards(made) | {name: (made / name).read_bytes() for name in COMPANIONS}).items():
        assert files[name] == content or name in ("report.json", "README.md"), name
    card = (made / "README.md").read_text()
    assert "ORG/NAME" in card and files["README.md"].decode() == card.replace("ORG/NAME", "lab/pairs")


def test_what_was_pushed_reads_as_what_was_built(hub, made, tmp_path):
    push(made)
    code = f"""
import datasets
from biomedclip.processing import load_pmc15m

def rows(pairs):
    pairs = pairs.cast_column("image", datasets.Image(decode=False))
    return sorted(((row | {{"image": row["image"]["bytes"]}}) for row in pairs), key=lambda row: row["pair_id"])

whole = datasets.load_dataset("lab/pairs")
assert set(whole) == {{"train", "validation", "test"}}
for split in whole:
    built = rows(load_pmc15m(r"{made}", split))
    assert len(built) > 0 and built[0]["image"]
    assert rows(load_pmc15m("hf://datasets/lab/pairs", split)) == built, "hf://"
    assert rows(whole[split]) == built, "load_dataset"
    assert rows(datasets.load_dataset("lab/pairs", split=split, streaming=True)) == built, "streaming"
print("the same")
"""
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "empty cache"),
        "HF_HUB_DISABLE_XET": "1",
    }
    del environment["HF_TOKEN"]
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "the same", done.stderr[-3000:]


def test_the_card_comes_last_and_shards_in_several_commits(hub, made, monkeypatch):
    monkeypatch.setattr(publishing, "SHARDS_PER_COMMIT", 3)
    push(made)
    commits = hub.repositories["dataset", "lab/pairs"].commits
    assert [title for _, title, _ in commits[1:]] == [
        "Shards 1 to 3 of 8",
        "Shards 4 to 6 of 8",
        "Shards 7 to 8 of 8",
        "200 pairs",
    ]
    assert ["README.md" in files for _, _, files in commits] == [False, False, False, False, True]


def test_a_second_push_sends_nothing_again(hub, made):
    push(made)
    commits, sent = len(hub.repositories["dataset", "lab/pairs"].commits), len(uploads(hub))
    push(made)
    assert len(hub.repositories["dataset", "lab/pairs"].commits) == commits and len(uploads(hub)) == sent


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/preupload/"),
        ("POST", "/info/lfs/objects/batch"),
        ("PUT", "/lfs/"),
        ("POST", "/commit/"),
    ],
)
def test_a_server_error_does_not_stop_the_upload(hub, made, method, path):
    hub.fail(method, path, status=500)
    push(made)
    assert {*shards(made), *COMPANIONS} <= set(hub.repositories["dataset", "lab/pairs"].files)


def test_an_interrupted_upload_goes_on_where_it_stopped(hub, made, monkeypatch):
    monkeypatch.setattr(publishing, "SHARDS_PER_COMMIT", 2)
    monkeypatch.setattr(publishing, "ATTEMPTS", 2)
    hub.fail("POST", "/commit/", status=503, after=2, times=2)
    with pytest.raises(OSError, match=r"stopped at 'Shards 5 to 6 of 8'.*the same command goes on"):
        push(made)
    assert len(hub.repositories["dataset", "lab/pairs"].files) == 1 + 4
    push(made)
    assert {*shards(made), *COMPANIONS} <= set(hub.repositories["dataset", "lab/pairs"].files)
    assert len(uploads(hub)) == len(set(uploads(hub))), "nothing was sent twice"


def test_a_plain_no_is_not_asked_again(hub, made):
    hub.fail("POST", "/commit/", status=403, times=99)
    with pytest.raises(OSError, match="stopped at 'Shards 1 to 8 of 8'"):
        push(made)
    assert len([path for _, path in hub.requests if "/commit/" in path]) == 1


def test_a_changed_shard_of_the_same_size_is_sent(hub, made):
    push(made)
    path = made / "data" / sorted(os.listdir(made / "data"))[-1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # within the bytes of an image
    path.write_bytes(content)
    push(made)
    assert hub.repositories["dataset", "lab/pairs"].files[f"data/{path.name}"].content == content


def test_shards_of_an_earlier_build_are_taken_away_and_other_files_left(hub, made):
    earlier = {"data/train-00000-of-00002.parquet": b"old", "LICENSE": b"text", "data/other.txt": b"text"}
    hub.add("lab/pairs", earlier, repo_type="dataset")
    push(made)
    files = hub.repositories["dataset", "lab/pairs"].files
    assert "data/train-00000-of-00002.parquet" not in files
    assert {"LICENSE", "data/other.txt", *shards(made)} <= set(files)


def test_a_private_set_is_private(hub, made):
    push(made, private=True)
    assert hub.repositories["dataset", "lab/pairs"].private


def test_a_public_repository_is_not_filled_with_what_is_to_be_private(hub, made):
    hub.add("lab/pairs", {"README.md": b""}, repo_type="dataset")
    with pytest.raises(ValueError, match="exists and is public"):
        push(made, private=True)
    assert not uploads(hub)


def test_the_published_report_holds_no_path_of_the_machine(hub, made):
    report = json.loads((made / "report.json").read_text())
    report["options"]["output_dir"] = str(made)
    (made / "report.json").write_text(json.dumps(report))
    push(made)
    content = hub.repositories["dataset", "lab/pairs"].files["report.json"].content
    assert str(made.parent) not in content.decode() and json.loads(content)["pairs"] == 200


@pytest.mark.parametrize("repo_id", ["pairs", "lab/", "lab/a/b", "lab/pa irs", "/tmp/lab", "lab/a--b", "lab/a.git", ""])
def test_a_bad_name_is_refused(hub, made, repo_id):
    with pytest.raises(ValueError, match="my-lab/pmc-pairs"):
        push(made, repo_id)
    assert not hub.requests


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        (None, "lab/pairs", "no token.*hf auth login"),
        ("hf_unknown", "lab/pairs", "refuses the token.*hf auth login"),
        ("hf_reader", "lab/pairs", "may only read.*hf auth login"),
        ("hf_writer", "strangers/pairs", "not a member of strangers.*lab, museum, someone"),
        ("hf_writer", "museum/pairs", "may only read in museum"),
    ],
)
def test_who_may_not_write_is_told_before_anything_is_sent(hub, made, monkeypatch, token, repo_id, message):
    monkeypatch.setattr(publishing, "get_token", lambda: token)
    monkeypatch.setenv("HF_TOKEN", token or "")
    with pytest.raises(PermissionError, match=message):
        push(made, repo_id)
    assert not hub.repositories and {method for method, _ in hub.requests} <= {"GET"}


def test_a_hub_that_is_not_there_is_told(hub, made, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="does not answer"):
        push(made)


def with_license(code):
    def change(table: pa.Table) -> pa.Table:
        codes = [code, *table.column("license").to_pylist()[1:]]
        return table.set_column(table.schema.get_field_index("license"), "license", pa.array(codes, pa.string()))

    return change


@pytest.mark.parametrize("code", ["TDM", None, "", "CC BY-NC-XX", "author's own"])
def test_a_single_pair_that_may_not_be_passed_on_stops_everything(hub, made, code):
    rewrite(sorted((made / "data").glob("train-*"))[-1], with_license(code))
    with pytest.raises(ValueError, match=f"1 under {code or 'none'}.*--license noncommercial"):
        push(made)
    assert not hub.repositories


@pytest.mark.parametrize("code", ["CC0", "CC BY", "CC BY-SA", "CC BY-ND", "CC BY-NC", "CC BY-NC-SA", "CC BY-NC-ND"])
def test_every_creative_commons_licence_may_be_passed_on(hub, made, code):
    rewrite(sorted((made / "data").glob("train-*"))[-1], with_license(code))
    push(made)


@pytest.mark.parametrize("name", [*COMPANIONS, "data/train-00003-of-00006.parquet"])
def test_a_missing_file_is_named(hub, made, name):
    report = json.loads((made / "report.json").read_text())
    (made / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        push_dataset(made, "lab/pairs", report=report)
    assert not hub.repositories


def test_a_shard_of_another_build_is_named(hub, made):
    shutil.copy(made / "data" / "test-00000-of-00001.parquet", made / "data" / "test-00000-of-00002.parquet")
    with pytest.raises(ValueError, match="test-00000-of-00002.parquet is not of this build"):
        push(made)


def test_a_damaged_shard_is_named(hub, made):
    path = made / "data" / "test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="test-00000-of-00001.parquet is damaged"):
        push(made)


@pytest.mark.parametrize("name", ["data/test-00000-of-00001.parquet", "articles.parquet", "skipped.jsonl"])
def test_a_file_that_is_not_the_one_that_was_built_is_refused(hub, made, name):
    report = json.loads((made / "report.json").read_text())
    names = ["articles.parquet", "skipped.jsonl", *(f"data/{path.name}" for path in (made / "data").glob("*.parquet"))]
    report["files"] = {known: hashes_of(made / known, parquet=known.endswith("parquet")) for known in names}
    (made / "report.json").write_text(json.dumps(report))
    (made / name).write_bytes((made / name).read_bytes() + b"\n")
    with pytest.raises(ValueError, match=f"{name}: damaged"):
        push(made)
    assert not hub.repositories


def test_pairs_that_the_report_does_not_know_are_refused(hub, made):
    rewrite(made / "data" / "test-00000-of-00001.parquet", lambda table: table.slice(1))
    with pytest.raises(ValueError, match="hold 199 pairs, report.json says 200"):
        push(made)


def test_a_card_that_the_hub_refuses_stops_the_upload_before_it_starts(hub, made):
    (made / "README.md").write_text("---\nlicense: 3\n---\n")
    with pytest.raises(ValueError, match=r"README.md.*license"):
        push(made)
    assert not hub.repositories


def test_what_the_hub_did_not_keep_is_noticed(hub, made, monkeypatch):
    commit = Repository.commit
    monkeypatch.setattr(
        Repository,
        "commit",
        lambda self, title, files: (
            commit(self, title, files | {"report.png": files["README.md"]})
            if "README.md" in files
            else commit(self, title, files)
        ),
    )
    with pytest.raises(OSError, match="is not what was sent: report.png"):
        push(made)


def test_the_hub_of_the_tests_serves_models_as_well(hub, tmp_path):
    """What else the server is for: a model, its listing in pages, parts of a file, an older commit."""
    api = huggingface_hub.HfApi(endpoint=hub.endpoint)
    api.create_repo("lab/model")
    first = api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="lab/model")
    api.upload_file(path_or_fileobj=b"weights", path_in_repo="model.safetensors", repo_id="lab/model")
    assert api.list_repo_files("lab/model") == [".gitattributes", "config.json", "model.safetensors"]
    assert api.list_repo_files("lab/model", revision=first.oid) == [".gitattributes", "config.json"]
    path = api.snapshot_download("lab/model", cache_dir=tmp_path)
    assert (Path(path) / "model.safetensors").read_bytes() == b"weights"
    with huggingface_hub.HfFileSystem(endpoint=hub.endpoint).open("lab/model/model.safetensors", block_size=2) as file:
        file.seek(3)
        assert file.read(2) == b"gh"
    hub.add("lab/large", {f"folder {n % 7}/file {n}": b"" for n in range(2500)}, private=True)
    assert len(api.list_repo_files("lab/large")) == 2500
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
        huggingface_hub.HfApi(endpoint=hub.endpoint, token=False).list_repo_files("lab/large")
    with pytest.raises(huggingface_hub.errors.EntryNotFoundError):
        api.hf_hub_download("lab/model", "nothing.txt", cache_dir=tmp_path)


LINKED = {
    "a companion": lambda made, secret: relink(made / "skipped.jsonl", secret),
    "the card": lambda made, secret: relink(made / "README.md", secret),
    "a shard": lambda made, secret: relink(next(iter((made / "data").glob("train-*"))), secret),
    "a file beside the shards": lambda made, secret: (made / "data" / "other").symlink_to(secret),
    "the folder of shards": lambda made, secret: (
        (made / "data").rename(made.parent / "elsewhere"),
        (made / "data").symlink_to("../elsewhere"),
    ),
}


def relink(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize("make", LINKED.values(), ids=LINKED.keys())
def test_a_link_that_leaves_the_set_is_refused_and_nothing_is_sent(hub, made, tmp_path, make):
    (tmp_path / "secret").write_text("not for others")
    report = json.loads((made / "report.json").read_text())
    make(made, tmp_path / "secret")
    with pytest.raises(ValueError, match="is a link that leaves"):
        push_dataset(made, "lab/pairs", report=report)
    assert not hub.repositories


def test_a_link_to_a_file_of_the_set_that_is_not_published_is_refused(hub, made):
    relink(made / "skipped.jsonl", Path("notes.txt"))
    with pytest.raises(ValueError, match=r"skipped.jsonl is a link to notes.txt, which is not published"):
        push(made)


def test_a_named_pipe_in_the_place_of_a_file_of_the_set_is_refused_at_once(hub, made):
    (made / "README.md").unlink()
    os.mkfifo(made / "README.md")
    with pytest.raises(ValueError, match=r"README.md is a named pipe"):
        push(made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"splits": []}, "splits must be an object"),
        ({"splits": {"train": {"shards": "1"}}}, "splits.train.shards must be int"),
        ({"splits": {"train": {"shards": 10**12}}}, "which cannot be"),
        ({"splits": {"../train": {"shards": 1}}}, "which cannot be"),
        ({"source": None}, "source must be str"),
        ({"caption_length": 3}, "caption_length must be an object"),
    ],
)
def test_a_report_of_another_shape_is_refused_by_name(hub, made, change, message):
    report = json.loads((made / "report.json").read_text()) | change
    with pytest.raises(ValueError, match=rf"report.json: .*{message}"):
        push_dataset(made, "lab/pairs", report=report)
    assert not hub.repositories
