"""Verification of a built dataset."""

import json
import os
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.mirror_writer import MirrorWriter, build_set

from biomedclip.processing import PairStream, integrity
from biomedclip.processing.integrity import hashes_of
from biomedclip.processing.pmc.verify import verify_dataset
from biomedclip.run_scripts.main import main


@pytest.fixture(scope="module")
def small_set(tmp_path_factory) -> Path:
    """A built dataset of 12 articles with 24 pairs, and one article without a figure."""
    root = tmp_path_factory.mktemp("small")
    mirror = MirrorWriter(root / "mirror")
    mirror.plain_articles(12)
    mirror.article(2000, figures="", media={})
    build_set(root / "mirror", root / "set")
    return root / "set"


@pytest.fixture
def copy(small_set, tmp_path) -> Path:
    shutil.copytree(small_set, tmp_path / "set")
    return tmp_path / "set"


def shard_of(folder: Path) -> Path:
    return next((folder / "data").glob("train-00000-*.parquet"))


def change_row(folder: Path, column: str, value) -> None:
    """Change the first row of the first training shard, and correct the hashes of the report."""
    path = shard_of(folder)
    metadata = pq.read_metadata(path).metadata
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0][column] = value(rows[0][column])
    changed = pa.Table.from_pylist(rows, schema=table.schema)
    licenses = {b"biomedclip.licenses": metadata[b"biomedclip.licenses"]}
    pq.write_table(changed.replace_schema_metadata({**table.schema.metadata, **licenses}), path)
    report = json.loads((folder / "report.json").read_text())
    report["files"][f"data/{path.name}"] = hashes_of(path, parquet=True)
    (folder / "report.json").write_text(json.dumps(report))


def change_report(folder: Path, *keys: str, value) -> None:
    report = json.loads((folder / "report.json").read_text())
    part = report
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    (folder / "report.json").write_text(json.dumps(report))


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_an_intact_set_has_no_faults(small_set):
    result = verify_dataset(small_set)
    assert result.faults == [] and result.verifiable
    assert result.checked["images"] == 24
    assert result.checked["shards"] == len(list((small_set / "data").iterdir()))


def other_image(image):
    return {**image, "bytes": image["bytes"][:-1] + b"?"}


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda folder: change_row(folder, "image", other_image), r"row PMC\S+: the MD5 of the image differs"),
        (
            lambda folder: change_row(folder, "image", lambda image: {**image, "bytes": None}),
            r"row PMC\S+: the image has no bytes",
        ),
        (lambda folder: change_row(folder, "file_size", lambda size: size + 1), r"row PMC\S+: .*file_size is"),
        (lambda folder: change_row(folder, "split", lambda split: "test"), r"row PMC\S+: the split is 'test'"),
        (lambda folder: change_row(folder, "license", lambda code: "CC0"), "the licenses in the footer differ"),
        (lambda folder: change_row(folder, "pmcid", lambda pmcid: "PMC9"), "train: articles: report.json states"),
        (lambda folder: flip(shard_of(folder), 200), r"train-00000-of-\d+\.parquet: .*SHA-256"),
        (lambda folder: flip(shard_of(folder), -100), "footer is damaged"),
        (lambda folder: shard_of(folder).write_bytes(b""), r"train-00000-of-\d+\.parquet"),
        (lambda folder: shard_of(folder).unlink(), r"train-00000-of-\d+\.parquet: missing"),
        (
            lambda folder: shutil.copy(shard_of(folder), folder / "data" / "train-00001-of-00009.parquet"),
            "not in report",
        ),
        (lambda folder: flip(folder / "articles.parquet", 20), "articles.parquet: damaged"),
        (lambda folder: (folder / "articles.parquet").unlink(), "articles.parquet: missing"),
        (lambda folder: (folder / "skipped.jsonl").write_text(""), "skipped.jsonl: damaged"),
        (lambda folder: (folder / "report.json").write_text("{"), "report.json: cannot be read"),
        (lambda folder: (folder / "report.json").unlink(), "report.json: cannot be read"),
        (lambda folder: change_report(folder, "pairs", value=25), "pairs: report.json states 25, but there are 24"),
        (
            lambda folder: change_report(folder, "splits", "train", "bytes", value=1),
            "train: bytes: report.json states 1",
        ),
        (
            lambda folder: change_report(folder, "licenses", value={"CC0": 24}),
            "pairs by license: report.json states CC0",
        ),
        (lambda folder: change_report(folder, "articles", "kept", value=11), "articles kept: report.json states 11"),
        (lambda folder: change_report(folder, "articles", "dropped", value={}), "articles dropped: .* states none"),
        (lambda folder: change_report(folder, "figures", "seen", value=9), "figures: report.json states 9"),
        (lambda folder: change_report(folder, "figures", "skipped", value={"x": 1}), "skipped.jsonl: figures: .* x 1"),
    ],
)
def test_each_kind_of_damage_is_named(copy, damage, fault):
    damage(copy)
    faults = "\n".join(verify_dataset(copy).faults)
    assert re.search(fault, faults), faults


