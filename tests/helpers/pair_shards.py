"""Write small datasets like `biomedclip build`, with licenses, mentions and several row groups."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from helpers.mirror_writer import png_bytes

from biomedclip.processing.pmc.shards import pair_schema


LICENSES = ("CC BY", "CC BY-NC", "CC0", "CC BY-NC-ND", "CC BY-NC-SA")


def pair_row(number: int, image_size: tuple[int, int] = (8, 6)) -> dict[str, Any]:
    """Return a pair with 0 to 3 mentions, under one of five licenses."""
    return {
        "pair_id": f"PMC{number}.1/F1/g1",
        "image": {"bytes": png_bytes(number, image_size), "path": f"g{number}.png"},
        "caption": f"Caption {number}.",
        "mentions": [f"Mention {n} of figure {number}." for n in range(number * 7 % 4)],
        "pmcid": f"PMC{number}",
        "license": LICENSES[number * number % 11 % 5],
    }


def write_shards(
    folder: Path,
    *,
    shards: int = 6,
    rows: int = 25,
    rows_per_group: int = 10,
    image_size: tuple[int, int] = (8, 6),
    split: str = "train",
) -> Path:
    """Write `shards` files of `rows` pairs each to `folder/data`. Pair n has position n in the split."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        numbers = range(shard * rows, (shard + 1) * rows)
        table = pa.Table.from_pylist([pair_row(number, image_size) for number in numbers], schema=pair_schema())
        path = folder / "data" / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
        pq.write_table(table, path, row_group_size=rows_per_group)
    return folder
