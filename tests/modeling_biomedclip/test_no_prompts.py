"""No documented call asks whether to run the code of a saved folder."""

import json
import shutil

import pytest
from helpers.commands import python
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer, pipeline

from biomedclip import (
    BiomedCLIPForImageClassification,
    BiomedCLIPForVisualQuestionAnswering,
    BiomedCLIPVisionModel,
)
from biomedclip.processing import BiomedCLIPProcessor


@pytest.fixture(scope="module")
def saved(tmp_path_factory, small_checkpoint, small_processor):
    """Folders of each kind of model with a processor, or with only an image processor if that is enough."""
    root = tmp_path_factory.mktemp("saved")
    shutil.copytree(small_checkpoint, root / "model")
    config = AutoModel.from_pretrained(small_checkpoint).config
    config.num_labels = 2
    for name, model_class in (
        ("classifier", BiomedCLIPForImageClassification),
        ("answers", BiomedCLIPForVisualQuestionAnswering),
    ):
        model_class(config).save_pretrained(root / name)
        small_processor.save_pretrained(root / name)
    BiomedCLIPForImageClassification(config).save_pretrained(root / "merged")
    BiomedCLIPVisionModel(config.vision_config).save_pretrained(root / "tower")
    for name in ("merged", "tower"):  # a training of a classifier saves the image processor alone
        small_processor.image_processor.save_pretrained(root / name)
    small_processor.save_pretrained(root / "processor")
    return root


# Without the flag, with it refused, and with it given: the installed code is used in all three cases.
@pytest.mark.parametrize("flag", [{}, {"trust_remote_code": False}, {"trust_remote_code": True}])
@pytest.mark.parametrize(
    ("task", "folder", "inputs"),
    [
        ("zero-shot-image-classification", "model", {"candidate_labels": ["chest", "brain"]}),
        ("image-classification", "classifier", {}),
        ("image-classification", "merged", {}),
        ("visual-question-answering", "answers", {"question": "is it?"}),
        ("image-feature-extraction", "tower", {}),
    ],
)
def test_pipelines_do_not_ask_for_confirmation(saved, task, folder, inputs, flag):
    made = pipeline(task, model=str(saved / folder), device="cpu", **flag)
    assert made(Image.new("RGB", (40, 40)), **inputs)
    assert type(made.model).__module__.startswith("biomedclip")


@pytest.mark.parametrize("folder", ["model", "classifier", "answers"])
def test_auto_classes_do_not_ask_for_confirmation(saved, folder):
    for auto_class in (AutoModel, AutoProcessor, AutoImageProcessor, AutoTokenizer):
        assert auto_class.from_pretrained(saved / folder)


@pytest.mark.slow
def test_processors_load_without_the_models_package(saved):
    """A process that imports only `biomedclip.processing` loads processors."""
    python(
        f"""
import sys
from pathlib import Path
from biomedclip.processing import BiomedCLIPImageProcessor, BiomedCLIPProcessor

for folder in sorted(Path({str(saved)!r}).iterdir()):
    image_processor = BiomedCLIPImageProcessor.from_pretrained(folder)
    assert image_processor.size["shortest_edge"] == 32, folder
    if (folder / "tokenizer.json").exists():
        processor = BiomedCLIPProcessor.from_pretrained(folder)
        assert type(processor.image_processor) is BiomedCLIPImageProcessor
        assert processor.image_processor.to_dict() == image_processor.to_dict()
        assert processor.tokenizer.model_max_length == 64 and type(processor.tokenizer).__name__ == "BertTokenizer"
"""
    )


def test_a_processor_that_names_an_audio_tokenizer_is_refused(saved, tmp_path):
    folder = shutil.copytree(saved / "processor", tmp_path / "processor")
    (folder / "audio_tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match="audio_tokenizer"):
        BiomedCLIPProcessor.from_pretrained(folder)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("zero-shot-image-classification", "model"),
        ("image-classification", "classifier"),
        ("visual-question-answering", "answers"),
    ],
)
def test_a_tokenizer_that_names_code_does_not_ask_or_run_it(saved, tmp_path, task, name):
    folder = shutil.copytree(saved / name, tmp_path / "model")
    (folder / "planted.py").write_text(
        f"open({str(tmp_path / 'the_code_has_run')!r}, 'w').close()\nclass Planted: pass\n"
    )
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("tokenizer_class", None)
    settings["auto_map"] = {"AutoTokenizer": ["planted.Planted", "planted.Planted"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert type(AutoTokenizer.from_pretrained(folder)).__name__ == "BertTokenizer"
    assert type(AutoProcessor.from_pretrained(folder)) is BiomedCLIPProcessor
    assert pipeline(task, model=str(folder), device="cpu")
    assert not (tmp_path / "the_code_has_run").exists()