def test_without_hashes_the_images_are_checked(copy):
    change_row(copy, "image", other_image)
    report = json.loads((copy / "report.json").read_text())
    del report["files"]
    (copy / "report.json").write_text(json.dumps(report))
    result = verify_dataset(copy)
    assert not result.verifiable
    assert (
        len(result.faults) == 1 + 1 and "the MD5 of the image differs" in result.faults[0]
    )  # and the bytes of the split


def test_the_report_of_a_quickstart_contains_that_of_the_build(copy):
    report = json.loads((copy / "report.json").read_text())
    (copy / "report.json").write_text(json.dumps({"build": report, "training": {"steps": 3}}))
    result = verify_dataset(copy)
    assert result.verifiable and result.faults == []
    assert len(integrity.stated_shards([str(path) for path in sorted((copy / "data").iterdir())])) > 0


def test_only_some_faults_of_a_shard_are_listed(copy, monkeypatch):
    monkeypatch.setattr("biomedclip.processing.pmc.verify.MAX_LISTED_FAULTS", 1)
    change_row(copy, "image", other_image)
    change_row(copy, "split", lambda split: "test")
    assert any("1 more faults in its rows" in fault for fault in verify_dataset(copy).faults)


def test_the_command_exits_with_1_if_there_is_a_fault(copy, capfd):
    assert main(["build", "--verify", str(copy)]) == 0
    out, err = capfd.readouterr()
    assert "images checked" in out and "24" in out and "Verifying" in err
    change_row(copy, "image", other_image)
    assert main(["build", f"--verify={copy}"]) == 1
    out, err = capfd.readouterr()
    assert "the MD5 of the image differs from image_md5" in out
    assert "fault(s), listed above" in err
    assert main(["build", "--verify", str(copy / "nothing")]) == 1
    assert "no dataset found" in capfd.readouterr().err


def test_names_in_faults_are_escaped_for_the_terminal(copy, capfd):
    change_row(copy, "pair_id", lambda name: "PMC1\x1b[2J\u202e")
    change_row(copy, "image", other_image)
    assert main(["build", "--verify", str(copy)]) == 1
    out = capfd.readouterr().out
    assert "\x1b[2J" not in out and "\u202e" not in out and "PMC1?[2J?" in out


@pytest.mark.parametrize("name", ["report.json", "skipped.jsonl", "articles.parquet"])
def test_a_fifo_is_a_fault(copy, impatient, name):
    (copy / name).unlink()
    os.mkfifo(copy / name)
    assert any(f"{name} is a FIFO" in fault for fault in verify_dataset(copy).faults)


def test_a_dataset_whose_report_is_a_fifo_is_refused(copy, impatient):
    (copy / "report.json").unlink()
    os.mkfifo(copy / "report.json")
    with pytest.raises(OSError, match=r"report\.json is a FIFO"):
        PairStream(copy)
