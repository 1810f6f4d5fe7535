"""Examples of retrieval: some queries with what a model retrieves for them, as pictures and as data."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from biomedclip.processing.images.reading import read_row_image
from biomedclip.retrieval_metrics import DIRECTIONS, RankCounts

from ..cli.plots import Answer, Query, plot_answers, plot_retrieved_images
from .pools import draw_pool
from .retrieval import EmbeddedPairs


FOLDER = "examples"
TOP = {"image_to_text": 3, "text_to_image": 4}  # candidates that are shown
_PER_PICTURE = 6
_AT_A_TIME = 8  # queries; of 725,739 candidates their scores take 23 MB


class Candidate(NamedTuple):
    """A candidate: the row of the data, its similarity, whether it is right, and its rank among all candidates."""

    row: int
    score: float
    right: bool
    rank: float


class Example(NamedTuple):
    """A query: the row of the data, and its best candidates, followed by the right one if it is not among them."""

    row: int
    candidates: list[Candidate]


def find_examples(
    embedded: EmbeddedPairs,
    counts: Mapping[str, RankCounts],
    number: int,
    seed: int,
) -> dict[str, list[Example]]:
    """Choose pairs with a seed, and retrieve captions for their images and images for their captions.

    Args:
        embedded: The pairs among which retrieval was measured.
        counts: As of `count_ranks`.
        number: Number of pairs to choose. All if there are fewer.
        seed: Seed of the choice.

    Returns:
        The examples by direction.
    """
    texts = len(embedded.texts)
    image_of_text = torch.arange(texts) if embedded.image_of_text is None else embedded.image_of_text
    first_text = torch.zeros(len(embedded.images), dtype=torch.int64)
    first_text.scatter_reduce_(0, image_of_text, torch.arange(texts), "amin", include_self=False)
    chosen = torch.tensor(draw_pool(texts, min(number, texts), seed=seed))
    # Pairs that show the same image are one query.
    images = torch.tensor(list(dict.fromkeys(image_of_text[chosen].tolist())))
    found: dict[str, list[Example]] = {}
    for direction in DIRECTIONS:
        of_image = direction == "image_to_text"
        queries = images if of_image else chosen
        embeds = (embedded.images if of_image else embedded.texts)[queries]
        candidates = embedded.texts if of_image else embedded.images
        row_of = embedded.rows if of_image else embedded.rows[first_text]
        found[direction] = []
        for start in range(0, len(queries), _AT_A_TIME):
            for query, scores in zip(
                queries[start : start + _AT_A_TIME].tolist(),
                embeds[start : start + _AT_A_TIME].float() @ candidates.float().t(),
                strict=True,
            ):
                right = image_of_text == query if of_image else torch.arange(len(scores)) == image_of_text[query]
                best = scores.sort(descending=True, stable=True).indices[: TOP[direction]].tolist()
                listed = [
                    Candidate(int(row_of[place]), float(scores[place]), bool(right[place]), rank)
                    for rank, place in enumerate(best, 1)
                ]
                if not right[best].any():
                    place = int(scores.masked_fill(~right, -torch.inf).argmax())
                    rank = max(_rank(counts[direction], query), len(best) + 1.0)
                    listed.append(Candidate(int(row_of[place]), float(scores[place]), True, rank))
                row = embedded.rows[first_text[query] if of_image else query]
                found[direction].append(Example(int(row), listed))
    return found


def write_examples(examples: Mapping[str, Sequence[Example]], pairs: Any, output_dir: Path) -> list[dict[str, Any]]:
    """Draw examples as PNG files, and remove those of an earlier run.

    Args:
        examples: As of [`find_examples`].
        pairs: Rows with `pair_id`, `pmcid`, `image` (not decoded), `caption`, and `license` if it is known.
        output_dir: Folder of the results; the pictures go into its folder `examples`.

    Returns:
        An entry for each query, for `results.json`.
    """
    folder = output_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if re.fullmatch(rf"({'|'.join(DIRECTIONS)})_\d+\.png", path.name):
            path.unlink()
    entries = []
    for direction, found in examples.items():
        draw = plot_answers if direction == "image_to_text" else plot_retrieved_images
        for start in range(0, len(found), _PER_PICTURE):
            page = found[start : start + _PER_PICTURE]
            path = folder / f"{direction}_{start // _PER_PICTURE + 1}.png"
            draw([_query(example, pairs, direction) for example in page], path)
            entries += [
                {
                    "file": path.relative_to(output_dir).as_posix(),
                    "direction": direction,
                    "query": _identity(pairs[example.row]),
                    "rank": next(candidate.rank for candidate in example.candidates if candidate.right),
                    "candidates": [
                        {
                            **_identity(pairs[candidate.row]),
                            "score": candidate.score,
                            "right": candidate.right,
                            "rank": candidate.rank,
                        }
                        for candidate in example.candidates
                    ],
                }
                for example in page
            ]
    return entries


def plot_some_answers(embedded: EmbeddedPairs, counts: Any, pairs: Any, number: int, path: Path) -> None:
    """Plot a few images with their best captions."""
    examples = find_examples(embedded, counts, number, seed=0)["image_to_text"]
    plot_answers([_query(example, pairs, "image_to_text") for example in examples], path)


def _rank(counts: RankCounts, query: int) -> float:
    """The mean rank of the first right candidate, where chance breaks ties."""
    better, equal, right = (int(values[query]) for values in counts)
    return better + (equal + 1) / (right + 1)


def _query(example: Example, pairs: Any, direction: str) -> Query:
    def image(row: Mapping[str, Any]) -> Any:
        return read_row_image(row["image"])

    def caption(row: Mapping[str, Any]) -> str:
        return str(row["caption"])

    content, answer = (image, caption) if direction == "image_to_text" else (caption, image)
    row = pairs[example.row]
    answers = []
    for candidate in example.candidates:
        of_candidate = pairs[candidate.row]
        answers.append(
            Answer(answer(of_candidate), candidate.score, candidate.right, _source(of_candidate), candidate.rank)
        )
    return Query(content(row), answers, _source(row))


def _identity(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("pair_id", "pmcid", "license") if name in row}


def _source(row: Mapping[str, Any]) -> str:
    """Article and license of a row, as far as they are known."""
    return ", ".join(str(row[name]) for name in ("pmcid", "license") if row.get(name))
