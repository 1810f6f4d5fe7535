"""Read the Parquet shards of embeddings of one modality, and keep their embeddings in a memory-mapped file."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from tqdm.auto import tqdm


logger = logging.getLogger(__name__)

MODALITIES = {"image": "images", "text": "texts"}  # and the names of their shards
CACHE = ".index"  # hidden, so that `datasets` does not read its files
_VERSION = 1
_METADATA = "biomedclip."
_EMBEDDING = "embedding"
_REQUIRED = ("id", "path", _EMBEDDING)
_NOT_OWN = {*_REQUIRED, "modality", "image_md5", "error"}
_ROWS_AT_A_TIME = 8192


def modalities_in(folder: Path) -> list[str]:
    """Return the modalities that a folder has shards of."""
    return [modality for modality in MODALITIES if shard_paths(folder, modality)]


def shard_paths(folder: Path, modality: str) -> list[Path]:
    """Return the paths of the shards of a modality, by number."""
    found = (folder / "data").glob(f"{MODALITIES[modality]}-*.parquet")
    return sorted(found, key=lambda path: (len(path.name), path.name))


class EmbeddingShards:
    """The Parquet shards of one modality. Row n is counted over all shards.

    Args:
        folder: Folder that `biomedclip embed` wrote.
        modality: `image` or `text`.

    Attributes:
        metadata: Model, its fingerprints and dimension, from the metadata of the files.
        own_columns: Columns of the input that was embedded.
        starts: Number of the first row of each shard, and the number of all rows.
        schema: Names and types of all columns.

    Raises:
        ValueError: If a file is damaged, lacks a column, or was written with another model than the others.
    """

    def __init__(self, folder: Path, modality: str):
        self.folder, self.modality = folder, modality
        self.paths = shard_paths(folder, modality)
        self._files = [_open(path) for path in self.paths]
        schemas = [file.schema_arrow for file in self._files]
        for path, schema in zip(self.paths, schemas, strict=True):
            if missing := [name for name in _REQUIRED if name not in schema.names]:
                raise ValueError(f"{path}: no column {missing[0]!r}, so it has no embeddings of biomedclip embed.")
        self.metadata = _metadata(self.paths, schemas)
        try:
            plain = [schema.remove_metadata() for schema in schemas]
            self.schema = pa.unify_schemas(plain, promote_options="permissive")
        except pa.ArrowException as error:
            raise ValueError(f"{folder}: a column has different types in different shards ({error}).") from error
        self.own_columns = [name for name in self.schema.names if name not in _NOT_OWN]
        self.starts = [0, *accumulate(file.metadata.num_rows for file in self._files)]

    def __len__(self) -> int:
        return self.starts[-1]

    @cached_property
    def ids(self) -> pa.ChunkedArray:
        """Return the ids of all rows."""
        # Offsets of 32 bits would limit a column to 2 GiB.
        columns = [file.read(columns=["id"])["id"].cast(pa.large_string()) for file in self._files]
        return pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.large_string())

    def ids_of(self, rows: np.ndarray) -> list[str]:
        """Return the ids of rows."""
        return [str(name) for name in self.ids.take(pa.array(rows)).to_pylist()]

    def rows_of(self, name: str) -> np.ndarray:
        """Return the rows with an id."""
        equal = [pa.compute.equal(chunk, name).to_numpy(zero_copy_only=False) for chunk in self.ids.chunks]
        return np.flatnonzero(np.concatenate(equal)) if equal else np.empty(0, dtype=int)

    def matching(self, where: ds.Expression) -> np.ndarray:
        """Return for each row whether an expression is true. It is not if the expression is null."""
        found = ds.dataset([str(path) for path in self.paths], schema=self.schema).to_table(columns={"keep": where})
        return found["keep"].fill_null(False).to_numpy()

    def read_rows(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Return `id`, `path` and the own columns of rows."""
        names = ["id", "path", *self.own_columns]
        found: dict[int, dict[str, Any]] = {}
        ordered = np.unique(np.asarray(rows, dtype=np.int64))
        for shard, file in enumerate(self._files):
            start = self.starts[shard]
            present = [name for name in names if name in file.schema_arrow.names]
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                low, high = np.searchsorted(ordered, [start, start + count])
                if low < high:
                    chosen = ordered[low:high]
                    table = file.read_row_group(group, columns=present).take(pa.array(chosen - start))
                    found |= zip(chosen.tolist(), table.to_pylist(), strict=True)
                start += count
        return [{name: found[int(row)].get(name) for name in names} for row in rows]

    def embeddings(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield embeddings, and their rows. Rows whose embedding is missing or not finite are skipped."""
        dimension = self.metadata["dimension"]
        for path, file, start in zip(self.paths, self._files, self.starts, strict=False):
            for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=[_EMBEDDING]):
                column = batch.column(0)
                present = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
                values = column.flatten().to_numpy(zero_copy_only=False)
                if values.dtype not in (np.float16, np.float32) or values.size != len(present) * dimension:
                    raise ValueError(f"{path}: embeddings of {values.dtype}, or not of {dimension} values.")
                values = values.reshape(len(present), dimension)
                finite = np.isfinite(values).all(axis=1)
                yield values[finite], start + present[finite]
                start += len(batch)


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: damaged or not a Parquet file ({error}). Run biomedclip embed again.") from error


def _metadata(paths: Sequence[Path], schemas: Sequence[pa.Schema]) -> dict[str, Any]:
    """Return the entries of biomedclip in the metadata of all files. They must agree."""
    found = []
    for path, schema in zip(paths, schemas, strict=True):
        entries = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
        own = {
            key.removeprefix(_METADATA): value
            for key, value in entries.items()
            if key.startswith(_METADATA) and key != f"{_METADATA}precision"
        }
        if "weights" not in own or not own.get("dimension", "").isdigit():
            raise ValueError(f"{path}: the metadata name no model, so it has no embeddings of biomedclip embed.")
        found.append(own)
        if different := [key for key in ("weights", "processing", "dimension") if own.get(key) != found[0].get(key)]:
            raise ValueError(
                f"{path} and {paths[0].name} were written with different models ({different[0]}: "
                f"{own.get(different[0])} and {found[0].get(different[0])}). Embed all again with one model."
            )
    return found[0] | {"dimension": int(found[0]["dimension"])}


@dataclass(frozen=True)
class EmbeddingMatrix:
    """Embeddings in memory-mapped files.

    Args:
        embeds: Embeddings of shape `(embeddings, dimension)`, float16 or float32.
        rows: Row in the shards of each embedding, ascending.
        largest_norm: The largest L2 norm of an embedding.
        checksum: Checksum of the embeddings.
        folder: Folder of the files.
    """

    embeds: np.ndarray
    rows: np.ndarray
    largest_norm: float
    checksum: str
    folder: Path


def open_matrix(shards: EmbeddingShards) -> EmbeddingMatrix:
    """Open the cache of the embeddings of shards. It is written if it is missing, damaged or older than the shards.

    The cache belongs to shards with the same names, sizes and times of modification. Its checksum is verified when its
    own time of modification has changed. If the folder cannot be written, the cache is temporary.
    """
    folder = shards.folder / CACHE
    name = MODALITIES[shards.modality]
    if (matrix := _read_cache(folder, name, shards)) is not None:
        return matrix
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        logger.warning("%s: cannot be written (%s). Each search reads all shards again.", folder, error.strerror)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            return _write_cache(Path(temporary), name, shards)  # the maps stay valid after the files are deleted
    return _write_cache(folder, name, shards)


def _read_cache(folder: Path, name: str, shards: EmbeddingShards) -> EmbeddingMatrix | None:
    """Return the cache, or None if it does not fit the shards."""
    try:
        content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        if (content["version"], content["shards"]) != (_VERSION, _states(shards.paths)):
            return None
        arrays = []
        for kind in ("embeds", "rows"):
            path = folder / f"{name}_{kind}.npy"
            array = np.load(path, mmap_mode="c", allow_pickle=False)  # writable for torch, but the file is not changed
            expected = content[kind]
            if _state(path) != expected["state"] and _checksum(array) != expected["checksum"]:
                return None
            arrays.append(array)
        embeds, rows = arrays
        if embeds.shape != (len(rows), shards.metadata["dimension"]):
            return None
        return EmbeddingMatrix(embeds, rows, content["largest_norm"], content["embeds"]["checksum"], folder)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _write_cache(folder: Path, name: str, shards: EmbeddingShards) -> EmbeddingMatrix:
    paths = {kind: folder / f"{name}_{kind}.npy" for kind in ("embeds", "rows")}
    partial = {kind: path.with_name(f"{path.name}.{os.getpid()}.partial") for kind, path in paths.items()}
    states = _states(shards.paths)
    try:
        largest, checksums = _write_arrays(partial["embeds"], partial["rows"], shards)
        for kind, path in paths.items():
            os.replace(partial[kind], path)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
    content = {
        "version": _VERSION,
        "shards": states,
        "largest_norm": largest,
        **{kind: {"state": _state(path), "checksum": checksums[kind]} for kind, path in paths.items()},
    }
    description = folder / f"{name}.json.{os.getpid()}.partial"
    description.write_text(json.dumps(content), encoding="utf-8")
    os.replace(description, folder / f"{name}.json")
    embeds, rows = (np.load(paths[kind], mmap_mode="c") for kind in ("embeds", "rows"))
    return EmbeddingMatrix(embeds, rows, largest, checksums["embeds"], folder)


def _write_arrays(embeds_path: Path, rows_path: Path, shards: EmbeddingShards) -> tuple[float, dict[str, str]]:
    """Write the arrays without holding them in memory. Return the largest norm and the checksums."""
    digests = [hashlib.blake2b(digest_size=16) for _ in range(2)]
    dimension, count, largest = shards.metadata["dimension"], 0, 0.0
    kind = shards.schema.field(_EMBEDDING).type.value_type
    dtype: np.dtype = np.dtype("float16" if kind == pa.float16() else "float32")
    with embeds_path.open("wb") as embeds_file, rows_path.open("wb") as rows_file:
        headers: list[tuple[BinaryIO, np.dtype, tuple[int, ...]]] = [
            (embeds_file, dtype, (dimension,)),
            (rows_file, np.dtype(np.int64), ()),
        ]
        for file, of_file, rest in headers:
            _write_header(file, of_file, (0, *rest))
        progress = tqdm(total=len(shards), desc=f"Caching {MODALITIES[shards.modality]}", disable=None, leave=False)
        with progress:
            for values, rows in shards.embeddings():
                values, rows = np.ascontiguousarray(values, dtype=dtype), rows.astype(np.int64)
                if len(values):
                    largest = max(largest, float(np.linalg.norm(values.astype(np.float32), axis=1).max()))
                for file, digest, array in zip((embeds_file, rows_file), digests, (values, rows), strict=True):
                    digest.update(array.data)
                    file.write(array.data)
                count += len(values)
                progress.update(len(values))
        for file, of_file, rest in headers:  # NumPy pads the header, so that it has the same length for any count
            file.seek(0)
            _write_header(file, of_file, (count, *rest))
    return largest, {"embeds": digests[0].hexdigest(), "rows": digests[1].hexdigest()}


def _write_header(file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _states(paths: Sequence[Path]) -> list[list[Any]]:
    return [[path.name, *_state(path)] for path in paths]


def _state(path: Path) -> list[int]:
    """Return the size and the time of modification of a file."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _checksum(array: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, len(array), _ROWS_AT_A_TIME):
        digest.update(np.ascontiguousarray(array[start : start + _ROWS_AT_A_TIME]).data)
    return digest.hexdigest()
