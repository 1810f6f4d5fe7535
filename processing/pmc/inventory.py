"""The work list: the articles and versions that a source contains.

It is read from the daily inventory of the bucket, because listing eight million objects would take too long. For a
mirror without an inventory, it is read from the folders. For a short list of PMCIDs, each article is requested.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from tqdm.auto import tqdm

from .bucket import Bucket, BucketError, ObjectError, SourceUnavailable, md5_of


INVENTORY = "inventory-reports/pmc-oa-opendata/metadata"
KEPT_DAYS = 30  # NLM keeps inventories for this long
_INVENTORY_HOUR = "T01-00Z"
_COLUMNS = ("Bucket", "Key", "LastModifiedDate", "ETag")

_VERSION_NAME = r"(?:^|/)PMC(?P<number>\d{1,12})\.(?P<version>\d{1,6})(?:\.json)?$"
_PMCID = r"^PMC(?P<number>\d{1,12})(?:\.(?P<version>\d{1,6}))?$"
_MAX_VERSION_GAP = 3  # versions are numbered from 1, and some have been removed
_MAX_REQUESTED = 1000  # longer lists of PMCIDs are looked up in the inventory, because requests would take hours
_PARALLEL_REQUESTS = 16

# One row per article. `source_etag` contains the ETags of the metadata of all versions, such as `1:<etag> 2:<etag>`.
WORK_LIST_SCHEMA = pa.schema([("pmcid", pa.string()), ("versions", pa.list_(pa.int32())), ("source_etag", pa.string())])
_ROWS = pa.schema([("number", pa.int64()), ("version", pa.int32()), ("etag", pa.string())])


def read_work_list(
    bucket: Bucket, pmcids: Sequence[str] | None = None, *, inventory: str | None = None, progress: bool = False
) -> tuple[pa.Table, str | None]:
    """Read the articles (`PMC123`) or versions (`PMC123.2`) of a source, sorted by number.

    Requested articles that are missing are returned without versions. By default, the newest inventory is used, or none
    for a short list of PMCIDs.

    Returns:
        A table with the columns of `WORK_LIST_SCHEMA`, and the name of the inventory, or None if none was used.

    Raises:
        BucketError: If no article is found, the inventory is damaged, a PMCID is invalid, or the source does not
            respond.
    """
    wanted = None if pmcids is None else parse_pmcids(pmcids)
    is_short = wanted is not None and len(wanted) <= _MAX_REQUESTED and not inventory
    manifest = None if is_short else find_manifest(bucket, inventory)
    if wanted is not None:
        rows = _requested_rows(bucket, wanted, manifest, progress)
    elif manifest:
        rows = _inventory_rows(bucket, manifest, progress)
    elif not bucket.can_list:
        raise BucketError(
            f"{bucket.source}: no inventory of the last {KEPT_DAYS} days was found{bucket.refusal}, and folders cannot "
            "be listed over HTTP. Pass `inventory` or `pmcids`, or use s3://."
        )
    else:
        names = bucket.names("metadata")
        if not names:
            folders = [name for name in bucket.names("") if re.search(_VERSION_NAME, name)]
            etags = _request_each(lambda name: bucket.etag(f"{name}/{name}.json") or "missing", folders, progress)
            names = dict(zip(folders, etags, strict=True))
        rows = _rows(pa.table({"Key": pa.array(names, pa.string()), "ETag": pa.array(names.values(), pa.string())}))
    if not rows.num_rows:
        raise BucketError(
            f"{bucket.source}: no articles found. A mirror of PMC's bucket contains inventory-reports/, metadata/ or "
            "folders such as PMC10009416.1/."
        )
    return _group_versions(rows), manifest.split("/")[-2] if manifest else None


def parse_pmcids(pmcids: Iterable[str]) -> dict[int, set[int]]:
    """Return the requested versions of each article, by its number. An empty set requests all versions."""
    wanted: dict[int, set[int]] = {}
    numbers = pa.array([pmcid.strip() for pmcid in pmcids], pa.string())
    for pmcid, match in zip(numbers.to_pylist(), pc.extract_regex(numbers, _PMCID).to_pylist(), strict=True):
        if match is None:
            raise BucketError(f"{pmcid!r} is not a PMCID such as PMC10009416 or PMC10009416.1.")
        versions = wanted.setdefault(int(match["number"]), set())
        if match["version"]:
            versions.add(int(match["version"]))
    return wanted


def find_manifest(bucket: Bucket, inventory: str | None = None) -> str | None:
    """Return the key of the manifest of an inventory (default: the newest), or None if the source has no inventory."""
    if inventory:
        key = f"{INVENTORY}/{inventory.strip('/')}/manifest.json"
        if bucket.etag(key) is None:
            names = ", ".join(_inventory_names(bucket)) or "none"
            raise BucketError(
                f"{bucket.source}: no inventory {inventory!r}{bucket.refusal}. NLM keeps inventories for {KEPT_DAYS} "
                f"days. Available: {names}."
            )
        return key
    for name in reversed(list(_inventory_names(bucket))):  # newest first
        key = f"{INVENTORY}/{name}/manifest.json"
        if bucket.etag(key) is not None:
            return key
    return None


def _inventory_names(bucket: Bucket) -> Iterator[str]:
    """Yield the names of the inventories, oldest first. HTTP cannot list folders, so yield all possible names."""
    if bucket.can_list:
        yield from sorted(name for name in bucket.names(INVENTORY) if name[:1].isdigit())
        return
    today = datetime.now(UTC).date()
    for days in reversed(range(KEPT_DAYS + 1)):
        yield f"{today - timedelta(days=days):%Y-%m-%d}{_INVENTORY_HOUR}"


def _inventory_rows(bucket: Bucket, manifest: str, progress: bool) -> pa.Table:
    try:
        content = json.loads(bucket.read(manifest))
        columns = [name.strip() for name in content.get("fileSchema", ", ".join(_COLUMNS)).split(",")]
        files = [(file["key"], file.get("MD5checksum")) for file in content["files"]]
        parts = [
            _read_table(bucket, key, md5, columns)
            for key, md5 in tqdm(files, desc="Inventory", unit="file", disable=not progress, delay=2)
        ]
        return pa.concat_tables(parts) if parts else _ROWS.empty_table()
    except SourceUnavailable:
        raise  # not a fault of the inventory
    except (ObjectError, ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, zlib.error) as error:
        raise BucketError(
            f"{bucket.source}: the inventory {manifest} is damaged or incomplete ({error}). Copy it again, or remove "
            "inventory-reports/ to read the articles from metadata/."
        ) from error


def _read_table(bucket: Bucket, key: str, md5: str | None, columns: Sequence[str]) -> pa.Table:
    """Read a file of the inventory, a gzipped CSV file without a header and with percent-encoded keys."""
    content = bucket.read(key)
    if md5 and md5_of(content) != md5:
        raise ObjectError(f"{key}: the MD5 differs from the one in the manifest, {md5}")
    with gzip.open(pa.BufferReader(content)) as stream:
        reader = pacsv.open_csv(
            stream,
            read_options=pacsv.ReadOptions(column_names=list(columns), block_size=1 << 24),
            convert_options=pacsv.ConvertOptions(
                include_columns=["Key", "ETag"], column_types={"Key": pa.string(), "ETag": pa.string()}
            ),
        )
        parts = [_rows(pa.Table.from_batches([batch])) for batch in reader]
    return pa.concat_tables(parts) if parts else _ROWS.empty_table()


def _rows(table: pa.Table) -> pa.Table:
    """Convert keys and ETags to rows of `_ROWS`. Keys that do not name an article version are ignored."""
    keys = table.column("Key")
    if pc.any(pc.match_substring(keys, "%")).as_py():
        keys = pa.chunked_array([[unquote(key) for key in keys.to_pylist()]], pa.string())
    names = pc.extract_regex(keys.combine_chunks(), _VERSION_NAME)
    found = pc.is_valid(names)
    etags = table.column("ETag").combine_chunks().filter(found)
    parts = [pc.struct_field(names.filter(found), name) for name in ("number", "version")]
    return pa.Table.from_arrays([*parts, etags], names=_ROWS.names).cast(_ROWS)


def _request_each(request: Callable[[Any], Any], items: Collection[Any], progress: bool) -> list[Any]:
    with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
        results = pool.map(request, items)
        return list(tqdm(results, desc="Work list", unit="article", total=len(items), disable=not progress, delay=2))


def _requested_rows(bucket: Bucket, wanted: Mapping[int, set[int]], manifest: str | None, progress: bool) -> pa.Table:
    """Return the rows of the requested articles, and a row without a version for each missing article."""
    if manifest:
        rows = _inventory_rows(bucket, manifest, progress)
        rows = rows.filter(pc.is_in(rows.column("number"), pa.array(wanted, pa.int64())))
        found = zip(*(rows.column(name).to_pylist() for name in _ROWS.names), strict=True)
        kept = [row for row in found if not wanted[row[0]] or row[1] in wanted[row[0]]]
    else:
        found_versions = _request_each(lambda item: list(_find_versions(bucket, *item)), wanted.items(), progress)
        kept = [
            (number, *version) for number, versions in zip(wanted, found_versions, strict=True) for version in versions
        ]
    missing = set(wanted) - {number for number, _, _ in kept}
    if len(missing) == len(wanted):
        raise BucketError(
            f"{bucket.source}: none of the {len(wanted)} PMCID(s) was found, such as "
            f"PMC{min(missing)}{bucket.refusal}. Check `pmcids`."
        )
    kept += [(number, None, None) for number in missing]
    return pa.Table.from_arrays([pa.array(column) for column in zip(*kept, strict=True)], schema=_ROWS)


def _find_versions(bucket: Bucket, number: int, versions: set[int]) -> Iterator[tuple[int, str]]:
    """Yield the versions of an article. Each is requested, because listing a prefix of the bucket takes minutes."""
    version, gap = 1, 0
    while gap < _MAX_VERSION_GAP if not versions else version <= max(versions):
        if not versions or version in versions:
            name = f"PMC{number}.{version}"
            etag = bucket.etag(f"metadata/{name}.json") or bucket.etag(f"{name}/{name}.json")
            gap = gap + 1 if etag is None else 0
            if etag is not None:
                yield version, etag
        version += 1


def _group_versions(rows: pa.Table) -> pa.Table:
    """Convert rows of versions to rows of articles."""
    rows = rows.sort_by([("number", "ascending"), ("version", "ascending")])
    numbers = rows.column("number").to_numpy()
    versions = rows.column("version").to_numpy(zero_copy_only=False)
    repeated = np.zeros(len(numbers), dtype=bool)
    repeated[1:] = (numbers[1:] == numbers[:-1]) & (versions[1:] == versions[:-1])
    if repeated.any():
        return _group_versions(rows.filter(pa.array(~repeated)))
    starts = np.flatnonzero(np.concatenate([[True], numbers[1:] != numbers[:-1]]))
    present = pc.is_valid(rows.column("version")).to_numpy()
    edges = np.concatenate([[0], np.cumsum(np.add.reduceat(present, starts))]).astype(np.int32)
    kept = rows.filter(pa.array(present))
    etags = pc.binary_join_element_wise(kept.column("version").cast(pa.string()), kept.column("etag"), ":")
    return pa.Table.from_arrays(
        [
            pc.binary_join_element_wise("PMC", pa.array(numbers[starts]).cast(pa.string()), ""),
            pa.ListArray.from_arrays(edges, kept.column("version").combine_chunks()),
            pc.binary_join(pa.ListArray.from_arrays(edges, etags.combine_chunks()), " "),
        ],
        schema=WORK_LIST_SCHEMA,
    )
