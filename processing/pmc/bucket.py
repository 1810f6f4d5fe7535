"""Read PubMed Central's bucket, or a mirror of it, through fsspec.

The bucket `s3://pmc-oa-opendata` has a prefix for each version of an article, a folder `metadata` with the metadata of
all versions, and a daily inventory of that folder. Every URL in the metadata contains the MD5 of the object.
"""

import errno
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable
from functools import cached_property, lru_cache, partial
from typing import Any
from urllib.parse import quote

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ..files import leads_out, special_kind
from ..retries import is_unreachable, lasting_error, with_retries


logger = logging.getLogger(__name__)

MAX_OBJECT_BYTES = 500_000_000
MAX_METADATA_BYTES = 10_000_000  # Python objects may take 25 times as much. Real metadata takes about 10 kB

ATTEMPTS = 8
FIRST_PAUSE = 0.5  # seconds, doubled after each attempt: one minute in total
FIRST_ATTEMPTS = 3  # if there is no connection and the source has never responded
QUIET_ATTEMPTS = 3  # later attempts are logged

_MAX_KEY_BYTES = 1024  # limit of S3
_MAX_PART_BYTES = 255  # limit of file systems

# Responses of servers: error codes of S3 are strings, and HTTP statuses are integers. Denied access to an object
# affects only this object. All other refusals by S3 (expired token, wrong signature, wrong clock) affect every object.
_DENIED = frozenset({"AccessDenied", "403", "InvalidObjectState", 403})
_CREDENTIALS_REFUSED = frozenset({"InvalidToken", "TokenRefreshRequired", "AuthorizationHeaderMalformed", 401, 407})
_RETRIED = frozenset({401, 407, 408, 425, 429})  # among the HTTP statuses from 400 to 499

