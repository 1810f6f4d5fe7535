"""The dataset card: its metadata and its content."""

import json
import re

import pytest
from helpers.build_reports import full_scale_report, report_with_panels, smallest_report
from huggingface_hub import DatasetCard, DatasetCardData

from biomedclip.model_cards.dataset_card import fill_dataset_card, public_report
from biomedclip.model_cards.formatting import percent, size
from biomedclip.processing.pmc.shards import pair_schema


@pytest.fixture(params=["full scale", "smallest", "synthetic", "panels"])
def report(request):
    return {
        "full scale": full_scale_report(),
        "smallest": smallest_report(),
        "synthetic": smallest_report() | {"synthetic": True},
        "panels": report_with_panels(),
    }[request.param]


def section(card: str, title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL)[1]


def table_rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:2] == "| "]


def test_the_hub_can_read_the_metadata(report):
    metadata = DatasetCard(fill_dataset_card(report)).data
    assert isinstance(metadata, DatasetCardData)
    assert metadata.license == "other" and metadata.language == ["en"]
    assert metadata.to_dict()["license_name"] and metadata.to_dict()["license_link"].startswith("https://")
    (config,) = metadata.configs
    assert {entry["split"] for entry in config["data_files"]} == set(report["splits"])


def test_datasets_reads_features_and_splits_from_the_metadata(report):
    from datasets.info import DatasetInfosDict

    metadata = DatasetCard(fill_dataset_card(report)).data
    info = DatasetInfosDict.from_dataset_card_data(metadata)["default"]
    assert info.features.arrow_schema == pair_schema(panels="composition" in report)
    assert {name: split.num_examples for name, split in info.splits.items()} == {
        name: counts["pairs"] for name, counts in report["splits"].items()
    }


def test_every_column_is_explained(report):
    rows = table_rows(section(fill_dataset_card(report), "Columns"))
    assert [row[0].strip("`") for row in rows[1:]] == pair_schema(panels="composition" in report).names
    assert all(len(row) == 2 and row[1] for row in rows)


@pytest.mark.parametrize("panels", ["also", "only"])
def test_the_composition_contains_panels_and_types(panels):
    report = report_with_panels(panels)
    card = fill_dataset_card(report)
    composition = section(card, "Composition")
    assert "read 2,211 figures. 1,001 of them (45.3 %) have several panels" in composition
    assert "The captions of 777 of these (77.6 %) were split" in composition and "failed on 7 figures" in composition
    rows = {row[0]: row[1] for row in table_rows(composition)}
    for part in ("rows", "image_types"):
        assert {name: f"{count:,}" for name, count in report["composition"][part].items()}.items() <= rows.items()
    assert rows["group radiology"] == "4,111" and rows["panels with `caption_match` labels"] == "3,601"
    assert ("compound figure has no row" in composition) == (panels == "only")
    assert f"--panels {panels} \\\n  --keep-types PET 'Light microscopy' \\\n  --detector thing" in card


def test_a_detector_without_types_is_stated():
    report = report_with_panels()
    report["composition"] |= {"image_types": {"unknown": 6_305}, "image_groups": {"unknown": 6_305}}
    assert "The detector tells no types of images." in fill_dataset_card(report)
    assert "tells no types" not in fill_dataset_card(full_scale_report())


def test_the_composition_contains_all_counts():
    report = full_scale_report()
    composition = section(fill_dataset_card(report), "Composition")
    counts = [*report["licenses"].values(), *report["modes"].values(), *report["formats"].values()]
    counts += [*report["articles"]["dropped"].values(), *report["figures"]["skipped"].values()]
    counts += [count for split in report["splits"].values() for count in (split["articles"], split["pairs"])]
    for count in counts:
        assert f"| {count:,} |" in composition, count


def test_the_rows_of_a_table_have_equal_numbers_of_cells(report):
    for block in re.findall(r"(?:^\|.*\n)+", fill_dataset_card(report), re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1, block


def test_no_placeholder_remains(report):
    assert not re.search(r"\$\w|\bNone\b", fill_dataset_card(report))


def test_the_selection_of_a_snapshot_is_stated():
    report = smallest_report()
    assert "published until" not in fill_dataset_card(report) and "only the first" not in fill_dataset_card(report)
    report["snapshot"] = {"published_until": "2022-06-15", "articles_published_later": 3141, "articles_without_date": 5}
    report["built_with"] |= {"first_image_only": True}
    rows = dict(table_rows(fill_dataset_card(report).split("![")[0])[2:])
    assert rows["published until"].startswith("2022-06-15") and "3,141 later articles and 5" in rows["published until"]
    assert rows["images of a figure"] == "only the first" and rows["built"] == report["built"]


def test_the_acknowledgement_states_how_current_the_copy_is():
    text = section(fill_dataset_card(full_scale_report()), "Acknowledgement")
    assert "National Library of Medicine" in text and "the inventory of 2026-11-23" in text
    assert "its source, which has no inventory" in section(fill_dataset_card(smallest_report()), "Acknowledgement")


def test_a_synthetic_dataset_does_not_acknowledge_nlm():
    card = fill_dataset_card(smallest_report() | {"synthetic": True})
    assert "National Library" not in card and "invented" in section(card, "Limitations")


def test_the_build_command_has_no_options_of_the_machine():
    report = full_scale_report()
    report["options"] |= {"split_fractions": "0.8,0.1,0.1", "license": "CC BY,CC0", "update": True}
    command = re.search(r"```bash\n(.*?)\n```", section(fill_dataset_card(report), "Build command"), re.DOTALL)[1]
    assert command.split(" \\\n  ") == [
        "biomedclip build",
        "--source s3://pmc-oa-opendata",
        "--license 'CC BY,CC0'",
        "--split-fractions 0.8,0.1,0.1",
        "--max-shard-size 500MB",
        "--seed 0",
        "--output-dir out",
    ]


@pytest.mark.parametrize("path", ["/home/someone/thing", "file:///home/someone/thing", "~/thing", "."])
def test_the_card_contains_no_path_of_the_machine(path, tmp_path, monkeypatch):
    (tmp_path / "thing").mkdir()
    monkeypatch.chdir(tmp_path / "thing")
    report = full_scale_report() | {"source": path}
    report["options"] |= {"source": path, "decontaminate": path, "pmcids": "PMC1," * 2000}
    for text in (fill_dataset_card(report), json.dumps(public_report(report))):
        assert "someone" not in text and "/thing" not in text and str(tmp_path) not in text and "~" not in text


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0, "0.0 %"), (1e-9, "< 0.1 %"), (0.5, "50.0 %"), (0.99999, "> 99.9 %"), (1, "100.0 %")],
)
def test_only_0_and_1_are_written_as_0_and_100_percent(fraction, text):
    assert percent(fraction) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (21_004, "21 kB"), (1.46e12, "1.46 TB")])
def test_sizes_have_a_unit(count, text):
    assert size(count) == text
