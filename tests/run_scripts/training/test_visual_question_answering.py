"""Visual question answering through the commands: from a benchmark folder to a model that is measured on it."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from conftest import SMALL_CONFIG
from helpers.benchmark_files import draw_slake_images
from helpers.commands import biomedclip, losses, run_python
from helpers.training_runs import command, results, train, train_error
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForVisualQuestionAnswering, AutoTokenizer, GPT2Tokenizer, pipeline

from biomedclip import BiomedCLIPConfig, BiomedCLIPForVisualQuestionAnswering
from biomedclip.processing import VisualQuestionCollator, load_benchmark
from biomedclip.processing.answers import answer_vocabulary, normalize_answer
from biomedclip.run_scripts import evaluation
from biomedclip.run_scripts.cli.options import RECIPES, read_recipe
from biomedclip.run_scripts.evaluation import visual_question_answering
from biomedclip.run_scripts.evaluation.dual_encoders import load_dual_encoder
from biomedclip.run_scripts.evaluation.visual_question_answering import (
    answer_metrics,
    answer_questions,
    f1_metrics,
    load_answerer,
    majority_baseline,
)
from biomedclip.run_scripts.main import main
from biomedclip.run_scripts.training import visual_question_answering as vqa_training
from biomedclip.run_scripts.training.adapters import AdapterOptions, add_adapter
from biomedclip.run_scripts.training.supervised import SupervisedArguments
from biomedclip.run_scripts.training.visual_question_answering import (
    NEW_PARTS,
    QuestionData,
    QuestionTrainer,
    question_splits,
)
from biomedclip.run_scripts.training.visual_question_answering import load_answerer as load_for_training


COLORS = {"red": (200, 30, 30), "green": (30, 180, 30), "blue": (40, 40, 210)}
HEAD = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
HEAD |= {"hidden_dropout": 0.0, "attention_dropout": 0.0, "initializer_range": 0.2}
SHORT = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
METRICS = Path(evaluation.__file__).parent / "metrics"
TYPES = {"": None, "open_": "open", "closed_": "closed"}  # prefix of a metric, and the type of its questions


def write_set(folder: Path, images: int = 40) -> Path:
    """Write plain images with an open and a closed question each, as in VQA-RAD. The last quarter is for tests."""
    pictures = folder / "VQA_RAD Image Folder"
    pictures.mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows = []
    for number in range(images):
        color = list(COLORS)[number % 3]
        noise = generator.integers(-25, 26, (40, 40, 3))
        name = f"synpic{number:03}.png"
        Image.fromarray(np.clip(np.array(COLORS[color]) + noise, 0, 255).astype(np.uint8)).save(pictures / name)
        test = "test_" if number >= 3 * images // 4 else ""
        shared = {"phrase_type": f"{test}freeform", "image_name": name, "image_organ": "HEAD"}
        shared |= {"question_rephrase": "NULL"}
        open_question = {"question": "chart of figure", "answer": color.capitalize(), "answer_type": "OPEN"}
        closed = {"question": "is this", "answer": "Yes" if color == "red" else "no", "answer_type": "CLOSED "}
        for question in (open_question, closed):
            rows.append({"qid": str(len(rows))} | shared | question)
    # An answer that is a number, one that training does not have, and an image of both splits.
    rows[0]["answer"] = 4
    rows[-2]["answer"] = "purple"
    rows[-1]["image_name"] = rows[0]["image_name"]
    (folder / "VQA_RAD Dataset Public.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("questions") / "set")


@pytest.fixture(scope="module")
def options(questions, small_checkpoint) -> dict:
    """Options of the recipe `vqa_rad`, with a tenth of the images held out."""
    options = {"config": "vqa_rad", "model_name_or_path": small_checkpoint, "train_data": questions}
    options |= {"dataloader_num_workers": 0, "co_attention_config": HEAD, "learning_rate": 2e-4}
    return options | {"validation_fraction": 0.1, "batch_size": None, "per_device_train_batch_size": 16}


@pytest.fixture(scope="module")
def answerer(options, tmp_path_factory) -> Path:
    """A trained model."""
    folder = tmp_path_factory.mktemp("answerer") / "run"
    return train(folder, **options, max_steps=None, num_train_epochs=30)


@pytest.fixture(scope="module")
def short_run(options, tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("short") / "run", **options | SHORT)


def splits_of(folder: Path, seed: int = 0, **options) -> dict:
    defaults = {"model_name_or_path": "model", "benchmark": "vqa_rad"}
    return question_splits(QuestionData(train_data=str(folder), **defaults | options), seed=seed)


def evaluation_command(model: Path, data: Path, output_dir: Path, *options: str) -> list[str]:
    command = ["evaluate", "visual-question-answering", "--model", model, "--data", data, "--benchmark", "vqa_rad"]
    return [*map(str, command), "--output-dir", str(output_dir), *options]


def measure(*arguments) -> int:
    return main(evaluation_command(*arguments))


# Training


def test_it_learns_to_answer_questions(answerer):
    found = results(answerer)
    assert found["answers"] == 6 and found["images"] == 27 and found["questions"] == 54
    held_out = found["validation"]
    assert held_out["images"] == 3 and held_out["questions"] == 6 and held_out["unreadable_questions"] == 0
    # The most frequent answers give half. All six right by chance has a probability of one in sixty.
    assert held_out["accuracy"] > 0.8
    assert held_out["accuracy"] == (held_out["open_accuracy"] + held_out["closed_accuracy"]) / 2


def answering_model(answers: list[str]) -> BiomedCLIPForVisualQuestionAnswering:
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(answers)), "label2id": {answer: n for n, answer in enumerate(answers)}}
    config = BiomedCLIPConfig(**SMALL_CONFIG, co_attention_config=HEAD, **labels)
    return BiomedCLIPForVisualQuestionAnswering(config)


def question_trainer(model, folder: Path, rows: list, collator=None, **options) -> QuestionTrainer:
    args = SupervisedArguments(output_dir=str(folder), use_cpu=True, disable_tqdm=True, **options)
    head, cross_modal = (50, 5) if collator is None else (1, 1)
    data = {"train_dataset": rows, "data_collator": collator}
    return QuestionTrainer(model, args, **data, head_factor=head, cross_modal_factor=cross_modal)


@pytest.mark.slow
def test_a_small_model_overfits_sixteen_questions(small_processor, tmp_path):
    # Four questions about each of four images: the answer depends on both.
    answers = [f"{number}" for number in range(16)]
    squares = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)
    pictures = [Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST) for pixels in squares]
    words = ["brain", "chest", "chart", "figure"]
    rows = [
        {"image": pictures[number // 4], "question": words[number % 4], "answer": answer, "name": answer}
        for number, answer in enumerate(answers)
    ]
    model = answering_model(answers)
    collator = VisualQuestionCollator(small_processor, model.config.label2id)
    options = {"max_steps": 150, "per_device_train_batch_size": 16, "learning_rate": 2e-3, "save_strategy": "no"}
    trainer = question_trainer(model, tmp_path, rows, collator, **options)
    trainer.train()
    assert trainer.evaluate(rows)["eval_accuracy"] == 1.0


# The lists of names in METER's `set_schedule`, and METER's names for the modules of this model.
NO_DECAY = ["bias", "LayerNorm.bias", "LayerNorm.weight"]
NO_DECAY += [f"{norm}.{kind}" for norm in ("norm", "norm1", "norm2") for kind in ("bias", "weight")]
METER_NAMES = {
    "classifier.": "vqa_classifier.",
    "text_transform.": "cross_modal_text_transform.",
    "image_transform.": "cross_modal_image_transform.",
    "co_attention.token_type_embeddings": "token_type_embeddings",
    "co_attention.text_layers.": "cross_modal_text_layers.",
    "co_attention.image_layers.": "cross_modal_image_layers.",
    "co_attention.text_pooler.": "cross_modal_text_pooler.",
    "co_attention.image_pooler.": "cross_modal_image_pooler.",
    "text_model.": "text_transformer.",
    "vision_model.": "vit_model.",
}


def group_in_meter(name: str) -> tuple[float, float]:
    """Return the factor of the learning rate and the weight decay of a parameter in METER's `set_schedule`."""
    start = next(start for start in METER_NAMES if name.startswith(start))
    theirs = METER_NAMES[start] + name.removeprefix(start)
    if not theirs.startswith("vqa_classifier"):  # a Sequential, whose LayerNorm has the name 1
        theirs = re.sub(r"(post_)?layer_?norm\d?\.", "LayerNorm.", theirs)
    decay = 0.0 if any(part in theirs for part in NO_DECAY) else 0.01
    return 5.0 if "cross_modal" in theirs else 50.0 if "vqa_classifier" in theirs else 1.0, decay


