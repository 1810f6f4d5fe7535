"""Plots, diagrams, gels, tables and some scans and photographs like those of articles, drawn with matplotlib.

They take the place of single figures, of which few may be used freely. Each has the name of its type in ImageCLEF 2015.
"""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image


Rng = np.random.Generator
STATISTICS = "Statistical figures graphs charts"
WORDS = (
    "control treated vehicle placebo Time Dose Concentration Absorbance Intensity Survival Relative expression "
    "Weight WT KO day week mg/mL nM min hours Fold change cells protein mRNA p53 IL-6 TNF GAPDH AKT ERK male "
    "female Group Cohort baseline Wavelength (nm) Percentage (%) OD600 Viability Score Frequency Density Age "
    "(years) Patients Number log2 Temperature (°C) CFU/mL Sensitivity Specificity Risk Hazard ratio pH Depth "
    "Distance Energy (eV) Signal Ratio siRNA"
).split()


def draw_plot(rng: Rng) -> tuple[Image.Image, str]:
    """Draw one plot of a random kind and style, and return it with its image type."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(KINDS)
    weights = np.array([KINDS[name][2] for name in names])
    name = names[rng.choice(len(names), p=weights / weights.sum())]
    draw, image_type, _ = KINDS[name]
    with matplotlib.rc_context(_style(rng)):
        width = rng.uniform(2.0, 5.5)
        figure = Figure(figsize=(width, width * rng.uniform(0.5, 1.2)), dpi=int(rng.integers(70, 131)))
        FigureCanvasAgg(figure)
        draw(rng, figure)
        file = BytesIO()
        figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.02)
    return Image.open(file).convert("RGB"), image_type


def _style(rng: Rng) -> Any:
    family = str(rng.choice(["DejaVu Sans", "DejaVu Serif", "STIXGeneral", "DejaVu Sans"]))
    size = float(rng.uniform(5, 13))
    framed = rng.random() < 0.5
    return {
        "font.family": family,
        "font.size": size,
        "font.weight": "bold" if rng.random() < 0.2 else "normal",
        "axes.labelweight": "bold" if rng.random() < 0.3 else "normal",
        "axes.spines.top": framed,
        "axes.spines.right": framed,
        "axes.linewidth": float(rng.uniform(0.5, 2.2)),
        "axes.grid": bool(rng.random() < 0.15),
        "axes.facecolor": "#ebebeb" if rng.random() < 0.06 else "white",
        "lines.linewidth": float(rng.uniform(0.6, 2.8)),
        "lines.markersize": float(rng.uniform(2, 8)),
        "xtick.direction": str(rng.choice(["in", "out"])),
        "ytick.direction": str(rng.choice(["in", "out"])),
        "legend.frameon": bool(rng.random() < 0.4),
        "legend.fontsize": size * 0.85,
        "hatch.linewidth": 0.6,
    }


def _colors(rng: Rng, count: int) -> list[Any]:
    """Return gray, black and white, one color, or different colors."""
    kind = rng.random()
    if kind < 0.3:
        return [str(value) for value in np.linspace(0.05, 0.85, count)]
    if kind < 0.42:
        return [("white", "black", "0.6", "0.3", "0.8")[number % 5] for number in range(count)]
    if kind < 0.55:
        return [tuple(rng.uniform(0, 0.9, 3))] * count
    return [tuple(rng.uniform(0, 0.95, 3)) for _ in range(count)]


def _words(rng: Rng, most: int = 3) -> str:
    return " ".join(rng.choice(WORDS, size=rng.integers(1, most + 1)))


def _annotate(rng: Rng, axes: Any) -> None:
    if rng.random() < 0.9:
        axes.set_ylabel(_words(rng))
    if rng.random() < 0.75:
        axes.set_xlabel(_words(rng))
    if rng.random() < 0.25:
        axes.set_title(_words(rng, 4))
    if axes.get_legend_handles_labels()[1] and rng.random() < 0.6:
        outside = rng.random() < 0.25
        axes.legend(**({"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if outside else {"loc": "best"}))
    if rng.random() < 0.2:
        low, high = axes.get_ylim()
        left, right = axes.get_xlim()
        for _ in range(rng.integers(1, 4)):
            axes.text(
                rng.uniform(left, right),
                rng.uniform(low, high),
                str(rng.choice(["*", "**", "p < 0.05", "n.s.", "#", "a", "b"])),
            )


def _curves(rng: Rng, figure: Any) -> None:
    axes = figure.add_subplot()
    count = int(rng.integers(1, 7))
    x = np.linspace(0, rng.uniform(1, 200), int(rng.integers(5, 200)))
    shape = rng.integers(4)
    markers = len(x) < 25
    for color in _colors(rng, count):
        color = "black" if color in ("white", "0.8") else color
        if shape == 0:
            y = np.cumsum(rng.normal(0, 1, len(x)))
        elif shape == 1:
            y = rng.uniform(0.5, 2) / (1 + np.exp(-(x - x.mean() * rng.uniform(0.5, 1.5)) / (x[-1] / 12)))
        elif shape == 2:
            y = rng.uniform(0.5, 3) * np.exp(-x / x[-1] * rng.uniform(1, 5)) + rng.normal(0, 0.02, len(x))
        else:
            y = sum(
                rng.uniform(0.2, 1) * np.exp(-(((x / x[-1]) - rng.random()) ** 2) / rng.uniform(0.0005, 0.05))
                for _ in range(4)
            )
        style = {"color": color, "label": _words(rng, 2), "marker": str(rng.choice(list("os^Dv"))) if markers else None}
        style["linestyle"] = str(rng.choice(["-", "--", ":", "-"]))
        if markers and rng.random() < 0.5:
            axes.errorbar(x, y, yerr=np.abs(rng.normal(0, 0.1 * (np.ptp(y) + 0.1), len(x))), capsize=2, **style)
        else:
            axes.plot(x, y, **style)
    if rng.random() < 0.1:
        axes.set_xscale("symlog")
    _annotate(rng, axes)
    if rng.random() < 0.12:
        inset = axes.inset_axes([rng.uniform(0.1, 0.5), rng.uniform(0.45, 0.55), 0.4, 0.38])
        inset.plot(x, np.cumsum(rng.normal(0, 1, len(x))), color="black")


def _bars(rng: Rng, figure: Any) -> None:
    axes = figure.add_subplot()
    groups, series = int(rng.integers(2, 10)), int(rng.choice([1, 1, 2, 3, 4]))
    names = [_words(rng, 1) if rng.random() < 0.7 else str(number) for number in range(groups)]
    horizontal = rng.random() < 0.15
    stacked = series > 1 and rng.random() < 0.2
    base = np.zeros(groups)
    for number, color in enumerate(_colors(rng, series)):
        values = rng.uniform(0.1, 1, groups) * 100
        place = np.arange(groups) + (0 if stacked else number * 0.8 / series)
        error = None if rng.random() < 0.25 else np.abs(rng.normal(0, 6, groups))
        style = {"color": color, "edgecolor": "black" if rng.random() < 0.8 else color, "label": _words(rng, 1)}
        if rng.random() < 0.15:
            style["hatch"] = str(rng.choice(["//", "xx", "..", "--"]))
        thickness = 0.8 / (1 if stacked else series) * rng.uniform(0.7, 1)
        if horizontal:
            axes.barh(place, values, thickness, xerr=error, left=base if stacked else None, capsize=2, **style)
        else:
            axes.bar(place, values, thickness, yerr=error, bottom=base if stacked else None, capsize=2, **style)
        base = base + values
    ticks = np.arange(groups) + (0 if stacked else 0.4 - 0.4 / series)
    if horizontal:
        axes.set_yticks(ticks, names)
    else:
        axes.set_xticks(ticks, names, rotation=float(rng.choice([0, 0, 45, 90])))
    _annotate(rng, axes)


def _points(rng: Rng, figure: Any) -> None:
    axes = figure.add_subplot()
    count = int(rng.choice([15, 40, 150, 600]))
    for color in _colors(rng, int(rng.integers(1, 5))):
        x = rng.normal(rng.uniform(-2, 2), 1, count)
        y = x * rng.uniform(-1, 1) + rng.normal(0, 0.6, count)
        axes.scatter(
            x, y, s=float(rng.uniform(2, 40)), color="black" if color == "white" else color, label=_words(rng, 1)
        )
    if rng.random() < 0.5:
        axes.plot(*np.array([axes.get_xlim(), axes.get_ylim()]), color="black")
    _annotate(rng, axes)


def _boxes(rng: Rng, figure: Any) -> None:
    axes = figure.add_subplot()
    data = [rng.normal(rng.uniform(0, 5), rng.uniform(0.3, 2), 40) for _ in range(rng.integers(2, 9))]
    if rng.random() < 0.6:
        parts = axes.boxplot(data, patch_artist=True)
        for patch, color in zip(parts["boxes"], _colors(rng, len(data)), strict=True):
            patch.set_facecolor(color)
    else:
        axes.violinplot(data, showmedians=True)
    _annotate(rng, axes)


def _histogram(rng: Rng, figure: Any) -> None:
    axes = figure.add_subplot()
    values = rng.normal(0, 1, 500) if rng.random() < 0.6 else rng.exponential(1, 500)
    axes.hist(values, bins=int(rng.integers(8, 40)), color=_colors(rng, 1)[0], edgecolor="black")
    if rng.random() < 0.4:
        x = np.linspace(values.min(), values.max(), 100)
        axes.plot(x, 60 * np.exp(-(x**2) / 2), color="red")
    _annotate(rng, axes)


def _survival(rng: Rng, figure: Any) -> None:
    axes = figure.add_subplot()
    count = int(rng.integers(1, 5))
    for color in _colors(rng, count):
        steps = np.sort(rng.uniform(0, 60, int(rng.integers(8, 40))))
        axes.step(
            [0, *steps],
            np.linspace(1, rng.uniform(0.1, 0.8), len(steps) + 1),
            where="post",
            color="black" if color == "white" else color,
            label=_words(rng, 2),
        )
    axes.set_ylim(0, 1.05)
    _annotate(rng, axes)
    if rng.random() < 0.4:
        rows = [" ".join(f"{value:6d}" for value in np.sort(rng.integers(0, 200, 6))[::-1]) for _ in range(count)]
        axes.text(0, -0.35, "Number at risk\n" + "\n".join(rows), transform=axes.transAxes, va="top")


def _forest(rng: Rng, figure: Any) -> None:
    axes = figure.add_subplot()
    count = int(rng.integers(4, 16))
    centers, errors = rng.normal(1, 0.5, count), rng.uniform(0.1, 0.8, count)
    axes.errorbar(centers, np.arange(count), xerr=errors, fmt="s", color="black", capsize=0)
    axes.axvline(1, color="black", linestyle="--")
    axes.set_yticks(np.arange(count), [f"{_words(rng, 1)} {rng.integers(1990, 2024)}" for _ in range(count)])
    for row, center in enumerate(centers):
        axes.text(
            1.02,
            row,
            f"{center:.2f} ({center - errors[row]:.2f}, {center + errors[row]:.2f})",
            transform=axes.get_yaxis_transform(),
            va="center",
        )
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _heatmap(rng: Rng, figure: Any) -> None:
    axes = figure.add_subplot()
    values = rng.normal(0, 1, (int(rng.integers(4, 40)), int(rng.integers(3, 24))))
    shown = axes.imshow(
        values, aspect="auto", cmap=str(rng.choice(["viridis", "RdBu", "hot", "Greys", "bwr", "jet", "RdYlGn"]))
    )
    if rng.random() < 0.7:
        figure.colorbar(shown, ax=axes)
    if rng.random() < 0.3:
        axes.set_axis_off()
    if rng.random() < 0.5:
        axes.set_xticks(range(values.shape[1]), [_words(rng, 1) for _ in range(values.shape[1])], rotation=90)


def _surface(rng: Rng, figure: Any) -> None:
    x, y = np.meshgrid(np.linspace(-2, 2, 40), np.linspace(-2, 2, 40))
    z = sum(
        rng.normal() * np.exp(-((x - rng.uniform(-2, 2)) ** 2 + (y - rng.uniform(-2, 2)) ** 2) / rng.uniform(0.2, 2))
        for _ in range(4)
    )
    if rng.random() < 0.5:
        axes = figure.add_subplot(projection="3d")
        axes.plot_surface(x, y, z, cmap=str(rng.choice(["viridis", "jet", "coolwarm"])))
    else:
        axes = figure.add_subplot()
        axes.contourf(x, y, z, levels=12, cmap=str(rng.choice(["viridis", "jet", "coolwarm"])))
        _annotate(rng, axes)


def _pie(rng: Rng, figure: Any) -> None:
    axes = figure.add_subplot()
    count = int(rng.integers(2, 8))
    colors = [tuple(rng.uniform(0.2, 1, 3)) for _ in range(count)]
    axes.pie(
        rng.uniform(0.2, 1, count),
        labels=[_words(rng, 2) for _ in range(count)],
        colors=colors,
        autopct="%1.0f%%" if rng.random() < 0.6 else None,
    )


def _blot(rng: Rng, figure: Any) -> None:
    """Draw the bands of a gel or a Western blot, with names beside them."""
    axes = figure.add_subplot()
    lanes, rows = int(rng.integers(3, 12)), int(rng.integers(1, 7))
    gap = int(rng.choice([1, 1, 3, 6]))  # between strips of different gels
    dark_on_light = rng.random() < 0.85
    height, width = 26 * rows, 30 * lanes
    y, x = np.mgrid[:height, :width]
    level = np.full((height, width), rng.uniform(0.7, 0.95)) + rng.normal(0, 0.02, (height, width))
    for row in range(rows):
        for lane in range(lanes):
            strength = rng.uniform(0, 0.9)
            center = (26 * row + 13 + rng.normal(0, 1), 30 * lane + 15)
            level -= strength * np.exp(
                -(((y - center[0]) / rng.uniform(2, 4)) ** 4) - ((x - center[1]) / rng.uniform(9, 12)) ** 4
            )
        if rows > 1:
            level[26 * row : 26 * row + gap, :] = 1.0
    level = np.clip(level, 0, 1)
    axes.imshow(level if dark_on_light else 1 - level, cmap="gray", vmin=0, vmax=1, aspect="auto")
    names = [_words(rng, 1) for _ in range(rows)]
    axes.set_yticks([26 * row + 13 for row in range(rows)], names)
    axes.tick_params(length=0)
    axes.set_xticks([])
    if rng.random() < 0.6:
        axes.set_xticks(
            [30 * lane + 15 for lane in range(lanes)],
            [str(rng.choice(["+", "-", "ctrl", "1", "2", "kDa"])) for _ in range(lanes)],
        )
        if rng.random() < 0.6:
            axes.xaxis.tick_top()


def _flow(rng: Rng, figure: Any) -> None:
    axes = figure.add_subplot()
    axes.set_axis_off()
    rows, columns = int(rng.integers(2, 6)), int(rng.integers(1, 4))
    fill = str(rng.choice(["white", "#dde8f5", "#fce8d0", "#e3f3e0", "white"]))
    style = {"boxstyle": str(rng.choice(["round", "square", "round"])), "facecolor": fill, "edgecolor": "black"}
    for row in range(rows):
        for column in range(columns):
            if rng.random() < 0.15:
                continue
            axes.text(
                column * 1.5,
                -row,
                "\n".join(_words(rng, 3) for _ in range(rng.integers(1, 3))),
                ha="center",
                va="center",
                bbox=style,
            )
            if row + 1 < rows:
                axes.annotate(
                    "", (column * 1.5, -row - 0.75), (column * 1.5, -row - 0.25), arrowprops={"arrowstyle": "->"}
                )
    axes.set_xlim(-1, columns * 1.5 - 0.5)
    axes.set_ylim(-rows, 0.5)


def _table(rng: Rng, figure: Any) -> None:
    axes = figure.add_subplot()
    axes.set_axis_off()
    rows, columns = int(rng.integers(3, 12)), int(rng.integers(2, 6))
    cells = [
        [_words(rng, 1) if rng.random() < 0.4 else f"{rng.uniform(0, 100):.1f}" for _ in range(columns)]
        for _ in range(rows)
    ]
    axes.table(
        cellText=cells,
        colLabels=[_words(rng, 1) for _ in range(columns)],
        loc="center",
        edges=str(rng.choice(["closed", "horizontal", "open"])),
    )


def _sequence(rng: Rng, figure: Any) -> None:
    axes = figure.add_subplot()
    axes.set_axis_off()
    alphabet = list("ACGT") if rng.random() < 0.5 else list("ACDEFGHIKLMNPQRSTVWY")
    length = int(rng.integers(30, 60))
    lines = []
    for _ in range(int(rng.integers(1, 4))):
        shared = rng.choice(alphabet, length)
        for row in range(int(rng.integers(3, 9))):
            changed = np.where(rng.random(length) < 0.15, rng.choice(alphabet, length), shared)
            lines.append(f"{WORDS[(7 * row) % len(WORDS)][:8]:<10}" + "".join(changed))
        lines.append("")
    axes.text(0, 1, "\n".join(lines), family="DejaVu Sans Mono", va="top", transform=axes.transAxes)


def _tree(rng: Rng, figure: Any) -> None:
    axes = figure.add_subplot()
    axes.set_axis_off()
    count = int(rng.integers(5, 20))
    nodes = [(0.0, float(row)) for row in range(count)]
    depth = 0.0
    while len(nodes) > 1:
        depth += rng.uniform(0.3, 1)
        number = int(rng.integers(len(nodes) - 1))
        (first, low), (second, high) = nodes[number], nodes.pop(number + 1)
        axes.plot([-first, -depth, -depth, -second], [low, low, high, high], color="black")
        nodes[number] = (depth, (low + high) / 2)
    for row in range(count):
        axes.text(0.2, row, _words(rng, 2), va="center")


def _molecule(rng: Rng, figure: Any) -> None:
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_aspect("equal")
    angles = np.pi / 6 + np.arange(7) * np.pi / 3
    for _ in range(int(rng.integers(1, 5))):
        x, y = np.cos(angles), np.sin(angles)
        left, top = rng.integers(0, 4) * np.sqrt(3), rng.integers(0, 3) * 1.5
        axes.plot(left + x, top + y, color="black")
        axes.plot(left + x[:2] * 0.8, top + y[:2] * 0.8, color="black")
        end = (left + 1.9 * np.cos(np.pi / 6), top + 1.9 * np.sin(np.pi / 6))
        axes.plot([left + x[0], end[0]], [top + y[0], end[1]], color="black")
        axes.text(*end, str(rng.choice(["OH", "NH2", "O", "CH3", "Cl", "HO", "COOH"])), va="center")


def _network(rng: Rng, figure: Any) -> None:
    axes = figure.add_subplot()
    axes.set_axis_off()
    places = rng.uniform(0, 1, (int(rng.integers(5, 40)), 2))
    for first, second in rng.integers(0, len(places), (len(places) * 2, 2)):
        axes.plot(*places[[first, second]].T, color="0.6", linewidth=0.7, zorder=0)
    axes.scatter(
        *places.T,
        s=rng.uniform(20, 300, len(places)),
        color=[tuple(rng.uniform(0.2, 1, 3)) for _ in places],
        edgecolors="black",
    )
    for x, y in places[: int(rng.integers(0, len(places)))]:
        axes.text(x, y, _words(rng, 1), ha="center", va="center")


def _cells(rng: Rng, figure: Any) -> None:
    """Draw fluorescent cells on black."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    side = 160
    y, x = np.mgrid[:side, :side]
    picture = np.zeros((side, side, 3))
    channels = rng.permutation(3)[: int(rng.integers(1, 4))]
    for _ in range(int(rng.integers(8, 70))):
        center, radius = rng.uniform(0, side, 2), rng.uniform(3, 14)
        angle, stretch = rng.uniform(0, np.pi), rng.uniform(0.6, 1)
        u = (x - center[0]) * np.cos(angle) + (y - center[1]) * np.sin(angle)
        v = (y - center[1]) * np.cos(angle) - (x - center[0]) * np.sin(angle)
        spot = np.exp(-(((u / radius) ** 2 + (v / radius / stretch) ** 2) ** 2))
        picture[..., rng.choice(channels)] += spot * rng.uniform(0.3, 1)
    picture += rng.normal(0, 0.02, picture.shape)
    axes.imshow(np.clip(picture, 0, 1))


