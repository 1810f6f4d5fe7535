"""A saved folder is a model of sentence-transformers: the newest version and version 5.7 give our embeddings."""

import copy
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL_CONFIG
from helpers.commands import run_python
from helpers.hub_server import HubServer, log_in
from peft import LoraConfig, get_peft_model
from PIL import Image

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel, BiomedCLIPProcessor, embed_images, embed_texts
from biomedclip.modeling_biomedclip import SENTENCE_TRANSFORMERS_FILES


# `make test-all` installs this version here.
VERSION_5_7 = Path(sys.prefix) / "sentence_transformers_5.7"
TEXTS = ["chest x-ray", "“brain” mri &amp; chart", "brain mri " * 400, "", "figure of a chart"]
# The folder is loaded without the package, with the code in the folder, and then with the package.
SCRIPT = """
import sys
folder, images, expected_version, result = sys.argv[1:]
import json, numpy, pathlib, sentence_transformers
from PIL import Image
from sentence_transformers import SentenceTransformer
assert sentence_transformers.__version__.startswith(expected_version), sentence_transformers.__version__
pictures, texts = [Image.open(path) for path in sorted(pathlib.Path(images).iterdir())], json.loads(sys.stdin.read())
embeds = {}
for imported in (False, True):
    if imported:
        import biomedclip
    assert imported == ("biomedclip" in sys.modules)
    model = SentenceTransformer(folder, device="cpu", trust_remote_code=not imported)
    (code,) = {type(module).__module__ for module in model.modules() if type(module).__name__ == "BiomedCLIPModel"}
    assert code.startswith("biomedclip." if imported else "transformers_modules."), code
    embeds |= {f"texts {imported}": model.encode(texts), f"images {imported}": model.encode(pictures)}
    print(json.dumps([model.max_seq_length, model.similarity_fn_name]))
numpy.savez(result, **embeds)
"""


@pytest.fixture(scope="module")
def saved(small_processor, tmp_path_factory) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """A model without a limit in its tokenizer, images, and the embeddings."""
    root = tmp_path_factory.mktemp("saved")
    config = copy.deepcopy(SMALL_CONFIG)
    config["text_config"]["max_position_embeddings"] = 512
    model = BiomedCLIPModel(BiomedCLIPConfig(**config)).eval()
    model.save_pretrained(root / "model")
    processor = copy.deepcopy(small_processor)
    processor.tokenizer.model_max_length = int(1e30)  # like the published one
    processor.save_pretrained(root / "model")
    (root / "images").mkdir()
    Image.effect_noise((60, 50), 90).save(root / "images" / "0.png")
    Image.effect_noise((40, 70), 90).convert("P").save(root / "images" / "1.png")
    high = np.random.default_rng(0).integers(0, 4096, (50, 60), dtype=np.uint16)
    Image.fromarray(high).save(root / "images" / "2.png")
    pictures = [Image.open(path) for path in sorted((root / "images").iterdir())]
    processor = BiomedCLIPProcessor.from_pretrained(root / "model")
    expected = {
        "texts": embed_texts(model, processor, TEXTS).numpy(),
        "images": embed_images(model, processor, pictures).numpy(),
    }
    return root / "model", root / "images", expected


@pytest.mark.slow
@pytest.mark.parametrize("version", ["6.", "5.7."])
def test_sentence_transformers_gives_our_embeddings_with_remote_code_and_with_the_package(saved, tmp_path, version):
    folder, images, expected = saved
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    if version == "5.7.":
        if not VERSION_5_7.is_dir():
            pytest.skip(f"{VERSION_5_7} does not exist; make test-all installs it")
        environment["PYTHONPATH"] = os.pathsep.join([str(VERSION_5_7), os.environ.get("PYTHONPATH", "")])
    command = ["-c", SCRIPT, folder, images, version, tmp_path / "x.npz"]
    result = run_python(*command, environment=environment, folder=tmp_path, answers=json.dumps(TEXTS))
    assert result.returncode == 0, result.stderr[-3000:]
    assert [json.loads(line) for line in result.stdout.splitlines()[-2:]] == [[256, "cosine"]] * 2
    assert "Warning" not in result.stderr, result.stderr
    embeds = np.load(tmp_path / "x.npz")
    for name, ours in expected.items():
        for imported in (False, True):
            np.testing.assert_allclose(embeds[f"{name} {imported}"], ours, rtol=0, atol=1e-6)


def test_a_saved_folder_contains_the_files_and_no_folder(saved):
    for name, content in SENTENCE_TRANSFORMERS_FILES.items():
        assert json.loads((saved[0] / name).read_text(encoding="utf-8")) == content
    assert all(path.is_file() for path in saved[0].iterdir())


def test_second_processes_configurations_towers_and_adapters_do_not_write_the_files(small_model, tmp_path):
    small_model.save_pretrained(tmp_path / "second", is_main_process=False)
    small_model.config.save_pretrained(tmp_path / "configuration")
    small_model.vision_model.save_pretrained(tmp_path / "tower")
    get_peft_model(small_model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    assert len(list(tmp_path.iterdir())) == 4
    assert [*tmp_path.rglob("modules.json")] == [*tmp_path.rglob("*sentence_*.json")] == []


def test_a_model_that_is_pushed_while_it_is_saved_is_complete(small_model, tmp_path, monkeypatch):
    with HubServer({"hf_writer": {"name": "someone", "role": "write", "orgs": {}}}) as hub:
        log_in(monkeypatch, hub)
        hub.add("someone/mine", {"README.md": b"---\nlicense: mit\n---\nMy model\n"})
        small_model.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="someone/mine", private=True)
        uploaded = hub.repositories["model", "someone/mine"].files
    names = {path.name for path in (tmp_path / "mine").iterdir()}
    assert set(SENTENCE_TRANSFORMERS_FILES) < names <= set(uploaded)