@pytest.mark.parametrize("adapter", [False, True])
def test_learning_rates_and_weight_decay_are_those_of_meter(adapter, tmp_path):
    model = answering_model(["yes", "no"])
    if adapter:
        model = add_adapter(model, AdapterOptions(lora_rank=2), trained_whole=NEW_PARTS)
    options = {"learning_rate": 1e-3, "weight_decay": 0.01, "per_device_train_batch_size": 1}
    trainer = question_trainer(model, tmp_path, [{}], **options)
    optimizer = trainer.create_optimizer()
    assert trainer.create_optimizer() is optimizer, "factors are applied once"
    names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    seen = Counter()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter].removeprefix("base_model.model.").replace("modules_to_save.default.", "")
            factor, decay = group_in_meter(name)
            assert (group["lr"], group["weight_decay"]) == (pytest.approx(factor * 1e-3), decay), name
            seen[names[parameter]] += 1
    assert set(seen) == set(names.values()) and set(seen.values()) == {1}
    assert optimizer.param_groups[0]["lr"] == 1e-3, "the learning rate that Trainer logs"


def test_the_groups_of_meter_are_those_of_its_code():
    assert group_in_meter("co_attention.token_type_embeddings.weight") == (1.0, 0.01)
    assert group_in_meter("text_model.embeddings.token_type_embeddings.weight") == (1.0, 0.01)
    assert group_in_meter("classifier.1.weight") == (50.0, 0.01)
    assert group_in_meter("vision_model.layers.0.layer_norm1.weight") == (1.0, 0.0)
    assert group_in_meter("text_transform.weight") == (5.0, 0.01)