def _micrograph(rng: Rng, figure: Any) -> None:
    """Draw the gray grains of an electron micrograph."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    side = 160
    y, x = np.mgrid[:side, :side]
    picture = np.full((side, side), rng.uniform(0.3, 0.8)) + 0.1 * np.sin(x / rng.uniform(10, 60) + rng.normal())
    for _ in range(int(rng.integers(5, 120))):
        center, radius = rng.uniform(0, side, 2), rng.uniform(2, 16)
        inside = (x - center[0]) ** 2 + (y - center[1]) ** 2 < radius**2
        picture[inside] = rng.uniform(0, 1)
    picture += rng.normal(0, 0.06, picture.shape)
    axes.imshow(np.clip(picture, 0, 1), cmap="gray", vmin=0, vmax=1)


def _clouds(rng: Rng, side: int, *sizes: int) -> np.ndarray:
    """Return smooth noise between 0 and 1, the sum of maps of these sizes. Each next one is half as strong."""
    total = np.zeros((side, side))
    for number, size in enumerate(sizes):
        noise = Image.fromarray(rng.random((size, size)).astype(np.float32))
        total += np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC)) / 2**number
    return (total - total.min()) / (total.max() - total.min())


def _picture(figure: Any, picture: np.ndarray) -> Any:
    """Fill the figure with a picture in gray or RGB with values from 0 to 1, and return the axes."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    colors = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    axes.imshow(np.clip(colors, 0, 1), aspect="auto", extent=(0, 1, 0, 1))
    return axes


