"""The work list: which versions of which articles a source holds, and what state they are in.

It comes from the bucket's daily inventory, so no prefix of eight million objects is ever listed; of a mirror that has
none, from its folders; or from a list of PMCIDs.
"""

import gzip
import hashlib
import json
import logging
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from tqdm.auto import tqdm

from .bucket import Bucket, BucketError, ObjectError, SourceUnavailable


logger = logging.getLogger(__name__)

INVENTORY = "inventory-reports/pmc-oa-opendata/metadata"
KEPT_DAYS = 30  # NLM keeps inventories so long
_INVENTORY_HOUR = "T01-00Z"
_COLUMNS = ("Bucket", "Key", "LastModifiedDate", "ETag")

_VERSION_NAME = r"(?:^|/)PMC(?P<number>\d{1,12})\.(?P<version>\d{1,6})(?:\.json)?$"
_PMCID = r"^PMC(?P<number>\d{1,12})(?:\.(?P<version>\d{1,6}))?$"
_MAX_VERSION_GAP = 3  # versions are numbered from 1; now and then one has been removed
_MAX_PROBED = 1000  # longer lists of PMCIDs are looked up in the inventory: a few requests for each would take hours
_REQUESTS_AT_A_TIME = 16

_ROWS = pa.schema([("number", pa.int64()), ("version", pa.int32()), ("state", pa.string())])


def work_list_schema() -> pa.Schema:
    """An article a row: its PMCID, its versions in rising order, and a mark that changes when any of them does."""
    return pa.schema([("pmcid", pa.string()), ("versions", pa.list_(pa.int32())), ("mark", pa.string())])


def read_work_list(
    bucket: Bucket, pmcids: Sequence[str] | None = None, *, inventory: str | None = None, progress: bool = False
) -> tuple[pa.Table, str | None]:
    """The articles to read, sorted by number, and the inventory that says so.

    Args:
        bucket: Where they lie.
        pmcids: Articles (`PMC123`) or versions (`PMC123.2`); none for all. One that the source does not hold gets a
            row without versions.
        inventory: Name of the inventory to take, such as `2026-01-18T01-00Z`; none for the newest, which is not
            looked into for a short list of PMCIDs.
        progress: Show a bar.

    Returns:
        A table of [`work_list_schema`], and the name of the inventory that it comes from; none where the source was
        listed, or asked for each article.

    Raises:
        BucketError: No article at all, a damaged inventory, a PMCID that is none, or a source that does not answer.
    """
    wanted = None if pmcids is None else parse_pmcids(pmcids)
    is_short = wanted is not None and len(wanted) <= _MAX_PROBED and not inventory
    manifest = None if is_short else find_manifest(bucket, inventory)
    if wanted is not None:
        rows = _rows_of(bucket, wanted, manifest, progress)
    elif manifest:
        rows = _inventory_rows(bucket, manifest, progress)
    elif not bucket.can_list:
        raise BucketError(
            f"{bucket.source}: no inventory of the last {KEPT_DAYS} days was found{bucket.refusal}, and folders cannot "
            "be listed over HTTP. Pass --inventory, or --pmcids, or use s3://."
        )
    else:
        rows = _listed_rows(bucket.names("metadata") or _states_of_folders(bucket, progress))
    if not rows.num_rows:
        raise BucketError(
            f"{bucket.source}: no articles there. A mirror of PMC's bucket holds inventory-reports/, metadata/ or "
            "folders such as PMC10009416.1/."
        )
    return _grouped(rows), inventory_date(manifest)


def parse_pmcids(pmcids: Iterable[str]) -> dict[int, set[int]]:
    """Numbers of articles, each with the versions that were asked for (none for all).

    Raises:
        BucketError: One that is no PMCID.
    """
    wanted: dict[int, set[int]] = {}
    numbers = pa.array([pmcid.strip() for pmcid in pmcids], pa.string())
    for pmcid, match in zip(numbers.to_pylist(), pc.extract_regex(numbers, _PMCID).to_pylist(), strict=True):
        if match is None:
            raise BucketError(f"{pmcid!r} is not a PMCID; they look like PMC10009416 or PMC10009416.1.")
        versions = wanted.setdefault(int(match["number"]), set())
        if match["version"]:
            versions.add(int(match["version"]))
    return wanted


def find_manifest(bucket: Bucket, inventory: str | None = None) -> str | None:
    """Key of an inventory's manifest; none where the source has no inventory.

    Args:
        bucket: The source.
        inventory: Name of the one to take; none for the newest.

    Raises:
        BucketError: There is no inventory of that name.
    """
    if inventory:
        key = f"{INVENTORY}/{inventory.strip('/')}/manifest.json"
        if bucket.state(key) is None:
            names = ", ".join(_inventory_names(bucket)) or "none"
            raise BucketError(
                f"{bucket.source}: no inventory {inventory!r}{bucket.refusal}; NLM keeps them {KEPT_DAYS} days. "
                f"There are: {names}."
            )
        return key
    for name in reversed(list(_inventory_names(bucket))):  # named by date, so the last is the newest
        key = f"{INVENTORY}/{name}/manifest.json"
        if bucket.state(key) is not None:
            return key
    return None


def inventory_date(manifest: str | None) -> str | None:
    """The date of an inventory, as it stands in its manifest's key."""
    return manifest.split("/")[-2] if manifest else None


