"""Statistics of the shards. They are counted while each shard is written, and summed for the report."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..files import require_regular
from ..panels.image_types import GROUP_OF, UNKNOWN


CONTEXT_LENGTH = 256  # tokens that the model reads
LARGE_SIDE = 336  # pixels. The paper counts images above this size
# Kinds of rows of a dataset with panels.
COMPOUND, SINGLE, PANEL, NOT_EXAMINED = "compound figures", "single figures", "panels", "figures not examined"
_FORMATS = {"JPG": "JPEG", "TIF": "TIFF"}
_PERCENTILES = (5, 50, 90, 95, 99)
_BINS = 50

Counts = Mapping[str, Mapping[str, int]]


class ShardStatistics:
    """Counts over the rows of a shard. Caption lengths are in tokens of `tokenizer`, or else in words."""

    def __init__(self, tokenizer: str | None = None):
        self._tokenizer = load_tokenizer(tokenizer) if tokenizer else None
        names = ("licenses", "modes", "formats", "caption_lengths", "shorter_sides", "other")
        self._counters: dict[str, Counter[str]] = {name: Counter() for name in names}

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table with the columns of the dataset."""
        text = {name: table.column(name).to_pylist() for name in ("license", "mode", "caption", "panel")}
        paths = pc.struct_field(table.column("image"), "path").to_pylist()
        sides = pc.min_element_wise(table.column("width"), table.column("height")).to_pylist()
        mentions = pc.fill_null(pc.list_value_length(table.column("mentions")), 0)
        kinds = self._add_panels(table) if "compound" in table.column_names else [None] * table.num_rows
        self._counters["licenses"].update(str(code) for code in text["license"])
        self._counters["modes"].update(text["mode"])
        self._counters["formats"].update(map(_format, paths))
        self._counters["caption_lengths"].update(map(str, self._lengths(text["caption"])))
        self._counters["shorter_sides"].update(map(str, sides))
        self._counters["other"].update(
            pairs=table.num_rows,
            with_mentions=pc.sum(pc.greater(mentions, 0)).as_py(),
            mentions=pc.sum(mentions).as_py(),
            panels=sum(kind == PANEL or panel is not None for kind, panel in zip(kinds, text["panel"], strict=True)),
            animated=pc.sum(pc.greater(table.column("frames"), 1)).as_py(),
        )

    def _add_panels(self, table: pa.Table) -> list[str]:
        """Count the rows by kind, and the images that are not compound by type. Return the kind of each row."""
        names = ("compound", "pair_id", "figure_pair_id", "image_type", "caption_match")
        columns = {name: table.column(name).to_pylist() for name in names}
        kinds = list(map(kind_of_row, *(columns[name] for name in names[:3])))
        for name in ("kinds", "image_types", "caption_matches"):
            self._counters.setdefault(name, Counter())
        for kind, image_type, match in zip(kinds, columns["image_type"], columns["caption_match"], strict=True):
            self._counters["kinds"][kind] += 1
            if kind in (SINGLE, PANEL):
                self._counters["image_types"][image_type or UNKNOWN] += 1
            if kind == PANEL:
                self._counters["caption_matches"][match] += 1
        return kinds

    def counts(self) -> Counts:
        """Return all counts, ready for JSON."""
        return {name: dict(counter) for name, counter in self._counters.items()}

    def _lengths(self, captions: list[str]) -> list[int]:
        if self._tokenizer is None:
            return [len(caption.split()) for caption in captions]
        return [len(ids) for ids in self._tokenizer(captions, verbose=False)["input_ids"]]


