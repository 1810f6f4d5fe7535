"""PubMed Central's bucket, or a mirror of it, through fsspec.

The bucket `s3://pmc-oa-opendata` holds one prefix for each article version, a folder of metadata JSON and a daily
inventory of that folder. Every URL in the metadata carries the MD5 of what it points to.
"""

import errno
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any
from urllib.parse import quote

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ..files import leads_out, special_kind
from ..retries import is_unreachable, lasting_error, with_retries


logger = logging.getLogger(__name__)

MAX_OBJECT_BYTES = 500_000_000
MAX_METADATA_BYTES = 10_000_000  # as Python objects they may take 25 times as much; real ones have some 10 kB

ATTEMPTS = 8
FIRST_PAUSE = 0.5  # seconds; doubled each time, so that an outage of a minute is waited for
FIRST_ATTEMPTS = 3  # without a connection, as long as the source has never answered
QUIET_ATTEMPTS = 3  # later ones are logged

_MAX_KEY_BYTES = 1024  # S3's limit
_MAX_PART_BYTES = 255  # of the file systems that a mirror lies in

# Answers of a server, S3's codes as texts and HTTP's as numbers. That one object may not be read is its own matter; all
# other ways in which S3 refuses (an expired token, a wrong signature, a clock that is off) concern every object.
_DENIED = frozenset({"AccessDenied", "403", "InvalidObjectState", 403})
_CREDENTIALS_REFUSED = frozenset({"InvalidToken", "TokenRefreshRequired", "AuthorizationHeaderMalformed", 401, 407})
_TRY_AGAIN = frozenset({401, 407, 408, 425, 429})  # of HTTP's 4xx

_BUCKET_URL = re.compile(r"^s3://[^/]+/|^/+")

_PMC_BUCKET = "pmc-oa-opendata"
# Settings of fsspec (its files and FSSPEC_S3_* variables) that say who asks.
_IDENTITY_SETTINGS = frozenset({"anon", "key", "secret", "token", "username", "password", "profile", "session"})


class BucketError(ValueError):
    """A source that cannot be used at all: missing, unreachable or empty. The message names the remedy."""


class SourceUnavailable(BucketError):
    """A source that stopped answering. Not a fault of an article: the run must stop, and can be taken up again."""


class CredentialsRefused(SourceUnavailable):
    """A source that refuses the credentials. No retry helps until the user renews them."""


class ObjectError(ValueError):
    """One object that cannot be used: missing, too large or not what its MD5 says.

    The message is the same whatever kind of source it lies in, and holds no path of a machine.
    """


class ObjectMissing(ObjectError):
    """There is no such object."""


class ObjectDamaged(ObjectError):
    """An object that was read and does not hold what it should."""


def open_source(source: str) -> tuple[Any, str]:
    """Open the file system of a source.

    S3 is read with the user's credentials: from the environment, a profile, AWS's files or fsspec's settings. If there
    are none, it is read anonymously.

    Args:
        source: A folder or a URL that fsspec opens.

    Returns:
        The file system, and the path of the root in it.

    Raises:
        ImportError: If the package for this kind of source is not installed.
        BucketError: If the configured credentials cannot be read.
    """
    options = {"anon": True} if source.startswith(("s3://", "s3a://")) and not _has_credentials(source) else {}
    # Listings are not kept: an update in the same process has to see what is new.
    filesystem, root = fsspec.core.url_to_fs(source, use_listings_cache=False, **options)
    return filesystem, root.rstrip("/")


def _has_credentials(source: str) -> bool:
    """Whether the user has configured an identity for S3."""
    if _IDENTITY_SETTINGS & set(fsspec.config.conf.get("s3", {})):
        return True
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    try:
        providers = Session().get_component("credential_provider")
        if source.split("/")[2] == _PMC_BUCKET:
            # The role of a machine is nobody's choice, and may lack the right to read a public bucket.
            for name in ("container-role", "iam-role"):
                providers.remove(name)
        return providers.load_credentials() is not None
    except BotoCoreError as error:
        raise BucketError(
            f"{source}: the AWS credentials of this machine cannot be read ({error}). Correct them, or unset them to "
            "read a public bucket."
        ) from error


