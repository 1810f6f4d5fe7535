"""Visual question answering through the commands: from a benchmark's folder to a model that is measured on it."""

import json
import shutil
from collections import Counter
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from commands import losses, on_two_processes
from conftest import SMALL_CONFIG
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score
from transformers import AutoModelForVisualQuestionAnswering, pipeline

from modeling_biomedclip import BiomedCLIPConfig, BiomedCLIPForVisualQuestionAnswering
from processing import VisualQuestionCollator, load_benchmark
from run_scripts import evaluation
from run_scripts.evaluation import visual_question_answering
from run_scripts.evaluation.dual_encoders import load_dual_encoder
from run_scripts.evaluation.visual_question_answering import (
    answer_metrics,
    answer_questions,
    load_answerer,
    majority_baseline,
)
from run_scripts.main import main
from run_scripts.options import read_recipe
from run_scripts.supervised import SupervisedArguments
from run_scripts.visual_question_answering import QuestionData, QuestionTrainer, question_splits
from run_scripts.visual_question_answering import load_answerer as load_for_training


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
SHORT += ["--eval-strategy", "no"]
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
    """Trains by the recipe `vqa_rad`, with further options; returns the exit status."""

    def run(folder: Path, output_dir: Path, *options: str) -> int:
        arguments = ["train", "--config", "vqa_rad", "--model-name-or-path", small_checkpoint, "--train-data", folder]
        arguments += ["--output-dir", output_dir, "--dataloader-num-workers", "0", "--report-to", "none"]
        arguments += ["--co-attention-config", json.dumps(HEAD), "--learning-rate", "2e-4"]
        return main([*map(str, arguments), *options])

    return run


@pytest.fixture(scope="module")
def answerer(train, questions, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("answerer") / "run"
    assert train(questions, folder, "--num-train-epochs", "30", "--eval-strategy", "no", "--save-strategy", "no") == 0
    return folder


def results(folder: Path) -> dict:
    return json.loads((folder / "train_results.json").read_text())


def measure(model: Path, data: Path, output_dir: Path, *options: str) -> int:
    arguments = ["evaluate", "vqa", "--model", model, "--data", data, "--benchmark", "vqa_rad"]
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


def test_towers_co_attention_and_classifier_learn_at_rates_of_their_own(small_model, questions, tmp_path):
    model = BiomedCLIPForVisualQuestionAnswering(BiomedCLIPConfig(**SMALL_CONFIG, co_attention_config=HEAD))
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
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen = Counter()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            part = name.split(".")[0]
            factor = {"text_model": 1, "vision_model": 1, "classifier": 50}.get(part, 5)
            assert group["lr"] == pytest.approx(factor * 1e-3), name
            spared = name.endswith("bias") or "norm" in name or name.startswith("classifier.1")
            assert group["weight_decay"] == (0 if spared else 0.01), name
            seen[name] += 1
    assert set(seen) == set(names.values()) and set(seen.values()) == {1}
    assert optimizer.param_groups[0]["lr"] == 1e-3, "what Trainer logs"


def test_the_recipes_have_the_rates_of_meter_and_one_builds_on_the_other():
    rad, slake = (read_recipe(name, ["train"]) for name in ("vqa_rad", "vqa_slake"))
    assert slake == rad | {"benchmark": "slake"}
    expected = {"learning_rate": 5e-6, "warmup_steps": 0.1, "num_train_epochs": 10, "weight_decay": 0.01}
    expected |= {"head_learning_rate_factor": 50, "cross_modal_learning_rate_factor": 5, "adam_beta2": 0.98}
    assert {name: float(rad[name]) for name in expected} == expected


def test_no_image_is_trained_on_and_validated_on(questions):
    data = QuestionData(str(questions), "model", "vqa_rad", validation_share=0.2)
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
    splits = question_splits(QuestionData(str(tmp_path), "model", "slake"), seed=0)
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
    command = ["-m", "run_scripts.main", "train", "--config", "vqa_rad", "--model-name-or-path", small_checkpoint]
    command += ["--train-data", questions, "--output-dir", tmp_path / "two", "--report-to", "none"]
    command += ["--co-attention-config", json.dumps(HEAD), "--learning-rate", "2e-4", "--dataloader-num-workers", "0"]
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
    assert [row.split()[1] for row in rows] == ["open", "closed", "all"] and all(row.count("]") == 1 for row in rows)


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
    assert (found["schema"], found["task"], found["benchmark"]) == (1, "vqa", "vqa_rad")
    assert found["model"]["name"] == str(answerer) and len(found["model"]["weights"]) == 16
    assert found["model"]["base_weights"] == load_dual_encoder(str(small_checkpoint)).weights
    assert found["data"]["rows"] == 20 and found["data"]["split"] == "test" and found["data"]["fingerprint"]
    assert found["paper"]["accuracy"] == 0.727 and found["paper_source"]
    leaks = found["data"]["leaks"]
    assert leaks["same_name"] == leaks["same_bytes"] == 1 and leaks["test_images"] == 11, "one is in both splits"


def test_two_processes_answer_what_one_does_each_a_share(measured, answerer, questions, tmp_path):
    (tmp_path / "in_small_parts.py").write_text(
        "import sys\n"
        "from run_scripts.evaluation import visual_question_answering\n"
        "from run_scripts.main import main\n"
        "visual_question_answering.PART = 8\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = ["evaluate", "vqa", "--model", answerer, "--data", questions, "--benchmark", "vqa_rad"]
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
    assert found == {name: metrics[name] for name in ("accuracy", "open_accuracy", "closed_accuracy")}
    alone = module.compute(predictions=["Yes."], references=["yes"], answer_types=["closed"])
    assert alone == {"accuracy": 1.0, "open_accuracy": None, "closed_accuracy": 1.0}


def rows_of(right: list[bool], types: list[str]) -> list[dict]:
    return [
        {"answer": "yes", "right": hit, "answer_type": kind, "image": f"{n}", "can_be_given": True}
        for n, (hit, kind) in enumerate(zip(right, types, strict=True))
    ]


def test_who_is_always_right_scores_one_and_who_never_is_zero():
    for hit in (True, False):
        metrics = answer_metrics(rows_of([hit] * 10, ["open", "closed"] * 5), seed=0)
        for name in ("accuracy", "open_accuracy", "closed_accuracy"):
            assert metrics[name] == float(hit) and metrics[f"{name}_interval"] == (hit, hit)


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
        (["--per-device-train-batch-size", "64"], "A batch of 64 questions does not fit: there are 54"),
        (["--validation-share", "1"], "between 0 and 1"),
        (["--co-attention-config", "{"], "--co-attention-config is not JSON"),
        (["--co-attention-config", '{"num_attention_heads": 5}'], "must be a multiple of"),
        (["--co-attention-config", '{"layers": 5}'], "layers: not a field of BiomedCLIPCoAttentionConfig"),
        (["--model-name-or-path", "nowhere"], "there is no such folder"),
    ],
)
def test_training_that_makes_no_sense_is_refused_in_one_line(options, message, train, questions, tmp_path, capsys):
    assert train(questions, tmp_path / "run", *options) == (2 if options[0][2:5] in ("val", "co-") else 1)
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
    assert f"lacks 1 tensors of the towers, drawn at random: {lost}" in caplog.text


def test_a_benchmark_without_questions_is_refused(answerer, questions, tmp_path, capsys):
    command = ["evaluate", "vqa", "--model", answerer, "--data", questions, "--output-dir", tmp_path]
    assert main([*map(str, command)]) == 2
    assert "--benchmark must be vqa_rad or slake" in capsys.readouterr().err