def _relief(rng: Rng, figure: Any) -> None:
    """Draw a rough surface in a scanning electron microscope, often with a strip of settings below."""
    height = _clouds(rng, 240, *(int(size) for size in rng.choice([6, 12, 25, 50, 90], 3, replace=False)))
    if rng.random() < 0.4:
        height = np.abs(height - 0.5) ** rng.uniform(0.4, 1)  # ridges
    slope = np.gradient(height)[int(rng.integers(2))]
    picture = rng.uniform(0.35, 0.7) + slope / (3 * slope.std()) * rng.uniform(0.3, 0.8)
    axes = _picture(figure, picture + rng.normal(0, 0.03, picture.shape))
    if rng.random() < 0.6:
        axes.add_patch(_rectangle((0, 0), 1, 0.1, "black"))
        text = f"{rng.integers(5, 30)}.0kV x{rng.integers(1, 80)}00 {rng.integers(1, 50)} μm"
        axes.text(0.05, 0.05, text, color="white", va="center")


def _membranes(rng: Rng, figure: Any) -> None:
    """Draw cut cells and vesicles in a transmission electron microscope."""
    side = 240
    y, x = np.mgrid[:side, :side] / side
    picture = rng.uniform(0.55, 0.85) + 0.25 * (_clouds(rng, side, 8, 40, 100) - 0.5)
    bend = 0.3 * _clouds(rng, side, 5, 12)
    for _ in range(int(rng.integers(3, 40))):
        center, radius, angle = rng.uniform(0, 1, 2), rng.uniform(0.02, 0.3), rng.uniform(0, np.pi)
        u = (x - center[0]) * np.cos(angle) + (y - center[1]) * np.sin(angle)
        v = (y - center[1]) * np.cos(angle) - (x - center[0]) * np.sin(angle)
        distance = np.hypot(u, v * rng.uniform(1, 3)) / radius + bend
        picture = np.where(distance < 1, picture + rng.uniform(-0.35, 0.1), picture)
        picture = np.where(np.abs(distance - 1) < rng.uniform(0.003, 0.012) / radius, 0.12, picture)
    _picture(figure, picture + rng.normal(0, 0.05, picture.shape))


