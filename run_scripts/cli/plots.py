"""Plots: training curves, examples of what a model retrieves or answers, comparisons, and the report of a build."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib


matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter, MaxNLocator

from biomedclip.model_cards.escaping import one_line
from biomedclip.model_cards.formatting import percent
from biomedclip.processing.bit_depth_biomedclip import to_8_bit

from .build_report import largest, share
from .fonts import fonts_for, wrap_text


# A pair of dollar signs in a file name, a caption or a class name does not delimit math.
_plain_text = matplotlib.rc_context({"text.parse_math": False, "text.usetex": False})
_RIGHT, _WRONG, _MUTED = "tab:green", "tab:red", "0.4"


@_plain_text
def plot_curves(log_history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot the loss and the validation recall over the training steps, from `trainer.state.log_history`."""
    figure, (loss_axes, recall_axes) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
    curves: list[tuple[Any, str, str, dict[str, str]]] = [
        (loss_axes, "loss", "training batch", {}),
        (loss_axes, "eval_loss", "validation set", {}),
    ]
    for k, style in ((1, "-"), (5, "--"), (10, ":")):
        for direction, color in (("image_to_text", "tab:blue"), ("text_to_image", "tab:orange")):
            label = f"{direction.replace('_', ' ')}, recall at {k}"
            curves.append((recall_axes, f"eval_{direction}_recall_at_{k}", label, {"linestyle": style, "color": color}))
    for axes, key, label, options in curves:
        if points := [(entry["step"], entry[key]) for entry in log_history if key in entry]:
            axes.plot(*zip(*points, strict=True), label=label, **options)
    loss_axes.set(xlabel="step", ylabel="symmetric InfoNCE", title="Loss (the two sets differ in size)")
    recall_axes.set(xlabel="step", ylabel="recall", ylim=(0, 1), title="Retrieval on the validation set")
    for axes, place in ((loss_axes, {}), (recall_axes, {"loc": "center left", "bbox_to_anchor": (1, 0.5)})):
        axes.grid(alpha=0.3)
        if axes.get_lines():
            axes.legend(fontsize=7, **place)
    _save(figure, path)


@dataclass(frozen=True)
class Answer:
    """A candidate that a model retrieved. The correct one has the content of the query's pair."""

    content: Any  # a caption or a Pillow image
    score: float  # cosine similarity to the query
    right: bool
    source: str = ""  # article and license, if they are known
    rank: float = 1  # among all candidates, starting at 1


@dataclass(frozen=True)
class Query:
    """A Pillow image or a caption with the candidates that a model retrieved for it.

    The best candidates are first, followed by the correct one if it is not among them.
    """

    content: Any
    answers: Sequence[Answer]
    source: str = ""  # article and license, if they are known


@_plain_text
def plot_answers(queries: Sequence[Query], path: Path) -> None:
    """Plot images with their best captions. The correct caption is green."""
    with fonts_for(_text_of(queries)):
        blocks = []
        for query in queries:
            block: _Block = [(_wrap(f"Image of {query.source}", 6, 2), _MUTED)] if query.source else []
            for place, answer in enumerate(query.answers, 1):
                rank = "" if answer.rank <= place else f" The correct one has rank {answer.rank:,.10g}:"
                text = _wrap(f"{'✓' if answer.right else '·'} {answer.score:.2f} {rank} {answer.content}", 6, 3)
                source = "\n    " + _wrap(answer.source, 5.5, 1) if answer.source else ""
                block.append((text + source, _RIGHT if answer.right else "0.25"))
            blocks.append(block)
        figure, rows = _rows([max(1.6, _height(block)) for block in blocks], [2, 6.2])
        for (image, text), query, block in zip(rows, queries, blocks, strict=True):
            _show_image(image, query.content)
            image.axis("off")
            _write(text, block)
        _save(figure, path)


