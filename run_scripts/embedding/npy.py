"""Write the embeddings of all shards as one NumPy file."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from biomedclip.processing.files import replacing
from biomedclip.processing.images.folders import shown_name

from .shards import shard_paths


EMBEDDINGS, IDS, METADATA = "embeddings.npy", "ids.txt", "metadata.parquet"


def write_npy(folder: Path) -> int:
    """Write `embeddings.npy`, and `ids.txt` and `metadata.parquet` with the same rows. Return the number of rows.

    The rows are in the order of the shards: images, then texts. Rows with an error are left out. Only one shard is in
    memory at a time.
    """
    paths = shard_paths(folder)
    schemas = [pq.read_schema(path) for path in paths]
    count = sum(pq.read_table(path, columns=["error"])["error"].null_count for path in paths)
    kind = schemas[0].field("embedding").type
    columns = pa.unify_schemas([schema.remove_metadata() for schema in schemas], promote_options="permissive")
    columns = columns.remove(columns.get_field_index("embedding"))
    with ExitStack() as stack:
        partial = [stack.enter_context(replacing(folder / name)) for name in (EMBEDDINGS, IDS, METADATA)]
        embeddings = stack.enter_context(partial[0].open("xb"))
        ids = stack.enter_context(partial[1].open("x", encoding="utf-8", newline="\n"))
        metadata = stack.enter_context(pq.ParquetWriter(partial[2], columns))
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(kind.value_type.to_pandas_dtype())),
            "fortran_order": False,
            "shape": (count, kind.list_size),
        }
        np.lib.format.write_array_header_1_0(embeddings, header)
        for path in paths:
            table = pq.read_table(path)
            table = table.filter(pc.is_null(table["error"]))
            for chunk in table["embedding"].chunks:
                embeddings.write(np.ascontiguousarray(chunk.flatten().to_numpy(zero_copy_only=False)).tobytes())
            ids.writelines(f"{shown_name(name)}\n" for name in table["id"].to_pylist())
            missing = [entry for entry in columns if entry.name not in table.column_names]
            for entry in missing:
                table = table.append_column(entry, pa.nulls(table.num_rows, entry.type))
            metadata.write_table(table.select(columns.names).cast(columns))
    return count