def _lumen(rng: Rng, figure: Any) -> None:
    """Draw moist red tissue through an endoscope, mostly within a black surrounding."""
    side = 240
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    base = np.array([rng.uniform(0.6, 0.95), rng.uniform(0.3, 0.6), rng.uniform(0.2, 0.45)])
    shade = 0.55 + 0.6 * _clouds(rng, side, 4, 9, 30)
    center, reach = rng.uniform(-0.4, 0.4, 2), rng.uniform(0.2, 0.7)
    shade *= 1 - 0.85 * np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / reach**2)  # the dark lumen
    picture = base * shade[..., None]
    if rng.random() < 0.5:
        picture = picture * (1 - 0.35 * (_clouds(rng, side, 20, 60) > 0.62)[..., None] * np.array([0.2, 1, 1]))
    picture += 0.9 * (_clouds(rng, side, 25, 50) > rng.uniform(0.86, 0.95))[..., None]  # reflections
    if rng.random() < 0.75:
        corner = rng.uniform(1.0, 1.5)
        outside = (np.abs(x) + np.abs(y) > corner) | (np.hypot(x, y) > rng.uniform(0.92, 1.2))
        picture[outside] = 0.02
    _picture(figure, picture)


def _skin_tone(rng: Rng) -> np.ndarray:
    light, dark = np.array([0.95, 0.78, 0.68]), np.array([0.42, 0.27, 0.2])
    return light + (dark - light) * rng.uniform(0, 1) ** 1.5 + rng.normal(0, 0.02, 3)


