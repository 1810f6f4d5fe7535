"""Corruptions of images that a model meets in practice, at five strengths, as pure functions of Pillow images.

The names, units and strengths are data: `corruptions.yaml`.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ..bit_depth_biomedclip import to_8_bit
from .errors import ImageError
from .reading import read_row_image


STRENGTHS = 5
_FILE = Path(__file__).parent / "corruptions.yaml"
_MODEL_SIDE = 224  # pixels of the shorter side that most models see
# Larger images are reduced first. Models see a fraction of this size.
_SHORTER_SIDE, _LONGER_SIDE = 1024, 8192
_MARGIN = 0.03  # between text and the edge, as a fraction of the shorter side
_LEGIBLE = 4.5  # height in pixels from which capital letters can be read
_SMALLEST = 0.09  # largest height that letters get on small images for this reason, as a fraction of the shorter side
_TEXT = ("ID {id:07d}", "{day:02d}.{month:02d}.19{year}", "PORTABLE", "ACC {accession:06d}")

Generator = np.random.Generator


@dataclass(frozen=True)
class Corruption:
    """A corruption with its description and the value of each strength from 1 on."""

    name: str
    about: str
    strengths: Sequence[float]


@lru_cache(maxsize=1)
def _facts() -> dict[str, Any]:
    return yaml.safe_load(_FILE.read_text(encoding="utf-8"))


def corruptions_version() -> int:
    """Return the version of the corruptions. Every change of their pixels raises it."""
    return _facts()["version"]


def corruption_names() -> list[str]:
    """Return the names of all corruptions."""
    return list(_facts()["corruptions"])


def find_corruption(name: str) -> Corruption:
    """Return a corruption. Raise `ValueError` if the name is unknown."""
    found = _facts()["corruptions"].get(name)
    if found is None:
        close = get_close_matches(name, corruption_names(), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Unknown corruption {name!r}.{hint} Choose from {', '.join(corruption_names())}.")
    return Corruption(name, **found)


def corrupt(image: Image.Image, name: str, strength: int, *, image_name: str = "", seed: int = 0) -> Image.Image:
    """Return a corrupted image in mode `L` or `RGB`.

    The result depends only on the pixels, the names and the seed. All strengths of an image have the same random
    pattern, place or direction. Images of more than 8 bits are scaled to 8 bits first, as the image processor does.
    Transparency is dropped. Images whose shorter side has more than 1,024 pixels are reduced to that size.

    Args:
        image: An image of any mode and size.
        name: Name of the corruption, see [`corruption_names`].
        strength: From 1 to 5. With 0, the image itself is returned.
        image_name: Name of the image, which determines what is random.
        seed: Seed of what is random.

    Raises:
        ValueError: If the name is unknown or the strength is not from 0 to 5.

    Example:
    ```python
    >>> from biomedclip import read_image
    >>> from biomedclip.processing.images.corruptions import corrupt

    >>> corrupt(read_image("figure.png"), "noise", 3, image_name="figure.png").mode
    'RGB'
    ```
    """
    corruption = find_corruption(name)
    if strength not in range(STRENGTHS + 1):
        raise ValueError(f"strength={strength} must be from 0 to {STRENGTHS}.")
    if strength == 0:
        return image
    digest = hashlib.blake2b(f"{name}/{image_name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    generator = np.random.default_rng([seed, int.from_bytes(digest, "little")])
    return _FUNCTIONS[name](_prepared(image), corruption.strengths[strength - 1], generator)


@dataclass(frozen=True)
class CorruptedImages(Sequence[Any]):
    """Images that are corrupted on access. `names` determines what is random in each."""

    images: Sequence[Any]
    names: Sequence[str]
    corruption: str
    strength: int
    seed: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: Any) -> Any:
        image, name = read_row_image(self.images[row]), self.names[row]
        try:
            return corrupt(image, self.corruption, self.strength, image_name=name, seed=self.seed)
        except (OSError, ValueError) as error:  # such as a size that JPEG cannot store
            raise ImageError(f"{name}: the corruption {self.corruption} failed ({error})") from error


def _prepared(image: Image.Image) -> Image.Image:
    image = to_8_bit(image)
    image = image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")
    scale = min(_SHORTER_SIDE / min(image.size), _LONGER_SIDE / max(image.size))
    if scale < 1:
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    return image


def _noise(image: Image.Image, value: float, generator: Generator) -> Image.Image:
    # On large images, independent noise of each pixel would vanish when a model resizes them.
    scale = min(1, _MODEL_SIDE / min(image.size))
    grains = [max(1, round(side * scale)) for side in image.size]
    noise = Image.fromarray(generator.normal(scale=255 * value, size=(grains[1], grains[0])).astype(np.float32))
    added = np.asarray(noise.resize(image.size, Image.Resampling.NEAREST))
    return _from_floats(np.asarray(image, dtype=np.float32) + (added if image.mode == "L" else added[..., None]))


def _blur(image: Image.Image, value: float, generator: Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(value * min(image.size) / _MODEL_SIDE))


def _jpeg(image: Image.Image, value: float, generator: Generator) -> Image.Image:
    # The blocks have 8 pixels. On large images, models would not see the artifacts.
    scale = min(1, _MODEL_SIDE / min(image.size))
    seen = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    file = io.BytesIO()
    seen.save(file, "JPEG", quality=int(value))
    compressed = Image.open(file, formats=["JPEG"]).convert(image.mode)
    artifacts = np.asarray(compressed, dtype=np.float32) - np.asarray(seen, dtype=np.float32)
    channels = artifacts[..., None] if image.mode == "L" else artifacts
    resized = [
        np.asarray(Image.fromarray(channel).resize(image.size, Image.Resampling.BILINEAR))
        for channel in np.moveaxis(channels, -1, 0)
    ]
    added = resized[0] if image.mode == "L" else np.stack(resized, axis=-1)
    return _from_floats(np.asarray(image, dtype=np.float32) + added)


def _contrast(image: Image.Image, value: float, generator: Generator) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32)
    mean = pixels.mean()
    return _from_floats(mean + (pixels - mean) * value)


def _rotation(image: Image.Image, value: float, generator: Generator) -> Image.Image:
    return image.rotate(value * _either(generator, -1, 1), Image.Resampling.BICUBIC)


def _resolution(image: Image.Image, value: float, generator: Generator) -> Image.Image:
    scale = min(1, _MODEL_SIDE / min(image.size)) * value / _MODEL_SIDE
    small = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def _text(image: Image.Image, value: float, generator: Generator) -> Image.Image:
    numbers = {"id": 10**7, "day": 28, "month": 12, "year": 99, "accession": 10**6}
    drawn = {name: int(generator.integers(largest // 10 + 1, largest)) for name, largest in numbers.items()}
    lines = [text.format(**drawn) for text in _TEXT]
    left, top, side = _central_square(image)
    # On small images, the letters of weak strengths would be a gray smear. Stronger is still larger.
    margin, height = _MARGIN * side, np.hypot(value * side, min(_LEGIBLE, _SMALLEST * side))
    for number, line in enumerate(lines):
        row = number % 2
        if number < 2:
            place, anchor = (left + margin, top + margin + row * 1.2 * height), "lt"
        else:
            place, anchor = (left + side - margin, top + side - margin - row * 1.2 * height), "rb"
        image = _write(image, line, place, height, anchor)
    return image


def _border(image: Image.Image, value: float, generator: Generator) -> Image.Image:
    width = max(1, round(value * min(image.size)))
    inner = (width, width, image.width - width, image.height - width)
    result = Image.new(image.mode, image.size)
    if inner[0] < inner[2] and inner[1] < inner[3]:
        result.paste(image.crop(inner), inner[:2])
    return result


def _mark(image: Image.Image, value: float, generator: Generator) -> Image.Image:
    letter, corner = _either(generator, "L", "R"), _either(generator, "lt", "rt")
    left, top, side = _central_square(image)
    margin = _MARGIN * side
    place = (left + margin if corner == "lt" else left + side - margin, top + margin)
    return _write(image, letter, place, value * side, corner)


_FUNCTIONS: dict[str, Callable[[Image.Image, float, Generator], Image.Image]] = {
    "noise": _noise,
    "blur": _blur,
    "jpeg": _jpeg,
    "contrast": _contrast,
    "rotation": _rotation,
    "resolution": _resolution,
    "text": _text,
    "border": _border,
    "mark": _mark,
}


def _from_floats(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(pixels, 0, 255)).astype(np.uint8))


def _either(generator: Generator, first: Any, second: Any) -> Any:
    return second if generator.integers(2) else first


def _central_square(image: Image.Image) -> tuple[int, int, int]:
    """Return left, top and side of the square that models crop. What lies outside, they do not see."""
    side = min(image.size)
    return (image.width - side) // 2, (image.height - side) // 2, side


def _write(image: Image.Image, text: str, place: tuple[float, float], height: float, anchor: str) -> Image.Image:
    """Return the image with white letters of a height in pixels, with a thin black outline."""
    image = image.copy()
    black, white = (0, 255) if image.mode == "L" else ("black", "white")
    # Capital letters are about 0.7 of the size of the font.
    font = ImageFont.load_default(max(1.0, height / 0.7))
    outline = max(1, round(height / 16))  # without it, letters on a bright image would be invisible
    ImageDraw.Draw(image).text(place, text, white, font, anchor, stroke_width=outline, stroke_fill=black)
    return image
