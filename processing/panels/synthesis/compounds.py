"""Draw compound figures from single figures, and tell where their panels and printed labels are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..image_types import GROUP_OF
from .labels import LabelStyle, font, random_style
from .layouts import Layout, random_layout


Rng = np.random.Generator
Box = tuple[float, float, float, float]  # left, top, right and bottom in pixels
Color = tuple[int, int, int]
Source = Callable[[Rng, str | None], "Single"]
SINGLES = 0.25  # part of figures that have one panel
MOSAICS = 0.15  # part of compound figures whose panels are photographs or scans that look alike and nearly touch
SEVERAL = 0.3  # part of compound figures with labels in which some panels have several images


TURNED = frozenset(name for name, group in GROUP_OF.items() if group in ("microscopy", "visible light photo"))
MORE_IMAGES = (0.3, 0.17, 0.22, 0.05, 0.14, 0.08, 0.04)  # how often a panel has 1, 2, 3, 4, 5, 8 or 11 further images


@dataclass(frozen=True)
class Single:
    """A figure with one panel.

    Attributes:
        image: Picture in RGB.
        image_type: Name of its type, None if it is unknown.
        kind: Figures of the same kind look alike and stand together in compound figures, for example an article's.
        is_photograph: Whether any part of it looks like the whole, so that it may be cropped to fill its place.
    """

    image: Image.Image
    image_type: str | None
    kind: str
    is_photograph: bool


@dataclass(frozen=True)
class DrawnPanel:
    """A panel of a drawn figure. `label` is as printed, and None without one."""

    box: Box
    image_type: str | None
    label: str | None = None
    label_box: Box | None = None


@dataclass(frozen=True)
class DrawnFigure:
    """A figure and its panels in reading order. A single figure has one panel.

    `labels_known` tells whether the boxes of all printed labels are known.
    """

    image: Image.Image
    panels: tuple[DrawnPanel, ...]
    labels_known: bool = True

    @property
    def is_compound(self) -> bool:
        """Whether the figure has several panels."""
        return len(self.panels) > 1


def draw_figure(rng: Rng, source: Source) -> DrawnFigure:
    """Draw a figure with one or several panels.

    Args:
        rng: Random numbers. The same state draws the same figure.
        source: Returns a single figure, of the kind that is passed if it is not None.
    """
    figure = _single(rng, source) if rng.random() < SINGLES else _compound(rng, source)
    return degrade(rng, figure)


# Singles


def _single(rng: Rng, source: Source) -> DrawnFigure:
    single = source(rng, None)
    image = single.image
    scale = rng.uniform(300, 1000) / max(image.size)
    image = image.resize((max(16, round(image.width * scale)), max(16, round(image.height * scale))))
    if rng.random() < 0.5:
        margin = rng.integers(0, 40, 4).tolist()
        color = "white" if rng.random() < 0.9 else "black"
        canvas = Image.new("RGB", (image.width + margin[0] + margin[2], image.height + margin[1] + margin[3]), color)
        canvas.paste(image, (margin[0], margin[1]))
        image = canvas
    if rng.random() < 0.12:
        _write_on(rng, ImageDraw.Draw(image), (0, 0, *image.size))
    return DrawnFigure(image, (DrawnPanel((0, 0, *image.size), single.image_type),))


# Compound figures


@dataclass
class _Sheet:
    """The figure while it is drawn."""

    image: Image.Image
    pen: ImageDraw.ImageDraw
    background: Color
    gap: int
    style: LabelStyle | None


def _compound(rng: Rng, source: Source) -> DrawnFigure:
    layout = random_layout(rng)
    style = random_style(rng)
    sheet = _sheet(rng, layout, style)
    alike = rng.random() < 0.6
    first = source(rng, None)
    if rng.random() < MOSAICS:
        return _mosaic(rng, sheet, layout, _photograph(rng, source), source)
    fills = first.is_photograph and rng.random() < 0.75
    several = style is not None and rng.random() < SEVERAL  # panels with several images under one letter
    panels = []
    for number, cell in enumerate(layout.cells):
        single = first if number == 0 else source(rng, first.kind if alike else None)
        place = _place(sheet, cell)
        if place[2] - place[0] < 24 or place[3] - place[1] < 24:
            continue
        place, space = _space_for_label(rng, sheet, number, place)
        images = [single]
        if several and rng.random() < 0.5:
            images += [source(rng, single.kind) for _ in range(int(rng.choice([1, 2, 3, 4, 5, 8, 11], p=MORE_IMAGES)))]
        box = _draw_images(rng, sheet, images, place, fills and alike)
        label_box = None
        if sheet.style is not None:
            label_box = (
                _label_inside(rng, sheet, number, box)
                if space is None
                else _label_outside(rng, sheet, number, box, space)
            )
        if rng.random() < 0.1:
            _write_on(rng, sheet.pen, box)
        name = sheet.style.name(number) if sheet.style and label_box else None
        image_types = {image.image_type for image in images}
        panels.append(DrawnPanel(box, single.image_type if len(image_types) == 1 else None, name, label_box))
    if layout.rows * layout.columns == len(layout.cells) + 1 and rng.random() < 0.6:
        _, top, right, bottom = layout.cells[-1]
        _draw_legend(rng, sheet, (right, top, 1, 1) if layout.columns > 1 else (0, bottom, 1, 1))
    _decorate(rng, sheet, panels)
    return DrawnFigure(sheet.image, tuple(panels))


def _photograph(rng: Rng, source: Source) -> Single:
    """Return a single figure that is a photograph, if one of a few is."""
    single = source(rng, None)
    for _ in range(9):
        if single.is_photograph:
            break
        single = source(rng, None)
    return single


def _mosaic(rng: Rng, sheet: _Sheet, layout: Layout, first: Single, source: Source) -> DrawnFigure:
    """Draw images of one kind with at most four pixels between them, such as scans side by side."""
    sheet.background = (255, 255, 255) if rng.random() < 0.6 else (0, 0, 0)
    sheet.image.paste(sheet.background, (0, 0, *sheet.image.size))
    if rng.random() < 0.4:
        sheet.style = None
    elif sheet.style is not None:
        sheet.style = replace(sheet.style, place="inside")
    sheet.gap = int(rng.integers(0 if sheet.style else 1, 5))
    parts = rng.random() < 0.5  # of one image
    panels = []
    for number, cell in enumerate(layout.cells):
        place = _place(sheet, cell)
        if min(place[2] - place[0], place[3] - place[1]) < 24:
            continue
        single = first if number == 0 or parts else source(rng, first.kind)
        if single.image_type != first.image_type:
            single = first
        box = _draw_image(rng, sheet, replace(single, is_photograph=True), place, fill=True)
        label_box = _label_inside(rng, sheet, number, box) if sheet.style else None
        if rng.random() < 0.15:
            _write_on(rng, sheet.pen, box)
        name = sheet.style.name(number) if sheet.style and label_box else None
        panels.append(DrawnPanel(box, single.image_type, name, label_box))
    return DrawnFigure(sheet.image, tuple(panels))


def _sheet(rng: Rng, layout: Layout, style: LabelStyle | None) -> _Sheet:
    width = int(rng.uniform(480, 1150))
    columns = max(1, layout.columns) if layout.columns else 2
    rows = max(1, layout.rows) if layout.rows else 2
    height = int(np.clip(width * rows / columns * rng.uniform(0.6, 1.15), 220, 1500))
    kind = rng.random()
    gray = int(rng.integers(90, 240))
    background = (255, 255, 255) if kind < 0.9 else (0, 0, 0) if kind < 0.96 else (gray, gray, gray)
    gap = int(rng.choice([0, 2, 5, 10, 18, 30, 60], p=[0.08, 0.12, 0.2, 0.24, 0.2, 0.12, 0.04]))
    image = Image.new("RGB", (width, height), background)
    return _Sheet(image, ImageDraw.Draw(image), background, gap, style)


def _place(sheet: _Sheet, cell: Sequence[float]) -> Box:
    """Return the pixels of a cell. Gaps lie between cells, and half of one at the border."""
    width, height, half = *sheet.image.size, sheet.gap / 2
    left, top, right, bottom = cell
    return (
        round(left * width + half),
        round(top * height + half),
        round(right * width - half),
        round(bottom * height - half),
    )


def _draw_images(rng: Rng, sheet: _Sheet, images: Sequence[Single], place: Box, fill: bool) -> Box:
    """Draw one or several images in a place, and return the box around them."""
    columns = len(images) if len(images) < 4 and rng.random() < 0.6 else int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    inner = min(int(sheet.gap * 0.6), int(rng.integers(0, 9)))
    width, height = (place[2] - place[0]) / columns, (place[3] - place[1]) / rows
    if min(width, height) < 30:
        images, columns, rows = images[:1], 1, 1
        width, height = place[2] - place[0], place[3] - place[1]
    boxes = []
    for number, single in enumerate(images):
        left, top = place[0] + number % columns * width, place[1] + number // columns * height
        cell = (round(left), round(top), round(left + width - inner), round(top + height - inner))
        boxes.append(_draw_image(rng, sheet, single, cell, fill))
    return (
        min(box[0] for box in boxes),
        min(box[1] for box in boxes),
        max(box[2] for box in boxes),
        max(box[3] for box in boxes),
    )


def _draw_image(rng: Rng, sheet: _Sheet, single: Single, cell: Box, fill: bool) -> Box:
    width, height = max(8, int(cell[2] - cell[0])), max(8, int(cell[3] - cell[1]))
    image = single.image
    if single.is_photograph and rng.random() < 0.5:
        image = _random_part(rng, image)
    if single.image_type in TURNED and rng.random() < 0.6:
        image = _turned(rng, image)
    if fill and single.is_photograph:
        image = _crop_to(image, width / height)
        size = (width, height)
    else:
        # Plots are mostly drawn for their place, photographs keep their shape.
        limits = (0.9, 1.1) if single.is_photograph or rng.random() < 0.3 else (0.6, 1.7)
        stretch = float(np.clip(width / height / (image.width / image.height), *limits))
        scale = min(width / image.width / stretch, height / image.height)
        size = (max(8, round(image.width * scale * stretch)), max(8, round(image.height * scale)))
    x, y = (0.0 if rng.random() < 0.5 else 0.5), (0.0 if rng.random() < 0.5 else 0.5)
    left, top = round(cell[0] + (width - size[0]) * x), round(cell[1] + (height - size[1]) * y)
    resized = image.resize(size, Image.Resampling.BICUBIC if max(size) < 900 else Image.Resampling.BILINEAR)
    sheet.image.paste(resized, (left, top))
    box = (left, top, left + size[0], top + size[1])
    if rng.random() < 0.08:
        sheet.pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=(0, 0, 0), width=int(rng.integers(1, 3)))
    return box


def _random_part(rng: Rng, image: Image.Image) -> Image.Image:
    width, height = (max(48, round(side * rng.uniform(0.5, 1))) for side in image.size)
    width, height = min(width, image.width), min(height, image.height)
    left, top = int(rng.integers(0, image.width - width + 1)), int(rng.integers(0, image.height - height + 1))
    part = image.crop((left, top, left + width, top + height))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.3 else part


def _turned(rng: Rng, image: Image.Image) -> Image.Image:
    """Turn or mirror an image, and change its colors a little."""
    image = image.transpose(Image.Transpose(int(rng.integers(7))))
    scale, shift = rng.uniform(0.85, 1.15, (3, 1)), rng.uniform(-12, 12, (3, 1))
    table = np.clip(np.arange(256) * scale + shift, 0, 255).astype(int)
    red, green, blue = (np.asarray(channel) for channel in image.split())
    if (red == green).all() and (green == blue).all():
        table[1:] = table[0]  # gray stays gray
    return image.point(table.ravel().tolist())


def _crop_to(image: Image.Image, aspect: float) -> Image.Image:
    width, height = image.size
    if width / height > aspect:
        keep = max(8, round(height * aspect))
        left = (width - keep) // 2
        return image.crop((left, 0, left + keep, height))
    keep = max(8, round(width / aspect))
    top = (height - keep) // 2
    return image.crop((0, top, width, top + keep))


# Labels


def _size_of(style: LabelStyle, text: str) -> Box:
    return font(style.font, style.size).getbbox(text)


def _write(sheet: _Sheet, style: LabelStyle, number: int, left: float, top: float, color: Color) -> Box:
    """Print a label whose ink begins at a point, and return its box."""
    text = style.text(number)
    ink = _size_of(style, text)
    box = (round(left), round(top), round(left + ink[2] - ink[0]), round(top + ink[3] - ink[1]))
    if style.boxed:
        around = (box[0] - 3, box[1] - 3, box[2] + 3, box[3] + 3)
        sheet.pen.rectangle(around, fill=(255, 255, 255) if sum(color) < 380 else (0, 0, 0))
    sheet.pen.text((box[0] - ink[0], box[1] - ink[1]), text, fill=color, font=font(style.font, style.size))
    return box


def _space_for_label(rng: Rng, sheet: _Sheet, number: int, place: Box) -> tuple[Box, int | None]:
    """Return the place that is left beside a label, and its distance from the content. None is a label inside."""
    style = sheet.style
    if style is None or style.place == "inside":
        return place, None
    ink = _size_of(style, style.text(number))
    width, height = ink[2] - ink[0], ink[3] - ink[1]
    left, top, right, bottom = place
    if right - left < 2 * width + 30 or bottom - top < 2 * height + 30:
        return place, None
    space = int(rng.integers(1, 8))
    if style.place == "above":
        return (left, top + height + space, right, bottom), space
    if style.place == "below":
        return (left, top, right, bottom - height - space), space
    return (left + width + space, top, right, bottom), space


def _label_outside(rng: Rng, sheet: _Sheet, number: int, box: Box, space: int) -> Box:
    """Print a label beside the content of a panel."""
    style = sheet.style
    assert style is not None
    ink = _size_of(style, style.text(number))
    width, height = ink[2] - ink[0], ink[3] - ink[1]
    color = (0, 0, 0) if sum(sheet.background) > 380 else (255, 255, 255)
    x = box[0] + (box[2] - box[0] - width) * style.corner[0]
    if style.place == "above":
        written = _write(sheet, style, number, x, box[1] - height - space, color)
        if style.corner[0] == 0 and rng.random() < 0.2:
            title = str(rng.choice(["Control", "Treated (24 h)", "Day 7", "Overall survival", "IL-6", "Women, n = 12"]))
            small = font("DejaVuSans.ttf", max(7, round(0.75 * style.size)))
            sheet.pen.text((written[2] + style.size, written[3]), title, fill=color, font=small, anchor="ls")
        return written
    if style.place == "below":
        return _write(sheet, style, number, x, box[3] + space, color)
    return _write(sheet, style, number, box[0] - width - space, box[1], color)


def _label_inside(rng: Rng, sheet: _Sheet, number: int, box: Box) -> Box | None:
    """Print a label in a corner of a panel in black or white, whichever can be read."""
    style = sheet.style
    assert style is not None
    ink = _size_of(style, style.text(number))
    width, height = ink[2] - ink[0], ink[3] - ink[1]
    if box[2] - box[0] < 2 * width or box[3] - box[1] < 2 * height:
        return None
    margin = 2 + 6 * ((number * 7) % 3) / 2 if rng.random() < 0.2 else 4
    left = box[0] + margin + (box[2] - box[0] - width - 2 * margin) * style.corner[0]
    top = box[1] + margin + (box[3] - box[1] - height - 2 * margin) * style.corner[1]
    behind = sheet.image.crop((int(left), int(top), int(left + width) + 1, int(top + height) + 1)).convert("L")
    dark = np.asarray(behind).mean() < 125
    return _write(sheet, style, number, left, top, (255, 255, 255) if dark else (0, 0, 0))


# Things that are no panels


def _write_on(rng: Rng, pen: ImageDraw.ImageDraw, box: Box) -> None:
    """Draw letters, arrows and a scale bar that mark details of an image."""
    width, height = box[2] - box[0], box[3] - box[1]
    color = [(255, 255, 255), (0, 0, 0), (255, 255, 0), (220, 0, 0)][int(rng.integers(4))]
    for _ in range(int(rng.integers(1, 5))):
        x, y = box[0] + rng.uniform(0.2, 0.8) * width, box[1] + rng.uniform(0.2, 0.8) * height
        if rng.random() < 0.5:
            text = str(rng.choice(["N", "T", "*", "L", "R", "P", "LV", "RA", "Ao", "M", "200 μm", "H&E", "1", "CT"]))
            pen.text((x, y), text, fill=color, font=font("DejaVuSans.ttf", int(rng.integers(9, 26))))
        else:
            angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(10, 40)
            tip = (x + length * np.cos(angle), y + length * np.sin(angle))
            pen.line((x, y, *tip), fill=color, width=2)
            sides = [(tip[0] - 8 * np.cos(angle + turn), tip[1] - 8 * np.sin(angle + turn)) for turn in (-0.5, 0.5)]
            pen.polygon([tip, *sides], fill=color)
    if rng.random() < 0.4:
        pen.line((box[2] - 0.3 * width, box[3] - 8, box[2] - 8, box[3] - 8), fill=color, width=3)


def _draw_legend(rng: Rng, sheet: _Sheet, cell: Sequence[float]) -> None:
    """Draw a legend for all panels where the last one would be."""
    left, top, right, bottom = _place(sheet, cell)
    size = int(rng.integers(9, 20))
    left += (right - left) * rng.uniform(0.05, 0.4)
    top += (bottom - top) * rng.uniform(0.05, 0.3)
    color = (0, 0, 0) if sum(sheet.background) > 380 else (255, 255, 255)
    lines = min(int(rng.integers(2, 9)), int((bottom - top) / (1.6 * size)))
    for line in range(lines):
        y = top + 1.5 * size * line
        fill = tuple(int(level) for level in rng.integers(0, 256, 3))
        sheet.pen.rectangle((left, y, left + 1.4 * size, y + size), fill=fill, outline=color)
        text = str(rng.choice(["Control", "Vector control", "WT", "Treated + M", "Day 7", "n = 12", "GFP", "Placebo"]))
        sheet.pen.text((left + 2 * size, y), text, fill=color, font=font("DejaVuSans.ttf", size))
    if lines and rng.random() < 0.3:
        frame = (left - 5, top - 5, min(left + 11 * size, right - 1), top + 1.5 * size * lines + 3)
        sheet.pen.rectangle(frame, outline=color)


def _decorate(rng: Rng, sheet: _Sheet, panels: Sequence[DrawnPanel]) -> None:
    """Draw what panels share: a frame, or a title or color bar in a free strip at the border."""
    if rng.random() < 0.05:
        size = sheet.image.size
        sheet.pen.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=(0, 0, 0), width=int(rng.integers(1, 3)))


def _with_strip(rng: Rng, figure: DrawnFigure) -> DrawnFigure:
    """Add a strip with a shared title, legend, color bar or caption at one side."""
    image = figure.image
    thickness = int(rng.integers(18, 60))
    side = int(rng.integers(4))
    corner = np.asarray(image)[0, 0]
    horizontal = side % 2 == 1
    size = (image.width, image.height + thickness) if horizontal else (image.width + thickness, image.height)
    canvas = Image.new("RGB", size, tuple(corner.tolist()) if corner.min() > 230 else (255, 255, 255))
    shift = (thickness if side == 0 else 0, thickness if side == 1 else 0)
    canvas.paste(image, shift)
    pen = ImageDraw.Draw(canvas)
    text_font = font("DejaVuSans.ttf", min(thickness - 6, int(rng.integers(9, 22))))
    words = ["Control", "Treated", "WT", "KO", "0 h", "24 h", "■ Control  ■ Treated", "Figure 2. Results of the study."]
    if horizontal:
        y = 3 if side == 1 else image.height + 3
        for x in np.linspace(0.1, 0.7, int(rng.integers(1, 5))):
            pen.text((x * canvas.width, y), str(rng.choice(words)), fill=(0, 0, 0), font=text_font)
    else:
        x = 4 if side == 0 else image.width + 4
        low, high = rng.uniform(0.1, 0.3) * canvas.height, rng.uniform(0.6, 0.9) * canvas.height
        for y in range(int(low), int(high)):
            level = int(255 * (y - low) / (high - low))
            pen.line((x, y, x + thickness * 0.4, y), fill=(level, 80, 255 - level))
    return _with_boxes(canvas, figure, lambda box: tuple(edge + shift[number % 2] for number, edge in enumerate(box)))


def _with_boxes(image: Image.Image, figure: DrawnFigure, change: Callable[[Box], Any]) -> DrawnFigure:
    """Return a figure with another image and changed boxes. A label whose box becomes None is no longer there."""
    panels = []
    for panel in figure.panels:
        label_box = panel.label_box and change(panel.label_box)
        label = panel.label if label_box else None
        panels.append(replace(panel, box=change(panel.box) or panel.box, label=label, label_box=label_box))
    return replace(figure, image=image, panels=tuple(panels))


# Damage


def stretched(rng: Rng, figure: DrawnFigure) -> DrawnFigure:
    """Change width and height by up to a fifth each."""
    across, down = rng.uniform(0.8, 1.2, 2)
    return _scaled(figure, across, down)


def degrade(rng: Rng, figure: DrawnFigure, strip: float = 0.15) -> DrawnFigure:
    """Add a strip (with this probability), cut the border, reduce the size, change colors, compress: each at random."""
    if figure.is_compound and rng.random() < strip:
        figure = _with_strip(rng, figure)
    if rng.random() < 0.3:
        figure = _cut_border(rng, figure)
    if rng.random() < 0.35:
        scale = rng.uniform(0.55, 0.95)
        figure = _scaled(figure, scale, scale)
    if rng.random() < 0.2:
        figure = replace(figure, image=_recolored(rng, figure.image))
    if rng.random() < 0.6:
        file = BytesIO()
        figure.image.save(file, format="JPEG", quality=int(rng.integers(40, 96)))
        figure = replace(figure, image=Image.open(file).convert("RGB"))
    return figure


def _recolored(rng: Rng, image: Image.Image) -> Image.Image:
    """Change brightness and contrast, and sometimes drop the colors. White stays white."""
    if rng.random() < 0.3:
        image = image.convert("L").convert("RGB")
    gamma = float(np.exp(rng.uniform(-0.4, 0.4)))
    table = [round(255 * (level / 255) ** gamma) for level in range(256)]
    return image.point(table * 3)


def _cut_border(rng: Rng, figure: DrawnFigure) -> DrawnFigure:
    """Cut to the content with a random margin, or a few pixels of the content."""
    if not figure.is_compound:
        return figure
    boxes = [panel.box for panel in figure.panels] + [p.label_box for p in figure.panels if p.label_box is not None]
    content = (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes))
    margins = rng.integers(-4, 16, 4)
    width, height = figure.image.size
    window = (
        int(np.clip(content[0] - margins[0], 0, width // 4)),
        int(np.clip(content[1] - margins[1], 0, height // 4)),
        int(np.clip(content[2] + margins[2], 3 * width // 4, width)),
        int(np.clip(content[3] + margins[3], 3 * height // 4, height)),
    )
    return _with_boxes(figure.image.crop(window), figure, lambda box: _cut(box, window))


def _cut(box: Box, window: Sequence[float]) -> Box | None:
    left, top = max(box[0], window[0]) - window[0], max(box[1], window[1]) - window[1]
    right, bottom = min(box[2], window[2]) - window[0], min(box[3], window[3]) - window[1]
    return (left, top, right, bottom) if right - left > 3 and bottom - top > 3 else None


def _scaled(figure: DrawnFigure, wide: float, high: float) -> DrawnFigure:
    size = (max(32, round(figure.image.width * wide)), max(32, round(figure.image.height * high)))
    across, down = size[0] / figure.image.width, size[1] / figure.image.height
    resized = figure.image.resize(size, Image.Resampling.LANCZOS)
    return _with_boxes(resized, figure, lambda box: (box[0] * across, box[1] * down, box[2] * across, box[3] * down))
