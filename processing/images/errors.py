"""The error for images that cannot be used, and the size limits of all readers.

Every reader raises `ImageError` for an image that cannot be used. Code that reads many images either raises an error
with the name of the image, or skips the image, counts it and logs a warning with its name. No image is skipped
silently.
"""

MAX_PIXELS = 175_000_000  # a page scanned at 1,200 dpi has 140 million
# Memory of a decoded image, including its file and the decoder, so that a process stays below 1 GiB.
MAX_BYTES = 700_000_000


class ImageError(ValueError):
    """Raised if an image cannot be used.

    Args:
        message: The name of the image and what is wrong with it.
        reason: Category for counting: `image missing`, `image unreadable`, `image of unknown format`, `image too
            large`, `image too small` or `image damaged`.
    """

    def __init__(self, message: str, reason: str = "image damaged"):
        super().__init__(message)
        self.reason = reason


def check_size(name: str, size: tuple[int, int], bytes_needed: int, kind: str) -> None:
    """Raise an error for an image that is too large, before it is decoded.

    `size` is the width and height in pixels, and `bytes_needed` an upper bound of the memory, including the file.
    """
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width} x {height} pixels are more than {MAX_PIXELS:,} pixels", "image too large")
    if bytes_needed > MAX_BYTES:
        problem = f"decoding {width} x {height} pixels of {kind} may take more than {MAX_BYTES:,} bytes"
        raise ImageError(f"{name}: {problem}", "image too large")
