"""Pictures of figures: what is recorded of each, and how two files are known to show the same picture.

The perceptual hash is the one of `imagehash.phash` (Zauner 2010, "Implementation and benchmarking of perceptual image
hash functions", DCT hash), bit for bit where both see the same thumbnail. It is computed here because most of the
work is to come to that thumbnail from pictures of any mode, without a second copy of them in memory; what is left are
two matrix products.
"""

import hashlib
import io
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, ImageFile
from tqdm.auto import tqdm

from ..images.folders import FolderContent, find_images, is_image_file, shown_name, warn_of_left_out
from ..images.formats import DECODABLE_FORMATS
from ..images.reading import ImageError, read_image
from ..integrity import open_parquet


logger = logging.getLogger(__name__)

MIN_SIDE = 16  # pixels; smaller pictures are spacers and icons
MAX_FRAMES = 500  # more pages of a TIFF are not counted: each costs more than the one before

# Measured on 1,545 pictures: 475 of PMC's mirror, 76 of journals, 600 of MedNIST, 315 of VQA-RAD, 79 tiles of tissue.
# The same picture as PNG, as JPEG of quality 85, and as that at half the size: none of 4,635 copies differs by more
# than 6 bits, one by more than 4. Two pictures of different sets: none of 845,079 pairs is as near. Two of one set:
# 7 of 112,575 pairs in PMC (charts drawn by the same template), 0 of 49,455 in VQA-RAD, 67 of 179,700 in MedNIST
# (slices and hands, normalised to 64 pixels; none of its 4,950 pairs of chest X-rays). Cut by 1 % on each side, 57 of
# 1,545 copies are missed.
NEAR_DUPLICATE_BITS = 6

_BLOCK = 1 << 20  # values that are looked at together
_THUMBNAIL = 32  # pixels a side
_FREQUENCIES = 8  # the lowest of them in each direction
_COSINES = np.cos(np.pi / (2 * _THUMBNAIL) * np.outer(np.arange(_FREQUENCIES), 2 * np.arange(_THUMBNAIL) + 1))
# Grey levels. With less contrast than this in the thumbnail the bits are noise: one JPEG copy in nine is farther than
# NEAR_DUPLICATE_BITS at 2 levels, two in three at half a level. Of the 1,545 pictures one is below, an empty tile.
_BLANK_DEVIATION = 2.0


@dataclass(frozen=True)
class Picture:
    """What is recorded of a picture.

    Args:
        width: Pixels.
        height: Pixels.
        mode: What the file holds, in Pillow's words: `RGB`, `L`, `P`, `CMYK`, `I;16`, ...
        frames: More than 1 for an animation or a file of several pages (`MAX_FRAMES` for one of more pages); the first
            is what is shown and learned from.
        perceptual_hash: See [`perceptual_hash`].
    """

    width: int
    height: int
    mode: str
    frames: int
    perceptual_hash: str


def inspect_picture(source: bytes | Path) -> Picture:
    """Decode an image whole and describe it.

    Args:
        source: The bytes of its file, or its path.

    Raises:
        ImageError: If it cannot be used; `reason` is `image too small` (a side below `MIN_SIDE`) or one of
            `read_image`'s.
    """
    image = read_image(source)
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"image: {width} x {height} pixels, and a side has to have {MIN_SIDE}", "image too small")
    # The frames last: to count them moves on in the file.
    perceptual = perceptual_hash(image)
    return Picture(width, height, image.mode, perceptual_hash=perceptual, frames=_count_frames(image, source))


@np.errstate(invalid="ignore", over="ignore")
def perceptual_hash(image: Image.Image) -> str:
    """64 bits that stay nearly the same when a picture is resized or saved in another format.

    The picture is reduced to 32 x 32 grey values, whatever its mode. More than 8 bits are scaled from the range of
    their finite values, as the image processor does, and transparency is dropped. The 8 x 8 lowest frequencies of their
    discrete cosine transform are compared with their median.

    Args:
        image: A decoded picture.

    Returns:
        16 hex digits; an empty string for a blank picture, which has (nearly) no contrast, so that its bits would be
        noise.
    """
    thumbnail = _grey_thumbnail(image)
    if not thumbnail.std() >= _BLANK_DEVIATION:
        return ""
    # Rounded, because what is 0 by symmetry would else be noise of the last digit, and differ with the machine.
    coefficients = np.round(_COSINES @ thumbnail @ _COSINES.T, 3)
    return np.packbits(coefficients > np.median(coefficients)).tobytes().hex()


