"""Read TIFF and PNG files whose samples Pillow cannot represent or reads incorrectly.

Pillow truncates 16-bit color to 8 bits, reads unsigned 32-bit and signed 8-bit samples with the wrong sign, inverts
WhiteIsZero only up to 8 bits, and refuses other sample types. In this module, Pillow only decompresses the file, and
numpy interprets the bytes:

- A TIFF gets a second directory that declares each byte as an 8-bit grayscale sample. Predictors are undone here.
- A PNG of 16-bit color is decoded once for the high bytes and once for the low bytes.

Grayscale values keep their precision if a Pillow mode can represent them. Color and all other data are scaled to 8
bits by `scale_to_8_bit`. Transparency is dropped.
"""

import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from ..bit_depth_biomedclip import scale_to_8_bit


# Maximum number of bytes that are interpreted at once.
_BLOCK = 1 << 22
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIPS, _SAMPLES, _STRIP_ROWS, _STRIP_BYTES, _PLANAR, _PREDICTOR = 273, 277, 278, 279, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _SAMPLE_FORMAT = 322, 323, 324, 325, 339
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
# Compression methods that restore the original bytes: none, LZW, Deflate (two numbers), PackBits, LZMA, Zstandard.
_LOSSLESS = {1, 5, 8, 32946, 32773, 34925, 50000}
_WITHOUT_PREDICTOR = {1, 32773}  # libtiff ignores the tag for these
_NO_PREDICTOR, _HORIZONTAL, _FLOATING_POINT = 1, 2, 3
# (Sample format, bits) that Pillow reads exactly if there is one sample and black is zero. In compressed big-endian
# files, it swaps some bytes twice.
_EXACT_IN_PILLOW = {(_UNSIGNED, 12), (_UNSIGNED, 16), (_SIGNED, 16), (_SIGNED, 32), (_FLOAT, 32)}


