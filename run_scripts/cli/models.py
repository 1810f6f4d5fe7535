"""Check the names of models that a user passes to a command, and the packages that they need."""

import importlib
import logging
import re
from pathlib import Path
from types import ModuleType

from .errors import suggestion


logger = logging.getLogger(__name__)


def check_model_name(name: str, option: str = "--model") -> None:
    """Check that a name is a folder, or looks like the id of a model on the Hub. Nothing is downloaded."""
    if Path(name).is_file():
        raise ValueError(f"{option} {name} is a file. Pass the folder of the model.")
    if Path(name).is_dir():
        return
    close = _similar_folder(Path(name))
    if not re.fullmatch(r"(?![.~])[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(f"{option} {name} is neither a folder nor an id on the Hub (owner/name).{close}")
    if close:
        logger.warning("%s %s is not a folder. It is looked up on the Hub.%s", option, name, close)


def _similar_folder(path: Path) -> str:
    """Return a question that names the most similar folder beside a path that does not exist, or an empty text."""
    parent = path.parent
    try:
        names = [entry.name for entry in parent.iterdir() if entry.is_dir()]
    except OSError:  # the parent does not exist, or cannot be read
        return ""
    return suggestion(str(path), [str(parent / name) for name in names if suggestion(path.name, [name])])


def import_optional(module: str, needed_by: str, install: str) -> ModuleType:
    """Import a module of an optional package. The error states what needs it and how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(f"{needed_by} requires the package {package}. Install it: {install}") from error