def same_picture(hash_a: str, hash_b: str) -> bool:
    """Whether two perceptual hashes are of (nearly) the same picture; blank ones are the same as nothing."""
    if not hash_a or not hash_b:
        return False
    return (int(hash_a, 16) ^ int(hash_b, 16)).bit_count() <= NEAR_DUPLICATE_BITS


class PictureIndex:
    """Pictures that others are compared with, such as a benchmark's test images.

    Args:
        perceptual_hashes: One for each picture; blank ones are left out.
    """

    def __init__(self, perceptual_hashes: Iterable[str]):
        self._hashes = np.unique(_to_integers(perceptual_hashes))

    @classmethod
    def from_path(cls, path: str | os.PathLike[str], progress: bool = False) -> "PictureIndex":
        """Read the images behind `--decontaminate PATH`. Those that cannot be read, and files that are not images, are
        listed in warnings.

        Args:
            path: An image, a Parquet file with a column `image` (such as the shards of a built set), or a folder with
                any number of both, at any depth. Images are recognized by [`find_images`].
            progress: Show a bar.

        Raises:
            FileNotFoundError: If there is nothing at `path`.
            ImportError: If images are DICOM and pydicom is not installed.
            ValueError: If there is no image that can be compared.
        """
        root = Path(path)
        if not root.exists():
            raise FileNotFoundError(f"--decontaminate {path}: there is no such file or folder.")
        content = find_images(root, link_depth=2) if root.is_dir() else FolderContent(others=[root])
        if is_image_file(root):
            content = FolderContent(images=[root])
        parquet = {file for file in content.others if _is_parquet(file)}
        files = sorted([*content.images, *parquet])
        if not files:
            raise ValueError(f"--decontaminate {path}: no images there, and no Parquet files.")
        warn_of_left_out(root, [replace(content, others=[file for file in content.others if file not in parquet])])
        hashes: list[str] = []
        unreadable: list[str] = []
        bar = tqdm(files, desc="Pictures to keep out", unit="file", disable=not progress, dynamic_ncols=True)
        for file in bar:
            for name, source in _pictures_in(file, is_parquet=file in parquet):
                try:
                    hashes.append(source if isinstance(source, str) else inspect_picture(source).perceptual_hash)
                except ImageError as error:
                    unreadable.append(f"{shown_name(name)} ({shown_name(str(error))})")
        if unreadable:
            shown = "; ".join(unreadable[:20]) + ("; ..." if len(unreadable) > 20 else "")
            logger.warning(
                "--decontaminate %s: %d of %d pictures cannot be read and are not compared with: %s",
                path,
                len(unreadable),
                len(unreadable) + len(hashes),
                shown,
            )
        index = cls(hashes)
        if not len(index):
            raise ValueError(
                f"--decontaminate {path}: none of its {len(unreadable) + len(hashes)} pictures can be compared with: "
                f"{len(unreadable)} unreadable, {len(hashes)} blank. A Parquet file needs a column `image`."
            )
        return index

    def __len__(self) -> int:
        """Number of distinct hashes."""
        return len(self._hashes)

    def __repr__(self) -> str:
        digest = hashlib.blake2b(self._hashes.tobytes(), digest_size=8).hexdigest()
        return f"PictureIndex({len(self)} hashes, {digest})"

    def contains(self, perceptual_hash: str) -> bool:
        """Whether one of the pictures is (nearly) the one with this hash; never for a blank one, `""`."""
        return self.nearest(perceptual_hash) is not None

    def nearest(self, perceptual_hash: str) -> str | None:
        """The hash of the picture that is (nearly) the one with this hash, if there is one; never for a blank one."""
        if not perceptual_hash or not len(self):
            return None
        distances = np.bitwise_count(self._hashes ^ np.uint64(int(perceptual_hash, 16)))
        nearest = int(distances.argmin())
        return f"{int(self._hashes[nearest]):016x}" if distances[nearest] <= NEAR_DUPLICATE_BITS else None


def count_duplicates(image_md5s: Iterable[str], perceptual_hashes: Iterable[str]) -> dict[str, int]:
    """Counts pairs whose picture came before. 15 million pairs take 25 s and 150 MiB.

    Args:
        image_md5s: Of every pair, as hex digits. An iterator does, so that the digits need not be in memory together.
        perceptual_hashes: Of every pair; empty for blank pictures, which count as duplicates of nothing.

    Returns:
        `same_bytes`: pairs whose file equals, by 64 bits of its MD5, an earlier pair's. `same_picture`: pairs whose
        perceptual hash equals an earlier pair's. The former are among the latter, blank pictures apart; so is, of
        112,575 pairs of figures in PMC's mirror, one of two charts drawn by the same template.
    """
    return {"same_bytes": _count_repeated(image_md5s), "same_picture": _count_repeated(perceptual_hashes)}


