"""Which articles and versions are taken."""

import pytest

from processing.pmc.articles import MAX_DETAIL, Article, Dropped, choose_version, parse_licenses


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
