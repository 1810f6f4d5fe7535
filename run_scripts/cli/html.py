"""Write HTML pages that load nothing from other files or servers and run no scripts."""

from html import escape
from typing import Any

from biomedclip.model_cards.escaping import lines, one_line


_LONGEST = 500  # characters of a value
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, body: str, style: str) -> str:
    """Return a page. `title` is text, `body` is HTML and `style` is CSS.

    Its policy forbids scripts, and everything that is not in the page itself.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{literal(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def literal(value: Any) -> str:
    """Return a value as HTML that shows it literally on one line. Long values are cut."""
    text = one_line(lines(value))
    return escape(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")
