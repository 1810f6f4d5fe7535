"""The publication date of an article."""

import calendar
from collections import Counter
from datetime import UTC, date, datetime, timedelta

import pytest

from biomedclip.processing.pmc.articles import Dropped
from biomedclip.processing.pmc.dates import check_published, parse_published_until, publication_date, read_dates
from biomedclip.processing.pmc.jats import parse_article


def pub_date(kind: str, stated: str, name: str = "pub-type") -> str:
    """Return a `<pub-date>` with the parts of a date such as 2022-06-15."""
    parts = zip(("year", "month", "day"), stated.split("-"), strict=False)
    elements = "".join(f"<{part}>{value}</{part}>" for part, value in reversed(list(parts)))
    return f'<pub-date {name}="{kind}">{elements}</pub-date>'


def parsed(meta: str, after: str = ""):
    return parse_article(
        f"<article><front><article-meta>{meta}</article-meta></front><body/>{after}</article>".encode()
    )


def decided(meta: str) -> str | None:
    """Return the stated parts of the date that is used."""
    found = publication_date(parsed(meta))
    return found and found.stated


RELEASE = '<pub-history><event event-type="pmc-release"><date><day>2</day><month>3</month><year>2023</year></date>'
RELEASE += "</event></pub-history>"


@pytest.mark.parametrize(
    ("meta", "stated"),
    [
        (pub_date("epub", "2021-01-05"), "2021-01-05"),
        (pub_date("ppub", "2021-03") + pub_date("epub", "2021-04-05") + pub_date("collection", "2021"), "2021-03"),
        (pub_date("collection", "2022") + pub_date("epub", "2022-09-10"), "2022-09-10"),
        (pub_date("pub", "2021-01-05", "date-type") + pub_date("collection", "2020-11", "date-type"), "2020-11"),
        (pub_date("epub", "2021-01-05") + pub_date("pmc-release", "2022-01-05"), "2022-01-05"),
        (pub_date("epub", "2021-01-05") + RELEASE, "2023-03-02"),
        (pub_date("pmc-release", "2022-01-05") + RELEASE, "2022-01-05"),
        (pub_date("pmc-release", "soon") + pub_date("epub", "2021-01-05"), "2021-01-05"),
        ("<pub-date><year>2020</year></pub-date>", "2020"),
    ],
)
def test_the_release_in_pmc_counts_otherwise_the_earliest_publication(meta, stated):
    assert decided(meta) == stated


@pytest.mark.parametrize(
    "kind",
    [
        *("epreprint", "preprint", "nihms-submitted", "author-submitted", "embargo-release", "received", "accepted"),
        *("rev-recd", "rev-request", "ecorrected", "pretracted", "retraction", "update", "pmc-live"),
    ],
)
def test_dates_of_other_events_do_not_count(kind):
    assert decided(pub_date(kind, "2019-05-05")) is None
    assert decided(pub_date(kind, "2019-05-05") + pub_date("epub", "2021-01-05")) == "2021-01-05"
    assert decided(pub_date(kind.upper(), "2019-05-05", "date-type")) is None


def test_dates_of_the_history_of_sub_articles_and_of_references_do_not_count():
    inner = "<day>1</day><month>1</month><year>2001</year>"
    history = f'<history><date date-type="pub">{inner}</date></history>'
    history += f'<pub-history><event event-type="received"><date>{inner}</date></event></pub-history>'
    related = f"<related-article>{inner}</related-article>"
    reply = f"<sub-article><front-stub><pub-date>{inner}</pub-date></front-stub></sub-article>"
    reply += f"<response><front><article-meta><pub-date>{inner}</pub-date></article-meta></front></response>"
    references = f"<back><ref-list><pub-date>{inner}</pub-date></ref-list></back>"
    assert read_dates(parsed(history + related, references + reply)) == []


def test_events_of_publication_count():
    event = '<event event-type="pub"><event-desc>Published: <string-date iso-8601-date="2018-06-13"><month>June</month>'
    event += " <day>13</day>, <year>2018</year></string-date></event-desc></event>"
    assert decided(f"<pub-history>{event}</pub-history>") == "2018-06-13"


