"""`biomedclip convert` as a person runs it."""

import json

import pytest
import torch
from helpers.open_clip_folders import published_clip_tokenizer
from PIL import Image
from transformers import AutoModel, AutoProcessor, BertTokenizer

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel, to_open_clip
from biomedclip.processing import BiomedCLIPImageProcessor, BiomedCLIPProcessor
from biomedclip.run_scripts import convert
from biomedclip.run_scripts.main import main


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder in open_clip's layout: timm's smallest plain tower, a BERT of two layers."""
    folder = tmp_path_factory.mktemp("source") / "checkpoint"
    tokenizer = BertTokenizer(model_max_length=32).train_new_from_iterator(
        ["this is a photo of chest x-ray brain mri pie chart"] * 9, vocab_size=96, show_progress=False
    )
    torch.manual_seed(0)
    config = BiomedCLIPConfig(
        projection_dim=32,
        vision_config={"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3},
        text_config={
            "vocab_size": 96,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
    )
    to_open_clip(BiomedCLIPModel(config), BiomedCLIPProcessor(BiomedCLIPImageProcessor(), tokenizer), folder)
    return folder


def test_there_and_back_through_the_command(source, tmp_path, capsys):
    assert main(["convert", str(source), str(tmp_path / "ours")]) == 0
    output = capsys.readouterr().out
    assert "parameters" in output and max(map(len, output.splitlines())) <= 80
    model, _ = AutoModel.from_pretrained(tmp_path / "ours"), AutoProcessor.from_pretrained(tmp_path / "ours")
    report = json.loads((tmp_path / "ours" / "conversion.json").read_text())
    assert report["parameters"] == model.num_parameters() and report["verification"] is None

    # Options may stand before the folders as well as behind.
    assert main(["convert", "--to", "open_clip", str(tmp_path / "ours"), str(tmp_path / "back")]) == 0
    for name in ("open_clip_model.safetensors", "open_clip_config.json", "tokenizer.json", "vocab.txt"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes(), name
    (tmp_path / "plain").write_text("")
    written = [path for folder in ("ours", "back") for path in (tmp_path / folder).iterdir()]
    assert {path.stat().st_mode for path in written} == {(tmp_path / "plain").stat().st_mode}


@pytest.mark.parametrize("to", ["transformers", "open_clip"])
def test_verify_runs_both_and_prints_the_largest_difference(source, tmp_path, capsys, to):
    images = tmp_path / "images"
    images.mkdir()
    Image.effect_noise((300, 260), 80).save(images / "a.png")
    Image.effect_noise((90, 260), 80).convert("RGB").save(images / "b.jpg")
    Image.new("I;16", (64, 64)).save(images / "of_16_bits.png")
    (images / "broken.png").write_bytes(b"no image")
    command = ["convert", "--verify", str(source), str(tmp_path / "result"), "--to", to, "--images", str(images)]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "largest difference" in output and "2 of 2" in output
    verified = json.loads((tmp_path / "result" / "conversion.json").read_text())["verification"]
    assert verified["images"] == 2 and verified["labels"] == 9 and verified["equal"]
    assert verified["largest_difference"] == dict.fromkeys(verified["largest_difference"], 0.0)
    assert "| image embeddings | 0 |" in (tmp_path / "result" / "README.md").read_text()


@pytest.mark.parametrize("to", ["transformers", "open_clip"])
def test_verify_compares_a_model_with_clips_text_encoder(tmp_path, to):
    text = {"model_type": "clip_text_model", "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = BiomedCLIPConfig(
        projection_dim=32,
        vision_config={"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3},
        text_config=text | {"num_hidden_layers": 2},
    )
    processor = BiomedCLIPProcessor(BiomedCLIPImageProcessor(), published_clip_tokenizer())
    to_open_clip(BiomedCLIPModel(config), processor, tmp_path / "source")
    assert main(["convert", str(tmp_path / "source"), str(tmp_path / "result"), "--to", to, "--verify"]) == 0
    verified = json.loads((tmp_path / "result" / "conversion.json").read_text())["verification"]
    assert verified["equal"] and not verified["bert_assumed"]
    assert verified["largest_difference"]["text embeddings"] <= 2e-6


def test_verify_finds_what_is_wrong(source, tmp_path, capsys, monkeypatch):
    """A port with the epsilon of transformers' own ViT is noticed, and the exit status says so."""

    def with_wrong_epsilon(folder):
        model, processor = load(folder)
        model.config.vision_config.layer_norm_eps = 1e-3
        return model, processor

    load = convert.load_any_layout
    monkeypatch.setattr(convert, "load_any_layout", with_wrong_epsilon)
    assert main(["convert", str(source), str(tmp_path / "result"), "--verify"]) == 1
    captured = capsys.readouterr()
    assert "largest difference" in captured.out and "differ by more than" in captured.err
    verified = json.loads((tmp_path / "result" / "conversion.json").read_text())["verification"]
    assert verified["largest_difference"]["text embeddings"] == 0
    assert verified["largest_difference"]["image embeddings"] > 2e-6


def test_verify_finds_a_lost_temperature(source, tmp_path, monkeypatch):
    def with_lost_temperature(folder):
        model, processor = load(folder)
        model.logit_scale.data.fill_(4.0)
        return model, processor

    load = convert.load_any_layout
    monkeypatch.setattr(convert, "load_any_layout", with_lost_temperature)
    assert main(["convert", str(source), str(tmp_path / "result"), "--verify"]) == 1


def test_what_is_verified_is_what_was_just_written(source, tmp_path):
    """And not files of another layout that the folder held before."""
    model, processor = convert.load_any_layout(source)
    model.logit_scale.data.fill_(4.0)
    to_open_clip(model, processor, tmp_path / "result")
    assert main(["convert", str(source), str(tmp_path / "result"), "--verify", "--overwrite"]) == 0


def test_a_bert_that_cannot_be_reached_is_stood_in_for(source, tmp_path, capsys):
    config = json.loads((source / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "nobody/no-such-bert"
    folder = tmp_path / "unreachable"
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert main(["convert", str(folder), str(tmp_path / "result"), "--verify"]) == 0
    verified = json.loads((tmp_path / "result" / "conversion.json").read_text())["verification"]
    assert verified["equal"] and verified["bert_assumed"], "what was not compared is said"
    assert "cannot be reached" in capsys.readouterr().out


def test_the_card_says_what_was_done_and_carries_no_path(source, tmp_path):
    main(["convert", str(source), str(tmp_path / "result")])
    card = (tmp_path / "result" / "README.md").read_text()
    assert str(tmp_path) not in card and str(source.parent) not in card and "$" not in card
    for words in ("Converted by biomedclip", "Not checked", "clinical use", "pipeline_tag: zero-shot"):
        assert words in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{source}", "{source}"], "is not empty: pass --overwrite"),
        (["/nowhere/at/all", "{tmp}/x"], "neither a folder nor a Hub id"),
        (["{tmp}", "{tmp}/x"], "open_clip_config.json"),
        (["{source}", "{tmp}/x", "--verify", "--images", "/nowhere"], "--images /nowhere: there is no such"),
    ],
)
def test_errors_are_one_line_that_a_person_can_act_on(source, tmp_path, capsys, arguments, message):
    filled = [argument.replace("{tmp}", str(tmp_path)).replace("{source}", str(source)) for argument in arguments]
    assert main(["convert", *filled]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_missing_folder_is_asked_for_by_name(capsys):
    with pytest.raises(SystemExit):
        main(["convert", "only_a_source"])
    assert "--output-dir" in capsys.readouterr().err