def test_the_recipes_have_the_learning_rates_of_meter():
    rad, slake = (read_recipe(name, ["train"]) for name in ("vqa_rad", "vqa_slake"))
    best = {"eval_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    assert slake == rad | {"benchmark": "slake"} | best
    expected = {"learning_rate": 5e-6, "warmup_steps": 0.1, "num_train_epochs": 10, "weight_decay": 0.01}
    expected |= {"head_learning_rate_factor": 50, "cross_modal_learning_rate_factor": 5, "adam_beta2": 0.98}
    assert {name: float(rad[name]) for name in expected} == expected
    assert "validation_fraction" not in rad and QuestionData.validation_fraction == 0


def test_without_validation_all_questions_are_used_and_the_last_step_is_saved(options, tmp_path, capsys):
    found = results(train(tmp_path, **options | {"validation_fraction": 0}))
    assert found["images"] == 30 and found["questions"] == 60 and found["validation"] is None
    assert found["saved_checkpoint"] == {"chosen": "last", "step": 2}
    assert "last, step 2" in capsys.readouterr().out


def test_the_best_checkpoint_on_validation_is_saved(options, tmp_path, monkeypatch):
    # The accuracy falls after the second evaluation, and the losses do not follow it.
    accuracies = iter([0.25, 0.75, 0.5])
    monkeypatch.setattr(vqa_training, "accuracy", lambda evaluated: {"accuracy": next(accuracies, 0.0)})
    steps = SHORT | {"save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": "true"}
    train(tmp_path, **options | steps)
    best = {"chosen": "best", "step": 4, "metric": "accuracy", "value": 0.75}
    assert results(tmp_path)["saved_checkpoint"] == best
    folders = (tmp_path, tmp_path / "checkpoint-4", tmp_path / "checkpoint-6")
    saved, of_step_4, last = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(saved[name], tensor) for name, tensor in of_step_4.items())
    assert any(not torch.equal(saved[name], tensor) for name, tensor in last.items())


def test_the_attainable_accuracy_counts_answers_that_the_remaining_training_questions_have(
    options, questions, tmp_path
):
    validation = results(train(tmp_path, **options | {"validation_fraction": 0.3, "seed": 4}))["validation"]
    splits = splits_of(questions, seed=4, validation_fraction=0.3)
    known = {question.answer.lower() for question in splits["train"]}
    for prefix, answer_type in TYPES.items():
        asked = [question for question in splits["validation"] if answer_type in (None, question.answer_type)]
        fraction = sum(question.answer.lower() in known for question in asked) / len(asked)
        assert validation[f"{prefix}attainable_accuracy"] == pytest.approx(fraction)
    assert validation["open_attainable_accuracy"] < 1, "the answer 4 is held out with its image"


