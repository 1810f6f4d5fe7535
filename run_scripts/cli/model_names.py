"""Check the names of models that a user passes to a command."""

import re
from pathlib import Path


def check_model_name(name: str, option: str = "--model") -> None:
    """Check that a name is a folder, or looks like the id of a model on the Hub. Nothing is downloaded.

    Args:
        name: Value of the option.
        option: Name of the option in an error.

    Raises:
        FileNotFoundError: If the name is neither a folder nor of the form `owner/name`.
        ValueError: If the name is a file.
    """
    if Path(name).is_file():
        raise ValueError(f"{option} {name} is a file. Name the folder of the model.")
    if not Path(name).is_dir() and not re.fullmatch(r"(?![.~])[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(f"{option} {name}: no such folder, and not the id of a model on the Hub (owner/name).")
