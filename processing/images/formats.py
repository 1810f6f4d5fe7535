"""Detect the supported image formats from the first bytes of a file."""

import re


DECODABLE_FORMATS = ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "JPEG2000")
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .gif .tif .tiff .bmp .webp .jp2 .j2k .j2c .jpc .jpf .jpx".split()
)
DICOM_SUFFIXES = frozenset((".dcm", ".dicom", ".ima"))
HEAD_BYTES = 512  # number of first bytes that `format_of` needs

_SIGNATURES = (
    # First, because the preamble of a DICOM file may be the header of a TIFF.
    (re.compile(rb".{128}DICM", re.DOTALL), "DICOM"),
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG"),
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]"), "TIFF"),
    # Text files may also begin with BM, so the size of the second header is checked too.
    (re.compile(rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL), "BMP"),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "WEBP"),
    (re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"), "JPEG2000"),
    # Some DICOM files have no preamble. They begin with an element of group 2 or 8: its tag, then its type and length,
    # or only its length.
    (re.compile(rb"[\x02\x08]\0.\0(?:UL|UI|CS|SH|LO|DA|TM|OB)", re.DOTALL), "DICOM"),
    (re.compile(rb"[\x02\x08]\0[\0\x05\x08\x12\x13\x14\x16\x18]\0.\0\0\0", re.DOTALL), "DICOM"),
)
# A DICOMDIR is an index of the files on a disc, not an image.
_DICOM_DIRECTORY = re.compile(rb"1\.2\.840\.10008\.1\.3\.10(?![0-9.])")


def format_of(head: bytes) -> str | None:
    """Return the image format of a file from its first `HEAD_BYTES` bytes.

    The format is one of `DECODABLE_FORMATS`, `"DICOM"`, or None if the file is not an image of a supported format.
    """
    head = head[:HEAD_BYTES]
    found = next((name for signature, name in _SIGNATURES if signature.match(head)), None)
    return None if found == "DICOM" and _DICOM_DIRECTORY.search(head) else found