def _skin(rng: Rng, figure: Any) -> None:
    """Draw skin with lesions."""
    side = 240
    y, x = np.mgrid[:side, :side] / side
    shade = 0.75 + 0.3 * _clouds(rng, side, 3, 6) + 0.08 * (_clouds(rng, side, 60, 120) - 0.5)
    picture = _skin_tone(rng) * shade[..., None]
    bend = 0.6 * _clouds(rng, side, 8, 20)
    color = np.array([rng.uniform(0.35, 0.9), rng.uniform(0.1, 0.4), rng.uniform(0.1, 0.4)])
    for _ in range(int(rng.integers(1, 14))):
        center, radius = rng.uniform(0.1, 0.9, 2), rng.uniform(0.02, 0.22)
        near = np.exp(-((np.hypot(x - center[0], y - center[1]) / radius + bend - 0.3) ** 4))
        mixed = (near * rng.uniform(0.4, 0.9))[..., None]
        picture = picture * (1 - mixed) + color * (0.7 + 0.4 * shade[..., None]) * mixed
    if rng.random() < 0.4:  # the background of a limb
        edge = y + 0.12 * _clouds(rng, side, 3) < rng.uniform(0.15, 0.35)
        picture[edge] = rng.uniform(0, 1) * np.array([0.5, 0.8, 1.0]) if rng.random() < 0.6 else 0.05
    _picture(figure, picture)


def _specimen(rng: Rng, figure: Any) -> None:
    """Draw an organ on a drape, an open wound, or the back of an eye."""
    side = 240
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    kind = rng.random()
    bend = _clouds(rng, side, 4, 9)
    tissue = np.array([rng.uniform(0.55, 0.95), rng.uniform(0.15, 0.55), rng.uniform(0.1, 0.4)])
    surface = tissue * (0.45 + 0.7 * _clouds(rng, side, 6, 14, 40))[..., None]
    surface += 0.7 * (_clouds(rng, side, 30, 60) > 0.9)[..., None]
    if kind < 0.25:  # the back of an eye
        glow = 1 - 0.5 * np.hypot(x, y)
        picture = np.array([0.85, 0.4, 0.15]) * (glow * (0.8 + 0.2 * bend))[..., None]
        spot = np.exp(-((x - 0.35) ** 2 + y**2) / 0.02)
        picture += spot[..., None] * np.array([0.4, 0.5, 0.4])
        axes = _picture(figure, np.where((np.hypot(x, y) < 0.95)[..., None], picture, 0))
        for _ in range(int(rng.integers(6, 14))):
            _vessel(rng, axes, (0.675, 0.5), rng.uniform(0, 2 * np.pi), (0.4, 0.05, 0.02), 2.0)
        return
    cloth = [(0.1, 0.45, 0.4), (0.1, 0.3, 0.6), (0.3, 0.6, 0.8), (0.9, 0.9, 0.88), (0.75, 0.6, 0.5), (0.05, 0.05, 0.06)]
    drape = np.array(cloth[int(rng.integers(len(cloth)))]) * (0.75 + 0.35 * _clouds(rng, side, 5, 12))[..., None]
    around = drape if kind < 0.7 else _skin_tone(rng) * (0.8 + 0.25 * _clouds(rng, side, 3, 8))[..., None]
    size = rng.uniform(0.45, 0.95) if rng.random() < 0.8 else 2.0
    shape = np.hypot(x - rng.uniform(-0.2, 0.2), (y - rng.uniform(-0.2, 0.2)) * rng.uniform(0.8, 1.8)) + 0.5 * bend
    axes = _picture(figure, np.where((shape < size)[..., None], surface, around))
    if rng.random() < 0.25:  # a ruler
        axes.add_patch(_rectangle((0.1, 0.03), 0.8, 0.1, "white"))
        axes.vlines(np.linspace(0.12, 0.88, 30), 0.08, 0.13, colors="black", linewidth=0.7)