def _count_repeated(hex_digits: Iterable[str]) -> int:
    integers = _to_integers(hex_digits)
    integers.sort()  # in its place; np.unique would build a hash table of 700 MB
    return int(np.count_nonzero(integers[1:] == integers[:-1]))


def _to_integers(hex_digits: Iterable[str]) -> np.ndarray:
    """The first 16 hex digits of each as an integer of 64 bits; empty ones are left out."""
    return np.fromiter((int(digits[:16], 16) for digits in hex_digits if digits), dtype=np.uint64)


def _is_parquet(file: Path) -> bool:
    """Whether a file is Parquet by its suffix or its first bytes."""
    if not file.is_file():
        return False
    if file.suffix.lower() == ".parquet":
        return True
    try:
        with file.open("rb") as opened:
            return opened.read(4) == b"PAR1"
    except OSError:
        return False


def _pictures_in(file: Path, *, is_parquet: bool) -> Iterator[tuple[str, Path | bytes | str]]:
    """Name and source of each image in a file, or its perceptual hash where that is recorded."""
    if not is_parquet:
        yield str(file), file
        return
    try:
        table = open_parquet(file)
        names = table.schema_arrow.names
        column = "perceptual_hash" if "perceptual_hash" in names else "image"
        if column not in names:
            return  # a table of something else, such as the articles of a built set
        row = 0
        for batch in table.iter_batches(batch_size=16, columns=[column]):
            for value in batch.column(0).to_pylist():
                content = value.get("bytes") if isinstance(value, dict) else value
                if column == "image" and isinstance(content, str):
                    content = None  # a path, which is not opened
                yield f"{file}, row {row}", b"" if content is None else content
                row += 1
    except OSError as error:
        raise ValueError(f"--decontaminate {file}: not a Parquet file that can be read ({error}).") from error


def _grey_thumbnail(image: Image.Image) -> np.ndarray:
    """Return 32 x 32 grey values; the picture is reduced in its own mode, or from a copy of one byte a pixel."""
    if image.mode in ("1", "P", "PA", "LA", "RGBA"):
        # Pillow would not interpolate the first three, and would copy the others whole to blend their transparency.
        image.info.pop("transparency", None)
        image = image.convert("L")
    elif image.mode.startswith("I;16") and image.mode != "I;16":
        image = image.convert("I")  # Pillow 13 resizes I;16B as if its bytes came in the other order
    elif image.mode == "F":
        image = _with_finite_values(image)
    gap = 2.0 if image.mode != "I;16" else None  # Pillow cannot do its faster first step in this mode
    thumbnail = image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=gap)
    if not image.mode.startswith(("I", "F")):
        return np.asarray(thumbnail.convert("RGB").convert("L"), dtype=np.float64)
    # The range of the image processor. Its code is not imported: it brings torch, and 800 MB of memory to each worker.
    darkest, brightest = cast(tuple[float, float], image.getextrema())
    return (np.asarray(thumbnail, dtype=np.float64) - darkest) * (255 / ((brightest - darkest) or 1))


def _with_finite_values(image: Image.Image) -> Image.Image:
    """Return an image of floats with its smallest finite value in the place of NaN and infinities."""
    rows = max(1, _BLOCK // image.width)
    boxes = [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]
    smallest, all_finite = np.inf, True
    for box in boxes:
        values = np.asarray(image.crop(box))
        finite = np.isfinite(values)
        all_finite &= bool(finite.all())
        smallest = min(smallest, float(values.min(where=finite, initial=np.inf)))
    if all_finite or smallest == np.inf:
        return image
    result = image.copy()
    for box in boxes:
        values = np.asarray(image.crop(box))
        result.paste(Image.fromarray(np.where(np.isfinite(values), values, np.float32(smallest))), box)
    return result


def _count_frames(image: Image.Image, source: bytes | Path) -> int:
    try:
        if not isinstance(image, ImageFile.ImageFile):  # its pixels were not read by Pillow
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=DECODABLE_FORMATS) as opened:
                return _count_frames(opened, source)
        return _count_pages(image) if image.format == "TIFF" else getattr(image, "n_frames", 1)
    except Exception:  # the frames after the first may be damaged, and are not used
        return 1


def _count_pages(image: Image.Image) -> int:
    for page in range(1, MAX_FRAMES):
        try:
            image.seek(page)
        except EOFError:
            return page
    return MAX_FRAMES


__all__ = [
    "MAX_FRAMES",
    "MIN_SIDE",
    "NEAR_DUPLICATE_BITS",
    "Picture",
    "PictureIndex",
    "count_duplicates",
    "inspect_picture",
    "perceptual_hash",
    "same_picture",
]
