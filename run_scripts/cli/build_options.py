"""Options of `biomedclip build`."""

import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from biomedclip.processing.files import require_regular
from biomedclip.processing.panels.image_types import parse_image_types
from biomedclip.processing.pmc.articles import FIGURES_PER_ARTICLE
from biomedclip.processing.pmc.executors import Engine
from biomedclip.processing.pmc.options import PANEL_MODES, BuildOptions
from biomedclip.processing.pmc.splits import parse_fractions

from .errors import UsageError
from .fields import REQUIRED, option, trust_option


@dataclass
class SourceOptions:
    """Which articles and figures to use."""

    source: str = option(
        REQUIRED, "Mirror of PMC's bucket: a folder, s3://pmc-oa-opendata, or any URL that fsspec opens."
    )
    pmcids: str | None = option(None, "Articles to use: PMC1,PMC2,... or a file with one per line (default: all).")
    inventory: str | None = option(None, "Inventory to use, such as 2026-01-18T01-00Z (default: the newest).")
    license: str = option(
        "noncommercial", "commercial, noncommercial (any Creative Commons; the default), all, or codes: 'CC BY,CC0'."
    )
    decontaminate: str | None = option(
        None, "Images of a benchmark: a file, folder or built dataset. Similar images are skipped."
    )
    split_fractions: str | None = option(
        None, "Train,validation,test (default: 0.8,0.1,0.1 below 10,000 articles, otherwise those of the paper)."
    )
    max_figures_per_article: int = option(
        FIGURES_PER_ARTICLE, f"Maximum number of figure images per article (default: {FIGURES_PER_ARTICLE})."
    )
    published_until: str | None = option(
        None,
        "Skip articles released in PMC, otherwise published, after this day, such as 2022-06-15, and those without a "
        "date (default: none). 2022-06 counts as 2022-06-30.",
    )
    first_image_only: bool = option(False, "Use only the first image of each figure, as in PMC-15M (default: all).")
    panels: str | None = option(
        None,
        "Split compound figures: rows of panels also, or only rows of panels (--panels alone: also; default: no).",
        PANEL_MODES,
        alone="also",
    )
    keep_types: list[str] | None = option(
        None,
        "Types or groups of images to keep, such as radiology 'Light microscopy' (default: all). See docs/panels.md.",
    )
    detector: str | None = option(
        None,
        "Folder or Hub id of an object detector of transformers for --panels, or x-y-cut for cuts at empty stripes "
        "(default: the detector of this package).",
    )
    trust_remote_code: bool = trust_option()
    max_shard_size: str = option(
        "500MB", "Approximate size of a shard (default: 500MB). Small datasets have smaller shards."
    )
    caption_tokenizer: str | None = option(None, "Tokenizer that measures captions (default: count words).")
    overwrite: bool = option(False, "Replace an existing dataset.")
    update: bool = option(False, "Add new and changed articles to an existing dataset.")


@dataclass(frozen=True)
class EngineOptions(Engine):
    """Where and how to run the build."""

    workers: int = option(os.cpu_count() or 1, "Number of tasks that run in parallel (default: one per core).")


@dataclass
class OutputOptions:
    """Where to write the dataset."""

    output_dir: str = option(REQUIRED, "Folder of the dataset. All machines of a cluster must share it.")
    seed: int = option(0, "Seed of the order of pairs (default: 0).")
    push_to: str | None = option(None, "Dataset on the Hub to publish to, as ORG/NAME.")
    private: bool = option(False, "Make the dataset on the Hub private.")
    verify: str | None = option(
        None, "Folder of a built dataset to verify: images, hashes and counts. Takes no other option."
    )


@dataclass
class VerifyOptions:
    """The option of `--verify`."""

    verify: str = option(REQUIRED, "Folder of a built dataset.")


def read_build_options(source: SourceOptions, *, seed: int) -> BuildOptions:
    """Convert the options of the command to those of the library, and load the detector of panels."""
    if source.panels is None:
        for name in ("keep_types", "detector", "trust_remote_code"):
            if getattr(source, name):
                raise UsageError(f"`{name}` has no effect without `panels`. Pass `panels`, or omit it.")
    if source.trust_remote_code and source.detector is None:
        raise UsageError("`trust_remote_code` has no effect without `detector`. Omit it.")
    options = asdict(source) | {
        "pmcids": read_pmcids(source.pmcids),
        "split_fractions": parse_fractions(source.split_fractions) if source.split_fractions else None,
        "seed": seed,
    }
    for name in ("overwrite", "update", "panels", "keep_types", "detector", "trust_remote_code"):
        del options[name]
    checked = BuildOptions(**options)
    if source.panels is None:
        return checked
    if source.keep_types is not None:
        parse_image_types(source.keep_types)  # an error before the detector is loaded
    from ..panel_rows.lazy_detector import load_lazy_detector  # imports torch, which other builds do not need

    detector = load_lazy_detector(source.detector, trust_remote_code=source.trust_remote_code)
    return replace(checked, panels=source.panels, keep_types=source.keep_types, detector=detector)


def read_pmcids(choice: str | list[str] | None) -> list[str] | None:
    """Read `--pmcids`: a comma-separated string, a list, or a file with one PMCID per line and comments after a #.

    Raises:
        ValueError: If there are no PMCIDs, or the file cannot be read.
    """
    if choice is None:
        return None
    if isinstance(choice, list):  # from a recipe
        choice = ",".join(map(str, choice))
    if re.fullmatch(r"PMC[\d.]+(\s*,\s*PMC[\d.]+)*", choice.strip()):
        return [part.strip() for part in choice.split(",")]
    try:
        require_regular(choice)
        lines = Path(choice).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--pmcids {choice}: not a UTF-8 text file with one PMCID per line ({error}).") from error
    except (OSError, ValueError) as error:
        shown = choice if len(choice) <= 100 else f"{choice[:100]}..."
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"--pmcids {shown!r} is neither a list such as PMC1,PMC2 nor a file with one PMCID per line ({reason})."
        ) from error
    pmcids = [word for line in lines for word in line.split("#")[0].split()]
    if not pmcids:
        raise UsageError(f"--pmcids {choice!r} contains no PMCID.")
    return pmcids
