"""Pictures of single questions: the image, the right answer, and the best answers of the model."""

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
    """Choose questions at random, half with a right and half with a wrong answer.

    If there are too few questions of one half, the other half gets more. With `count` above the number of questions,
    all are chosen.

    Args:
        answers: Rows with `right`, which is None for a question without an answer. It counts as wrong.
        count: Number of questions to choose.
        seed: Seed of the choice.

    Returns:
        The positions of the chosen rows, in their order.
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
    """Write a picture of each chosen question to `examples/`, and `examples.md`, which lists them.

    The pictures of an earlier run in the same folder are replaced.

    Args:
        answers: What [`answer_questions`] returns.
        benchmark: The questions, with their images.
        count: Number of questions to choose, see [`choose_examples`].
        seed: Seed of the choice.
        output_dir: Folder of the results.

    Returns:
        For each picture `file` (relative to the folder of the results), `name` of the question, and `right`.
    """
    folder = output_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for picture in folder.glob("question_[0-9]*.png"):
        picture.unlink()
    images = {question.image_name: question.image for question in benchmark.questions}
    examples: list[dict[str, Any]] = []
    rows: list[tuple[Any, ...]] = []
    without_font: set[str] = set()
    for number, place in enumerate(choose_examples(answers, count, seed), 1):
        row = answers[place]
        path = folder / f"question_{number:03}.png"
        best = [
            (answer, score, normalize_answer(answer) == normalize_answer(row["answer"]))
            for answer, score in row["top_answers"]
        ]
        image = read_row_image(images[row["image"]])
        without_font |= set(plot_question(image, row["question"], row["answer"], best, path))
        file = f"{FOLDER}/{path.name}"
        examples.append({"file": file, "name": row["name"], "right": row["right"]})
        given = "no answer" if row["given"] is None else f"{row['given']} ({row['score']:.2f})"
        verdict = "yes" if row["right"] else "no"
        rows.append((Markdown(f"![question {number}]({file})"), row["question"], row["answer"], given, verdict))
    right = sum(bool(example["right"]) for example in examples)
    chosen = (
        f"{len(examples):,} of {len(answers):,} questions, chosen at random with seed {seed}: {right:,} answered "
        f"correctly, {len(examples) - right:,} not, which is not their ratio in the benchmark. Each answer has a "
        "probability of its own; those of a question do not add up to 1."
    )
    title = f"Examples of {benchmark.name}, {benchmark.split} split"
    columns = ["picture", "question", "right answer", "answer of the model", "correct"]
    page = ["# " + markdown(title), "", chosen, "", table(columns, rows, text_columns=len(columns)), ""]
    write_text(output_dir / PAGE, "\n".join(page))
    say(f"{chosen} In {output_dir / PAGE} and {folder}.")
    if without_font:
        shown = "".join(sorted(without_font)[:10])
        say(
            f"No installed font has some characters of the examples ({shown}), which are drawn as boxes. Install a "
            "font that has them, such as Noto Sans CJK."
        )
    return examples
