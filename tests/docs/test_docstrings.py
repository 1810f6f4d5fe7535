"""The examples in the docstrings of public names run."""

import doctest
import inspect
import shutil

import pytest
from helpers.fake_detectors import Halves
from helpers.mirror_writer import MirrorWriter, build_set

import biomedclip
from biomedclip.run_scripts.main import main


HEAD = '{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}'
NEED_NETWORK = {"from_open_clip"}


def example_of(name: str) -> str:
    """Return the code of the example, without its output."""
    text = inspect.getdoc(getattr(biomedclip, name)) or ""
    return "".join(example.source for example in doctest.DocTestParser().get_examples(text.replace("```", "")))


EXAMPLES = [name for name in biomedclip.__all__ if example_of(name) and name not in NEED_NETWORK]


@pytest.fixture(scope="module")
def work(quickstart, tmp_path_factory):
    """Return a folder with what the examples name, in addition to the quickstart's."""
    folder = tmp_path_factory.mktemp("docstrings") / "work"
    shutil.copytree(quickstart, folder, symlinks=True)
    shutil.copy(folder / "figure.png", folder / "scan.png")
    shutil.copytree(folder / "scans" / "test", folder / "folder_of_classes")
    MirrorWriter(folder / "mirror").plain_articles(20)
    build_set(folder / "mirror", folder / "with_panels", detector=Halves(), panels="also")
    model, answers = str(folder / "out" / "model"), str(folder / "answers")
    data = ["--config", "vqa_rad", "--train-data", str(folder / "VQA_RAD"), "--co-attention-config", HEAD]
    steps = ["--max-steps", "1", "--per-device-train-batch-size", "4", "--use-cpu", "true"]
    steps += ["--dataloader-num-workers", "0"]
    assert main(["train", *data, "--model-name-or-path", model, "--output-dir", answers, *steps]) == 0
    few = ["--task", "few-shot-head", "--train-data", str(folder / "scans"), "--output-dir", str(folder / "head")]
    assert main(["train", *few, "--model-name-or-path", model]) == 0
    assert main(["export", model, str(folder / "exported")]) == 0
    assert main(["embed", str(folder / "scans"), "--model", model, "--output", str(folder / "vectors")]) == 0
    small = {"image_size": 64, "widths": [8] * 6, "depths": [0] * 6, "neck_width": 8}
    detector = folder / "detector"
    biomedclip.PanelDetectionModel(biomedclip.PanelDetectionConfig(**small)).save_pretrained(detector)
    biomedclip.PanelDetectionImageProcessor(size={"height": 64, "width": 64}).save_pretrained(detector)
    images = ["--images", str(folder / "figure.png")]
    assert main(["export", str(detector), str(folder / "exported_detector"), *images]) == 0
    return folder


def test_most_public_names_have_an_example():
    assert len(EXAMPLES) > 15


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_docstring_runs(name, work, monkeypatch):
    monkeypatch.chdir(work)
    exec(compile(example_of(name), f"example of {name}", "exec"), {})