@_plain_text
def plot_retrieved_images(queries: Sequence[Query], path: Path) -> None:
    """Plot captions with their best images. The correct image has a green frame."""
    with fonts_for(_text_of(queries)):
        blocks: list[_Block] = []
        for query in queries:
            header = f"Caption of {query.source}" if query.source else "Caption"
            blocks.append([(_wrap(header, 2.6, 2), _MUTED), (_wrap(query.content, 2.6, 12), "black")])
        columns = max(len(query.answers) for query in queries)
        figure, rows = _rows([max(2.2, _height(block)) for block in blocks], [2.8, *[1.7] * columns])
        for (text, *cells), query, block in zip(rows, queries, blocks, strict=True):
            _write(text, block)
            for cell in cells[len(query.answers) :]:
                cell.axis("off")
            for place, (cell, answer) in enumerate(zip(cells, query.answers, strict=False), 1):
                _show_image(cell, answer.content)
                color, width = (_RIGHT, 3) if answer.right else ("0.8", 0.8)
                cell.spines[:].set(color=color, linewidth=width, linestyle="-" if answer.rank <= place else ":")
                title = f"{'✓ ' if answer.right else ''}rank {answer.rank:,.10g}   {answer.score:.2f}"
                cell.set_title(title, fontsize=7, color=_RIGHT if answer.right else "0.25")
                cell.set_xlabel(_wrap(answer.source, 1.4, 2), fontsize=6, color=_MUTED)
        _save(figure, path)


@_plain_text
def plot_question(
    image: Any, question: str, right_answer: str, best: Sequence[tuple[str, float, bool]], path: Path
) -> None:
    """Plot a question about an image, with the correct answer and the best answers of a model.

    `best` contains the text, the probability and the correctness of each answer. It is empty if there is no answer.
    """
    right = bool(best) and best[0][2]
    verdict = "no answer: its scores are NaN or infinite" if not best else "correct" if right else "incorrect"
    with fonts_for(one_line("".join([question, right_answer, *(answer for answer, *_ in best)]))):
        block = [
            (_wrap(question, 4.2, 8), "black"),
            (_wrap(f"Correct answer: {right_answer}", 4.2, 4), "black"),
            (f"Model: {verdict}", _RIGHT if right else _WRONG),
        ]
        heights = [_height(block), max(0.3, 0.3 * len(best))]
        figure, axes = plt.subplot_mosaic(
            [["image", "text"], ["image", "answers"]],
            width_ratios=[2.6, 4.4],
            height_ratios=heights,
            figsize=(7, max(2.7, sum(heights) + 0.3)),
            layout="constrained",
        )
        _show_image(axes["image"], image)
        _write(axes["text"], block)
        for place, (answer, score, is_right) in enumerate(best):
            axes["answers"].barh(place, score, color=_RIGHT if is_right else "0.6" if place else _WRONG, alpha=0.4)
            axes["answers"].text(0.01, place, f"{score:.2f}   {_wrap(answer, 3.4, 1)}", va="center", fontsize=_SIZE)
        axes["answers"].set(xlim=(0, 1), xticks=[], yticks=[], ylim=(max(1, len(best)) - 0.5, -0.5))
        axes["answers"].spines[:].set_visible(False)
        _save(figure, path)


_Block = list[tuple[str, str]]  # texts, which may have several lines, with their colors
_SIZE, _LINE = 7, 10.0  # font size and line height, in points


def _rows(heights: Sequence[float], widths: Sequence[float]) -> tuple[Any, Any]:
    """Return a figure and its axes, with a row for each height and a column for each width, in inches."""
    return plt.subplots(
        len(heights),
        len(widths),
        squeeze=False,
        height_ratios=heights,
        width_ratios=widths,
        figsize=(sum(widths) + 0.2, sum(heights)),
        layout="constrained",
    )


def _show_image(axes: Any, image: Any) -> None:
    """Draw an image of any mode and depth at the top of its axes."""
    small = to_8_bit(image).convert("RGB")
    small.thumbnail((512, 512))  # figures of articles have many megapixels
    axes.imshow(small)
    axes.set(xticks=[], yticks=[], anchor="N")


