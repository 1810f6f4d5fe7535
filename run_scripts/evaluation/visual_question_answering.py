"""Evaluate a model that answers questions about images: accuracy and token F1 on open, closed and all questions."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor, AutoTokenizer

from biomedclip.processing import VisualQuestionCollator
from biomedclip.processing.answers import normalize_answer, token_f1, word_tokens
from biomedclip.processing.benchmarks import VisualQuestion, VisualQuestionBenchmark
from biomedclip.processing.benchmarks.leaks import find_leaks
from biomedclip.processing.collator import IGNORED_LABEL
from biomedclip.processing.images.reading import ImageError, read_row_image
from biomedclip.source_checks import check_source

from ..cli.models import check_model_name
from ..cli.reporting import no_warnings_of_transformers, say, say_undefined, show_table, write_text
from ..cli.trust import questions_are_errors
from ..training.visual_question_answering import check_questions_readable, load_questions
from .dual_encoders import DualEncoder
from .features import FEATURES
from .parts import Part, Parts
from .predictions import PredictionTable
from .question_examples import write_examples
from .question_kinds import measure_kinds, show_kinds
from .report.questions import write_question_report
from .run import Run, with_interval
from .statistics.bootstrap import fraction_interval


ANSWERS = "answers.jsonl"
ANSWER_TYPES = ("open", "closed")
PART = 256  # questions in a part, which are answered again if a run is killed
TOP_ANSWERS = 5
WORDS = "words"  # the tokens of SQuAD's F1
WORDS_INSTEAD = (
    "Token F1 counts words as in SQuAD. The published value counts GPT-2 tokens: pass a folder or Hub id of GPT-2's "
    "tokenizer to --f1-tokenizer."
)
PREDICTED = pa.schema(
    [
        *((name, pa.string()) for name in ("name", "file", "question", "answer_type", "true", "predicted")),
        *((name, pa.bool_()) for name in ("right", "can_be_given")),
        *((name, pa.float64()) for name in ("probability", "f1")),
        ("group", pa.string()),
    ]
)
NO_HEAD = (
    "{where} has no trained head for questions. Train one: biomedclip train --config vqa_rad --model-name-or-path "
    "MODEL --train-data DATA --output-dir answers"
)


def read_questions(options: Any) -> tuple[VisualQuestionBenchmark, VisualQuestionBenchmark | None]:
    """Read the questions of a split, and those of the training split if they are available.

    Raise `ValueError` if the benchmark is of another kind, no image can be read, or the tokenizer of F1 cannot be
    loaded, and `FileNotFoundError` if the benchmark is missing or incomplete.
    """
    load_answer_tokenizer(options.f1_tokenizer, trust_remote_code=options.trust_remote_code)  # fails early
    benchmark = load_questions(options.benchmark, options.data, options.split, options.image_folder)
    check_questions_readable(benchmark.questions, f"--data {options.data}")
    if options.split == "train":
        return benchmark, None
    try:
        return benchmark, load_questions(options.benchmark, options.data, "train", options.image_folder)
    except FileNotFoundError:
        return benchmark, None


def evaluate_questions(run: Run) -> dict[str, Any] | None:
    """Evaluate the accuracy and token F1 of a model, and write `results.json` and `answers.jsonl`."""
    options, output_dir = run.options, run.output_dir
    benchmark, training = run.data
    answerer = load_answerer(run.model, trust_remote_code=options.trust_remote_code)
    answers, damaged = answer_questions(
        answerer, benchmark, output_dir / FEATURES, batch_size=options.batch_size, max_length=options.max_length
    )
    if not PartialState().is_main_process:
        return None
    tokenize = load_answer_tokenizer(options.f1_tokenizer, trust_remote_code=options.trust_remote_code)
    for row in answers:
        row["f1"] = None if row["given"] is None else token_f1(tokenize(row["given"]), tokenize(row["answer"]))
    metrics, f1 = answer_metrics(answers, options.seed), f1_metrics(answers, options.seed)
    undefined = {**metrics.pop("undefined", {}), **f1.pop("undefined", {})}
    metrics |= {"answers": answerer.model.config.num_labels, **f1, **({"undefined": undefined} if undefined else {})}
    notes = list(benchmark.notes)
    if "f1" in benchmark.paper and options.f1_tokenizer == WORDS:
        notes.append(WORDS_INSTEAD)
    leaks = None
    if training is not None:
        metrics |= majority_baseline(answers, training.questions)
        leaks = find_leaks(training, benchmark, progress=True).as_dict()
    show_answers(metrics, benchmark, options.f1_tokenizer)
    if leaks is not None:
        say(f"{leaks['leaked']:,} of {leaks['test_images']:,} images are, or look like, images of the training split.")
    kinds = measure_kinds(answers, {question.name: question.kind for question in benchmark.questions}, options.seed)
    show_kinds(kinds)
    write_answers(output_dir / ANSWERS, answers)
    examples = []
    if options.examples:
        examples = write_examples(answers, benchmark, options.examples, options.seed, output_dir)
    images = {question.image_name: question.image for question in benchmark.questions}
    return run.write(
        answerer,
        data={
            "fingerprint": benchmark.fingerprint,
            "rows": len(answers),
            "damaged": damaged,
            "leaks": leaks,
            "notes": notes,
        },
        metrics=metrics,
        paper=benchmark.paper,
        paper_source=benchmark.source,
        settings={"f1_tokenizer": options.f1_tokenizer},
        predictions=PredictionTable([_prediction(row) for row in answers], PREDICTED),
        damaged="questions",
        also=f", each answer in {output_dir / ANSWERS}",
        examples=examples,
        subgroups=kinds,
        report=partial(write_question_report, answers=answers, images=images),
    )


@questions_are_errors()
def load_answerer(name: str, *, trust_remote_code: bool = False) -> DualEncoder:
    """Load a model that was trained to answer questions, in float32 and evaluation mode, with its processor.

    Raise `ValueError` if it has no trained head for questions, or needs its own code without `trust_remote_code`.
    """
    check_model_name(name)
    check_source(name, trust_remote_code=trust_remote_code)
    with no_warnings_of_transformers():  # the warnings list every tensor of a missing head
        model, info = AutoModelForVisualQuestionAnswering.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, trust_remote_code=trust_remote_code
        )
    if info["missing_keys"]:
        raise ValueError(NO_HEAD.format(where=f"--model {name}"))
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    return DualEncoder(name, model.config.model_type, model.eval().to(PartialState().device), processor)


def answer_questions(
    answerer: DualEncoder,
    benchmark: VisualQuestionBenchmark,
    folder: Path,
    *,
    batch_size: int = 32,
    max_length: int | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Answer the questions of a benchmark. Processes share the work, and finished parts are kept in `folder`.

    Return a row of `answers.jsonl` for each question with a readable image, and `name` and `reason` of the others.
    """
    model, questions = answerer.model, benchmark.questions
    label2id = {normalize_answer(answer): number for answer, number in model.config.label2id.items()}
    collate = VisualQuestionCollator(answerer.processor, label2id, max_length=max_length, on_error="substitute")
    key = {
        "what": "answered questions",
        "weights": answerer.weights,
        "processor": answerer.processing,
        "data": benchmark.fingerprint,
        "max_length": max_length,
        "part": PART,
        "top_answers": TOP_ANSWERS,
    }
    parts = Parts(folder, key, math.ceil(len(questions) / PART))

    @torch.no_grad()
    def work(part: int) -> Part:
        answers, damaged = [], []
        for start in range(part * PART, min((part + 1) * PART, len(questions)), batch_size):
            asked = questions[start : min(start + batch_size, (part + 1) * PART)]
            batch = collate([vars(question) for question in asked])
            labels = batch.pop("labels").tolist()
            logits = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).logits.float().cpu()
            best = logits.sort(dim=-1, descending=True, stable=True)
            finite = logits.isfinite().all(dim=-1, keepdim=True)
            scores = best.values.sigmoid().where(finite, torch.nan)[:, :TOP_ANSWERS].tolist()  # NaN: no answer
            for question, label, numbers, of_numbers in zip(asked, labels, best.indices.tolist(), scores, strict=True):
                if label == IGNORED_LABEL:
                    damaged.append({"name": question.name, "reason": _reason(question)})
                    continue
                named = [model.config.id2label[number] for number in numbers[:TOP_ANSWERS]]
                answers.append(_answered(question, list(zip(named, of_numbers, strict=True)), label >= 0))
        return {}, [answers, damaged]

    parts.complete(work, "Questions")
    notes = [parts.read(part)[1] for part in range(parts.count)]
    return [row for answers, _ in notes for row in answers], [row for _, damaged in notes for row in damaged]


