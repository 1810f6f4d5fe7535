"""Choice of articles and versions."""

import json

import pytest

from biomedclip.processing.pmc.articles import MAX_DETAIL, Article, Dropped, choose_version, parse_licenses


def metadata(**change) -> dict:
    return {"is_pmc_openaccess": True, "license_code": "CC BY", "xml_url": "s3://bucket/a.xml", **change}


def chosen(versions: dict[int, dict | None], licenses=frozenset({"CC BY"})) -> Article:
    """Return the article with the chosen version. `None` stands for metadata that cannot be read."""

    def read(name: str) -> dict:
        content = versions[int(name.split(".")[1])]
        if content is None:
            raise Dropped("metadata unreadable", name)
        return content

    article = Article("PMC1", sorted(versions))
    choose_version(article, read, licenses)
    return article


@pytest.mark.parametrize(
    ("versions", "version"),
    [
        ({1: {}, 3: {}, 2: {}}, 3),
        ({1: {}, 2: {"is_manuscript": True}}, 1),
        ({1: {"is_manuscript": True}, 2: {"is_manuscript": True}}, 2),
        ({1: {}, 2: {"license_code": "TDM"}}, 1),
        ({1: {}, 2: {"is_pmc_openaccess": False}}, 1),
    ],
)
def test_the_newest_usable_version_is_chosen_and_published_versions_before_manuscripts(versions, version):
    assert chosen({number: metadata(**change) for number, change in versions.items()}).version == version


@pytest.mark.parametrize(
    ("newest", "reason", "detail"),
    [
        (None, "metadata unreadable", "PMC1.2"),
        (
            metadata(license_code=["CC BY"]),
            "metadata damaged",
            "license_code is a list, \"['CC BY']\", but should be text",
        ),
    ],
)
def test_an_older_version_is_used_if_the_metadata_of_the_newest_cannot_be(newest, reason, detail):
    article = chosen({1: metadata(), 2: newest})
    assert article.version == 1
    assert article.skipped == [("version 2", f"{reason}, another version used", detail)]


RETRACTED = metadata(is_retracted=True)


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        ([metadata(), RETRACTED], "retracted"),
        ([metadata(), RETRACTED, metadata(is_manuscript=True)], "retracted"),
        ([RETRACTED], "retracted"),
        *(([metadata(), metadata(is_retracted=value)], "metadata damaged") for value in ("true", "false", 1)),
        ([metadata(is_pmc_openaccess=False), metadata(license_code="TDM")], "license not allowed"),
        ([], "not in the source"),
    ],
)
def test_an_article_without_a_usable_version_or_with_a_retracted_one_is_dropped(versions, reason):
    with pytest.raises(Dropped, match=reason):
        chosen(dict(enumerate(versions, start=1)))


WRONG_VALUES = {
    "is_pmc_openaccess": ["false", "true", 1],
    "is_manuscript": ["no", 0],
    "is_historical_ocr": ["", []],
    "is_retracted": ["false", 0, {}],
    "pmcid": [1],
    "version": ["1", 1.0, True, float("nan")],
    "pmid": [1.5, True, ["1"]],
    "doi": [10.1],
    "title": [["A title"]],
    "citation": [{"journal": "J"}],
    "license_code": [["CC BY"], False],
    "xml_url": [["s3://bucket/a.xml"], False],
    "text_url": [1],
    "pdf_url": [{}],
    "media_urls": ["s3://b/a.jpg", {"a.jpg": "s3://b/a.jpg"}, ["s3://b/a.jpg", None], [["s3://b/a.jpg"]], False, 0],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG_VALUES.items() for value in values], ids=str
)
def test_a_metadata_value_of_the_wrong_type_is_named(name, value):
    with pytest.raises(Dropped) as drop:
        chosen({1: metadata(**{name: value})}, licenses=None)
    assert drop.value.reason == "metadata damaged"
    assert drop.value.detail.startswith(f"{name} is ") and "should be" in drop.value.detail


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_metadata_may_lack_a_field_or_contain_null(name):
    optional = {name} - {"is_pmc_openaccess", "xml_url"}
    without = {key: value for key, value in metadata().items() if key not in optional}
    assert chosen({1: without}, licenses=None).version == 1
    assert chosen({1: metadata(**dict.fromkeys(optional))}, licenses=None).version == 1


@pytest.mark.parametrize("change", [{"pmid": 1}, {"pmid": "1"}, {"media_urls": []}, {"new_field": [{}]}], ids=str)
def test_a_pmid_may_be_a_number_or_text_and_unknown_fields_are_ignored(change):
    assert chosen({1: metadata(**change)}).version == 1


def test_all_real_metadata_are_read(shared_data):
    files = sorted((shared_data / "pmc_mirror" / "metadata").glob("*.json"))
    assert len(files) == 140
    for file in files:
        assert chosen({1: json.loads(file.read_text())}, licenses=None).version == 1


@pytest.mark.parametrize("choice", ["CC-BY", "cc by", "Commercial", "CC BY,CC-0"])
def test_a_misspelled_license_is_refused_with_a_suggestion(choice):
    with pytest.raises(ValueError, match="Did you mean"):
        parse_licenses(choice)


def test_licenses_may_be_a_text_or_a_list_and_may_be_unknown():
    assert parse_licenses("CC BY, CC0") == parse_licenses(["CC BY", "CC0"]) == {"CC BY", "CC0"}
    assert parse_licenses("TDM,Crown") == {"TDM", "Crown"}
    assert parse_licenses("all") is None


def test_texts_about_skipped_items_are_valid_utf_8_of_limited_length():
    article = Article("PMC1")
    article.skip("F\ud800", "image missing", "a surrogate \udfff")
    article.skip("F" * 10_000, "image missing", "\ud800" * 10_000)
    article.drop("license not allowed", "CC BY\ud800")
    assert article.skipped == [
        ("F?", "image missing", "a surrogate ?"),
        ("F" * MAX_DETAIL, "image missing", "?" * MAX_DETAIL),
        ("", "license not allowed", "CC BY?"),
    ]
