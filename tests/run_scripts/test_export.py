"""`biomedclip export` writes graphs and measures their error."""

import json

import pytest
import torch
from PIL import Image

from biomedclip import ExportedModel
from biomedclip.processing import BiomedCLIPProcessor
from biomedclip.run_scripts.main import main


@pytest.fixture
def source(wide_model, small_processor, tmp_path):
    wide_model.save_pretrained(tmp_path / "model")
    small_processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


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
