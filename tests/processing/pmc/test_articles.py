"""Which articles and versions are taken."""

import json

import pytest

from biomedclip.processing.pmc.articles import MAX_DETAIL, Article, Dropped, choose_version, parse_licenses


def metadata(**change) -> dict:
    return {"is_pmc_openaccess": True, "license_code": "CC BY", "xml_url": "s3://bucket/a.xml", **change}


def chosen(versions: dict[int, dict | None], licenses=frozenset({"CC BY"})) -> Article:
    """The article with the version that is taken; `None` stands for metadata that cannot be read."""

    def read(name: str) -> dict:
        content = versions[int(name.split(".")[1])]
        if content is None:
            raise Dropped("metadata unreadable", name)
        return content

    article = Article("PMC1", sorted(versions))
    choose_version(article, read, licenses)
    return article


def test_the_newest_version_is_taken():
    assert chosen({1: metadata(), 3: metadata(), 2: metadata()}).version == 3


def test_a_published_version_goes_before_a_newer_manuscript():
    assert chosen({1: metadata(), 2: metadata(is_manuscript=True)}).version == 1
    assert chosen({1: metadata(is_manuscript=True), 2: metadata(is_manuscript=True)}).version == 2


def test_a_version_that_cannot_be_taken_gives_way_to_an_older_one():
    assert chosen({1: metadata(), 2: metadata(license_code="TDM")}).version == 1
    assert chosen({1: metadata(), 2: metadata(is_pmc_openaccess=False)}).version == 1


def test_metadata_that_cannot_be_read_give_way_and_are_listed():
    article = chosen({1: metadata(), 2: None})
    assert article.version == 1
    assert article.skipped == [("version 2", "metadata unreadable, another version taken", "PMC1.2")]


@pytest.mark.parametrize(
    "versions",
    [
        {1: metadata(), 2: metadata(is_retracted=True)},
        {1: metadata(), 2: metadata(is_retracted=True), 3: metadata(is_manuscript=True)},
        {1: metadata(is_retracted=True)},
    ],
)
def test_a_retraction_of_any_version_that_would_be_looked_at_takes_the_article_out(versions):
    with pytest.raises(Dropped, match="retracted"):
        chosen(versions)


def test_without_any_version_the_reason_is_that_of_the_newest():
    with pytest.raises(Dropped, match="licence not asked for"):
        chosen({1: metadata(is_pmc_openaccess=False), 2: metadata(license_code="TDM")})
    with pytest.raises(Dropped, match="not in the source"):
        chosen({})


DAMAGED = [
    {"is_pmc_openaccess": "false"},
    {"is_pmc_openaccess": "true"},
    {"is_pmc_openaccess": 1},
    {"is_manuscript": "no"},
    {"is_manuscript": 0},
    {"is_historical_ocr": ""},
    {"is_historical_ocr": []},
    {"is_retracted": "false"},
    {"is_retracted": 0},
    {"is_retracted": {}},
    {"pmcid": 1},
    {"version": "1"},
    {"version": 1.0},
    {"version": True},
    {"version": float("nan")},
    {"pmid": 1.5},
    {"pmid": True},
    {"pmid": ["1"]},
    {"doi": 10.1},
    {"title": ["A title"]},
    {"citation": {"journal": "J"}},
    {"license_code": ["CC BY"]},
    {"license_code": False},
    {"xml_url": ["s3://bucket/a.xml"]},
    {"xml_url": False},
    {"text_url": 1},
    {"pdf_url": {}},
    {"media_urls": "s3://bucket/a.jpg"},
    {"media_urls": {"a.jpg": "s3://bucket/a.jpg"}},
    {"media_urls": ["s3://bucket/a.jpg", None]},
    {"media_urls": [["s3://bucket/a.jpg"]]},
    {"media_urls": False},
    {"media_urls": 0},
]


@pytest.mark.parametrize("change", DAMAGED, ids=str)
def test_metadata_with_a_value_of_the_wrong_type_are_damaged_and_the_value_is_named(change):
    ((name, _),) = change.items()
    with pytest.raises(Dropped) as drop:
        chosen({1: metadata(**change)}, licenses=None)
    assert drop.value.reason == "metadata damaged"
    assert drop.value.detail.startswith(f"{name} holds ") and "should be" in drop.value.detail


@pytest.mark.parametrize("name", sorted({name for change in DAMAGED for name in change}))
def test_metadata_may_lack_a_field_or_hold_null(name):
    optional = {name} - {"is_pmc_openaccess", "xml_url"}
    without = metadata()
    for missing in optional:
        without.pop(missing, None)
    assert chosen({1: without}, licenses=None).version == 1
    assert chosen({1: metadata(**dict.fromkeys(optional))}, licenses=None).version == 1


def test_metadata_may_hold_a_pmid_as_number_or_text_and_fields_that_nobody_knows():
    for change in ({"pmid": 1}, {"pmid": "1"}, {"media_urls": []}, {"new_field": [{}]}):
        assert chosen({1: metadata(**change)}).version == 1


def test_damaged_metadata_give_way_to_an_older_version_and_are_listed():
    article = chosen({1: metadata(), 2: metadata(license_code=["CC BY"])})
    assert article.version == 1
    ((item, reason, detail),) = article.skipped
    assert (item, reason) == ("version 2", "metadata damaged, another version taken")
    assert detail == "license_code holds a list, \"['CC BY']\", and should be text"


def test_a_version_that_may_be_retracted_takes_the_article_out():
    for value in ("true", "false", 1):
        with pytest.raises(Dropped, match="metadata damaged"):
            chosen({1: metadata(), 2: metadata(is_retracted=value)})


def test_all_real_metadata_are_read(shared_data):
    files = sorted((shared_data / "pmc_mirror" / "metadata").glob("*.json"))
    assert len(files) == 140
    for file in files:
        assert chosen({1: json.loads(file.read_text())}, licenses=None).version == 1


@pytest.mark.parametrize("choice", ["CC-BY", "cc by", "Commercial", "CC BY,CC-0"])
def test_a_slip_in_a_licence_is_told_with_what_was_meant(choice):
    with pytest.raises(ValueError, match="Did you mean"):
        parse_licenses(choice)


def test_licences_can_be_a_text_or_a_list_and_unknown_ones_are_taken_at_their_word():
    assert parse_licenses("CC BY, CC0") == parse_licenses(["CC BY", "CC0"]) == {"CC BY", "CC0"}
    assert parse_licenses("TDM,Crown") == {"TDM", "Crown"}
    assert parse_licenses("all") is None


def test_what_is_listed_can_be_stored_and_is_bounded_whatever_an_article_says():
    article = Article("PMC1")
    article.skip("F\ud800", "image missing", "half a character \udfff")
    article.skip("F" * 10_000, "image missing", "\ud800" * 10_000)
    article.drop("licence not asked for", "CC BY\ud800")
    assert article.skipped[0] == ("F?", "image missing", "half a character ?")
    assert article.skipped[1] == ("F" * MAX_DETAIL, "image missing", "?" * MAX_DETAIL)
    assert article.skipped[2] == ("", "licence not asked for", "CC BY?")
