"""Publishing on the Hub: checks before anything leaves the machine, and an upload that goes on where it stopped.

Shards go up first, 50 to a commit; the last commit brings the card and the report and takes away the shards of an
earlier build. huggingface_hub's calls for whole folders do it the other way round (they delete first and send the card
with the first files), and differ between the releases we support: in 1.0 `upload_folder` is one commit for everything,
in 2.4 `upload_large_folder` is gone. `create_commit` is the same in both.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, ModelCard, get_token
from huggingface_hub.errors import HTTPError
from huggingface_hub.hf_api import RepoFile

from biomedclip.model_cards.fill import PLACEHOLDER, public_report, size
from biomedclip.model_cards.reading import check_shape, find_file, read_text, refuse_links_out
from biomedclip.processing.integrity import HASHES, DamagedFile, check_file, read_columns
from biomedclip.processing.retries import lasting_error, with_retries

from ..cli.errors import UsageError
from ..cli.reporting import say


# What is published beside the shards. Everything else in the folder stays at home, hidden folders above all.
COMPANIONS = ("articles.parquet", "skipped.jsonl", "report.json", "report.png", "README.md")
SHARDS_PER_COMMIT = 50  # 25 GB at full scale, 60 commits: the Hub allows 128 an hour
ATTEMPTS = 5
LOG_IN = "Log in with: hf auth login (a token with the role 'write', from https://huggingface.co/settings/tokens)."

# Shape of what is used of a build's report, as `check_shape` reads it.
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


class Sent(NamedTuple):
    """A file that is on the Hub as it is here."""

    size: int
    sha256: str


def push_dataset(folder: str | PathLike[str], repo_id: str, *, private: bool = False, report: Mapping[str, Any]) -> str:
    """Publishes a built data set on the Hub; an upload that was interrupted goes on when it is called again.

    Args:
        folder: What `biomedclip build` wrote.
        repo_id: `ORG/NAME` or `USER/NAME`; created where it does not exist.
        private: Create it as a private one.
        report: The report of the build.

    Returns:
        The URL of the data set.

    Raises:
        PermissionError: No token, or none that may write there.
        ValueError: A bad `repo_id`, a public repository where a private one was asked for, pairs whose licence does
            not allow to pass them on, or a file that [`find_dataset_files`] refuses.
        FileNotFoundError: A file of the build is missing.
        OSError: The Hub cannot be reached, gave up in the middle, or holds something else than was sent.
    """
    api = check_write_access(repo_id)
    check_shape(Path(folder) / "report.json", report, _REPORT)
    found = find_dataset_files(Path(folder), report)
    shards = {name: path for name, path in found.items() if name not in COMPANIONS}
    check_files(Path(folder), report)
    check_licenses(shards.values(), pairs=report["pairs"])
    card = read_text(found["README.md"])
    check_card(card, "dataset", Path(folder) / "README.md")
    companions: dict[str, Path | bytes] = {name: found[name] for name in COMPANIONS}
    companions["README.md"] = card.replace(PLACEHOLDER, repo_id).encode()
    companions["report.json"] = json.dumps(
        public_report(report), indent=2, ensure_ascii=False, allow_nan=False
    ).encode()

    create_repository(api, repo_id, private, "dataset")
    there = files_on_hub(api, repo_id, "dataset")
    if any(name in there for name in shards):
        say(f"Comparing the shards with those that are in {repo_id} already")
    sent = {name: file for name, path in shards.items() if (file := _if_there(path, there.get(name)))}
    waiting = [name for name in shards if name not in sent]
    for start in range(0, len(waiting), SHARDS_PER_COMMIT):
        names = waiting[start : start + SHARDS_PER_COMMIT]
        title = f"Shards {len(sent) + 1} to {len(sent) + len(names)} of {len(shards)}"
        say(f"{title}, {size(sum(shards[name].stat().st_size for name in names))}, to {repo_id}")
        sent |= commit(api, repo_id, "dataset", {name: shards[name] for name in names}, title)
    stale = [name for name in there if _SHARD.fullmatch(name) and name not in shards]
    sent |= commit(api, repo_id, "dataset", companions, f"{report['pairs']:,} pairs", delete=stale)
    verify_upload(files_on_hub(api, repo_id, "dataset"), sent, stale, repo_id)
    return f"{api.endpoint}/datasets/{repo_id}"


def check_write_access(repo_id: str, option: str = "--push-to") -> HfApi:
    """Makes sure, without writing, that there is a token and that it may write to a namespace.

    Args:
        repo_id: `ORG/NAME` or `USER/NAME`.
        option: What errors call it.

    Returns:
        The client to upload with.

    Raises:
        ValueError: `repo_id` is not of that form.
        PermissionError: No token, an invalid one, or one without the right.
        ConnectionError: The Hub does not answer.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w([\w.-]*\w)?", repo_id, re.ASCII) or re.search(r"--|\.\.|\.git$", repo_id):
        raise UsageError(
            f"{option} {repo_id!r}: an organisation or user and a name are needed, such as my-lab/pmc-pairs, of "
            "letters, digits, '-', '_' and '.'."
        )
    if get_token() is None:
        raise PermissionError(f"{option} {repo_id}: there is no token of the Hugging Face Hub. {LOG_IN}")
    api = HfApi()
    try:
        account = api.whoami()
    except HTTPError as error:
        if _may_pass(error):
            raise ConnectionError(f"{api.endpoint} does not answer ({_reason(error)}). Try again later.") from error
        raise PermissionError(f"{option} {repo_id}: the Hub refuses the token ({_reason(error)}). {LOG_IN}") from error

    namespace = repo_id.split("/")[0]
    roles = {org["name"].lower(): org.get("roleInOrg") for org in account.get("orgs", [])}
    roles[account["name"].lower()] = "admin"
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PermissionError(f"{option} {repo_id}: the token of {account['name']} may only read. {LOG_IN}")
    if namespace.lower() not in roles:
        raise PermissionError(
            f"{option} {repo_id}: {account['name']} is not a member of {namespace}. Choose one of "
            f"{', '.join(sorted(roles))}, or log in as somebody else: hf auth login"
        )
    if roles[namespace.lower()] == "read":
        raise PermissionError(f"{option} {repo_id}: {account['name']} may only read in {namespace}. Ask its owners.")
    return api


