"""Fields of classes whose values are options of a command."""

from collections.abc import Sequence
from dataclasses import field
from typing import Any


def option(default: Any, text: str, choices: Sequence[str] | None = None, *, alone: str | None = None) -> Any:
    """Return a field with a help text. The default `dataclasses.MISSING` makes it required.

    `alone` is the value of the option if it is given without one.
    """
    metadata: dict[str, Any] = {"help": text, **({"choices": list(choices)} if choices else {})}
    if alone is not None:
        metadata |= {"nargs": "?", "const": alone}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