_BUCKET_URL = re.compile(r"^s3://[^/]+/|^/+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_PMC_BUCKET = "pmc-oa-opendata"
# Settings of fsspec (its files and FSSPEC_S3_* variables) that configure credentials.
_IDENTITY_SETTINGS = frozenset({"anon", "key", "secret", "token", "username", "password", "profile", "session"})


class BucketError(ValueError):
    """Raised if a source cannot be used: it is missing, unreachable or empty. The message states what to do."""


class SourceUnavailable(BucketError):
    """Raised if a source stops responding. The article is not at fault, so the build stops and can be resumed."""


class CredentialsRefused(SourceUnavailable):
    """Raised if a source refuses the credentials. Retries fail until the user renews them."""


class ObjectError(ValueError):
    """Raised if an object cannot be used: it is missing, too large, or has the wrong MD5.

    The message does not depend on the kind of source and contains no local path.
    """


class ObjectMissing(ObjectError):
    """Raised if an object does not exist."""


class ObjectDamaged(ObjectError):
    """Raised if an object was read but its content is wrong."""


def _has_credentials(source: str) -> bool:
    if _IDENTITY_SETTINGS & set(fsspec.config.conf.get("s3", {})):
        return True
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    try:
        providers = Session().get_component("credential_provider")
        if source.split("/")[2] == _PMC_BUCKET:
            # The user did not choose the IAM role of the machine, and that role may lack permission to read a public
            # bucket.
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

    S3 is read with the user's credentials, from the environment, a profile, AWS's files or fsspec's settings. Without
    credentials, it is read anonymously.

    Args:
        source: A folder, `s3://pmc-oa-opendata`, `https://pmc-oa-opendata.s3.amazonaws.com`, or any other URL that
            fsspec can open.

    Raises:
        BucketError: If the source does not exist, fsspec lacks the package for it, or the configured credentials cannot
            be read.
    """

    def __init__(self, source: str):
        self.source = source
        self._responded = False
        self._refusal: ObjectError | None = None
        try:
            if self.can_list:
                self._check_root()
        except ImportError as error:
            raise BucketError(f"{source}: {error}. For s3:// run: pip install 'biomedclip[s3]'") from error

    def _check_root(self) -> None:
        missing = BucketError(f"{self.source}: the folder or bucket does not exist. Check `source`.")
        try:
            root = self._request("", self._filesystem.info)
        except ObjectMissing as error:
            raise missing from error
        except ObjectError:
            return  # even if listing a bucket is denied, its objects may be readable
        except SourceUnavailable as error:
            if _response(error.__cause__) == "NoSuchBucket":
                raise missing from error
            raise
        if isinstance(self._filesystem, LocalFileSystem) and root["type"] != "directory":
            raise BucketError(f"{self.source} is not a folder. Pass the folder of a mirror as `source`.")

    def __getstate__(self) -> dict[str, Any]:
        # Connections cannot be pickled, so each worker opens its own.
        return {"source": self.source, "_responded": self._responded, "_refusal": None}

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        is_anonymous = self.source.startswith(("s3://", "s3a://")) and not _has_credentials(self.source)
        # Listings are not cached, because an update in the same process must see new objects.
        options = {"use_listings_cache": False, **({"anon": True} if is_anonymous else {})}
        filesystem, root = fsspec.core.url_to_fs(self.source, **options)
        return filesystem, root.rstrip("/")

    @property
    def _filesystem(self) -> Any:
        return self._opened[0]

    @property
    def _root(self) -> str:
        return self._opened[1]

    @property
    def can_list(self) -> bool:
        """Whether the source can list its objects. Web servers cannot."""
        return not self.source.startswith("http")

    @property
    def is_remote(self) -> bool:
        """Whether each read is a request over a network."""
        return "://" in self.source and not self.source.startswith(("file://", "memory://"))

    def names(self, folder: str) -> dict[str, str]:
        """Return the ETag of each object in a folder by the last part of its key. The key "" is the root.

        Without an ETag, it is the size and modification time. The result is empty if the folder does not exist.
        """
        if not self.can_list:
            return {}
        try:
            entries = self._request(folder, self._list_once)
        except ObjectMissing:
            return {}
        except ObjectError as error:
            raise BucketError(
                f"{self.source}: folders cannot be listed ({error}). Pass `inventory` or `pmcids`."
            ) from error
        return {entry["name"].rstrip("/").rsplit("/", 1)[-1]: _etag(entry) for entry in entries}

    def etag(self, key: str) -> str | None:
        """Return the ETag of an object as in [`names`], or None if it does not exist or access is denied.

        S3 also denies access to missing objects if the user is not allowed to list the bucket.
        """
        try:
            return _etag(self._request(key, self._info_once))
        except ObjectMissing:
            return None
        except ObjectError as error:
            self._refusal = error
            return None

    @property
    def refusal(self) -> str:
        """The reason for the last denied access, as ` (reason)`. Empty if no access was denied."""
        return f" ({self._refusal})" if self._refusal is not None else ""

    def read_metadata(self, name: str) -> dict[str, Any]:
        """Read the metadata of `PMC<id>.<version>`."""
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
        """Read an object and check its MD5 if the URL contains one.

        The URL is a key below the root, or one of the metadata (`s3://pmc-oa-opendata/<key>?md5=<32 digits>`).

        Raises:
            ObjectError: If the object is missing, unreadable or larger than `max_bytes`, if its MD5 differs, or if the
                key is invalid.
            SourceUnavailable: If the source did not respond in `ATTEMPTS` attempts, or refuses the credentials.
        """
        location, expected = split_url(url)
        key = _BUCKET_URL.sub("", location)
        if not key:
            raise ObjectError("the key is empty")
        content = self._request(key, lambda path: self._read_once(path, max_bytes))
        if len(content) > max_bytes:
            raise ObjectError(f"{key}: more than {max_bytes:,} bytes")
        if expected and md5_of(content) != expected:
            raise ObjectError(f"{key}: the MD5 differs from the one in the metadata, {expected}")
        return content

    def _request(self, key: str, request: Callable[[str], Any]) -> Any:
        """Return the result of `request` for the path of a key, with retries after transient errors."""
        if key:
            _check_key(key)
        path = f"{self._root}/{key if self.can_list else quote(key)}".rstrip("/")
        if isinstance(self._filesystem, LocalFileSystem) and self._leads_out(path):
            raise ObjectError(f"{key}: cannot be read (a link leads out of the mirror)")
        result = with_retries(lambda: request(path), check=partial(self._check_error, key), pause=FIRST_PAUSE)
        self._responded = True
        return result

    def _leads_out(self, path: str) -> bool:
        if path == self._root or os.path.islink(path):
            return leads_out(path, self._root or "/")
        return self._folder_leads_out(os.path.dirname(path))

    @cached_property
    def _folder_leads_out(self) -> Callable[[str], bool]:
        return lru_cache(maxsize=64)(lambda folder: leads_out(folder, self._root or "/"))

    def _check_error(self, key: str, error: Exception, attempt: int) -> None:
        """Raise an error unless a retry might succeed."""
        if isinstance(error, MemoryError | ObjectError):
            raise error
        lasting = lasting_error(error)
        if lasting is not None:
            raise lasting from None
        fault = _fault_of_object(key, error)
        if fault is not None:
            self._responded = True
            raise fault from error
        what, cause = key or "the folder", f"{type(error).__name__}: {error}"
        if isinstance(error, PermissionError) or _response(error) in _CREDENTIALS_REFUSED:
            raise CredentialsRefused(
                f"{self.source}: {what}: the credentials were rejected ({cause}). Renew them, or unset them if the "
                "bucket is public. Check the clock. Then run the same command again: it continues from here."
            ) from error
        unreachable = is_unreachable(error)
        if attempt >= (FIRST_ATTEMPTS if unreachable and not self._responded else ATTEMPTS):
            failure = "no connection" if unreachable else f"{what} could not be read"
            remedy = "Check the network. " if unreachable else ""
            raise SourceUnavailable(
                f"{self.source}: {failure} in {attempt} attempts ({cause}). {remedy}Run the same command again when "
                "the source responds: it continues from here."
            ) from error
        if attempt > QUIET_ATTEMPTS:
            logger.warning("%s: %s: %s. Trying again.", self.source, what, cause)

    def _read_once(self, path: str, max_bytes: int) -> bytes:
        if isinstance(self._filesystem, LocalFileSystem):
            kind = special_kind(path)
            if kind is not None and kind != "a folder":
                raise ObjectError(f"{path[len(self._root) + 1 :]}: cannot be read (it is {kind})")
        try:
            return self._filesystem.cat_file(path, start=0, end=max_bytes + 1)  # one request, while open needs several
        except Exception as error:
            if _response(error) in ("InvalidRange", "416", 416):  # the object is empty
                return b""
            raise

    def _list_once(self, path: str) -> list[dict[str, Any]]:
        # The listing of a path that is not a folder contains the path itself.
        return [entry for entry in self._filesystem.ls(path, detail=True) if entry["name"].rstrip("/") != path]

    def _info_once(self, path: str) -> dict[str, Any]:
        try:
            return self._filesystem.info(path)
        except FileNotFoundError as error:
            if not self.can_list and error.__cause__ is not None:  # fsspec converts every HTTP error to this one
                raise error.__cause__ from None
            raise
        except OSError as error:
            if isinstance(error, PermissionError) or error.errno == errno.EINVAL:
                self._filesystem.cat_file(path, start=0, end=1)  # S3 sends the reason in the body, which HEAD lacks
            raise


def split_url(url: str) -> tuple[str, str]:
    """Split a URL of the metadata into the URL without query and the lower-case MD5, which is empty if missing."""
    location, _, query = url.rpartition("?")
    for parameter in query.split("&"):
        name, _, value = parameter.partition("=")
        if name == "md5":
            return location, value.lower()
    return url, ""


def md5_of(content: bytes) -> str:
    """Return the MD5 of bytes as hex digits."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _etag(entry: dict[str, Any]) -> str:
    tag = entry.get("ETag") or entry.get("etag")
    return str(tag).strip('"') if tag else f"{entry.get('size')}-{entry.get('mtime', entry.get('created'))}"


def _check_key(key: str) -> None:
    """Raise an error for a key that points outside the bucket, or that a mirror on disk could not contain."""
    parts = key.replace("\\", "/").split("/")
    if ".." in parts:
        raise ObjectError(f"{key}: the key points out of the bucket")
    try:
        sizes = [len(part.encode()) for part in parts]
    except UnicodeEncodeError as error:
        raise ObjectError(f"{key!a}: the key contains a surrogate") from error
    if _CONTROL.search(key):
        raise ObjectError(f"{key!a}: the key contains control characters")
    if sum(sizes) + len(sizes) - 1 > _MAX_KEY_BYTES or max(sizes) > _MAX_PART_BYTES:
        raise ObjectError(
            f"{key}: the key has more than {_MAX_KEY_BYTES:,} bytes, or a part of it more than {_MAX_PART_BYTES}"
        )


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object with unique names. Readers disagree on which value of a duplicate name counts."""
    result = dict(pairs)
    if len(result) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ObjectDamaged(f"it contains {name[:100]!a} twice")
    return result


def _response(error: BaseException | None) -> int | str | None:
    """Return the error code of S3 or the HTTP status in an error of a client, or None if no server responded."""
    response = getattr(getattr(error, "__cause__", None), "response", None)
    if isinstance(response, dict):
        return response.get("Error", {}).get("Code")
    return getattr(error, "status", None)


def _status(error: BaseException) -> str:
    """Return the response of a server for messages, such as `: HTTP 403, AccessDenied`, or an empty string."""
    answer = _response(error)
    response = getattr(error.__cause__, "response", None)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    parts = [f"HTTP {number}" for number in [status or answer] if str(number).isdigit()]
    parts += [answer] if isinstance(answer, str) and not answer.isdigit() else []
    return f": {', '.join(parts)}" if parts else ""


def _fault_of_object(key: str, error: Exception) -> ObjectError | None:
    """Return the error if this object is at fault, or None if the source is at fault."""
    answer = _response(error)
    if answer == "NoSuchBucket":
        return None
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError) or answer in (404, 410):
        return ObjectMissing(f"{key}: cannot be read (no such object)")
    number = error.errno if isinstance(error, OSError) else None
    if answer in _DENIED or (isinstance(error, PermissionError) and number in (errno.EACCES, errno.EPERM)):
        return ObjectError(f"{key}: cannot be read (access is denied){_status(error)}")
    if isinstance(answer, int) and 400 <= answer < 500 and answer not in _RETRIED:
        return ObjectError(f"{key}: cannot be read (the request was rejected){_status(error)}")
    # An invalid certificate raises both a ValueError and an OSError, but is a fault of the source.
    is_value_error = isinstance(error, ValueError) and not isinstance(error, OSError)
    if is_value_error or number in (errno.ENAMETOOLONG, errno.ELOOP):
        return ObjectError(f"{key}: cannot be read (the key is not usable)")
    return None
