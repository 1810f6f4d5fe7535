"""Visual question answering through the commands: from a benchmark's folder to a model that is measured on it."""

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
from helpers.commands import losses, on_two_processes
from PIL import Image
from safetensors.torch import load_file, save_file
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


COLOURS = {"red": (200, 30, 30), "green": (30, 180, 30), "blue": (40, 40, 210)}
HEAD = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "initializer_range": 0.2,
}
SHORT = ["--max-steps", "6", "--save-strategy", "steps", "--save-steps", "3", "--logging-steps", "1"]
METRICS = Path(evaluation.__file__).parent / "metrics"


def write_set(folder: Path, images: int = 40) -> Path:
    """VQA-RAD's layout: an open and a closed question about each of some plain images, the last quarter for tests."""
    pictures = folder / "VQA_RAD Image Folder"
    pictures.mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows = []
    for number in range(images):
        colour = list(COLOURS)[number % 3]
        noise = generator.integers(-25, 26, (40, 40, 3))
        pixels = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
        name = f"synpic{number:03}.png"
        Image.fromarray(pixels).save(pictures / name)
        test = "test_" if number >= 3 * images // 4 else ""
        asked = [
            ("chart of figure", colour.capitalize(), "OPEN"),
            ("is this", "Yes" if colour == "red" else "no", "CLOSED "),
        ]
        for question, answer, answer_type in asked:
            rows.append(
                {
                    "qid": str(len(rows)),
                    "phrase_type": f"{test}freeform",
                    "image_name": name,
                    "image_organ": "HEAD",
                    "question": question,
                    "question_rephrase": "NULL",
                    "answer": answer,
                    "answer_type": answer_type,
                }
            )
    # An answer that is a number, one that training never has, and an image of both splits.
    rows[0]["answer"] = 4
    rows[-2]["answer"] = "purple"
    rows[-1]["image_name"] = rows[0]["image_name"]
    (folder / "VQA_RAD Dataset Public.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("questions") / "set")


@pytest.fixture(scope="module")
def train(small_checkpoint):
    """Train with the recipe `vqa_rad`, a tenth of the images held out, and further options. Return the exit status."""

    def run(folder: Path, output_dir: Path, *options: str) -> int:
        arguments = ["train", "--config", "vqa_rad", "--model-name-or-path", small_checkpoint, "--train-data", folder]
        arguments += ["--output-dir", output_dir, "--dataloader-num-workers", "0", "--report-to", "none"]
        arguments += ["--co-attention-config", json.dumps(HEAD), "--learning-rate", "2e-4"]
        arguments += ["--validation-share", "0.1"]
        return main([*map(str, arguments), *options])

    return run


@pytest.fixture(scope="module")
def answerer(train, questions, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("answerer") / "run"
    assert train(questions, folder, "--num-train-epochs", "30", "--save-strategy", "no") == 0
    return folder


def data_of(folder: Path, **options) -> QuestionData:
    """Options of the training data."""
    defaults = {"model_name_or_path": "model", "benchmark": "vqa_rad"}
    return QuestionData(train_data=str(folder), **defaults | options)


def results(folder: Path) -> dict:
    return json.loads((folder / "train_results.json").read_text())


def measure(model: Path, data: Path, output_dir: Path, *options: str) -> int:
    arguments = ["evaluate", "visual-question-answering", "--model", model, "--data", data, "--benchmark", "vqa_rad"]
    return main([*map(str, arguments), "--output-dir", str(output_dir), *options])


# Training


def test_it_learns_to_answer_what_it_sees(answerer):
    found = results(answerer)
    assert found["answers"] == 6 and found["images"] == 27 and found["questions"] == 54
    held_out = found["validation"]
    assert held_out["images"] == 3 and held_out["questions"] == 6 and held_out["unreadable_questions"] == 0
    # Who always gives the most frequent answers has half of them; six of six is luck once in sixty times.
    assert held_out["accuracy"] > 0.8
    assert held_out["accuracy"] == (held_out["open_accuracy"] + held_out["closed_accuracy"]) / 2


def test_a_small_model_learns_sixteen_questions_by_heart(small_processor, tmp_path):
    # Four words about each of four pictures: neither the question nor the picture alone tells the answer.
    answers = [f"{number}" for number in range(16)]
    squares = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)
    pictures = [Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST) for pixels in squares]
    words = ["brain", "chest", "chart", "figure"]
    rows = [
        {"image": pictures[number // 4], "question": words[number % 4], "answer": answer, "name": answer}
        for number, answer in enumerate(answers)
    ]
    torch.manual_seed(0)
    model = BiomedCLIPForVisualQuestionAnswering(
        BiomedCLIPConfig(
            **SMALL_CONFIG,
            co_attention_config=HEAD,
            id2label=dict(enumerate(answers)),
            label2id={answer: number for number, answer in enumerate(answers)},
        )
    )
    collator = VisualQuestionCollator(small_processor, model.config.label2id)
    trainer = QuestionTrainer(
        model,
        SupervisedArguments(
            output_dir=str(tmp_path),
            max_steps=150,
            per_device_train_batch_size=16,
            learning_rate=2e-3,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        head_factor=1.0,
        cross_modal_factor=1.0,
        train_dataset=rows,
        data_collator=collator,
        eval_data_collator=collator,
    )
    trainer.train()
    assert trainer.evaluate(rows)["eval_accuracy"] == 1.0


# Lists of names of METER's `set_schedule`, and METER's names for the modules of this model.
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
    """Learning rate (as a factor) and weight decay that METER's `set_schedule` gives a parameter of this model."""
    start = next(start for start in METER_NAMES if name.startswith(start))
    theirs = METER_NAMES[start] + name.removeprefix(start)
    if not theirs.startswith("vqa_classifier"):  # a Sequential: its LayerNorm is called 1
        theirs = re.sub(r"(post_)?layer_?norm\d?\.", "LayerNorm.", theirs)
    decay = 0.0 if any(part in theirs for part in NO_DECAY) else 0.01
    return 5.0 if "cross_modal" in theirs else 50.0 if "vqa_classifier" in theirs else 1.0, decay


@pytest.mark.parametrize("adapter", [False, True])
def test_learning_rates_and_weight_decay_are_those_of_meters_set_schedule(adapter, tmp_path):
    model = BiomedCLIPForVisualQuestionAnswering(BiomedCLIPConfig(**SMALL_CONFIG, co_attention_config=HEAD))
    if adapter:
        model = add_adapter(model, AdapterOptions(lora_rank=2), trained_whole=NEW_PARTS)
    args = SupervisedArguments(
        output_dir=str(tmp_path), learning_rate=1e-3, weight_decay=0.01, use_cpu=True, per_device_train_batch_size=1
    )
    trainer = QuestionTrainer(
        model,
        args,
        head_factor=50,
        cross_modal_factor=5,
        train_dataset=[{}],
        data_collator=None,
        eval_data_collator=None,
    )
    optimizer = trainer.create_optimizer()
    assert trainer.create_optimizer() is optimizer, "and not with rates multiplied twice"
    names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    seen = Counter()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter].removeprefix("base_model.model.").replace("modules_to_save.default.", "")
            factor, decay = group_in_meter(name)
            assert (group["lr"], group["weight_decay"]) == (pytest.approx(factor * 1e-3), decay), name
            seen[names[parameter]] += 1
    assert set(seen) == set(names.values()) and set(seen.values()) == {1}
    assert optimizer.param_groups[0]["lr"] == 1e-3, "what Trainer logs"


def test_token_type_embeddings_learn_at_the_rate_of_the_towers_and_the_classifiers_norm_decays():
    assert group_in_meter("co_attention.token_type_embeddings.weight") == (1.0, 0.01)
    assert group_in_meter("text_model.embeddings.token_type_embeddings.weight") == (1.0, 0.01)
    assert group_in_meter("classifier.1.weight") == (50.0, 0.01)
    assert group_in_meter("vision_model.layers.0.layer_norm1.weight") == (1.0, 0.0)
    assert group_in_meter("text_transform.weight") == (5.0, 0.01)


def test_the_recipes_have_the_rates_of_meter_and_one_builds_on_the_other():
    rad, slake = (read_recipe(name, ["train"]) for name in ("vqa_rad", "vqa_slake"))
    best = {"eval_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    assert slake == rad | {"benchmark": "slake"} | best
    expected = {"learning_rate": 5e-6, "warmup_steps": 0.1, "num_train_epochs": 10, "weight_decay": 0.01}
    expected |= {"head_learning_rate_factor": 50, "cross_modal_learning_rate_factor": 5, "adam_beta2": 0.98}
    assert {name: float(rad[name]) for name in expected} == expected


def test_the_recipe_of_vqa_rad_trains_on_all_questions_and_saves_the_last_step(train, questions, tmp_path, capsys):
    assert train(questions, tmp_path, *SHORT, "--validation-share", "0") == 0
    found = results(tmp_path)
    assert found["images"] == 30 and found["questions"] == 60 and found["validation"] is None
    assert found["saved_checkpoint"] == {"chosen": "last", "step": 6}
    assert "last, step 6" in capsys.readouterr().out
    assert "validation_share" not in read_recipe("vqa_rad", ["train"]), "the recipe leaves the default, 0"
    assert data_of("data").validation_share == 0


def test_the_best_checkpoint_on_validation_is_saved_and_named(train, questions, tmp_path, monkeypatch):
    # Accuracies that fall after the second evaluation, and losses that do not follow them.
    found_accuracies = iter([0.25, 0.75, 0.5])
    monkeypatch.setattr(vqa_training, "accuracy", lambda evaluated: {"accuracy": next(found_accuracies, 0.0)})
    steps = ["--max-steps", "6", "--logging-steps", "1", "--save-strategy", "steps", "--save-steps", "2"]
    steps += ["--eval-strategy", "steps", "--eval-steps", "2", "--load-best-model-at-end", "true"]
    assert train(questions, tmp_path, *steps) == 0
    best = {"chosen": "best", "step": 4, "metric": "accuracy", "value": 0.75}
    assert results(tmp_path)["saved_checkpoint"] == best
    saved, of_step_4 = (load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "checkpoint-4"))
    assert all(torch.equal(saved[name], tensor) for name, tensor in of_step_4.items())
    last = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert any(not torch.equal(saved[name], tensor) for name, tensor in last.items())


def test_the_attainable_accuracy_counts_the_answers_that_training_has_after_holding_out(train, questions, tmp_path):
    assert train(questions, tmp_path, *SHORT, "--validation-share", "0.3", "--seed", "4") == 0
    splits = question_splits(
        data_of(questions, validation_share=0.3),
        seed=4,
    )
    known = {question.answer.lower() for question in splits["train"]}
    validation = results(tmp_path)["validation"]
    for prefix, answer_type in (("", None), ("open_", "open"), ("closed_", "closed")):
        asked = [question for question in splits["validation"] if answer_type in (None, question.answer_type)]
        share = sum(question.answer.lower() in known for question in asked) / len(asked)
        assert validation[f"{prefix}attainable_accuracy"] == pytest.approx(share)
    assert validation["open_attainable_accuracy"] < 1, "the answer 4 is held out with its image"


def test_no_image_is_trained_on_and_validated_on(questions):
    data = QuestionData(train_data=str(questions), model_name_or_path="model", validation_share=0.2)
    splits = question_splits(data, seed=0)
    images = {split: {question.image_name for question in found} for split, found in splits.items()}
    assert len(images["validation"]) == 6 and not images["train"] & images["validation"]
    assert sum(map(len, splits.values())) == 60
    names = [question.name for question in question_splits(data, seed=0)["validation"]]
    assert names == [question.name for question in splits["validation"]]
    assert names != [question.name for question in question_splits(data, seed=1)["validation"]]


def test_slake_is_validated_on_the_split_that_it_brings(tmp_path):
    for split, count in (("train", 6), ("validate", 3), ("test", 3)):
        rows = []
        for number in range(count):
            name = f"xmlab_{split}_{number}/source.jpg"
            (tmp_path / "imgs" / name).parent.mkdir(parents=True)
            Image.new("L", (30, 30), 20 * number).save(tmp_path / "imgs" / name)
            shared = {"img_id": number, "img_name": name, "answer_type": "OPEN", "base_type": "vqa"}
            shared |= {"triple": ["vhead", "_", "_"], "content_type": "Modality", "location": "Lung", "modality": "CT"}
            english = {"question": "What modality is used?", "answer": "CT", "q_lang": "en", "qid": 2 * number}
            chinese = {"question": "检查模态?", "answer": "CT", "q_lang": "zh", "qid": 2 * number + 1}
            rows += [shared | english, shared | chinese]
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    splits = question_splits(data_of(tmp_path, benchmark="slake"), seed=0)
    assert {split: len(found) for split, found in splits.items()} == {"train": 6, "validation": 3}
    assert {question.question for found in splits.values() for question in found} == {"What modality is used?"}
    assert all("validate" in question.image_name for question in splits["validation"])


def test_a_run_that_goes_on_from_a_checkpoint_equals_an_undisturbed_one(train, questions, tmp_path):
    assert train(questions, tmp_path / "whole", *SHORT) == 0
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "killed" / "checkpoint-3")
    assert train(questions, tmp_path / "killed", *SHORT, "--resume-from-checkpoint", "true") == 0
    assert len(losses(tmp_path / "whole")) == 6 and losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert results(tmp_path / "killed")["validation"] == results(tmp_path / "whole")["validation"]


def test_accumulated_batches_give_the_losses_of_one_batch(train, questions, tmp_path):
    options = [*SHORT, "--max-steps", "3"]
    assert train(questions, tmp_path / "one", *options, "--per-device-train-batch-size", "16") == 0
    accumulated = ["--per-device-train-batch-size", "4", "--gradient-accumulation-steps", "4"]
    assert train(questions, tmp_path / "four", *options, *accumulated) == 0
    # Float32: the mean of four means, and an optimizer that divides by small gradients.
    assert losses(tmp_path / "four") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


def test_what_cannot_be_used_is_counted_in_training_and_named_in_evaluation(train, tmp_path):
    folder = write_set(tmp_path / "set")
    for number in (20, 35):
        picture = folder / "VQA_RAD Image Folder" / f"synpic{number:03}.png"
        picture.write_bytes(picture.read_bytes()[:300])
    rows = json.loads((folder / "VQA_RAD Dataset Public.json").read_text())
    rows[10]["answer"] = ""
    (folder / "VQA_RAD Dataset Public.json").write_text(json.dumps(rows))
    assert train(folder, tmp_path / "run", *SHORT, "--per-device-train-batch-size", "53") == 0
    assert results(tmp_path / "run")["substituted_rows"] == 12, "two questions in each of six epochs"
    assert results(tmp_path / "run")["questions_without_answer"] == 1
    assert measure(tmp_path / "run", folder, tmp_path / "results") == 0
    found = json.loads((tmp_path / "results" / "results.json").read_text())
    assert [row["name"] for row in found["data"]["damaged"]] == ["70", "71"]
    assert all("damaged or truncated" in row["reason"] for row in found["data"]["damaged"])
    assert found["metrics"]["questions"] == found["data"]["rows"] == 18


def test_validation_images_that_cannot_be_read_are_refused_before_training(train, tmp_path, capsys):
    folder = write_set(tmp_path / "set")
    held_out = question_splits(
        data_of(folder, validation_share=0.1),
        seed=0,
    )["validation"]
    for name in {question.image_name for question in held_out}:
        (folder / "VQA_RAD Image Folder" / name).write_bytes(b"damaged")
    assert train(folder, tmp_path / "run", *SHORT) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "validation questions: none of the 3 images" in error and not (tmp_path / "run").exists()


def test_an_adapter_is_trained_on_the_towers_beside_a_whole_head(train, questions, answerer, tmp_path):
    options = [*SHORT, "--lora-rank", "4", "--merge-adapter", "true"]
    assert train(questions, tmp_path / "run", *options) == 0
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()
    model = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path / "run" / "merged")
    assert model.config.num_labels == 6
    assert not any("lora" in name for name in model.state_dict())
    assert measure(tmp_path / "run" / "merged", questions, tmp_path / "results") == 0


