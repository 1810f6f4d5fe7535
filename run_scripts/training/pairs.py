"""The pairs of a training run: a dataset that `biomedclip build` wrote, or the user's own table or dataset."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from biomedclip.processing import PairStream, load_pmc15m
from biomedclip.processing.row_selection import PANEL_CHOICES, RowSelection
from biomedclip.processing.shard_reader import TRAINING_COLUMNS, Text, column_names
from biomedclip.processing.streaming import BatchStream

from ..cli.errors import UsageError
from ..cli.fields import option
from ..cli.own_pairs import OwnPairs, is_built, load_own_pairs
from ..cli.reporting import say
from ..evaluation.pools import TRAINING_POOL_SEED, draw_pool


@dataclass
class PairHandling(OwnPairs):
    """Which pairs are used, and how they are read."""

    validation_fraction: float | None = option(
        None, "Fraction of own pairs to hold out if there is no validation split, 0 for none (default: 0.1)."
    )
    licenses: str | None = option(
        None,
        "Licenses of the training pairs: commercial, noncommercial, all, or codes such as 'CC BY,CC0' (default: all).",
    )
    image_types: list[str] | None = option(
        None, "Types or groups of training images, such as radiology PET (default: all). Needs a dataset of panels."
    )
    panels: str | None = option(
        None,
        "Training pairs of a dataset of panels: figures and panels, only panels and single figures, or no panels.",
        PANEL_CHOICES,
    )
    text: Text = option(
        "caption",
        "Text of a training pair: caption, a paragraph that mentions the figure, or both.",
        list(get_args(Text)),
    )
    on_bad_row: str = option(
        "substitute",
        "How to handle rows that cannot be decoded: raise an error, or substitute another row (counted).",
        ["raise", "substitute"],
    )
    fast_decode: bool = option(
        True,
        "Decode training JPEGs at a reduced size (default: true). Pixels differ by one of 255 levels on average from "
        "exact decoding, which takes longer.",
    )
    max_eval_pairs: int = option(2000, "Maximum number of validation pairs, the same in all runs (default: 2000).")

    def __post_init__(self):
        RowSelection.of(self.licenses, self.image_types, self.panels)
        if self.max_eval_pairs < 1:
            raise ValueError(f"--max-eval-pairs must be at least 1, not {self.max_eval_pairs}.")
        if self.validation_fraction is not None and not 0 <= self.validation_fraction < 1:
            raise ValueError(f"--validation-fraction {self.validation_fraction} must be at least 0 and less than 1.")


@dataclass
class TrainingPairs:
    """The training stream and the validation pairs of a run.

    `facts` are entries of `train_results.json` on the user's own pairs.
    """

    path: str
    handling: PairHandling
    stream: BatchStream
    validation: Any = None
    facts: dict[str, Any] | None = None

    def captions(self) -> Iterator[str]:
        """Yield the texts of the training pairs, without reading images."""
        if self.facts is not None:
            yield from self.stream["caption"]  # type: ignore[index]
            return
        captions = training_pairs(self.path, self.handling, self.stream.seed, columns=["caption"])
        for start in range(0, len(captions), 1000):
            yield from (row["caption"] for row in captions.rows(0, start, start + 1000))


def open_pairs(path: str, handling: PairHandling, seed: int, *, evaluates: bool) -> TrainingPairs:
    """Open the pairs of a run. Without evaluation, there are no validation pairs.

    Raises:
        FileNotFoundError: If the data does not exist or is incomplete.
        UsageError: If an option has no effect on this data.
        ValueError: If the data is invalid, or there is no validation split for the evaluation.
    """
    if is_built(path, handling):
        pairs = TrainingPairs(path, handling, training_pairs(path, handling, seed))
        pairs.validation = validation_pairs(path, handling.max_eval_pairs) if evaluates else None
        return pairs
    splits = load_own_pairs(path, handling, seed=seed, refused=("licenses", "image_types", "panels", "text"))
    train, validation = splits["train"], splits.get("validation")
    if evaluates and validation is None:
        raise ValueError(
            f"{path}: --validation-fraction 0 leaves no pairs for evaluation. Choose a larger fraction, or pass "
            "--eval-strategy no."
        )
    facts = {
        "pairs_without_text": len(train.empty_texts),
        "held_out_pairs": len(validation) if validation is not None and train.held_out else 0,
        "notes": list(train.notes),
    }
    if handling.group_column is not None:
        if validation is None or not train.held_out:
            raise UsageError("--group-column has no effect, because no pairs are held out for validation. Omit it.")
        facts |= {"training_groups": len(set(train.row_groups()))}
        facts |= {"held_out_groups": len(set(validation.row_groups()))}
    chosen = _at_most(validation, handling.max_eval_pairs) if evaluates else None
    return TrainingPairs(path, handling, train, chosen, facts)


def training_pairs(
    path: str, handling: PairHandling, seed: int, columns: Sequence[str] = TRAINING_COLUMNS
) -> PairStream:
    """Return the stream of the training pairs. A dataset from another source may lack `pair_id`."""
    available = column_names(path, "train")
    columns = [name for name in columns if name in available or name != "pair_id"]
    selected = {name: getattr(handling, name) for name in ("licenses", "image_types", "panels", "text")}
    return PairStream(path, "train", seed=seed, columns=columns, **selected)


def validation_pairs(path: str, limit: int) -> Any:
    """Return at most `limit` validation pairs, the same ones in all runs. The collator decodes the images."""
    columns = [name for name in column_names(path, "validation") if name in TRAINING_COLUMNS]
    return _at_most(load_pmc15m(path, "validation", streaming=False, columns=columns, decode=False), limit)


def _at_most(pairs: Any, limit: int) -> Any:
    return pairs if limit >= len(pairs) else pairs.select(draw_pool(len(pairs), limit, seed=TRAINING_POOL_SEED))


def say_selection(pairs: TrainingPairs) -> None:
    """Print how the pairs were selected, in the first process."""
    for note in (pairs.facts or {}).get("notes", []):
        say(note)
