"""`biomedclip push` against a Hub of our own on loopback: what is refused, what goes up, and what comes back."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import ROOT
from hub_server import File, HubServer, Repository, environment_of, log_in
from model_results import write_result, zero_shot_result
from PIL import Image
from transformers import AutoModel, AutoProcessor

from modeling_biomedclip import BiomedCLIPConfig, BiomedCLIPModel, from_open_clip, to_open_clip
from modeling_biomedclip.conversion.open_clip import bert_config_of
from processing import BiomedCLIPImageProcessor, BiomedCLIPProcessor
from run_scripts import publishing, push, reloading
from run_scripts.card import CardOptions, write_card
from run_scripts.fingerprints import evaluated_fingerprint
from run_scripts.main import main
from run_scripts.push import PushOptions, push_model


FILES = {
    "README.md",
    "card.json",
    "config.json",
    "configuration_biomedclip.py",
    "image_processing_biomedclip.py",
    "model.safetensors",
    "modeling_biomedclip.py",
    "pipeline_biomedclip.py",
    "processing_biomedclip.py",
    "processor_config.json",
    "recipe.yaml",
    "results/zero-shot_pcam.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def hub(monkeypatch):
    """A Hub, with a writer logged in."""
    users = {
        "hf_writer": {"name": "someone", "role": "write", "orgs": {"lab": "write"}},
        "hf_reader": {"name": "someone", "role": "read", "orgs": {"lab": "write"}},
    }
    with HubServer(users) as server:
        log_in(monkeypatch, server)
        monkeypatch.setattr(publishing.time, "sleep", lambda seconds: None)
        yield server


@pytest.fixture(scope="module")
def carded(small_checkpoint, tmp_path_factory) -> Path:
    """A model with a card that states everything, and things beside it that are not for others."""
    folder = tmp_path_factory.mktemp("carded") / "model"
    shutil.copytree(small_checkpoint, folder)
    describe(folder)
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "optimizer.pt").write_bytes(b"a pickle")
    (folder / "notes.txt").write_text("not for others")
    return folder


def describe(folder: Path, **options) -> None:
    """Puts beside a model what its training would have left, and the card."""
    versions = {"biomedclip": "0.1.0"}
    (folder / "train_results.json").write_text(json.dumps({"steps": 3, "versions": versions}))
    (folder / "recipe.yaml").write_text("max_steps: 3\n")
    report = {"source": "s3://pmc-oa-opendata", "inventory_date": "2026-11-23", "built": "2026-11-24", "drawn": False}
    report |= {"pairs": 200, "splits": {"train": {"pairs": 152}}, "licenses": {"CC BY": 200}, "versions": versions}
    data = folder.parent / "set"
    data.mkdir(exist_ok=True)
    (data / "report.json").write_text(json.dumps(report | {"articles": {"kept": 100}}))
    result = zero_shot_result(evaluated_fingerprint(AutoModel.from_pretrained(folder)))
    write_result(folder.parent / "results", result)
    options = {"license": "mit", "dataset": str(data), "results": [str(folder.parent / "results")]} | options
    write_card(CardOptions(str(folder), **options))


@pytest.fixture
def model(carded, tmp_path) -> Path:
    return shutil.copytree(carded, tmp_path / "model")


@pytest.fixture(autouse=True)
def answer_here(request, monkeypatch):
    """Only some tests pay for another process that answers with the code of the upload; it takes seconds to start."""
    if "in_another_process" not in request.fixturenames:
        monkeypatch.setattr(
            push,
            "_answers_of",
            lambda folder, inputs, scratch: reloading.answers(
                AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder), inputs
            ),
        )


@pytest.fixture
def in_another_process():
    """The upload is looked at as it is outside of tests."""


def run_push(model: Path, repo_id: str = "lab/model", **options) -> dict:
    return push_model(PushOptions(repo_id, str(model), **options))


def files_of(hub: HubServer, repo_id: str = "lab/model") -> dict[str, bytes]:
    return {name: file.content for name, file in hub.repositories["model", repo_id].files.items()}


def uploads(hub: HubServer) -> list[str]:
    return [path for method, path in hub.requests if method == "PUT"]


def python(code: str, hub: HubServer, cache: Path, *, ours: bool) -> str:
    """What another process prints that has nothing but the Hub, and this package if it is `ours`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= environment_of(hub, cache) | ({"PYTHONPATH": str(ROOT)} if ours else {})
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=cache.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def code_block(text: str, heading: str) -> str:
    return re.search(rf"^## {heading}\n.*?```python\n(.*?)```", text, re.MULTILINE | re.DOTALL)[1]


