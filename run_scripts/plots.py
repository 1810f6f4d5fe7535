"""Pictures of a run: curves of the training, and what the model answers."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch


matplotlib.use("Agg")

from matplotlib import pyplot as plt


def plot_curves(log_history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """
    Loss and validation recall over the steps.

    Args:
        log_history: `trainer.state.log_history`.
        path: PNG to write.
    """
    figure, (loss_axes, recall_axes) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
    for key, label in (("loss", "training batch"), ("eval_loss", "validation set")):
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        if points:
            loss_axes.plot(*zip(*points, strict=True), label=label)
    loss_axes.set(xlabel="step", ylabel="symmetric InfoNCE", title="Loss (the two sets differ in size)")
    for k, style in ((1, "-"), (5, "--"), (10, ":")):
        for direction, colour in (("image_to_text", "tab:blue"), ("text_to_image", "tab:orange")):
            key = f"eval_{direction}_recall_at_{k}"
            points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
            if points:
                label = f"{direction.replace('_', ' ')}, recall at {k}"
                recall_axes.plot(*zip(*points, strict=True), style, color=colour, label=label)
    recall_axes.set(xlabel="step", ylabel="recall", ylim=(0, 1), title="Retrieval on the validation set")
    for axes, place in ((loss_axes, {}), (recall_axes, {"loc": "center left", "bbox_to_anchor": (1, 0.5)})):
        axes.grid(alpha=0.3)
        if axes.get_lines():
            axes.legend(fontsize=7, **place)
    _save(figure, path)


def plot_answers(images: Sequence[Any], captions: Sequence[str], scores: torch.Tensor, path: Path) -> None:
    """
    Images as queries, each beside its three best captions; where the right one is not among them, its rank.

    Args:
        images: Pillow images of the queries.
        captions: All candidate captions; that of query i stands at place i.
        scores: Similarities of shape `(queries, captions)`.
        path: PNG to write.
    """
    columns = 2
    rows = -(-len(images) // columns)
    figure, grid = plt.subplots(
        rows,
        2 * columns,
        figsize=(12, 1.75 * rows),
        width_ratios=[1, 2.6] * columns,
        layout="constrained",
        squeeze=False,
    )
    for axes in grid.flat:
        axes.axis("off")
    for query, image in enumerate(images):
        row, column = divmod(query, columns)
        picture, text = grid[row][2 * column], grid[row][2 * column + 1]
        picture.imshow(image.convert("RGB"))
        top = 0.98
        best = scores[query].argsort(descending=True).tolist()
        for candidate in best[:3]:
            right = candidate == query
            caption = textwrap.shorten(captions[candidate], 170, placeholder=" ...")
            lines = textwrap.wrap(f"{'✓' if right else '·'} {scores[query, candidate]:.2f}  {caption}", 70)
            text.text(0, top, "\n".join(lines), va="top", fontsize=7, color="tab:green" if right else "0.25")
            top -= 0.1 * len(lines) + 0.05
        if query not in best[:3]:
            text.text(
                0, top, f"The right one is at rank {best.index(query) + 1}.", va="top", fontsize=7, style="italic"
            )
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)
