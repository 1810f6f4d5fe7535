"""Handle trust in model folders: their code runs only if the user passes `--trust-remote-code`."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import dynamic_module_utils


@contextmanager
def questions_are_errors() -> Iterator[None]:
    """Make transformers raise `ValueError` instead of asking on stdin whether to run the code of a folder.

    `trust_remote_code=False` is not enough, because some loaders of transformers do not pass it on to the loaders that
    they call. With a timeout of zero, transformers does not ask.
    """
    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before