def test_all_that_belongs_to_the_model_goes_up_in_one_commit_and_nothing_else(hub, model, capsys, in_another_process):
    assert main(["push", "lab/model", "--model", str(model)]) == 0
    output = capsys.readouterr().out
    assert "model.safetensors" in output and "Downloaded again" in output and "Published at" in output
    repository = hub.repositories["model", "lab/model"]
    assert [len(files) for _, _, files in repository.commits] == [1, len(FILES) + 1] and not repository.branches
    files = files_of(hub)
    assert set(files) == FILES | {".gitattributes"}
    for name in FILES - {"README.md", "card.json", "results/zero-shot_pcam.json"}:
        assert files[name] == (model / name).read_bytes(), name
    report = json.loads((model / "push.json").read_text())
    assert report["commit"] == repository.commits[-1][0] and set(report["files"]) == FILES
    assert report["largest_difference"]["token ids"] == report["largest_difference"]["pixels"] == 0
    assert report["largest_difference"]["image embeddings"] <= 2e-6


def test_no_path_of_the_machine_goes_up_and_the_card_names_the_repository(hub, model, tmp_path):
    run_push(model)
    for name, content in files_of(hub).items():
        assert str(tmp_path).encode() not in content and b"/home/someone" not in content, name
    card = files_of(hub)["README.md"].decode()
    assert 'AutoModel.from_pretrained("lab/model")' in card and "ORG/NAME" not in card


def test_the_ten_lines_of_the_readme_run_on_what_was_pushed(hub, model, built, tmp_path):
    run_push(model)
    code = code_block((ROOT / "README.md").read_text(encoding="utf-8"), "Ten lines")
    code = code.replace('"out/model"', '"lab/model"').replace('"out"', repr(str(built)))
    printed = python(code, hub, tmp_path / "empty cache", ours=True)
    assert "'chest X-ray': " in printed and "torch.Size([1, 16])" in printed


def test_the_lines_of_its_card_run_without_the_package(hub, model, tmp_path):
    run_push(model)
    Image.effect_noise((60, 50), 90).save(tmp_path / "figure.png")
    code = code_block(files_of(hub)["README.md"].decode(), "Use")
    code = code.replace("import modeling_biomedclip", "import sys; sys.path.insert(0, '')")
    code = code.replace('from_pretrained("lab/model")', 'from_pretrained("lab/model", trust_remote_code=True)')
    code += "\nassert 'modeling_biomedclip' not in sys.modules and 'run_scripts' not in sys.modules"
    printed = python(code, hub, tmp_path / "empty cache", ours=False)
    assert "'brain MRI': " in printed


def test_a_dry_run_lists_the_files_and_needs_no_network(model, monkeypatch, capsys):
    monkeypatch.setattr(push, "check_write_access", None)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", "lab/model", "--model", str(model), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in FILES) and f"{len(FILES)} files" in output
    assert "The card is complete" in output and max(map(len, output.splitlines())) <= 80


def test_a_dry_run_tells_what_the_card_lacks(model, capsys):
    describe(model, license=None)
    assert main(["push", "lab/model", "--model", str(model), "--dry-run"]) == 1
    error = capsys.readouterr().err
    assert "README.md is not complete" in error and "Licence: Not stated" in error and "Traceback" not in error


def test_a_card_with_something_to_fill_stops_it_before_anything_is_sent(hub, model):
    card = model / "README.md"
    card.write_text(card.read_text().replace("| accuracy | 0.5123 |", "| accuracy | |"))
    with pytest.raises(ValueError, match="has an empty cell"):
        run_push(model)
    assert not hub.repositories


def test_the_card_of_other_weights_is_refused(hub, model):
    changed = AutoModel.from_pretrained(model)
    with torch.no_grad():
        changed.logit_scale.add_(0.1)
    changed.save_pretrained(model)
    with pytest.raises(ValueError, match="is the card of other weights"):
        run_push(model)
    assert not hub.repositories


