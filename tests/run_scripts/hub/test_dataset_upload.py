"""Publish a built dataset on a local Hub: what is refused, what is uploaded, and what is read back."""

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.build_reports import full_scale_report
from helpers.hub_server import Repository

from biomedclip.model_cards.dataset_card import fill_dataset_card
from biomedclip.processing.integrity import hashes_of
from biomedclip.run_scripts.hub import dataset_upload, publishing
from biomedclip.run_scripts.hub.dataset_upload import COMPANIONS, push_dataset


@pytest.fixture
def made(built, tmp_path) -> Path:
    """A built dataset with all files that are published, and others that are not."""
    folder = tmp_path / "set"
    shutil.copytree(built / "data", folder / "data")
    splits: dict[str, dict[str, int]] = {}
    for path in sorted((folder / "data").glob("*.parquet")):
        counts = splits.setdefault(path.name.split("-")[0], {"articles": 1, "pairs": 0, "shards": 0, "bytes": 0})
        counts["pairs"] += pq.read_metadata(path).num_rows
        counts["shards"] += 1
        counts["bytes"] += path.stat().st_size
    report = full_scale_report() | {"splits": splits, "pairs": sum(counts["pairs"] for counts in splits.values())}
    report["options"]["output_dir"] = str(folder)
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "README.md").write_text(fill_dataset_card(report))
    (folder / "report.png").write_bytes(b"\x89PNG an image")
    (folder / "skipped.jsonl").write_text("")
    pq.write_table(pa.table({"pmcid": ["PMC1"]}), folder / "articles.parquet")
    (folder / ".build").mkdir()
    for name in (".build/secret", "data/.hidden", "notes.txt"):
        (folder / name).write_text("not for others")
    return folder


def push(folder: Path, report: dict | None = None, **options) -> str:
    report = report or json.loads((folder / "report.json").read_text())
    return push_dataset(folder, "lab/pairs", report=report, **options)


def shards(folder: Path) -> dict[str, bytes]:
    return {f"data/{path.name}": path.read_bytes() for path in (folder / "data").glob("*.parquet")}


def repository(hub) -> Repository:
    return hub.repositories["dataset", "lab/pairs"]


def test_only_the_files_of_the_dataset_are_uploaded(hub, made):
    assert push(made) == f"{hub.endpoint}/datasets/lab/pairs"
    files = repository(hub).files
    assert set(files) == {*shards(made), *COMPANIONS, ".gitattributes"}
    for name, content in (shards(made) | {name: (made / name).read_bytes() for name in COMPANIONS}).items():
        assert files[name] == content or name in ("report.json", "README.md"), name
    card = (made / "README.md").read_text()
    assert "ORG/NAME" in card and files["README.md"].decode() == card.replace("ORG/NAME", "lab/pairs")
    assert str(made.parent).encode() not in files["report.json"] and json.loads(files["report.json"])["pairs"] == 200


@pytest.mark.slow
def test_the_published_dataset_gives_the_rows_of_the_build(hub, made, tmp_path):
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
    assert hub.python(code, tmp_path) == "the same\n"


def test_shards_are_uploaded_in_several_commits_and_the_card_last(hub, made, monkeypatch):
    monkeypatch.setattr(dataset_upload, "SHARDS_PER_COMMIT", 3)
    push(made)
    commits = repository(hub).commits[1:]
    titles = [f"Shards {shown} of 8" for shown in ("1 to 3", "4 to 6", "7 to 8")]
    assert [commit.title for commit in commits] == [*titles, "200 pairs"]
    assert ["README.md" in commit.files for commit in commits] == [False, False, False, True]


def test_an_interrupted_upload_continues_and_a_repeated_one_sends_nothing(hub, made, monkeypatch):
    monkeypatch.setattr(dataset_upload, "SHARDS_PER_COMMIT", 2)
    monkeypatch.setattr(publishing, "ATTEMPTS", 2)
    hub.fail("POST", "/commit/", status=503, after=2, times=2)
    with pytest.raises(OSError, match=r"stopped at 'Shards 5 to 6 of 8'.*Run the same command again"):
        push(made)
    assert len(repository(hub).files) == 1 + 4
    push(made)
    commits = len(repository(hub).commits)
    push(made)
    assert {*shards(made), *COMPANIONS} <= set(repository(hub).files) and len(repository(hub).commits) == commits
    assert len(hub.uploads) == len(set(hub.uploads)), "no file was sent twice"


def test_a_changed_shard_of_the_same_size_is_sent(hub, made):
    push(made)
    path = made / "data" / "test-00000-of-00001.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # within the bytes of an image
    path.write_bytes(content)
    push(made)
    assert repository(hub).files[f"data/{path.name}"] == content


