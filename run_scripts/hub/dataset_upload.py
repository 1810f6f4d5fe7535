"""Publish a built dataset on the Hugging Face Hub.

Shards are uploaded first, 50 per commit. The last commit adds the card and the report, and deletes the shards of an
earlier build. `HfApi.upload_folder` would delete first and upload the card with the first files, so readers would see
an incomplete dataset.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub.lfs import UploadInfo

from biomedclip.model_cards.dataset_card import public_report
from biomedclip.model_cards.formatting import PLACEHOLDER, size
from biomedclip.model_cards.reading import check_shape, find_file, read_text, refuse_links_out
from biomedclip.processing.integrity import HASHES, check_file, read_columns

from ..cli.reporting import say
from .publishing import as_json, check_card, check_write_access, commit, create_repository, list_files, verify_upload


# Files that are published with the shards. No other file of the folder is published.
COMPANIONS = ("articles.parquet", "skipped.jsonl", "report.json", "report.png", "README.md")
SHARDS_PER_COMMIT = 50  # 25 GB; the full dataset takes 60 commits, and the Hub allows 128 per hour

# Fields of the report that are used here, in the form that `check_shape` expects.
_REPORT = {
    "source": str,
    "pairs": int,
    "splits": {str: {"shards": int}},
    "built_with": {str: object},
    "options": {str: object},
    "caption_length": {"tokenizer": (str, type(None))},
    f"{HASHES}?": {str: {str: object}},
}
_REDISTRIBUTABLE = re.compile(r"CC0|CC BY(-NC)?(-SA|-ND)?")
_SHARD = re.compile(r"data/[a-z]+-\d{5}-of-\d{5}\.parquet")


def push_dataset(folder: str | PathLike[str], repo_id: str, *, private: bool = False, report: Mapping[str, Any]) -> str:
    """Publish the output folder of `biomedclip build` with its report, and return the URL.

    An interrupted upload continues when the function is called again.
    """
    folder = Path(folder)
    api = check_write_access(repo_id)
    check_shape(folder / "report.json", report, _REPORT)
    found = _find_files(folder, report)
    shards = {name: path for name, path in found.items() if name not in COMPANIONS}
    check_licenses(shards.values(), pairs=report["pairs"])
    card = read_text(found["README.md"])
    check_card(card, "dataset", folder / "README.md")
    companions: dict[str, Path | bytes] = {name: found[name] for name in COMPANIONS}
    companions["README.md"] = card.replace(PLACEHOLDER, repo_id).encode()
    companions["report.json"] = as_json(public_report(report))

    create_repository(api, repo_id, "dataset", private=private)
    names = [*shards]
    sent: dict[str, UploadInfo] = {}
    for start in range(0, len(names), SHARDS_PER_COMMIT):
        batch = {name: shards[name] for name in names[start : start + SHARDS_PER_COMMIT]}
        title = f"Shards {start + 1} to {start + len(batch)} of {len(shards)}"
        say(f"{title}, {size(sum(path.stat().st_size for path in batch.values()))}, to {repo_id}")
        sent |= commit(api, repo_id, "dataset", batch, title)[1]
    stale = [name for name in list_files(api, repo_id, "dataset") if _SHARD.fullmatch(name) and name not in shards]
    sent |= commit(api, repo_id, "dataset", companions, f"{report['pairs']:,} pairs", delete=stale)[1]
    verify_upload(list_files(api, repo_id, "dataset"), sent, stale)
    return f"{api.endpoint}/datasets/{repo_id}"


def _find_files(folder: Path, report: Mapping[str, Any]) -> dict[str, Path]:
    """Return the shards that the report lists, and the companions, by their path in the repository."""
    for split, counts in report["splits"].items():
        if not re.fullmatch("[a-z]+", split) or not 0 <= counts["shards"] < 100_000:
            raise ValueError(f"{folder / 'report.json'}: splits.{split} with {counts['shards']:,} shards is invalid.")
    names = [
        f"data/{split}-{number:05d}-of-{counts['shards']:05d}.parquet"
        for split, counts in report["splits"].items()
        for number in range(counts["shards"])
    ]
    wanted = {*names, *COMPANIONS}
    refuse_links_out(folder / "data", folder)
    files = {}
    for name in [*names, *COMPANIONS]:
        path = find_file(folder, name, allowed=wanted.__contains__)
        if path is None:
            raise FileNotFoundError(f"{folder / name} is missing. Build the dataset again.")
        files[name] = path
    if unknown := sorted({f"data/{path.name}" for path in (folder / "data").glob("*.parquet")} - wanted):
        raise ValueError(f"{folder / unknown[0]} does not belong to this build. Move it to another folder.")
    for name, stated in (report.get(HASHES) or {}).items():
        check_file(folder / name, stated)
    return files


def check_licenses(shards: Iterable[Path], *, pairs: int) -> None:
    """Check the license of each pair, and the number of pairs, in the shards. The report is not trusted."""
    codes: Counter[str | None] = Counter()
    for path in shards:
        codes.update(read_columns(path, ["license"]).column("license").to_pylist())
    forbidden = {code: count for code, count in codes.items() if not _REDISTRIBUTABLE.fullmatch(code or "")}
    if forbidden:
        named = ", ".join(f"{count:,} under {code or 'none'}" for code, count in forbidden.items())
        raise ValueError(
            f"The license of some pairs does not permit redistribution: {named}. Build the dataset with --license "
            "noncommercial or --license commercial."
        )
    if codes.total() != pairs:
        raise ValueError(
            f"The shards contain {codes.total():,} pairs, but report.json says {pairs:,}. Build the dataset again."
        )
