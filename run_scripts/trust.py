"""Trust in model folders: no code of a folder runs unless the user passes `--trust-remote-code`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from typing import Any

from transformers import dynamic_module_utils


def trust_option() -> Any:
    """Return the field `trust_remote_code` for the option class of a verb."""
    return field(
        default=False,
        metadata={"help": "Run the Python code in the folders of the models you name (default: no)."},
    )


@contextmanager
def questions_are_errors() -> Iterator[None]:
    """
    Make transformers raise `ValueError` where it would ask on stdin whether to run a folder's code.

    `trust_remote_code=False` alone is not enough: some of transformers' loaders do not pass it on to the loaders that
    they call themselves. A timeout of zero is transformers' own switch for programs without a user.
    """
    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before