@pytest.mark.parametrize(
    ("elements", "last_day"),
    [
        ("<year>2022</year>", date(2022, 12, 31)),
        ("<month>6</month><year>2022</year>", date(2022, 6, 30)),
        ("<month>02</month><year>2024</year>", date(2024, 2, 29)),
        ("<day>31</day><month>2</month><year>2022</year>", date(2022, 2, 28)),
        ("<day>0</day><month>2</month><year>2022</year>", date(2022, 2, 28)),
        ("<day>mid</day><month>2</month><year>2022</year>", date(2022, 2, 28)),
        ("<day>3</day><month>13</month><year>2022</year>", date(2022, 12, 31)),
        ("<day>3</day><year>2022</year>", date(2022, 12, 31)),
        ("<day> 3\n</day><month>\tMay </month><year> 2022 </year>", date(2022, 5, 3)),
        ("<day>3</day><month>Sept.</month><year>2022</year>", date(2022, 9, 3)),
        ("<month>janvier</month><year>2022</year>", date(2022, 12, 31)),
        ("<month>Jan-Feb</month><year>2022</year>", date(2022, 2, 28)),
        ("<season>Jul – Aug</season><year>2022</year>", date(2022, 8, 31)),
        ("<season>Summer</season><year>2022</year>", date(2022, 12, 31)),
        ("<string-date><month>June</month> <day>1</day>, <year>2022</year></string-date>", date(2022, 6, 1)),
        ("<year>9999</year>", date(9999, 12, 31)),
    ],
)
def test_an_incomplete_date_is_its_last_possible_day(elements, last_day):
    assert publication_date(parsed(f"<pub-date>{elements}</pub-date>")).last_day == last_day


@pytest.mark.parametrize("number", range(1, 13))
def test_months_are_numbers_or_english_names(number):
    for text in (f"{number}", f"{number:02d}", calendar.month_name[number], calendar.month_abbr[number].upper() + "."):
        assert decided(f"<pub-date><day>4</day><month>{text}</month><year>2020</year></pub-date>") == (
            f"2020-{number:02d}-04"
        )


@pytest.mark.parametrize(
    ("attribute", "stated"),
    [
        ("2022-06-10", "2022-06-10"),
        ("20220610", "2022-06-10"),
        ("2022-06-10 00:25:13.507", "2022-06-10"),
        ("2022-06-10T00:25:13Z", "2022-06-10"),
        ("2022-06", "2022-06"),
        ("2022", "2022"),
        ("2022-06-31", "2022-06"),
        ("2022-W24", None),
        ("10/06/2022", None),
        ("٢٠٢٢-06-10", None),
        ("", None),
    ],
)
def test_the_iso_attribute_is_another_date(attribute, stated):
    assert decided(f'<pub-date iso-8601-date="{attribute}"/>') == stated
    both = f'<pub-date iso-8601-date="{attribute}"><season>Summer</season><year>2022</year></pub-date>'
    assert decided(both) == (stated or "2022")


@pytest.mark.parametrize("year", ["", "22", "0000", "20222", "in press", "２０２２", "<b>n.d.</b>", "2022" * 9])
def test_a_date_without_a_year_of_four_digits_is_none(year):
    assert decided(f"<pub-date><month>6</month><year>{year}</year></pub-date>") is None


def test_another_calendar_is_not_read_as_gregorian():
    assert decided('<pub-date calendar="Buddhist"><year>2565</year></pub-date>') is None
    assert decided('<pub-date calendar="Buddhist" iso-8601-date="2022-06-10"><year>2565</year></pub-date>') is not None
    assert decided('<pub-date calendar="Gregorian"><year>2022</year></pub-date>') == "2022"


def test_namespaces_capitals_and_wrappers_do_not_hide_the_date():
    meta = "<front><article-meta><pub-date><year>2020</year></pub-date></article-meta></front>"
    for xml in (
        f'<article xmlns="https://jats.nlm.nih.gov/ns/archiving/1.3/">{meta}</article>',
        f"<pmc-articleset><article>{meta}</article></pmc-articleset>",
        f"<article>{meta}</article>".upper(),
        f'<j:article xmlns:j="urn:j">{meta}</j:article>',
    ):
        assert publication_date(parse_article(xml.encode())).stated == "2020", xml


