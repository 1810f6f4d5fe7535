"""Open datasets of the `datasets` library: saved on disk, as Parquet or Arrow files, or on the Hub."""

import glob
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ..tables import read_text
from .folders import SPLIT_NAMES, shown_name
from .tables import named_columns


HUB = "hf://datasets/"


@dataclass(frozen=True)
class LazyImages(Sequence[Any]):
    """Images that are read on each access. `read` receives the number of the row."""

    rows: Sequence[int]
    read: Callable[[int], Any]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: Any) -> Any:
        return self.read(self.rows[position])


def is_saved_set(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote a folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json"))


def open_hub_set(name: str, accepted: str) -> Any:
    """Download a dataset from the Hub, or open it in the cache. `accepted` is the accepted data, for messages."""
    import datasets

    hub_id = re.sub(r"^hf:/+datasets/", "", name)  # pathlib joins the slashes
    if os.path.exists(name):
        raise ValueError(f"{name} is a file. Pass {accepted}.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id) or hub_id.startswith((".", "~")):
        problem = "URLs are not opened" if "://" in hub_id else "the folder does not exist"
        raise FileNotFoundError(f"{name}: {problem}. Pass {accepted}.")
    try:
        return datasets.load_dataset(hub_id)
    except OSError as error:
        raise FileNotFoundError(f"{name} is neither a folder nor a dataset on the Hub ({error}).") from error


def open_parquet_set(root: Path) -> Any:
    """Open a folder of Parquet or Arrow files."""
    import datasets

    for file in (root / "README.md", root / ".huggingface.yaml"):
        if file.is_file():
            _refuse_data_elsewhere(file)
    return datasets.load_dataset(str(root))


def open_parquet_file(path: Path) -> Any:
    """Open a single Parquet file. `datasets` copies it into its cache for random access."""
    import datasets

    return datasets.load_dataset("parquet", data_files={"train": glob.escape(str(path.resolve()))})


def open_saved_set(root: Path) -> Any:
    """Open a dataset that `save_to_disk` wrote. Its files must be in their original locations."""
    import datasets

    for state in root.rglob("state.json"):
        for file in json.loads(read_text(state)).get("_data_files") or []:
            _check_is_name(str(file.get("filename")), state, "file")
    for file in root.glob("dataset_dict.json"):
        for name in json.loads(read_text(file)).get("splits") or []:
            _check_is_name(str(name), file, "split")
    return datasets.load_from_disk(str(root))


def _check_is_name(name: str, file: Path, what: str) -> None:
    if name in (".", "..") or name != os.path.basename(name.replace("\\", "/")):
        raise ValueError(f"{file}: the {what} {shown_name(name[:200])!r} is not in the same folder.")


def _refuse_data_elsewhere(file: Path) -> None:
    """Check that the settings in a file do not refer to data outside its folder, which `datasets` would load."""
    text = file.read_text(encoding="utf-8", errors="replace")
    parts = re.split(r"^---\s*$", text, maxsplit=2, flags=re.MULTILINE) if file.suffix == ".md" else ["", text]
    try:
        settings = yaml.safe_load(parts[1]) if len(parts) > 1 else None
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: the header is not YAML: {error}") from error
    configs = settings.get("configs") if isinstance(settings, dict) else None
    for config in configs if isinstance(configs, list) else [configs]:
        for key in ("data_files", "data_dir"):
            for place in _texts_in(config.get(key) if isinstance(config, dict) else None):
                if "://" in place or "::" in place or Path(place).is_absolute() or ".." in Path(place).parts:
                    raise ValueError(
                        f"{file}: {key} refers to {place!r}, which is outside the folder. Remove it, or copy the data "
                        "into the folder."
                    )


def _texts_in(value: Any) -> Iterator[str]:
    """Yield the strings in a nested value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts_in(item)


def sets_by_split(opened: Any, path: str, columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `datasets.Dataset` of each split.

    Raises:
        ValueError: If there are several splits but no training split, or if a column is missing. `columns` has the
            columns by the name of the argument that selects them.
    """
    by_name: Mapping[str, Any] = opened if isinstance(opened, Mapping) else {"train": opened}
    found = {split: by_name[name] for split, names in SPLIT_NAMES.items() for name in names if name in by_name}
    if "train" not in found:
        if len(by_name) != 1:
            raise ValueError(f"{path}: there is no train split. The splits are {', '.join(by_name)}.")
        found = {"train": next(iter(by_name.values()))}
    for split, rows in found.items():
        for argument, column in named_columns(columns):
            if column not in rows.column_names:
                raise ValueError(
                    f"{path}: the {split} split has no column {column!r}. The columns are "
                    f"{', '.join(rows.column_names)}. Pass {argument.split()[0]}."
                )
    return found


def images_of(rows: Any, image_column: str, *, downloaded: bool = False) -> Sequence[Any]:
    """Return the images of a `datasets.Dataset` without decoding them. They are read on access."""
    import datasets

    if isinstance(rows.features[image_column], datasets.Image):
        rows = rows.cast_column(image_column, datasets.Image(decode=False))
    images: Sequence[Any] = rows[image_column]
    return LazyImages(range(len(rows)), partial(_downloaded_image, images)) if downloaded else images


def _downloaded_image(images: Sequence[Any], row: int) -> Any:
    """Return an image of a Hub dataset, whose rows may contain paths of image files in the caches."""
    import datasets
    from huggingface_hub import constants

    image = images[row]
    if not isinstance(image, dict) or image.get("bytes") is not None or not image.get("path"):
        return image
    file = Path(image["path"]).resolve()
    caches = (constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH)
    # A path outside the caches is left as a path in a row, which is never opened.
    return file if any(file.is_relative_to(Path(cache).resolve()) for cache in caches) else image


def labels_of(rows: Any, column: str, where: str, what: str = "label") -> list[str]:
    """Return the label of each row, or the group if `what` is `group`. A missing value is a `ValueError`."""
    feature, values = rows.features[column], list(rows[column])
    names: Any = getattr(feature, "names", None)
    unusual = Counter(type(value).__name__ for value in values if not isinstance(value, str | int | float | None))
    if unusual:
        raise ValueError(f"{where}: {column!r} contains {', '.join(unusual)}, not one {what} for each image.")
    labels = [value.strip() if isinstance(value, str) else value for value in values]
    missing = [row for row, value in enumerate(labels) if _is_missing(value, names)]
    if missing:
        raise ValueError(
            f"{where}: {len(missing)} of {len(values)} rows have no {what} in {column!r}, the first is row "
            f"{missing[0]}. Filter them out."
        )
    return [names[value] if names is not None else str(value) for value in labels]


def _is_missing(value: Any, names: Sequence[str] | None) -> bool:
    if names is not None and isinstance(value, int):
        return value < 0  # test splits of competitions use -1 for hidden labels
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))
