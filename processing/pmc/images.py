"""Inspect the image files of figures and find copies of benchmark images among them."""

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

MIN_SIDE = 16  # pixels. Smaller images are spacers and icons
MAX_FRAMES = 500  # more pages of a TIFF are not counted, because the cost grows with their square


@dataclass(frozen=True)
class InspectedImage:
    """Properties of an image file. The size is in pixels."""

    width: int
    height: int
    mode: str  # Pillow's mode of the file: RGB, L, P, CMYK, I;16, ...
    frames: int  # frames or pages, at most MAX_FRAMES. The first one is used
    perceptual_hash: str


def inspect_image(source: bytes | Path) -> InspectedImage:
    """Decode an image, given as the bytes or path of its file, and return its properties.

    Raises:
        ImageError: If the image cannot be used. `reason` is `image too small` (a side below `MIN_SIDE`), or one of the
            reasons of `read_image`.
    """
    image = read_image(source)
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        message = f"image: {width} x {height} pixels, but each side must have {MIN_SIDE}"
        raise ImageError(message, "image too small")
    perceptual = perceptual_hash(image)  # before the frames are counted, because this moves to another frame
    return InspectedImage(width, height, image.mode, perceptual_hash=perceptual, frames=_count_frames(image, source))


class ImageIndex:
    """An index of images, such as the test images of a benchmark, that finds copies of them. Blank ones are ignored."""

    def __init__(self, perceptual_hashes: Iterable[str]):
        self._hashes = np.unique(_to_integers(perceptual_hashes))

    @classmethod
    def from_path(cls, path: str | os.PathLike[str], progress: bool = False) -> "ImageIndex":
        """Index an image, a Parquet file with a column `image` (such as a shard), or a folder of these at any depth.

        Images that cannot be read and files that are not images are listed in warnings.

        Raises:
            FileNotFoundError: If the path does not exist.
            ImportError: If images are DICOM and pydicom is not installed.
            ValueError: If no image can be compared.
        """
        root = Path(path)
        if not root.exists():
            raise FileNotFoundError(f"`decontaminate`: {path} does not exist.")
        content = find_images(root, link_depth=2) if root.is_dir() else FolderContent(others=[root])
        if is_image_file(root):
            content = FolderContent(images=[root])
        parquet = {file for file in content.others if _is_parquet(file)}
        files = sorted([*content.images, *parquet])
        if not files:
            raise ValueError(f"`decontaminate`: {path} contains no images and no Parquet files.")
        warn_of_left_out(root, [replace(content, others=[file for file in content.others if file not in parquet])])
        hashes: list[str] = []
        unreadable: list[str] = []
        for file in tqdm(files, desc="Benchmark images", unit="file", disable=not progress, dynamic_ncols=True):
            for name, source in _images_in(file, is_parquet=file in parquet):
                try:
                    hashes.append(source if isinstance(source, str) else inspect_image(source).perceptual_hash)
                except ImageError as error:
                    unreadable.append(f"{shown_name(name)} ({shown_name(str(error))})")
        count = len(unreadable) + len(hashes)
        if unreadable:
            shown = "; ".join(unreadable[:20]) + ("; ..." if len(unreadable) > 20 else "")
            logger.warning(
                "%s: %d of %d images cannot be read and are ignored: %s", path, len(unreadable), count, shown
            )
        index = cls(hashes)
        if not len(index):
            raise ValueError(
                f"`decontaminate`: none of the {count} images of {path} can be compared: {len(unreadable)} unreadable, "
                f"{len(hashes)} blank. A Parquet file needs a column 'image'."
            )
        return index

    def __len__(self) -> int:
        """Return the number of distinct hashes."""
        return len(self._hashes)

    def __repr__(self) -> str:
        digest = hashlib.blake2b(self._hashes.tobytes(), digest_size=8).hexdigest()
        return f"ImageIndex({len(self)} hashes, {digest})"

    def contains(self, perceptual_hash: str) -> bool:
        """Return whether the index contains (nearly) the image with this hash. Always False for a blank image."""
        return self.nearest(perceptual_hash) is not None

    def nearest(self, perceptual_hash: str) -> str | None:
        """Return the hash of an image that (nearly) equals the one with this hash, or None if there is none."""
        if not perceptual_hash or not len(self):
            return None
        distances = np.bitwise_count(self._hashes ^ np.uint64(int(perceptual_hash, 16)))
        nearest = int(distances.argmin())
        return f"{int(self._hashes[nearest]):016x}" if distances[nearest] <= NEAR_DUPLICATE_BITS else None


def count_duplicates(image_md5s: Iterable[str], perceptual_hashes: Iterable[str]) -> dict[str, int]:
    """Count the images with the MD5 (first 64 bits), and with the perceptual hash, of an earlier image.

    Blank images have an empty perceptual hash and are not counted.
    """
    counts = {}
    for name, hex_digits in (("same_bytes", image_md5s), ("same_image", perceptual_hashes)):
        integers = _to_integers(hex_digits)
        integers.sort()  # in place, while np.unique would need 700 MB more
        counts[name] = int(np.count_nonzero(integers[1:] == integers[:-1]))
    return counts


def _to_integers(hex_digits: Iterable[str]) -> np.ndarray:
    """Return the first 16 hex digits of each text as an integer. Empty texts are ignored."""
    return np.fromiter((int(digits[:16], 16) for digits in hex_digits if digits), dtype=np.uint64)


def _is_parquet(file: Path) -> bool:
    if not file.is_file():
        return False
    if file.suffix.lower() == ".parquet":
        return True
    try:
        with file.open("rb") as opened:
            return opened.read(4) == b"PAR1"
    except OSError:
        return False


def _images_in(file: Path, *, is_parquet: bool) -> Iterator[tuple[str, Path | bytes | str]]:
    """Yield the name of each image in a file, with its source, or with its perceptual hash if the file stores it."""
    if not is_parquet:
        yield str(file), file
        return
    try:
        table = open_parquet(file)
        names = table.schema_arrow.names
        column = "perceptual_hash" if "perceptual_hash" in names else "image"
        if column not in names:
            return  # another table, such as the articles of a built dataset
        row = 0
        for batch in table.iter_batches(batch_size=16, columns=[column]):
            for value in batch.column(0).to_pylist():
                content = value.get("bytes") if isinstance(value, dict) else value
                if column == "image" and isinstance(content, str):
                    content = None  # paths in rows are never opened
                yield f"{file}, row {row}", b"" if content is None else content
                row += 1
    except OSError as error:
        raise ValueError(f"`decontaminate`: {file} is not a readable Parquet file ({error}).") from error


def _count_frames(image: Image.Image, source: bytes | Path) -> int:
    try:
        if not isinstance(image, ImageFile.ImageFile):  # another library decoded the pixels
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=DECODABLE_FORMATS) as opened:
                return _count_frames(opened, source)
        if image.format != "TIFF":
            return getattr(image, "n_frames", 1)
        for page in range(1, MAX_FRAMES):
            try:
                image.seek(page)
            except EOFError:
                return page
        return MAX_FRAMES
    except Exception:  # frames after the first may be damaged, and are not used
        return 1
