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
from helpers.commands import ROOT
from helpers.hub_server import File, HubServer, Repository, environment_of, log_in
from helpers.model_results import write_result, zero_shot_result
from helpers.open_clip_folders import published_clip_tokenizer
from PIL import Image
from transformers import AutoModel, AutoProcessor

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel, from_open_clip, to_open_clip
from biomedclip.conversion.open_clip import PUBLISHED_CLIP, bert_config_of
from biomedclip.processing import BiomedCLIPImageProcessor, BiomedCLIPProcessor
from biomedclip.run_scripts import push
from biomedclip.run_scripts.card import CardOptions, write_card
from biomedclip.run_scripts.hub import model_files, publishing, reloading
from biomedclip.run_scripts.hub.fingerprints import evaluated_fingerprint
from biomedclip.run_scripts.main import main
from biomedclip.run_scripts.push import PushOptions, push_model


FILES = {
    "README.md",
    "bit_depth_biomedclip.py",
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
        monkeypatch.setattr("time.sleep", lambda seconds: None)
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
    code = code.replace("import biomedclip", "import sys; sys.path.insert(0, '')")
    code = code.replace('from_pretrained("lab/model")', 'from_pretrained("lab/model", trust_remote_code=True)')
    code += "\nassert 'biomedclip' not in sys.modules"
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
    """As when the package on disk was changed after this process had imported it."""
    kept = push.load_any_layout(model)
    text = (model / file).read_text()
    assert old in text
    (model / file).write_text(text.replace(old, new))
    code = {path.name: path for path in model.glob("*_biomedclip.py")}
    monkeypatch.setattr(model_files, "package_code", lambda: code)
    monkeypatch.setattr(push, "load_any_layout", lambda folder: kept)
    with pytest.raises(ValueError, match=message):
        run_push(model)
    assert set(files_of(hub)) == {".gitattributes"} and not hub.repositories["model", "lab/model"].branches


SECRET = b"the secret of somebody"
LINKS = {
    "a file": lambda model, secret: replace_by_link(model / "vocab.txt", secret),
    "a link to a link": lambda model, secret: (
        (model / "between").symlink_to(secret),
        replace_by_link(model / "vocab.txt", "between"),
    ),
    "the card": lambda model, secret: replace_by_link(model / "README.md", secret),
    "the facts of the card": lambda model, secret: replace_by_link(model / "card.json", secret),
    "code": lambda model, secret: replace_by_link(model / "modeling_biomedclip.py", secret),
    "a folder": lambda model, secret: (model / "results").symlink_to(secret.parent),
    "a file in a folder below": lambda model, secret: (model / "checkpoint-3" / "x").symlink_to(secret),
    "a file that is not published": lambda model, secret: (model / "other.txt").symlink_to(secret),
    "nothing": lambda model, secret: replace_by_link(model / "vocab.txt", secret.parent / "nothing"),
}


def replace_by_link(path: Path, target) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.fixture
def nothing_loaded(monkeypatch):
    """Whatever is refused is refused before a model is loaded or code of the folder could run."""

    def refuse(*arguments, **options):
        raise AssertionError("the folder was loaded")

    monkeypatch.setattr(push, "load_any_layout", refuse)
    monkeypatch.setattr(push, "_answers_of", refuse)


@pytest.mark.parametrize("make", LINKS.values(), ids=LINKS.keys())
def test_a_link_that_leaves_the_folder_is_refused_and_nothing_is_sent(hub, model, tmp_path, nothing_loaded, make):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key").write_bytes(SECRET)
    make(model, tmp_path / "secrets" / "key")
    for dry_run in (True, False):
        with pytest.raises(ValueError, match="is a link that leaves"):
            run_push(model, dry_run=dry_run)
    assert not hub.repositories and not uploads(hub)


def test_a_link_to_a_file_that_is_not_published_is_refused(hub, model, nothing_loaded):
    replace_by_link(model / "vocab.txt", "notes.txt")
    with pytest.raises(ValueError, match=r"vocab.txt is a link to notes.txt, which is not published"):
        run_push(model)
    assert not hub.repositories


def test_a_link_to_a_published_file_is_followed(hub, model):
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    (model / "model.safetensors").symlink_to("model-00001-of-00001.safetensors")
    run_push(model)
    weights = files_of(hub)["model.safetensors"]
    assert weights == (model / "model-00001-of-00001.safetensors").read_bytes()


CODE = {
    "a changed module": ("modeling_biomedclip.py", None, "modeling_biomedclip.py is not identical"),
    "a module that imports": ("configuration_biomedclip.py", None, "configuration_biomedclip.py is not identical"),
    "another module": ("helper_biomedclip.py", "", "helper_biomedclip.py is not a module of the installed"),
    "a name with a new line": ("a\nb_biomedclip.py", "", "is not a module of the installed"),
}


@pytest.mark.parametrize(("name", "content", "message"), CODE.values(), ids=CODE.keys())
def test_code_that_is_not_the_packages_is_refused_before_it_could_run(
    hub, model, nothing_loaded, name, content, message
):
    mark = model.parent / "it ran"
    run = f"\nopen({str(mark)!r}, 'w')\n"
    (model / name).write_text(((model / name).read_text() if content is None else content) + run)
    for dry_run in (True, False):
        with pytest.raises(ValueError, match=message):
            run_push(model, dry_run=dry_run)
    assert not hub.repositories and not mark.exists()


def change_json(path: Path, change: dict) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"auto_map": {"AutoModel": "evil/repo--modeling_evil.Model"}}, "auto_map names 'evil/repo--"),
        ("config.json", {"auto_map": {"AutoModel": "helper.Model"}}, "auto_map names 'helper.Model'"),
        ("config.json", {"vision_config": {"auto_map": {"AutoModel": "helper.Model"}}}, "auto_map names"),
        ("config.json", {"custom_pipelines": {"x": {"impl": "helper.Pipeline"}}}, "custom_pipelines names"),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "helper.P"}}, "processor_config.json: auto_map names"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["helper.T", None]}}, "auto_map names 'helper.T'"),
        ("config.json", {"auto_map": {"AutoModel": 3}}, "auto_map names 3"),
        ("config.json", {"model_type": ["biomedclip"]}, "no BiomedCLIP in transformers' layout"),
    ],
)
def test_a_configuration_that_refers_to_other_code_is_refused(hub, model, nothing_loaded, file, change, message):
    change_json(model / file, change)
    with pytest.raises(ValueError, match=message):
        run_push(model)
    assert not hub.repositories