def _inventory_names(bucket: Bucket) -> Iterator[str]:
    """Names that inventories have, oldest first; over HTTP, those that they could have."""
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
        raise  # the inventory may well be whole
    except (ObjectError, ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, zlib.error) as error:
        raise BucketError(
            f"{bucket.source}: the inventory {manifest} is damaged or incomplete ({error}). Copy it again, or remove "
            "inventory-reports/ to take the articles from metadata/."
        ) from error


def _read_table(bucket: Bucket, key: str, md5: str | None, columns: Sequence[str]) -> pa.Table:
    """One file of the inventory: gzipped CSV without a header, keys percent-encoded."""
    content = bucket.read(key)
    if md5 and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise ObjectError(f"{key}: the MD5 is not the one in the manifest, {md5}")
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
    """Rows of a table of keys and ETags that name an article version; other objects are left aside."""
    keys = table.column("Key")
    if pc.any(pc.match_substring(keys, "%")).as_py():
        keys = pa.chunked_array([[unquote(key) for key in keys.to_pylist()]], pa.string())
    names = pc.extract_regex(keys.combine_chunks(), _VERSION_NAME)
    found = pc.is_valid(names)
    names, states = names.filter(found), table.column("ETag").combine_chunks().filter(found)
    return pa.Table.from_arrays(
        [
            pc.struct_field(names, "number").cast(pa.int64()),
            pc.struct_field(names, "version").cast(pa.int32()),
            states.cast(pa.string()),
        ],
        schema=_ROWS,
    )


def _listed_rows(names: Mapping[str, str]) -> pa.Table:
    return _rows(pa.table({"Key": pa.array(names, pa.string()), "ETag": pa.array(names.values(), pa.string())}))


def _states_of_folders(bucket: Bucket, progress: bool) -> dict[str, str]:
    """The folders of articles, each with the state of the metadata in it: that of a folder itself says nothing."""
    names = [name for name in bucket.names("") if re.search(_VERSION_NAME, name)]
    with ThreadPoolExecutor(_REQUESTS_AT_A_TIME) as pool:
        states = pool.map(lambda name: bucket.state(f"{name}/{name}.json") or "missing", names)
        bar = tqdm(states, desc="Work list", unit="article", total=len(names), disable=not progress, delay=2)
        return dict(zip(names, bar, strict=True))


def _rows_of(bucket: Bucket, wanted: Mapping[int, set[int]], manifest: str | None, progress: bool) -> pa.Table:
    """Rows of the articles that were asked for; of those that the source does not hold, one without version."""
    if manifest:
        rows = _inventory_rows(bucket, manifest, progress)
        rows = rows.filter(pc.is_in(rows.column("number"), pa.array(wanted, pa.int64())))
        found = zip(*(rows.column(name).to_pylist() for name in _ROWS.names), strict=True)
        kept = [row for row in found if not wanted[row[0]] or row[1] in wanted[row[0]]]
    else:
        with ThreadPoolExecutor(_REQUESTS_AT_A_TIME) as pool:
            probed = pool.map(lambda item: list(_probe(bucket, *item)), wanted.items())
            bar = tqdm(probed, desc="Work list", unit="article", total=len(wanted), disable=not progress, delay=2)
            kept = [
                (number, version, state)
                for number, versions in zip(wanted, bar, strict=True)
                for version, state in versions
            ]
    missing = set(wanted) - {number for number, _, _ in kept}
    if len(missing) == len(wanted):
        raise BucketError(
            f"{bucket.source}: none of the {len(wanted)} PMCID(s) is there, such as PMC{min(missing)}{bucket.refusal}. "
            "Check --pmcids."
        )
    kept += [(number, None, None) for number in missing]
    return pa.Table.from_arrays([pa.array(column) for column in zip(*kept, strict=True)], schema=_ROWS)


def _probe(bucket: Bucket, number: int, versions: set[int]) -> Iterator[tuple[int, str]]:
    """Versions by asking for one after the other: listing a prefix of 8 million objects would take minutes."""
    version, gap = 1, 0
    while gap < _MAX_VERSION_GAP if not versions else version <= max(versions):
        if not versions or version in versions:
            name = f"PMC{number}.{version}"
            state = bucket.state(f"metadata/{name}.json") or bucket.state(f"{name}/{name}.json")
            gap = gap + 1 if state is None else 0
            if state is not None:
                yield version, state
        version += 1


def _grouped(rows: pa.Table) -> pa.Table:
    """Rows of versions as rows of articles."""
    rows = rows.sort_by([("number", "ascending"), ("version", "ascending")])
    numbers = rows.column("number").to_numpy()
    versions = rows.column("version").to_numpy(zero_copy_only=False)
    repeated = np.zeros(len(numbers), dtype=bool)
    repeated[1:] = (numbers[1:] == numbers[:-1]) & (versions[1:] == versions[:-1])
    if repeated.any():
        return _grouped(rows.filter(pa.array(~repeated)))
    starts = np.flatnonzero(np.concatenate([[True], numbers[1:] != numbers[:-1]]))
    present = pc.is_valid(rows.column("version")).to_numpy()
    edges = np.concatenate([[0], np.cumsum(np.add.reduceat(present, starts))]).astype(np.int32)
    kept = rows.filter(pa.array(present))
    states = pc.binary_join_element_wise(kept.column("version").cast(pa.string()), kept.column("state"), ":")
    return pa.Table.from_arrays(
        [
            pc.binary_join_element_wise("PMC", pa.array(numbers[starts]).cast(pa.string()), ""),
            pa.ListArray.from_arrays(edges, kept.column("version").combine_chunks()),
            pc.binary_join(pa.ListArray.from_arrays(edges, states.combine_chunks()), " "),
        ],
        schema=work_list_schema(),
    )