@pytest.mark.parametrize("name", ["README.md", "card.json", "processor_config.json", "modeling_biomedclip.py"])
def test_a_missing_file_is_named(hub, model, name):
    (model / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        run_push(model)


def test_weights_that_are_no_safetensors_are_refused(hub, model):
    (model / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ValueError, match=r"pytorch_model.bin is not safetensors"):
        run_push(model)
    (model / "pytorch_model.bin").unlink()
    (model / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model.safetensors"):
        run_push(model)


def test_a_file_that_names_a_folder_of_the_machine_is_refused(hub, model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"note": f"{model.parent}/secret"}))
    with pytest.raises(ValueError, match=r"config.json names .* of this machine"):
        run_push(model)
    assert not hub.repositories


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        ("hf_unknown", "lab/model", "push lab/model: the Hub refuses the token"),
        ("hf_reader", "lab/model", "may only read"),
        ("hf_writer", "strangers/model", "not a member of strangers"),
    ],
)
def test_who_may_not_write_is_told_before_anything_is_sent(hub, model, monkeypatch, token, repo_id, message):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PermissionError, match=message):
        run_push(model, repo_id)
    assert not hub.repositories


def test_without_a_token_it_says_how_to_log_in(hub, model, monkeypatch):
    monkeypatch.setattr(publishing, "get_token", lambda: None)
    with pytest.raises(PermissionError, match=r"push lab/model: there is no token.*hf auth login"):
        run_push(model)


def test_a_private_model_is_private_and_is_looked_at_all_the_same(hub, model):
    run_push(model, private=True)
    assert hub.repositories["model", "lab/model"].private and set(files_of(hub)) >= FILES


def test_a_public_repository_is_not_filled_with_what_is_to_be_private(hub, model):
    hub.add("lab/model", {"README.md": b""})
    with pytest.raises(ValueError, match="exists and is public"):
        run_push(model, private=True)
    assert not uploads(hub)


def test_a_branch_of_its_own_leaves_main_as_it_is(hub, model):
    report = run_push(model, revision="v2")
    repository = hub.repositories["model", "lab/model"]
    assert set(files_of(hub)) == {".gitattributes"} and set(repository.branches) == {"v2"}
    assert set(repository.branches["v2"][-1][2]) == FILES | {".gitattributes"}
    assert report["commit"] == repository.branches["v2"][-1][0] and report["url"].endswith("/lab/model/tree/v2")


def test_what_an_earlier_push_has_left_goes_and_other_files_stay(hub, model):
    earlier = {"results/zero-shot_rsna.json": b"{}", "model-00001-of-00002.safetensors": b"", "LICENSE": b"text"}
    hub.add("lab/model", earlier)
    run_push(model)
    assert set(files_of(hub)) == FILES | {"LICENSE"}


def test_an_interrupted_upload_goes_on_without_sending_anything_again(hub, model, monkeypatch):
    monkeypatch.setattr(publishing, "ATTEMPTS", 2)
    hub.fail("POST", "/commit/main", status=503, times=2)
    with pytest.raises(OSError, match=r"stopped at .*the same command goes on"):
        run_push(model)
    repository = hub.repositories["model", "lab/model"]
    assert len(repository.commits) == 1 and not repository.branches
    run_push(model)
    assert set(files_of(hub)) >= FILES and len(uploads(hub)) == len(set(uploads(hub))) == 1


def test_a_killed_push_leaves_a_branch_that_the_next_one_clears_away(hub, model):
    hub.add("lab/model", {".gitattributes": b""})
    hub.repositories["model", "lab/model"].branches["biomedclip-push"] = [("0" * 40, "half", {"x": File(b"")})]
    run_push(model)
    repository = hub.repositories["model", "lab/model"]
    assert set(files_of(hub)) == FILES | {".gitattributes"} and not repository.branches


@pytest.mark.parametrize("path", ["/preupload/", "/info/lfs/objects/batch", "/commit/"])
def test_a_server_error_does_not_stop_the_upload(hub, model, path):
    hub.fail("POST", path, status=500)
    run_push(model)
    assert set(files_of(hub)) >= FILES


