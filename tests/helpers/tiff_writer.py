"""Write TIFF files of any sample type, and 16-bit PNG files. Pillow only compresses."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


WITHOUT_PREDICTOR = (None, "packbits")  # the tag is ignored
COMPRESSIONS = {None: 1, "tiff_lzw": 5, "deflate": 8, "packbits": 32773, "zstd": 50000}


def tiff(
    pixels: np.ndarray,
    photometric: int | None = None,
    byteorder: str = "<",
    big: bool = False,
    compression: str | None = None,
    predictor: int = 1,
    planar: bool = False,
    tile: int | None = None,
    rows_per_strip: int | None = None,
    extra_samples: int = 0,
    without: tuple[int, ...] = (),
) -> bytes:
    """Return the bytes of a file, or of a BigTIFF (`big`), without the tags `without`.

    `pixels` have the shape `(height, width)` or `(height, width, samples)`. Photometric: 0 white is zero, 1 black is
    zero, 2 RGB (the default for three or four samples). Predictor: 1 none, 2 horizontal, 3 floating point. The file has
    tiles of the side `tile`, or strips of `rows_per_strip` (default: one strip).
    """
    cube = pixels if pixels.ndim == 3 else pixels[..., None]
    height, width, samples = cube.shape
    rows, columns = (tile, tile) if tile else (rows_per_strip or height, width)
    if tile:
        cube = np.pad(cube, [(0, -height % tile), (0, -width % tile), (0, 0)], mode="edge")
    chunks = [
        plane[top : top + rows, left : left + columns]
        for plane in (np.split(cube, samples, axis=2) if planar else [cube])
        for top in range(0, height, rows)
        for left in range(0, width, columns)
    ]
    stored = [
        _compressed(_predicted(chunk, 1 if compression in WITHOUT_PREDICTOR else predictor, byteorder), compression)
        for chunk in chunks
    ]

    fields: dict[int, list[int]] = {
        256: [width],
        257: [height],
        258: [8 * pixels.dtype.itemsize] * samples,
        259: [COMPRESSIONS[compression]],
        262: [(2 if samples > 2 else 1) if photometric is None else photometric],
        277: [samples],
        284: [2 if planar else 1],
        317: [predictor],
        339: [{"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]] * samples,
    }
    if extra_samples:
        fields[338] = [2] * extra_samples
    offsets, counts = (324, 325) if tile else (273, 279)
    fields |= {322: [tile], 323: [tile]} if tile else {278: [rows]}
    sizes = [len(chunk) for chunk in stored]
    fields |= {offsets: np.cumsum([16, *sizes[:-1]]).tolist(), counts: sizes}
    fields = {tag: numbers for tag, numbers in fields.items() if tag not in without}
    body = b"".join(stored)
    body += b"\0" * (len(body) % 2)
    return _header(byteorder, big, 16 + len(body)) + body + _directory(fields, byteorder, big, 16 + len(body))


def _predicted(chunk: np.ndarray, predictor: int, byteorder: str) -> np.ndarray:
    """Apply the predictor. Return bytes of shape (rows, bytes)."""
    rows, columns, samples = chunk.shape
    size = chunk.dtype.itemsize
    if predictor == 3:
        flat = np.ascontiguousarray(chunk).astype(f">f{size}").reshape(rows, -1)
        planes = flat.view(np.uint8).reshape(rows, -1, size).swapaxes(1, 2).reshape(rows, columns * size, samples)
        return np.diff(planes, axis=1, prepend=np.zeros((rows, 1, samples), np.uint8)).reshape(rows, -1)
    if predictor == 2:
        unsigned = np.ascontiguousarray(chunk).view(f"u{size}")
        chunk = np.diff(unsigned, axis=1, prepend=np.zeros((rows, 1, samples), unsigned.dtype))
    flat = np.ascontiguousarray(chunk).astype(chunk.dtype.newbyteorder(byteorder)).reshape(rows, -1)
    return flat.view(np.uint8)


def _compressed(rows: np.ndarray, compression: str | None) -> bytes:
    if compression is None:
        return rows.tobytes()
    if compression == "deflate":
        return zlib.compress(rows.tobytes())
    buffer = io.BytesIO()
    Image.fromarray(rows).save(buffer, "TIFF", compression=compression, strip_size=2**31 - 1)
    with Image.open(buffer) as image:
        (offset,), (count,) = image.tag_v2[273], image.tag_v2[279]
    return buffer.getvalue()[offset : offset + count]


def _header(byteorder: str, big: bool, directory: int) -> bytes:
    mark = b"II" if byteorder == "<" else b"MM"
    if big:
        return mark + struct.pack(f"{byteorder}HHHQ", 43, 8, 0, directory)
    return mark + struct.pack(f"{byteorder}HL", 42, directory) + b"\0" * 8


def _directory(fields: dict[int, list[int]], byteorder: str, big: bool, offset: int) -> bytes:
    count, entry, room = ("Q", "HHQ", 8) if big else ("H", "HHL", 4)
    head, data = struct.pack(f"{byteorder}{count}", len(fields)), b""
    after = offset + len(head) + len(fields) * (struct.calcsize(f"={entry}") + room) + room
    for tag, numbers in sorted(fields.items()):
        packed = struct.pack(f"{byteorder}{len(numbers)}L", *numbers)
        if len(packed) > room:
            place = struct.pack(f"{byteorder}{'Q' if big else 'L'}", after + len(data))
            packed, data = place, data + packed
        head += struct.pack(f"{byteorder}{entry}", tag, 4, len(numbers)) + packed.ljust(room, b"\0")
    return head + b"\0" * room + data


def png16(pixels: np.ndarray, interlaced: bool = False) -> bytes:
    """Return a 16-bit PNG that uses every filter, of 1 (gray), 2 (with alpha), 3 (RGB) or 4 samples."""
    cube = pixels if pixels.ndim == 3 else pixels[..., None]
    height, width, samples = cube.shape
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[samples]
    adam7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    passes = [cube[y::dy, x::dx] for x, y, dx, dy in adam7] if interlaced else [cube]
    lines = b"".join(_filtered(part) for part in passes if part.size)
    fields = struct.pack(">LLBBBBB", width, height, 16, color_type, 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", fields), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    )


def _filtered(part: np.ndarray) -> bytes:
    rows = np.ascontiguousarray(part).astype(">u2").reshape(len(part), -1).view(np.uint8).astype(int)
    distance = 2 * part.shape[2]
    above = np.zeros_like(rows[0])
    lines = []
    for number, row in enumerate(rows):
        left = np.concatenate([np.zeros(distance, int), row[:-distance]])
        corner = np.concatenate([np.zeros(distance, int), above[:-distance]])
        estimate = left + above - corner
        nearest = np.abs(np.stack([left, above, corner]) - estimate).argmin(0)
        paeth = np.choose(nearest, [left, above, corner])
        predictions = [0, left, above, (left + above) // 2, paeth]
        lines.append(bytes([number % 5]) + ((row - predictions[number % 5]) % 256).astype(np.uint8).tobytes())
        above = row
    return b"".join(lines)
