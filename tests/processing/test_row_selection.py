"""Training and analysis read only the rows of some licenses, types of images, figures or panels."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.pair_shards import pair_row, write_shards

from biomedclip.processing import PairStream, load_pmc15m
from biomedclip.processing.panels.image_types import GROUPS
from biomedclip.processing.pmc.articles import LICENSES_KEY
from biomedclip.processing.pmc.shards import pair_schema


TYPES = ("PET", "Light microscopy", None, "Ultrasound", "Flowcharts")
PAIRS = 120


def row_of(number: int) -> dict:
    """Return a row: a compound figure, its two panels, a single figure, a figure that was not examined, and so on."""
    kind = number % 5
    figure = f"PMC{number - kind}.1/F1/g1"
    return pair_row(number) | {
        "image_type": TYPES[number * number % 7 % 5] if kind < 4 else None,
        "compound": (True, False, False, False, None)[kind],
        "figure_pair_id": figure if kind in (1, 2) else None,
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """120 rows of a dataset with panels, in four shards of three row groups, with counts of licenses."""
    folder = tmp_path_factory.mktemp("panels")
    (folder / "data").mkdir()
    for shard in range(4):
        rows = list(map(row_of, range(30 * shard, 30 * (shard + 1))))
        table = pa.Table.from_pylist(rows, schema=pair_schema(panels=True))
        groups = [rows[start : start + 10] for start in (0, 10, 20)]
        counts = [{code: sum(row["license"] == code for row in group) for code in LICENSES} for group in groups]
        path = folder / "data" / f"train-{shard:05d}-of-00004.parquet"
        with pq.ParquetWriter(path, table.schema) as writer:
            writer.write_table(table, row_group_size=10)
            writer.add_key_value_metadata({LICENSES_KEY: json.dumps(counts)})
    return folder


LICENSES = sorted({pair_row(number)["license"] for number in range(PAIRS)})


def is_wanted(row, licenses=None, image_types=None, panels=None) -> bool:
    """Whether a row is selected, in plain Python."""
    types = {name for each in image_types or () for name in GROUPS.get(each, [each])}
    kinds = {None: True, "also": True, "only": row["compound"] is not True, "none": row["figure_pair_id"] is None}
    return (
        (licenses is None or row["license"] in licenses)
        and (image_types is None or row["image_type"] in types)
        and kinds[panels]
    )


SELECTIONS = [
    {"panels": "also"},
    {"panels": "only"},
    {"panels": "none"},
    {"image_types": ["PET"]},
    {"image_types": ["radiology", "Flowcharts"]},
    {"image_types": ["radiology"], "panels": "only"},
    {"licenses": ["CC BY", "CC0"], "panels": "none"},
    {"licenses": ["CC BY", "CC BY-NC"], "image_types": ["PET", "microscopy"], "panels": "only"},
]


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_the_selected_rows_are_read(dataset, selection):
    expected = [row["pair_id"] for row in map(row_of, range(PAIRS)) if is_wanted(row, **selection)]
    assert 0 < len(expected) <= PAIRS and (len(expected) < PAIRS or selection == {"panels": "also"})
    loaded = load_pmc15m(dataset, columns=["pair_id"], **selection)
    assert [row["pair_id"] for row in loaded] == expected
    assert [row["pair_id"] for row in load_pmc15m(dataset, columns=["pair_id"], start=7, **selection)] == expected[7:]
    assert load_pmc15m(dataset, columns=["pair_id"], streaming=False, **selection)["pair_id"] == expected
    stream = PairStream(dataset, columns=["pair_id"], seed=3, **selection)
    rows = stream.rows(0, 0, PAIRS)
    assert len(stream) == len(rows) == len(expected) and {row["pair_id"] for row in rows} == set(expected)
    assert set(rows[0]) == {"pair_id", "epoch"}, "the other columns are read and not returned"


def test_all_columns_are_returned_if_none_are_chosen(dataset):
    row = next(iter(load_pmc15m(dataset, panels="only", image_types="PET", decode=False)))
    assert row["image_type"] == "PET" and row["compound"] is False and row["panel_box"] is None


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"panels": "both"}, "panels must be one of also, only, none, not 'both'"),
        ({"image_types": ["pets"]}, "'pets' is neither a type nor a group of images. Did you mean 'PET'"),
        ({"image_types": []}, "No type of image is selected"),
        (
            {"image_types": "Endoscopy"},
            r"no pair of the types Endoscopy\. The types of images are: unknown \(51 pairs\).*PET \(14 pairs\)",
        ),
        (
            {"image_types": "Endoscopy", "panels": "only", "licenses": "CC0"},
            r"no pair under CC0 of the types Endoscopy with panels='only'\. The licenses are: .*"
            r"The rows are: panels and single figures \(72 pairs\), compound figures \(24 pairs\), figures not",
        ),
    ],
)
def test_a_selection_without_rows_is_an_error_that_states_what_there_is(dataset, selection, message):
    for load in (PairStream, load_pmc15m):
        with pytest.raises(ValueError, match=message):
            load(dataset, **selection)


@pytest.mark.parametrize(
    ("selection", "column"),
    [
        ({"panels": "also"}, "figure_pair_id"),
        ({"panels": "none"}, "figure_pair_id"),
        ({"panels": "only"}, "compound"),
        ({"image_types": "PET"}, "image_type"),
    ],
)
@pytest.mark.parametrize("columns", [None, ["pair_id"]])
def test_a_dataset_without_panels_is_an_error_that_states_the_remedy(tmp_path, selection, column, columns):
    write_shards(tmp_path, shards=2, rows=3)
    message = f"has no column '{column}', by which rows are selected. Build the dataset with panels: biomedclip build"
    for streaming in (True, False):
        with pytest.raises(ValueError, match=message):
            load_pmc15m(tmp_path, streaming=streaming, columns=columns, **selection)
    with pytest.raises(ValueError, match=message):
        PairStream(tmp_path, columns=columns or ["pair_id", "caption"], **selection)
