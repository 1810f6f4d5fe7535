"""The detector that is part of the package: its files, its scores, and what it has learned from."""

import json

import pytest
import yaml
from transformers import AutoModelForObjectDetection

from biomedclip import PanelDetectionModel, PanelDetector
from biomedclip.processing.panels.annotations import read_annotations
from biomedclip.processing.panels.detection import OURS
from biomedclip.run_scripts.main import main


TRAINING = OURS / "training_figures"


def rows(name):
    return [json.loads(line) for line in (TRAINING / name).read_text(encoding="utf-8").splitlines()]


def card():
    """Return the metadata of the card, by the names of its metrics."""
    metadata = yaml.safe_load((OURS / "README.md").read_text(encoding="utf-8").split("---")[1])
    (result,) = metadata["model-index"][0]["results"]
    return metadata, {metric["name"]: metric["value"] for metric in result["metrics"]}


def test_weights_are_small_and_safe_and_load_with_auto_classes():
    names = sorted(path.name for path in OURS.iterdir() if path.is_file())
    assert names == ["ATTRIBUTIONS.md", "README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert (OURS / "model.safetensors").stat().st_size <= 8e6
    assert isinstance(AutoModelForObjectDetection.from_pretrained(OURS), PanelDetectionModel)
    assert {str(value.dtype) for value in PanelDetector.from_pretrained().model.parameters()} == {"torch.float32"}


def test_no_training_figure_is_in_the_gold_standard_and_each_author_is_named(shared_data):
    gold = [json.loads(line) for line in (shared_data / "panels" / "gold.jsonl").read_text("utf-8").splitlines()]
    figures = rows("pmc.jsonl")
    assert not {(row["pmcid"], row["file"]) for row in gold} & {(row["pmcid"], row["file"]) for row in figures}
    left_out = set((TRAINING / "left_out.txt").read_text(encoding="utf-8").split())
    assert {f"{row['pmcid']}/{row['file']}" for row in gold} <= left_out
    table = (OURS / "ATTRIBUTIONS.md").read_text(encoding="utf-8")
    articles = {row["pmcid"] for name in ("pmc.jsonl", "jats.jsonl") for row in rows(name)}
    assert table.count("| CC BY |") + table.count("| CC0 |") == len(articles)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("pmc.jsonl", "pmc_mirror"),
        ("jats.jsonl", "jats_with_images"),
        ("vqa_rad.jsonl", "vqa_rad/data/osfstorage/VQA_RAD Image Folder"),
    ],
)
def test_all_training_figures_can_be_read(shared_data, name, folder):
    assert len(read_annotations(TRAINING / name, shared_data / folder, strict=True)) == len(rows(name))


@pytest.mark.slow
def test_the_scores_of_the_card_are_reproduced(shared_data, tmp_path):
    pytest.importorskip("rouge_score", reason="the extra 'evaluate' is not installed")
    gold = shared_data / "panels" / "gold.jsonl"
    arguments = ["panels", "--data", gold, "--images", shared_data / "pmc_mirror", "--output-dir", tmp_path / "out"]
    assert main(["evaluate", *map(str, arguments)]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["metrics"]
    # Sums of other orders move scores near a threshold. One panel of the 182 in compound figures is 0.0055.
    assert card()[1] == pytest.approx(scores(found["without_captions"]), abs=0.006)
    table = [line.split("|")[1:] for line in (OURS / "README.md").read_text(encoding="utf-8").splitlines()]
    shown = {row[0].strip(): float(row[3]) for row in table if len(row) == 7 and "0." in row[3]}
    assert shown == pytest.approx(scores(found), abs=0.006)


def scores(found):
    """Return the metrics by their names in the card."""
    return {
        "F1 of compound figures": found["single_or_compound"]["f1"],
        "ImageCLEF accuracy of compound figures": found["panels_of_compound_figures"]["imageclef_accuracy"],
        "Recall at IoU 0.5 of compound figures": found["panels_of_compound_figures"]["recall"],
        "Precision at IoU 0.5 of compound figures": found["panels_of_compound_figures"]["precision"],
        "mAP at IoU 0.5 of compound figures": found["panels_of_compound_figures"]["average_precision"],
        "mAP at IoU 0.5": found["panels_of_all_figures"]["average_precision"],
        "Printed labels": found["printed_labels"]["recall"],
        "Group of image types": found["image_types"]["group_accuracy"],
        "Image types": found["image_types"]["accuracy"],
        "Macro F1 of image types": found["image_types"]["macro_f1"],
    }
