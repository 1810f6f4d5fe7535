"""Fields and defaults that several option classes share."""

import os
from dataclasses import MISSING
from typing import Any

from biomedclip.processing.fields import option


__all__ = ["REQUIRED", "WORKERS", "image_root_option", "option", "split_column_option", "trust_option"]

REQUIRED = MISSING
# Number of threads or processes that load data. The results do not depend on it.
WORKERS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def image_root_option() -> Any:
    """Return the field `image_root` for the options of a command."""
    return option(None, "Folder to which the image paths of a table are relative (default: the folder of the table).")


def split_column_option() -> Any:
    """Return the field `split_column` for the options of a command."""
    return option(None, "Column of a table with the split of each image: train, validation or test (default: none).")


def trust_option() -> Any:
    """Return the field `trust_remote_code` for the options of a command."""
    return option(False, "Run Python code from the folders of the given models (default: no).")