def test_two_processes_train_what_one_does(train, questions, small_checkpoint, tmp_path):
    options = [*SHORT, "--max-steps", "3"]
    assert train(questions, tmp_path / "one", *options, "--per-device-train-batch-size", "16") == 0
    command = [
        "-m",
        "biomedclip.run_scripts.main",
        "train",
        "--config",
        "vqa_rad",
        "--model-name-or-path",
        small_checkpoint,
    ]
    command += ["--train-data", questions, "--output-dir", tmp_path / "two", "--report-to", "none"]
    command += ["--co-attention-config", json.dumps(HEAD), "--learning-rate", "2e-4", "--dataloader-num-workers", "0"]
    command += ["--validation-share", "0.1"]
    on_two_processes(*command, *options, "--per-device-train-batch-size", "8")
    assert results(tmp_path / "two")["processes"] == 2 and results(tmp_path / "two")["batch_size"] == 16
    # Accelerate hands each process every second batch of 8 of the same order. Float32: gradients summed in two parts.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    assert results(tmp_path / "two")["validation"]["questions"] == 6


# Measuring


@pytest.fixture(scope="module")
def measured(answerer, questions, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    assert measure(answerer, questions, folder) == 0
    return folder


def test_the_table_fits_80_columns_a_row_a_line(measured, answerer, questions, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert measure(answerer, questions, tmp_path) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    rows = [row for row in rows if row.count("]") == 1]
    assert [row.split()[1] for row in rows] == ["open", "closed", "all"] * 2, "accuracy, then token F1"


def answers_in(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_accuracies_are_those_of_a_plain_loop_over_the_answers_that_are_left(measured):
    metrics = json.loads((measured / "results.json").read_text())["metrics"]
    answers = answers_in(measured)
    assert len(answers) == metrics["questions"] == 20 and metrics["images"] == 11
    for answer_type, name in (("open", "open_accuracy"), ("closed", "closed_accuracy"), ("", "accuracy")):
        rows = [row for row in answers if answer_type in ("", row["answer_type"])]
        truth, given = ([str(row[key]).lower() for row in rows] for key in ("answer", "given"))
        assert metrics[name] == accuracy_score(truth, given)
        low, high = metrics[f"{name}_interval"]
        assert low <= metrics[name] <= high
    assert metrics["open_accuracy"] > 0.6 and metrics["closed_accuracy"] > 0.6, "and it has learned something"


def test_an_answer_that_training_does_not_have_is_wrong_and_counted(measured):
    metrics = json.loads((measured / "results.json").read_text())["metrics"]
    assert metrics["answers_never_seen"] == metrics["open_answers_never_seen"] == 1
    assert metrics["closed_answers_never_seen"] == 0
    (unseen,) = [row for row in answers_in(measured) if not row["can_be_given"]]
    assert unseen["answer"] == "purple" and not unseen["right"]


def test_the_results_say_what_was_measured_on_what(measured, answerer, small_checkpoint):
    found = json.loads((measured / "results.json").read_text())
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


def test_two_processes_answer_what_one_does_each_a_share(measured, answerer, questions, tmp_path):
    (tmp_path / "in_small_parts.py").write_text(
        "import sys\n"
        "from biomedclip.run_scripts.evaluation import visual_question_answering\n"
        "from biomedclip.run_scripts.main import main\n"
        "visual_question_answering.PART = 8\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [
        "evaluate",
        "visual-question-answering",
        "--model",
        answerer,
        "--data",
        questions,
        "--benchmark",
        "vqa_rad",
    ]
    on_two_processes(tmp_path / "in_small_parts.py", *command, "--output-dir", tmp_path / "two")
    assert answers_in(tmp_path / "two") == answers_in(measured)
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (measured, tmp_path / "two"))
    assert two["metrics"] == one["metrics"] and two["data"] == one["data"]


def test_the_answers_are_those_of_the_pipeline(measured, answerer, questions):
    answer = pipeline("visual-question-answering", model=str(answerer), device="cpu")
    for row in answers_in(measured)[:6]:
        picture = Image.open(questions / "VQA_RAD Image Folder" / row["image"])
        (best,) = answer(picture, row["question"], top_k=1)
        assert best["answer"] == row["given"] and best["score"] == pytest.approx(row["score"], abs=1e-4)


def test_the_metric_is_a_module_that_is_loaded_without_a_network(measured, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module = evaluate.load(str(METRICS / "visual_question_answering"), cache_dir=str(tmp_path))
    answers = answers_in(measured)
    found = module.compute(
        predictions=[row["given"] for row in answers],
        references=[str(row["answer"]) for row in answers],
        answer_types=[row["answer_type"] for row in answers],
    )
    metrics = json.loads((measured / "results.json").read_text())["metrics"]
    names = [f"{prefix}{metric}" for metric in ("accuracy", "f1") for prefix in ("", "open_", "closed_")]
    assert found == pytest.approx({name: metrics[name] for name in names})
    alone = module.compute(predictions=["Yes."], references=["yes"], answer_types=["closed"])
    assert alone == dict.fromkeys(["accuracy", "closed_accuracy", "f1", "closed_f1"], 1.0) | {
        "open_accuracy": None,
        "open_f1": None,
    }


def test_answers_name_the_best_five_with_their_probabilities(measured, answerer):
    for row in answers_in(measured):
        best = row["top_answers"]
        assert len(best) == 5 and best[0] == [row["given"], row["score"]]
        assert [score for _, score in best] == sorted((score for _, score in best), reverse=True)
        assert len({answer for answer, _ in best}) == 5


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


def test_a_negative_number_of_examples_is_refused(answerer, questions, tmp_path, capsys):
    assert measure(answerer, questions, tmp_path, "--examples", "-1") == 2
    assert "--examples must be 0 or more, not -1" in capsys.readouterr().err


def byte_level_tokenizer(folder: Path) -> Path:
    """A tokenizer of GPT-2's kind, trained on a few words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    tokenizer.train_from_iterator(["red green blue yes no"] * 5, trainer)
    GPT2Tokenizer(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def test_token_f1_counts_the_tokens_of_a_named_tokenizer(measured, answerer, questions, tmp_path, capsys):
    folder = byte_level_tokenizer(tmp_path / "gpt2")
    assert measure(answerer, questions, tmp_path / "results", "--f1-tokenizer", str(folder)) == 0
    found = json.loads((tmp_path / "results" / "results.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = []
    for row in answers_in(tmp_path / "results"):
        given, right = (Counter(tokenizer.tokenize(row[key].lower())) for key in ("given", "answer"))
        common = (given & right).total()
        expected.append(2 * common / (given.total() + right.total()))
        assert row["f1"] == pytest.approx(expected[-1])
    assert found["metrics"]["f1"] == pytest.approx(np.mean(expected))
    assert found["settings"]["f1_tokenizer"] == str(folder)
    words = json.loads((measured / "results.json").read_text())
    assert found["metrics"]["accuracy"] == words["metrics"]["accuracy"]
    assert not any("GPT-2" in note for note in found["data"]["notes"])
    assert "tokens: " in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["missing", "empty", "damaged"])
def test_a_tokenizer_that_cannot_be_loaded_is_refused_before_the_model_is_loaded(
    kind, answerer, questions, tmp_path, capsys
):
    folder = tmp_path / kind
    if kind == "empty":
        folder.mkdir()
    elif kind == "damaged":
        byte_level_tokenizer(folder)
        (folder / "tokenizer.json").write_text('{"model": {"type": "none"}}')
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


def test_token_f1_is_the_mean_over_questions_with_an_interval_over_images(measured):
    metrics, answers = json.loads((measured / "results.json").read_text())["metrics"], answers_in(measured)
    for prefix, answer_type in (("", None), ("open_", "open"), ("closed_", "closed")):
        scores = [row["f1"] for row in answers if answer_type in (None, row["answer_type"])]
        assert metrics[f"{prefix}f1"] == pytest.approx(np.mean(scores))
        low, high = metrics[f"{prefix}f1_interval"]
        assert low <= metrics[f"{prefix}f1"] <= high
        assert metrics[f"{prefix}f1"] >= metrics[f"{prefix}accuracy"], "a right answer has all tokens"
    assert all(row["f1"] == 1 for row in answers if row["right"])


def test_a_partly_right_answer_has_a_part_of_the_token_f1():
    rows = rows_of([False, True], ["open", "closed"])
    for row, f1 in zip(rows, (0.5, 1.0), strict=True):
        row["f1"] = f1
    metrics = f1_metrics(rows, seed=0)
    assert (metrics["f1"], metrics["open_f1"], metrics["closed_f1"]) == (0.75, 0.5, 1.0)
    rows[0]["f1"] = None
    metrics = f1_metrics(rows, seed=0)
    assert metrics["f1"] is metrics["open_f1"] is metrics["f1_interval"] is None and metrics["closed_f1"] == 1
    assert set(metrics["undefined"]) == {"f1", "open_f1"}


def test_the_attainable_accuracy_is_the_share_of_answers_that_the_model_can_give(measured):
    metrics, answers = json.loads((measured / "results.json").read_text())["metrics"], answers_in(measured)
    assert metrics["attainable_accuracy"] == sum(row["can_be_given"] for row in answers) / 20 == 0.95
    assert metrics["open_attainable_accuracy"] == 0.9 and metrics["closed_attainable_accuracy"] == 1


@pytest.mark.parametrize(
    ("folder", "share", "open_questions"),
    [("data/osfstorage", 0.0, 0.391), ("data/osfstorage", 0.1, 0.385)]
    + [("awenbocc_split", 0.0, 0.771), ("awenbocc_split", 0.1, 0.743)],
)
def test_the_documented_attainable_shares_are_those_of_the_real_questions(folder, share, open_questions, shared_data):
    root = shared_data / "vqa_rad"
    images = str(root / "data" / "osfstorage" / "VQA_RAD Image Folder")
    data = QuestionData(
        train_data=str(root / folder),
        model_name_or_path="model",
        benchmark="vqa_rad",
        image_folder=images,
        validation_share=share,
    )
    known = set(answer_vocabulary(question.answer for question in question_splits(data, seed=0)["train"]))
    test = load_benchmark("vqa_rad", root / folder, image_folder=images).questions
    answers = [normalize_answer(question.answer) for question in test if question.answer_type == "open"]
    assert len(answers) == 179 and sum(answer in known for answer in answers) / 179 == pytest.approx(
        open_questions, abs=5e-4
    )
    page = (Path(__file__).parents[3] / "docs" / "fine_tuning.md").read_text() + (RECIPES / "vqa_rad.yaml").read_text()
    assert page.count(f"{100 * open_questions:.1f} %") >= 2, "in the documentation and the recipe"


def rows_of(right: list[bool], types: list[str]) -> list[dict]:
    return [
        {"answer": "yes", "right": hit, "answer_type": kind, "image": f"{n}", "can_be_given": True}
        for n, (hit, kind) in enumerate(zip(right, types, strict=True))
    ]


def test_who_is_always_right_scores_one_and_who_never_is_zero():
    for hit in (True, False):
        metrics = answer_metrics(rows_of([hit] * 10, ["open", "closed"] * 5), seed=0)
        for name in ("accuracy", "open_accuracy", "closed_accuracy"):
            assert metrics[name] == float(hit) and metrics[f"{name}_interval"] == [hit, hit]


def test_a_benchmark_of_closed_questions_alone_has_no_open_accuracy():
    metrics = answer_metrics(rows_of([True, False], ["closed", "closed"]), seed=0)
    assert metrics["open_accuracy"] is None and metrics["closed_accuracy"] == 0.5


def test_questions_about_one_image_do_not_count_as_independent():
    generator = np.random.default_rng(0)
    right = np.repeat(generator.random(20) < 0.5, 10)
    rows = rows_of(right.tolist(), ["closed"] * 200)
    apart = answer_metrics(rows, seed=0)["accuracy_interval"]
    for number, row in enumerate(rows):
        row["image"] = f"{number // 10}"
    together = answer_metrics(rows, seed=0)["accuracy_interval"]
    assert together[1] - together[0] > 2 * (apart[1] - apart[0]), "sqrt(10) in theory"


def test_the_baseline_gives_the_most_frequent_training_answer_of_each_type(questions):
    train, test = (load_benchmark("vqa_rad", str(questions), split=split).questions for split in ("train", "test"))
    rows = [{"answer": row.answer, "answer_type": row.answer_type} for row in test]
    found = majority_baseline(rows, train)
    # Of thirty images ten are red, one of them asked with the answer 4: nine, ten and ten.
    assert found["most_frequent_answers"] == {"open": "blue", "closed": "no"}
    assert found["open_chance"] == sum(row.answer == "Blue" for row in test) / 10
    assert found["closed_chance"] == sum(row.answer == "no" for row in test) / 10
    assert found["chance"] == pytest.approx((found["open_chance"] + found["closed_chance"]) / 2)


def test_a_batch_of_any_size_gives_the_same_answers(answerer, questions, tmp_path):
    asked, model = load_benchmark("vqa_rad", str(questions)), load_answerer(str(answerer))
    one, many = (answer_questions(model, asked, tmp_path / f"{size}", batch_size=size)[0] for size in (1, 7))
    assert [row["given"] for row in one] == [row["given"] for row in many]


def test_an_evaluation_that_is_cut_off_goes_on_with_the_questions_that_are_left(
    answerer, questions, tmp_path, monkeypatch
):
    monkeypatch.setattr(visual_question_answering, "PART", 8)
    asked, model = load_benchmark("vqa_rad", str(questions)), load_answerer(str(answerer))
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
    assert calls == [8, 8, 8, 4], "the part that was cut off once more, and not the one before"
    assert answer_questions(model, asked, tmp_path / "killed") == whole and len(calls) == 4


# What makes no sense


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--per-device-train-batch-size", "64"], "has 54 questions, fewer than a batch of 64"),
        (["--validation-share", "1"], "at least 0 and less than 1"),
        (["--validation-share", "-0.1"], "at least 0 and less than 1"),
        (["--validation-share", "nan"], "at least 0 and less than 1"),
        (["--validation-share", "0", "--eval-strategy", "epoch"], "--eval-strategy epoch needs validation questions"),
        (["--validation-share", "0", "--eval-on-start", "true"], "--eval-on-start true needs validation questions"),
        (["--validation-share", "0", "--per-device-eval-batch-size", "4"], "hold out images"),
        (["--validation-share", "0", "--load-best-model-at-end", "true"], "save and eval strategy to match"),
        (["--benchmark", "slake", "--validation-share", "0.1"], "no effect on slake"),
        (["--co-attention-config", "{"], "--co-attention-config is not JSON"),
        (["--co-attention-config", '{"num_attention_heads": 5}'], "must be a multiple of"),
        (["--co-attention-config", '{"layers": 5}'], "BiomedCLIPCoAttentionConfig has no field layers"),
        (["--model-name-or-path", "nowhere"], "no such folder"),
    ],
)
def test_training_that_makes_no_sense_is_refused_in_one_line(options, message, train, questions, tmp_path, capsys):
    assert train(questions, tmp_path / "run", *options) == (2 if options[0][2:5] in ("val", "co-", "ben") else 1)
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_model_without_a_head_is_not_measured(small_checkpoint, questions, tmp_path, capsys):
    assert measure(small_checkpoint, questions, tmp_path) == 1
    error = capsys.readouterr().err
    assert "has no head for questions" in error and "MISSING" not in error


def test_a_new_head_is_no_news_and_a_lost_tensor_of_a_tower_is(small_checkpoint, tmp_path, capfd, caplog):
    load_for_training(str(small_checkpoint), ["yes", "no"], HEAD)
    assert "MISSING" not in capfd.readouterr().err and not caplog.records
    shutil.copytree(small_checkpoint, tmp_path / "less")
    tensors = load_file(tmp_path / "less" / "model.safetensors")
    lost = "vision_model.post_layernorm.weight"
    del tensors[lost]
    save_file(tensors, tmp_path / "less" / "model.safetensors", {"format": "pt"})
    load_for_training(str(tmp_path / "less"), ["yes", "no"], HEAD)
    assert f"lacks 1 tensors of the towers, which are random: {lost}" in caplog.text


def test_a_benchmark_without_questions_is_refused(answerer, questions, tmp_path, capsys):
    command = [
        "evaluate",
        "visual-question-answering",
        "--model",
        answerer,
        "--data",
        questions,
        "--output-dir",
        tmp_path,
    ]
    assert main([*map(str, command)]) == 2
    assert "--benchmark must be vqa_rad or slake" in capsys.readouterr().err
