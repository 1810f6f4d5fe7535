"""The state of an article during the build, and the selection of articles and versions by metadata."""

import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .jats import Figure

COMMERCIAL_LICENSES = frozenset({"CC0", "CC BY", "CC BY-SA", "CC BY-ND"})
NONCOMMERCIAL_LICENSES = COMMERCIAL_LICENSES | {"CC BY-NC", "CC BY-NC-SA", "CC BY-NC-ND"}
# Key in the footer of each shard. Its value is the number of pairs of each row group by license, so that readers can
# skip row groups.
LICENSES_KEY = "biomedclip.licenses"
KEPT = "kept"
FIGURES_PER_ARTICLE = 1000  # default maximum number of figure images per article
# Columns of articles.parquet if the dataset has panels: figures that the detector read, those with several panels,
# those whose caption was split, and those on which the detector failed.
PANEL_COUNTS = ("examined_figures", "compound_figures", "split_captions", "failed_figures")
MAX_DETAIL = 400  # characters of names and messages in skipped.jsonl, which may contain text of an untrusted article


class Dropped(Exception):
    """Raised if an article cannot be used, or a version of it unless `all_versions` is set. Reasons are counted."""

    def __init__(self, reason: str, detail: str = "", all_versions: bool = False):
        super().__init__(reason, detail, all_versions)
        self.reason = reason
        self.detail = detail
        self.all_versions = all_versions


@dataclass
class Article:
    """An article and the results of the steps so far."""

    pmcid: str  # PMC<id>
    versions: Sequence[int] = ()  # that the source contains
    source_etag: str = ""  # ETags of the metadata of all versions, as in WORK_LIST_SCHEMA
    version: int | None = None  # the version that is used
    metadata: dict[str, Any] = field(default_factory=dict)
    xml: bytes = b""  # cleared after parsing
    figures: "list[Figure]" = field(default_factory=list)  # up to the limit per article
    figures_cut: int = 0  # number of figures beyond the limit
    images: dict[str, bytes | Exception] = field(default_factory=dict)  # contents or errors by file name
    pairs: list[dict[str, Any]] = field(default_factory=list)  # rows of the dataset, without the split
    panel_counts: dict[str, int] | None = None  # PANEL_COUNTS, if a detector looked for panels
    # Item (empty for the article itself), reason, detail, and the number of items if it is greater than 1.
    skipped: list[tuple[Any, ...]] = field(default_factory=list)
    outcome: str = ""  # why the article was dropped

    @property
    def name(self) -> str:
        """The name of the folder of the version: `PMC<id>.<version>`."""
        return f"{self.pmcid}.{self.version}" if self.version is not None else self.pmcid

    def skip(self, item: str, reason: str, detail: str = "", count: int = 1) -> None:
        """Record `count` skipped items: a figure, image or version, or "" for the article. Texts are truncated."""
        row = (storable_text(item[:MAX_DETAIL]), reason, storable_text(detail[:MAX_DETAIL]))
        self.skipped.append(row if count == 1 else (*row, count))

    def drop(self, reason: str, detail: str = "") -> None:
        """Drop the whole article and free its memory."""
        self.outcome = reason
        self.skip("", reason, detail)
        self.xml = b""
        self.pairs.clear()
        self.images.clear()


def storable_text(text: str) -> str:
    """Replace surrogates, which JSON may contain, with question marks, so that the text can be encoded in UTF-8."""
    return text.encode("utf-8", "replace").decode()


def parse_licenses(choice: str | Collection[str]) -> frozenset[str] | None:
    """Return the license codes for a choice, or None if every license is allowed.

    A choice is `commercial`, `noncommercial` (every Creative Commons license), `all`, or codes such as `CC BY,CC0` as a
    string or a list.

    Raises:
        ValueError: If `choice` is empty, or a code looks like a misspelled license code of PMC.
    """
    named = {"commercial": COMMERCIAL_LICENSES, "noncommercial": NONCOMMERCIAL_LICENSES, "all": None}
    if isinstance(choice, str) and choice in named:
        return named[choice]
    parts = choice.split(",") if isinstance(choice, str) else choice
    codes = frozenset(code.strip() for code in parts if code.strip())
    if not codes:
        raise ValueError("No license is selected. Pass commercial, noncommercial, all, or codes such as 'CC BY,CC0'.")
    for code in codes - NONCOMMERCIAL_LICENSES:
        close = difflib.get_close_matches(code.upper(), [*NONCOMMERCIAL_LICENSES, *map(str.upper, named)], n=1)
        if close and code != "TDM":
            hint = close[0] if close[0] in NONCOMMERCIAL_LICENSES else close[0].lower()
            raise ValueError(f"{code!r} is not a license code of PMC. Did you mean {hint!r}?")
    return codes


