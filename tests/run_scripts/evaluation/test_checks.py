"""Checks of a model before it is loaded."""

import json
import shutil
import sys

import pytest
from conftest import SMALL_CONFIG
from helpers.mirror_writer import png_bytes
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel

from biomedclip import (
    BiomedCLIPConfig,
    BiomedCLIPForImageClassification,
    BiomedCLIPForVisualQuestionAnswering,
    BiomedCLIPModel,
)
from biomedclip.run_scripts.evaluation import checks
from biomedclip.run_scripts.evaluation.checks import check_model, check_output


@pytest.fixture
def no_weights(monkeypatch):
    """Fails a test that loads a model."""
    for name in ("AutoModel", "AutoModelForVisualQuestionAnswering"):
        monkeypatch.setattr(f"transformers.{name}.from_pretrained", lambda *args, **kwargs: pytest.fail("loaded"))


def save(model_class, folder, processor=None):
    model_class(BiomedCLIPConfig(**SMALL_CONFIG)).save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return str(folder)


def adapter(folder, base, small_processor, **options):
    model = BiomedCLIPModel.from_pretrained(base)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], **options)).save_pretrained(folder)
    small_processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("task", ["retrieval", "zero-shot", "linear-probe"])
def test_the_error_for_a_classifier_states_how_to_use_it(tmp_path, small_processor, task, no_weights):
    name = save(BiomedCLIPForImageClassification, tmp_path, small_processor.image_processor)
    with pytest.raises(
        ValueError, match="is a classifier .BiomedCLIPForImageClassification., which has no text tower"
    ) as found:
        check_model(name, task)
    assert f"{task} needs a dual encoder" in str(found.value) and "sentencepiece" not in str(found.value)
    assert "train_results.json" in str(found.value)


def test_the_error_for_a_vqa_model_names_its_task(tmp_path, small_processor, no_weights):
    from biomedclip import BiomedCLIPCoAttentionConfig

    head = BiomedCLIPCoAttentionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    config = BiomedCLIPConfig(**SMALL_CONFIG, co_attention_config=head.to_dict(), num_labels=3)
    BiomedCLIPForVisualQuestionAnswering(config).save_pretrained(tmp_path)
    small_processor.save_pretrained(tmp_path)
    check_model(str(tmp_path), "visual-question-answering")
    with pytest.raises(
        ValueError, match="answers questions .*: measure it with biomedclip evaluate visual-question-answering"
    ):
        check_model(str(tmp_path), "retrieval")


def test_a_dual_encoder_has_no_head_for_questions(small_checkpoint, no_weights):
    check_model(str(small_checkpoint), "zero-shot")
    with pytest.raises(
        ValueError, match="has no head for questions .BiomedCLIPModel.: it would answer at random. Train"
    ):
        check_model(str(small_checkpoint), "visual-question-answering")


def test_other_dual_encoders_pass_and_models_of_one_tower_do_not(tmp_path, small_processor, no_weights):
    config = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPModel(
        CLIPConfig(text_config=config | {"vocab_size": 128}, vision_config=config | {"image_size": 32, "patch_size": 8})
    ).save_pretrained(tmp_path / "clip")
    small_processor.save_pretrained(tmp_path / "clip")
    check_model(str(tmp_path / "clip"), "retrieval")
    BertModel(BertConfig(vocab_size=128, **config)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="is a BertModel, not a dual encoder: it has no get_image_features"):
        check_model(str(tmp_path / "bert"), "retrieval")


def test_an_adapter_needs_its_base(tmp_path, small_checkpoint, small_processor, no_weights):
    base = tmp_path / "base"
    shutil.copytree(small_checkpoint, base)
    folder = adapter(tmp_path / "adapter", base, small_processor)
    check_model(str(folder), "retrieval")
    with pytest.raises(ValueError, match="adapter of two towers and has no head for questions"):
        check_model(str(folder), "visual-question-answering")
    shutil.rmtree(base)
    with pytest.raises(
        FileNotFoundError, match="is an adapter, and its base model .*base cannot be used: there is no such"
    ):
        check_model(str(folder), "retrieval")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="an adapter that names no base model"):
        check_model(str(folder), "retrieval")


def test_an_adapter_of_a_classifier_is_refused(tmp_path, small_checkpoint, small_processor, no_weights):
    folder = adapter(tmp_path / "adapter", small_checkpoint, small_processor)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": ["classifier"]}))
    with pytest.raises(ValueError, match="is an adapter with a head .classifier."):
        check_model(str(folder), "zero-shot")