def test_shards_of_an_earlier_build_are_deleted_and_other_files_are_kept(hub, made):
    earlier = {"data/train-00000-of-00002.parquet": b"old", "LICENSE": b"text", "data/other.txt": b"text"}
    hub.add("lab/pairs", earlier, repo_type="dataset")
    push(made)
    assert "data/train-00000-of-00002.parquet" not in repository(hub).files
    assert {"LICENSE", "data/other.txt", *shards(made)} <= set(repository(hub).files)


def test_a_file_that_the_hub_stores_incorrectly_is_reported(hub, made):
    hub.damaged = "report.png"
    with pytest.raises(OSError, match="differ from those that were sent: report.png"):
        push(made)


def link(name: str, target: str):
    return lambda made, report: ((made / name).unlink(missing_ok=True), (made / name).symlink_to(target))


def link_folder(made: Path, report: dict) -> None:
    (made / "data").rename(made.parent / "elsewhere")
    (made / "data").symlink_to("../elsewhere")


def replace_by_pipe(made: Path, report: dict) -> None:
    (made / "README.md").unlink()
    os.mkfifo(made / "README.md")


def rewrite(name: str, change):
    return lambda made, report: pq.write_table(change(pq.read_table(made / name)), made / name)


def with_license(code: str | None):
    def change(table: pa.Table) -> pa.Table:
        codes = [code, *table.column("license").to_pylist()[1:]]
        return table.set_column(table.schema.get_field_index("license"), "license", pa.array(codes, pa.string()))

    return rewrite(TEST, change)


def change_after_the_build(name: str):
    def change(made: Path, report: dict) -> None:
        names = ["articles.parquet", "skipped.jsonl", *shards(made)]
        report["files"] = {known: hashes_of(made / known, parquet=known.endswith("parquet")) for known in names}
        (made / name).write_bytes((made / name).read_bytes() + b"\n")

    return change


TEST = "data/test-00000-of-00001.parquet"
OTHER = "data/test-00000-of-00002.parquet"
OUTSIDE = "is a link that points outside"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (link("skipped.jsonl", "../secret"), OUTSIDE),
        (link("README.md", "../secret"), OUTSIDE),
        (link(TEST, "../../secret"), OUTSIDE),
        (link("data/other", "../../secret"), OUTSIDE),
        (link_folder, OUTSIDE),
        (link("skipped.jsonl", "notes.txt"), "skipped.jsonl is a link to notes.txt, which is not published"),
        (replace_by_pipe, "README.md is a named pipe"),
        (lambda made, report: (made / "README.md").unlink(), "README.md is missing"),
        (lambda made, report: (made / TEST).unlink(), f"{TEST} is missing"),
        (lambda made, report: shutil.copy(made / TEST, made / OTHER), f"{OTHER} does not belong to this build"),
        (lambda made, report: os.truncate(made / TEST, 999), f"{TEST}: damaged"),
        (change_after_the_build(TEST), f"{TEST}: damaged"),
        (change_after_the_build("skipped.jsonl"), "skipped.jsonl: damaged"),
        (rewrite(TEST, lambda table: table.slice(1)), "contain 199 pairs, but report.json says 200"),
        *(
            (with_license(code), f"1 under {code or 'none'}.*--license noncommercial")
            for code in ("TDM", None, "", "CC BY-NC-XX", "author's own")
        ),
        (lambda made, report: (made / "README.md").write_text("---\nlicense: 3\n---\n"), "README.md.*license"),
        (lambda made, report: report.update(splits=[]), "splits must be an object"),
        (lambda made, report: report["splits"]["train"].update(shards="1"), "train.shards must be int"),
        (lambda made, report: report["splits"]["train"].update(shards=10**12), "is invalid"),
        (lambda made, report: report.update(splits={"../train": {"shards": 1}}), "is invalid"),
        (lambda made, report: report.update(source=None), "source must be str"),
    ],
)
def test_a_dataset_that_fails_a_check_is_refused_before_anything_is_sent(hub, made, change, message):
    (made.parent / "secret").write_text("not for others")
    report = json.loads((made / "report.json").read_text())
    change(made, report)
    with pytest.raises((ValueError, OSError), match=message):
        push(made, report)
    assert not hub.repositories


@pytest.mark.parametrize("code", ["CC0", "CC BY", "CC BY-SA", "CC BY-ND", "CC BY-NC", "CC BY-NC-SA", "CC BY-NC-ND"])
def test_every_creative_commons_license_permits_publishing(made, code):
    with_license(code)(made, {})
    dataset_upload.check_licenses((made / "data").glob("*.parquet"), pairs=200)
