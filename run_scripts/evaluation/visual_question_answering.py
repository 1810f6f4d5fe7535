"""Evaluate a model that answers questions about images: accuracy and token F1 on open, closed and all questions."""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor, AutoTokenizer

from biomedclip.processing import VisualQuestionCollator
from biomedclip.processing.answers import normalize_answer, token_f1, word_tokens
from biomedclip.processing.benchmarks import VisualQuestion, VisualQuestionBenchmark
from biomedclip.processing.benchmarks.leaks import find_leaks
from biomedclip.processing.collator import IGNORED_LABEL
from biomedclip.processing.images.reading import ImageError, read_row_image
from biomedclip.retrieval_metrics import bootstrap_interval
from biomedclip.source_checks import check_source

from ..cli.reporting import UNDEFINED, no_warnings_of_transformers, say, say_undefined, show_table, write_text
from ..cli.trust import questions_are_errors
from ..training.visual_question_answering import check_questions_readable, load_questions
from .dual_encoders import DualEncoder
from .features import FEATURES
from .metrics.visual_question_answering.visual_question_answering import right_answers
from .parts import Parts
from .question_examples import write_examples
from .results import write_results


ANSWERS = "answers.jsonl"
ANSWER_TYPES = ("open", "closed")
PART = 256  # questions of a part: what is lost at most when a run is killed
TOP_ANSWERS = 5
WORDS = "words"  # the tokens of SQuAD's F1
WORDS_INSTEAD = (
    "Token F1 counts words as in SQuAD. The published value counts GPT-2 tokens: pass a folder or Hub id of GPT-2's "
    "tokenizer to --f1-tokenizer."
)

Questions = tuple[VisualQuestionBenchmark, VisualQuestionBenchmark | None]


def read_questions(name: str | None, path: str, split: str, image_folder: str | None = None) -> Questions:
    """Read the questions that a model is measured by, and those of the training split if they are there.

    Args:
        name: Of the benchmark.
        path: Its folder.
        split: Split that is measured on.
        image_folder: Folder of the images, if they do not lie beside the questions.

    Raises:
        ValueError: If it is no benchmark of questions, or if none of its images can be read.
        FileNotFoundError: If it or a part of it is missing.
    """
    benchmark = load_questions(name, path, split, image_folder)
    check_questions_readable(benchmark.questions, f"--data {path}")
    return benchmark, training_split(benchmark, image_folder)


def evaluate_questions(
    name: str, questions: Questions, options: Any, output_dir: Path, command: Sequence[str] = ()
) -> dict[str, Any] | None:
    """Print accuracy and token F1 of a model, and write `results.json` and `answers.jsonl`.

    Args:
        name: Folder or Hub id of the model.
        questions: What [`read_questions`] returns.
        options: `data`, `split`, `batch_size`, `max_length`, `f1_tokenizer`, `examples`, `seed` and
            `trust_remote_code`.
        output_dir: Where the results go; what an interrupted run has left there is gone on with.
        command: The command line behind `biomedclip evaluate`.

    Returns:
        What `results.json` holds, in the first process.

    Raises:
        ValueError: If the model has no head for questions.
        FileNotFoundError: If there is no such model.
    """
    started = time.monotonic()
    benchmark, training = questions
    answerer = load_answerer(name, trust_remote_code=options.trust_remote_code)
    answers, damaged = answer_questions(
        answerer, benchmark, output_dir / FEATURES, batch_size=options.batch_size, max_length=options.max_length
    )
    if not PartialState().is_main_process:
        return None
    tokenize = load_answer_tokenizer(options.f1_tokenizer, trust_remote_code=options.trust_remote_code)
    for row in answers:
        answered = row["given"] is not None
        row["f1"] = token_f1(tokenize(row["given"]), tokenize(row["answer"])) if answered else None
    metrics = {**answer_metrics(answers, options.seed), "answers": answerer.model.config.num_labels}
    f1 = f1_metrics(answers, options.seed)
    if undefined := {**metrics.pop("undefined", {}), **f1.pop("undefined", {})}:
        f1["undefined"] = undefined
    metrics |= f1
    notes = [*benchmark.notes, *([WORDS_INSTEAD] if "f1" in benchmark.paper and options.f1_tokenizer == WORDS else [])]
    leaks = None
    if training is not None:
        metrics |= majority_baseline(answers, training.questions)
        leaks = find_leaks(training, benchmark, progress=True).as_dict()
    show_answers(metrics, benchmark, options.f1_tokenizer)
    if leaks is not None:
        say(f"{leaks['leaked']:,} of {leaks['test_images']:,} images are, or look like, images of the training split.")
    if damaged:
        say(f"{len(damaged):,} questions are left out, the first {damaged[0]['name']}: {damaged[0]['reason']}")
    for note in notes:
        say(f"Note: {note}")
    write_answers(output_dir / ANSWERS, answers)
    examples = []
    if options.examples:
        examples = write_examples(answers, benchmark, options.examples, options.seed, output_dir)
    results = write_results(
        output_dir,
        task="visual-question-answering",
        benchmark=benchmark.name,
        command=command,
        encoder=answerer,
        data={
            "path": options.data,
            "split": benchmark.split,
            "fingerprint": benchmark.fingerprint,
            "rows": len(answers),
            "damaged": damaged,
            "leaks": leaks,
            "notes": notes,
        },
        metrics=metrics,
        paper=benchmark.paper,
        paper_source=benchmark.source,
        settings={
            **{name: getattr(options, name) for name in ("batch_size", "max_length", "f1_tokenizer", "seed")},
            "processes": PartialState().num_processes,
        },
        seconds=time.monotonic() - started,
        examples=examples,
    )
    say(f"Results in {output_dir / 'results.json'}, each answer in {output_dir / ANSWERS}")
    return results