def kind_of_row(compound: bool | None, pair_id: str, figure_pair_id: str | None) -> str:
    """Return the kind of a row of a dataset with panels."""
    if compound is None:
        return NOT_EXAMINED
    if compound:
        return COMPOUND
    return SINGLE if figure_pair_id in (None, pair_id) else PANEL


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer that measures caption lengths.

    Raises:
        ValueError: If the tokenizer cannot be loaded.
    """
    from transformers import AutoTokenizer

    local = Path(name)
    if name.startswith(("/", ".")) and not local.exists():
        raise ValueError(f"`caption_tokenizer`: the folder {name} does not exist.")
    for file in local.iterdir() if local.is_dir() else [local] if local.exists() else []:
        if not file.is_dir():
            require_regular(file)
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        message = f"`caption_tokenizer`: {name} is neither a folder with a tokenizer nor one on the Hub ({reason})"
        raise ValueError(message) from error


def summarize(shards: Iterable[Counts], tokenizer: str | None) -> dict[str, Any]:
    """Return counts, percentiles and histograms for the report, from the [`ShardStatistics.counts`] of all shards."""
    totals: dict[str, Counter[str]] = {}
    for counts in shards:
        for name, counter in counts.items():
            totals.setdefault(name, Counter()).update(counter)
    other, lengths, sides = totals["other"], totals["caption_lengths"], totals["shorter_sides"]
    return {
        "pairs": other["pairs"],
        **{name: dict(totals[name].most_common()) for name in ("licenses", "modes", "formats")},
        "mentions": {"pairs_with": other["with_mentions"], "paragraphs": other["mentions"]},
        "panels": other["panels"],
        "animated": other["animated"],
        "caption_length": {
            "unit": "tokens" if tokenizer else "words",
            "tokenizer": tokenizer,
            f"within_{CONTEXT_LENGTH}": _fraction(lengths, lambda values: values <= CONTEXT_LENGTH),
            **_distribution(lengths),
        },
        "image_size": {
            "unit": "pixels of the shorter side",
            f"above_{LARGE_SIDE}": _fraction(sides, lambda values: values > LARGE_SIDE),
            **_distribution(sides),
        },
        **({"composition": _composition(totals)} if "kinds" in totals else {}),
    }


def _composition(totals: Mapping[str, Counter[str]]) -> dict[str, Any]:
    groups: Counter[str] = Counter()
    for name, count in totals["image_types"].items():
        groups[GROUP_OF.get(name, name)] += count
    return {
        "rows": dict(totals["kinds"].most_common()),
        "image_types": dict(totals["image_types"].most_common()),
        "image_groups": dict(groups.most_common()),
        "caption_match_of_panels": dict(totals["caption_matches"].most_common()),
    }


def _format(path: str | None) -> str:
    suffix = PurePosixPath(path or "").suffix[1:].upper()
    return _FORMATS.get(suffix, suffix)


def _values(counter: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the values in ascending order, and the number of times that each occurs."""
    items = sorted((int(value), count) for value, count in counter.items())
    return np.array([value for value, _ in items]), np.array([count for _, count in items])


def _fraction(counter: Mapping[str, int], condition: Callable[[np.ndarray], np.ndarray]) -> float:
    values, counts = _values(counter)
    return round(float(counts[condition(values)].sum() / counts.sum()), 4)


def _distribution(counter: Mapping[str, int]) -> dict[str, Any]:
    """Return the mean, percentiles by nearest rank, and a histogram up to the 99.5th percentile."""
    values, counts = _values(counter)
    ranks = np.cumsum(counts) / counts.sum()

    def percentile(percent: float) -> int:
        return int(values[np.searchsorted(ranks, percent / 100 - 1e-12)])

    top = max(percentile(99.5), 1)
    step = max(1, -(-top // _BINS))
    edges = np.arange(0, top + step + 1, step)
    histogram, _ = np.histogram(np.minimum(values, edges[-1]), bins=edges, weights=counts)
    return {
        "mean": round(float((values * counts).sum() / counts.sum()), 1),
        "percentiles": {str(percent): percentile(percent) for percent in _PERCENTILES},
        "largest": int(values[-1]),
        "histogram": {"edges": edges.tolist(), "counts": histogram.astype(int).tolist()},
    }