def test_an_index_of_weights_cannot_lead_out_of_the_folder(hub, model, nothing_loaded):
    index = {"weight_map": {"logit_scale": "../../other/model.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"weight_map names '../../other/model.safetensors'"):
        run_push(model)


@pytest.mark.parametrize("name", ["README.md", "card.json", "config.json", "vocab.txt"])
def test_a_named_pipe_in_the_place_of_a_file_is_refused_at_once(model, nothing_loaded, name):
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    with pytest.raises(ValueError, match=f"{name} is a named pipe"):
        run_push(model, dry_run=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must be an object"),
        ("{}", "model is missing"),
        ('{"model": {"weights": 3}, "results": []}', "model.weights must be str"),
        ('{"model": {"weights": "0"}, "results": {}}', "results must be a list"),
        ('{"model": {"weights": "0"}, "results": [{"task": 3}]}', r"results\[0\].task must be str"),
        ('{"model": {"weights": NaN}, "results": []}', "damaged"),
    ],
)
def test_facts_of_another_shape_are_refused_by_name(model, nothing_loaded, content, message):
    (model / "card.json").write_text(content)
    with pytest.raises(ValueError, match=rf"card.json.*{message}"):
        run_push(model, dry_run=True)


def test_files_that_are_not_published_are_not_loaded_either(hub, model):
    """transformers would read both of these, and what they say would reach open_clip's copy and the comparison."""
    (model / "added_tokens.json").write_text('{"secret word": 100}')
    (model / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "/nowhere"}')
    report = run_push(model)
    assert set(files_of(hub)) == FILES | {".gitattributes"}
    assert {"added_tokens.json", "adapter_config.json"} <= set(report["left_out"])


def test_a_dry_run_lists_the_files_that_are_not_uploaded_with_reasons(model, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (model / "evil\x1b[31m.txt").write_text("")
    assert main(["push", "lab/model", "--model", str(model), "--dry-run"]) == 0
    output = capsys.readouterr().out
    rows = dict(re.findall(r"│ (\S.*?) +│ +(\S.*?) │", output))
    assert rows["training_args.bin"] == "state of a training run"
    assert rows["notes.txt"] == "not on the list of published files"
    assert rows["checkpoint-3"].startswith("a folder") and "\x1b" not in output
    assert "notes.txt" in json.loads((model / "push.json").read_text())["left_out"]


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
    assert_open_clip_loads_the_copy(hub, folder, tmp_path)


def test_open_clip_loads_its_copy_with_clips_text_encoder_out_of_the_same_repository(hub, tmp_path):
    tokenizer = published_clip_tokenizer()
    tokenizer.save_pretrained(tmp_path / "clip")
    hub.add(PUBLISHED_CLIP, {path.name: path.read_bytes() for path in (tmp_path / "clip").iterdir()})
    text = {"model_type": "clip_text_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    torch.manual_seed(0)
    config = BiomedCLIPConfig(
        projection_dim=32,
        vision_config={"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3},
        text_config=text | {"num_attention_heads": 4, "hidden_act": "gelu"},
    )
    folder = tmp_path / "model"
    BiomedCLIPModel(config).save_pretrained(folder)
    BiomedCLIPProcessor(BiomedCLIPImageProcessor(), tokenizer).save_pretrained(folder)
    assert_open_clip_loads_the_copy(hub, folder, tmp_path)


def assert_open_clip_loads_the_copy(hub, folder: Path, tmp_path: Path) -> None:
    """Push a folder, and compare the text embeddings of open_clip in another process."""
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
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
