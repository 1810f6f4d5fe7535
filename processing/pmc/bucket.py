"""PubMed Central's bucket, or a mirror of it, through fsspec.

The bucket `s3://pmc-oa-opendata` holds one prefix for each article version, a folder of metadata JSON and a daily
inventory of that folder. Every URL in the metadata carries the MD5 of what it points to.
"""

import csv
import gzip
import hashlib
import io
import json
import logging
import re
import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import fsspec


logger = logging.getLogger(__name__)

INVENTORY = "inventory-reports/pmc-oa-opendata/metadata"
MAX_OBJECT_BYTES = 500_000_000

ATTEMPTS = 4
FIRST_PAUSE = 0.5  # seconds; doubled each time

_BUCKET_URL = re.compile(r"^s3://[^/]+/|^/+")
_VERSION_NAME = re.compile(r"(PMC\d+)\.(\d+)")
_PMCID = re.compile(r"PMC\d+(\.\d+)?")
_MAX_VERSION_GAP = 3  # versions are numbered from 1; now and then one has been removed


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
            exists = not self._can_list or self._filesystem.exists(self._root)
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

    def work_list(self, pmcids: Iterable[str] | None = None) -> list[str]:
        """
        Names the article versions to read, `PMC<id>.<version>`: of each article the newest, sorted by number.

        They come from the PMCIDs given, else from the newest inventory, else from the folder of metadata, else from the
        folders of articles.

        Args:
            pmcids: Articles (`PMC123`) or versions (`PMC123.2`).

        Raises:
            BucketError: No article, or a PMCID that is none or that the bucket does not hold.
        """
        names = self._versions_of(pmcids) if pmcids is not None else self._all_versions()
        newest: dict[str, int] = {}
        for name in names:
            match = _VERSION_NAME.fullmatch(name)
            if match:
                newest[match[1]] = max(int(match[2]), newest.get(match[1], 0))
        if not newest:
            raise BucketError(
                f"{self.source}: no articles there. A mirror of PMC's bucket holds inventory-reports/, metadata/ or "
                "folders such as PMC10009416.1/."
            )
        return [f"{pmcid}.{newest[pmcid]}" for pmcid in sorted(newest, key=lambda pmcid: int(pmcid[3:]))]

    def inventory_date(self) -> str | None:
        """The date of the newest inventory, as it stands in its name; none where the source has no inventory."""
        manifest = self._newest_manifest()
        return manifest.split("/")[-2] if manifest else None

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
        except ValueError as error:
            raise ObjectError(f"{name}.json is not JSON ({error})") from error
        if not isinstance(metadata, dict):
            raise ObjectError(f"{name}.json is not a JSON object")
        return metadata

    def read(self, url: str) -> bytes:
        """
        Reads one object whole and verifies it.

        Args:
            url: A key below the root, or a URL out of the metadata (`s3://pmc-oa-opendata/<key>?md5=<32 digits>`).

        Raises:
            ObjectError: Missing, unreadable, of more than `MAX_OBJECT_BYTES`, or with another MD5 than the URL says.
        """
        location, _, expected = url.partition("?md5=")
        key = _BUCKET_URL.sub("", location)
        if ".." in key.split("/"):
            raise ObjectError(f"{url}: the key points out of the bucket")
        content = self._read_patiently(key)
        if len(content) > MAX_OBJECT_BYTES:
            raise ObjectError(f"{key}: more than {MAX_OBJECT_BYTES:,} bytes")
        if expected and hashlib.md5(content, usedforsecurity=False).hexdigest() != expected.lower():
            raise ObjectError(f"{key}: the MD5 is not the one in the metadata, {expected}")
        return content

    def _read_patiently(self, key: str) -> bytes:
        """The object's bytes, `MAX_OBJECT_BYTES` + 1 at most; what may be a passing fault is tried again."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._filesystem.open(f"{self._root}/{key}", "rb") as file:
                    content = bytearray()
                    while chunk := file.read(MAX_OBJECT_BYTES + 1 - len(content)):  # HTTP gives what has arrived
                        content += chunk
                    return bytes(content)
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

    def _versions_of(self, pmcids: Iterable[str]) -> Iterator[str]:
        for pmcid in pmcids:
            if not _PMCID.fullmatch(pmcid):
                raise BucketError(f"{pmcid!r} is not a PMCID; they look like PMC10009416 or PMC10009416.1.")
            names = [pmcid] if "." in pmcid else list(self._probe_versions(pmcid))
            if not names or not self._has(names[0]):
                raise BucketError(f"{self.source}: {pmcid} is not there. Remove it from the list.")
            yield from names

    def _probe_versions(self, pmcid: str) -> Iterator[str]:
        """Versions by asking for one after the other: listing a prefix of 8 million objects would take minutes."""
        version, gap = 1, 0
        while gap < _MAX_VERSION_GAP:
            if self._has(f"{pmcid}.{version}"):
                yield f"{pmcid}.{version}"
                gap = 0
            else:
                gap += 1
            version += 1

    def _has(self, name: str) -> bool:
        return any(self._filesystem.exists(f"{self._root}/{folder}/{name}.json") for folder in ("metadata", name))

    @property
    def _can_list(self) -> bool:
        return not self.source.startswith("http")

    def _all_versions(self) -> Iterator[str]:
        if not self._can_list:
            raise BucketError(f"{self.source}: folders cannot be listed over HTTP. Pass --pmcids, or use s3://.")
        manifest = self._newest_manifest()
        if manifest:
            yield from self._inventory_names(manifest)
        elif self._filesystem.exists(f"{self._root}/metadata"):
            for path in self._filesystem.ls(f"{self._root}/metadata", detail=False):
                yield path.rsplit("/", 1)[-1].removesuffix(".json")
        elif self._filesystem.exists(self._root):
            for path in self._filesystem.ls(self._root, detail=False):
                yield path.rstrip("/").rsplit("/", 1)[-1]

    def _newest_manifest(self) -> str | None:
        if not self._can_list:
            return None
        # The folders are named by date, so the last in the order of the alphabet is the newest.
        manifests = sorted(self._filesystem.glob(f"{self._root}/{INVENTORY}/*/manifest.json"))
        return manifests[-1].removeprefix(self._root).lstrip("/") if manifests else None

    def _inventory_names(self, manifest: str) -> Iterator[str]:
        try:
            files = [file["key"] for file in json.loads(self.read(manifest))["files"]]
            for key in files:
                with gzip.open(io.BytesIO(self.read(key)), "rt", encoding="utf-8", newline="") as table:
                    for _, object_key, *_ in csv.reader(table):
                        yield object_key.rsplit("/", 1)[-1].removesuffix(".json")
        except (ObjectError, ValueError, KeyError, TypeError, OSError, EOFError) as error:
            raise BucketError(
                f"{self.source}: the inventory {manifest} is damaged or incomplete ({error}). Copy it again, or remove "
                "inventory-reports/ to take the articles from metadata/."
            ) from error
