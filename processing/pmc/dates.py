"""Read the publication date of an article from its XML, for the option `published_until`.

The metadata in PMC's bucket contains no date, so the date comes from the `<article-meta>` of the article:

1. The day on which PMC released the article: `<pub-date pub-type="pmc-release">`, or the event `pmc-release` in
   `<pub-history>`. An article can be released long after its publication.
2. If there is no release date, the day of publication: `<pub-date>` of any kind (electronic, print, collection, ...),
   or one of the events `pub`, `epub`, `ppub` and `collection` in `<pub-history>`. Dates of preprints, submissions,
   acceptances, revisions, corrections, retractions and embargoes, and other dates of PMC, do not count.

If several dates count, the earliest is used. An incomplete date is read as its last possible day: 2022-06 is 30 June
2022, and 2022 is 31 December 2022. A date that cannot exist is treated as incomplete: 2022-02-31 is 28 February 2022.
The attribute `iso-8601-date` is one date, and the elements `<year>`, `<month>`, `<day>` and `<season>` are another.
Months can be numbers or English names, also in `<season>` (Jan-Feb is February). Other seasons are ignored, and only
the year is used. Dates without a four-digit year, and elements in a calendar other than the Gregorian one, are ignored.
"""

import calendar
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from lxml import etree

from .articles import Dropped
from .jats_text import name_of


NO_DATE = "no publication date"

_PMC_RELEASE = "pmc-release"
_PUBLICATION_EVENTS = frozenset(("pub", "epub", "ppub", "collection"))
_NO_PUBLICATION = re.compile(
    "^pmc-|preprint|submi|receiv|accept|rev-re|revis|update|correct|retract|withdraw|concern|embargo"
)
_DATES = frozenset(("date", "pub-date", "string-date"))
_ISO_DATE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d))?|(\d\d)(\d\d))?(?:[T ].*)?", re.ASCII | re.DOTALL)
_YEAR = re.compile(r"[1-9]\d{3}", re.ASCII)
_MAX_MONTH_LENGTH = 50  # characters
_NUMBER = re.compile(r"\d{1,2}", re.ASCII)
_MONTHS = "january february march april may june july august september october november december".split()
_MONTH_NUMBERS = {name[:length]: number for number, name in enumerate(_MONTHS, 1) for length in (3, len(name))}
_MONTH_NUMBERS["sept"] = 9


@dataclass(frozen=True, order=True)
class PublicationDate:
    """A publication or release date of an article."""

    last_day: date  # the last possible day of an incomplete date
    stated: str  # the stated parts of the date: 2022, 2022-06 or 2022-06-15
    kind: str  # pub-type, date-type or event-type of its element, in lower case, or empty

    def __str__(self) -> str:
        return f"{self.stated} ({self.kind or 'pub-date'})"


def parse_published_until(choice: str) -> date:
    """Parse the value of `published_until`, such as `2022-06-15`.

    Raises:
        ValueError: If `choice` is not a date in this form, or is in the future in every time zone. With a future date,
            the same command would build a different dataset later.
    """
    try:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", choice, re.ASCII):
            raise ValueError("not YYYY-MM-DD")
        day = date.fromisoformat(choice)
    except ValueError as error:
        raise ValueError(f"`published_until` must be a date such as 2022-06-15, not {choice!r} ({error}).") from error
    if day > (datetime.now(UTC) + timedelta(days=1)).date():
        raise ValueError(f"`published_until` is in the future: {choice}. Pass a day until which articles are complete.")
    return day


def published_after(until: date | str) -> str:
    """Return the reason with which later articles are skipped."""
    return f"published after {until}"


def check_published(article: etree._Element, until: date) -> None:
    """Raise `Dropped` if an article was published after a day, or its XML contains no date that counts."""
    published = publication_date(article)
    if published is None:
        raise Dropped(NO_DATE)
    if published.last_day > until:
        raise Dropped(published_after(until), str(published))


def publication_date(article: etree._Element) -> PublicationDate | None:
    """Return the publication date of an article by the rules in the module docstring, or None if no date counts."""
    dates = read_dates(article)
    released = [each for each in dates if each.kind == _PMC_RELEASE]
    return min(released or dates, default=None)


def read_dates(article: etree._Element) -> list[PublicationDate]:
    """Return all dates of release and publication in the `<article-meta>` of an article, in document order."""
    found: list[PublicationDate] = []
    first = next((element for element in article.iter(etree.Element) if name_of(element) == "article"), None)
    for meta in _children(_children([] if first is None else [first], "front"), "article-meta"):
        for element in _children([meta], "pub-date"):
            found += _dates_in(element, _kind(element, "pub-type", "date-type"))
        for event in _children(_children([meta], "pub-history"), "event"):
            kind = _kind(event, "event-type")
            if kind == _PMC_RELEASE or kind in _PUBLICATION_EVENTS:
                found += _dates_in(event, kind)
    return found


def _children(parents: Iterable[etree._Element], name: str) -> list[etree._Element]:
    return [child for parent in parents for child in parent if name_of(child) == name]


def _kind(element: etree._Element, *attributes: str) -> str:
    return next((kind for name in attributes if (kind := (element.get(name) or "").strip().lower())), "")


def _dates_in(element: etree._Element, kind: str) -> list[PublicationDate]:
    """Return the dates in an element and its descendants, or an empty list if its kind does not count."""
    if kind != _PMC_RELEASE and _NO_PUBLICATION.search(kind):
        return []
    found = []
    for inner in element.iter(etree.Element):
        if name_of(inner) in _DATES:
            found += [_date(*parts, kind) for parts in (_of_attribute(inner), _of_elements(inner)) if parts]
    return list(dict.fromkeys(found))


def _of_attribute(element: etree._Element) -> tuple[int, int | None, int | None] | None:
    match = _ISO_DATE.fullmatch((element.get("iso-8601-date") or "").strip())
    if match is None or not _YEAR.fullmatch(match[1]):
        return None
    month, day = match[2] or match[4], match[3] or match[5]
    return int(match[1]), int(month) if month else None, int(day) if day else None


def _of_elements(element: etree._Element) -> tuple[int, int | None, int | None] | None:
    texts: dict[str, str] = {}
    for child in element:
        texts.setdefault(name_of(child), (child.text or "").strip())
    year = texts.get("year", "")
    if not _YEAR.fullmatch(year) or (element.get("calendar") or "gregorian").strip().lower() != "gregorian":
        return None
    month = _month(texts.get("month") or texts.get("season", ""))
    day = texts.get("day", "")
    return int(year), month, int(day) if month and _NUMBER.fullmatch(day) else None


def _month(text: str) -> int | None:
    """Return the number of a month, or of the last month of a range. Return None if any part is not a month."""
    if _NUMBER.fullmatch(text):
        return int(text)
    if len(text) > _MAX_MONTH_LENGTH:
        return None
    numbers = [_MONTH_NUMBERS.get(part.rstrip(".").lower(), 0) for part in re.split(r"\s*[-‐‑–—/,&\s]\s*", text)]
    return max(numbers) if all(numbers) else None


def _date(year: int, month: int | None, day: int | None, kind: str) -> PublicationDate:
    if month is None or not 1 <= month <= 12:
        return PublicationDate(date(year, 12, 31), f"{year}", kind)
    last = calendar.monthrange(year, month)[1]
    if day is None or not 1 <= day <= last:
        return PublicationDate(date(year, month, last), f"{year}-{month:02d}", kind)
    return PublicationDate(date(year, month, day), f"{year}-{month:02d}-{day:02d}", kind)