class Bucket:
    """A bucket in PMC's layout.

    Args:
        source: Where it lies: a folder, `s3://pmc-oa-opendata`, `https://pmc-oa-opendata.s3.amazonaws.com`, or any
            other URL that fsspec opens.

    Raises:
        BucketError: There is nothing, or fsspec lacks the package for it.
    """

    def __init__(self, source: str):
        self.source = source
        self._answered = False
        self._refusal: ObjectError | None = None
        try:
            if self.can_list:
                self._check_root()
        except ImportError as error:
            raise BucketError(f"{source}: {error}. For s3:// run: pip install 'biomedclip[s3]'") from error

    def _check_root(self) -> None:
        missing = BucketError(f"{self.source}: no such folder or bucket. Check --source.")
        try:
            root = self._request("", self._filesystem.info)
        except ObjectMissing as error:
            raise missing from error
        except ObjectError:
            return  # a bucket that may not be listed may still be read
        except SourceUnavailable as error:
            if _answer(error.__cause__) == "NoSuchBucket":
                raise missing from error
            raise
        if isinstance(self._filesystem, LocalFileSystem) and root["type"] != "directory":
            raise BucketError(f"{self.source} is not a folder. Pass the folder of a mirror as --source.")

    def __getstate__(self) -> dict[str, Any]:
        # A connection cannot travel to a worker; it opens its own.
        return {"source": self.source, "_answered": self._answered, "_refusal": None}

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        return open_source(self.source)

    @property
    def _filesystem(self) -> Any:
        return self._opened[0]

    @property
    def _root(self) -> str:
        return self._opened[1]

    @property
    def can_list(self) -> bool:
        """Whether the source can tell what it holds; a web server cannot."""
        return not self.source.startswith("http")

    @property
    def is_remote(self) -> bool:
        """Whether each read is a request that waits for an answer."""
        return "://" in self.source and not self.source.startswith(("file://", "memory://"))

    def names(self, folder: str) -> dict[str, str]:
        """What lies in a folder, with a mark of its state that changes when the object does.

        Args:
            folder: Key of the folder; empty for the root.

        Returns:
            Last parts of the keys, each with its ETag, or size and time of change where there is none. Empty where
            there is no such folder.

        Raises:
            BucketError: The folder may not be listed, or the source does not answer.
        """
        if not self.can_list:
            return {}
        try:
            entries = self._request(folder, self._list_once)
        except ObjectMissing:
            return {}
        except ObjectError as error:
            raise BucketError(
                f"{self.source}: folders cannot be listed ({error}). Pass --inventory or --pmcids."
            ) from error
        return {entry["name"].rstrip("/").rsplit("/", 1)[-1]: _state(entry) for entry in entries}

    def state(self, key: str) -> str | None:
        """The same mark of one object; none where there is no such object, or it may not be read (S3's answer for a
        missing one to those who may not list).

        Raises:
            SourceUnavailable: The source does not answer.
        """
        try:
            return _state(self._request(key, self._info_once))
        except ObjectMissing:
            return None
        except ObjectError as error:
            self._refusal = error
            return None

    @property
    def refusal(self) -> str:
        """Why the last object that could not be looked at could not, as ` (cause)`; empty if there was none."""
        return f" ({self._refusal})" if self._refusal is not None else ""

    def read_metadata(self, name: str) -> dict[str, Any]:
        """The metadata of an article version.

        Raises:
            ObjectError: If it is missing, has more than `MAX_METADATA_BYTES`, or is not JSON.
            ObjectDamaged: If the JSON is not an object, or has a name twice.
        """
        try:
            content = self.read(f"metadata/{name}.json", max_bytes=MAX_METADATA_BYTES)
        except ObjectMissing:
            content = self.read(f"{name}/{name}.json", max_bytes=MAX_METADATA_BYTES)
        try:
            metadata = json.loads(content, object_pairs_hook=_unique_names)
        except ObjectDamaged as error:
            raise ObjectDamaged(f"{name}.json: {error}") from error
        except (ValueError, RecursionError) as error:
            raise ObjectError(f"{name}.json is not JSON ({error})") from error
        if not isinstance(metadata, dict):
            raise ObjectDamaged(f"{name}.json is not a JSON object")
        return metadata

    def read(self, url: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        """Reads one object whole, and verifies it where the URL names its MD5, as all of PMC's do.

        Args:
            url: A key below the root, or a URL out of the metadata (`s3://pmc-oa-opendata/<key>?md5=<32 digits>`).
            max_bytes: Size that is accepted.

        Raises:
            ObjectError: Missing, unreadable, of more than `max_bytes`, with another MD5 than the URL says, or with a
                key that no source can hold.
            SourceUnavailable: The source did not answer, `ATTEMPTS` times, or refuses the credentials.
        """
        location, expected = split_url(url)
        key = _BUCKET_URL.sub("", location)
        if not key:
            raise ObjectError("the key is empty")
        content = self._request(key, lambda path: self._read_once(path, max_bytes))
        if len(content) > max_bytes:
            raise ObjectError(f"{key}: more than {max_bytes:,} bytes")
        if expected and md5_of(content) != expected:
            raise ObjectError(f"{key}: the MD5 is not the one in the metadata, {expected}")
        return content

    def _request(self, key: str, request: Callable[[str], Any]) -> Any:
        """What `request` gives for the path of a key; what may be a passing fault is tried again."""
        if key:
            _check_key(key)
        path = f"{self._root}/{key if self.can_list else quote(key)}".rstrip("/")
        if isinstance(self._filesystem, LocalFileSystem) and leads_out(path, self._root or "/"):
            raise ObjectError(f"{key}: cannot be read (a link leads out of the mirror)")
        result = with_retries(
            lambda: request(path),
            check=partial(self._check_error, key),
            pause=FIRST_PAUSE,
        )
        self._answered = True
        return result

    def _check_error(self, key: str, error: Exception, attempt: int) -> None:
        """Raise an error unless a request may succeed at the next attempt."""
        if isinstance(error, MemoryError | ObjectError):
            raise error
        lasting = lasting_error(error)
        if lasting is not None:
            raise lasting from None
        fault = _fault_of_object(key, error)
        if fault is not None:
            self._answered = True
            raise fault from error
        cause = f"{type(error).__name__}: {error}"
        if isinstance(error, PermissionError) or _answer(error) in _CREDENTIALS_REFUSED:
            raise CredentialsRefused(
                f"{self.source}: {key or 'the folder'}: the credentials are refused ({cause}). Renew them, or unset "
                "them if the bucket is public. Check the clock. Then run the same command again: it continues from "
                "here."
            ) from error
        unreachable = is_unreachable(error)
        if attempt >= (FIRST_ATTEMPTS if unreachable and not self._answered else ATTEMPTS):
            what = "no connection" if unreachable else f"{key or 'the folder'} could not be read"
            remedy = "Check the network. " if unreachable else ""
            raise SourceUnavailable(
                f"{self.source}: {what} in {attempt} attempts ({cause}). {remedy}The same command goes on from here "
                "once the source answers."
            ) from error
        if attempt > QUIET_ATTEMPTS:
            logger.warning("%s: %s: %s. Trying again.", self.source, key or "the folder", cause)

    def _read_once(self, path: str, max_bytes: int) -> bytes:
        """One request: opening a remote file and reading it would be two or more."""
        if isinstance(self._filesystem, LocalFileSystem):
            kind = special_kind(path)
            if kind is not None and kind != "a folder":
                raise ObjectError(f"{path[len(self._root) + 1 :]}: cannot be read (it is {kind})")
        try:
            return self._filesystem.cat_file(path, start=0, end=max_bytes + 1)
        except Exception as error:
            if _answer(error) in ("InvalidRange", "416", 416):  # no byte 0: the object is empty
                return b""
            raise

    def _list_once(self, path: str) -> list[dict[str, Any]]:
        # The list of what is no folder holds the thing itself.
        return [entry for entry in self._filesystem.ls(path, detail=True) if entry["name"].rstrip("/") != path]

    def _info_once(self, path: str) -> dict[str, Any]:
        try:
            return self._filesystem.info(path)
        except FileNotFoundError as error:
            if not self.can_list and error.__cause__ is not None:  # over HTTP fsspec calls every failure so
                raise error.__cause__ from None
            raise
        except OSError as error:
            if isinstance(error, PermissionError) or error.errno == errno.EINVAL:
                self._filesystem.cat_file(path, start=0, end=1)  # S3 says in the body why, and a HEAD has none
            raise


def split_url(url: str) -> tuple[str, str]:
    """A URL of the metadata without its query, and the MD5 in that as lower-case digits; empty where it names none."""
    location, _, query = url.rpartition("?")
    for parameter in query.split("&"):
        name, _, value = parameter.partition("=")
        if name == "md5":
            return location, value.lower()
    return url, ""


def verified_md5(url: str) -> str:
    """The MD5 that a URL names, and that what was read from it is known to have; empty where it names none."""
    return split_url(url)[1]


def md5_of(content: bytes) -> str:
    """MD5 as hex digits."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _state(entry: dict[str, Any]) -> str:
    """ETag of an object, or what else changes with it; local files have a time of change."""
    tag = entry.get("ETag") or entry.get("etag")
    return str(tag).strip('"') if tag else f"{entry.get('size')}-{entry.get('mtime', entry.get('created'))}"


def _check_key(key: str) -> None:
    """Raises `ObjectError` for a key that points elsewhere, or that a bucket and a mirror of it cannot both hold."""
    parts = key.replace("\\", "/").split("/")
    if ".." in parts:
        raise ObjectError(f"{key}: the key points out of the bucket")
    try:
        sizes = [len(part.encode()) for part in parts]
    except UnicodeEncodeError as error:
        raise ObjectError(f"{key!a}: the key holds half a character") from error
    if any(ord(character) < 32 or ord(character) == 127 for character in key):
        raise ObjectError(f"{key!a}: the key holds control characters")
    if sum(sizes) + len(sizes) - 1 > _MAX_KEY_BYTES or max(sizes) > _MAX_PART_BYTES:
        raise ObjectError(
            f"{key}: the key has more than {_MAX_KEY_BYTES:,} bytes, or a part of it more than {_MAX_PART_BYTES}"
        )


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of which no name stands twice: which of the values holds would be a matter of the reader."""
    result = dict(pairs)
    if len(result) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ObjectDamaged(f"{name[:100]!a} stands in it twice")
    return result


def _answer(error: BaseException | None) -> int | str | None:
    """What a server answered, as its client reports it: S3's error code or HTTP's status; none if it is no answer."""
    response = getattr(getattr(error, "__cause__", None), "response", None)
    if isinstance(response, dict):
        return response.get("Error", {}).get("Code")
    return getattr(error, "status", None)


def _status(error: BaseException) -> str:
    """The answer of a server for people, as `: HTTP 403, AccessDenied`; empty if it is no answer."""
    answer = _answer(error)
    response = getattr(error.__cause__, "response", None)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    parts = [f"HTTP {number}" for number in [status or answer] if str(number).isdigit()]
    parts += [answer] if isinstance(answer, str) and not answer.isdigit() else []
    return f": {', '.join(parts)}" if parts else ""


def _fault_of_object(key: str, error: Exception) -> ObjectError | None:
    """What is wrong with one object; none where the fault is the source's."""
    answer = _answer(error)
    if answer == "NoSuchBucket":
        return None
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError) or answer in (404, 410):
        return ObjectMissing(f"{key}: cannot be read (there is no such object)")
    number = error.errno if isinstance(error, OSError) else None
    if answer in _DENIED or (isinstance(error, PermissionError) and number in (errno.EACCES, errno.EPERM)):
        return ObjectError(f"{key}: cannot be read (access is denied){_status(error)}")
    if isinstance(answer, int) and 400 <= answer < 500 and answer not in _TRY_AGAIN:
        return ObjectError(f"{key}: cannot be read (the request is refused){_status(error)}")
    # A certificate that is not accepted is a ValueError and an OSError, and the fault of the source.
    is_value_error = isinstance(error, ValueError) and not isinstance(error, OSError)
    if is_value_error or number in (errno.ENAMETOOLONG, errno.ELOOP):
        return ObjectError(f"{key}: cannot be read (the key is not usable)")
    return None
