"""Write and read shards of embeddings: `data/images-00000.parquet`, `data/texts-00000.parquet`, ...

A shard has the columns `id`, `path` (null for rows of datasets), `modality`, `embedding` (L2-normalized; null if
`error` is set), `image_md5` (of the bytes of the image) and `error`, followed by the columns of the input. The
metadata of its file has the name, the weights and the settings of the model.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from biomedclip.processing.files import replacing


DATA = "data"
MODALITIES = {"image": "images", "text": "texts"}  # modality and prefix of its shards
DTYPES = ("float32", "float16")
_OWN = ("id", "path", "modality", "embedding", "image_md5", "error")
_METADATA = "biomedclip."
_NUMBER = re.compile(r"-(\d{5,})\.parquet")


@dataclass
class EmbeddedRow:
    """A row of a shard. `embedding` has shape `(dimension,)`, and is None if `error` is set."""

    id: str
    path: str | None
    columns: Mapping[str, Any]
    embedding: np.ndarray | None = None
    image_md5: str | None = None
    error: str | None = None


class ShardWriter:
    """Write the shards of one modality. The same rows always give the same bytes.

    Args:
        folder: Output folder, which contains `data`.
        modality: `image` or `text`.
        columns: Names and types of the columns of the input. `id`, if it is the id of the rows, and `image_md5` are not
            repeated. Another name that a shard has itself gets the prefix `input_`.
        dtype: `float32` or `float16`.
        metadata: Model and settings, with `dimension`.
    """

    def __init__(self, folder: Path, modality: str, columns: pa.Schema, dtype: str, metadata: Mapping[str, Any]):
        self._folder, self._modality, self._dtype = folder, modality, dtype
        self._dimension = int(metadata["dimension"])
        self._names = stored_names(columns)
        embedding = pa.list_(pa.float16() if dtype == "float16" else pa.float32(), self._dimension)
        own = [(name, embedding if name == "embedding" else pa.string()) for name in _OWN]
        others = [(stored, columns.field(name).type) for name, stored in self._names.items()]
        self._metadata = {f"{_METADATA}{name}": str(value) for name, value in metadata.items()}
        self.schema = pa.schema([*own, *others], metadata=self._metadata)

    def path(self, number: int) -> Path:
        """Return the path of a shard."""
        return shard_path(self._folder, self._modality, number)

    def is_complete(self, number: int) -> bool:
        """Return whether a shard exists, can be read, and was written with the same model and settings."""
        try:
            file = pq.read_metadata(self.path(number))
        except (OSError, pa.ArrowException):
            return False
        found = {key.decode(): value.decode() for key, value in (file.metadata or {}).items()}
        return self._metadata.items() <= found.items()

    def write(self, number: int, rows: Sequence[EmbeddedRow]) -> None:
        """Write a shard. Other processes see the complete file or none."""
        values = np.zeros((len(rows), self._dimension), dtype=self._dtype)
        for place, row in enumerate(rows):
            if row.embedding is not None:
                values[place] = row.embedding
        missing = pa.array([row.embedding is None for row in rows], pa.bool_())
        columns: dict[str, Any] = {
            "id": [storable(row.id) for row in rows],
            "path": [storable(row.path) for row in rows],
            "modality": [self._modality] * len(rows),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), self._dimension, mask=missing),
            "image_md5": [row.image_md5 for row in rows],
            "error": [storable(row.error) for row in rows],
            **{stored: [row.columns.get(name) for row in rows] for name, stored in self._names.items()},
        }
        arrays = [
            column if isinstance(column := columns[entry.name], pa.Array) else pa.array(column, entry.type)
            for entry in self.schema
        ]
        with replacing(self.path(number)) as partial:
            # Embeddings have no repeated values.
            repeated = [entry.name for entry in self.schema if entry.name != "embedding"]
            pq.write_table(pa.table(arrays, self.schema), partial, compression="zstd", use_dictionary=repeated)


def check_written(folder: Path, modality: str, numbers: Iterable[int]) -> None:
    """Raise `FileNotFoundError` if this process cannot see a shard that another process has written."""
    for number in numbers:
        if not (path := shard_path(folder, modality, number)).is_file():
            raise FileNotFoundError(f"{path} is missing here. Processes on several machines need a shared --output.")


def stored_names(columns: pa.Schema) -> dict[str, str]:
    """Return the name in a shard of each column of the input."""
    left_out = {"image_md5"} if "pair_id" in columns.names else {"image_md5", "id"}
    return {name: f"input_{name}" if name in _OWN else name for name in columns.names if name not in left_out}


def storable(text: str | None) -> str | None:
    """Return a text that UTF-8 can represent. Bytes of a file name that are not UTF-8 become escapes."""
    if text is None:
        return None
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shard_path(folder: Path, modality: str, number: int) -> Path:
    """Return the path of a shard in an output folder."""
    return folder / DATA / f"{MODALITIES[modality]}-{number:05}.parquet"


def shard_numbers(folder: Path, modality: str) -> list[int]:
    """Return the numbers of the shards of a modality, ascending."""
    paths = (folder / DATA).glob(f"{MODALITIES[modality]}-*.parquet")
    return sorted(int(match[1]) for path in paths if (match := _NUMBER.search(path.name)))


def shard_paths(folder: Path, modality: str | None = None) -> list[Path]:
    """Return the paths of the shards: those of images, then those of texts, or those of one modality."""
    return [
        shard_path(folder, kind, number)
        for kind in ([modality] if modality else MODALITIES)
        for number in shard_numbers(folder, kind)
    ]


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a shard: `model`, `weights`, `processing`, `precision` and `dimension`."""
    metadata = pq.read_schema(path).metadata or {}
    return {
        key.decode().removeprefix(_METADATA): value.decode()
        for key, value in metadata.items()
        if key.startswith(_METADATA.encode())
    }


def read_errors(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the id and the error of each row that has no embedding."""
    for path in shard_paths(folder):
        table = pq.read_table(path, columns=["id", "error"])
        found = table.filter(table["error"].is_valid())
        yield from zip(found["id"].to_pylist(), found["error"].to_pylist(), strict=True)


def count_rows(folder: Path) -> int:
    """Return the number of rows of all shards."""
    return sum(pq.read_metadata(path).num_rows for path in shard_paths(folder))
