"""Functions for the plots of all reports: plain text, short labels and PNG images."""

import io
from typing import Any

import matplotlib


matplotlib.use("Agg")

from matplotlib import pyplot as plt

from biomedclip.model_cards.escaping import one_line


_LONGEST = 24  # characters of a label in a legend
# A decorator of plots. Dollar signs in a class name do not delimit math.
plain_text = matplotlib.rc_context({"text.parse_math": False, "text.usetex": False})


def short(label: str) -> str:
    """Return a label of a legend on one line. Long ones are cut."""
    text = one_line(label)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def png_of(figure: Any) -> bytes:
    """Return a figure as PNG, and close it."""
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png")
    plt.close(figure)
    return file.getvalue()
