"""Pictures of a run: curves of the training, what the model answers, and what a build has gathered."""

import itertools
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from biomedclip.model_cards.escaping import one_line
from biomedclip.model_cards.formatting import percent
from biomedclip.processing.bit_depth_biomedclip import to_8_bit

from .build_report import largest, share
from .fonts import fonts_for, wrap_text


logger = logging.getLogger(__name__)

# Names of files, models and classes are text: a pair of dollars in them is not mathematics.
_plain_text = matplotlib.rc_context({"text.parse_math": False, "text.usetex": False})


@_plain_text
def plot_curves(log_history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss and validation recall over the steps.

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


@dataclass(frozen=True)
class Answer:
    """A candidate that a model has retrieved.

    Args:
        content: A caption or a Pillow image.
        score: Cosine similarity to the query.
        right: Whether it belongs to the query.
        source: Article and license. Empty if they are unknown.
        rank: Place among all candidates, from 1.
    """

    content: Any
    score: float
    right: bool
    source: str = ""
    rank: float = 1


@dataclass(frozen=True)
class Query:
    """An image or a caption with what a model has retrieved for it.

    Args:
        content: A Pillow image or a caption.
        answers: The best candidates, best first. If the right one is not among the best, it follows them.
        source: Article and license. Empty if they are unknown.
    """

    content: Any
    answers: Sequence[Answer]
    source: str = ""


@_plain_text
def plot_answers(queries: Sequence[Query], path: Path) -> None:
    """Plot images, each beside its best captions. The right caption is green.

    Args:
        queries: Images with captions.
        path: PNG to write.
    """
    with _fonts_for(queries):
        columns = 2
        blocks = [_caption_blocks(query) for query in queries]
        rows = -(-len(queries) // columns)
        heights = [max(1.6, *map(_height, blocks[row * columns : (row + 1) * columns])) for row in range(rows)]
        figure = plt.figure(figsize=(12, sum(heights) + 0.1))
        grid = _grid(figure, heights, [1, 2.6] * columns)
        for number, (query, block) in enumerate(zip(queries, blocks, strict=True)):
            row, column = divmod(number, columns)
            picture = figure.add_subplot(grid[row, 2 * column])
            _show(picture, query.content)
            picture.axis("off")
            _write(figure.add_subplot(grid[row, 2 * column + 1]), block)
        _save(figure, path)


@_plain_text
def plot_retrieved_images(queries: Sequence[Query], path: Path) -> None:
    """Plot captions, each beside its best images. The right image has a green frame.

    Args:
        queries: Captions with images.
        path: PNG to write.
    """
    with _fonts_for(queries):
        blocks = [_query_block(query) for query in queries]
        heights = [max(2.2, _height(block)) for block in blocks]
        columns = max(len(query.answers) for query in queries)
        figure = plt.figure(figsize=(3.6 + 1.7 * columns, sum(heights) + 0.1))
        grid = _grid(figure, heights, [2.2, *[1] * columns])
        for row, (query, block) in enumerate(zip(queries, blocks, strict=True)):
            _write(figure.add_subplot(grid[row, 0]), block)
            for column, answer in enumerate(query.answers):
                axes = figure.add_subplot(grid[row, column + 1])
                _show(axes, answer.content)
                # Room for the line above and the lines below, in a cell of a fixed height.
                place = axes.get_position(original=True)
                room = 0.25 / figure.get_figheight(), 0.45 / figure.get_figheight()
                axes.set_position((place.x0, place.y0 + room[1], place.width, place.height - sum(room)))
                axes.set(xticks=[], yticks=[])
                among_best = answer.rank <= column + 1
                for spine in axes.spines.values():
                    spine.set(color="tab:green" if answer.right else "0.8", linewidth=3 if answer.right else 0.8)
                    spine.set_linestyle("-" if among_best else ":")
                mark = f"{'✓ ' if answer.right else ''}rank {_rank(answer.rank)}   {answer.score:.2f}"
                axes.set_title(mark, fontsize=7, pad=5, color="tab:green" if answer.right else "0.25")
                axes.set_xlabel("\n".join(_wrapped(answer.source, 1.4, 2)), fontsize=6, color="0.4")
        _save(figure, path)


_SIZE = 7  # points
_LINE = 10.0  # points of a line of text of this size
_Block = list[tuple[list[str], str, str]]  # lines of text, their color and their style


def _query_block(query: Query) -> _Block:
    """The caption of a query."""
    header = f"Caption of {one_line(query.source)}" if query.source else "Caption"
    return [(_wrapped(header, 2.6, 2), "0.4", "italic"), (_wrapped(query.content, 2.6, 12), "black", "normal")]


def _caption_blocks(query: Query) -> _Block:
    """The captions that were retrieved for an image."""
    block: _Block = []
    if query.source:
        block.append((_wrapped(f"Image of {query.source}", 3.8, 2), "0.4", "italic"))
    for place, answer in enumerate(query.answers, 1):
        rank = "" if answer.rank <= place else f" The right one is at rank {_rank(answer.rank)}:"
        lines = _wrapped(f"{'✓' if answer.right else '·'} {answer.score:.2f} {rank} {answer.content}", 3.8, 3)
        if answer.source:
            lines += [f"    {line}" for line in _wrapped(answer.source, 3.6, 1)]
        block.append((lines, "tab:green" if answer.right else "0.25", "normal" if answer.rank <= place else "italic"))
    return block


def _height(block: _Block) -> float:
    """Inches that a block of text takes."""
    return sum(_LINE * len(lines) + 4 for lines, *_ in block) / 72 + 0.15


def _grid(figure: Any, heights: Sequence[float], widths: Sequence[float]) -> Any:
    """Cells of given heights in inches and relative widths, without room between the rows."""
    margin = 0.05 / figure.get_figheight()
    return figure.add_gridspec(
        len(heights),
        len(widths),
        height_ratios=heights,
        width_ratios=widths,
        left=0.01,
        right=0.99,
        bottom=margin,
        top=1 - margin,
        hspace=0,
        wspace=0.06,
    )


def _show(axes: Any, image: Any) -> None:
    """Draw an image at the top of its cell."""
    axes.imshow(_small(image, 512))
    axes.set_anchor("N")


def _small(image: Any, side: int) -> Any:
    """Return an image of any mode and depth in RGB, with at most `side` pixels a side: figures have many megapixels."""
    small = to_8_bit(image).convert("RGB")
    small.thumbnail((side, side))
    return small


def _write(axes: Any, block: _Block) -> None:
    """Write a block of text from the top of a cell."""
    axes.axis("off")
    offset = 2.0
    for lines, color, style in block:
        axes.annotate(
            "\n".join(lines),
            (0, 1),
            (0, -offset),
            xycoords="axes fraction",
            textcoords="offset points",
            va="top",
            fontsize=_SIZE,
            color=color,
            style=style,
        )
        offset += _LINE * len(lines) + 4


def _rank(rank: float) -> str:
    """A rank, which is half a number where two candidates tie."""
    return f"{rank:,.10g}"


def _wrapped(text: Any, inches: float, most: int) -> list[str]:
    """Break a text of any length into lines of 7 points."""
    return wrap_text(one_line(str(text)[:5000]), inches, _SIZE, most)  # more does not fit


@contextmanager
def _fonts_for(queries: Sequence[Query]) -> Iterator[None]:
    """Use fonts that have the characters of some queries. Warn of characters that no installed font has."""
    texts = [text for query in queries for text in (query.content, query.source)]
    texts += [text for query in queries for answer in query.answers for text in (answer.content, answer.source)]
    with fonts_for("".join(one_line(text[:5000]) for text in texts if isinstance(text, str))) as missing:
        yield
    if missing:
        logger.warning(
            "No installed font has %d of the characters (%s), which are drawn as boxes. Install a font that has them, "
            "such as Noto Sans CJK.",
            len(missing),
            missing[:10],
        )


@_plain_text
def plot_question(
    image: Any, question: str, right_answer: str, best: Sequence[tuple[str, float, bool]], path: Path
) -> str:
    """Plot a question about an image, with the right answer and the best answers of a model.

    Args:
        image: Pillow image.
        question: The question.
        right_answer: The right answer.
        best: Answer, probability and whether it is right, of the best answers, the best one first. Empty if the model
            gave no answer.
        path: PNG to write.

    Returns:
        The characters of the text that no installed font has, which are drawn as boxes.
    """
    answers = [(one_line(answer)[:2000], score, is_right) for answer, score, is_right in best]
    asked, truth = one_line(question)[:2000], one_line(right_answer)[:2000]  # more does not fit anyway
    verdict = "no answer: its scores are NaN or infinite" if not best else "correct" if best[0][2] else "incorrect"
    with fonts_for("".join([asked, truth, *(answer for answer, *_ in answers)])) as missing:
        asked_lines, truth_lines = wrap_text(asked, 5.1, 11, 8), wrap_text(truth, 4.1, 9, 4)
        height = max(3.2, 0.18 * len(asked_lines) + 0.15 * len(truth_lines) + 0.28 * len(answers) + 1.1)
        figure = plt.figure(figsize=(9, height))
        picture = figure.add_axes((0.015, 0.03, 0.37, 0.94))
        picture.imshow(_small(image, 1024))
        picture.set(xticks=[], yticks=[])
        picture.spines[:].set_color("0.8")
        text = figure.add_axes((0.41, 0, 0.58, 1))
        text.set(xlim=(0, 0.58 * 9), ylim=(height, 0))  # inches
        text.axis("off")
        top = 0.35
        for line in asked_lines:
            text.text(0, top, line, va="baseline", fontsize=11)
            top += 0.18
        top += 0.15
        text.text(0, top, "right answer:", va="baseline", fontsize=9, color="0.4")
        for line in truth_lines:
            text.text(1.0, top, line, va="baseline", fontsize=9)
            top += 0.15
        top += 0.1
        colour = "tab:green" if best and best[0][2] else "tab:red"
        text.text(0, top, "model:", va="baseline", fontsize=9, color="0.4")
        text.text(1.0, top, verdict, va="baseline", fontsize=9, color=colour)
        top += 0.25
        for place, (answer, score, is_right) in enumerate(answers):
            colour = "tab:green" if is_right else "tab:red" if place == 0 else "0.6"
            text.barh(top, 5.1 * score, 0.22, color=colour, alpha=0.35)
            text.text(0.05, top, f"{score:.2f}", va="center_baseline", fontsize=9)
            text.text(0.45, top, "".join(wrap_text(answer, 4.6, 9, 1)), va="center_baseline", fontsize=9)
            top += 0.28
        _save(figure, path)
    return missing


@_plain_text
def plot_comparison(
    title: str,
    columns: Sequence[str],
    cells: Mapping[str, Sequence[Any]],
    chance: float | None,
    path: Path,
    *,
    published: Collection[str] = (),
) -> None:
    """Plot a group of points for each metric, one point for each model, with its interval or standard deviation.

    Args:
        title: Task and data.
        columns: Names of the metrics.
        cells: Values of each model: `value`, `interval` and `deviation`.
        chance: Accuracy of guessing, drawn as a line. None if it differs between the metrics.
        path: PNG to write.
        published: Models of `cells` whose values were published, not measured. Their points are hollow and grey.
    """
    shapes = dict(zip(published, itertools.cycle("Ds^vP<>")))
    height = 0.22 * len(columns) * (len(cells) + 1) + 0.12 * len(cells) + 1.4
    figure, axes = plt.subplots(figsize=(8.5, max(2.6, height)), layout="constrained")
    for place, (name, values) in enumerate(cells.items()):
        offset = (place + 0.5) / len(cells) - 0.5
        points = [(row + 0.8 * offset, value) for row, value in enumerate(values) if value.value is not None]
        _plot_values(axes, points, name, None if name in shapes else f"C{place % 10}", shapes.get(name, "o"))
    if chance is not None:
        axes.axvline(chance, color="0.5", linestyle="--", linewidth=1, label="chance (accuracy)")
    axes.set_yticks(range(len(columns)), list(map(one_line, columns)))
    axes.set(xlim=(0, 1.02), ylim=(len(columns) - 0.5, -0.5), xlabel="fraction")
    axes.set_title(one_line(title), fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)  # names of published models are long
    _save(figure, path)


@_plain_text
def plot_suite(title: str, lines: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]], path: Path) -> None:
    """Plot models on several benchmarks: a row for each metric, with our models and published values.

    Args:
        title: Heading.
        lines: Label, values of our models by name, and published values by a name that marks them as published. A value
            has `value`, `interval` and `deviation`.
        path: PNG to write.
    """
    ours = list(dict.fromkeys(name for _, values, _ in lines for name in values))
    published = list(dict.fromkeys(name for *_, values in lines for name in values))
    height = (0.2 + 0.14 * len(ours)) * len(lines) + 0.11 * (len(ours) + len(published)) + 1.4
    figure, axes = plt.subplots(figsize=(8.5, height), layout="constrained")
    for place, name in enumerate(ours):
        offset = 0.7 * ((place + 0.5) / len(ours) - 0.5)
        points = [(row + offset, values[name]) for row, (_, values, _) in enumerate(lines) if name in values]
        _plot_values(axes, [point for point in points if point[1].value is not None], name, f"C{place % 10}", "o")
    for name, marker in zip(published, itertools.cycle("Ds^vPX*h<>pHd8")):
        points = [(row, values[name]) for row, (*_, values) in enumerate(lines) if name in values]
        _plot_values(axes, points, name, None, marker)
    axes.set_yticks(range(len(lines)), [one_line(label) for label, *_ in lines])
    axes.set(xlim=(0, 1.02), ylim=(len(lines) - 0.5, -0.5), xlabel="fraction")
    for row in range(1, len(lines)):
        axes.axhline(row - 0.5, color="0.9", linewidth=0.8, zorder=0)
    axes.set_title(one_line(title), fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    _save(figure, path)


@_plain_text
def plot_report(report: Mapping[str, Any], path: Path) -> None:
    """Plot what a build collected: articles and figures, licenses, lengths of captions and sizes of images.

    Args:
        report: The report of `biomedclip build`.
        path: PNG to write.
    """
    figure, grid = plt.subplots(2, 2, figsize=(13, 9), height_ratios=[1.3, 1], layout="constrained")
    (counts_axes, caption_axes), (license_axes, image_axes) = grid
    articles, figures = report["articles"], report["figures"]
    rows = [("articles kept", articles["kept"], articles["seen"], "tab:blue")]
    rows += [(reason, n, articles["seen"], "lightsteelblue") for reason, n in largest(articles["dropped"], 7)]
    rows += [("pairs", report["pairs"], 0, "tab:orange")]
    rows += [(reason, n, figures["seen"], "navajowhite") for reason, n in largest(figures["skipped"], 7)]
    _plot_counts(counts_axes, rows)
    counts_axes.set_title(
        f"Articles seen: {articles['seen']:,} (blue), their figures: {figures['seen']:,} (orange)\n"
        "pale: left out, and why"
    )

    licenses = largest(report["licenses"], 10)
    _plot_counts(license_axes, [(code, count, report["pairs"], "tab:green") for code, count in licenses])
    license_axes.set_title("Pairs under each licence")

    captions, images = report["caption_length"], report["image_size"]
    _plot_histogram(caption_axes, captions, [256] if captions["unit"] == "tokens" else [])
    caption_axes.set(xlabel=f"{one_line(captions['unit'])} of a caption", ylabel="captions")
    caption_axes.set_title(
        f"Captions: {percent(captions['within_256'])} have 256 {one_line(captions['unit'])} or fewer"
    )
    _plot_histogram(image_axes, images, [224, 336])
    image_axes.set(xlabel=one_line(images["unit"]), ylabel="images")
    image_axes.set_title(f"Images: {percent(images['above_336'])} are larger than 336 pixels")
    figure.suptitle(f"Pairs: {report['pairs']:,}, built on {one_line(report['built'])}")
    _save(figure, path)


def _plot_values(axes: Any, points: Sequence[tuple[float, Any]], name: str, color: str | None, marker: str) -> None:
    """Plot the values of a model at their rows with intervals or deviations; hollow and grey if there is no color."""
    errors = [
        (value.value - value.interval[0], value.interval[1] - value.value)
        if value.interval
        else (value.deviation or 0.0, value.deviation or 0.0)
        for _, value in points
    ]
    axes.errorbar(
        [value.value for _, value in points],
        [row for row, _ in points],
        xerr=None if color is None else [[max(0.0, side[end]) for side in errors] for end in (0, 1)],
        fmt=marker,
        color=color or "0.35",
        markerfacecolor="white" if color is None else None,
        capsize=2,
        # matplotlib leaves labels that begin with an underscore out of the legend.
        label=f" {one_line(name)}" if name.startswith("_") else one_line(name),
    )


def _plot_counts(axes: Any, rows: Sequence[tuple[str, int, int, str]]) -> None:
    """Bars with name, count, share of a total (0 for none) and colour, from top to bottom."""
    names = ["\n".join(wrap_text(one_line(name), 2.6, 8, 2)) for name, *_ in rows]
    bars = axes.barh(range(len(rows)), [count for _, count, *_ in rows], color=[colour for *_, colour in rows])
    labels = [f"{count:,}" + (f"  {share(count, total)}" if total else "") for _, count, total, _ in rows]
    axes.bar_label(bars, labels, padding=4, fontsize=8)
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set_ylim(max(len(rows), 6) - 0.5, -0.5)  # a bar or two should not fill the panel
    axes.set_xlim(0, 1.35 * max([1, *(count for _, count, *_ in rows)]))  # with room for the labels
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.spines[["top", "right"]].set_visible(False)


def _plot_histogram(axes: Any, part: Mapping[str, Any], lines: Sequence[int]) -> None:
    """Counts, the cumulative share on a second scale, and lines at sizes that mean something to the model."""
    edges, counts = part["histogram"]["edges"], part["histogram"]["counts"]
    axes.stairs(counts, edges, fill=True, color="tab:blue", alpha=0.6)
    total = sum(counts)
    if total:
        shares = axes.twinx()
        shares.plot(edges, [0.0, *(sum(counts[: n + 1]) / total for n in range(len(counts)))], color="tab:orange")
        shares.set(ylim=(0, 1.12), ylabel="share of them up to here")
        shares.yaxis.set_major_formatter(PercentFormatter(1))
        shares.yaxis.label.set_color("tab:orange")
    for number, position in enumerate(lines):
        side = "right" if number + 1 < len(lines) else "left"  # names of two lines that stand close keep apart
        axes.axvline(position, color="0.3", linestyle="--", linewidth=1)
        axes.annotate(
            f"{position}",
            (position, 1),
            (-3 if side == "right" else 3, -12),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha=side,
        )
    # The last bar holds all that is longer, and would squeeze the others.
    axes.set_xlim(0, max(1.25 * part["percentiles"]["99"], 300, *(1.25 * position for position in lines)))
    axes.set_ylim(0, 1.12 * max([1, *counts]))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(_short))
    axes.spines[["top"]].set_visible(False)


def _short(value: float, position: int) -> str:
    """12,000,000 as 12 M: the numbers of an axis."""
    for size, unit in ((1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)