def _dish(rng: Rng, figure: Any) -> None:
    """Draw bacteria on agar in a dish."""
    side = 240
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    table = rng.uniform(0, 0.9, 3) * (0.8 + 0.3 * _clouds(rng, side, 2, 40, 90))[..., None]
    agar = np.array([rng.uniform(0.6, 0.9), rng.uniform(0.55, 0.85), rng.uniform(0.35, 0.8)])
    dish = agar * (0.8 + 0.25 * _clouds(rng, side, 3, 6))[..., None]
    for _ in range(int(rng.integers(2, 9))):
        center, radius = rng.uniform(-0.6, 0.6, 2), rng.uniform(0.06, 0.3)
        distance = np.hypot(x - center[0], y - center[1])
        dish[distance < radius] *= rng.uniform(0.55, 0.9)
        dish[distance < min(radius, 0.06)] = rng.choice([0.1, 0.95])
    picture = np.where((np.hypot(x, y) < 0.93)[..., None], dish, table)
    picture[np.abs(np.hypot(x, y) - 0.93) < 0.025] = rng.uniform(0.7, 1.0)
    _picture(figure, picture)


def _vessel(rng: Rng, axes: Any, start: tuple[float, float], angle: float, color: Any, width: float) -> None:
    """Draw a winding vessel and its branches."""
    points = [start]
    for step in range(int(rng.integers(8, 22))):
        angle += rng.normal(0, 0.28)
        points.append((points[-1][0] + 0.035 * np.cos(angle), points[-1][1] + 0.035 * np.sin(angle)))
        if width > 0.8 and step > 2 and rng.random() < 0.18:
            _vessel(rng, axes, points[-1], angle + rng.choice([-0.7, 0.7]), color, width * 0.6)
    axes.plot(*zip(*points, strict=True), color=color, linewidth=width, alpha=0.85, solid_capstyle="round")
    axes.set(xlim=(0, 1), ylim=(0, 1))


def _angiogram(rng: Rng, figure: Any) -> None:
    """Draw vessels full of contrast medium: dark on gray, or light if bones are subtracted."""
    side = 240
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    inverted = rng.random() < 0.15
    level = rng.uniform(0.1, 0.3) if inverted else rng.uniform(0.5, 0.8)
    picture = level + rng.uniform(0.1, 0.5) * (_clouds(rng, side, 3, 6, 12) - 0.5) + rng.normal(0, 0.02, (side, side))
    if rng.random() < 0.4:
        picture[np.hypot(x, y) > rng.uniform(0.95, 1.1)] = 0
    color = (0.9, 0.9, 0.9) if inverted else (0.12, 0.12, 0.12)
    axes = _picture(figure, picture)
    for _ in range(int(rng.integers(1, 4))):
        place = (float(rng.uniform(0.2, 0.8)), float(rng.uniform(0.3, 1.0)))
        _vessel(rng, axes, place, -rng.uniform(0.3, 2.8), color, float(rng.uniform(2.5, 8)))


def _sonogram(rng: Rng, figure: Any) -> None:
    """Draw the grainy sector of an ultrasound scan, with settings at its side."""
    side = 240
    y, x = np.mgrid[0 : 1 : side * 1j, -0.5 : 0.5 : side * 1j]
    echo = _clouds(rng, side, 4, 8, 20) ** rng.uniform(1, 2.5) * rng.gamma(2, 0.5, (side, side))
    sector = (np.abs(np.arctan2(x, y + 0.05)) < rng.uniform(0.4, 0.75)) & (np.hypot(x, y) < 0.98)
    axes = _picture(figure, np.where(sector if rng.random() < 0.8 else np.abs(x) < 0.42, echo, 0.02))
    for line in range(int(rng.integers(0, 6))):
        axes.text(0.02, 0.95 - 0.07 * line, f"{_words(rng, 1)} {rng.uniform(0, 30):.1f}", color="white", fontsize=6)


def _uptake(rng: Rng, figure: Any) -> None:
    """Draw the uptake of a tracer in a body, dark on white or in hot colors."""
    from matplotlib import colormaps

    side = 240
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = 1 / (1 + np.exp((np.hypot(x / rng.uniform(0.4, 0.9), y / 0.9) - 1) * 14))
    level = 0.25 * body * (0.5 + _clouds(rng, side, 5, 10))
    for _ in range(int(rng.integers(2, 9))):
        center, spread = rng.uniform(-0.5, 0.5, 2), rng.uniform(0.03, 0.2)
        level += rng.uniform(0.2, 1) * np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / spread**2)
    name = str(rng.choice(["gray_r", "gray_r", "gray_r", "hot", "jet", "gray"]))
    _picture(figure, colormaps[name](np.clip(level, 0, 1))[..., :3])


