"""Find missing and invalid parts of a model card before it is published."""

import math
import re
from collections.abc import Iterator

import yaml
from huggingface_hub import ModelCard

from .formatting import PLACEHOLDER
from .model_card import NOT_STATED


_PLACEHOLDERS = re.compile(
    rf"\$\{{?[a-z_]+\}}?|\{{\{{.*?\}}\}}|\bTODO\b|\bFIXME\b|\bTBD\b|\[?More Information Needed\]?|{PLACEHOLDER}|<!--"
)
_HEADING = re.compile(r"(#{1,6}) (.+)")
_EMPTY_CELL = re.compile(r"\|\s*(None|NaN|nan|null|-|)\s*(?=\|)")
_RULE = re.compile(r"[|\s:-]*-[|\s:-]*")


def find_problems(card: str) -> list[str]:
    """Return a line for each placeholder, empty section, empty table cell, and invalid metadata field of a model card.

    The list is empty if the card can be published.
    """
    return [*_check_metadata(card), *_check_text(card)]


def _check_metadata(card: str) -> Iterator[str]:
    try:
        data = ModelCard(card).data
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        yield f"metadata: cannot be read ({' '.join(str(error).split())})"
        return
    if data.get("license") in (None, "", "unknown"):
        yield "metadata: license is missing"
    for name, value in data.to_dict().items():
        if value in (None, "", [], {}):
            yield f"metadata: {name} is empty"
    if data.get("model-index") is not None:  # huggingface_hub leaves it unchanged if it cannot read it
        yield "metadata: model-index cannot be read"
    for result in data.eval_results or []:
        value = result.metric_value
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            yield f"metadata: model-index has {value!r} as {result.metric_name or result.metric_type}"


def _check_text(card: str) -> Iterator[str]:
    section, depth, filled = "before the first heading", 0, True
    in_code, in_table = False, False
    lines = card.splitlines()
    start = lines.index("---", 1) + 1 if lines[:1] == ["---"] and "---" in lines[1:] else 0
    for number, line in enumerate(lines[start:], start + 1):
        if line.startswith("```"):
            in_code = not in_code
        if not in_code and (heading := _HEADING.fullmatch(line)):
            if not filled and len(heading[1]) <= depth:
                yield f"{section}: the section is empty"
            section, depth, filled = heading[2], len(heading[1]), False
            continue
        filled = filled or bool(line.strip())
        if PLACEHOLDER in line if in_code else _PLACEHOLDERS.search(line):
            yield f"{section}: line {number} has a placeholder ({line.strip()[:60]})"
        if not in_code and NOT_STATED in line:
            yield f"{section}: {line.strip()}"
        row = not in_code and line.startswith("|")
        if row and in_table and not _RULE.fullmatch(line) and _EMPTY_CELL.search(line):
            yield f"{section}: line {number} has an empty cell ({line.strip()[:60]})"
        in_table = row
    if not filled:
        yield f"{section}: the section is empty"