def write(folder, name, content=b"{}"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "the folder is empty"),
        (["processor_config.json", "tokenizer.json"], "a processor without a model"),
        (["vocab.txt"], "a processor without a model"),
        (["report.json", "data/train-00000-of-00001.parquet", "README.md"], "a dataset that biomedclip build wrote"),
        (["dataset_info.json", "data-00000-of-00001.arrow"], "a dataset, not a model. Pass it as --data"),
        (["data/train-00000-of-00001.parquet"], "a dataset, not a model. Pass it as --data"),
        (
            ["checkpoint-5/config.json", "checkpoint-20/config.json"],
            "its training did not end.*such as .*checkpoint-20",
        ),
        (["image_model.onnx", "processor_config.json"], "exported graphs"),
        (["lung/0.png", "brain/0.png"], "a folder of images, not a model"),
        (["notes.txt"], "no config.json there, so it is not a model. It holds notes.txt"),
        (["config.json"], "its config.json has no model_type"),
        (["own/config.json"], "no config.json there"),
    ],
)
def test_the_error_for_a_folder_that_is_not_a_model_describes_the_folder(tmp_path, names, message, no_weights):
    for name in names:
        write(tmp_path, name, png_bytes(0) if name.endswith(".png") else b"{}")
    with pytest.raises(ValueError, match=f"--model .*: .*{message}"):
        check_model(str(tmp_path), "retrieval")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nowhere", FileNotFoundError, "there is no such folder .and an id on the Hub would be owner/name"),
        ("./nowhere", FileNotFoundError, "there is no such folder"),
        ("/nowhere/model", FileNotFoundError, "there is no such folder"),
        ("~/model", FileNotFoundError, "there is no such folder"),
        ("a/b/c", FileNotFoundError, "there is no such folder"),
        ("owner/nowhere", FileNotFoundError, "no such model on the Hub that can be reached"),
        ("{tmp}/file", ValueError, "is a file. Name the folder"),
        ("biovil-t", ImportError, "needs the package health_multimodal"),
    ],
)
def test_a_missing_model_is_named(tmp_path, monkeypatch, name, error, message, no_weights):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setitem(sys.modules, "health_multimodal", None)  # as if it were not installed
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match=f"--model .*{message}"):
        check_model(name.format(tmp=tmp_path), "retrieval")


def test_weights_that_are_missing_or_cut_off_are_named(tmp_path, small_checkpoint, small_processor, no_weights):
    shutil.copytree(small_checkpoint, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.safetensors: damaged or truncated"):
        check_model(str(tmp_path / "cut"), "retrieval")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="no weights there"):
        check_model(str(tmp_path / "cut"), "retrieval")
    (tmp_path / "cut" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "b.safetensors"}}))
    (tmp_path / "cut" / "a.safetensors").write_bytes((small_checkpoint / "model.safetensors").read_bytes())
    with pytest.raises(FileNotFoundError, match="index.json names b.safetensors, which is missing"):
        check_model(str(tmp_path / "cut"), "retrieval")


@pytest.mark.parametrize(("files", "what"), [(["tokenizer.json", "tokenizer_config.json"], "tokenizer")])
def test_a_model_without_its_processor_is_refused(tmp_path, small_checkpoint, files, what, no_weights):
    shutil.copytree(small_checkpoint, tmp_path / "model")
    for name in files:
        (tmp_path / "model" / name).unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=f"no {what} there"):
        check_model(str(tmp_path / "model"), "retrieval")


def test_an_open_clip_folder_needs_the_package_unless_it_is_biomedclip(tmp_path, monkeypatch, no_weights):
    config = {"model_cfg": {"text_cfg": {"hf_model_name": "some/bert"}}}
    write(tmp_path, "open_clip_config.json", json.dumps(config).encode())
    write(tmp_path, "open_clip_model.safetensors")
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="open_clip's layout: the model needs the package open_clip"):
        check_model(str(tmp_path), "retrieval")
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    write(tmp_path, "open_clip_config.json", json.dumps(config).encode())
    check_model(str(tmp_path), "retrieval")
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights there"):
        check_model(str(tmp_path), "retrieval")


def test_results_are_not_replaced_by_those_of_another_kind(tmp_path):
    check_output([tmp_path / "new" / "deep"], "zero-shot", None)
    assert (tmp_path / "new" / "deep").is_dir() and not list((tmp_path / "new" / "deep").iterdir())
    (tmp_path / "results.json").write_text(json.dumps({"task": "zero-shot", "benchmark": "pcam"}))
    check_output([tmp_path], "zero-shot", "pcam")
    with pytest.raises(ValueError, match="holds results of zero-shot on pcam, which retrieval would replace"):
        check_output([tmp_path], "retrieval", None)
    (tmp_path / "results.json").write_text("[]")
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


@pytest.mark.parametrize(
    ("auto_map", "more"), [({}, ""), ({"AutoModel": "own.Model"}, "with --trust-remote-code alone")]
)
def test_a_model_of_an_unknown_type_needs_trust_remote_code(tmp_path, auto_map, more, no_weights):
    write(tmp_path, "config.json", json.dumps({"model_type": "own", "auto_map": auto_map}).encode())
    write(tmp_path, "pytorch_model.bin")
    write(tmp_path, "processor_config.json")
    write(tmp_path, "tokenizer.json")
    with pytest.raises(ValueError, match=f"its model_type 'own' is not one of transformers.*{more}"):
        check_model(str(tmp_path), "retrieval")
    check_model(str(tmp_path), "retrieval", trust_remote_code=True)


def test_settings_that_would_run_code_are_refused_before_loading(tmp_path, small_checkpoint, no_weights):
    shutil.copytree(small_checkpoint, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"attn_implementation": "owner/kernel"}))
    with pytest.raises(ValueError, match="a kernel to be downloaded and run"):
        check_model(str(tmp_path / "model"), "retrieval")
