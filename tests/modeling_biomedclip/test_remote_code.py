"""A saved folder contains the code: four kinds of processes load, use and save it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.commands import run_python
from peft import LoraConfig, get_peft_model
from PIL import Image

from biomedclip import BiomedCLIPForImageClassification, BiomedCLIPModel, BiomedCLIPTextModelWithProjection


pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
LABELS = ["chest x-ray", "brain mri"]
# What a process does before it loads anything, and the flag that its calls carry.
PROCESSES = {
    "imported": ("import biomedclip",),
    "installed but not imported": ("import importlib.util as u; assert u.find_spec('biomedclip')", "trust"),
    "not installed": ("hide('biomedclip')", "trust"),
    "not installed, nor is ftfy": ("hide('biomedclip', 'ftfy')", "trust"),
}
SCRIPT = """
import json, sys

class Hidden:
    def __init__(self, names): self.names = names
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names: raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def hide(*names):
    sys.meta_path.insert(0, Hidden(names))
    for loaded in [name for name in sys.modules if name.split(".")[0] in names]: del sys.modules[loaded]

before, folder, classifier, adapter, text_tower, image, again = sys.argv[1:8]
flag = {"trust_remote_code": True} if len(sys.argv) > 8 else {}
exec(before)
import torch
from peft import PeftModel
from PIL import Image
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification, AutoProcessor, AutoTokenizer, pipeline,
)
assert flag == {} or "biomedclip" not in sys.modules
labels, picture = ["chest x-ray", "brain mri"], Image.open(image)
model, processor = AutoModel.from_pretrained(folder, **flag), AutoProcessor.from_pretrained(folder, **flag)
inputs = processor(text=labels, images=picture, return_tensors="pt")
zero_shot = AutoModelForZeroShotImageClassification.from_pretrained(folder, **flag)
classify = pipeline("zero-shot-image-classification", model=folder, device="cpu", **flag)
answers = {a["label"]: a["score"] for a in classify(picture, candidate_labels=labels, hypothesis_template="{}")}
classes = AutoModelForImageClassification.from_pretrained(classifier, **flag)
pixels = AutoImageProcessor.from_pretrained(folder, **flag)(picture, return_tensors="pt")["pixel_values"]
with torch.no_grad():
    results = {
        "logits": model(**inputs).logits_per_image.tolist(),
        "zero_shot": zero_shot(**inputs).logits_per_image.tolist(),
        "classes": classes(inputs["pixel_values"]).logits.tolist(),
        "text_tower": AutoModel.from_pretrained(text_tower, **flag)(inputs["input_ids"]).pooler_output.tolist(),
        "adapted": PeftModel.from_pretrained(model, adapter)(**inputs).logits_per_image.tolist(),
    }
results |= {
    "answers": [answers[label] for label in labels],
    "pixels": pixels.sum().item(),
    "tokens": AutoTokenizer.from_pretrained(folder)(labels, padding=True)["input_ids"],
    "config": AutoConfig.from_pretrained(folder, **flag).projection_dim,
}
zero_shot.save_pretrained(again)
processor.save_pretrained(again)
print()  # a progress bar may have left the line unfinished
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def saved(small_checkpoint, small_processor, tmp_path_factory):
    """Folders that users save, and the outputs of their models."""
    root, processor = tmp_path_factory.mktemp("saved"), small_processor
    shutil.copytree(small_checkpoint, root / "model")
    model = BiomedCLIPModel.from_pretrained(root / "model")
    classifier = BiomedCLIPForImageClassification.from_pretrained(root / "model", num_labels=3)
    classifier.save_pretrained(root / "classifier")
    BiomedCLIPTextModelWithProjection.from_pretrained(root / "model").save_pretrained(root / "text")
    picture = Image.effect_noise((60, 50), 90).convert("RGB")
    picture.save(root / "picture.png")
    inputs = processor(text=LABELS, images=picture, return_tensors="pt")
    with torch.no_grad():
        expected = {
            "logits": model(**inputs).logits_per_image,
            "zero_shot": model(**inputs).logits_per_image,
            "classes": classifier(inputs["pixel_values"]).logits,
            "text_tower": model.text_model(inputs["input_ids"]).pooler_output,
            "answers": model(**inputs).logits_per_image.softmax(-1)[0],
        }
        adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
        expected["adapted"] = adapted(**inputs).logits_per_image
    adapted.save_pretrained(root / "adapter")
    expected |= {"pixels": inputs["pixel_values"].sum(), "tokens": inputs["input_ids"], "config": 16}
    return root, {name: torch.as_tensor(value).tolist() for name, value in expected.items()}


def run(root: Path, folder: Path, process: str, again: Path) -> dict:
    before, *flag = PROCESSES[process]
    folders = [folder, root / "classifier", root / "adapter", root / "text", root / "picture.png", again]
    environment = {"HF_MODULES_CACHE": f"{again}_modules"}
    result = run_python("-c", SCRIPT, before, *folders, *flag, environment=environment, folder=again.parent)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(next(line for line in result.stdout.splitlines() if line.startswith("{")))


def test_every_process_loads_uses_and_saves_the_folder_of_the_last(saved, tmp_path):
    root, expected = saved
    folder = root / "model"
    names = {path.name for path in folder.iterdir()}
    for number, process in enumerate([*PROCESSES, "imported"]):
        again = tmp_path / f"again_{number}"
        results = run(root, folder, process, again)
        assert results.keys() == expected.keys()
        for name, value in expected.items():
            # Another process rounds products of float32 another way, as memory happens to be aligned.
            torch.testing.assert_close(torch.tensor(results[name]), torch.tensor(value), rtol=1e-5, atol=1e-6)
        assert {path.name for path in again.iterdir()} == names, process
        for name in names:
            if name.endswith((".py", ".safetensors", "processor_config.json")):
                assert (again / name).read_bytes() == (root / "model" / name).read_bytes(), (process, name)
        folder = again


def test_without_import_and_flag_the_error_names_the_flag(saved, tmp_path):
    code = "import sys; from transformers import AutoModel; AutoModel.from_pretrained(sys.argv[1])"
    result = run_python("-c", code, saved[0] / "model", folder=tmp_path)
    assert result.returncode != 0 and "trust_remote_code=True" in result.stderr


def test_every_saved_configuration_lists_every_head(saved):
    root, _ = saved
    heads = ("AutoModel", "AutoModelForZeroShotImageClassification", "AutoModelForImageClassification", "AutoConfig")
    heads += ("AutoModelForVisualQuestionAnswering",)
    for folder in ("model", "classifier"):
        auto_map = json.loads((root / folder / "config.json").read_text())["auto_map"]
        assert set(auto_map) == set(heads)
        assert all((root / folder / f"{name.split('.')[0]}.py").is_file() for name in auto_map.values())


def test_a_configuration_from_the_hub_is_saved_with_local_code(small_model, tmp_path):
    small_model.config.auto_map = {"AutoModel": "org/biomedclip--modeling_biomedclip.BiomedCLIPModel"}
    small_model.save_pretrained(tmp_path)
    assert "org/biomedclip--" not in (tmp_path / "config.json").read_text()
