"""Reads a filled card as the Hub and a person do, and finds what is still to be filled."""

import math
import re
from collections.abc import Iterator

import yaml
from huggingface_hub import ModelCard

from .fill import PLACEHOLDER
from .model_card import NOT_STATED


_PLACEHOLDERS = re.compile(
    rf"\$\{{?[a-z_]+\}}?|\{{\{{.*?\}}\}}|\bTODO\b|\bFIXME\b|\bTBD\b|\[?More Information Needed\]?|{PLACEHOLDER}|<!--"
)
_HEADING = re.compile(r"(#{1,6}) (.+)")
_EMPTY_CELL = re.compile(r"\|\s*(None|NaN|nan|null|-|)\s*(?=\|)")
_RULE = re.compile(r"[|\s:-]*-[|\s:-]*")


def find_problems(card: str) -> list[str]:
    """What a model's card still lacks.

    Args:
        card: The whole file.

    Returns:
        A line for each placeholder, empty section, empty cell of a table, and field of the metadata that the Hub would
        refuse; none for a card that can be published.
    """
    return [*_metadata(card), *_text(card)]


def _metadata(card: str) -> Iterator[str]:
    try:
        data = ModelCard(card).data
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        yield f"metadata: they cannot be read ({' '.join(str(error).split())})"
        return
    if data.get("license") in (None, "", "unknown"):
        yield "metadata: license is not stated"
    for name, value in data.to_dict().items():
        if value in (None, "", [], {}):
            yield f"metadata: {name} is empty"
    if data.get("model-index") is not None:  # what huggingface_hub could not read it leaves as it is
        yield "metadata: model-index cannot be read"
    for result in data.eval_results or []:
        value = result.metric_value
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            yield f"metadata: model-index has {value!r} as {result.metric_name or result.metric_type}"


def _text(card: str) -> Iterator[str]:
    section, depth, filled = "the beginning", 0, True
    fenced, in_table = False, False
    lines = card.splitlines()
    start = lines.index("---", 1) + 1 if lines[:1] == ["---"] and "---" in lines[1:] else 0
    for number, line in enumerate(lines[start:], start + 1):
        if line.startswith("```"):
            fenced = not fenced
        heading = None if fenced else _HEADING.fullmatch(line)
        if heading:
            if not filled and len(heading[1]) <= depth:
                yield f"{section}: there is nothing in it"
            section, depth, filled = heading[2], len(heading[1]), False
            continue
        filled = filled or bool(line.strip())
        found = PLACEHOLDER in line if fenced else _PLACEHOLDERS.search(line)
        if found:
            yield f"{section}: line {number} has a placeholder ({line.strip()[:60]})"
        if not fenced and NOT_STATED in line:
            yield f"{section}: {line.strip()}"
        if not fenced and line.startswith("|"):
            if in_table and not _RULE.fullmatch(line) and _EMPTY_CELL.search(line):
                yield f"{section}: line {number} has an empty cell ({line.strip()[:60]})"
            in_table = True
        else:
            in_table = False
    if not filled:
        yield f"{section}: there is nothing in it"
