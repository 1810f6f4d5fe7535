"""One article on its way through the build, and the decision which articles are taken."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from .jats import Figure


COMMERCIAL_LICENSES = frozenset({"CC0", "CC BY", "CC BY-SA", "CC BY-ND"})
NONCOMMERCIAL_LICENSES = COMMERCIAL_LICENSES | {"CC BY-NC", "CC BY-NC-SA", "CC BY-NC-ND"}


class Dropped(Exception):
    """Raised by a step that leaves an article out; `reason` is one of a few words, `detail` tells the case."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass
class Article:
    """
    An article version and what the steps have made of it so far.

    Args:
        name: `PMC<id>.<version>`.
        metadata: Its metadata JSON.
        figures: Its figures as the XML has them.
        pairs: Rows of the data set, the split still empty.
        skipped: What was left out, a row each: `article`, `item`, `reason`, `detail`.
        dropped: Whether the whole article is out.
    """

    name: str
    metadata: dict[str, Any] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    dropped: bool = False

    def skip(self, item: str, reason: str, detail: str = "") -> None:
        """Lists one thing that is left out: the article itself (`item` empty), or a figure or picture of it."""
        self.skipped.append({"article": self.name, "item": item, "reason": reason, "detail": detail})


def parse_licenses(choice: str) -> frozenset[str] | None:
    """
    The licence codes that a choice stands for.

    Args:
        choice: `commercial`, `noncommercial` (every Creative Commons licence), `all`, or codes such as
            `CC BY,CC0`.

    Returns:
        The codes, or none where all are welcome.
    """
    named = {"commercial": COMMERCIAL_LICENSES, "noncommercial": NONCOMMERCIAL_LICENSES, "all": None}
    if choice in named:
        return named[choice]
    codes = frozenset(code.strip() for code in choice.split(",") if code.strip())
    if not codes:
        raise ValueError("--license is empty; say commercial, noncommercial, all, or codes such as 'CC BY,CC0'.")
    return codes


def decide(metadata: dict[str, Any], licenses: Collection[str] | None) -> None:
    """
    Decides by its metadata whether an article is taken: before its XML is fetched.

    Args:
        metadata: The metadata JSON.
        licenses: Codes that are welcome, or none for all.

    Raises:
        Dropped: It is not; the reason says why.
    """
    if not metadata.get("is_pmc_openaccess"):
        raise Dropped("not open access")
    if metadata.get("is_retracted"):
        raise Dropped("retracted")
    if metadata.get("is_historical_ocr"):
        raise Dropped("historical OCR")
    code = metadata.get("license_code")
    if licenses is not None and code not in licenses:
        raise Dropped("licence not asked for", str(code))
    if not metadata.get("xml_url"):
        raise Dropped("metadata without xml_url")
