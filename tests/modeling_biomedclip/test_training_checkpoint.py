"""Checkpoint files of open_clip's training program are converted like the folder that their model is published as."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.open_clip_folders import read_config, same_weights
from safetensors.torch import load_file

from biomedclip import from_open_clip
from biomedclip.run_scripts.main import main


def write_checkpoint(path: Path, original: Path, prefix: str = "module.") -> None:
    """As `open_clip_train` saves one, with the state of an optimizer that has taken a step and of a scaler."""
    tensors = load_file(original / "open_clip_model.safetensors")
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([{"params": [parameter], "weight_decay": 0.0}])
    parameter.grad = torch.ones(3)
    optimizer.step()
    content = {
        "epoch": 32,
        "name": "run",
        "state_dict": {prefix + name: tensor for name, tensor in tensors.items()},
        "optimizer": optimizer.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


@pytest.fixture
def run(original, tmp_path):
    """A run folder, where a user has added the JSON file of the model and the tokenizer."""
    folder = tmp_path / "logs" / "run"
    write_checkpoint(folder / "checkpoints" / "epoch_32.pt", original)
    (folder / "params.txt").write_text(
        "batch_size: 4096\nimage_mean: None\nmodel: biomedclip\nname: run\nsiglip: False\n"
    )
    (folder / "biomedclip.json").write_text(json.dumps(read_config(original)["model_cfg"]))
    shutil.copyfile(original / "tokenizer.json", folder / "tokenizer.json")
    return folder


def checkpoint_of(run: Path) -> Path:
    return run / "checkpoints" / "epoch_32.pt"


@pytest.mark.parametrize("prefix", ["module.", "", "_orig_mod.", "module._orig_mod."])
def test_a_training_checkpoint_gives_the_model_of_the_published_folder(original, run, prefix):
    write_checkpoint(checkpoint_of(run), original, prefix)
    model, processor = from_open_clip(checkpoint_of(run))
    wanted, wanted_processor = from_open_clip(original)
    assert same_weights(model, wanted)
    texts = ["a chest x-ray", "line chart"]
    assert processor(text=texts)["input_ids"] == wanted_processor(text=texts)["input_ids"]


@pytest.mark.parametrize("files", [["vocab.txt"], ["tokenizer.json", "tokenizer_config.json"]])
def test_every_form_of_the_tokenizer_gives_the_same_ids(original, run, files):
    wanted = from_open_clip(original)[1]
    (run / "tokenizer.json").unlink()
    wanted.tokenizer.save_pretrained(run)
    wanted.tokenizer.backend_tokenizer.model.save(str(run))
    for path in run.iterdir():
        if path.name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt") and path.name not in files:
            path.unlink()
    texts = ["A chest X-ray, of the article!", "line chart"]
    found = from_open_clip(checkpoint_of(run))[1]
    assert found(text=texts)["input_ids"] == wanted(text=texts)["input_ids"]


@pytest.mark.parametrize("place", ["beside", "above"])
@pytest.mark.parametrize("name", ["open_clip_config.json", "biomedclip.json"])
def test_the_configuration_is_found_next_to_and_above_the_checkpoint(original, run, place, name):
    (run / "biomedclip.json").unlink()
    (run / "results.json").write_text('{"accuracy": 1}')  # no model's
    folder = run / "checkpoints" if place == "beside" else run
    (folder / name).write_text(json.dumps(read_config(original)))
    assert same_weights(from_open_clip(checkpoint_of(run))[0], from_open_clip(original)[0])


def test_the_configuration_of_the_training_is_used_if_there_are_several(original, run):
    other = read_config(original)["model_cfg"] | {"embed_dim": 48}
    (run / "another.json").write_text(json.dumps(other))
    assert same_weights(from_open_clip(checkpoint_of(run))[0], from_open_clip(original)[0])
    (run / "params.txt").unlink()
    with pytest.raises(ValueError, match=r"another.json, biomedclip.json.*open_clip_config.json"):
        from_open_clip(checkpoint_of(run))


def test_options_of_the_run_that_change_inputs_are_honored(run):
    (run / "params.txt").write_text(
        "force_context_length: 12\nforce_image_size: [224]\nforce_patch_dropout: 0.5\nimage_interpolation: bilinear\n"
        "image_mean: [0.1, 0.2, 0.3]\nimage_std: [0.5]\nmodel: biomedclip\n"
    )
    model, processor = from_open_clip(checkpoint_of(run))
    assert processor.tokenizer.model_max_length == 12
    assert list(processor.image_processor.image_mean) == [0.1, 0.2, 0.3]
    assert list(processor.image_processor.image_std) == [0.5] * 3
    assert processor.image_processor.resample == 2
    assert model.config.vision_config.patch_dropout == 0.5
    (run / "params.txt").write_text("image_resize_mode: squash\nmodel: biomedclip\n")
    with pytest.raises(ValueError, match="resize_mode"):
        from_open_clip(checkpoint_of(run))


def test_the_error_for_a_missing_configuration_says_what_to_copy(run):
    (run / "biomedclip.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"'biomedclip'.*open_clip_config.json") as error:
        from_open_clip(checkpoint_of(run))
    assert str(run) in str(error.value)


def test_the_error_for_a_missing_tokenizer_says_what_to_copy(original, run):
    (run / "tokenizer.json").unlink()
    config = read_config(original)
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "someone/else"
    (run / "biomedclip.json").write_text(json.dumps(config["model_cfg"]))
    with pytest.raises(FileNotFoundError, match=r"tokenizer.json or vocab.txt") as error:
        from_open_clip(checkpoint_of(run))
    assert "someone/else" in str(error.value) and str(run) in str(error.value)


def test_the_configuration_of_a_model_that_open_clip_knows_is_found_by_name(run):
    (run / "biomedclip.json").unlink()
    (run / "params.txt").write_text("model: roberta-ViT-B-32\n")
    with pytest.raises(ValueError, match="timm_model_name"):  # found, and no BiomedCLIP
        from_open_clip(checkpoint_of(run))


def test_a_run_folder_names_its_checkpoints(run):
    with pytest.raises(FileNotFoundError, match="epoch_32.pt"):
        from_open_clip(run)


def test_a_checkpoint_that_would_run_code_is_refused(run, tmp_path):
    class RunsCode:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"epoch": 1, "state_dict": {"logit_scale": torch.ones(())}, "optimizer": RunsCode()}, checkpoint_of(run))
    with pytest.raises(ValueError, match="contains more than tensors"):
        from_open_clip(checkpoint_of(run))
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_the_command_converts_and_verifies_a_training_checkpoint(original, run, tmp_path, capsys):
    assert main(["convert", str(checkpoint_of(run)), str(tmp_path / "out"), "--verify"]) == 0
    verified = json.loads((tmp_path / "out" / "conversion.json").read_text())["verification"]
    assert verified["equal"] and verified["largest_difference"]["token ids"] == 0
    assert "Compared with open_clip" in capsys.readouterr().out
