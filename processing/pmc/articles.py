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
FIGURES_PER_ARTICLE = 1000  # default maximum number of figure images per article
MAX_DETAIL = 400  # characters of what is listed: names and messages may hold what an untrusted article says


class Dropped(Exception):
    """Raised by a step that leaves an article out.

    Args:
        reason: One of a few words, for counting.
        detail: The case.
        all_versions: Whether the reason, found in one version, holds for the others too.
    """

    def __init__(self, reason: str, detail: str = "", all_versions: bool = False):
        super().__init__(reason, detail, all_versions)
        self.reason = reason
        self.detail = detail
        self.all_versions = all_versions


@dataclass
class Article:
    """An article and what the steps have made of it so far.

    Args:
        pmcid: `PMC<id>`.
        versions: The versions that the source holds.
        mark: Changes when the article does, see [`work_list_schema`].
        version: The version that is taken.
        metadata: Its metadata JSON.
        xml: Its XML; emptied once parsed.
        figures: Its figures as the XML has them, up to the limit for one article.
        figures_cut: Number of figures beyond that limit.
        pictures: Contents of its picture files by name, or why a file could not be had; emptied once paired.
        pairs: Rows of the data set, the split still empty.
        skipped: What was left out, a row each: item (empty for the article itself), reason, detail, and the number of
            items where it is more than one.
        outcome: `kept`, or the reason why the whole article is out; empty as long as it is on its way.
    """

    pmcid: str
    versions: Sequence[int] = ()
    mark: str = ""
    version: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    xml: bytes = b""
    figures: "list[Figure]" = field(default_factory=list)
    figures_cut: int = 0
    pictures: dict[str, bytes | Exception] = field(default_factory=dict)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[tuple[Any, ...]] = field(default_factory=list)
    outcome: str = ""

    @property
    def name(self) -> str:
        """`PMC<id>.<version>`, the name of its folder."""
        return f"{self.pmcid}.{self.version}" if self.version is not None else self.pmcid

    def skip(self, item: str, reason: str, detail: str = "", count: int = 1) -> None:
        """List something that is left out. The texts are cut to `MAX_DETAIL` characters and made storable.

        Args:
            item: A figure, picture or version; empty for the article itself.
            reason: One of a few words, for counting.
            detail: The case.
            count: Number of items that this row stands for.
        """
        row = (storable_text(item[:MAX_DETAIL]), reason, storable_text(detail[:MAX_DETAIL]))
        self.skipped.append(row if count == 1 else (*row, count))

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
    """The licence codes that a choice stands for.

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


_TEXT, _FLAG = (str,), (bool,)
# Types of the fields that PMC documents. A field may be missing or null; other fields are not looked at.
_TYPES: dict[str, tuple[type, ...]] = {
    "pmcid": _TEXT,
    "version": (int,),
    "pmid": (int, str),
    "doi": _TEXT,
    "title": _TEXT,
    "citation": _TEXT,
    "is_pmc_openaccess": _FLAG,
    "is_manuscript": _FLAG,
    "is_historical_ocr": _FLAG,
    "is_retracted": _FLAG,
    "license_code": _TEXT,
    "xml_url": _TEXT,
    "text_url": _TEXT,
    "pdf_url": _TEXT,
    "media_urls": (list,),
}
_TYPE_NAMES = {str: "text", int: "an integer", bool: "true or false", list: "a list of texts"}
_FOUND_NAMES = {str: "text", bool: "true or false", list: "a list", dict: "an object"}


def _check_types(metadata: dict[str, Any]) -> None:
    """Raise `Dropped` if a value has the wrong type: what it means cannot be known, as of `"is_retracted": "false"`.

    A version that may be retracted stands for all versions.
    """
    for name in ("is_retracted", *_TYPES):  # this one first
        value, types = metadata.get(name), _TYPES[name]
        if value is None:
            continue
        wrong = type(value) not in types
        if name == "media_urls" and not wrong:
            wrong, value = next(((True, url) for url in value if type(url) is not str), (False, value))
        if wrong:
            wanted = " or ".join(_TYPE_NAMES[kind] for kind in types)
            found = _FOUND_NAMES.get(type(value), "null" if value is None else "a number")
            detail = f"{name} holds {found}, {str(value)[:100]!r}, and should be {wanted}"
            raise Dropped("metadata damaged", detail, all_versions=name == "is_retracted")


def decide(metadata: dict[str, Any], licenses: Collection[str] | None) -> None:
    """Decides by its metadata whether an article version can be taken: before its XML is fetched.

    Args:
        metadata: The metadata JSON.
        licenses: Codes that are welcome, or none for all.

    Raises:
        Dropped: It cannot; the reason says why.
    """
    _check_types(metadata)
    if metadata.get("is_retracted"):
        raise Dropped("retracted", all_versions=True)
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
    """Takes the best version of an article: the newest published one that can be taken, else the newest manuscript.

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
            if refusal.all_versions:
                first, manuscript = (version, refusal), None
                break
            if refusal.reason in ("metadata unreadable", "metadata damaged"):
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