@pytest.mark.slow
def test_many_nested_and_long_dates_are_read(impatient):
    nested = "<date>" * 200 + "<year>" + "x" * 5_000_000 + "</year>" + "</date>" * 200
    month = f"<month>{'Jan -' * 1_000_000}</month><year>2020</year>"
    many = pub_date("ppub", "2021-02") * 50_000
    article = parsed(f"<pub-date>{nested}{month}</pub-date>{many}<pub-history><event>{nested}</event></pub-history>")
    assert publication_date(article).stated == "2020"


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ("2022-06-15", None),
        ("2022-06-16", "published after 2022-06-15"),
        ("2022-05", None),
        ("2022-06", "published after 2022-06-15"),
        ("2021", None),
        ("2022", "published after 2022-06-15"),
        ("none", "no publication date"),
    ],
)
def test_articles_until_the_last_day_are_kept(stated, reason):
    article = parsed(pub_date("epub", stated))
    if reason is None:
        check_published(article, date(2022, 6, 15))
        return
    with pytest.raises(Dropped) as error:
        check_published(article, date(2022, 6, 15))
    assert error.value.reason == reason and not error.value.all_versions
    assert error.value.detail == (f"{stated} (epub)" if "after" in reason else "")


@pytest.mark.parametrize(
    "choice", ["", "2022", "2022-06", "20220615", "2022-W24-3", "15.6.2022", "2022-06-31", "2022-06-15T0", "٢٠٢٢-06-15"]
)
def test_the_option_takes_one_format(choice):
    with pytest.raises(ValueError, match="`published_until` must be a date such as 2022-06-15"):
        parse_published_until(choice)
    assert parse_published_until("2022-06-15") == date(2022, 6, 15)


def test_today_is_accepted_and_the_future_is_not():
    today = datetime.now(UTC).date()
    assert parse_published_until(f"{today}") == today
    with pytest.raises(ValueError, match="is in the future"):
        parse_published_until(f"{today + timedelta(days=3)}")


FOLDERS = ("pmc_mirror/PMC*/*.xml", "jats_xml/**/*.*xml", "jats_with_images/**/*.*xml")


@pytest.mark.slow
def test_dates_of_real_articles_equal_those_of_pubmed_parser(shared_data):
    pubmed_parser = pytest.importorskip(
        "pubmed_parser", reason="pubmed_parser is not installed: pip install pubmed_parser"
    )

    def theirs(stated: str) -> str:
        """Normalize a date of pubmed_parser, which has 01 for a missing part, and no year if there is no date."""
        day, month, *year = stated.split("-")
        return f"{year[0]}-{int(month):02d}-{int(day):02d}" if year else ""

    counts: Counter[str] = Counter()
    seasons = []
    for path in sorted(path for folder in FOLDERS for path in shared_data.glob(folder)):
        article = parse_article(path.read_bytes())
        ours = {}
        for each in read_dates(article):
            ours.setdefault(each.kind, (each.stated + "-01-01")[:10])
        found = publication_date(article)
        counts[found.kind if found else "none"] += 1
        try:
            read = pubmed_parser.parse_pubmed_xml(str(path))
        except KeyError:  # it needs a year of print or collection
            assert not ours, path
            continue
        assert ours.get("epub", "") == theirs(read["epublication_date"]), path
        in_print = ours.get("ppub") or ours.get("collection")
        if in_print != theirs(read["publication_date"]):
            seasons.append(f"{path.stem}: {in_print}, {theirs(read['publication_date'])}")
        assert int(in_print[:4]) == read["publication_year"], path
    assert counts == {"epub": 216, "pmc-release": 36, "collection": 7, "publication": 5, "ppub": 4, "none": 1}
    assert seasons == ["PMC4562040.1: 2015-08-01, 2015-01-01"], "the season May-Aug, which pubmed_parser does not read"
