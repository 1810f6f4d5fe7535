"""Pictures of figures with the boxes, labels and types of their panels."""

import re
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from biomedclip.processing.bit_depth_biomedclip import to_8_bit
from biomedclip.processing.panels.figure_panels import FigurePanels


LARGEST = 2048  # pixels of the longer side of an overlay
COLORS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#e377c2", "#8c564b")


def save_overlay(image: Image.Image, figure: FigurePanels, folder: Path, number: int, name: str) -> None:
    """Write `NUMBER_NAME.png` with a box around each panel, and its label, type and score."""
    picture = to_8_bit(image).convert("RGB")
    picture.thumbnail((LARGEST, LARGEST))
    scale = picture.width / image.width
    pen = ImageDraw.Draw(picture)
    thickness = max(2, max(picture.size) // 300)
    font = ImageFont.load_default(max(12, max(picture.size) // 50))
    for place, panel in enumerate(figure.panels):
        color = COLORS[place % len(COLORS)]
        box = tuple(edge * scale for edge in panel.box)
        pen.rectangle(box, outline=color, width=thickness)
        parts = [panel.label or "-", panel.image_type.name or "", f"{panel.score:.2f}"]
        text = "  ".join(filter(None, parts))
        corner = (box[0] + thickness, box[1] + thickness)
        pen.rectangle(pen.textbbox(corner, text, font=font), fill="white")
        pen.text(corner, text, fill=color, font=font)
    stem = re.sub(r"[^\w.+-]+", "_", Path(name).stem)[:60].strip("_.") or "image"
    picture.save(folder / f"{number:06}_{stem}.png", format="PNG")
