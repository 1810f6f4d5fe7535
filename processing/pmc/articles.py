"""One article on its way through the build, and the decision which articles and versions are taken."""

import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .jats import Figure

COMMERCIAL_LICENSES = frozenset({"CC0", "CC BY", "CC BY-SA", "CC BY-ND"})
NONCOMMERCIAL_LICENSES = COMMERCIAL_LICENSES | {"CC BY-NC", "CC BY-NC-SA", "CC BY-NC-ND"}
# In the footer of each shard: pairs by licence of each row group, so that readers can choose without reading rows.
LICENSES_KEY = "biomedclip.licenses"
KEPT = "kept"
MAX_DETAIL = 400  # characters of what is listed: names and messages may hold what an untrusted article says


class Dropped(Exception):
    """Raised by a step that leaves an article out; `reason` is one of a few words, `detail` tells the case."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass
class Article:
    """
    An article and what the steps have made of it so far.

    Args:
        pmcid: `PMC<id>`.
        versions: The versions that the source holds.
        mark: Changes when the article does, see [`work_list_schema`].
        version: The version that is taken.
        metadata: Its metadata JSON.
        xml: Its XML; emptied once parsed.
        figures: Its figures as the XML has them.
        pictures: Contents of its picture files by name, or why a file could not be had; emptied once paired.
        pairs: Rows of the data set, the split still empty.
        skipped: What was left out, a row each: item (empty for the article itself), reason, detail.
        outcome: `kept`, or the reason why the whole article is out; empty as long as it is on its way.
    """

    pmcid: str
    versions: Sequence[int] = ()
    mark: str = ""
    version: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    xml: bytes = b""
    figures: "list[Figure]" = field(default_factory=list)
    pictures: dict[str, bytes | Exception] = field(default_factory=dict)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    outcome: str = ""

    @property
    def name(self) -> str:
        """`PMC<id>.<version>`, the name of its folder."""
        return f"{self.pmcid}.{self.version}" if self.version is not None else self.pmcid

    def skip(self, item: str, reason: str, detail: str = "") -> None:
        """
        Lists one thing that is left out: a figure, picture or version, or the article itself (`item` empty).

        The texts are made such that they can be stored, and cut to `MAX_DETAIL` characters.
        """
        self.skipped.append((storable_text(item[:MAX_DETAIL]), reason, storable_text(detail[:MAX_DETAIL])))

    def drop(self, reason: str, detail: str = "") -> None:
        """Leaves the whole article out, and lets go of what was read of it."""
        self.outcome = reason
        self.skip("", reason, detail)
        self.xml = b""
        self.pairs.clear()
        self.pictures.clear()


def storable_text(text: str) -> str:
    """The text in UTF-8: JSON and file names may hold halves of characters, which become question marks."""
    return text.encode("utf-8", "replace").decode()


def parse_licenses(choice: str | Collection[str]) -> frozenset[str] | None:
    """
    The licence codes that a choice stands for.

    Args:
        choice: `commercial`, `noncommercial` (every Creative Commons licence), `all`, or codes such as
            `CC BY,CC0`, in one text or a list.

    Returns:
        The codes, or none where all are welcome.

    Raises:
        ValueError: No code, or one that looks like a slip of the pen.
    """
    named = {"commercial": COMMERCIAL_LICENSES, "noncommercial": NONCOMMERCIAL_LICENSES, "all": None}
    if isinstance(choice, str) and choice in named:
        return named[choice]
    parts = choice.split(",") if isinstance(choice, str) else choice
    codes = frozenset(code.strip() for code in parts if code.strip())
    if not codes:
        raise ValueError("No licence is named; say commercial, noncommercial, all, or codes such as 'CC BY,CC0'.")
    for code in codes - NONCOMMERCIAL_LICENSES:
        close = difflib.get_close_matches(code.upper(), [*NONCOMMERCIAL_LICENSES, *map(str.upper, named)], n=1)
        if close and code != "TDM":
            hint = close[0] if close[0] in NONCOMMERCIAL_LICENSES else close[0].lower()
            raise ValueError(f"{code!r} is not a licence code of PMC. Did you mean {hint!r}?")
    return codes


def decide(metadata: dict[str, Any], licenses: Collection[str] | None) -> None:
    """
    Decides by its metadata whether an article version can be taken: before its XML is fetched.

    Args:
        metadata: The metadata JSON.
        licenses: Codes that are welcome, or none for all.

    Raises:
        Dropped: It cannot; the reason says why.
    """
    if not isinstance(metadata.get("media_urls") or [], list) or not isinstance(metadata.get("xml_url") or "", str):
        raise Dropped("metadata damaged", "media_urls is not a list, or xml_url not a text")
    if metadata.get("is_retracted"):
        raise Dropped("retracted")
    if not metadata.get("is_pmc_openaccess"):
        raise Dropped("not open access")
    if metadata.get("is_historical_ocr"):
        raise Dropped("historical OCR")
    code = metadata.get("license_code")
    if licenses is not None and code not in licenses:
        raise Dropped("licence not asked for", str(code))
    if not metadata.get("xml_url"):
        raise Dropped("metadata without xml_url")


def choose_version(
    article: Article, read_metadata: Callable[[str], dict[str, Any]], licenses: Collection[str] | None
) -> None:
    """
    Takes the best version of an article: the newest published one that can be taken, else the newest manuscript.

    Sets `version` and `metadata`. The newest version says whether the article is retracted.

    Args:
        article: The article.
        read_metadata: Gives the metadata of `PMC<id>.<version>`, or raises `Dropped`.
        licenses: Codes that are welcome, or none for all.

    Raises:
        Dropped: None can be taken; the reason is that of the newest.
    """
    first: tuple[int, Dropped] | None = None
    unreadable: list[tuple[int, Dropped]] = []
    manuscript: tuple[int, dict[str, Any]] | None = None
    for version in sorted(article.versions, reverse=True):
        try:
            metadata = read_metadata(f"{article.pmcid}.{version}")
            decide(metadata, licenses)
        except Dropped as refusal:
            first = first or (version, refusal)
            if refusal.reason == "retracted":
                first, manuscript = (version, refusal), None
                break
            if refusal.reason == "metadata unreadable":
                unreadable.append((version, refusal))
            continue
        if not metadata.get("is_manuscript"):
            article.version, article.metadata = version, metadata
            break
        manuscript = manuscript or (version, metadata)
    if article.version is None and manuscript is not None:
        article.version, article.metadata = manuscript
    if article.version is None:
        article.version, reason = first or (None, Dropped("not in the source"))
        raise reason
    for version, reason in unreadable:
        article.skip(f"version {version}", f"{reason.reason}, another version taken", reason.detail)