def _rectangle(corner: tuple[float, float], width: float, height: float, color: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, color=color)


def _chromatogram(rng: Rng, figure: Any) -> None:
    axes = figure.add_subplot()
    x = np.linspace(0, rng.uniform(10, 60), 1500)
    y = np.abs(rng.normal(0, 0.004, len(x)))
    for _ in range(int(rng.integers(2, 40))):
        height, center = rng.exponential(0.3), rng.uniform(0.05, 0.95) * x[-1]
        y += height * np.exp(-(((x - center) / rng.uniform(0.002, 0.006) / x[-1]) ** 2))
        if rng.random() < 0.4:
            name = f"{center:.2f}" if rng.random() < 0.6 else _words(rng, 1)
            axes.text(center, height, name, rotation=float(rng.choice([0, 90])), ha="center", va="bottom", fontsize=6)
    axes.plot(x, y, color=_colors(rng, 1)[0] if rng.random() < 0.3 else "black", linewidth=0.6)
    axes.set_xlabel("Time (min)")
    if rng.random() < 0.2:
        inset = axes.inset_axes([0.55, 0.5, 0.42, 0.45])
        inset.plot(x[:400], y[:400], color="black", linewidth=0.6)


def _bias(rng: Rng, figure: Any) -> None:
    """Draw the summary of the risk of bias of a review: a column for each item, a row for each study."""
    axes = figure.add_subplot()
    rows, columns = int(rng.integers(4, 16)), int(rng.integers(5, 8))
    for row in range(rows):
        for column in range(columns):
            number = int(rng.choice(3, p=[0.6, 0.3, 0.1]))
            color, mark = (("limegreen", "+"), ("yellow", "?"), ("firebrick", "-"))[number]
            axes.scatter(column, row, s=90, color=color, edgecolors="0.4")
            axes.text(column, row, mark, ha="center", va="center")
    axes.set_aspect("equal")
    axes.set_xticks(range(columns), [_words(rng, 4) for _ in range(columns)], rotation=90)
    axes.set_yticks(range(rows), [f"{_words(rng, 1)} {1995 + int(rng.integers(25))}" for _ in range(rows)])
    axes.xaxis.tick_top()
    axes.set_xticks(np.arange(columns) + 0.5, minor=True)
    axes.set_yticks(np.arange(rows) + 0.5, minor=True)
    axes.grid(which="minor", color="0.4", linewidth=0.7)
    axes.tick_params(length=0, which="both")


def _shares(rng: Rng, figure: Any) -> None:
    """Draw horizontal bars that add up to 100 percent, as in summaries of the risk of bias."""
    axes = figure.add_subplot()
    rows = int(rng.integers(3, 9))
    parts = rng.dirichlet((3, 2, 1), rows) * 100
    colors = ("limegreen", "yellow", "firebrick") if rng.random() < 0.6 else _colors(rng, 3)
    names = ("Low risk of bias", "Unclear risk of bias", "High risk of bias")
    for number, color in enumerate(colors):
        left = parts[:, :number].sum(1)
        axes.barh(range(rows), parts[:, number], left=left, color=color, edgecolor="black", label=names[number])
    axes.set_yticks(range(rows), [_words(rng, 5) for _ in range(rows)])
    axes.set_xlim(0, 100)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.1), ncols=3, frameon=bool(rng.random() < 0.6))


def _effects(rng: Rng, figure: Any) -> None:
    """Draw a forest plot between columns of text."""
    axes = figure.add_axes((0.45, 0.1, 0.3, 0.8))
    rows = int(rng.integers(4, 18))
    effects, errors = rng.normal(1, 0.4, rows), rng.uniform(0.1, 0.8, rows)
    axes.errorbar(effects, range(rows), xerr=errors, fmt="s", color="black", markersize=3, linewidth=0.8)
    axes.axvline(1, color="black", linewidth=0.7)
    axes.fill([0.8, 1, 1.2, 1], [-1, -0.7, -1, -1.3], color=str(rng.choice(["black", "white", "navy"])), ec="black")
    axes.set_yticks([])
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    for row in range(rows):
        height = 0.12 + 0.76 * (row + 0.8) / (rows + 1)
        figure.text(0.02, height, f"{_words(rng, 1)} et al. {1990 + int(rng.integers(30))}", fontsize=6)
        figure.text(0.78, height, f"{effects[row]:.2f} ({effects[row] - errors[row]:.2f}, 2.1)", fontsize=6)
    figure.text(0.02, 0.94, "Study or subgroup", fontsize=6)
    figure.text(0.78, 0.94, "RR (95% CI)", fontsize=6)


def _pathway(rng: Rng, figure: Any) -> None:
    """Draw colored shapes with names, joined by arrows."""
    axes = figure.add_subplot()
    axes.set_axis_off()
    if rng.random() < 0.4:
        figure.set_facecolor(tuple(rng.uniform(0.85, 1, 3)))
    count = int(rng.integers(4, 14))
    side = int(np.ceil(np.sqrt(count)))
    places = [(x + rng.uniform(-0.25, 0.25), y + rng.uniform(-0.25, 0.25)) for x in range(side) for y in range(side)]
    if rng.random() < 0.4:
        axes.scatter(side / 2 - 0.5, side / 2 - 0.5, s=rng.uniform(3000, 30000), color=tuple(rng.uniform(0.7, 1, 3)))
    for number in range(count):
        style = str(rng.choice(["round", "square", "circle", "round4", "rarrow", "larrow"]))
        box = {"boxstyle": style, "facecolor": tuple(rng.uniform(0.3, 1, 3)), "edgecolor": str(rng.choice(["k", "w"]))}
        axes.text(*places[number], _words(rng, 2), ha="center", va="center", bbox=box if rng.random() < 0.75 else None)
        if number and rng.random() < 0.8:
            arrow = {"arrowstyle": str(rng.choice(["->", "-|>", "<->", "simple"])), "color": _colors(rng, 1)[0]}
            arrow |= {"shrinkA": 16, "shrinkB": 16, "connectionstyle": f"arc3,rad={rng.uniform(-0.4, 0.4):.2f}"}
            axes.annotate("", places[number], places[number - 1], arrowprops=arrow)
    axes.set_xlim(-0.7, side - 0.3)
    axes.set_ylim(-0.7, side - 0.3)