def test_a_damaged_upload_never_reaches_main(hub, model, monkeypatch):
    commit = Repository.commit

    def damaging(self, title, files, *branch):
        if "model.safetensors" in files:
            content = bytearray(files["model.safetensors"].content)
            content[-1] ^= 1
            files = files | {"model.safetensors": File(bytes(content), lfs=True)}
        return commit(self, title, files, *branch)

    monkeypatch.setattr(Repository, "commit", damaging)
    with pytest.raises(OSError, match=r"is not what was sent: model.safetensors"):
        run_push(model)
    assert set(files_of(hub)) == {".gitattributes"} and not hub.repositories["model", "lab/model"].branches


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("modeling_biomedclip.py", "def forward(", "def forwards(", "does not load"),
        ("config.json", '"hidden_act": "gelu"', '"hidden_act": "relu"', "gives other answers .*embeddings"),
    ],
)
def test_code_or_settings_that_give_other_embeddings_never_reach_main(
    hub, model, monkeypatch, in_another_process, file, old, new, message
):
    """As when the folder's own code is not that of the package that measured it."""
    load = push.load_any_layout
    kept = load(model)
    text = (model / file).read_text()
    assert old in text
    (model / file).write_text(text.replace(old, new))
    monkeypatch.setattr(push, "load_any_layout", lambda folder: kept)
    with pytest.raises(ValueError, match=message):
        run_push(model)
    assert set(files_of(hub)) == {".gitattributes"} and not hub.repositories["model", "lab/model"].branches


def test_open_clip_loads_its_copy_out_of_the_same_repository(hub, tmp_path):
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(model_max_length=32).train_new_from_iterator(
        ["this is a photo of chest x-ray brain mri pie chart"] * 9, vocab_size=96, show_progress=False
    )
    text = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    torch.manual_seed(0)
    config = BiomedCLIPConfig(
        projection_dim=32,
        vision_config={"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3},
        text_config=text | {"num_attention_heads": 1},
    )
    processor = BiomedCLIPProcessor(BiomedCLIPImageProcessor(), tokenizer)
    to_open_clip(BiomedCLIPModel(config), processor, tmp_path / "theirs")
    # A BERT of the Hub that has the shape of the text tower: without one open_clip has no name for it.
    bert = {"config.json": bert_config_of(config.text_config).to_json_string().encode()}
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        bert[name] = (tmp_path / "theirs" / name).read_bytes()
    hub.add("lab/bert", bert)
    settings = json.loads((tmp_path / "theirs" / "open_clip_config.json").read_text())
    settings["model_cfg"]["text_cfg"] |= {"hf_model_name": "lab/bert", "hf_tokenizer_name": "lab/bert"}
    (tmp_path / "theirs" / "open_clip_config.json").write_text(json.dumps(settings))
    model, processor = from_open_clip(tmp_path / "theirs")
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    describe(folder)
    report = run_push(folder)
    assert {"open_clip_config.json", "open_clip_model.safetensors"} <= set(report["files"])
    assert "hf-hub:lab/model" in files_of(hub)["README.md"].decode()

    code = """
import open_clip, torch
model, preprocess = open_clip.create_model_from_pretrained("hf-hub:lab/model")
tokens = open_clip.get_tokenizer("hf-hub:lab/model")(["chest x-ray", "brain mri"])
with torch.no_grad():
    print(model.eval().encode_text(tokens, normalize=True).double().flatten().tolist())
"""
    printed = python(code, hub, tmp_path / "empty cache", ours=False).splitlines()[-1]
    tokens = processor(text=["chest x-ray", "brain mri"], padding="max_length", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        ours = torch.nn.functional.normalize(model.get_text_features(tokens).pooler_output, dim=-1)
    # Products in another process round another way now and then, as memory happens to be aligned.
    torch.testing.assert_close(torch.tensor(json.loads(printed)), ours.flatten(), rtol=0, atol=2e-6)


def test_a_model_that_open_clip_has_no_name_for_goes_without_a_copy(hub, model, capsys):
    assert main(["push", "lab/model", "--model", str(model), "--dry-run"]) == 0
    assert "No copy for open_clip: open_clip builds" in capsys.readouterr().out.replace("\n", " ")


def test_help_has_an_example_to_paste(capsys):
    for verb in ("card", "push"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        assert f"example:\n  biomedclip {verb} " in capsys.readouterr().out
