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


@pytest.fixture
def source(wide_model, small_processor, tmp_path):
    wide_model.save_pretrained(tmp_path / "model")
    small_processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


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


@pytest.mark.slow
def test_the_code_of_the_card_needs_only_onnxruntime_and_tokenizers(source, wide_model, tmp_path):
    (tmp_path / "images").mkdir()
    Image.effect_noise((60, 50), 90).convert("RGB").save(tmp_path / "images" / "0.png")
    Image.effect_noise((33, 90), 90).save(tmp_path / "images" / "1.png")
    Image.effect_noise((41, 37), 90).convert("P").save(tmp_path / "images" / "2.png")
    pictures = [Image.open(path) for path in sorted((tmp_path / "images").iterdir())]
    texts = ["chest x-ray", "brain mri &amp;  chart", "caption of article figure " * 40]
    result = biomedclip("export", source, tmp_path / "out", "--precision", "float32", "float16", "int8")
    assert not re.search("warn|deprecat|please", result.stderr, re.IGNORECASE), result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    folder = tmp_path / "out"
    names = {f"{tower}_model{end}.onnx" for tower in ("text", "vision") for end in ("", "_fp16", "_int8", "_quantized")}
    assert {file.name for file in (folder / "onnx").iterdir()} == names
    card = (folder / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    script = PLAIN_SCRIPT.replace("{others}", repr(OTHERS)).replace("{code}", code)
    command = [sys.executable, "-c", script, str(tmp_path / "images"), str(tmp_path / "x.npz")]
    run = subprocess.run(command, cwd=folder, input=json.dumps(texts), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    processor = BiomedCLIPProcessor.from_pretrained(source)
    ours = {
        "images": embed_images(wide_model, processor, pictures),
        "texts": embed_texts(wide_model, processor, texts),
        "probabilities": ZeroShotClassifier(wide_model, processor, texts, "{}")(pictures),
    }
    plain = np.load(tmp_path / "x.npz")
    for name, values in ours.items():
        np.testing.assert_allclose(plain[name], values.numpy(), rtol=0, atol=1e-5)
    for name in ("config.json", "export.json"):
        description = json.loads((folder / name).read_text(encoding="utf-8"))
        assert description["logit_scale"] == pytest.approx(wide_model.logit_scale.item())
    assert f"`logit_scale` is {wide_model.logit_scale.item()}" in card


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "precision"), [("onnx", "float32"), ("onnx", "int8"), ("openvino", "bfloat16"), ("openvino", "int8")]
)
def test_graphs_and_processor_are_written_and_their_error_is_measured(source, tmp_path, capsys, format, precision):
    Image.effect_noise((60, 50), 90).save(tmp_path / "a.png")
    (tmp_path / "texts.txt").write_text("chest x-ray\n\nbrain mri of a figure\n")
    command = ["export", str(source), str(tmp_path / "out"), "--format", format, "--precision", precision]
    assert main([*command, "--images", str(tmp_path / "a.png"), "--texts", str(tmp_path / "texts.txt")]) == 0
    output = capsys.readouterr().out
    assert "cosine to float32" in output and max(map(len, output.splitlines())) <= 80
    error = json.loads((tmp_path / "out" / "export_report.json").read_text())["error"]
    assert error["image"]["count"] == 1 and error["text"]["count"] == 2
    assert all(0.99 < part["smallest_cosine"] <= part["mean_cosine"] < 1 + 1e-6 for part in error.values())
    processor = BiomedCLIPProcessor.from_pretrained(tmp_path / "out")
    features = ExportedModel(tmp_path / "out").get_text_features(**processor(text="chest", return_tensors="pt"))
    torch.testing.assert_close(features.pooler_output.norm(dim=-1), torch.ones(1), rtol=0, atol=1e-2)


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
