"""Read small images of search results. Only files that the user named are opened, or files below given folders."""

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from biomedclip.processing.bit_depth_biomedclip import to_8_bit
from biomedclip.processing.files import leads_out
from biomedclip.processing.images.inputs import InputImage, find_inputs
from biomedclip.processing.images.reading import read_row_image


SIDE = 256  # largest width and height
_QUALITY = 85


class Thumbnails:
    """Images of the rows of embeddings.

    The paths in the shards may come from another person, so they are not opened wherever they lead.

    Args:
        inputs: Images and datasets that the user named, as for `biomedclip embed`.
        folders: Files below these folders are opened too.

    Raises:
        FileNotFoundError: If an input does not exist.
    """

    def __init__(self, inputs: Sequence[str], folders: Sequence[Path]):
        self._inputs = find_inputs(inputs) if inputs else None
        self._folders = folders
        self._outside = self._missing = self._unreadable = 0

    def of_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[bytes | None]:
        """Return a JPEG of each row, or None where there is no image or it cannot be read."""
        self._outside = self._missing = self._unreadable = 0
        named = self._named({str(row["id"]) for row in rows})
        return [self._thumbnail(row, named.get(str(row["id"]))) for row in rows]

    def reason(self) -> str:
        """Return why thumbnails are missing."""
        parts = []
        if self._outside:
            parts.append(f"{self._outside:,} outside of this folder and of the embeddings: name them with --images")
        if self._missing:
            parts.append(f"{self._missing:,} of datasets: name the dataset with --images")
        if self._unreadable:
            parts.append(f"{self._unreadable:,} unreadable")
        return f"Without thumbnail: {', '.join(parts)}."

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Return the number of each id of the inputs. A dataset can be large, so its ids are read only once."""
        numbers: dict[str, int] = {}
        for number, name in enumerate(self._inputs.ids() if self._inputs is not None else ()):
            numbers.setdefault(name, number)
        return numbers

    def _named(self, ids: set[str]) -> dict[str, InputImage]:
        """Return the inputs with these ids."""
        if self._inputs is None:
            return {}
        found = {name: self._numbers[name] for name in ids if name in self._numbers}
        return {name: next(iter(self._inputs.rows(number, number + 1))) for name, number in found.items()}

    def _thumbnail(self, row: Mapping[str, Any], named: InputImage | None) -> bytes | None:
        path = row.get("path")
        if named is None and path is None:
            self._missing += 1
            return None
        try:
            if named is None and all(leads_out(str(path), folder) for folder in self._folders):
                self._outside += 1
                return None
            return jpeg(read_row_image(Path(str(path)) if named is None else named.image))
        except (ValueError, OSError, ImportError):  # also a path that contains a null byte
            self._unreadable += 1
            return None


def jpeg(image: Image.Image, side: int = SIDE) -> bytes:
    """Return an image as JPEG, with at most `side` pixels in width and height."""
    image = to_8_bit(image)
    image = image.convert("RGBA") if image.mode in ("P", "PA", "LA", "La") else image
    if image.mode in ("RGBA", "RGBa"):
        background = Image.new("RGBA", image.size, "white")
        background.alpha_composite(image.convert("RGBA"))
        image = background
    image = image.convert("RGB")
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def data_url(jpeg: bytes) -> str:
    """Return an image as the address of an HTML page."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
