"""Labels printed on panels: letters, numbers and Roman numerals in several fonts and forms."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ImageFont


Rng = np.random.Generator
FONTS = (
    *("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf", "STIXGeneral.ttf"),
    *("STIXGeneralBol.ttf", "STIXGeneralItalic.ttf", "cmss10.ttf", "cmb10.ttf", "DejaVuSansMono-Bold.ttf"),
)
ROMAN = "i ii iii iv v vi vii viii ix x xi xii".split()
# Numerals that are no letters. `i`, `v` and `x` look like letters; their neighbors tell what they are.
CLASSES = (
    *(chr(65 + number) for number in range(26)),
    *(str(number) for number in range(1, 21)),
    *(numeral for numeral in ROMAN if len(numeral) > 1),
)


UNKNOWN = -1  # class of labels that are none of these


@dataclass(frozen=True)
class LabelStyle:
    """How the labels of a figure look."""

    font: str
    size: int
    kind: str  # upper, lower, number or roman
    form: str  # with {} for the label
    place: str  # of inside, above, below and left
    corner: tuple[float, float]  # 0 is left or top, 1 right or bottom
    boxed: bool

    def text(self, number: int) -> str:
        """Return the printed text of the label with a number from 0 on."""
        return self.form.format(self.name(number))

    def name(self, number: int) -> str:
        """Return the label as printed, without parentheses."""
        if self.kind == "number":
            return str(number + 1)
        if self.kind == "roman":
            return ROMAN[min(number, len(ROMAN) - 1)]
        letter = chr(65 + number % 26)
        return letter if self.kind == "upper" else letter.lower()


def label_class(name: str) -> int:
    """Return the class of a label, -1 if it has none. The case of letters is no part of it."""
    return next((CLASSES.index(form) for form in (name, name.upper(), name.lower()) if form in CLASSES), UNKNOWN)


def random_style(rng: Rng) -> LabelStyle | None:
    """Return how labels look, or None for a figure without labels."""
    if rng.random() < 0.14:
        return None
    kind = str(rng.choice(["upper", "lower", "number", "roman"], p=[0.62, 0.31, 0.04, 0.03]))
    place = str(rng.choice(["inside", "above", "below", "left"], p=[0.46, 0.3, 0.16, 0.08]))
    forms, chances = ["{}", "({})", "{})", "{}."], [0.62, 0.24, 0.06, 0.08]
    if place == "below":
        forms, chances = ["({})", "{}"], [0.85, 0.15]
    corners = [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, 0.0), (0.5, 0.0)]
    corner = corners[rng.choice(5, p=[0.62, 0.14, 0.1, 0.1, 0.04])]
    if place == "below":
        corner = ((0.5, 1.0), (0.0, 1.0))[int(rng.random() < 0.15)]
    return LabelStyle(
        font=str(rng.choice(FONTS)),
        size=int(np.clip(rng.lognormal(np.log(19), 0.35), 8, 40)),
        kind=kind,
        form=str(rng.choice(forms, p=chances)),
        place=place,
        corner=corner,
        boxed=bool(rng.random() < 0.12),
    )


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a font that comes with matplotlib."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / name), size)
