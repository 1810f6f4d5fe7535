"""Fields of option classes."""

from collections.abc import Sequence
from dataclasses import MISSING, field
from typing import Any


REQUIRED = MISSING


def option(default: Any, text: str, choices: Sequence[str] | None = None) -> Any:
    """Return the field of an option with a help text. Without a default, the option is required."""
    metadata = {"help": text, **({"choices": list(choices)} if choices else {})}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def trust_option() -> Any:
    """Return the field `trust_remote_code` for the options of a command."""
    return option(False, "Run Python code from the folders of the given models (default: no).")
