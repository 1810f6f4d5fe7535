"""Publish a model on a local Hub with `biomedclip push`: what is refused, what is uploaded, and what is read back."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import forked_processes
from helpers.hub_server import Repository
from helpers.model_results import write_result, zero_shot_result
from helpers.open_clip_folders import convertible_model, published_clip_tokenizer, write_open_clip_folder
from PIL import Image
from transformers import AutoModel, AutoProcessor

from biomedclip import BiomedCLIPModel, from_open_clip
from biomedclip.conversion import save_with_processor
from biomedclip.conversion.open_clip import PUBLISHED_CLIP
from biomedclip.processing import BiomedCLIPProcessor
from biomedclip.run_scripts import push
from biomedclip.run_scripts.card import CardOptions, write_card
from biomedclip.run_scripts.hub import model_files, model_outputs, model_upload, publishing
from biomedclip.run_scripts.hub.fingerprints import evaluated_fingerprint
from biomedclip.run_scripts.main import main
from biomedclip.run_scripts.push import PushOptions, push_model


FILES = {
    "README.md",
    "card.json",
    "config.json",
    "config_sentence_transformers.json",
    *model_files.package_code(),
    "model.safetensors",
    "modules.json",
    "processor_config.json",
    "recipe.yaml",
    "results/zero-shot_pcam.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def carded(small_checkpoint, tmp_path_factory) -> Path:
    """A model with a complete card, and files that are not published."""
    folder = tmp_path_factory.mktemp("carded") / "model"
    shutil.copytree(small_checkpoint, folder)
    describe(folder)
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "optimizer.pt").write_bytes(b"a pickle")
    (folder / "notes.txt").write_text("not for others")
    return folder


def describe(folder: Path, **options) -> None:
    """Write the files of a training run and the card next to a model."""
    versions = {"biomedclip": "0.1.0"}
    (folder / "train_results.json").write_text(json.dumps({"steps": 3, "versions": versions}))
    (folder / "recipe.yaml").write_text("max_steps: 3\n")
    report = {"source": "s3://pmc-oa-opendata", "inventory_date": "2026-11-23", "built": "2026-11-24"}
    report |= {"pairs": 200, "splits": {"train": {"pairs": 152}}, "licenses": {"CC BY": 200}, "versions": versions}
    data = folder.parent / "set"
    data.mkdir(exist_ok=True)
    (data / "report.json").write_text(json.dumps(report | {"synthetic": False, "articles": {"kept": 100}}))
    result = zero_shot_result(evaluated_fingerprint(AutoModel.from_pretrained(folder)))
    write_result(folder.parent / "results", result)
    options = {"license": "mit", "dataset": str(data), "results": [str(folder.parent / "results")]} | options
    write_card(CardOptions(str(folder), **options))


@pytest.fixture
def model(carded, tmp_path) -> Path:
    return shutil.copytree(carded, tmp_path / "model")


@pytest.fixture(autouse=True)
def outputs_here() -> Iterator[pytest.MonkeyPatch]:
    """Load the download in this process: another one takes seconds. `undo` loads it in a new process again."""
    patch = pytest.MonkeyPatch()

    def outputs(folder, inputs, scratch):
        loaded = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
        return model_outputs.outputs(*loaded, inputs)

    patch.setattr(model_upload, "outputs_in_new_process", outputs)
    yield patch
    patch.undo()


@pytest.fixture
def outputs_in_forked_process(outputs_here, monkeypatch) -> None:
    """Run the program in a process that has imported libraries, but not the package."""
    outputs_here.undo()

    def run(command, *, cwd, env, **options):
        return forked_processes.run(command[2:], env, cwd, transformers=False)

    monkeypatch.setattr(model_upload, "subprocess", SimpleNamespace(run=run))


def run_push(model: Path, repo_id: str = "lab/model", **options) -> dict:
    return push_model(PushOptions(repo_id, str(model), **options))


def repository(hub) -> Repository:
    return hub.repositories["model", "lab/model"]


@pytest.mark.slow
def test_only_the_files_of_the_model_are_uploaded_in_one_commit(hub, model, capsys, outputs_here):
    outputs_here.undo()
    assert main(["push", "lab/model", "--model", str(model)]) == 0
    output = capsys.readouterr().out
    assert "model.safetensors" in output and "Downloaded and compared" in output and "Published at" in output
    assert [len(commit.files) for commit in repository(hub).commits] == [1, len(FILES) + 1]
    files = repository(hub).files
    assert set(files) == FILES | {".gitattributes"}
    for name in FILES - {"README.md", "card.json", "results/zero-shot_pcam.json"}:
        assert files[name] == (model / name).read_bytes(), name
    report = json.loads((model / "push.json").read_text())
    assert report["commit"] == repository(hub).commits[-1].oid and set(report["files"]) == FILES
    assert report["largest_difference"]["token ids"] == report["largest_difference"]["pixels"] == 0
    assert report["largest_difference"]["image embeddings"] <= 2e-6


@pytest.mark.slow
def test_the_code_of_the_card_runs_with_and_without_the_package(hub, model, tmp_path):
    run_push(model)
    Image.effect_noise((60, 50), 90).save(tmp_path / "figure.png")
    section = repository(hub).files["README.md"].decode().split("\n## Usage\n")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    assert "'brain MRI': " in hub.python(code, tmp_path)
    code = code.replace("import biomedclip", "import sys")
    code = code.replace('from_pretrained("lab/model")', 'from_pretrained("lab/model", trust_remote_code=True)')
    code += "\nassert 'biomedclip' not in sys.modules"
    assert "'brain MRI': " in hub.python(code, tmp_path)


def test_a_dry_run_lists_the_files_without_a_network(model, capsys, monkeypatch):
    monkeypatch.setattr(push, "check_write_access", None)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    (model / "evil\x1b[31m.txt").write_text("")
    assert main(["push", "lab/model", "--model", str(model), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in FILES) and f"{len(FILES)} files" in output
    assert "The card is complete" in output and max(map(len, output.splitlines())) <= 80 and "\x1b" not in output
    assert "No copy for open_clip: open_clip builds" in output.replace("\n", " ")
    left_out = json.loads((model / "push.json").read_text())["left_out"]
    assert left_out["training_args.bin"] == "state of a training run"
    assert left_out["notes.txt"] == "not on the list of published files"
    assert left_out["checkpoint-3"].startswith("a folder")


def test_a_dry_run_names_the_missing_parts_of_the_card(model, capsys):
    describe(model, license=None)
    assert main(["push", "lab/model", "--model", str(model), "--dry-run"]) == 1
    error = capsys.readouterr().err
    assert "README.md is not complete" in error and "License: Not stated" in error and "Traceback" not in error


def test_a_private_push_to_a_branch_uploads_no_path_of_the_machine(hub, model, tmp_path):
    report = run_push(model, revision="v2", private=True)
    assert repository(hub).private and set(repository(hub).files) == {".gitattributes"}
    pushed = repository(hub).branches["v2"][-1]
    assert set(pushed.files) == FILES | {".gitattributes"}
    assert report["commit"] == pushed.oid and report["url"].endswith("/lab/model/tree/v2")
    for name, content in pushed.files.items():
        assert str(tmp_path).encode() not in content and b"/home/someone" not in content, name
    card = pushed.files["README.md"].decode()
    assert 'AutoModel.from_pretrained("lab/model")' in card and "ORG/NAME" not in card


def test_files_of_an_earlier_push_are_deleted_and_other_files_are_kept(hub, model):
    earlier = {"results/zero-shot_rsna.json": b"{}", "model-00001-of-00002.safetensors": b"", "LICENSE": b"text"}
    hub.add("lab/model", earlier)
    run_push(model)
    assert set(repository(hub).files) == FILES | {"LICENSE"}


def test_an_interrupted_upload_continues_and_a_repeated_one_changes_nothing(hub, model, monkeypatch):
    monkeypatch.setattr(publishing, "ATTEMPTS", 2)
    hub.fail("POST", "/commit/main", status=503, times=2)
    with pytest.raises(OSError, match=r"stopped at .*Run the same command again"):
        run_push(model)
    assert len(repository(hub).commits) == 1
    run_push(model)
    assert set(repository(hub).files) >= FILES and len(hub.uploads) == len(set(hub.uploads)) == 1
    report = run_push(model)
    assert len(repository(hub).commits) == 2 and report["commit"] == repository(hub).commits[-1].oid


def assert_nothing_was_published(hub) -> None:
    """The branch has not changed, and the pull request is closed."""
    assert set(repository(hub).files) == {".gitattributes"}
    assert repository(hub).closed == [1] and repository(hub).targets == ["main"]


def test_a_damaged_upload_is_not_merged(hub, model):
    hub.damaged = "model.safetensors"
    with pytest.raises(OSError, match=r"differ from those that were sent: model.safetensors"):
        run_push(model)
    assert_nothing_was_published(hub)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("modeling_biomedclip.py", "def forward(", "def forwards(", "cannot be loaded"),
        (
            "config.json",
            '"hidden_act": "gelu"',
            '"hidden_act": "relu"',
            "uploaded model differ .*embeddings",
        ),
    ],
)
def test_an_upload_that_gives_other_embeddings_is_not_merged(
    hub, model, outputs_in_forked_process, monkeypatch, file, old, new, message
):
    """As if the package on disk was changed after this process had imported it."""
    kept = model_files.load_any_layout(model)
    text = (model / file).read_text()
    assert old in text
    (model / file).write_text(text.replace(old, new))
    code = {path.name: path for path in model.glob("*_biomedclip.py")}
    monkeypatch.setattr(model_files, "package_code", lambda: code)
    monkeypatch.setattr(model_files, "load_any_layout", lambda folder: kept)
    with pytest.raises(ValueError, match=message):
        run_push(model)
    assert_nothing_was_published(hub)


def test_links_to_published_files_are_followed_and_other_files_are_not_loaded(hub, model):
    """transformers would read the two other files, which would change open_clip's copy and the comparison."""
    weights = (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    (model / "model.safetensors").symlink_to(weights.name)
    (model / "added_tokens.json").write_text('{"secret word": 100}')
    (model / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "/nowhere"}')
    report = run_push(model)
    assert set(repository(hub).files) == FILES | {".gitattributes", weights.name}
    assert repository(hub).files["model.safetensors"] == weights.read_bytes()
    assert {"added_tokens.json", "adapter_config.json"} <= set(report["left_out"])


def link(name: str, target: str = "../secrets/key"):
    return lambda model: ((model / name).unlink(missing_ok=True), (model / name).symlink_to(target))


def pipe(name: str):
    return lambda model: ((model / name).unlink(missing_ok=True), os.mkfifo(model / name))


def remove(name: str):
    return lambda model: (model / name).unlink()


def write(name: str, text: str):
    return lambda model: (model / name).write_text(text)


def append(name: str, text: str):
    return lambda model: (model / name).open("a").write(text)


def set_json(name: str, **change):
    return lambda model: (model / name).write_text(json.dumps(json.loads((model / name).read_text()) | change))


OUTSIDE = "is a link that points outside"
RUNS = "\nopen('it ran', 'w')\n"
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *((link(name), OUTSIDE) for name in ("vocab.txt", "README.md", "card.json", "modeling_biomedclip.py", "x.txt")),
        (link("results", "../secrets"), OUTSIDE),
        (link("checkpoint-3/x", "../../secrets/key"), OUTSIDE),
        (link("vocab.txt", "../nothing"), OUTSIDE),
        (link("vocab.txt", "notes.txt"), "vocab.txt is a link to notes.txt, which is not published"),
        (append("modeling_biomedclip.py", RUNS), "modeling_biomedclip.py is not identical"),
        (append("helper_biomedclip.py", RUNS), "helper_biomedclip.py is not a module of the installed"),
        (append("a\nb_biomedclip.py", RUNS), "is not a module of the installed"),
        (set_json("config.json", auto_map={"AutoModel": "evil/repo--evil.Model"}), "auto_map refers to 'evil/repo--"),
        (set_json("config.json", auto_map={"AutoModel": "helper.Model"}), "auto_map refers to 'helper.Model'"),
        (set_json("config.json", auto_map={"AutoModel": 3}), "auto_map refers to 3"),
        (set_json("config.json", vision_config={"auto_map": {"AutoModel": "helper.Model"}}), "auto_map refers to"),
        (set_json("config.json", custom_pipelines={"x": {"impl": "helper.P"}}), "custom_pipelines refers to"),
        (set_json("config.json", model_type=["biomedclip"]), "contains no BiomedCLIP"),
        (set_json("processor_config.json", auto_map={"AutoProcessor": "helper.P"}), "processor_config.json: auto_map"),
        (set_json("tokenizer_config.json", auto_map={"AutoTokenizer": ["helper.T", None]}), "refers to 'helper.T'"),
        (
            write(INDEX, '{"weight_map": {"a": "../../other/model.safetensors"}}'),
            "weight_map refers to '../../other/model",
        ),
        (
            write("modules.json", '[{"idx": 0, "name": "0", "path": "", "type": "evil.Module"}]'),
            "modules.json is not what",
        ),
        (set_json("sentence_bert_config.json", model_kwargs={"x": 1}), "sentence_bert_config.json is not what"),
        (write("pytorch_model.bin", "a pickle"), "pytorch_model.bin is not safetensors"),
        (remove("model.safetensors"), "contains no model.safetensors"),
        *(
            (remove(name), f"{name} is missing")
            for name in ("README.md", "card.json", "processor_config.json", "modeling_biomedclip.py")
        ),
        *((pipe(name), f"{name} is a named pipe") for name in ("README.md", "card.json", "config.json", "vocab.txt")),
        (write("card.json", "[]"), "card.json: the file must be an object"),
        (write("card.json", "{}"), "card.json: model is missing"),
        (set_json("card.json", model={"weights": 3}), "card.json: model.weights must be str"),
        (set_json("card.json", results={}), "card.json: results must be a list"),
        (set_json("card.json", results=[{"task": 3}]), r"card.json: results\[0\].task must be str"),
        (set_json("card.json", title=float("nan")), "card.json is damaged"),
        (append("README.md", "\n| a | b |\n|---|---|\n| accuracy | |\n"), "has an empty cell"),
    ],
)
def test_a_model_that_fails_a_check_is_refused_before_anything_is_loaded(hub, model, monkeypatch, change, message):
    monkeypatch.chdir(model.parent)
    monkeypatch.setattr(push, "load_published", None)
    (model.parent / "secrets").mkdir()
    (model.parent / "secrets" / "key").write_text("not for others")
    change(model)
    for dry_run in (True, False):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            run_push(model, dry_run=dry_run)
    assert not hub.repositories and not (model.parent / "it ran").exists()


