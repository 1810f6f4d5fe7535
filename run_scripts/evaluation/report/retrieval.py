"""The page of retrieval: recall in both directions, ranks, and the worst queries with what was retrieved."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from biomedclip.contrastive_trainer import LOSS_IN_BATCHES, VALIDATION_BATCH
from biomedclip.retrieval_metrics import DIRECTIONS, RECALLS, RankCounts

from ...cli.html import literal
from ...cli.reporting import format_value
from ..examples import Candidate, Example, source_of
from .gallery import Entry, cards, strip, thumbnail
from .page import heading, paragraph, plot, write_page
from .rank_plots import plot_ranks
from .sections import environment, introduction, metrics_table, notes, title_of


MOST_WRONG = 3  # candidates of a query, besides the right one
_LONGEST = 240  # characters of a caption
_WORDS = {"image_to_text": "Image to text", "text_to_image": "Text to image"}


def write_retrieval_report(
    path: Path,
    results: Mapping[str, Any],
    *,
    counts: Mapping[str, RankCounts] | None,
    candidates: Mapping[str, int],
    worst: Mapping[str, Sequence[Example]],
    pairs: Any,
) -> None:
    """Write the report of retrieval.

    Args:
        path: The HTML file.
        results: The content of `results.json`.
        counts: Rank counts of the first pool by direction, or None if embeddings are not finite.
        candidates: Number of candidates of the first pool by direction.
        worst: Queries of the first pool to show by direction, see [`find_worst`].
        pairs: The rows of the dataset. Only the images of these queries and of their candidates are read.
    """
    metrics = results["metrics"]
    sections = [
        introduction(results, f"{metrics['pairs']:,} pairs"),
        notes(results),
        heading("Metrics"),
        *(_metrics(results, direction) for direction in DIRECTIONS),
        _settings(metrics),
    ]
    if counts is not None:
        alt = "Recall at k, and the distribution of the rank of the right candidate, in both directions"
        sections += [heading("Ranks"), plot(plot_ranks(counts, candidates), alt)]
        sections += [_queries(direction, worst[direction], candidates[direction], pairs) for direction in DIRECTIONS]
    write_page(path, title_of(results), [*sections, environment(results)])


def _metrics(results: Mapping[str, Any], direction: str) -> str:
    metrics = results["metrics"]
    baselines: dict[str, float | None] = {f"recall_at_{k}": min(1.0, k * metrics["chance_at_1"]) for k in RECALLS}
    baselines["median_rank"] = None if "images" in metrics else (metrics["pairs"] + 1) / 2
    caption = f"{_WORDS[direction]}, with 95 % intervals over articles or groups"
    return metrics_table(metrics[direction], baselines, "chance", results["paper"].get(direction), caption)


def _settings(metrics: Mapping[str, Any]) -> str:
    pool = metrics["pool"]
    drawn = f"Mean of {pool['draws']} draws" if pool["draws"] > 1 else "One draw"
    text = f"{drawn} of {pool['size']:,} of {pool['pairs']:,} pairs, seed {pool['seed']}."
    if pool["draws"] > 1:
        text += " Plots and queries are those of the first draw."
    if metrics.get(LOSS_IN_BATCHES) is not None:
        text += f" The loss in batches of {VALIDATION_BATCH:,} pairs is {format_value(metrics[LOSS_IN_BATCHES])}."
    return paragraph(text, "muted")


def _queries(direction: str, worst: Sequence[Example], candidates: int, pairs: Any) -> str:
    html = heading(f"{_WORDS[direction]}: the worst queries")
    if not worst:
        return html + paragraph("The right candidate is always the first one.")
    what = "caption" if direction == "image_to_text" else "image"
    text = f"The right {what} has the highest rank, of {candidates:,} {what}s. Gray numbers are similarities."
    card = _image_query if direction == "image_to_text" else _text_query
    return html + paragraph(text) + cards(card(example, pairs) for example in worst)


def _image_query(example: Example, pairs: Any) -> str:
    """Return an image with its right caption and the best wrong ones."""
    query = pairs[example.row]
    right, wrong = _candidates(example)
    others = "".join(
        f'<li value="{found.rank:.0f}">{_score(found)} {_caption(pairs, found.row)}</li>' for found in wrong
    )
    image = thumbnail(query["image"], f"Query {query['pair_id']}")
    return (
        f'<div class="beside"><div class="image">{image}</div><div>{_name(query)}'
        f'<p><span class="right">right, rank {_rank(right)}:</span> {_score(right)} {_caption(pairs, right.row)}</p>'
        f"Best wrong captions:<ol>{others}</ol></div></div>"
    )


def _text_query(example: Example, pairs: Any) -> str:
    """Return a caption with its right image and the best wrong ones."""
    right, wrong = _candidates(example)
    entries = [
        Entry(
            pairs[found.row]["image"],
            f"{pairs[found.row]['pair_id']}, rank {_rank(found)}",
            f"{'right, ' if found.right else ''}rank {_rank(found)}: {_score(found)}",
            "correct" if found.right else "",
        )
        for found in (right, *wrong)
    ]
    return f"{_name(pairs[example.row])}<p>{_caption(pairs, example.row)}</p>{strip(entries)}"


def _candidates(example: Example) -> tuple[Candidate, list[Candidate]]:
    """Return the best right candidate of a query, and the best wrong ones."""
    right = next(found for found in example.candidates if found.right)
    return right, [found for found in example.candidates if not found.right][:MOST_WRONG]


def _rank(found: Candidate) -> str:
    return f"{found.rank:,.0f}" if found.rank == round(found.rank) else f"{found.rank:,.1f}"  # the mean of tied ranks


def _score(found: Candidate) -> str:
    return f'<span class="muted">{found.score:.3f}</span>'


def _name(row: Mapping[str, Any]) -> str:
    source = source_of(row)
    return f'<span class="muted">{literal(row["pair_id"])}{f", {literal(source)}" if source else ""}</span>'


def _caption(pairs: Any, row: int) -> str:
    text = str(pairs[row]["caption"])
    return literal(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")
