"""Pictures of figures: what is recorded of each, and which files show the same picture."""

import hashlib
import io
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile
from tqdm.auto import tqdm

from ..images.folders import FolderContent, find_images, is_image_file, shown_name, warn_of_left_out
from ..images.formats import DECODABLE_FORMATS
from ..images.perceptual_hash import NEAR_DUPLICATE_BITS, perceptual_hash
from ..images.reading import ImageError, read_image
from ..integrity import open_parquet


logger = logging.getLogger(__name__)

MIN_SIDE = 16  # pixels; smaller pictures are spacers and icons
MAX_FRAMES = 500  # more pages of a TIFF are not counted: each costs more than the one before


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
    "Picture",
    "PictureIndex",
    "count_duplicates",
    "inspect_picture",
]
