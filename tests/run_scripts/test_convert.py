"""`biomedclip convert` writes checkpoints in both layouts and verifies them."""

import json
import shutil

import pytest
from helpers.open_clip_folders import change_config, convertible_model, published_clip_tokenizer
from PIL import Image
from transformers import AutoModel, AutoProcessor, BertTokenizer

from biomedclip import to_open_clip
from biomedclip.run_scripts import convert
from biomedclip.run_scripts.main import main


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    tokenizer = BertTokenizer(model_max_length=32).train_new_from_iterator(
        ["this is a photo of chest x-ray brain mri pie chart"] * 9, vocab_size=96, show_progress=False
    )
    folder = tmp_path_factory.mktemp("source") / "checkpoint"
    to_open_clip(*convertible_model(tokenizer, vocab_size=96), folder)
    return folder


@pytest.fixture(scope="module")
def verify(tmp_path_factory):
    """The options of a verification on one image."""
    path = tmp_path_factory.mktemp("images") / "a.png"
    Image.effect_noise((90, 260), 80).save(path)
    return ["--verify", "--images", str(path)]


def verification(folder) -> dict:
    return json.loads((folder / "conversion.json").read_text())["verification"]


def test_a_checkpoint_is_the_same_after_conversion_there_and_back(source, tmp_path, capsys):
    assert main(["convert", str(source), str(tmp_path / "ours")]) == 0
    output = capsys.readouterr().out
    assert "parameters" in output and max(map(len, output.splitlines())) <= 80
    model, _ = AutoModel.from_pretrained(tmp_path / "ours"), AutoProcessor.from_pretrained(tmp_path / "ours")
    report = json.loads((tmp_path / "ours" / "conversion.json").read_text())
    assert report["parameters"] == model.num_parameters() and report["verification"] is None

    # Options can come before or after the folders.
    assert main(["convert", "--to", "open_clip", str(tmp_path / "ours"), str(tmp_path / "back")]) == 0
    for name in ("open_clip_model.safetensors", "open_clip_config.json", "tokenizer.json", "vocab.txt"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes(), name
    (tmp_path / "plain").write_text("")
    written = [path for folder in ("ours", "back") for path in (tmp_path / folder).iterdir()]
    assert {path.stat().st_mode for path in written} == {(tmp_path / "plain").stat().st_mode}


@pytest.mark.parametrize("to", ["transformers", "open_clip"])
def test_verify_compares_images_and_labels_with_open_clip(source, tmp_path, capsys, to):
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
    verified = verification(tmp_path / "result")
    assert verified["images"] == 2 and verified["labels"] == 9 and verified["equal"]
    assert set(verified["largest_difference"].values()) == {0}
    assert "| image embeddings | 0 |" in (tmp_path / "result" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("to", ["transformers", "open_clip"])
def test_verify_compares_a_model_with_the_text_encoder_of_clip(tmp_path, to):
    to_open_clip(*convertible_model(published_clip_tokenizer(), model_type="clip_text_model"), tmp_path / "source")
    assert main(["convert", str(tmp_path / "source"), str(tmp_path / "result"), "--to", to, "--verify"]) == 0
    verified = verification(tmp_path / "result")
    assert verified["equal"] and not verified["bert_assumed"]
    assert verified["largest_difference"]["text embeddings"] <= 2e-6


def epsilon_of_transformers(model) -> None:
    model.config.vision_config.layer_norm_eps = 1e-3


def lost_temperature(model) -> None:
    model.logit_scale.data.fill_(4.0)


@pytest.mark.parametrize(
    ("damage", "to"),
    [
        (epsilon_of_transformers, "transformers"),
        (lost_temperature, "transformers"),
        (lost_temperature, "open_clip"),
    ],
)
def test_verify_exits_with_an_error_if_the_result_differs(source, tmp_path, capsys, monkeypatch, verify, damage, to):
    def load_damaged(folder):
        model, processor = load(folder)
        damage(model)
        return model, processor

    load = convert.load_any_layout
    monkeypatch.setattr(convert, "load_any_layout", load_damaged)
    assert main(["convert", str(source), str(tmp_path / "result"), *verify, "--to", to]) == 1
    captured = capsys.readouterr()
    assert "largest difference" in captured.out and "by more than" in captured.err
    differences = verification(tmp_path / "result")["largest_difference"]
    assert differences["text embeddings"] == 0
    assert (differences["image embeddings"] > 2e-6) == (damage is epsilon_of_transformers)


def test_verify_ignores_older_files_of_another_layout_in_the_output_folder(source, tmp_path, verify):
    model, processor = convert.load_any_layout(source)
    lost_temperature(model)
    to_open_clip(model, processor, tmp_path / "result")
    assert main(["convert", str(source), str(tmp_path / "result"), *verify, "--overwrite"]) == 0


def test_verify_states_that_a_bert_cannot_be_reached(source, tmp_path, capsys, verify):
    folder = shutil.copytree(source, tmp_path / "unreachable")
    change_config(folder, "text_cfg", hf_model_name="nobody/no-such-bert")
    assert main(["convert", str(folder), str(tmp_path / "result"), *verify]) == 0
    verified = verification(tmp_path / "result")
    assert verified["equal"] and verified["bert_assumed"]
    assert "cannot be reached" in capsys.readouterr().out


def test_the_card_describes_the_conversion_without_local_paths(source, tmp_path):
    main(["convert", str(source), str(tmp_path / "result")])
    card = (tmp_path / "result" / "README.md").read_text()
    assert str(tmp_path) not in card and str(source.parent) not in card and "$" not in card
    for words in ("was converted by biomedclip", "Not compared", "clinical use", "pipeline_tag: zero-shot"):
        assert words in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{source}", "{source}"], "is not empty"),
        (["/nowhere/at/all", "{tmp}/x"], "neither a folder nor a Hub id"),
        (["{tmp}", "{tmp}/x"], "open_clip_config.json"),
        (
            ["{source}", "{tmp}/x", "--verify", "--images", "/nowhere"],
            "/nowhere: the file or folder does not exist",
        ),
    ],
)
def test_an_error_is_a_message_without_a_traceback(source, tmp_path, capsys, arguments, message):
    filled = [argument.replace("{tmp}", str(tmp_path)).replace("{source}", str(source)) for argument in arguments]
    assert main(["convert", *filled]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_the_error_for_a_missing_folder_names_its_option(capsys):
    with pytest.raises(SystemExit):
        main(["convert", "only_a_source"])
    assert "--output-dir" in capsys.readouterr().err
