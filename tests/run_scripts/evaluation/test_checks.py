"""A model is checked before it is loaded, and output folders before anything is computed."""

import json
import shutil
import sys
from dataclasses import fields

import pytest
from conftest import SMALL_CONFIG
from helpers.mirror_writer import png_bytes
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel

from biomedclip import (
    BiomedCLIPConfig,
    BiomedCLIPForImageClassification,
    BiomedCLIPModel,
)
from biomedclip.run_scripts.evaluation import checks
from biomedclip.run_scripts.evaluation.checks import QUESTIONS, check_model, check_output
from biomedclip.run_scripts.evaluation.options import GROUPS, AllOptions


@pytest.fixture(autouse=True)
def no_loading(monkeypatch):
    """Fail a test that loads a model."""
    for name in ("AutoModel", "AutoModelForVisualQuestionAnswering"):
        monkeypatch.setattr(f"transformers.{name}.from_pretrained", lambda *args, **kwargs: pytest.fail("loaded"))


@pytest.fixture
def model(tmp_path, small_checkpoint):
    """A copy of the small checkpoint."""
    return shutil.copytree(small_checkpoint, tmp_path / "model")


@pytest.fixture
def adapter(tmp_path, model, small_processor):
    folder = tmp_path / "adapter"
    peft_model = get_peft_model(BiomedCLIPModel.from_pretrained(model), LoraConfig(r=2, target_modules=["q_proj"]))
    peft_model.save_pretrained(folder)
    small_processor.save_pretrained(folder)
    return folder


def refuse(folder, message, task="retrieval", error=ValueError):
    with pytest.raises(error, match=message):
        check_model(str(folder), task)


def write(folder, name, content=b"{}"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def change(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("task", ["retrieval", "zero-shot", "linear-probe"])
def test_the_error_for_a_classifier_states_how_to_use_it(tmp_path, task):
    BiomedCLIPForImageClassification(BiomedCLIPConfig(**SMALL_CONFIG)).save_pretrained(tmp_path)
    what = "is a classifier .BiomedCLIPForImageClassification., which has no text tower"
    refuse(
        tmp_path,
        f"{what}. Measure it with biomedclip evaluate image-classification. {task} requires a dual",
        task,
    )


def test_the_error_for_a_model_that_answers_questions_names_its_task(answerer):
    check_model(answerer, QUESTIONS)
    refuse(answerer, "is a model for visual question answering .*. Measure it with biomedclip evaluate visual-question")


def test_a_dual_encoder_has_no_head_for_questions(model):
    check_model(str(model), "zero-shot")
    refuse(model, "BiomedCLIPModel. has no trained head for questions. Train one", QUESTIONS)


def test_a_model_of_transformers_needs_two_towers(tmp_path, small_processor):
    config = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    towers = {
        "text_config": config | {"vocab_size": 128},
        "vision_config": config | {"image_size": 32, "patch_size": 8},
    }
    CLIPModel(CLIPConfig(**towers)).save_pretrained(tmp_path / "clip")
    small_processor.save_pretrained(tmp_path / "clip")
    check_model(str(tmp_path / "clip"), "retrieval")
    BertModel(BertConfig(vocab_size=128, **config)).save_pretrained(tmp_path / "bert")
    refuse(tmp_path / "bert", "is a BertModel, not a dual encoder: it has no get_image_features")


def test_the_base_of_an_adapter_must_exist(model, adapter):
    check_model(str(adapter), "retrieval")
    refuse(adapter, "has no trained head for questions", QUESTIONS)
    shutil.rmtree(model)
    refuse(adapter, "is an adapter, and its base model cannot be used: .*model is neither", error=FileNotFoundError)
    change(adapter / "adapter_config.json", base_model_name_or_path=None)
    refuse(adapter, "base_model_name_or_path is None. It must be the adapted model")


def test_an_adapter_of_a_classifier_is_refused(adapter):
    change(adapter / "adapter_config.json", modules_to_save=["classifier"])
    refuse(adapter, "is an adapter with a head .classifier.", "zero-shot")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "It contains no files"),
        (["processor_config.json", "tokenizer.json"], "a processor without a model"),
        (["vocab.txt"], "a processor without a model"),
        (["dataset_info.json", "data-00000-of-00001.arrow"], "a dataset, not a model. Pass it as --data"),
        (["data/train-00000-of-00001.parquet"], "a dataset, not a model. Pass it as --data"),
        (["checkpoint-5/config.json", "checkpoint-20/config.json"], "its training did not end.*such as .*-20"),
        (["image_model.onnx", "processor_config.json"], "exported graphs"),
        (["config.json", "export.json", "onnx/vision_model.onnx"], "exported graphs"),
        (["lung/0.png", "brain/0.png"], "a folder of images, not a model"),
        (["notes.txt"], "no config.json, so it is not a model. It contains notes.txt"),
        (["config.json"], "its config.json has no model_type"),
        (["own/config.json"], "no config.json, so"),
    ],
)
def test_the_error_for_a_folder_that_is_not_a_model_describes_the_folder(tmp_path, names, message):
    for name in names:
        write(tmp_path, name, png_bytes(0) if name.endswith(".png") else b"{}")
    refuse(tmp_path, f"--model .*: .*{message}")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        *((name, FileNotFoundError, "is neither a folder nor an id on the Hub .owner/name.")
          for name in ("nowhere", "./nowhere", "/nowhere/model", "~/model", "a/b/c")),
        ("owner/nowhere", FileNotFoundError, "neither a folder nor a model on the Hub"),
        ("{tmp}/file", ValueError, "is a file. Pass the folder"),
        ("biovil-t", ImportError, "requires the package health_multimodal"),
    ],
)  # fmt: skip
def test_the_error_for_a_missing_model_names_it(tmp_path, monkeypatch, name, error, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setitem(sys.modules, "health_multimodal", None)  # as if it were not installed
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match=f"--model .*{message}"):
        check_model(name.format(tmp=tmp_path), "retrieval")


