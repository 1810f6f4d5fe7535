"""Check the names of models that a user passes to a command, and the packages that they need."""

import importlib
import re
from pathlib import Path
from types import ModuleType


def check_model_name(name: str, option: str = "--model") -> None:
    """Check that a name is a folder, or looks like the id of a model on the Hub. Nothing is downloaded."""
    if Path(name).is_file():
        raise ValueError(f"{option} {name} is a file. Pass the folder of the model.")
    if not Path(name).is_dir() and not re.fullmatch(r"(?![.~])[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(f"{option} {name} is neither a folder nor an id on the Hub (owner/name).")


def import_optional(module: str, needed_by: str, install: str) -> ModuleType:
    """Import a module of an optional package. The error states what needs it and how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(f"{needed_by} requires the package {package}. Install it: {install}") from error