def change_weights(model: Path) -> None:
    changed = AutoModel.from_pretrained(model)
    changed.logit_scale.data += 0.1
    changed.save_pretrained(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_weights, "README.md describes other weights"),
        (lambda model: set_json("config.json", note=f"{model.parent}/x")(model), "config.json contains .*, a path of"),
        (append("README.md", f"\nhf_{'aB3' * 12}\n"), "README.md contains an access token"),
    ],
)
def test_private_content_and_the_card_of_other_weights_are_refused(hub, model, change, message):
    change(model)
    with pytest.raises(ValueError, match=message):
        run_push(model)
    assert not hub.repositories


def with_bert(hub, tmp_path: Path) -> tuple[BiomedCLIPModel, BiomedCLIPProcessor]:
    """A model whose text encoder has the shape of a BERT on the Hub: open_clip needs the name of one."""
    folder = write_open_clip_folder(tmp_path / "theirs")
    bert = [folder.parent / "bert" / "config.json", folder / "tokenizer.json", folder / "tokenizer_config.json"]
    hub.add("lab/bert", {path.name: path.read_bytes() for path in bert})
    model, processor = from_open_clip(folder)
    model.open_clip_config = model.open_clip_config.replace(str(folder.parent / "bert"), "lab/bert")
    return model, processor


