"""Options of data with several findings for each image, which `train` and `evaluate` share."""

from collections.abc import Collection
from typing import Any

from biomedclip.processing.images.findings import BLANK, BLANK_DEFAULT, UNCERTAIN, UNCERTAIN_DEFAULT

from .errors import UsageError
from .fields import option


def label_columns_option() -> Any:
    """Return the field `label_columns` for the options of a command."""
    return option(
        [],
        "Several findings for each image: a 0/1 column for each finding, or chexpert or nih for the columns of these "
        "datasets (default: one label).",
    )


def label_separator_option() -> Any:
    """Return the field `label_separator` for the options of a command."""
    return option(None, "Separator of the findings in a single --label-columns, such as '|' (default: none).")


def uncertain_option() -> Any:
    """Return the field `uncertain` for the options of a command. The default is that of the reader."""
    return option(None, f"Value of uncertain labels, which are -1 (default: {UNCERTAIN_DEFAULT}).", list(UNCERTAIN))


def blank_option() -> Any:
    """Return the field `blank` for the options of a command. The default is that of the reader."""
    return option(
        None, f"Value of blank labels (default: {BLANK_DEFAULT}, because reports name what is seen).", list(BLANK)
    )


def check_finding_columns(given: Collection[str]) -> None:
    """Raise `UsageError` if options of findings are given without, or together with options that exclude them."""
    if "label_columns" not in given:
        if names := sorted({"label_separator", "uncertain", "blank"} & set(given)):
            raise UsageError(f"--{names[0].replace('_', '-')} has no effect without --label-columns. Omit it.")
    elif "label_column" in given:
        raise UsageError("--label-column is for one label, and --label-columns for several. Pass one of them.")
