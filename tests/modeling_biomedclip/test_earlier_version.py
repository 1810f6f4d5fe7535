"""Folders that version 0.1 saved, before all code became one package, still load."""

import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, AutoProcessor

from biomedclip import BiomedCLIPConfig, to_open_clip
from biomedclip.conversion import load_any_layout


ARCHIVE = Path(__file__).parents[1] / "data" / "version_0_1.tar.gz"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root, filter="data")
    return root


@torch.no_grad()
def test_a_saved_model_and_classifier_give_the_same_logits(earlier):
    expected = json.loads((earlier / "expected.json").read_text(encoding="utf-8"))
    processor = AutoProcessor.from_pretrained(earlier / "model")
    inputs = processor(text=["chest x-ray", "brain mri"], images=Image.open(earlier / "image.png"), return_tensors="pt")
    model = AutoModel.from_pretrained(earlier / "model")
    classifier = AutoModelForImageClassification.from_pretrained(earlier / "classifier")
    # Another machine can round products of float32 differently.
    torch.testing.assert_close(
        model(**inputs).logits_per_image, torch.tensor(expected["logits_per_image"]), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        classifier(inputs["pixel_values"]).logits, torch.tensor(expected["class_logits"]), rtol=1e-5, atol=1e-5
    )


def test_the_configuration_has_model_fields_only(earlier):
    ours = set(BiomedCLIPConfig().to_dict())
    assert not {"open_clip_config", "base_weights"} & ours
    stored = json.loads((earlier / "model" / "config.json").read_text(encoding="utf-8"))
    assert set(stored) - ours - {"architectures", "auto_map", "dtype", "custom_pipelines"} == {
        "open_clip_config",
        "base_weights",
    }


def test_the_open_clip_configuration_in_a_saved_configuration_is_still_written_back(earlier, tmp_path):
    """Version 0.1 kept the original file in `config.json`; now it lies beside it."""
    model, processor = load_any_layout(earlier / "model")
    assert getattr(model, "open_clip_config", None) == model.config.open_clip_config
    with pytest.raises(ValueError, match="timm has none for 2 layers"):
        to_open_clip(model, processor, tmp_path / "open_clip")