def test_training_and_validation_have_no_common_image(questions):
    splits = splits_of(questions, validation_fraction=0.2)
    images = {split: {question.image_name for question in found} for split, found in splits.items()}
    assert len(images["validation"]) == 6 and not images["train"] & images["validation"]
    assert sum(map(len, splits.values())) == 60
    drawn = [splits_of(questions, seed, validation_fraction=0.2)["validation"] for seed in (0, 1)]
    same, other = ([question.name for question in found] for found in drawn)
    assert same == [question.name for question in splits["validation"]] != other


def test_slake_uses_its_own_validation_split(tmp_path):
    for split, count in (("train", 6), ("validate", 3), ("test", 3)):
        rows = []
        for number in range(count):
            shared = {"img_id": number, "img_name": f"xmlab_{split}_{number}/source.jpg", "answer": "CT"}
            shared |= {"answer_type": "OPEN", "base_type": "vqa", "triple": ["vhead", "_", "_"], "modality": "CT"}
            shared |= {"content_type": "Modality", "location": "Lung"}
            rows.append(shared | {"question": "What modality is used?", "q_lang": "en", "qid": 2 * number})
            rows.append(shared | {"question": "检查模态?", "q_lang": "zh", "qid": 2 * number + 1})
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    draw_slake_images(tmp_path / "imgs", tmp_path.glob("*.json"))
    splits = splits_of(tmp_path, benchmark="slake")
    assert {split: len(found) for split, found in splits.items()} == {"train": 6, "validation": 3}
    assert {question.question for found in splits.values() for question in found} == {"What modality is used?"}
    assert all("validate" in question.image_name for question in splits["validation"])


def test_a_resumed_run_equals_an_uninterrupted_one(options, short_run, tmp_path):
    shutil.copytree(short_run / "checkpoint-3", tmp_path / "killed" / "checkpoint-3")
    killed = train(tmp_path / "killed", **options | SHORT, resume_from_checkpoint="true")
    assert len(losses(short_run)) == 6 and losses(killed) == losses(short_run)
    assert results(killed)["validation"] == results(short_run)["validation"]


def test_accumulated_batches_have_the_losses_of_one_batch(options, short_run, tmp_path):
    changes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    accumulated = train(tmp_path, **options | SHORT | changes)
    # An epoch has three steps. Float32: the mean of four means, and an optimizer that divides by small gradients.
    assert losses(accumulated)[:3] == pytest.approx(losses(short_run)[:3], rel=1e-3)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(options, short_run, tmp_path):
    arguments = command(tmp_path / "two", **options | SHORT | {"per_device_train_batch_size": 8})
    biomedclip(*arguments, processes=2)
    found = results(tmp_path / "two")
    assert (found["processes"], found["batch_size"], found["validation"]["questions"]) == (2, 16, 6)
    # accelerate gives each process every second batch of 8. Float32: gradients are summed in two parts.
    assert losses(tmp_path / "two") == pytest.approx(losses(short_run), rel=1e-3)


def test_unusable_questions_are_counted_in_training_and_listed_in_evaluation(options, tmp_path):
    folder = write_set(tmp_path / "set")
    for number in (20, 35):
        picture = folder / "VQA_RAD Image Folder" / f"synpic{number:03}.png"
        picture.write_bytes(picture.read_bytes()[:300])
    rows = json.loads((folder / "VQA_RAD Dataset Public.json").read_text())
    rows[10]["answer"] = ""
    (folder / "VQA_RAD Dataset Public.json").write_text(json.dumps(rows))
    found = results(train(tmp_path / "run", **options | {"train_data": folder, "per_device_train_batch_size": 53}))
    assert found["substituted_rows"] == 4, "two questions in each of two epochs"
    assert found["questions_without_answer"] == 1
    assert measure(tmp_path / "run", folder, tmp_path / "results") == 0
    found = json.loads((tmp_path / "results" / "results.json").read_text())
    assert [row["name"] for row in found["data"]["damaged"]] == ["70", "71"]
    assert all("damaged or truncated" in row["reason"] for row in found["data"]["damaged"])
    assert found["metrics"]["questions"] == found["data"]["rows"] == 18


def test_unreadable_validation_images_are_an_error_before_training(options, tmp_path, capsys):
    folder = write_set(tmp_path / "set")
    for question in splits_of(folder, validation_fraction=0.1)["validation"]:
        (folder / "VQA_RAD Image Folder" / question.image_name).write_bytes(b"damaged")
    error = train_error(capsys, tmp_path / "run", 1, **options | {"train_data": folder})
    assert "validation questions: none of the 3 images" in error and not (tmp_path / "run").exists()


