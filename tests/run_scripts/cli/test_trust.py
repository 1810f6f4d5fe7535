"""No code of a model folder runs without `--trust-remote-code`, and no question is asked."""

import ast
import io
import json
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.commands import ROOT, biomedclip
from helpers.mirror_writer import png_bytes
from transformers import (
    BertConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTImageProcessorPil,
)

from biomedclip.conversion import load_any_layout
from biomedclip.processing.pmc.statistics import load_tokenizer
from biomedclip.run_scripts.cli.trust import questions_are_errors
from biomedclip.run_scripts.evaluation.dual_encoders import load_dual_encoder
from biomedclip.run_scripts.evaluation.visual_question_answering import load_answerer
from biomedclip.run_scripts.hub.fingerprints import base_fingerprint
from biomedclip.run_scripts.main import main
from biomedclip.run_scripts.training.adapters import AdapterOptions, add_adapter
from biomedclip.run_scripts.training.models import ModelOptions, outline
from biomedclip.source_checks import check_source


AUTO_CLASSES = """
    Config Model ModelForImageClassification ModelForVisualQuestionAnswering Processor ImageProcessor VideoProcessor
    FeatureExtractor
""".split()
AUTO_MAP = dict.fromkeys((f"Auto{name}" for name in AUTO_CLASSES), "planted.Planted")
AUTO_MAP |= {"AutoTokenizer": ["planted.Planted", "planted.Planted"]}
SOURCES = ("modeling_biomedclip", "processing", "run_scripts", "model_cards")
# Loads what this process has just trained, and has no argument of this name.
WITHOUT_ARGUMENT = {"PeftModel"}
RUN_WHAT_THEY_READ = {"pickle.load", "pickle.loads", "eval", "exec"}
SAFE_LOADERS = {"yaml.SafeLoader", "_UniqueKeys", "_Texts"}  # the others are subclasses of the first
# A process that answers for an upload with the code in it, after that code was found equal to the installed one.
MAY_TRUST = {"run_scripts/hub/model_outputs.py"}


