"""The `datasets` feature of the column `image`. It decodes bytes with `read_image` and never opens a path."""

from dataclasses import dataclass
from typing import Any

import datasets
from PIL import Image

from .reading import read_row_image


@dataclass
class PairImage(datasets.Image):
    """A replacement for `datasets.Image` that is safe for untrusted rows.

    `datasets.Image` opens the path or URL of a row without bytes, prefers a local file with that path over the bytes,
    and has no size limits. This feature reads only the bytes, with the limits of [`read_image`].
    """

    def encode_example(self, value: Any) -> dict[str, Any]:
        """Return the stored form of a row. Its bytes are always kept, even if it has a path."""
        if isinstance(value, dict):
            return {"bytes": value.get("bytes"), "path": value.get("path")}
        return super().encode_example(value)

    def decode_example(self, value: Any, token_per_repo_id: dict[str, Any] | None = None) -> Image.Image:
        """Return the decoded image.

        Raises:
            ImageError: If the row has no bytes, or they cannot be read.
        """
        if not self.decode:
            raise RuntimeError("Decoding is disabled for this feature: use PairImage(decode=True).")
        image = read_row_image(value)
        return image.convert(self.mode) if self.mode and self.mode != image.mode else image