def test_an_adapter_of_the_encoders_is_trained_with_a_whole_head(options, questions, tmp_path):
    folder = train(tmp_path / "run", **options, lora_rank=4, merge_adapter="true")
    assert (folder / "adapter_model.safetensors").exists()
    model = AutoModelForVisualQuestionAnswering.from_pretrained(folder / "merged")
    assert model.config.num_labels == 6
    assert not any("lora" in name for name in model.state_dict())
    assert measure(folder / "merged", questions, tmp_path / "results") == 0


def test_only_missing_tensors_of_the_encoders_are_reported(small_checkpoint, tmp_path, capfd, caplog):
    load_for_training(str(small_checkpoint), ["yes", "no"], HEAD)
    assert "MISSING" not in capfd.readouterr().err and not caplog.records
    shutil.copytree(small_checkpoint, tmp_path / "less")
    tensors = load_file(tmp_path / "less" / "model.safetensors")
    lost = "vision_model.post_layernorm.weight"
    del tensors[lost]
    save_file(tensors, tmp_path / "less" / "model.safetensors", {"format": "pt"})
    load_for_training(str(tmp_path / "less"), ["yes", "no"], HEAD)
    assert f"lacks 1 tensors of the encoders, which are random: {lost}" in caplog.text


@pytest.mark.parametrize(
    ("status", "changes", "message"),
    [
        (1, {"per_device_train_batch_size": 64}, "has 54 questions, fewer than a batch of 64"),
        *((2, {"validation_fraction": value}, "at least 0 and less than 1") for value in (1, -0.1, "nan")),
        (2, {"validation_fraction": 0, "eval_strategy": "epoch"}, "--eval-strategy epoch needs validation questions"),
        (2, {"validation_fraction": 0, "eval_on_start": "true"}, "--eval-on-start true needs validation questions"),
        (2, {"validation_fraction": 0, "per_device_eval_batch_size": 4}, "hold out images"),
        (2, {"validation_fraction": 0, "load_best_model_at_end": "true"}, "load_best_model_at_end"),
        (2, {"benchmark": "slake", "validation_fraction": 0.1}, "no effect on slake"),
        (2, {"co_attention_config": "{"}, "--co-attention-config is not JSON"),
        (2, {"co_attention_config": {"num_attention_heads": 5}}, "must be a multiple of"),
        (2, {"co_attention_config": {"layers": 5}}, "BiomedCLIPCoAttentionConfig has no field layers"),
        (1, {"model_name_or_path": "nowhere"}, "nowhere is neither a folder"),
    ],
)
def test_invalid_options_are_errors(status, changes, message, options, tmp_path, capsys):
    error = train_error(capsys, tmp_path / "run", status, **options | changes)
    assert message.replace("_", "-") in error.replace("_", "-")


# Evaluation