def measure_answers(
    predictions: Sequence[str], references: Sequence[str], answer_types: Sequence[str]
) -> dict[str, float | None]:
    """Return the accuracy and the mean token F1 on all, open, and closed questions.

    For the accuracy, answers are compared in lower case, with collapsed whitespace and without trailing periods.
    Token F1 is that of SQuAD: it compares the words in lower case, without punctuation and articles.

    Args:
        predictions: Predicted answers.
        references: Reference answers.
        answer_types: `open` or `closed`, for each question.

    Returns:
        `accuracy`, `open_accuracy`, `closed_accuracy`, `f1`, `open_f1` and `closed_f1`, or None without such questions.
    """
    rows = [
        {
            "accuracy": normalize_answer(given) == normalize_answer(right),
            "f1": token_f1(word_tokens(given), word_tokens(right)),
            "answer_type": answer_type.lower(),
        }
        for given, right, answer_type in zip(predictions, references, answer_types, strict=True)
    ]
    return {
        f"{prefix}{metric}": sum(row[metric] for row in of_type) / len(of_type) if of_type else None
        for metric in ("accuracy", "f1")
        for prefix, of_type in _by_type(rows)
    }


def answer_metrics(answers: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Return the accuracy on all, open, and closed questions, with 95 % bootstrap intervals over images.

    An accuracy is None, and `undefined` contains the reason, if there are no such questions or if the scores of an
    answer are NaN or infinite. `attainable_accuracy` is the fraction of questions whose answer the model knows. Raise
    `ValueError` if there are no answers.
    """
    if not answers:
        raise ValueError("No image of the benchmark can be read.")
    metrics = _means(answers, "right", "accuracy", seed)
    for prefix, of_type in _by_type(answers):
        never_seen = sum(not row["can_be_given"] for row in of_type)
        metrics[f"{prefix}questions"] = len(of_type)
        metrics[f"{prefix}answers_never_seen"] = never_seen
        metrics[f"{prefix}attainable_accuracy"] = 1 - never_seen / len(of_type) if of_type else None
    metrics["images"] = len({row["image"] for row in answers})
    return metrics


def f1_metrics(answers: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Return the mean token F1 in the form of [`answer_metrics`]. The field `f1` of an answer is its token F1."""
    return _means(answers, "f1", "f1", seed)


def _by_type(answers: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield all, open, and closed answers, each with the prefix of its metrics."""
    yield "", list(answers)
    for answer_type in ANSWER_TYPES:
        yield f"{answer_type}_", [row for row in answers if row["answer_type"] == answer_type]


def _means(answers: Sequence[dict[str, Any]], key: str, metric: str, seed: int) -> dict[str, Any]:
    """Return the mean of a field of the answers, with its interval, for all, open, and closed questions."""
    metrics: dict[str, Any] = {}
    undefined: dict[str, str] = {}
    for prefix, of_type in _by_type(answers):
        name, unanswered = f"{prefix}{metric}", sum(row[key] is None for row in of_type)
        metrics |= {name: None, f"{name}_interval": None}
        if not of_type:
            undefined[name] = f"there are no {prefix.rstrip('_')} questions"
        elif unanswered:
            undefined[name] = f"the scores of {unanswered:,} of {len(of_type):,} answers are NaN or infinite"
        else:
            values = np.array([row[key] for row in of_type], dtype=float)
            metrics[name] = float(values.mean())
            metrics[f"{name}_interval"] = fraction_interval(values, [row["image"] for row in of_type], seed=seed)
    return metrics | ({"undefined": undefined} if undefined else {})


def majority_baseline(answers: Sequence[dict[str, Any]], training: Sequence[VisualQuestion]) -> dict[str, Any]:
    """Return, as `chance`, the accuracy of always giving the most frequent training answer of the question's type."""
    frequent = {}
    for answer_type in ANSWER_TYPES:
        counts = Counter(normalize_answer(row.answer) for row in training if row.answer_type == answer_type)
        # Of equally frequent answers, the first in alphabetical order.
        frequent[answer_type] = min(counts, key=lambda answer: (-counts[answer], answer)) if counts else None
    metrics: dict[str, Any] = {}
    for prefix, of_type in _by_type(answers):
        hits = [normalize_answer(row["answer"]) == frequent[row["answer_type"]] for row in of_type]
        metrics[f"{prefix}chance"] = sum(hits) / len(hits) if hits else None
    return metrics | {"most_frequent_answers": frequent}


def load_answer_tokenizer(name: str, *, trust_remote_code: bool = False) -> Callable[[Any], list[str]]:
    """Return the function that splits an answer into the tokens of token F1.

    `name` is `words` for the words of SQuAD, or a folder or Hub id of a tokenizer, which gets normalized answers. Raise
    `ValueError` if it cannot be loaded or needs its own code.
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
            f"--f1-tokenizer {name}: the tokenizer cannot be loaded ({reason}). Pass a folder with tokenizer files or "
            f"a model on the Hub, or omit it to count {WORDS}."
        ) from error
    return lambda answer: tokenizer.tokenize(normalize_answer(answer))


def write_answers(path: Path, answers: Sequence[dict[str, Any]]) -> None:
    """Write one answer per line as JSON."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in answers)
    write_text(path, "".join(f"{line}\n" for line in lines))


def show_answers(metrics: dict[str, Any], benchmark: VisualQuestionBenchmark, tokens: str = WORDS) -> None:
    """Print accuracy and token F1 with the published values, the majority baseline and the attainable accuracy."""
    rows, f1_rows = [], []
    for name, prefix in (("open", "open_"), ("closed", "closed_"), ("all", "")):
        questions = metrics[f"{prefix}questions"]
        if not questions:
            continue
        first = f"{name} ({questions:,})"
        baselines = (metrics.get(f"{prefix}chance"), metrics[f"{prefix}attainable_accuracy"])
        accuracy = f"{prefix}accuracy"
        rows.append((first, with_interval(metrics, accuracy), *baselines, benchmark.paper.get(accuracy)))
        if "f1" in metrics:
            f1_rows.append((first, with_interval(metrics, f"{prefix}f1"), benchmark.paper.get(f"{prefix}f1")))
    title = f"Visual questions, {benchmark.name} {benchmark.split}, {metrics['images']:,} images [95 % interval]"
    show_table(title, rows, ["questions", "accuracy", "most frequent", "attainable", "paper"])
    if f1_rows:
        of_paper = "; paper: GPT-2" if "f1" in benchmark.paper else ""
        title = f"Token F1 (tokens: {tokens}{of_paper}) [95 % interval]"
        show_table(title, f1_rows, ["questions", "token F1", "paper"])
    say_undefined(metrics)


def _prediction(row: dict[str, Any]) -> dict[str, Any]:
    """Return an answer as a row of `predictions.parquet`."""
    renamed = {"file": row["image"], "true": row["answer"], "predicted": row["given"], "probability": row["score"]}
    return row | renamed | {"group": row["image"]}


def _answered(question: VisualQuestion, top: Sequence[tuple[str, float]], can_be_given: bool) -> dict[str, Any]:
    """Return a line of `answers.jsonl`. A score of NaN means that there is no answer."""
    given, score = top[0]
    answered = not math.isnan(score)
    return {
        "name": question.name,
        "image": question.image_name,
        **{name: getattr(question, name) for name in ("question", "answer_type", "answer")},
        "given": given if answered else None,
        "score": round(score, 6) if answered else None,
        "right": normalize_answer(given) == normalize_answer(question.answer) if answered else None,
        "can_be_given": can_be_given,
        "top_answers": [[answer, round(score, 6)] for answer, score in top] if answered else [],
    }


def _reason(question: VisualQuestion) -> str:
    """Return why a question could not be asked."""
    try:
        read_row_image(question.image)
    except ImageError as error:
        return str(error)
    return "its question is empty"
