"""Examples of retrieval: queries with the candidates that a model retrieves, as plots and as data."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from biomedclip.processing.images.reading import read_row_image
from biomedclip.retrieval_metrics import DIRECTIONS, RankCounts, expected_ranks

from ..cli.plots import Answer, Query, plot_answers, plot_retrieved_images
from .pairs import EmbeddedPairs
from .pools import draw_pool


FOLDER = "examples"
TOP = {"image_to_text": 3, "text_to_image": 4}  # number of candidates to show
_PER_PICTURE = 6


class Candidate(NamedTuple):
    """A candidate: row of the dataset, similarity, whether it is correct, and rank among all candidates."""

    row: int
    score: float
    right: bool
    rank: float


class Example(NamedTuple):
    """A query: row of the dataset, and the best candidates, followed by the correct one if it is not among them."""

    row: int
    candidates: list[Candidate]


def find_examples(
    embedded: EmbeddedPairs,
    counts: Mapping[str, RankCounts],
    number: int,
    seed: int,
) -> dict[str, list[Example]]:
    """Choose random pairs, and retrieve captions for their images and images for their captions.

    `counts` are those of [`count_ranks`]. If there are fewer pairs than `number`, all are chosen.
    """
    texts = len(embedded.texts)
    chosen = draw_pool(texts, min(number, texts), seed=seed)
    image_of_text = _image_of_text(embedded)
    images = list(dict.fromkeys(image_of_text[chosen].tolist()))  # pairs with the same image form one query
    return retrieve(embedded, counts, dict(zip(DIRECTIONS, (images, chosen), strict=True)))


def find_worst(embedded: EmbeddedPairs, counts: Mapping[str, RankCounts], number: int) -> dict[str, list[Example]]:
    """Retrieve candidates for the queries whose correct candidate has the highest rank, the worst query first.

    Queries whose correct candidate is the first one are left out.
    """
    worst = {}
    for direction in DIRECTIONS:
        ranks = expected_ranks(counts[direction])
        order = ranks.sort(descending=True, stable=True).indices[:number].tolist()
        worst[direction] = [query for query in order if ranks[query] > 1]
    return retrieve(embedded, counts, worst)


def retrieve(
    embedded: EmbeddedPairs, counts: Mapping[str, RankCounts], queries: Mapping[str, Sequence[int]]
) -> dict[str, list[Example]]:
    """Retrieve captions for images and images for captions. `queries` are their numbers by direction."""
    image_of_text = _image_of_text(embedded)
    first_text = torch.zeros(len(embedded.images), dtype=torch.int64)
    first_text.scatter_reduce_(0, image_of_text, torch.arange(len(embedded.texts)), "amin", include_self=False)
    of_images = [
        _example(
            row=embedded.rows[first_text[image]],
            scores=embedded.texts.float() @ embedded.images[image].float(),
            right=image_of_text == image,
            rows=embedded.rows,
            rank=_rank(counts["image_to_text"], image),
            top=TOP["image_to_text"],
        )
        for image in queries["image_to_text"]
    ]
    of_texts = [
        _example(
            row=embedded.rows[text],
            scores=embedded.images.float() @ embedded.texts[text].float(),
            right=torch.arange(len(embedded.images)) == image_of_text[text],
            rows=embedded.rows[first_text],
            rank=_rank(counts["text_to_image"], text),
            top=TOP["text_to_image"],
        )
        for text in queries["text_to_image"]
    ]
    return dict(zip(DIRECTIONS, (of_images, of_texts), strict=True))


def _image_of_text(embedded: EmbeddedPairs) -> torch.Tensor:
    return torch.arange(len(embedded.texts)) if embedded.image_of_text is None else embedded.image_of_text


def _example(
    row: torch.Tensor, scores: torch.Tensor, right: torch.Tensor, rows: torch.Tensor, rank: float, top: int
) -> Example:
    """Return the best candidates of a query, and the best correct one if it is not among them."""
    best = scores.sort(descending=True, stable=True).indices[:top].tolist()
    ranked = [(place, float(number)) for number, place in enumerate(best, 1)]
    if not right[best].any():
        ranked.append((int(scores.masked_fill(~right, -torch.inf).argmax()), max(rank, len(best) + 1.0)))
    candidates = [Candidate(int(rows[place]), float(scores[place]), bool(right[place]), at) for place, at in ranked]
    return Example(int(row), candidates)


def write_examples(examples: Mapping[str, Sequence[Example]], pairs: Any, output_dir: Path) -> list[dict[str, Any]]:
    """Plot examples in the folder `examples`, remove those of an earlier run, and return entries for `results.json`.

    `pairs` are rows with `pair_id`, `pmcid`, `image` (not decoded), `caption`, and `license` if it is known.
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
                        _identity(pairs[row]) | {"score": score, "right": right, "rank": rank}
                        for row, score, right, rank in example.candidates
                    ],
                }
                for example in page
            ]
    return entries


def _rank(counts: RankCounts, query: int) -> float:
    """Return the mean rank of the first correct candidate, with ties in random order."""
    better, equal, right = (int(values[query]) for values in counts)
    return better + (equal + 1) / (right + 1)


def _query(example: Example, pairs: Any, direction: str) -> Query:
    def image(row: Mapping[str, Any]) -> Any:
        return read_row_image(row["image"])

    def caption(row: Mapping[str, Any]) -> str:
        return str(row["caption"])

    content, answer = (image, caption) if direction == "image_to_text" else (caption, image)
    rows = [(pairs[candidate.row], candidate) for candidate in example.candidates]
    answers = [Answer(answer(row), found.score, found.right, source_of(row), found.rank) for row, found in rows]
    query = pairs[example.row]
    return Query(content(query), answers, source_of(query))


def _identity(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("pair_id", "pmcid", "license") if name in row}


def source_of(row: Mapping[str, Any]) -> str:
    """Return the article and the license of a row, if they are known."""
    return ", ".join(str(row[name]) for name in ("pmcid", "license") if row.get(name))