def test_the_error_for_missing_or_truncated_weights_names_the_file(model):
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    refuse(model, "model.safetensors: damaged or truncated")
    weights.unlink()
    refuse(model, "no weights", error=FileNotFoundError)
    write(model, "model.safetensors.index.json", {"weight_map": {"a": "b.safetensors"}})
    write(model, "a.safetensors", content)
    refuse(model, "index.json lists b.safetensors, which is missing", error=FileNotFoundError)


def test_a_model_without_its_tokenizer_is_refused(model):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    refuse(model, "no tokenizer", error=FileNotFoundError)


def test_an_open_clip_folder_needs_the_package_unless_it_is_biomedclip(tmp_path, monkeypatch):
    write(tmp_path, "open_clip_config.json", {"model_cfg": {"text_cfg": {"hf_model_name": "some/bert"}}})
    write(tmp_path, "open_clip_model.safetensors")
    monkeypatch.setitem(sys.modules, "open_clip", None)  # as if it were not installed
    refuse(tmp_path, "open_clip's layout. It requires the package open_clip", error=ImportError)
    ours = {"hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"}
    write(tmp_path, "open_clip_config.json", {"model_cfg": {"text_cfg": ours}})
    check_model(str(tmp_path), "retrieval")
    (tmp_path / "open_clip_model.safetensors").unlink()
    refuse(tmp_path, "no weights", error=FileNotFoundError)


@pytest.mark.parametrize(
    ("auto_map", "more"), [({}, ""), ({"AutoModel": "own.Model"}, "which needs --trust-remote-code")]
)
def test_a_model_of_an_unknown_type_needs_trust_remote_code(tmp_path, auto_map, more):
    write(tmp_path, "config.json", {"model_type": "own", "auto_map": auto_map})
    for name in ("pytorch_model.bin", "processor_config.json", "tokenizer.json"):
        write(tmp_path, name)
    refuse(tmp_path, f"does not have the model_type 'own'.*{more}")
    check_model(str(tmp_path), "retrieval", trust_remote_code=True)


def test_settings_that_would_run_code_are_refused(model):
    change(model / "config.json", attn_implementation="owner/kernel")
    refuse(model, "a kernel that would be downloaded and run")


def test_results_of_another_task_are_not_replaced(tmp_path):
    check_output([tmp_path / "new" / "deep"], "zero-shot", None)
    assert (tmp_path / "new" / "deep").is_dir() and not list((tmp_path / "new" / "deep").iterdir())
    write(tmp_path, "results.json", {"task": "zero-shot", "benchmark": "pcam"})
    check_output([tmp_path], "zero-shot", "pcam")
    with pytest.raises(ValueError, match="contains results of zero-shot on pcam, and retrieval would replace them"):
        check_output([tmp_path], "retrieval", None)
    write(tmp_path, "results.json", b"[]")
    with pytest.raises(ValueError, match="not results of biomedclip evaluate"):
        check_output([tmp_path], "zero-shot", "pcam")


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_is_refused_as_an_output_folder(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--output-dir .*file is a file. Choose a folder"):
        check_output([tmp_path / name], "zero-shot", None)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checks.tempfile, "TemporaryFile", refuse)
    with pytest.raises(ValueError, match="cannot be written .Permission denied"):
        check_output([tmp_path], "zero-shot", None)


def test_the_help_lists_every_option():
    listed = [name for names in GROUPS.values() for name in names.split()]
    assert sorted(listed) == sorted(option.name for option in fields(AllOptions))
