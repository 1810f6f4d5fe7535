"""Options that determine the contents of a dataset."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .articles import FIGURES_PER_ARTICLE, parse_licenses
from .bucket import md5_of
from .dates import parse_published_until


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build. Together with the content of the source, they determine every byte of the shards.

    Args:
        source: A folder with a mirror, `s3://pmc-oa-opendata`, or any URL that fsspec can open.
        pmcids: Articles (`PMC123`) or versions (`PMC123.2`) to use (default: all).
        inventory: Name of the inventory, such as `2026-01-18T01-00Z` (default: the newest).
        license: `commercial`, `noncommercial` (every Creative Commons license), `all`, or codes such as `CC BY,CC0`.
        split_fractions: Fractions of train, validation and test. By default, those of the paper for 10,000 articles or
            more, and 0.8, 0.1 and 0.1 for fewer. All pairs of an article are in the same split.
        max_shard_size: Approximate size of a shard, in bytes or as `"500MB"`.
        seed: Seed for the order of the pairs.
        decontaminate: Images of a benchmark: a file, a folder or a built dataset. Similar images are skipped.
        caption_tokenizer: Name or folder of the tokenizer that measures caption lengths for the report (default: count
            words).
        max_figures_per_article: Maximum number of figure images per article. Further images are skipped.
        published_until: Last day of publication, such as `2022-06-15`. Later articles, and articles whose XML contains
            no date, are skipped. The module `dates` defines which date counts.
        first_image_only: Whether to use only the first image of each figure, as PMC-15M does.

    Raises:
        ValueError: If an option is invalid.
    """

    source: str
    pmcids: Sequence[str] | None = None
    inventory: str | None = None
    license: str = "noncommercial"
    split_fractions: Sequence[float] | None = None
    max_shard_size: int | str = "500MB"
    seed: int = 0
    decontaminate: str | None = None
    caption_tokenizer: str | None = None
    max_figures_per_article: int = FIGURES_PER_ARTICLE
    published_until: str | None = None
    first_image_only: bool = False

    def __post_init__(self) -> None:
        parse_licenses(self.license)
        if self.published_until is not None:
            parse_published_until(self.published_until)
        if self.max_figures_per_article < 1:
            raise ValueError(f"`max_figures_per_article` must be at least 1, not {self.max_figures_per_article}.")
        if self.max_shard_bytes < 1:
            raise ValueError(f"`max_shard_size` must be positive, not {self.max_shard_size!r}.")

    @property
    def max_shard_bytes(self) -> int:
        """The size of a shard in bytes."""
        if isinstance(self.max_shard_size, int):
            return self.max_shard_size
        from datasets.utils.py_utils import convert_file_size_to_int

        try:
            return convert_file_size_to_int(self.max_shard_size)
        except ValueError:
            message = f"`max_shard_size` must be a size such as 500MB, not {self.max_shard_size!r}."
            raise ValueError(message) from None

    def absolute(self) -> "BuildOptions":
        """Return the options with absolute local paths, because tasks may run in other working directories."""

        def absolute(path: str | None) -> str | None:
            return str(Path(path).absolute()) if path and "://" not in path and Path(path).exists() else path

        return replace(
            self,
            source=absolute(self.source) or self.source,
            decontaminate=absolute(self.decontaminate),
            caption_tokenizer=absolute(self.caption_tokenizer),
        )

    def identity(self) -> dict[str, Any]:
        """Return the options as recorded in the report. They are equal if the same dataset is requested."""
        pmcids = None if self.pmcids is None else sorted(self.pmcids)
        return asdict(self) | {
            "pmcids": None if pmcids is None else f"{len(pmcids)}, MD5 {md5_of(json.dumps(pmcids).encode())}",
            "split_fractions": None if self.split_fractions is None else list(self.split_fractions),
            "max_shard_size": self.max_shard_bytes,
        }


def describe_differences(before: Mapping[str, Any], now: Mapping[str, Any], names: Sequence[str] | None = None) -> str:
    """Describe the options (default: all) whose values differ between two builds. The text is empty if none do."""
    return "; ".join(
        f"{name} {before.get(name)!r}, not {now.get(name)!r}"
        for name in names or dict.fromkeys((*now, *before))
        if before.get(name) != now.get(name)
    )