@dataclass(frozen=True)
class DeepTiff:
    """A TIFF file that Pillow cannot read exactly."""

    content: bytes
    tags: ImageFileDirectory_v2  # the first directory
    big_endian: bool
    bits: int  # of a sample
    sample_format: int  # unsigned, signed or float
    samples: int  # per pixel
    channels: int  # number of samples that are read: 1 for gray, 3 for RGB

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        return int(self.tags[_WIDTH]), int(self.tags[_HEIGHT])

    @property
    def bytes_to_decode(self) -> int:
        """Upper bound of the memory for [`read`], in bytes, without the file."""
        planes = self.samples if self._is_planar else 1
        width, height = self.size
        # Pillow's image and libtiff's strip or tile, the samples, and the result.
        stored = self._row_bytes * (height + int(self.tags.get(_TILE_HEIGHT, 1)))
        return 2 * stored * planes + 4 * height * width

    def read(self) -> Image.Image:
        """Return the image in a mode of Pillow."""
        planes = self.channels if self._is_planar else 1
        values = np.concatenate([self._samples(plane) for plane in range(planes)], axis=2)
        if int(self.tags.get(_PHOTOMETRIC, _BLACK_IS_ZERO)) == _WHITE_IS_ZERO:
            values = -values if values.dtype.kind == "f" else ~values
        return _as_image(values)

    @property
    def _is_planar(self) -> bool:
        return self.samples > 1 and int(self.tags.get(_PLANAR, 1)) == 2

    @property
    def _pixel_samples(self) -> int:
        """Number of samples per pixel that are stored together in the file."""
        return 1 if self._is_planar else self.samples

    @property
    def _row_pixels(self) -> int:
        """Number of pixels per row, including the padding of tiles."""
        width, tile = self.size[0], int(self.tags.get(_TILE_WIDTH, 0))
        return -(-width // tile) * tile if tile else width

    @property
    def _row_bytes(self) -> int:
        return -(-self._row_pixels * self._pixel_samples * self.bits // 8)

    def _samples(self, plane: int) -> np.ndarray:
        """Return the samples of one plane, or of all if they are interleaved, in shape `(height, width, channels)`."""
        width, height = self.size
        with TiffImageFile(io.BytesIO(self._as_bytes(plane))) as image:  # Image.open would apply Pillow's size limit
            image.load()
            channels = 1 if self._is_planar else self.channels
            result: np.ndarray | None = None
            step = max(1, _BLOCK // self._row_bytes)
            for top in range(0, height, step):
                bottom = min(height, top + step)
                rows = np.asarray(image.crop((0, top, self._row_bytes, bottom)))
                block = self._interpret(rows)[:, :width, :channels]
                if result is None:
                    result = np.empty((height, width, channels), dtype=block.dtype)
                result[top:bottom] = block
        assert result is not None
        return result

    def _interpret(self, rows: np.ndarray) -> np.ndarray:
        """Convert bytes of shape `(rows, bytes)` to samples of shape `(rows, pixels, samples)`."""
        shape = (len(rows), self._row_pixels, self._pixel_samples)
        kind = {_SIGNED: "i", _FLOAT: "f"}.get(self.sample_format, "u")
        # A predictor works on the rows of a strip, or of each tile.
        segment = int(self.tags.get(_TILE_WIDTH, self._row_pixels)) * self._pixel_samples
        predictor = _predictor(self.tags)
        if self.bits % 8:
            bits = np.unpackbits(rows, axis=1)[:, : shape[1] * shape[2] * self.bits].reshape(*shape, self.bits)
            return bits @ (1 << np.arange(self.bits, dtype=np.int32)[::-1]).astype(np.uint16)
        size = self.bits // 8
        if predictor == _FLOATING_POINT:
            deltas = rows.reshape(len(rows), -1, segment * size // self._pixel_samples, self._pixel_samples)
            planes = np.cumsum(deltas, axis=2, dtype=np.uint8).reshape(len(rows), -1, size, segment)
            return np.ascontiguousarray(planes.swapaxes(2, 3)).view(f">f{size}").reshape(shape)
        order = ">" if self.big_endian else "<"
        if predictor == _HORIZONTAL:
            unsigned = f"u{size}"
            deltas = rows.view(f"{order}{unsigned}").astype(unsigned)
            deltas = deltas.reshape(len(rows), -1, segment // self._pixel_samples, self._pixel_samples)
            return np.cumsum(deltas, axis=2, dtype=unsigned).view(f"{kind}{size}").reshape(shape)
        return rows.view(f"{order}{kind}{size}").astype(f"{kind}{size}").reshape(shape)

    def _as_bytes(self, plane: int) -> bytes:
        """Return the file with a new directory that declares the bytes of a plane as an 8-bit grayscale image."""
        tiled = _TILES in self.tags
        offsets, counts = (_TILES, _TILE_BYTES) if tiled else (_STRIPS, _STRIP_BYTES)
        fields: dict[int, list[int]] = {
            _WIDTH: [self._row_bytes],
            _HEIGHT: [self.size[1]],
            _BITS: [8],
            _COMPRESSION: [int(self.tags.get(_COMPRESSION, 1))],
            _PHOTOMETRIC: [_BLACK_IS_ZERO],
            _SAMPLES: [1],
            _PLANAR: [1],
        }
        if _FILL_ORDER in self.tags:
            fields[_FILL_ORDER] = [int(self.tags[_FILL_ORDER])]
        if tiled:
            fields[_TILE_WIDTH] = [int(self.tags[_TILE_WIDTH]) * self._pixel_samples * self.bits // 8]
            fields[_TILE_HEIGHT] = [int(self.tags[_TILE_HEIGHT])]
        else:
            fields[_STRIP_ROWS] = [min(int(self.tags.get(_STRIP_ROWS, self.size[1])), self.size[1])]
        for tag in (offsets, counts):
            if tag in self.tags:
                numbers = _integers(self.tags[tag])
                share = len(numbers) // self.samples if self._is_planar else len(numbers)
                fields[tag] = numbers[plane * share : (plane + 1) * share]
        content = self.content + b"\0" * (len(self.content) % 2)
        return struct.pack("<2sHL", b"II", 42, len(content)) + content[8:] + _directory(fields, len(content))


@dataclass(frozen=True)
class DeepPng:
    """A PNG of 16-bit color, or of 16-bit grayscale with transparency."""

    content: bytes
    size: tuple[int, int]  # width and height, in pixels
    color_type: int  # 2 for RGB, 4 for grayscale with alpha, 6 for RGBA

    @property
    def bytes_to_decode(self) -> int:
        """Upper bound of the memory for [`read`], in bytes, without the file."""
        return 16 * self.size[0] * self.size[1]

    def read(self) -> Image.Image:
        """Return the image in mode `RGB`, or `I;16` for grayscale."""
        if self.color_type == 4:
            samples = self._decoded("RGBA", "RGBA")  # four bytes per pixel: two of grayscale, two of alpha
            return _as_image(samples[..., :1].astype(np.uint16) << 8 | samples[..., 1:2])
        mode = "RGB" if self.color_type == 2 else "RGBA"
        values = self._decoded(mode, f"{mode};16B")[..., :3].astype(np.uint16) << 8
        values |= self._decoded(mode, f"{mode};16L")[..., :3]  # the other byte of each sample
        return _as_image(values)

    def _decoded(self, mode: str, raw_mode: str) -> np.ndarray:
        with PngImageFile(io.BytesIO(self.content)) as image:
            image._mode = mode
            image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
            image.load()
            return np.asarray(image)


def find_deep_image(content: bytes) -> DeepTiff | DeepPng | None:
    """Return the reader for a file, or None if Pillow reads it exactly or cannot read it at all."""
    if content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 25:
        width, height = struct.unpack(">LL", content[16:24])
        is_deep = content[24] == 16 and content[25] in (2, 4, 6)
        return DeepPng(content, (width, height), content[25]) if is_deep else None
    if content[:4] not in (b"II*\0", b"MM\0*", b"II+\0"):
        return None
    try:
        return _find_deep_tiff(content)
    except (EOFError, OSError, SyntaxError, TypeError, ValueError, struct.error):
        return None  # damaged: Pillow raises a clear error


def _find_deep_tiff(content: bytes) -> DeepTiff | None:
    file = io.BytesIO(content)
    tags = ImageFileDirectory_v2(file.read(16 if content[2:3] == b"+" else 8))
    file.seek(tags.next)
    tags.load(file)
    if not (int(tags.get(_WIDTH, 0)) > 0 and int(tags.get(_HEIGHT, 0)) > 0 and {_STRIPS, _TILES} & set(tags)):
        return None
    samples = int(tags.get(_SAMPLES, 1))
    bits, formats = set(_integers(tags.get(_BITS, 1))), set(_integers(tags.get(_SAMPLE_FORMAT, _UNSIGNED)))
    photometric = int(tags.get(_PHOTOMETRIC, _BLACK_IS_ZERO))
    channels = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3}.get(photometric, 0)
    if len(bits) > 1 or len(formats) > 1 or not 0 < channels <= samples:
        return None
    (sample_bits,), (sample_format,) = bits, formats
    packed = sample_bits % 8 != 0
    sample_format = _UNSIGNED if sample_format == _UNDEFINED else sample_format
    predictor = _predictor(tags)
    kinds = {_UNSIGNED: {8, 16, 32, 64, *range(9, 16)}, _SIGNED: {8, 16, 32, 64}, _FLOAT: {16, 32, 64}}
    if (
        sample_bits not in kinds.get(sample_format, set())
        or (sample_bits == 8 and sample_format == _UNSIGNED)
        or int(tags.get(_COMPRESSION, 1)) not in _LOSSLESS
        or (packed and (predictor != _NO_PREDICTOR or _TILES in tags))
        or (predictor == _FLOATING_POINT and sample_format != _FLOAT)
        or predictor not in (_NO_PREDICTOR, _HORIZONTAL, _FLOATING_POINT)
    ):
        return None
    big_endian, compressed = content[:2] == b"MM", int(tags.get(_COMPRESSION, 1)) != 1
    exact = (sample_format, sample_bits) in _EXACT_IN_PILLOW and not (big_endian and compressed)
    if exact and samples == 1 and photometric == _BLACK_IS_ZERO:
        return None
    return DeepTiff(content, tags, big_endian, sample_bits, sample_format, samples, channels)


def _as_image(values: np.ndarray) -> Image.Image:
    """Convert values of shape `(height, width, channels)` to a mode that represents them exactly, or to 8 bits."""
    if values.shape[2] == 1:
        values = values[..., 0]
        if values.dtype == np.uint16:
            return Image.fromarray(values)
        if values.dtype.kind in "iu" and values.min() >= -(2**31) and values.max() < 2**31:
            return Image.fromarray(values.astype(np.int32))
        if values.dtype.kind == "f" and values.dtype.itemsize <= 4:
            return Image.fromarray(values.astype(np.float32))
    return Image.fromarray(scale_to_8_bit(values))


def _predictor(tags: ImageFileDirectory_v2) -> int:
    ignored = int(tags.get(_COMPRESSION, 1)) in _WITHOUT_PREDICTOR
    return _NO_PREDICTOR if ignored else int(tags.get(_PREDICTOR, _NO_PREDICTOR))


def _integers(value: Any) -> list[int]:
    return [int(number) for number in value] if isinstance(value, tuple | list) else [int(value)]


def _directory(fields: dict[int, list[int]], offset: int) -> bytes:
    """Return a TIFF directory of little-endian 32-bit numbers, for the given offset in the file."""
    long_type = 4
    head, data = struct.pack("<H", len(fields)), b""
    data_offset = offset + 2 + 12 * len(fields) + 4
    for tag, numbers in sorted(fields.items()):
        packed = struct.pack(f"<{len(numbers)}L", *numbers)
        if len(numbers) != 1:
            packed, data = struct.pack("<L", data_offset + len(data)), data + packed
        head += struct.pack("<HHL", tag, long_type, len(numbers)) + packed
    return head + struct.pack("<L", 0) + data
