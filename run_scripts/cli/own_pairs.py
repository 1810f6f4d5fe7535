"""Options of the user's own image-text pairs, which training and evaluation share."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from biomedclip.processing.images.folders import SPLIT_NAMES
from biomedclip.processing.images.sets import HUB
from biomedclip.processing.pairs import TEXT_COLUMN, Pairs, load_pairs

from .errors import UsageError
from .fields import image_root_option, option


COLUMNS = ("image_column", "text_column", "image_root", "group_column", "validation_fraction")


@dataclass
class OwnPairs:
    """Where the images and texts of own pairs are."""

    image_column: str | None = option(None, "Own pairs: column of the images or their paths (default: image).")
    text_column: str | None = option(None, f"Own pairs: column of the texts (default: {TEXT_COLUMN}).")
    image_root: str | None = image_root_option()
    group_column: str | None = option(
        None, "Own pairs: column of the patient or source. A group is not split into training and validation."
    )


def is_built(path: str, options: Any) -> bool:
    """Return whether a path is a dataset that `biomedclip build` wrote, or shards of the same form.

    Shards have the columns `image` and `caption`. If they have a `pair_id`, `biomedclip build` wrote them. Otherwise
    options for own pairs select other columns.

    Raises:
        UsageError: If an option for own pairs is set for a built dataset.
    """
    given = [name for name in COLUMNS if getattr(options, name, None) is not None]
    if "://" in path:
        return not (path.startswith(HUB) and given)
    root = Path(path)
    folders = (root / "data", root) if root.is_dir() else ()
    shards = [path for folder in folders for split in SPLIT_NAMES for path in folder.glob(f"{split}-*.parquet")]
    if not shards and not (root / ".build").exists():
        return False
    try:
        names = pq.read_schema(shards[0]).names if shards else []
    except (OSError, ValueError):  # the reader of shards explains the damage
        names = ["pair_id"]
    if shards and "pair_id" not in names and (given or not {"image", "caption"} <= set(names)):
        return False
    if given:
        raise UsageError(
            f"--{given[0].replace('_', '-')} has no effect on {path}, which biomedclip build wrote. Omit it."
        )
    return True


def load_own_pairs(
    path: str, options: Any, *, seed: int = 0, refused: Sequence[str] = (), columns: Sequence[str] = ()
) -> dict[str, Pairs]:
    """Load own pairs with the options of [`OwnPairs`] and `validation_fraction`.

    Raise `UsageError` if one of the options in `refused` is set, because only built datasets have it.
    """
    defaults = {known.name: known.default for known in dataclasses.fields(options)}
    for name in refused:
        if getattr(options, name) != defaults[name]:
            raise UsageError(
                f"--{name.replace('_', '-')} has no effect on {path}, only on a dataset that biomedclip build wrote. "
                "Omit it."
            )
    given = {name: getattr(options, name) for name in COLUMNS if getattr(options, name, None) is not None}
    return load_pairs(path, **given, seed=seed, columns=columns)
