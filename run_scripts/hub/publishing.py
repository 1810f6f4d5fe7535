"""Upload files to the Hugging Face Hub: checks before the upload, commits, and verification after it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard, get_token
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.lfs import UploadInfo
from huggingface_hub.utils import validate_repo_id

from biomedclip.processing.retries import lasting_error, with_retries

from ..cli.errors import UsageError


ATTEMPTS = 5
LOG_IN = "Log in with `hf auth login` and a token with the role 'write' from https://huggingface.co/settings/tokens."


def check_write_access(repo_id: str, option: str = "--push-to") -> HfApi:
    """Return a client whose token may write to the namespace. Errors mention `option`."""
    namespace, slash, _ = repo_id.partition("/")
    try:
        validate_repo_id(repo_id)
        if not slash:
            raise HFValidationError("It has no namespace.")
    except HFValidationError as error:
        raise UsageError(
            f"{option} {repo_id!r} is not a valid repository id ({error}) Use a form such as my-lab/pmc-pairs."
        ) from error
    if get_token() is None:
        raise PermissionError(f"{option} {repo_id}: no token for the Hugging Face Hub was found. {LOG_IN}")
    api = HfApi()
    with hub_errors(f"{option} {repo_id}: the Hub rejects the token"):
        account = api.whoami()
    writable = {account["name"], *(org["name"] for org in account.get("orgs", []) if org.get("roleInOrg") != "read")}
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PermissionError(f"{option} {repo_id}: the token of {account['name']} is read-only. {LOG_IN}")
    if namespace.lower() not in map(str.lower, writable):
        raise PermissionError(
            f"{option} {repo_id}: {account['name']} is not allowed to write to {namespace}. Use one of the namespaces "
            f"{', '.join(sorted(writable))}, ask an owner for write access, or log in with another account."
        )
    return api


def as_json(content: Mapping[str, Any]) -> bytes:
    """Return strict JSON for a file of a repository."""
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def check_card(card: str, repo_type: str, path: Path) -> None:
    """Raise an error that mentions `path` if the Hub rejects the metadata of a card."""
    try:
        with hub_errors(f"{path}: the metadata cannot be validated"):
            RepoCard(card).validate(repo_type=repo_type)
    except ValueError as error:
        raise ValueError(f"{path}: the Hub rejects the metadata ({error}). Create the card again.") from error


def create_repository(api: HfApi, repo_id: str, repo_type: str, *, private: bool) -> None:
    """Create a repository if it does not exist. A public repository is not reused as a private one."""
    with hub_errors(f"{repo_id} cannot be created or opened"):
        # None selects the default of the organization, which may be private.
        api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True)
        public = not api.repo_info(repo_id, repo_type=repo_type).private
    if private and public:
        raise ValueError(f"{repo_id} exists and is public. Make it private in its settings, or use another name.")


def list_files(api: HfApi, repo_id: str, repo_type: str, revision: str | None = None) -> dict[str, RepoFile]:
    """Return the files of a repository by path."""
    with hub_errors(f"The files of {repo_id} cannot be listed"):
        entries = api.list_repo_tree(repo_id, recursive=True, repo_type=repo_type, revision=revision)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def commit(
    api: HfApi,
    repo_id: str,
    repo_type: str,
    files: Mapping[str, Path | bytes],
    title: str,
    *,
    delete: Sequence[str] = (),
    revision: str | None = None,
    create_pr: bool = False,
) -> tuple[CommitInfo, dict[str, UploadInfo]]:
    """Upload and delete files in one commit. Files that are already on the Hub are not sent again.

    `files` maps paths in the repository to local files or their content. `delete` lists the paths to delete. With
    `create_pr`, a pull request for the branch `revision` is created, and the branch does not change. Return the commit,
    and the size and SHA-256 of each file for [`verify_upload`].
    """

    def send() -> tuple[CommitInfo, dict[str, UploadInfo]]:
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()]
        deletions = [CommitOperationDelete(path_in_repo=name) for name in delete]
        info = api.create_commit(
            repo_id,
            [*additions, *deletions],
            commit_message=title,
            repo_type=repo_type,
            revision=revision,
            create_pr=create_pr,
        )
        return info, {addition.path_in_repo: addition.upload_info for addition in additions}

    def check(error: Exception, attempt: int) -> None:
        if not isinstance(error, HTTPError | OSError | RuntimeError):  # an interrupted transfer raises RuntimeError
            raise error
        if attempt == ATTEMPTS or not _is_temporary(error):
            raise OSError(
                f"The upload to {repo_id} stopped at '{title}' ({_reason(error)}). Run the same command again to "
                "continue: files that were uploaded are not sent again."
            ) from error

    return with_retries(send, check=check, pause=1, factor=4)


def verify_upload(files: Mapping[str, RepoFile], sent: Mapping[str, UploadInfo], deleted: Sequence[str]) -> None:
    """Check the files on the Hub: size, SHA-256 (which the Hub states for LFS files only), and deletions."""
    wrong = [name for name in deleted if name in files]
    for name, info in sent.items():
        file = files.get(name)
        if file is None or file.size != info.size or (file.lfs and file.lfs.sha256 != info.sha256.hex()):
            wrong.append(name)
    if wrong:
        raise OSError(
            f"Files on the Hub differ from those that were sent: {', '.join(wrong[:5])}. Run the same command again."
        )


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Convert HTTP errors to `ConnectionError` if a retry may help, and to `PermissionError` otherwise."""
    try:
        yield
    except HTTPError as error:
        if _is_temporary(error):
            raise ConnectionError(f"The Hub does not respond ({_reason(error)}). Try again later.") from error
        raise PermissionError(f"{what} ({_reason(error)}). {LOG_IN}") from error


def _is_temporary(error: BaseException) -> bool:
    """Return whether a retry may help. It does not help if the server rejects the request or this machine fails."""
    if lasting_error(error) is not None:
        return False
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return response is None or response.status_code in (408, 429) or response.status_code >= 500


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    return str(getattr(cause, "server_message", None) or cause).strip().split("\n")[0]