def find_dataset_files(folder: Path, report: Mapping[str, Any]) -> dict[str, Path]:
    """Find the files of a build that are published: the shards that the report counts, and those of [`COMPANIONS`].

    Args:
        folder: What `biomedclip build` wrote.
        report: Its report.

    Returns:
        The files, without links, by their path in the repository.

    Raises:
        FileNotFoundError: If one of them is missing.
        ValueError: If a link leaves the folder or leads to a file that is not published, a file is not a regular one,
            or there are shards that the report does not know.
    """
    for split, counts in report["splits"].items():
        if not re.fullmatch("[a-z]+", split) or not 0 <= counts["shards"] < 100_000:
            raise ValueError(
                f"{folder / 'report.json'}: splits.{split} has {counts['shards']:,} shards, which cannot be."
            )
    names = [
        f"data/{split}-{number:05d}-of-{counts['shards']:05d}.parquet"
        for split, counts in report["splits"].items()
        for number in range(counts["shards"])
    ]
    wanted = dict.fromkeys([*names, *COMPANIONS])
    refuse_links_out(folder / "data", folder)
    found = {name: find_file(folder, name, allowed=wanted.__contains__) for name in wanted}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise FileNotFoundError(
            f"{folder / missing[0]}{more} missing. Build the data set again: biomedclip build --help"
        )
    if foreign := sorted({f"data/{path.name}" for path in (folder / "data").glob("*.parquet")} - set(names)):
        raise ValueError(f"{folder / foreign[0]} is not of this build. Move it away.")
    return {name: path for name, path in found.items() if path is not None}


def check_files(folder: Path, report: Mapping[str, Any]) -> None:
    """Check that the files to publish are those that were built. All of them are read.

    Args:
        folder: What `biomedclip build` wrote.
        report: The report of the build. Nothing is checked if it states no hashes.

    Raises:
        ValueError: If a file is damaged.
    """
    for name, stated in (report.get(HASHES) or {}).items():
        try:
            check_file(folder / name, stated)
        except DamagedFile as error:
            raise ValueError(f"{error} Build the data set again.") from error


def check_licenses(shards: Iterable[Path], *, pairs: int) -> None:
    """Reads the licence of every pair out of the shards: what is there decides, not what the report says.

    Args:
        shards: The Parquet files.
        pairs: Rows that there should be.

    Raises:
        ValueError: Pairs under something else than a Creative Commons licence, a damaged file, another number of rows.
    """
    codes: Counter[str | None] = Counter()
    for path in shards:
        try:
            codes.update(read_columns(path, ["license"]).column("license").to_pylist())
        except OSError as error:
            raise ValueError(f"{path} is damaged ({error}). Build the data set again.") from error
    forbidden = {code: count for code, count in codes.items() if not _REDISTRIBUTABLE.fullmatch(code or "")}
    if forbidden:
        named = ", ".join(f"{count:,} under {code or 'none'}" for code, count in forbidden.items())
        raise ValueError(
            f"Pairs whose licence does not allow to pass them on: {named}. Build the set to publish with "
            "--license noncommercial or --license commercial."
        )
    if codes.total() != pairs:
        raise ValueError(f"The shards hold {codes.total():,} pairs, report.json says {pairs:,}. Build the set again.")


