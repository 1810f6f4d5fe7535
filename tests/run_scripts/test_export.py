"""`biomedclip export` writes graphs and measures their error."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.commands import biomedclip
from PIL import Image

from biomedclip import ExportedModel, ZeroShotClassifier, embed_images, embed_texts
from biomedclip.processing import BiomedCLIPProcessor
from biomedclip.run_scripts.main import main


@pytest.fixture(scope="module")
def source(shallow_model, small_processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "model"
    shallow_model.save_pretrained(folder)
    small_processor.save_pretrained(folder)
    return folder


OTHERS = ("biomedclip", "torch", "transformers")
# Packages are hidden, the code of the card runs, and the inputs are embedded.
PLAIN_SCRIPT = """
import json, pathlib, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {others}: raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
{code}
pictures = [Image.open(path) for path in sorted(pathlib.Path(sys.argv[1]).iterdir())]
texts = json.loads(sys.stdin.read())
results = dict(images=embed_images(pictures), texts=embed_texts(texts), probabilities=probabilities(pictures, texts))
np.savez(sys.argv[2], **results)
assert not set(sys.modules) & set({others})
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with three images in `images`, and two texts in `texts.txt`."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "images").mkdir()
    Image.effect_noise((60, 50), 90).convert("RGB").save(folder / "images" / "0.png")
    Image.effect_noise((33, 90), 90).save(folder / "images" / "1.png")
    Image.effect_noise((41, 37), 90).convert("P").save(folder / "images" / "2.png")
    (folder / "texts.txt").write_text("chest x-ray\n\nbrain mri of a figure\n")
    return folder


@pytest.fixture(scope="module")
def exported(source, inputs, tmp_path_factory):
    """The output folder of an export to ONNX in all precisions, and what it printed."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    measured_on = ["--images", inputs / "images", "--texts", inputs / "texts.txt"]
    return folder, biomedclip("export", source, folder, "--precision", "float32", "float16", "int8", *measured_on)


@pytest.mark.slow
def test_the_code_of_the_card_needs_only_onnxruntime_and_tokenizers(exported, inputs, source, shallow_model, tmp_path):
    folder, result = exported
    pictures = [Image.open(path) for path in sorted((inputs / "images").iterdir())]
    texts = ["chest x-ray", "brain mri &amp;  chart", "caption of article figure " * 40]
    assert not re.search("warn|deprecat|please", result.stderr, re.IGNORECASE), result.stderr
    names = {f"{tower}_model{end}.onnx" for tower in ("text", "vision") for end in ("", "_fp16", "_int8", "_quantized")}
    assert {file.name for file in (folder / "onnx").iterdir()} == names
    card = (folder / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    script = PLAIN_SCRIPT.replace("{others}", repr(OTHERS)).replace("{code}", code)
    command = [sys.executable, "-c", script, str(inputs / "images"), str(tmp_path / "x.npz")]
    run = subprocess.run(command, cwd=folder, input=json.dumps(texts), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    processor = BiomedCLIPProcessor.from_pretrained(source)
    ours = {
        "images": embed_images(shallow_model, processor, pictures),
        "texts": embed_texts(shallow_model, processor, texts),
        "probabilities": ZeroShotClassifier(shallow_model, processor, texts, "{}")(pictures),
    }
    plain = np.load(tmp_path / "x.npz")
    for name, values in ours.items():
        np.testing.assert_allclose(plain[name], values.numpy(), rtol=0, atol=1e-5)
    for name in ("config.json", "export.json"):
        description = json.loads((folder / name).read_text(encoding="utf-8"))
        assert description["logit_scale"] == pytest.approx(shallow_model.logit_scale.item())
    assert f"`logit_scale` is {shallow_model.logit_scale.item()}" in card


def assert_errors_and_processor_are_written(folder, output, precisions):
    """The table and the report state the errors of all precisions, and the folder has the processor of the graphs."""
    assert "cosine to float32" in output and max(map(len, output.splitlines())) <= 80
    report = json.loads((folder / "export_report.json").read_text())
    assert [*report["errors"]] == precisions and report["error"] == report["errors"][precisions[0]]
    processor = BiomedCLIPProcessor.from_pretrained(folder)
    for precision, error in report["errors"].items():
        assert error["image"]["count"] == 3 and error["text"]["count"] == 2
        assert all(0.99 < part["smallest_cosine"] <= part["mean_cosine"] < 1 + 1e-6 for part in error.values())
        model = ExportedModel(folder, precision=precision)
        features = model.get_text_features(**processor(text="chest", return_tensors="pt"))
        torch.testing.assert_close(features.pooler_output.norm(dim=-1), torch.ones(1), rtol=0, atol=1e-2)


@pytest.mark.slow
def test_onnx_graphs_and_processor_are_written_and_their_error_is_measured(exported):
    folder, result = exported
    assert_errors_and_processor_are_written(folder, result.stdout, ["float32", "float16", "int8"])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_openvino_graphs_and_processor_are_written_and_their_error_is_measured(
    source, inputs, tmp_path, capsys, precision
):
    command = ["export", str(source), str(tmp_path / "out"), "--format", "openvino", "--precision", precision]
    assert main([*command, "--images", str(inputs / "images"), "--texts", str(inputs / "texts.txt")]) == 0
    assert_errors_and_processor_are_written(tmp_path / "out", capsys.readouterr().out, [precision])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{source}", "{tmp}/x", "--precision", "bfloat16"], "ONNX Runtime has no bfloat16"),
        (["{source}", "{tmp}/x", "--format", "openvino", "--precision", "float16"], "Use bfloat16, or onnx"),
        (["{source}", "{tmp}/x", "--format", "openvino", "--precision", "float32", "int8"], "pass one `--precision`"),
        (["{source}", "{source}"], "is not empty"),
        (["/nowhere/at/all", "{tmp}/x"], "neither a folder nor a Hub id"),
        (["{source}", "{tmp}/x", "--texts", "/nowhere"], "--texts /nowhere: the file does not exist"),
    ],
)
def test_an_error_is_a_message_without_a_traceback(source, tmp_path, capsys, arguments, message):
    filled = [argument.replace("{tmp}", str(tmp_path)).replace("{source}", str(source)) for argument in arguments]
    assert main(["export", *filled]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