def plant(folder: Path, marker: Path, *files: str) -> Path:
    """Writes code that leaves a marker when it runs, and names it in the JSON files of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "planted.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Planted: pass\n")
    for file in files or ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        path = folder / file
        content = json.loads(path.read_text()) if path.is_file() else {"model_type": "planted"}
        for key in ("processor_class", "tokenizer_class", "image_processor_type"):
            content.pop(key, None)
        path.write_text(json.dumps(content | {"auto_map": AUTO_MAP}))
    return folder


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "the_code_has_run"


@pytest.fixture
def planted(tmp_path, marker):
    return plant(tmp_path / "planted", marker)


# All loaders that are given a folder by the user.
LOADERS = [
    load_dual_encoder,
    load_answerer,
    base_fingerprint,
    lambda name: outline(ModelOptions(model_name_or_path=name)),
    lambda name: outline(ModelOptions(vision_model=name)),
    lambda name: outline(ModelOptions(text_model=name)),
]


@pytest.mark.parametrize("load", LOADERS)
def test_no_loader_runs_code_or_asks(planted, marker, load):
    with questions_are_errors(), pytest.raises((ValueError, OSError, AttributeError)):
        load(str(planted))
    assert not marker.exists()


@pytest.mark.parametrize(
    "verb",
    [
        "evaluate retrieval --model {planted} --data {data} --output-dir {out}",
        "evaluate zero-shot --model {planted} --data {classes} --output-dir {out}",
        "train --model-name-or-path {planted} --train-data {data} --output-dir {out} --max-steps 1",
        "train --text-model {planted} --train-data {data} --output-dir {out} --max-steps 1",
        "train --vision-model {planted} --train-data {data} --output-dir {out} --max-steps 1",
        "train --tokenizer {planted} --train-data {data} --output-dir {out} --max-steps 1",
        "train --task image-classification --model-name-or-path {planted} --train-data {classes} --output-dir {out} "
        "--per-device-train-batch-size 2",
        "train --dry-run --model-name-or-path {planted}",
        "convert {planted} {out}",
        "convert {planted} {out} --to open_clip",
        "export {planted} {out}",
        "embed {classes} --model {planted} --output {out}",
        "card {planted}",
        "push lab/model --model {planted} --dry-run",
    ],
)
def test_no_command_runs_code_if_the_answer_would_be_yes(planted, marker, built, tmp_path, monkeypatch, capsys, verb):
    for number in range(8):
        (tmp_path / "classes" / f"class_{number % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "classes" / f"class_{number % 2}" / f"{number}.png").write_bytes(png_bytes(number, (32, 32)))
    places = {"planted": planted, "data": built, "classes": tmp_path / "classes", "out": tmp_path / "out"}
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 50))
    status = main([word.format(**places) for word in verb.split()])
    assert status != 0 and not marker.exists()
    assert str(planted) in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_with_yes_on_stdin_runs_no_code(planted, marker, built, tmp_path):
    arguments = ["evaluate", "retrieval", "--model", planted, "--data", built, "--output-dir", tmp_path / "out"]
    result = biomedclip(*arguments, check=False, answers="y\n" * 50)
    assert result.returncode == 1 and not marker.exists()
    assert "--trust-remote-code" in result.stderr and "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def two_towers(tmp_path_factory, small_processor):
    """A model type of transformers with a processor, but without an image processor of its own."""
    folder = tmp_path_factory.mktemp("two_towers")
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    towers = ViTConfig(**tower, image_size=32, patch_size=8), BertConfig(**tower, vocab_size=128)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(*towers, projection_dim=16)
    VisionTextDualEncoderModel(config).save_pretrained(folder)
    small_processor.tokenizer.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_loader_that_forgets_the_argument_does_not_ask_either(two_towers, marker, tmp_path):
    # transformers does not pass `trust_remote_code=False` on from this processor to its image processor.
    folder = plant(shutil.copytree(two_towers, tmp_path / "model"), marker, "preprocessor_config.json")
    change(folder / "preprocessor_config.json", auto_map={"AutoImageProcessor": "planted.Planted"})
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_dual_encoder(str(folder))
    assert not marker.exists()


def test_code_in_the_folder_of_a_biomedclip_is_not_run(small_checkpoint, marker, tmp_path):
    folder = plant(shutil.copytree(small_checkpoint, tmp_path / "model"), marker, "config.json")
    assert load_dual_encoder(str(folder)).type == "biomedclip"
    assert not marker.exists()


def test_the_flag_runs_the_code(planted, marker):
    with pytest.raises(Exception):  # noqa: B017 - the planted class is no model
        load_dual_encoder(str(planted), trust_remote_code=True)
    assert marker.exists()


@torch.no_grad()
def test_a_model_that_needs_its_own_code_is_only_loaded_with_the_flag(small_checkpoint, tmp_path):
    folder = shutil.copytree(small_checkpoint, tmp_path / "model")
    change(folder / "config.json", model_type="someones_clip")
    code = folder / "configuration_biomedclip.py"
    code.write_text(code.read_text().replace('model_type = "biomedclip"\n', 'model_type = "someones_clip"\n'))
    with questions_are_errors(), pytest.raises(ValueError, match="trust_remote_code"):
        load_dual_encoder(str(folder))
    encoder, original = load_dual_encoder(str(folder), trust_remote_code=True), load_dual_encoder(str(small_checkpoint))
    assert encoder.type == "someones_clip" and type(encoder.model).__module__.startswith("transformers_modules")
    pixels = torch.zeros(1, 3, 32, 32)
    torch.testing.assert_close(encoder.embed_pixels(pixels), original.embed_pixels(pixels), rtol=0, atol=1e-6)


def test_the_tokenizer_that_measures_captions_runs_no_code(planted, marker):
    with questions_are_errors(), pytest.raises(ValueError, match="caption_tokenizer"):
        load_tokenizer(str(planted))
    assert not marker.exists()


@pytest.fixture
def adapter(small_model, tmp_path):
    folder = tmp_path / "adapter"
    add_adapter(small_model, AdapterOptions(lora_rank=2)).save_pretrained(folder)
    return folder


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_code_of_an_adapters_base_is_not_run(adapter, planted, marker):
    change(adapter / "adapter_config.json", base_model_name_or_path=str(planted))
    with questions_are_errors(), pytest.raises((ValueError, OSError)):
        load_dual_encoder(str(adapter))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "SHADOW", "shadow_model": "else/where"}, "peft_type"),
        ({"peft_type": "PROMPT_TUNING", "tokenizer_name_or_path": "else/where"}, "peft_type"),
        ({"peft_type": "XLORA", "adapters": {"0": "else/where"}}, "peft_type"),
        ({"megatron_config": {"a": 1}, "megatron_core": "planted"}, "megatron_config"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path"),
    ],
)
def test_settings_of_an_adapter_that_load_from_elsewhere_are_refused_by_name(
    adapter, small_checkpoint, values, message
):
    change(adapter / "adapter_config.json", **{"base_model_name_or_path": str(small_checkpoint)} | values)
    with pytest.raises(ValueError, match=f"adapter_config.json: {message}"):
        load_dual_encoder(str(adapter))


class RunsCode:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_pickles_of_adapters_are_refused_and_those_of_models_only_contain_tensors(
    adapter, small_checkpoint, marker, tmp_path
):
    change(adapter / "adapter_config.json", base_model_name_or_path=str(small_checkpoint))
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(RunsCode(marker)))
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="adapter_model.bin is a pickle"):
        load_dual_encoder(str(adapter))
    model = shutil.copytree(small_checkpoint, tmp_path / "model")
    (model / "model.safetensors").unlink()
    torch.save({"logit_scale": RunsCode(marker)}, model / "pytorch_model.bin")
    for load in LOADERS[:3]:
        with pytest.raises(Exception, match="[Ww]eights.only"):
            load(str(model))
    assert not marker.exists()


AUDIO_TOKENIZER = {"audio_tokenizer_class": "AutoModel", "audio_tokenizer_name_or_path": "else/where"}


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"attn_implementation": "someone/kernel"}),
        ("config.json", {"_attn_implementation": {"text_config": "someone/kernel"}}),
        ("config.json", {"text_config": {"attn_implementation": "someone/kernel@main"}}),
        ("config.json", {"experts_implementation": "someone/kernel"}),
        ("config.json", {"architecture": "hf-hub:someone/else"}),
        ("config.json", {"vision_config": {"backbone": "someone/else"}}),
        ("processor_config.json", {"audio_tokenizer": AUDIO_TOKENIZER}),
        ("audio_tokenizer_config.json", {"audio_tokenizer_class": "AutoModel"}),
    ],
)
def test_settings_that_load_from_elsewhere_are_refused_by_name(small_checkpoint, tmp_path, file, values):
    folder = shutil.copytree(small_checkpoint, tmp_path / "model")
    if not (folder / file).exists():
        (folder / file).write_text("{}")
    change(folder / file, **values)
    for load in (load_dual_encoder, load_any_layout):
        with pytest.raises(ValueError, match=file):
            load(folder if load is load_any_layout else str(folder))
    check_source(str(folder), trust_remote_code=True)


@pytest.mark.parametrize("verb", ["convert {model} {out}", "export {model} {out}", "card {model}"])
def test_an_adapter_next_to_a_model_is_refused_if_only_the_model_is_read(
    small_checkpoint, adapter, tmp_path, capsys, verb
):
    folder = shutil.copytree(small_checkpoint, tmp_path / "model")
    shutil.copytree(adapter, folder, dirs_exist_ok=True)
    change(folder / "adapter_config.json", peft_type="XLORA")
    assert main(verb.format(model=folder, out=tmp_path / "out").split()) == 1
    assert "contains an adapter" in capsys.readouterr().err


def all_calls() -> Iterator[tuple[str, ast.Call]]:
    """All calls in the source, with their files."""
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield str(path.relative_to(ROOT)), node


def _loads(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id == "pipeline"
    if not isinstance(function, ast.Attribute):
        return False
    owner = ast.unparse(function.value)
    return function.attr in ("from_pretrained", "from_config", "pipeline") and owner not in WITHOUT_ARGUMENT | {
        "super()"
    }


def test_every_call_that_loads_says_whether_code_is_trusted():
    calls = [(place, call) for place, call in all_calls() if _loads(call.func)]
    assert len(calls) > 20
    for place, call in calls:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        value = given.get("trust_remote_code", "nothing")
        allowed = {"False", "trust", "trust_remote_code"} | ({"True"} if place in MAY_TRUST else set())
        assert value in allowed, f"{place}:{call.lineno}: trust_remote_code is {value}, not one of {sorted(allowed)}"


def test_open_clip_and_pickles_are_read_in_one_place_each():
    open_clips = ("create_model", "create_model_and_transforms", "create_model_from_pretrained", "get_tokenizer")
    for place, call in all_calls():
        name = ast.unparse(call.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name.endswith(open_clips):
            assert place == "run_scripts/evaluation/open_clip_folders.py", (
                f"{place}:{call.lineno}: {name} before check_safe"
            )
        if name == "torch.load":
            assert given.get("weights_only") == "True", f"{place}:{call.lineno}: torch.load without weights_only=True"
        if name == "yaml.load":
            assert given.get("Loader") in SAFE_LOADERS, f"{place}:{call.lineno}: {name} with another loader"
        assert name not in RUN_WHAT_THEY_READ, f"{place}:{call.lineno}: {name}"
        assert given.get("allow_pickle", "False") == "False", f"{place}:{call.lineno}: {name} with allow_pickle"