def _heartbeats(rng: Rng, figure: Any) -> None:
    """Draw an electrocardiogram on its grid."""
    axes = figure.add_axes((0, 0, 1, 1))
    rows = int(rng.integers(1, 7))
    x = np.linspace(0, 10, 1200)
    for row in range(rows):
        y = rng.normal(0, 0.01, len(x))
        for beat in np.arange(rng.uniform(0, 0.8), 10, rng.uniform(0.6, 1.1)):
            for offset, height, width in (
                (-0.16, 0.1, 0.03),
                (-0.02, 1.0, 0.012),
                (0.02, -0.3, 0.012),
                (0.22, 0.2, 0.05),
            ):
                y += rng.choice([1, 1, -0.6]) * height * np.exp(-(((x - beat - offset) / width) ** 2))
        axes.plot(x, y * 0.5 + row, color="black", linewidth=0.7)
        axes.text(0, row + 0.25, str(rng.choice(["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V5"])))
    axes.set_xticks(np.arange(0, 10, 0.2))
    axes.set_yticks(np.arange(-0.6, rows, 0.2))
    axes.tick_params(labelbottom=False, labelleft=False, length=0)
    axes.grid(visible=bool(rng.random() < 0.8), color="#f3a6a6" if rng.random() < 0.6 else "0.8", linewidth=0.5)


def _formula(rng: Rng, figure: Any) -> None:
    axes = figure.add_subplot()
    axes.set_axis_off()
    terms = (
        r"\frac{a_i}{b+c^2}",
        r"\sum_{i=1}^{n} x_i",
        r"\sqrt{x^2+y^2}",
        r"e^{-\lambda t}",
        r"\int_0^T f(t)\,dt",
        r"\mu",
    )
    for row in range(int(rng.integers(1, 6))):
        parts = [terms[number] for number in rng.integers(0, len(terms), int(rng.integers(2, 5)))]
        text = "$" + "f(x) = " * int(rng.integers(2)) + " + ".join(parts) + "$"
        axes.text(0, -row, text, fontsize=float(rng.uniform(10, 20)))
    axes.set_ylim(-5, 1)


def _listing(rng: Rng, figure: Any) -> None:
    axes = figure.add_subplot()
    axes.set_axis_off()
    forms = ("for {} in {}:", "    {} = {} + 1", "if {} > {}:", "    return {}({})", "# {} {}", "{}({}, 0.5);", "end")
    lines = []
    for _ in range(int(rng.integers(5, 25))):
        form = str(rng.choice(forms))
        lines.append(form.format(*(_words(rng, 1).lower() for _ in range(form.count("{}")))))
    axes.text(0, 1, "\n".join(lines), family="DejaVu Sans Mono", va="top", transform=axes.transAxes)


# How a kind is drawn, its type, and how often.
KINDS: dict[str, tuple[Callable[[Rng, Any], None], str, float]] = {
    "curves": (_curves, STATISTICS, 5),
    "bars": (_bars, STATISTICS, 6),
    "points": (_points, STATISTICS, 2.5),
    "boxes": (_boxes, STATISTICS, 2),
    "histogram": (_histogram, STATISTICS, 1.2),
    "survival": (_survival, STATISTICS, 1.2),
    "forest": (_forest, STATISTICS, 1),
    "heatmap": (_heatmap, STATISTICS, 1.2),
    "surface": (_surface, STATISTICS, 0.6),
    "pie": (_pie, STATISTICS, 0.4),
    "tree": (_tree, STATISTICS, 0.6),
    "chromatogram": (_chromatogram, STATISTICS, 1.2),
    "shares": (_shares, STATISTICS, 0.4),
    "effects": (_effects, STATISTICS, 0.8),
    "bias": (_bias, "Tables and forms", 0.5),
    "pathway": (_pathway, "System overviews", 1.6),
    "heartbeats": (_heartbeats, "Electrocardiography", 0.4),
    "formula": (_formula, "Mathematics formula", 0.2),
    "listing": (_listing, "Program listing", 0.2),
    "network": (_network, "System overviews", 0.6),
    "blot": (_blot, "Chromatography Gel", 2.5),
    "flow": (_flow, "Flowcharts", 1),
    "table": (_table, "Tables and forms", 0.7),
    "sequence": (_sequence, "Gene sequence", 0.6),
    "molecule": (_molecule, "Chemical structure", 0.5),
    "cells": (_cells, "Fluorescence microscopy", 1.2),
    "micrograph": (_micrograph, "Electron microscopy", 0.5),
    "relief": (_relief, "Electron microscopy", 1),
    "membranes": (_membranes, "Transmission microscopy", 1.2),
    "lumen": (_lumen, "Endoscopy", 1.2),
    "skin": (_skin, "Dermatology skin", 1.2),
    "specimen": (_specimen, "Other organs", 1.2),
    "dish": (_dish, "Non-clinical photos", 0.8),
    "angiogram": (_angiogram, "Angiography", 1),
    "sonogram": (_sonogram, "Ultrasound", 0.8),
    "uptake": (_uptake, "PET", 0.8),
}