def check_card(card: str, repo_type: str, where: str | Path = "The card") -> None:
    """Has the Hub look at a card's metadata now: it would refuse them at the very end.

    Args:
        card: The text of the card.
        repo_type: `model` or `dataset`.
        where: The file, for errors.

    Raises:
        ValueError: The Hub would refuse them.
        ConnectionError: It does not answer.
    """
    card_class, remedy = (DatasetCard, "Build the set") if repo_type == "dataset" else (ModelCard, "Fill the card")
    try:
        card_class(card).validate(repo_type=repo_type)
    except ValueError as error:
        raise ValueError(f"{where}: the Hub does not take its metadata ({error}). {remedy} again.") from error
    except HTTPError as error:
        raise ConnectionError(f"The Hub does not answer ({_reason(error)}). Try again later.") from error


def create_repository(api: HfApi, repo_id: str, private: bool, repo_type: str) -> None:
    """Creates a repository unless it is there.

    Raises:
        PermissionError: The Hub refuses it.
        ValueError: It is there and public, and should be private.
        ConnectionError: The Hub does not answer.
    """
    try:
        # None leaves it to the organisation, which may want everything private.
        api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True)
        public = not api.repo_info(repo_id, repo_type=repo_type).private
    except HTTPError as error:
        if _may_pass(error):
            raise ConnectionError(f"The Hub does not answer ({_reason(error)}). Try again later.") from error
        raise PermissionError(f"{repo_id} cannot be created or opened ({_reason(error)}). {LOG_IN}") from error
    if private and public:
        raise ValueError(f"{repo_id} exists and is public. Make it private in its settings, or choose another name.")


def files_on_hub(api: HfApi, repo_id: str, repo_type: str, revision: str | None = None) -> dict[str, RepoFile]:
    """The files of a repository by path; raises `ConnectionError` where they cannot be listed."""
    try:
        entries = api.list_repo_tree(repo_id, recursive=True, repo_type=repo_type, revision=revision)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    except HTTPError as error:
        raise ConnectionError(f"The files of {repo_id} cannot be listed ({_reason(error)}). Try again.") from error


def _if_there(path: Path, remote: RepoFile | None) -> Sent | None:
    """The file if the Hub has it already, bit for bit."""
    if remote is None or remote.lfs is None or remote.size != path.stat().st_size:
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Sent(remote.size, digest) if digest == remote.lfs.sha256 else None


def commit(
    api: HfApi,
    repo_id: str,
    repo_type: str,
    files: Mapping[str, Path | bytes],
    title: str,
    *,
    delete: Sequence[str] = (),
    revision: str | None = None,
) -> dict[str, Sent]:
    """Sends files in one commit, patiently; what is on the Hub already is not sent again.

    Args:
        api: The client.
        repo_id: Where to.
        repo_type: `model` or `dataset`.
        files: Files, or their content, by path in the repository.
        title: Title of the commit.
        delete: Files of the repository that the commit takes away.
        revision: Branch; `main` if left out.

    Returns:
        What was sent, to be held against the Hub's list.

    Raises:
        OSError: The Hub gave up, or refused the commit.
    """

    def commit() -> dict[str, Sent]:
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()]
        deletions = [CommitOperationDelete(path_in_repo=name) for name in delete]
        operations = [*additions, *deletions]
        api.create_commit(repo_id, operations, commit_message=title, repo_type=repo_type, revision=revision)
        infos = {addition.path_in_repo: addition.upload_info for addition in additions}
        return {name: Sent(info.size, info.sha256.hex()) for name, info in infos.items()}

    def check(error: Exception, attempt: int) -> None:
        if not isinstance(error, HTTPError | OSError | RuntimeError):  # the last is raised for broken transfers
            raise error
        if attempt == ATTEMPTS or not _may_pass(error):
            raise OSError(
                f"The upload to {repo_id} stopped at '{title}' ({_reason(error)}). What is there stays: the same "
                "command goes on."
            ) from error

    return with_retries(commit, check=check, pause=1, factor=4)


def _may_pass(error: BaseException) -> bool:
    """Whether it may work the next time: everything but a plain no of the server, and errors of this machine."""
    if lasting_error(error) is not None:
        return False
    response = getattr(error, "response", None)
    if response is None:
        response = getattr(error.__cause__, "response", None)
    return response is None or response.status_code in (408, 429) or response.status_code >= 500


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    return str(getattr(cause, "server_message", None) or cause).strip().split("\n")[0]


def verify_upload(there: Mapping[str, RepoFile], sent: Mapping[str, Sent], stale: Sequence[str], repo_id: str) -> None:
    """Compares the Hub's list of files with what was sent: names, sizes, and SHA-256 where the Hub knows it; raises
    `OSError` where they differ.
    """
    wrong = [name for name in stale if name in there]
    for name, file in sent.items():
        remote = there.get(name)
        if remote is None or remote.size != file.size or (remote.lfs and remote.lfs.sha256 != file.sha256):
            wrong.append(name)
    if wrong:
        raise OSError(f"{repo_id} on the Hub is not what was sent: {', '.join(wrong[:5])}. Run the same command again.")