def training_split(
    benchmark: VisualQuestionBenchmark, image_folder: str | None = None
) -> VisualQuestionBenchmark | None:
    """The training split of a benchmark of which another split is measured, if it is there."""
    if benchmark.split == "train":
        return None
    try:
        return load_questions(benchmark.name, benchmark.path, "train", image_folder)
    except FileNotFoundError:
        return None


@questions_are_errors()
def load_answerer(name: str, *, trust_remote_code: bool = False) -> DualEncoder:
    """A model that was trained to answer questions, with its processor, in float32 and evaluation mode.

    Args:
        name: Folder or Hub id.
        trust_remote_code: Whether the code of the checkpoint may be run.

    Raises:
        FileNotFoundError: No such folder.
        ValueError: A model without a trained head for questions.
    """
    if name.startswith(("/", ".", "~")) and not Path(name).is_dir():
        raise FileNotFoundError(f"--model {name}: there is no such folder.")
    check_source(name, trust_remote_code=trust_remote_code)
    with no_warnings_of_transformers():  # they list each tensor of a head that is not there
        model, info = AutoModelForVisualQuestionAnswering.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, trust_remote_code=trust_remote_code
        )
    if info["missing_keys"]:
        raise ValueError(
            f"--model {name} has no head for questions: it would answer at random. Train one: "
            f"biomedclip train --config vqa_rad --model-name-or-path {name} --train-data ... --output-dir answers"
        )
    model = model.eval().to(PartialState().device)
    # Both towers with a head on them: the same facts are written about it as about towers alone.
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    return DualEncoder(name, model.config.model_type, model, processor)