def with_clips_text_encoder(hub, tmp_path: Path) -> tuple[BiomedCLIPModel, BiomedCLIPProcessor]:
    """A model with CLIP's text encoder, whose tokenizer is on the Hub."""
    tokenizer = published_clip_tokenizer()
    tokenizer.save_pretrained(tmp_path / "clip")
    hub.add(PUBLISHED_CLIP, {path.name: path.read_bytes() for path in (tmp_path / "clip").iterdir()})
    return convertible_model(tokenizer, model_type="clip_text_model", hidden_act="gelu")


@pytest.mark.slow
def test_open_clip_loads_its_copy_from_the_same_repository(hub, tmp_path):
    made = {"lab/bert-model": with_bert(hub, tmp_path), "lab/clip-model": with_clips_text_encoder(hub, tmp_path)}
    expected = {}
    for repo_id, (model, processor) in made.items():
        folder = tmp_path / repo_id / "model"
        save_with_processor(model, processor, folder)
        model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
        describe(folder)
        report = run_push(folder, repo_id)
        assert {"open_clip_config.json", "open_clip_model.safetensors"} <= set(report["files"])
        assert f"hf-hub:{repo_id}" in hub.repositories["model", repo_id].files["README.md"].decode()
        tokens = processor(text=["chest x-ray", "brain mri"], padding="max_length", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            embeds = model.get_text_features(tokens).pooler_output
        expected[repo_id] = torch.nn.functional.normalize(embeds, dim=-1).flatten()

    code = f"""
import json, open_clip, torch
embeds = {{}}
for repo_id in {[*made]}:
    model, preprocess = open_clip.create_model_from_pretrained(f"hf-hub:{{repo_id}}")
    tokens = open_clip.get_tokenizer(f"hf-hub:{{repo_id}}")(["chest x-ray", "brain mri"])
    with torch.no_grad():
        embeds[repo_id] = model.eval().encode_text(tokens, normalize=True).double().flatten().tolist()
print(json.dumps(embeds))
"""
    printed = json.loads(hub.python(code, tmp_path).splitlines()[-1])
    for repo_id, ours in expected.items():
        # Matrix products may round differently in another process.
        torch.testing.assert_close(torch.tensor(printed[repo_id]), ours, rtol=0, atol=2e-6)
