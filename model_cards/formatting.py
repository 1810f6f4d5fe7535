"""Fill the templates of cards, and format sizes, fractions and names."""

import os
from pathlib import Path
from typing import Any

from .escaping import code, code_block, markdown


# Repository in the code examples of a card until it is pushed.
PLACEHOLDER = "ORG/NAME"


def render(template: str, /, **values: Any) -> str:
    """Fill a Jinja template of this folder.

    Each value is escaped with [`markdown`], and integers get commas. Only [`Markdown`] is inserted unchanged.
    """
    import jinja2  # imported here, because the command line imports this module for every verb

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        finalize=lambda value: markdown(f"{value:,}" if isinstance(value, int) else value),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    functions = {"code": code, "code_block": code_block, "named": named, "percent": percent, "size": size}
    return environment.get_template(template).render(functions | values)


def named(values: dict[str, Any]) -> str:
    """Return names with their values, separated by commas."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def percent(fraction: float) -> str:
    """Return a fraction as a percentage. Only 0 is written as 0.0 %, and only 1 as 100.0 %."""
    if 0 < fraction < 0.001:
        return "< 0.1 %"
    if 0.999 < fraction < 1:
        return "> 99.9 %"
    return f"{100 * fraction:.1f} %"


def size(count: float) -> str:
    """Return a number of bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def public_name(source: str) -> str:
    """Return a URL or Hub id unchanged, and only the last part of a local path."""
    local = source.startswith(("/", "~", "file:")) or ("://" not in source and os.path.exists(source))
    return Path(source).name if local else source