def answer_questions(
    answerer: DualEncoder,
    benchmark: VisualQuestionBenchmark,
    folder: Path,
    *,
    batch_size: int = 32,
    max_length: int | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Answer the questions of a benchmark, in parts that processes share and that are not computed twice.

    Args:
        answerer: A model with `logits` over the answers of its `config.id2label`.
        benchmark: The questions.
        folder: Where the parts are kept.
        batch_size: Questions at a time.
        max_length: Tokens a question is cut at; the tokenizer's limit if left out.

    Returns:
        A row for each question with a readable image: name, image, question, answer type, right answer, given answer,
        its score, whether it is right, whether the right answer is in the vocabulary of the model, and the best
        `TOP_ANSWERS` answers with their scores. And the name of each other question, with the reason.
    """
    model, questions = answerer.model, benchmark.questions
    label2id = {normalize_answer(answer): number for answer, number in model.config.label2id.items()}
    collate = VisualQuestionCollator(answerer.processor, label2id, max_length=max_length, on_error="substitute")
    key = {
        "what": "answers",
        "weights": answerer.weights,
        "processor": answerer.processing,
        "data": benchmark.fingerprint,
        "max_length": max_length,
        "part": PART,
        "top_answers": TOP_ANSWERS,
    }
    parts = Parts(folder, key, math.ceil(len(questions) / PART))

    @torch.no_grad()
    def work(part: int) -> tuple[dict[str, torch.Tensor], Any]:
        asked = questions[part * PART : (part + 1) * PART]
        found: dict[str, list[torch.Tensor]] = {"numbers": [], "scores": [], "labels": []}
        for start in range(0, len(asked), batch_size):
            batch = collate([vars(question) for question in asked[start : start + batch_size]])
            found["labels"].append(batch.pop("labels"))
            logits = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).logits.float().cpu()
            best = logits.sort(dim=-1, descending=True, stable=True)
            found["numbers"].append(best.indices[:, :TOP_ANSWERS].contiguous())
            finite = logits.isfinite().all(dim=-1, keepdim=True)
            scores = best.values[:, :TOP_ANSWERS].sigmoid()
            found["scores"].append(scores.where(finite, torch.nan))  # NaN: no answer was given
        tensors = {name: torch.cat(batches) for name, batches in found.items()}
        unread = [row for row, label in enumerate(tensors["labels"].tolist()) if label == IGNORED_LABEL]
        return tensors, [{"name": asked[row].name, "reason": _reason(asked[row])} for row in unread]

    parts.complete(work, "Questions")
    answers: list[dict[str, Any]] = []
    damaged: list[dict[str, str]] = []
    for part in range(parts.count):
        tensors, unread = parts.read(part)
        damaged += unread
        rows = zip(*(tensors[name].tolist() for name in ("numbers", "scores", "labels")), strict=True)
        for question, (numbers, scores, label) in zip(questions[part * PART : (part + 1) * PART], rows, strict=True):
            if label != IGNORED_LABEL:
                top = [(model.config.id2label[number], score) for number, score in zip(numbers, scores, strict=True)]
                answers.append(_answered(question, top, label >= 0))
    return answers, damaged


def answer_metrics(answers: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Compute the accuracy on open, closed and all questions, with 95 % bootstrap intervals over images.

    Args:
        answers: What [`answer_questions`] returns.
        seed: Seed of the bootstrap.

    Returns:
        The metrics. An accuracy is None, and `undefined` gives the reason, if there are no such questions or if the
        scores of an answer are NaN or infinite. `attainable_accuracy` is the fraction of questions whose answer is in
        the vocabulary of the model.

    Raises:
        ValueError: If there is no question with a readable image.
    """
    if not answers:
        raise ValueError("No image of the benchmark can be read: there is nothing to measure.")
    metrics = _means(answers, "right", "accuracy", seed)
    for answer_type in (None, *ANSWER_TYPES):
        prefix = f"{answer_type}_" if answer_type else ""
        of_type = [row for row in answers if answer_type in (None, row["answer_type"])]
        never_seen = sum(not row["can_be_given"] for row in of_type)
        metrics[f"{prefix}questions"] = len(of_type)
        metrics[f"{prefix}answers_never_seen"] = never_seen
        metrics[f"{prefix}attainable_accuracy"] = 1 - never_seen / len(of_type) if of_type else None
    metrics["images"] = len({row["image"] for row in answers})
    return metrics


def f1_metrics(answers: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Compute the mean token F1 of open, closed and all questions, with 95 % bootstrap intervals over images.

    Args:
        answers: What [`answer_questions`] returns, with the token F1 of each answer as `f1`.
        seed: Seed of the bootstrap.

    Returns:
        `f1`, `open_f1` and `closed_f1`, undefined for the same reasons as the accuracy of [`answer_metrics`].
    """
    return _means(answers, "f1", "f1", seed)


def load_answer_tokenizer(name: str, *, trust_remote_code: bool = False) -> Callable[[Any], list[str]]:
    """Return the function that splits an answer into the tokens of token F1.

    Args:
        name: `words` for the words of SQuAD's evaluation, or a folder or Hub id of a tokenizer, such as GPT-2's. A
            tokenizer gets the answer in the form of [`normalize_answer`] and adds no special tokens.
        trust_remote_code: Whether the code of the tokenizer may be run.

    Raises:
        ValueError: If the tokenizer cannot be loaded, needs its own code, or has settings that need trust.
    """
    if name == WORDS:
        return word_tokens
    check_source(name, trust_remote_code=trust_remote_code)
    try:
        with questions_are_errors():
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # a damaged tokenizer.json raises `Exception` itself
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"--f1-tokenizer {name}: the tokenizer cannot be loaded ({reason}). Name a folder with tokenizer files or "
            f"a model on the Hub, or leave it out to count {WORDS}."
        ) from error
    return lambda answer: tokenizer.tokenize(normalize_answer(answer))


def _means(answers: Sequence[dict[str, Any]], key: str, metric: str, seed: int) -> dict[str, Any]:
    """Return the mean of a value of the answers, with its interval, for all, open and closed questions."""
    metrics: dict[str, Any] = {}
    undefined: dict[str, str] = {}
    for answer_type in (None, *ANSWER_TYPES):
        name = f"{answer_type}_{metric}" if answer_type else metric
        of_type = [row for row in answers if answer_type in (None, row["answer_type"])]
        unanswered = sum(row[key] is None for row in of_type)
        if not of_type:
            undefined[name] = f"there are no {answer_type} questions"
        elif unanswered:
            undefined[name] = f"the scores of {unanswered:,} of {len(of_type):,} answers are NaN or infinite"
        values = np.array([row[key] for row in of_type], dtype=float)
        metrics[name] = float(values.mean()) if name not in undefined else None
        metrics[f"{name}_interval"] = (
            bootstrap_interval(values, [row["image"] for row in of_type], seed=seed) if name not in undefined else None
        )
    return metrics | ({"undefined": undefined} if undefined else {})


def majority_baseline(answers: Sequence[dict[str, Any]], training: Sequence[VisualQuestion]) -> dict[str, Any]:
    """Accuracy of whoever gives the most frequent training answer of the question's type, without a look at either.

    Args:
        answers: What [`answer_questions`] gives.
        training: The `VisualQuestion`s of the training split.

    Returns:
        `chance`, `open_chance` and `closed_chance`, and these answers.
    """
    frequent = {}
    for answer_type in ANSWER_TYPES:
        counts = Counter(normalize_answer(row.answer) for row in training if row.answer_type == answer_type)
        # Of equally frequent ones the first in alphabetical order.
        frequent[answer_type] = min(counts, key=lambda answer: (-counts[answer], answer)) if counts else None
    hits: dict[str, list[bool]] = {answer_type: [] for answer_type in ANSWER_TYPES}
    for row in answers:
        hits[row["answer_type"]].append(normalize_answer(row["answer"]) == frequent[row["answer_type"]])
    every = [hit for found in hits.values() for hit in found]
    return {
        "chance": sum(every) / len(every),
        **{f"{name}_chance": sum(found) / len(found) if found else None for name, found in hits.items()},
        "most_frequent_answers": frequent,
    }


def write_answers(path: Path, answers: Sequence[dict[str, Any]]) -> None:
    """Writes one answer a line, as JSON."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in answers)
    write_text(path, "".join(f"{line}\n" for line in lines))


def show_answers(metrics: dict[str, Any], benchmark: VisualQuestionBenchmark, tokens: str = WORDS) -> None:
    """Print the accuracy beside the paper's, that of the most frequent answer and the attainable one, and the token F1.

    Args:
        metrics: What [`answer_metrics`] returns, and [`f1_metrics`], [`majority_baseline`] if there are any.
        benchmark: The questions.
        tokens: The tokens that token F1 counts.
    """
    rows, f1_rows = [], []
    for name, prefix in (("open", "open_"), ("closed", "closed_"), ("all", "")):
        questions = metrics[f"{prefix}questions"]
        if not questions:
            continue
        first = f"{name} ({questions:,})"
        rows.append(
            (
                first,
                _with_interval(metrics, f"{prefix}accuracy"),
                metrics.get(f"{prefix}chance"),
                metrics[f"{prefix}attainable_accuracy"],
                benchmark.paper.get(f"{prefix}accuracy"),
            )
        )
        if "f1" in metrics:
            f1_rows.append((first, _with_interval(metrics, f"{prefix}f1"), benchmark.paper.get(f"{prefix}f1")))
    title = f"Visual questions, {benchmark.name} {benchmark.split}, {metrics['images']:,} images [95 % interval]"
    show_table(title, rows, ["questions", "accuracy", "most frequent", "attainable", "paper"])
    if f1_rows:
        of_paper = "; paper: GPT-2" if "f1" in benchmark.paper else ""
        title = f"Token F1 (tokens: {tokens}{of_paper}) [95 % interval]"
        show_table(title, f1_rows, ["questions", "token F1", "paper"])
    say_undefined(metrics)


def _with_interval(metrics: dict[str, Any], name: str) -> str:
    if metrics[name] is None:
        return UNDEFINED
    low, high = metrics[f"{name}_interval"]
    return f"{metrics[name]:.3f} [{low:.3f}, {high:.3f}]"


def _answered(question: VisualQuestion, top: Sequence[tuple[str, float]], can_be_given: bool) -> dict[str, Any]:
    """Return a line of `answers.jsonl`. A score of NaN means that no answer was given."""
    given, score = top[0]
    answered = not math.isnan(score)
    return {
        "name": question.name,
        "image": question.image_name,
        "question": question.question,
        "answer_type": question.answer_type,
        "answer": question.answer,
        "given": given if answered else None,
        "score": round(score, 6) if answered else None,
        "right": right_answers([given], [question.answer])[0] if answered else None,
        "can_be_given": can_be_given,
        "top_answers": [[answer, round(score, 6)] for answer, score in top] if answered else [],
    }


def _reason(question: VisualQuestion) -> str:
    """Why a question could not be asked."""
    try:
        read_row_image(question.image)
    except ImageError as error:
        return str(error)
    return "its question is empty"
