"""Cards of classifiers, and their publication on a local Hub: what is uploaded, what stays here, what loads again."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from helpers import forked_processes
from helpers.benchmark_files import save_drawn
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

from biomedclip.model_cards.checking import find_problems
from biomedclip.run_scripts.hub import classifier_upload, model_files, model_outputs, model_upload
from biomedclip.run_scripts.main import main


# Names of the user's data, which must not leave the machine.
PRIVATE = ("mustermann", "ward-7", "krankenhaus", "case_number", "kept_in", "sex")
MODEL = {"config.json", "model.safetensors", "preprocessor_config.json", "calibration.json"}
CODE = {name for name in model_files.package_code() if name != "processing_biomedclip.py"}


@pytest.fixture(autouse=True)
def outputs_here() -> Iterator[pytest.MonkeyPatch]:
    """Load the download in this process: another one takes seconds. `undo` loads it in a new process again."""
    patch = pytest.MonkeyPatch()

    def outputs(folder, inputs, scratch):
        model = AutoModelForImageClassification.from_pretrained(folder)
        return model_outputs.classifier_outputs(model, AutoImageProcessor.from_pretrained(folder), inputs)

    patch.setattr(classifier_upload, "outputs_in_new_process", outputs)
    yield patch
    patch.undo()


@pytest.fixture(scope="session")
def table(tmp_path_factory) -> Path:
    """A table of images of patients, with private names."""
    folder = tmp_path_factory.mktemp("data") / "krankenhaus"
    rows = []
    for number in range(60):
        label = ("benign", "malignant", "other")[number % 3]
        name = f"mustermann_{number}.png"
        save_drawn(folder / name, [number], 32, positive=number % 2 == 0)
        findings = {"cyst": number % 2, "mass": -1 if number % 7 == 0 else number // 2 % 2, "effusion": 1 - number % 2}
        row = {"image": name, "label": label, "case_number": f"ward-7-{number // 3}", "sex": "FM"[number // 3 % 2]}
        rows.append(row | findings | {"kept_in": f"ward-7-{number}"})
    with (folder / "mustermann.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "mustermann.csv"


@pytest.fixture(scope="session")
def splits(table) -> Path:
    """The same images in folders of splits, some of them twice."""
    folder = table.parent / "splits"
    for number in range(60):
        split = ("train", "validation", "test")[number % 4 % 3]
        place = folder / split / ("benign", "malignant", "other")[number % 3] / f"mustermann_{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(table.parent / f"mustermann_{number}.png", place)
    shutil.copy(folder / "train" / "benign" / "mustermann_0.png", folder / "test" / "benign" / "mustermann_copy.png")
    (folder / "test" / "other" / "mustermann_broken.png").write_bytes(b"no image")
    return folder


def run(verb: str, *words: object) -> None:
    assert main([verb, *map(str, words)]) == 0


@pytest.fixture(scope="session")
def trained(small_checkpoint, table, splits, tmp_path_factory) -> Path:
    """A folder `classifier` with a classifier of one label, evaluated and calibrated, and its results in `results`."""
    folder = tmp_path_factory.mktemp("trained")
    command = ["--task", "image-classification", "--model-name-or-path", small_checkpoint, "--train-data", table]
    command += ["--group-column", "case_number", "--num-train-epochs", 1, "--per-device-train-batch-size", 16]
    run("train", *command, "--output-dir", folder / "classifier")
    evaluated = ["image-classification", "--model", folder / "classifier", "--calibrate", "--sensitivity", 0.9]
    run("evaluate", *evaluated, "--data", splits, "--output-dir", folder / "results" / "splits")
    columns = ["--group-column", "case_number", "--subgroup-column", "kept_in", "sex"]
    evaluated = ["image-classification", "--model", folder / "classifier", "--data", table, *columns]
    run("evaluate", *evaluated, "--output-dir", folder / "results" / "table")
    return folder


@pytest.fixture
def classifier(trained, tmp_path) -> Path:
    """A copy of the classifier with a card."""
    folder = shutil.copytree(trained / "classifier", tmp_path / "classifier")
    run("card", folder, "--results", trained / "results", "--license", "mit", "--base-model", "lab/base")
    return folder


def test_the_card_states_what_was_measured_and_no_name_of_the_data(classifier, capsys):
    text = (classifier / "README.md").read_text()
    card = ModelCard(text)
    assert find_problems(text.replace("ORG/NAME", "lab/classifier")) == []
    assert card.data.pipeline_tag == "image-classification" and card.data.base_model == "lab/base"
    assert card.data.license == "mit" and card.data.library_name == "transformers"
    assert card.data.eval_results is None, "all results include training images"
    for result in json.loads((classifier / "card.json").read_text())["results"]:
        assert (
            f"(includes training images) | {result['data']['rows']} | accuracy | {result['metrics']['accuracy']:.4f}"
            in text
        )
    counts = json.loads((classifier / "train_results.json").read_text())["images"]
    assert all(f"| {label} | {count} |" in text for label, count in counts.items())
    temperature = json.loads((classifier / "calibration.json").read_text())["temperature"]
    for part in (
        "**Not for clinical use.**",
        f"temperature {temperature:.4g}",
        "| malignant | sensitivity 0.9 |",
        "Damaged images, excluded: 1.",
        "test images are also in the training data",
        "same bytes 1",
        "--model MODEL --calibrate --sensitivity 0.9 --data DATA --output-dir RESULTS",
        "--group-column COLUMN",
        "held out from the training images",
        "54 of 60 images were used to train the classifier.",
        "of these images were used to train the classifier, so that the calibration is wrong for other images.",
        "| train | 54 | 18 |",
    ):
        assert part in text, part
    for name in ("README.md", "card.json"):
        assert not any(word in (classifier / name).read_text() for word in PRIVATE), name


def test_only_the_model_the_card_and_selected_facts_are_uploaded(hub, trained, classifier, capsys):
    for name in ("training_args.bin", "trainer_state.json", "recipe.yaml", "train_results.json", "seen_images.json"):
        assert (classifier / name).exists()
    (classifier / "predictions.csv").write_text("mustermann_1.png,benign\n")
    (classifier / "mustermann_1.png").write_bytes(b"an image")
    run("push", "lab/classifier", "--model", classifier)
    files = hub.repositories["model", "lab/classifier"].files
    results = {name for name in files if name.startswith("results/")}
    assert len(results) == 2
    assert set(files) == {".gitattributes", "README.md", "card.json", "recipe.yaml", *MODEL, *CODE} | results
    for name, content in files.items():
        assert not any(word.encode() in content for word in (*PRIVATE, str(trained))), name
    assert yaml.safe_load(files["recipe.yaml"]) == {
        "task": "image-classification",
        "num_train_epochs": 1.0,
        "per_device_train_batch_size": 16,
    }
    output = capsys.readouterr().out
    assert "predictions.csv" in output and "not needed to load the model" in output
    assert "lab/classifier" in files["README.md"].decode() and b"ORG/NAME" not in files["README.md"]
    report = json.loads((classifier / "push.json").read_text())
    assert report["largest_difference"]["pixels"] == 0 and report["largest_difference"]["logits"] < 1e-4
    assert set(json.loads(files["calibration.json"])["fitted_on"]) == {"fingerprint", "images", "seen_in_training"}


def downloaded(hub, repo_id: str, folder: Path) -> Path:
    folder.mkdir()
    for name, content in hub.repositories["model", repo_id].files.items():
        if "/" not in name:
            (folder / name).write_bytes(content)
    return folder


def predictions(model: Path, images: Path, output: Path) -> list[dict]:
    run("classify", images, "--model", model, "--wide", "--output", output)
    return json.loads(output.read_text())


def test_a_pushed_classifier_gives_the_same_predictions(hub, classifier, splits, tmp_path):
    run("push", "lab/classifier", "--model", classifier)
    folder = downloaded(hub, "lab/classifier", tmp_path / "downloaded")
    images = splits / "validation"
    assert predictions(folder, images, tmp_path / "a.json") == predictions(classifier, images, tmp_path / "b.json")
    classify = pipeline("image-classification", model=str(folder))
    scores = {entry["label"]: entry["score"] for entry in classify(Image.new("RGB", (40, 40), "gray"), top_k=None)}
    assert set(scores) == {"benign", "malignant", "other"} and sum(scores.values()) == pytest.approx(1, abs=1e-5)


def test_an_adapter_is_published_as_a_merged_model(hub, fine_tuned, splits, tmp_path):
    folder = shutil.copytree(fine_tuned[1], tmp_path / "adapter")
    trained = {"classes": ["benign", "malignant", "other"], "versions": {"biomedclip": "0.1.0"}}
    (folder / "train_results.json").write_text(json.dumps(trained))
    run("card", folder, "--license", "mit")
    run("push", "lab/merged", "--model", folder)
    files = hub.repositories["model", "lab/merged"].files
    assert "model.safetensors" in files and not any("adapter" in name for name in files)
    merged = downloaded(hub, "lab/merged", tmp_path / "merged")
    ours, theirs = (
        predictions(model, splits / "validation", tmp_path / f"{model.name}.json") for model in (folder, merged)
    )
    assert [row["benign"] for row in ours] == pytest.approx([row["benign"] for row in theirs], abs=1e-6)


def test_a_classifier_of_findings_states_its_labels_and_policies(hub, small_checkpoint, table, tmp_path):
    folder, columns = tmp_path / "findings", ["--label-columns", "cyst", "mass", "effusion"]
    columns += ["--group-column", "case_number", "--uncertain", "one"]
    command = ["--task", "image-classification", "--model-name-or-path", small_checkpoint, "--train-data", table]
    run("train", *command, *columns, "--max-steps", 1, "--output-dir", folder)
    evaluated = ["image-classification", "--model", folder, "--data", table, *columns]
    run("evaluate", *evaluated, "--output-dir", tmp_path / "results")
    run("card", folder, "--results", tmp_path / "results", "--license", "mit")
    text = (folder / "README.md").read_text()
    trained = json.loads((folder / "train_results.json").read_text())
    counts = trained["labels"]["mass"]
    assert sum(counts.values()) == trained["split_images"]["train"] and counts["ignored"] == 0
    assert f"| mass | {counts['positive']} | {counts['negative']} | 0 |" in text
    assert "Uncertain labels (-1) counted as one, and blank labels counted as zero." in text
    assert "| findings, effusion, AUROC |" in text and "multi-label" in ModelCard(text).data.tags
    assert "labels are uncertain. They count as 1 (uncertain='one')." in text.replace("\\", "")
    run("push", "lab/findings", "--model", folder)
    for name, content in hub.repositories["model", "lab/findings"].files.items():
        assert not any(word.encode() in content for word in PRIVATE), name


@pytest.fixture
def head(small_checkpoint, table, tmp_path) -> Path:
    """A few-shot head of a dual encoder in a folder."""
    command = ["--task", "few-shot-head", "--model-name-or-path", small_checkpoint, "--train-data", table]
    run(
        "train", *command, "--method", "tip-adapter", "--group-column", "case_number", "--output-dir", tmp_path / "head"
    )
    return tmp_path / "head"


def add_base(hub, checkpoint: Path, repo_id: str = "lab/base") -> None:
    hub.add(repo_id, {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.is_file()})


def test_a_head_is_published_with_the_id_of_its_dual_encoder(hub, head, small_checkpoint, splits, tmp_path):
    add_base(hub, small_checkpoint)
    run("card", head, "--license", "mit", "--base-model", "lab/base")
    text = (head / "README.md").read_text()
    assert "contains the embeddings of its training images" in text and "| base model | lab/base |" in text
    run("push", "lab/head", "--model", head)
    files = hub.repositories["model", "lab/head"].files
    config = json.loads(files["config.json"])
    assert config["base_model_name_or_path"] == "lab/base" and "data" not in config["training"]
    for name, content in files.items():
        assert not any(word.encode() in content for word in (*PRIVATE, str(small_checkpoint))), name
    folder = downloaded(hub, "lab/head", tmp_path / "downloaded")
    images = splits / "validation"
    assert predictions(folder, images, tmp_path / "a.json") == predictions(head, images, tmp_path / "b.json")


def test_a_head_whose_dual_encoder_is_missing_or_another_one_on_the_hub_is_refused(
    hub, head, small_checkpoint, fine_tuned, tmp_path, capsys
):
    run("card", head, "--license", "mit")
    assert main(["push", "lab/head", "--model", str(head)]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "is a few-shot head" in error and "pass its id to biomedclip card --base-model" in error
    other = tmp_path / "other"
    shutil.copytree(small_checkpoint, other)
    changed = AutoModel.from_pretrained(other)
    changed.logit_scale.data += 0.1
    changed.save_pretrained(other)
    add_base(hub, other, "lab/other")
    run("card", head, "--license", "mit", "--base-model", "lab/other")
    assert main(["push", "lab/head", "--model", str(head)]) == 1
    assert "lab/other on the Hub has the weights" in " ".join(capsys.readouterr().err.split())
    assert ("model", "lab/head") not in hub.repositories


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "license is missing"),
        (["--license", "mit", "--base-model", "out/base/model"], "--base-model out/base/model of a classifier must be"),
        (
            ["--license", "mit", "--base-model", "lab/local"],
            "but lab/local is a folder here, which would be used instead",
        ),
        (["--license", "mit", "--dataset", "lab/local"], "but lab/local is a folder here, which would be used instead"),
        (["--license", "mit", "--subgroups", "sex"], "--subgroups sex: the results have no metrics of this column"),
        (["--license", "mit", "--dataset", "scans"], "--dataset scans of a classifier must be an id on the Hub"),
        (["--license", "mit", "--train-run", "{other}"], "is of a classifier of cat, dog, but the labels of"),
    ],
)
def test_incomplete_cards_and_wrong_options_are_errors(
    hub, fine_tuned, tmp_path, monkeypatch, capsys, options, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab" / "local").mkdir(parents=True)
    folder = shutil.copytree(fine_tuned[0], tmp_path / "classifier")
    (tmp_path / "other").mkdir()
    other = {"classes": ["cat", "dog"], "versions": {"biomedclip": "0.1.0"}}
    (tmp_path / "other" / "train_results.json").write_text(json.dumps(other))
    options = [option.format(other=tmp_path / "other") for option in options]
    status = main(["card", str(folder), *options]) or main(["push", "lab/c", "--model", str(folder), "--dry-run"])
    assert status in (1, 2) and message in " ".join(capsys.readouterr().err.split())
    assert not hub.repositories


def test_the_card_of_other_weights_and_links_that_lead_out_are_refused(hub, classifier, fine_tuned, tmp_path, capsys):
    (classifier / "model.safetensors").unlink()
    shutil.copy(fine_tuned[0] / "model.safetensors", classifier)
    assert main(["push", "lab/c", "--model", str(classifier), "--dry-run"]) == 1
    assert "describes other weights" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "secret").write_text("not for others")
    (classifier / "notes.txt").symlink_to(tmp_path / "secret")
    assert main(["push", "lab/c", "--model", str(classifier)]) == 1
    assert "is a link that points outside" in " ".join(capsys.readouterr().err.split())
    assert not hub.repositories


def test_the_dual_encoder_of_a_head_is_checked_on_the_hub_and_not_in_a_folder_of_its_name(
    hub, head, small_checkpoint, tmp_path, monkeypatch, capsys
):
    run("card", head, "--license", "mit", "--base-model", "lab/base")
    shutil.copytree(small_checkpoint, tmp_path / "lab" / "base")
    monkeypatch.chdir(tmp_path)
    assert main(["push", "lab/head", "--model", str(head)]) == 1
    assert "lab/base cannot be read" in " ".join(capsys.readouterr().err.split())
    assert ("model", "lab/head") not in hub.repositories


def test_subgroups_are_published_only_for_named_columns(trained, tmp_path, capsys):
    folder = shutil.copytree(trained / "classifier", tmp_path / "classifier")
    command = ["card", folder, "--results", trained / "results", "--license", "mit", "--subgroups"]
    run(*command, "kept_in", "sex")
    text = (folder / "README.md").read_text()
    assert "22 subgroups, or findings of subgroups, with few images, groups or labels are left out." in text
    assert main([*map(str, command), "device"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "--subgroups device: the results have no metrics of this column, but of kept_in, sex." in error


def test_options_of_classifiers_are_errors_for_a_dual_encoder(small_checkpoint, tmp_path, capsys):
    folder = shutil.copytree(small_checkpoint, tmp_path / "model")
    for option, value in (("--base-model", "lab/base"), ("--subgroups", "sex")):
        assert main(["card", str(folder), option, value]) == 2
        assert f"{option} has no effect on" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_program_without_the_package_loads_the_uploaded_classifier(hub, classifier, outputs_here, monkeypatch):
    outputs_here.undo()

    def start(command, *, cwd, env, **options):
        return forked_processes.run(command[2:], env, cwd, transformers=False)

    monkeypatch.setattr(model_upload, "subprocess", SimpleNamespace(run=start))
    run("push", "lab/classifier", "--model", classifier)
    report = json.loads((classifier / "push.json").read_text())
    assert report["largest_difference"]["pixels"] == 0 and report["commit"]
