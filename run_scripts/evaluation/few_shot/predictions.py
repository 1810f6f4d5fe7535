"""The table of the predictions of all fits, in long form."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from biomedclip.processing.images.labeled import LabeledImages

from ..predictions import PredictionTable, Rows
from ..zero_shot import predictions_of
from .learner import ALL, Part


MOST_VALUES = 10_000_000  # probabilities in the table, about 100 MB of CSV
Key = tuple[str, int, int]  # method, shots, seed


def written_fits(keys: Sequence[Key], images: int, classes: int) -> tuple[list[Key], str]:
    """Return the fits whose predictions are written, and what they are.

    These are all fits. If all have more than `MOST_VALUES` probabilities, it is the first draw of the largest number of
    shots.
    """
    if len(keys) * images * classes <= MOST_VALUES:
        return list(keys), "all fits"
    shots, seed = max(key[1] for key in keys), min(key[2] for key in keys)
    chosen = [key for key in keys if key[1] in (0, shots) and key[2] == seed]
    return chosen, f"the draw with seed {seed} and {shots} shots, because there are more than {MOST_VALUES:,} values"


def prediction_table(
    fits: Sequence[Mapping[str, Any]],
    scores: Callable[[Mapping[str, Any], str], np.ndarray],
    parts: Sequence[Part],
    images: LabeledImages,
    classes: Sequence[str],
) -> PredictionTable:
    """Return the table of `predictions.parquet`: the usual columns, after `method`, `shots` and `draw`.

    `draw` is the seed of the draw, and `shots` and `draw` are null for the zero-shot classifier. With base and novel
    classes, `part` states to which of them an image belongs, and the probabilities of the other part are null.

    Args:
        fits: The fits in the order of the table.
        scores: Returns the scores of a fit and a part. They are read when the rows are read.
        parts: The parts of the test images.
        images: The test images.
        classes: All classes.
    """
    usual = predictions_of(images.select([]), np.empty((0, len(classes))), classes).table().schema
    lead = [pa.field("method", pa.string()), pa.field("shots", pa.int64()), pa.field("draw", pa.int64())]
    several = [part.name for part in parts] != [ALL]
    schema = pa.schema([*lead, *([pa.field("part", pa.string())] if several else []), *usual])

    def rows() -> Iterator[dict[str, Any]]:
        for fit in fits:
            drawn = fit["shots"] > 0
            of_fit: dict[str, Any] = dict.fromkeys(schema.names) | {"method": fit["method"]}
            of_fit |= {"shots": fit["shots"] if drawn else None, "draw": fit["seed"] if drawn else None}
            for part in parts:
                names = [classes[number] for number in part.classes]
                found = predictions_of(images.select(part.rows), scores(fit, part.name), names)
                yield from (of_fit | ({"part": part.name} if several else {}) | dict(row) for row in found.table().rows)

    return PredictionTable(Rows(rows), schema)
