"""Models that the tests of the evaluation share, and their command."""

import shutil
from collections.abc import Callable

import pytest
import torch
from conftest import SMALL_CONFIG
from helpers.model_results import read_results

from biomedclip import (
    BiomedCLIPCoAttentionConfig,
    BiomedCLIPConfig,
    BiomedCLIPForVisualQuestionAnswering,
    BiomedCLIPModel,
)
from biomedclip.run_scripts.evaluate import main as evaluate
from biomedclip.run_scripts.evaluation import run as run_of_a_model


@pytest.fixture(scope="session")
def two_models(small_checkpoint, tmp_path_factory) -> list[str]:
    """The small model, and one with other weights, in folders named `base` and `other`."""
    other = tmp_path_factory.mktemp("other") / "other"
    shutil.copytree(small_checkpoint, other)
    torch.manual_seed(1)
    BiomedCLIPModel(BiomedCLIPConfig(**SMALL_CONFIG)).save_pretrained(other)
    return [str(small_checkpoint), str(other)]


@pytest.fixture(scope="session")
def answerer(small_processor, tmp_path_factory) -> str:
    """An untrained model that answers yes or no."""
    folder = tmp_path_factory.mktemp("answerer") / "answers"
    head = BiomedCLIPCoAttentionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    labels = {"id2label": {0: "yes", 1: "no"}, "label2id": {"yes": 0, "no": 1}}
    torch.manual_seed(0)
    config = BiomedCLIPConfig(**SMALL_CONFIG, **labels, co_attention_config=head.to_dict())
    BiomedCLIPForVisualQuestionAnswering(config).save_pretrained(folder)
    small_processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def measure(small_checkpoint, tmp_path) -> Callable[..., dict]:
    """Run `biomedclip evaluate` with the small model, and return the results."""

    def run(task, data, *options, out="out"):
        arguments = [task, "--model", small_checkpoint, "--data", data, *options, "--output-dir", tmp_path / out]
        evaluate(list(map(str, arguments)))
        return read_results(tmp_path / out)

    return run


@pytest.fixture
def no_model(monkeypatch) -> None:
    """Fail a test that loads a model."""
    monkeypatch.setattr(run_of_a_model, "load_dual_encoder", lambda *args, **kwargs: pytest.fail("a model is loaded"))
