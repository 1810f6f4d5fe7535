"""PubMed Central's bucket, or a mirror of it, through fsspec.

The bucket `s3://pmc-oa-opendata` holds one prefix for each article version, a folder of metadata JSON and a daily
inventory of that folder. Every URL in the metadata carries the MD5 of what it points to.
"""

import errno
import hashlib
import json
import logging
import re
import time
from functools import cached_property
from typing import Any

import fsspec


logger = logging.getLogger(__name__)

MAX_OBJECT_BYTES = 500_000_000

ATTEMPTS = 4
FIRST_PAUSE = 0.5  # seconds; doubled each time

_BUCKET_URL = re.compile(r"^s3://[^/]+/|^/+")


class BucketError(ValueError):
    """A source that cannot be used at all: missing, unreachable or empty. The message names the remedy."""


class SourceUnavailable(BucketError):
    """A source that stopped answering. Not a fault of an article: the run must stop, and can be taken up again."""


class ObjectError(ValueError):
    """One object that cannot be used: missing, too large or not what its MD5 says."""


def open_source(source: str) -> tuple[Any, str]:
    """The file system of a source, and the root in it; PMC's own bucket is read without credentials."""
    options = {"anon": True} if source.startswith("s3://pmc-oa-opendata") else {}
    filesystem, root = fsspec.core.url_to_fs(source, **options)
    return filesystem, root.rstrip("/")


class Bucket:
    """
    A bucket in PMC's layout.

    Args:
        source: Where it lies: a folder, `s3://pmc-oa-opendata`, `https://pmc-oa-opendata.s3.amazonaws.com`, or any
            other URL that fsspec opens.

    Raises:
        BucketError: There is nothing, or fsspec lacks the package for it.
    """

    def __init__(self, source: str):
        self.source = source
        try:
            exists = not self.can_list or self._filesystem.exists(self._root)
        except ImportError as error:
            raise BucketError(f"{source}: {error}. For s3:// run: pip install 'biomedclip[s3]'") from error
        except OSError as error:
            raise BucketError(f"{source}: cannot be reached ({error})") from error
        if not exists:
            raise BucketError(f"{source}: there is no such folder or bucket. Check --source.")

    def __getstate__(self) -> dict[str, Any]:
        # A connection cannot travel to a worker; it opens its own.
        return {"source": self.source}

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
        """
        What lies in a folder, with a mark of its state that changes when the object does.

        Args:
            folder: Key of the folder; empty for the root.

        Returns:
            Last parts of the keys, each with its ETag, or size and time of change where there is none. Empty where
            there is no such folder.
        """
        if not self.can_list:
            return {}
        try:
            entries = self._filesystem.ls(f"{self._root}/{folder}".rstrip("/"), detail=True)
        except FileNotFoundError:
            return {}
        return {entry["name"].rstrip("/").rsplit("/", 1)[-1]: _state(entry) for entry in entries}

    def state(self, key: str) -> str | None:
        """The same mark of one object; none where there is no such object."""
        try:
            return _state(self._filesystem.info(f"{self._root}/{key}"))
        except FileNotFoundError:
            return None

    def read_metadata(self, name: str) -> dict[str, Any]:
        """
        The metadata of an article version.

        Raises:
            ObjectError: Missing, or not a JSON object.
        """
        try:
            content = self.read(f"metadata/{name}.json")
        except ObjectError:
            content = self.read(f"{name}/{name}.json")
        try:
            metadata = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ObjectError(f"{name}.json is not JSON ({error})") from error
        if not isinstance(metadata, dict):
            raise ObjectError(f"{name}.json is not a JSON object")
        return metadata

    def read(self, url: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        """
        Reads one object whole and verifies it.

        Args:
            url: A key below the root, or a URL out of the metadata (`s3://pmc-oa-opendata/<key>?md5=<32 digits>`).
            max_bytes: Size that is accepted.

        Raises:
            ObjectError: Missing, unreadable, of more than `max_bytes`, or with another MD5 than the URL says.
            SourceUnavailable: The source did not answer, `ATTEMPTS` times.
        """
        location, expected = url.partition("?md5=")[0], verified_md5(url)
        key = _BUCKET_URL.sub("", location)
        if ".." in key.split("/"):
            raise ObjectError(f"{url}: the key points out of the bucket")
        content = self._read_patiently(key, max_bytes)
        if len(content) > max_bytes:
            raise ObjectError(f"{key}: more than {max_bytes:,} bytes")
        if expected and md5_of(content) != expected:
            raise ObjectError(f"{key}: the MD5 is not the one in the metadata, {expected}")
        return content

    def _read_patiently(self, key: str, max_bytes: int) -> bytes:
        """The object's bytes, `max_bytes` + 1 at most; what may be a passing fault is tried again."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._read_once(f"{self._root}/{key}", max_bytes)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
                raise ObjectError(f"{key}: cannot be read ({error})") from error
            except Exception as error:  # every client has its own: time-outs, 503s, resets, input/output errors
                if attempt == ATTEMPTS:
                    raise SourceUnavailable(
                        f"{self.source}: {key} could not be read in {ATTEMPTS} attempts ({type(error).__name__}: "
                        f"{error}). The same command goes on from here once the source answers."
                    ) from error
                time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
        raise AssertionError("unreachable")

    def _read_once(self, path: str, max_bytes: int) -> bytes:
        """One request: opening a remote file and reading it would be two or more."""
        try:
            return self._filesystem.cat_file(path, start=0, end=max_bytes + 1)
        except OSError as error:
            if error.errno == errno.EINVAL and "range" in str(error).lower():  # S3's answer for an empty object
                return b""
            raise


def verified_md5(url: str) -> str:
    """The MD5 that a URL names, and that what was read from it is known to have; empty where it names none."""
    return url.partition("?md5=")[2].lower()


def md5_of(content: bytes) -> str:
    """MD5 as hex digits."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _state(entry: dict[str, Any]) -> str:
    """ETag of an object, or what else changes with it; local files have a time of change."""
    tag = entry.get("ETag") or entry.get("etag")
    return str(tag).strip('"') if tag else f"{entry.get('size')}-{entry.get('mtime', entry.get('created'))}"
