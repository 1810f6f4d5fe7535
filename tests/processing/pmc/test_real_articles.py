"""Real articles are built without loss, and from S3 as from a folder."""

import pytest
from helpers.mirror_writer import build_set, rows_of, shards_of


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mirror(shared_data):
    return shared_data / "pmc_mirror"


@pytest.fixture(scope="module")
def real_set(mirror, tmp_path_factory):
    """The articles of the mirror, built from their folder."""
    output = tmp_path_factory.mktemp("real_articles") / "set"
    build_set(mirror, output, workers=2, license="all")
    return output


def test_every_figure_is_a_pair_with_a_caption(mirror, real_set):
    texts = (".xml", ".json", ".txt")
    files = {path.name for path in mirror.glob("PMC*/*") if path.suffix not in texts}
    rows = rows_of(real_set)
    assert {row["image"]["path"] for row in rows} == files
    assert all(row["caption"] and row["pair_id"].startswith(row["pmcid"]) for row in rows)
    assert len({row["pair_id"] for row in rows}) == len(rows)


def test_s3_gives_the_same_files(mirror, real_set, object_store, tmp_path):
    source = object_store.upload(mirror, "pmc-oa-opendata")
    report = build_set(source, tmp_path / "s3", workers=2, license="all")
    assert report["articles"]["seen"] == 140 and report["inventory_date"] is not None
    assert shards_of(tmp_path / "s3") == shards_of(real_set)
