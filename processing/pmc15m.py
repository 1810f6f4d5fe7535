"""Load a built dataset with `datasets` for reading and analysis. Training reads batches from [`PairStream`] instead."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import fsspec

from .images.reading import MAX_NAME
from .row_selection import Panels, RowSelection
from .shard_reader import Shard, ShardReader, Text, shard_paths
from .streaming import epoch_order


if TYPE_CHECKING:
    import datasets


def load_pmc15m(
    path: str | os.PathLike[str],
    split: str = "train",
    *,
    streaming: bool = True,
    columns: Sequence[str] | None = None,
    decode: bool = True,
    licenses: str | Collection[str] | None = None,
    image_types: str | Collection[str] | None = None,
    panels: Panels | None = None,
    text: Text = "caption",
    seed: int | None = None,
    epoch: int = 0,
    start: int = 0,
    storage_options: Mapping[str, Any] | None = None,
) -> "datasets.IterableDataset | datasets.Dataset":
    r"""Load a split of a built dataset with `datasets`.

    `datasets.distributed.split_dataset_by_node` and `DataLoader` distribute the shards of the streaming dataset. Each
    row is returned once, but the composition of batches depends on the number of processes and workers. Use
    [`PairStream`] if batches must be the same for any number of them.

    `state_dict` and `load_state_dict` of the streaming dataset are exact. `set_epoch` shuffles the shards in an order
    that `datasets` defines. To get the order of [`PairStream`], pass `seed` and `epoch` instead.

    Args:
        path: The folder that `biomedclip build` wrote: local, on the Hub (`hf://datasets/org/name`) or on S3
            (`s3://...`).
        split: `train`, `validation` or `test`.
        streaming: Read rows on request. If `False`, copy the rows to the cache of `datasets` and return a dataset with
            random access.
        columns: Columns to read (default: all).
        decode: Decode images with [`read_image`]. If `False`, `image` contains the bytes of the file.
        licenses: Read only pairs under these licenses: `commercial`, `noncommercial` (all Creative Commons licenses),
            `all`, codes such as `"CC BY,CC0"`, or a list of codes (default: `all`).
        image_types: Read only images of these types or groups, such as `"radiology"` or `["PET", "microscopy"]`. The
            type of a compound figure is that of most of its area. Requires a dataset with panels.
        panels: `only` reads panels and single figures, `none` reads figures, `also` reads both. All require a dataset
            with panels, which `biomedclip build --panels also` builds (default: all rows of any dataset).
        text: The text to return as `caption`. `caption` returns the caption. `mentions` returns a paragraph of the
            article that cites the figure, chosen by seed, epoch and `pair_id`, or the caption if there is none.
            `caption_and_mentions` returns the caption followed by that paragraph.
        seed: Return the shards in the order of `PairStream(seed=seed)` in `epoch` (default: the stored order).
        epoch: The epoch, which determines the order of shards and the choice of paragraphs.
        start: Number of pairs to skip at the beginning. They are not read.
        storage_options: Options of fsspec for opening `path`, such as `{"anon": True}`.

    Returns:
        A dataset with the columns `image`, `caption`, `pair_id`, `pmcid`, `license`, and others.

    Raises:
        FileNotFoundError: If the split does not exist or is incomplete.
        ValueError: If a column does not exist, no pair is selected, or an option is invalid.

    Example:
    ```python
    >>> from biomedclip.processing import load_pmc15m

    >>> for row in load_pmc15m("out", split="test").take(3):
    ...     print(row["caption"], row["image"].size)

    >>> captions = load_pmc15m("out", columns=["pair_id", "caption"], licenses="commercial", seed=0, epoch=2)
    >>> scans = load_pmc15m("with_panels", panels="only", image_types=["radiology", "Light microscopy"])
    ```
    """
    import datasets

    from .images.feature import PairImage

    urls = shard_paths(path, split, storage_options)
    if seed is not None:
        urls = [urls[number] for number in epoch_order(len(urls), seed, epoch)]
    selection = RowSelection.of(licenses, image_types, panels)
    reader = ShardReader(urls, columns, selection, text, seed or 0, storage_options)
    features = datasets.Features.from_arrow_schema(reader.schema(urls[0]))
    features = datasets.Features({name: features[name] for name in columns or features})
    if "image" in features:
        features["image"] = PairImage(decode=decode)
    shards = [Shard(url) for url in urls]
    if start or not streaming or (selection and not reader.open_shard(urls[0])[0].rows):
        shards = reader.open_shards(urls)  # raises an error if no pair is selected
    pairs = sum(shard.rows for shard in shards)
    if start and not 0 <= start <= pairs:
        raise ValueError(f"start must be in 0..{pairs}, the number of pairs of the split, but is {start}.")
    arguments = {"reader": reader, "epoch": epoch}
    if streaming:
        return datasets.IterableDataset.from_generator(
            _generate_rows,
            features=features,
            gen_kwargs=arguments | {"shards": _skip(shards, start) if start else shards, "refuse_paths": decode},
            split=datasets.NamedSplit(split),
        )
    # Otherwise, saving the dataset would make `datasets` store the files at paths in rows.
    arguments |= {"shards": shards, "refuse_paths": True, "versions": _versions(urls, storage_options)}
    try:
        loaded = datasets.Dataset.from_generator(
            _generate_rows, features=features, gen_kwargs=arguments, split=datasets.NamedSplit(split)
        )
    except datasets.exceptions.DatasetGenerationError as error:
        raise error.__cause__ or error from None
    if "image" in features:  # the cache stores the type of a column but not its class
        loaded = loaded.cast_column("image", features["image"])
    # `select` does not accept an empty range.
    return loaded.select(range(start, pairs) if start < pairs else []) if start else loaded


def _generate_rows(
    shards: Sequence[Shard], reader: ShardReader, epoch: int, refuse_paths: bool, versions: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    for shard in shards:
        for number, row in enumerate(reader.all_rows(shard, epoch)):
            image = row.get("image")
            if isinstance(image, str):
                image = {"bytes": None, "path": image}
            if refuse_paths and isinstance(image, dict) and image["bytes"] is None and image["path"] is not None:
                raise ValueError(
                    f"{shard.url}: row {row.get('pair_id') or number} has no bytes of its image, only the path "
                    f"{image['path'][:MAX_NAME]!r}, and paths inside data are not opened. Store the bytes in the "
                    "column 'image', or remove the row."
                )
            yield row


def _versions(urls: Sequence[str], storage_options: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return a value for each shard that changes with its content, so that the cache of `datasets` is never stale."""
    located = (fsspec.core.url_to_fs(url, **(storage_options or {})) for url in urls)
    return tuple(filesystem.ukey(path) for filesystem, path in located)  # a list would be distributed among processes


def _skip(shards: Sequence[Shard], start: int) -> list[Shard]:
    """Return the shards without their first `start` rows."""
    left = []
    for shard in shards:
        if start < shard.rows:
            left.append(Shard(shard.url, shard.group_rows, start))
        start = max(start - shard.rows, 0)
    return left
