"""Draw the picture of the page on panels: a compound figure, its panels, letters, types and parts of the caption.

python docs/plots/panels.py
"""

import textwrap
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from biomedclip import PanelDetector
from biomedclip.processing.panels import split_caption
from biomedclip.processing.panels.synthesis.plots import KINDS


CAPTION = (
    "Response of cells to the inhibitor. (A) Survival of four cultures. (B) Western blot of treated cells. "
    "(C) Fluorescence microscopy after 24 h. (D) Number of colonies. Experiments were repeated three times."
)
PANELS = {"A": ("survival", 3), "B": ("blot", 5), "C": ("cells", 3), "D": ("bars", 8)}
COLORS = ("#b3262f", "#1463a5", "#21803a", "#863ba5")
CELL = 300, 215  # width and height of a panel with its letter
TEXT_AT, WIDTH, HEIGHT = 650, 1270, 470


def main() -> None:
    """Write `panels.png`."""
    figure = compound()
    (found,) = PanelDetector.from_pretrained()([figure], [CAPTION])
    split = split_caption(CAPTION, labels=[panel.label for panel in found.panels if panel.label])
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    picture.paste(figure, (8, 8))
    pen = ImageDraw.Draw(picture)
    lines: list[tuple[str, str, int]] = [("Caption", "black", 0)]
    lines += [(line, "#333333", 0) for line in textwrap.wrap(CAPTION, 62)]
    lines += [("", "black", 0)]
    lines += [(line, "#333333", 0) for line in textwrap.wrap(f"Context: {split.context}", 62)]
    for panel, color in zip(found.panels, COLORS, strict=True):
        pen.rectangle([edge + 8 for edge in panel.box], outline=color, width=3)
        label = panel.label or ""
        lines += [("", "black", 0), (f"{label}   {panel.image_type.name}  ({panel.image_type.score:.2f})", color, 0)]
        lines += [(split.panels.get(label, ""), "#333333", 28)]
    font, top = ImageFont.load_default(18), 16
    for text, color, indent in lines:
        pen.text((TEXT_AT + indent, top), text, fill=color, font=font)
        top += 24 if text else 12
    picture.save(Path(__file__).with_suffix(".png"), optimize=True)


def compound() -> Image.Image:
    """Return a figure of four drawn panels with letters."""
    figure = Image.new("RGB", (2 * CELL[0] + 20, 2 * CELL[1] + 20), "white")
    pen = ImageDraw.Draw(figure)
    for place, (label, (kind, seed)) in enumerate(PANELS.items()):
        left, top = (place % 2) * (CELL[0] + 20), (place // 2) * (CELL[1] + 20)
        pen.text((left, top), label, fill="black", font=ImageFont.load_default(18))
        panel = draw(kind, seed)
        panel.thumbnail((CELL[0] - 20, CELL[1] - 20))
        figure.paste(panel, (left + 16, top + 18))
    return figure


def draw(kind: str, seed: int) -> Image.Image:
    """Return a plot of a kind of `KINDS`."""
    figure = Figure(figsize=(4, 2.8), dpi=90)
    FigureCanvasAgg(figure)
    KINDS[kind][0](np.random.default_rng(seed), figure)
    file = BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.02)
    return Image.open(file).convert("RGB")


if __name__ == "__main__":
    main()
