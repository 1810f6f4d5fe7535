"""The page of visual question answering: accuracy by type, reliability, and the most confident wrong answers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from biomedclip.processing.answers import normalize_answer

from ...cli.html import literal
from ..calibration import adaptive_bins
from ..decisions import measure_abstention
from .gallery import SHOWN, Entry, gallery, ranked, verdict
from .page import heading, paragraph, plot, table, write_page
from .sections import environment, introduction, metrics_table, notes, subgroups, title_of


MOST_CONFUSIONS = 20
_PREFIXES = {"all": "", "open": "open_", "closed": "closed_"}
_TOP = 3  # answers of a question


def write_question_report(
    path: Path, results: Mapping[str, Any], *, answers: Sequence[Mapping[str, Any]], images: Mapping[str, Any]
) -> None:
    """Write the report of visual question answering.

    Args:
        path: The HTML file.
        results: The content of `results.json`.
        answers: Rows of `answers.jsonl`.
        images: Images by their name. Only those of the galleries are read.
    """
    counted = f"{len(answers):,} questions about {results['metrics']['images']:,} images"
    answered = [row for row in answers if row["right"] is not None]
    sections = [
        introduction(results, counted),
        notes(results, "questions"),
        heading("Metrics"),
        _metrics(results),
        subgroups(results.get("subgroups") or {}, ("accuracy",), "questions"),
        _confusions(answered),
        _reliability(answered),
        *_galleries(answered, images),
        environment(results),
    ]
    write_page(path, title_of(results), sections)


def _metrics(results: Mapping[str, Any]) -> str:
    metrics = results["metrics"]
    present = {name: prefix for name, prefix in _PREFIXES.items() if metrics[f"{prefix}questions"]}
    caption = "{}, with 95 % intervals over images"
    chance = {f"{prefix}accuracy": metrics.get(f"{prefix}chance") for prefix in present.values()}
    html = metrics_table(
        metrics, chance, "always the most frequent answer of the type", results["paper"], caption.format("Accuracy")
    )
    rows = [
        (name, *(metrics[f"{prefix}{key}"] for key in ("questions", "answers_never_seen", "attainable_accuracy")))
        for name, prefix in present.items()
    ]
    columns = ["questions", "number", "answer unknown to the model", "highest possible accuracy"]
    html += table("Questions and answers", columns, rows)
    if "f1" in metrics:
        tokens = f"Token F1 (tokens: {results['settings']['f1_tokenizer']})"
        f1: dict[str, float | None] = dict.fromkeys(f"{prefix}f1" for prefix in present.values())
        html += metrics_table(metrics, f1, paper=results["paper"], caption=caption.format(tokens))
    return html


def _confusions(answered: Sequence[Mapping[str, Any]]) -> str:
    wrong = [row for row in answered if not row["right"]]
    counts = Counter((normalize_answer(row["answer"]), normalize_answer(row["given"])) for row in wrong)
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_CONFUSIONS]
    rows = [(f"{true} as {given}", count) for (true, given), count in most]
    if not rows:
        return ""
    title = heading("Confusions")
    return title + table("The most frequent wrong answers", ["true answer as given answer", "questions"], rows)


def _reliability(answered: Sequence[Mapping[str, Any]]) -> str:
    from .plots import plot_reliability  # imports scikit-learn

    if not answered:
        return ""
    confidence = np.array([row["score"] for row in answered])
    right = np.array([row["right"] for row in answered])
    bins = adaptive_bins(confidence, right)
    measured = {
        "calibration": {"adaptive_bins": bins.as_dict(), "adaptive_ece": bins.error},
        "abstention": measure_abstention(confidence, right),
    }
    alt = "Accuracy by the probability of the answer, and by the fraction of answered questions"
    return heading("Reliability") + plot(plot_reliability(measured, "questions"), alt)


def _galleries(answered: Sequence[Mapping[str, Any]], images: Mapping[str, Any]) -> list[str]:
    by_score = sorted(answered, key=lambda row: row["score"])
    wrong = [row for row in reversed(by_score) if not row["right"]][:SHOWN]
    each = " Each answer has its own probability: those of a question do not add up to 1."
    return [
        heading("The most confident wrong answers"),
        paragraph(f"Wrong answers with the highest probability.{each}"),
        _gallery(wrong, images) if wrong else paragraph("There are no wrong answers."),
        heading("The least certain answers"),
        paragraph("Questions whose best answer has the lowest probability."),
        _gallery(by_score[:SHOWN], images),
    ]


def _gallery(rows: Sequence[Mapping[str, Any]], images: Mapping[str, Any]) -> str:
    return gallery(_entry(row, images.get(row["image"])) for row in rows)


def _entry(row: Mapping[str, Any], image: Any) -> Entry:
    true = f"true: <strong>{literal(row['answer'])}</strong>, {verdict(row['right'])}"
    caption = f"{literal(row['image'])}<br>{literal(row['question'])}<br>{true}{ranked(row['top_answers'][:_TOP])}"
    return Entry(image, f"{row['image']}: {row['question']} {row['given']}", caption)
