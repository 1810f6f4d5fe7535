"""The interface of images and texts to embed."""

from collections.abc import Iterator
from typing import Any, Protocol

import pyarrow as pa


class Inputs(Protocol):
    """Images or texts in a fixed order."""

    @property
    def schema(self) -> pa.Schema: ...  # noqa: D102

    def __len__(self) -> int: ...

    def rows(self, first: int, last: int) -> Iterator[Any]: ...  # noqa: D102

    def ids(self) -> Iterator[str]: ...  # noqa: D102
