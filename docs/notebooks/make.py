"""Write the notebook of a page: text, shell commands and Python code in the same order, without outputs.

python docs/notebooks/make.py
"""

import json
import re
from pathlib import Path
from typing import Any


NOTEBOOKS = Path(__file__).parent
PAGE = NOTEBOOKS.parent / "from_scans_to_report.md"
_BLOCK = re.compile(r"(?:^<!-- test with: [^\n]* -->\n)?^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((\w+\.md)")


def notebook(page: str) -> dict[str, Any]:
    """Return a notebook with the text and the blocks of a page in Markdown. Shell commands become `%%bash` cells."""
    cells, end = [], 0
    for match in _BLOCK.finditer(page):
        cells.append(_text(page[end : match.start()]))
        language, code = match.groups()
        source = code if language == "python" else f"%%bash\n{code}"
        cells.append(
            {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": [], "source": _lines(source)}
        )
        end = match.end()
    cells.append(_text(page[end:]))
    cells = [cell for cell in cells if cell["source"]]
    return {
        "cells": [{"id": f"cell-{number}", **cell} for number, cell in enumerate(cells, 1)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _text(markdown: str) -> dict[str, Any]:
    # Pages are one folder up.
    return {"cell_type": "markdown", "metadata": {}, "source": _lines(_LINK.sub(r"](../\1", markdown))}


def _lines(text: str) -> list[str]:
    return text.strip().splitlines(keepends=True)


def written(page: Path = PAGE) -> str:
    """Return the content of the notebook file of a page."""
    return json.dumps(notebook(page.read_text(encoding="utf-8")), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (NOTEBOOKS / f"{PAGE.stem}.ipynb").write_text(written(), encoding="utf-8")