def _write(axes: Any, block: _Block) -> None:
    """Write texts below each other, starting at the top of their axes."""
    axes.axis("off")
    offset = 2.0
    for text, color in block:
        annotation = axes.annotate(
            text,
            (0, 1),
            (0, -offset),
            xycoords="axes fraction",
            textcoords="offset points",
            va="top",
            fontsize=_SIZE,
            color=color,
        )
        annotation.set_in_layout(False)
        offset += _LINE * (text.count("\n") + 1) + 4


def _height(block: _Block) -> float:
    """Return the height of a block, in inches."""
    return sum(_LINE * (text.count("\n") + 1) + 4 for text, _ in block) / 72 + 0.15


def _wrap(text: Any, inches: float, most_lines: int) -> str:
    return "\n".join(wrap_text(one_line(str(text)[:5000]), inches, _SIZE, most_lines))


def _text_of(queries: Sequence[Query]) -> str:
    parts: list[Any] = [part for query in queries for part in (query, *query.answers)]
    texts = [text[:5000] for part in parts for text in (part.content, part.source) if isinstance(text, str)]
    return one_line("".join(texts))


@_plain_text
def plot_comparison(
    title: str,
    rows: Sequence[str],
    cells: Mapping[str, Sequence[Any]],
    chance: float | None,
    path: Path,
    *,
    published: Collection[str] = (),
) -> None:
    """Plot models on one or several benchmarks, with a point for each model (key of `cells`) and row.

    A value has the fields `value`, `interval` and `deviation`, or is None. `chance` is the accuracy of guessing, drawn
    as a line if it is the same for all rows. The points of `published` models, which were not measured, are hollow and
    gray.
    """
    markers = dict(zip((name for name in cells if name in published), itertools.cycle("Ds^vPX*h<>pHd8")))
    height = max(0.3, 0.12 * (len(cells) + 1)) * len(rows) + 0.12 * len(cells) + 1.4
    figure, axes = plt.subplots(figsize=(8.5, max(2.6, height)), layout="constrained")
    for place, (name, values) in enumerate(cells.items()):
        offset = 0.8 * ((place + 0.5) / len(cells) - 0.5)
        known = [(row + offset, value) for row, value in enumerate(values) if value and value.value is not None]
        _plot_values(axes, known, name, None if name in markers else f"C{place % 10}", markers.get(name, "o"))
    if chance is not None:
        axes.axvline(chance, color="0.5", linestyle="--", linewidth=1, label="chance (accuracy)")
    for row in range(1, len(rows)):
        axes.axhline(row - 0.5, color="0.9", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(rows)), list(map(one_line, rows)))
    axes.set(xlim=(0, 1.02), ylim=(len(rows) - 0.5, -0.5), xlabel="fraction")
    axes.set_title(one_line(title), fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)  # names of published models are long
    _save(figure, path)


def _plot_values(axes: Any, points: Sequence[tuple[float, Any]], name: str, color: str | None, marker: str) -> None:
    """Plot the values of a model with intervals or deviations. Without a color, the points are hollow and gray."""
    bars: tuple[list[float], list[float]] = ([], [])
    for _, value in points:
        low, high = value.interval or (value.value - (value.deviation or 0), value.value + (value.deviation or 0))
        bars[0].append(max(0.0, value.value - low))
        bars[1].append(max(0.0, high - value.value))
    label = one_line(name)
    axes.errorbar(
        [value.value for _, value in points],
        [row for row, _ in points],
        xerr=None if color is None else bars,
        fmt=marker,
        color=color or "0.35",
        markerfacecolor="white" if color is None else None,
        capsize=2,
        label=f" {label}" if label.startswith("_") else label,  # matplotlib hides labels that begin with an underscore
    )