# Types of the fields that PMC documents, the most important one first. A field may be missing or null.
_TYPES: dict[str, tuple[type, ...]] = {
    "is_retracted": (bool,),
    "pmcid": (str,),
    "version": (int,),
    "pmid": (int, str),
    **dict.fromkeys(("doi", "title", "citation"), (str,)),
    **dict.fromkeys(("is_pmc_openaccess", "is_manuscript", "is_historical_ocr"), (bool,)),
    **dict.fromkeys(("license_code", "xml_url", "text_url", "pdf_url"), (str,)),
    "media_urls": (list,),
}
_TYPE_NAMES = {str: "text", int: "an integer", bool: "true or false", list: "a list of texts"}
_FOUND_NAMES = {str: "text", bool: "true or false", list: "a list", dict: "an object"}


def _check_types(metadata: dict[str, Any]) -> None:
    """Drop an article if a metadata value has the wrong type, such as `"is_retracted": "false"`, which is ambiguous.

    If `is_retracted` has the wrong type in one version, all versions are dropped.
    """
    for name, types in _TYPES.items():
        value = metadata.get(name)
        if value is None:
            continue
        wrong = type(value) not in types
        if name == "media_urls" and not wrong:
            wrong, value = next(((True, url) for url in value if type(url) is not str), (False, value))
        if wrong:
            expected = " or ".join(_TYPE_NAMES[kind] for kind in types)
            found = _FOUND_NAMES.get(type(value), "null" if value is None else "a number")
            detail = f"{name} is {found}, {str(value)[:100]!r}, but should be {expected}"
            raise Dropped("metadata damaged", detail, all_versions=name == "is_retracted")


def check_metadata(metadata: dict[str, Any], licenses: Collection[str] | None) -> None:
    """Raise `Dropped` if the metadata of a version show that it cannot be used. `licenses` None allows all."""
    _check_types(metadata)
    if metadata.get("is_retracted"):
        raise Dropped("retracted", all_versions=True)
    if not metadata.get("is_pmc_openaccess"):
        raise Dropped("not open access")
    if metadata.get("is_historical_ocr"):
        raise Dropped("historical OCR")
    code = metadata.get("license_code")
    if licenses is not None and code not in licenses:
        raise Dropped("license not allowed", str(code))
    if not metadata.get("xml_url"):
        raise Dropped("metadata without xml_url")


def choose_version(
    article: Article, read_metadata: Callable[[str], dict[str, Any]], licenses: Collection[str] | None
) -> None:
    """Set the version and metadata of an article: the newest usable published version, or else the newest manuscript.

    `read_metadata` returns the metadata of `PMC<id>.<version>`, or raises `Dropped`. If a version is retracted, the
    article is dropped. If no version can be used, the reason is that of the newest version.
    """
    newest: tuple[int, Dropped] | None = None
    unreadable: list[tuple[int, Dropped]] = []
    manuscript: tuple[int, dict[str, Any]] | None = None
    for version in sorted(article.versions, reverse=True):
        try:
            metadata = read_metadata(f"{article.pmcid}.{version}")
            check_metadata(metadata, licenses)
        except Dropped as refusal:
            newest = newest or (version, refusal)
            if refusal.all_versions:
                newest, manuscript = (version, refusal), None
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
        article.version, reason = newest or (None, Dropped("not in the source"))
        raise reason
    for version, reason in unreadable:
        article.skip(f"version {version}", f"{reason.reason}, another version used", reason.detail)
