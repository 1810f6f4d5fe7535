"""Plot single questions: the image, the correct answer, and the best answers of the model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from biomedclip.model_cards.escaping import Markdown, markdown, table
from biomedclip.processing.answers import normalize_answer
from biomedclip.processing.benchmarks import VisualQuestionBenchmark
from biomedclip.processing.images.reading import read_row_image

from ..cli.plots import plot_question
from ..cli.reporting import say, write_text


FOLDER = "examples"
PAGE = "examples.md"


def choose_examples(answers: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[int]:
    """Return the positions of random answers, in ascending order: half of them correct, half wrong.

    If there are too few of one kind, more of the other kind are chosen. A question without an answer counts as wrong.
    """
    right = [place for place, row in enumerate(answers) if row["right"]]
    wrong = [place for place, row in enumerate(answers) if not row["right"]]
    of_right = min(len(right), max((count + 1) // 2, count - len(wrong)))
    generator = np.random.default_rng(seed)
    chosen = [*generator.permutation(right)[:of_right], *generator.permutation(wrong)[: count - of_right]]
    return sorted(int(place) for place in chosen)


def write_examples(
    answers: Sequence[Mapping[str, Any]], benchmark: VisualQuestionBenchmark, count: int, seed: int, output_dir: Path
) -> list[dict[str, Any]]:
    """Plot each chosen question in `examples/`, and write `examples.md`. Plots of an earlier run are removed.

    `answers` are rows of `answers.jsonl`. Return an entry of `results.json` for each plot: its `file` (relative to the
    folder of the results), the `name` of the question, and `right`.
    """
    folder = output_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for plot in folder.glob("question_[0-9]*.png"):
        plot.unlink()
    images = {question.image_name: question.image for question in benchmark.questions}
    rows = [answers[place] for place in choose_examples(answers, count, seed)]
    files = [f"{FOLDER}/question_{number:03}.png" for number in range(1, len(rows) + 1)]
    lines: list[tuple[Any, ...]] = []
    for file, row in zip(files, rows, strict=True):
        truth = normalize_answer(row["answer"])
        best = [(answer, score, normalize_answer(answer) == truth) for answer, score in row["top_answers"]]
        image = read_row_image(images[row["image"]])
        plot_question(image, row["question"], row["answer"], best, output_dir / file)
        given = "no answer" if row["given"] is None else f"{row['given']} ({row['score']:.2f})"
        verdict = "yes" if row["right"] else "no"
        lines.append((Markdown(f"![{Path(file).stem}]({file})"), row["question"], row["answer"], given, verdict))
    right = sum(bool(row["right"]) for row in rows)
    chosen = (
        f"{len(rows):,} of {len(answers):,} questions, chosen at random with seed {seed}: {right:,} answered "
        f"correctly, {len(rows) - right:,} not, which is not their ratio in the benchmark. Each answer has its own "
        "probability. The probabilities of a question do not add up to 1."
    )
    title = markdown(f"Examples of {benchmark.name}, {benchmark.split} split")
    columns = ["plot", "question", "right answer", "answer of the model", "correct"]
    page = [f"# {title}", "", chosen, "", table(columns, lines, text_columns=len(columns)), ""]
    write_text(output_dir / PAGE, "\n".join(page))
    say(f"{chosen} In {output_dir / PAGE} and {folder}.")
    return [{"file": file, "name": row["name"], "right": row["right"]} for file, row in zip(files, rows, strict=True)]