@pytest.fixture(scope="module")
def measured(answerer, questions, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    assert measure(answerer, questions, folder) == 0
    return folder


@pytest.fixture(scope="module")
def found(measured) -> dict:
    """The content of `results.json`."""
    return json.loads((measured / "results.json").read_text())


def answers_in(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_the_table_has_one_line_per_row_in_80_columns(measured, answerer, questions, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert measure(answerer, questions, tmp_path) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    rows = [row for row in rows if row.count("]") == 1]
    assert [row.split()[1] for row in rows] == ["open", "closed", "all"] * 2, "accuracy, then token F1"


def test_metrics_equal_a_plain_loop_over_the_answers(measured, found):
    metrics, answers = found["metrics"], answers_in(measured)
    assert len(answers) == metrics["questions"] == 20 and metrics["images"] == 11
    for prefix, answer_type in TYPES.items():
        rows = [row for row in answers if answer_type in (None, row["answer_type"])]
        truth, given = ([str(row[key]).lower() for row in rows] for key in ("answer", "given"))
        assert metrics[f"{prefix}accuracy"] == accuracy_score(truth, given)
        assert metrics[f"{prefix}f1"] == pytest.approx(np.mean([row["f1"] for row in rows]))
        assert metrics[f"{prefix}f1"] >= metrics[f"{prefix}accuracy"], "a right answer has all tokens"
        attainable = sum(row["can_be_given"] for row in rows) / len(rows)
        assert metrics[f"{prefix}attainable_accuracy"] == attainable
        for name in (f"{prefix}accuracy", f"{prefix}f1"):
            low, high = metrics[f"{name}_interval"]
            assert low <= metrics[name] <= high
    assert all(row["f1"] == 1 for row in answers if row["right"])
    assert metrics["open_accuracy"] > 0.6 and metrics["closed_accuracy"] > 0.6
    # An answer that training does not have is wrong and counted.
    assert metrics["answers_never_seen"] == metrics["open_answers_never_seen"] == 1
    assert metrics["closed_answers_never_seen"] == 0 and metrics["open_attainable_accuracy"] == 0.9
    (unseen,) = [row for row in answers_in(measured) if not row["can_be_given"]]
    assert unseen["answer"] == "purple" and not unseen["right"]


def test_the_results_describe_model_data_and_published_values(found, answerer, small_checkpoint):
    assert (found["schema"], found["task"], found["benchmark"]) == (1, "visual-question-answering", "vqa_rad")
    assert found["model"]["name"] == str(answerer) and len(found["model"]["weights"]) == 16
    assert found["model"]["base_weights"] == load_dual_encoder(str(small_checkpoint)).weights
    assert found["data"]["rows"] == 20 and found["data"]["split"] == "test" and found["data"]["fingerprint"]
    assert found["paper"]["accuracy"] == 0.727 and found["paper"]["f1"] == 0.7313 and found["paper_source"]
    assert found["settings"]["f1_tokenizer"] == "words"
    assert any("The published value counts GPT-2 tokens" in note for note in found["data"]["notes"])
    ours = found["published"][0]
    assert ours["model"] == "BiomedCLIP" and "GPT-2 tokens" in ours["source"] and ours["values"]["f1"] == 0.7313
    leaks = found["data"]["leaks"]
    assert leaks["same_name"] == leaks["same_bytes"] == 1 and leaks["test_images"] == 11, "one is in both splits"


@pytest.mark.slow
def test_two_processes_share_the_questions(measured, found, answerer, questions, tmp_path):
    (tmp_path / "in_small_parts.py").write_text(
        "import sys\n"
        "from biomedclip.run_scripts.evaluation import visual_question_answering\n"
        "from biomedclip.run_scripts.main import main\n"
        "visual_question_answering.PART = 8\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [tmp_path / "in_small_parts.py", *evaluation_command(answerer, questions, tmp_path / "two")]
    assert run_python(*command, processes=2).returncode == 0
    assert answers_in(tmp_path / "two") == answers_in(measured)
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    assert two["metrics"] == found["metrics"] and two["data"] == found["data"]


def test_answers_and_probabilities_are_those_of_the_pipeline(measured, answerer, questions):
    answer = pipeline("visual-question-answering", model=str(answerer), device="cpu")
    for row in answers_in(measured)[:6]:
        picture = Image.open(questions / "VQA_RAD Image Folder" / row["image"])
        best = answer(picture, row["question"], top_k=5)
        assert [found["answer"] for found in best] == [name for name, _ in row["top_answers"]]
        assert [found["score"] for found in best] == pytest.approx([p for _, p in row["top_answers"]], abs=1e-4)
        assert row["top_answers"][0] == [row["given"], row["score"]]


def test_the_metric_module_loads_without_a_network(measured, found, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module = evaluate.load(str(METRICS / "visual_question_answering"), cache_dir=str(tmp_path))
    answers = answers_in(measured)
    computed = module.compute(
        predictions=[row["given"] for row in answers],
        references=[str(row["answer"]) for row in answers],
        answer_types=[row["answer_type"] for row in answers],
    )
    names = [f"{prefix}{metric}" for metric in ("accuracy", "f1") for prefix in TYPES]
    assert computed == pytest.approx({name: found["metrics"][name] for name in names})
    alone = module.compute(predictions=["Yes."], references=["yes"], answer_types=["closed"])
    without_open = {"open_accuracy": None, "open_f1": None}
    assert alone == dict.fromkeys(["accuracy", "closed_accuracy", "f1", "closed_f1"], 1.0) | without_open


@pytest.mark.parametrize(("count", "pictures"), [("4", 4), ("1000", 20), ("0", 0)])
def test_examples_are_written_and_listed(count, pictures, answerer, questions, tmp_path):
    assert measure(answerer, questions, tmp_path, "--examples", count, "--seed", "1") == 0
    listed = json.loads((tmp_path / "results.json").read_text()).get("examples", [])
    assert len(listed) == pictures and all((tmp_path / example["file"]).is_file() for example in listed)
    assert (tmp_path / "examples.md").exists() == (pictures > 0)
    if pictures == 4:
        assert "with seed 1" in (tmp_path / "examples.md").read_text()
        wrong = sum(not row["right"] for row in answers_in(tmp_path))
        assert sum(not example["right"] for example in listed) == min(2, wrong) > 0


def byte_level_tokenizer(folder: Path) -> Path:
    """Save a tokenizer of the kind of GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    tokenizer.train_from_iterator(["red green blue yes no"] * 5, trainer)
    GPT2Tokenizer(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def test_token_f1_counts_the_tokens_of_a_given_tokenizer(found, answerer, questions, tmp_path, capsys):
    folder = byte_level_tokenizer(tmp_path / "gpt2")
    assert measure(answerer, questions, tmp_path / "results", "--f1-tokenizer", str(folder)) == 0
    with_tokens = json.loads((tmp_path / "results" / "results.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = []
    for row in answers_in(tmp_path / "results"):
        given, right = (Counter(tokenizer.tokenize(row[key].lower())) for key in ("given", "answer"))
        expected.append(2 * (given & right).total() / (given.total() + right.total()))
        assert row["f1"] == pytest.approx(expected[-1])
    assert with_tokens["metrics"]["f1"] == pytest.approx(np.mean(expected))
    assert with_tokens["settings"]["f1_tokenizer"] == str(folder)
    assert with_tokens["metrics"]["accuracy"] == found["metrics"]["accuracy"]
    assert not any("GPT-2" in note for note in with_tokens["data"]["notes"])
    assert "tokens: " in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["missing", "empty", "damaged"])
def test_an_invalid_tokenizer_is_an_error_before_the_model_is_loaded(kind, answerer, questions, tmp_path, capsys):
    folder = tmp_path / kind
    if kind != "missing":
        folder.mkdir()
    if kind == "damaged":
        (byte_level_tokenizer(folder) / "tokenizer.json").write_text('{"model": {"type": "none"}}')
    assert measure(answerer, questions, tmp_path / "results", "--f1-tokenizer", str(folder)) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert f"--f1-tokenizer {folder}: the tokenizer cannot be loaded" in error and "Traceback" not in error
    assert not (tmp_path / "results").exists()


def test_code_of_a_tokenizer_folder_does_not_run_without_trust(answerer, questions, tmp_path, capsys):
    folder = byte_level_tokenizer(tmp_path / "gpt2")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass OwnTokenizer: pass\n")
    measure(answerer, questions, tmp_path / "results", "--f1-tokenizer", str(folder))
    assert not (tmp_path / "ran").exists() and "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "held_out", "open_questions"),
    [("data/osfstorage", 0.0, 0.391), ("data/osfstorage", 0.1, 0.385)]
    + [("awenbocc_split", 0.0, 0.771), ("awenbocc_split", 0.1, 0.743)],
)
def test_the_documented_attainable_accuracies_are_those_of_vqa_rad(folder, held_out, open_questions, shared_data):
    root = shared_data / "vqa_rad"
    images = str(root / "data" / "osfstorage" / "VQA_RAD Image Folder")
    training = splits_of(root / folder, image_folder=images, validation_fraction=held_out)["train"]
    known = set(answer_vocabulary(question.answer for question in training))
    test = load_benchmark("vqa_rad", root / folder, image_folder=images).questions
    answers = [normalize_answer(question.answer) for question in test if question.answer_type == "open"]
    fraction = sum(answer in known for answer in answers) / 179
    assert len(answers) == 179 and fraction == pytest.approx(open_questions, abs=5e-4)
    page = (Path(__file__).parents[3] / "docs" / "fine_tuning.md").read_text() + (RECIPES / "vqa_rad.yaml").read_text()
    assert page.count(f"{100 * open_questions:.1f} %") >= 2, "in the documentation and the recipe"


def rows_of(right: list[bool], types: list[str]) -> list[dict]:
    return [
        {"answer": "yes", "right": hit, "answer_type": kind, "image": f"{n}", "can_be_given": True}
        for n, (hit, kind) in enumerate(zip(right, types, strict=True))
    ]


@pytest.mark.parametrize("hit", [True, False])
def test_all_right_is_an_accuracy_of_one_and_all_wrong_of_zero(hit):
    metrics = answer_metrics(rows_of([hit] * 10, ["open", "closed"] * 5), seed=0)
    for name, count in (("accuracy", 10), ("open_accuracy", 5), ("closed_accuracy", 5)):
        exact = binomtest(count * hit, count).proportion_ci()
        assert metrics[name] == float(hit) and metrics[f"{name}_interval"] == pytest.approx(list(exact), abs=1e-12)
    closed = answer_metrics(rows_of([True, False], ["closed", "closed"]), seed=0)
    assert closed["open_accuracy"] is None and closed["closed_accuracy"] == 0.5


def test_a_partly_right_answer_has_a_partial_token_f1():
    partly, right = rows = rows_of([False, True], ["open", "closed"])
    partly["f1"], right["f1"] = 0.5, 1.0
    metrics = f1_metrics(rows, seed=0)
    assert (metrics["f1"], metrics["open_f1"], metrics["closed_f1"]) == (0.75, 0.5, 1.0)
    partly["f1"] = None
    metrics = f1_metrics(rows, seed=0)
    assert metrics["f1"] is metrics["open_f1"] is metrics["f1_interval"] is None and metrics["closed_f1"] == 1
    assert set(metrics["undefined"]) == {"f1", "open_f1"}


def test_questions_about_one_image_are_not_independent():
    generator = np.random.default_rng(0)
    right = np.repeat(generator.random(20) < 0.5, 10)
    rows = rows_of(right.tolist(), ["closed"] * 200)
    apart = answer_metrics(rows, seed=0)["accuracy_interval"]
    for number, row in enumerate(rows):
        row["image"] = f"{number // 10}"
    together = answer_metrics(rows, seed=0)["accuracy_interval"]
    assert together[1] - together[0] > 2 * (apart[1] - apart[0]), "sqrt(10) in theory"


def test_the_baseline_gives_the_most_frequent_training_answer_of_each_type(questions):
    training, test = (load_benchmark("vqa_rad", str(questions), split=split).questions for split in ("train", "test"))
    rows = [{"answer": row.answer, "answer_type": row.answer_type} for row in test]
    found = majority_baseline(rows, training)
    # Of 30 images ten are red, one of them with the answer 4.
    assert found["most_frequent_answers"] == {"open": "blue", "closed": "no"}
    assert found["open_chance"] == sum(row.answer == "Blue" for row in test) / 10
    assert found["closed_chance"] == sum(row.answer == "no" for row in test) / 10
    assert found["chance"] == pytest.approx((found["open_chance"] + found["closed_chance"]) / 2)


def test_answers_do_not_depend_on_the_batch_size_or_on_an_interruption(answerer, questions, tmp_path, monkeypatch):
    asked, model = load_benchmark("vqa_rad", str(questions)), load_answerer(str(answerer))
    one, many = (answer_questions(model, asked, tmp_path / f"{size}", batch_size=size)[0] for size in (1, 7))
    assert [row["given"] for row in one] == [row["given"] for row in many]
    monkeypatch.setattr(visual_question_answering, "PART", 8)
    whole = answer_questions(model, asked, tmp_path / "whole")
    calls = []

    def forward(*args, **inputs):
        calls.append(len(inputs["input_ids"]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return type(model.model).forward(model.model, *args, **inputs)

    monkeypatch.setattr(model.model, "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        answer_questions(model, asked, tmp_path / "killed")
    assert answer_questions(model, asked, tmp_path / "killed") == whole
    assert calls == [8, 8, 8, 4], "only the interrupted part is repeated"
    assert answer_questions(model, asked, tmp_path / "killed") == whole and len(calls) == 4


def test_invalid_evaluations_are_errors(answerer, small_checkpoint, questions, tmp_path, capsys):
    assert measure(answerer, questions, tmp_path, "--examples", "-1") == 2
    assert "--examples must be" in capsys.readouterr().err
    assert measure(small_checkpoint, questions, tmp_path) == 1
    error = capsys.readouterr().err
    assert "has no trained head" in error and "MISSING" not in error
    without_benchmark = ["evaluate", "visual-question-answering", "--model", answerer, "--data", questions]
    assert main([*map(str, without_benchmark), "--output-dir", str(tmp_path)]) == 2
    assert "--benchmark must be vqa_rad or slake" in capsys.readouterr().err
