"""Options that determine the contents of a dataset."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..panels.detector import Detector
from ..panels.image_types import parse_image_types
from .articles import FIGURES_PER_ARTICLE, parse_licenses
from .bucket import md5_of
from .dates import parse_published_until


PANEL_MODES = ("also", "only")


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
        panels: `also` adds a row for each panel of a compound figure, `only` replaces the row of the figure by them
            (default: figures only).
        keep_types: Types and groups of images to keep, such as `["radiology", "Light microscopy"]` (default: all).
            Requires `panels`, and a detector that tells types.
        detector: Finds the panels. Required with `panels`.

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
    panels: str | None = None
    keep_types: Sequence[str] | None = None
    detector: Detector | None = None

    def __post_init__(self) -> None:
        parse_licenses(self.license)
        if self.published_until is not None:
            parse_published_until(self.published_until)
        if self.max_figures_per_article < 1:
            raise ValueError(f"`max_figures_per_article` must be at least 1, not {self.max_figures_per_article}.")
        if self.max_shard_bytes < 1:
            raise ValueError(f"`max_shard_size` must be positive, not {self.max_shard_size!r}.")
        self._check_panels()

    def _check_panels(self) -> None:
        if self.panels is None:
            for name in ("keep_types", "detector"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` has no effect without `panels`. Pass `panels`, or omit it.")
            return
        if self.panels not in PANEL_MODES:
            raise ValueError(f"`panels` must be one of {', '.join(PANEL_MODES)}, not {self.panels!r}.")
        if self.detector is None:
            raise ValueError("`panels` requires a `detector`.")
        if self.kept_types() is not None and not self.detector.image_types:
            raise ValueError(
                f"`keep_types`: the detector {self.detector.fingerprint} tells no types of images. Pass another "
                "`detector`, or omit `keep_types`."
            )

    def kept_types(self) -> tuple[str, ...] | None:
        """Return the types of images to keep, or None for all."""
        return None if self.keep_types is None else parse_image_types(self.keep_types)

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
        own = asdict(replace(self, panels=None, keep_types=None, detector=None))
        for name in ("panels", "keep_types", "detector"):
            del own[name]
        if self.panels is not None and self.detector is not None:
            kept = self.kept_types()
            own |= {"panels": self.panels, "keep_types": None if kept is None else list(kept)}
            own["detector"] = self.detector.fingerprint
        return own | {
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