@_plain_text
def plot_few_shot(metrics: Mapping[str, Any], path: Path) -> None:
    """Plot the accuracy of few-shot methods over the number of training images, with their intervals.

    `metrics` are those of `biomedclip evaluate few-shot`. With base and novel classes, there is a plot for each metric.
    """
    panels = {"accuracy": "accuracy"}
    if "base_classes" in metrics:
        panels = {f"{name}_accuracy": name.replace("_", " ") for name in ("base", "novel", "harmonic_mean")}
    by_method = metrics["by_method"]
    counts = sorted({int(shots) for by_shots in by_method.values() for shots in by_shots} - {0}) or [0]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(2.2 + 4.2 * len(panels), 3.8), layout="constrained", sharey=True, squeeze=False
    )
    for place, (name, title) in enumerate(panels.items()):
        axis = axes[0, place]
        for color, (method, by_shots) in enumerate(by_method.items()):
            # The methods are side by side, so that their intervals do not overlap.
            shift = 0.06 * (color - (len(by_method) - 1) / 2)
            known = [(shots, by_shots[str(shots)]) for shots in counts if str(shots) in by_shots]
            known = [(shots, summary) for shots, summary in known if summary[name] is not None]
            if constant := by_shots.get("0"):
                axis.axhline(constant[name], color=f"C{color}", linestyle="--", linewidth=1.2, label=method)
            elif known:
                ends = [summary[f"{name}_interval"] or [summary[name]] * 2 for _, summary in known]
                values = [summary[name] for _, summary in known]
                bars = [
                    [value - low for value, (low, _) in zip(values, ends, strict=True)],
                    [high - value for value, (_, high) in zip(values, ends, strict=True)],
                ]
                where = [counts.index(shots) + shift for shots, _ in known]
                axis.errorbar(where, values, bars, color=f"C{color}", marker="o", markersize=4, capsize=2, label=method)
        if "chance" in metrics:
            axis.axhline(metrics["chance"], color="0.5", linestyle=":", linewidth=1, label="chance")
        axis.set_xticks(range(len(counts)), list(map(str, counts)))
        axis.set(xlabel="training images of a class", ylim=(0, 1.02), title=title if len(panels) > 1 else "")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel(f"accuracy, {metrics['images']:,} test images")
    axes[0, -1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


@_plain_text
def plot_robustness(found: Mapping[str, Any], path: Path | BinaryIO) -> None:
    """Plot a metric by the strength of each corruption, from `metrics.robustness` of `results.json`."""
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    _draw_robustness(axes, found, found["metric"])
    label = "mean AUROC" if found["metric"] == "auroc" else found["metric"]
    axes.set(xlabel="strength (0: without corruption)", ylabel=label, title="Corrupted images")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


@_plain_text
def plot_few_shot_robustness(found: Mapping[str, Any], path: Path) -> None:
    """Plot the accuracy of each few-shot method by the strength of each corruption."""
    by_method = found["by_method"]
    columns = min(3, len(by_method))
    rows = -(-len(by_method) // columns)
    size = (1.6 + 3.2 * columns, 0.5 + 2.7 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axes, (method, of_method) in zip(grid.flat, by_method.items(), strict=False):
        _draw_robustness(axes, of_method, "accuracy")
        axes.set(title=method)
    for axes in grid.flat[len(by_method) :]:
        axes.set_axis_off()
    figure.supxlabel("strength (0: without corruption)", fontsize="medium")
    shots = f", {found['shots']} shots of a class" if found["shots"] else ""
    figure.supylabel(f"accuracy{shots}", fontsize="medium")
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=8, loc="outside right center")
    _save(figure, path)


def _draw_robustness(axes: Any, found: Mapping[str, Any], metric: str) -> None:
    markers = itertools.cycle("osv^D<>pX")
    for (name, entries), marker in zip(found["corruptions"].items(), markers, strict=False):
        points = [(0, found["clean"]), *((entry["strength"], entry[metric]) for entry in entries)]
        known = [(strength, value) for strength, value in points if value is not None]
        axes.plot(*zip(*known, strict=True), label=name, marker=marker, markersize=4) if known else None
    axes.set(ylim=(0, 1.02))
    axes.grid(alpha=0.3)


@_plain_text
def plot_report(report: Mapping[str, Any], path: Path) -> None:
    """Plot the report of a build: articles and figures, licenses, caption lengths, image sizes and types of images."""
    composition = report.get("composition")
    rows_of_axes = 3 if composition else 2
    size, ratios = (13, 4.5 * rows_of_axes), [1.3, 1, 1.3][:rows_of_axes]
    figure, grid = plt.subplots(rows_of_axes, 2, figsize=size, height_ratios=ratios, layout="constrained")
    (counts_axes, caption_axes), (license_axes, image_axes) = grid[:2]
    articles, figures = report["articles"], report["figures"]
    rows = [("articles kept", articles["kept"], articles["seen"], "tab:blue")]
    rows += [(reason, n, articles["seen"], "lightsteelblue") for reason, n in largest(articles["dropped"], 7)]
    rows += [("pairs", report["pairs"], 0, "tab:orange")]
    rows += [(reason, n, figures["seen"], "navajowhite") for reason, n in largest(figures["skipped"], 7)]
    _plot_counts(counts_axes, rows)
    counts_axes.set_title(
        f"Articles seen: {articles['seen']:,} (blue), their figures: {figures['seen']:,} (orange)\n"
        "pale: excluded, with the reason"
    )

    licenses = largest(report["licenses"], 10)
    _plot_counts(license_axes, [(code, count, report["pairs"], "tab:green") for code, count in licenses])
    license_axes.set_title("Pairs by license")

    captions, images = report["caption_length"], report["image_size"]
    unit = one_line(captions["unit"])
    _plot_histogram(caption_axes, captions, [256] if captions["unit"] == "tokens" else [])
    caption_axes.set(xlabel=f"{unit} of a caption", ylabel="captions")
    caption_axes.set_title(f"Captions: {percent(captions['within_256'])} have at most 256 {unit}")
    _plot_histogram(image_axes, images, [224, 336])
    image_axes.set(xlabel=one_line(images["unit"]), ylabel="images")
    image_axes.set_title(f"Images: {percent(images['above_336'])} are larger than 336 pixels")
    if composition:
        found, (kind_axes, type_axes) = report["panel_detection"], grid[2]
        kinds = [(kind, count, report["pairs"], "tab:purple") for kind, count in composition["rows"].items()]
        _plot_counts(kind_axes, kinds)
        compound, split = share(found["compound_figures"], found["examined_figures"]), found["split_captions"]
        kind_axes.set_title(f"Rows. Compound: {compound} of the figures, captions split: {split:,}")
        total = sum(composition["image_types"].values())
        types = largest(composition["image_types"], 12)
        _plot_counts(type_axes, [(name, count, total, "tab:olive") for name, count in types])
        type_axes.set_title("Panels and single figures by type")
    figure.suptitle(f"Pairs: {report['pairs']:,}, built on {one_line(report['built'])}")
    _save(figure, path)


def _plot_counts(axes: Any, rows: Sequence[tuple[str, int, int, str]]) -> None:
    """Plot bars with name, count, fraction of a total (0 for none) and color, from top to bottom."""
    bars = axes.barh(range(len(rows)), [count for _, count, *_ in rows], color=[color for *_, color in rows])
    labels = [f"{count:,}" + (f"  {share(count, total)}" if total else "") for _, count, total, _ in rows]
    axes.bar_label(bars, labels, padding=4, fontsize=8)
    axes.set_yticks(range(len(rows)), [_wrap(name, 2.6, 2) for name, *_ in rows], fontsize=8)
    axes.set_ylim(max(len(rows), 6) - 0.5, -0.5)  # so that one or two bars do not fill the axes
    axes.set_xlim(0, 1.35 * max([1, *(count for _, count, *_ in rows)]))  # with room for the labels
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.spines[["top", "right"]].set_visible(False)


def _plot_histogram(axes: Any, part: Mapping[str, Any], marks: Sequence[int]) -> None:
    """Plot counts as a histogram, with dashed lines at the input sizes of models."""
    axes.stairs(part["histogram"]["counts"], part["histogram"]["edges"], fill=True, color="tab:blue", alpha=0.6)
    for mark in marks:
        axes.axvline(mark, color="0.3", linestyle="--", linewidth=1)
        axes.text(mark, 0.99, f" {mark}", transform=axes.get_xaxis_transform(), va="top", fontsize=8)
    # The last bar contains all larger values and would squeeze the others.
    axes.set_xlim(0, max(1.25 * part["percentiles"]["99"], 300, *(1.25 * mark for mark in marks)))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(EngFormatter())
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, path: Path | BinaryIO) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)
