"""Settings of Sphinx. `make docs` builds the pages into docs/_build/html."""

import dataclasses
import inspect
import io
import os
import re
from contextlib import redirect_stdout, suppress
from importlib.metadata import version as installed_version

import biomedclip
from biomedclip.run_scripts.evaluation.options import OPTIONS
from biomedclip.run_scripts.main import VERBS, main


project = "biomedclip"
version = release = installed_version("biomedclip")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "biomedclip"
html_static_path = ["_static"]
html_css_files = ["wide_tables.css"]
html_copy_source = False
html_show_copyright = False
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_default_options = {
    "exclude-members": "config_class, valid_processor_kwargs, validate",
    "special-members": "__call__",
}
autodoc_typehints = "none"
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]

FENCE = re.compile(r"^( *)```(\w+)\n(.*?)\n *```$", re.MULTILINE | re.DOTALL)


def command_reference() -> str:
    """Return one section with the output of `--help` for each verb, and for each task with other options."""
    sections = []
    for verb, summary in VERBS.items():
        shown = help_of(verb)
        sections.append(f"## {verb}\n\n{summary[0].upper()}{summary[1:]}.\n\n```text\n{shown}```\n")
        if tasks := re.search(r"--task (\S+\|\S+)", shown):
            for task in tasks[1].split("|"):
                if (of_task := help_of(verb, "--task", task)) != shown:
                    sections.append(f"### {verb} --task {task}\n\n```text\n{of_task}```\n")
        for task in OPTIONS if verb == "evaluate" else ():
            sections.append(f"### {verb} {task}\n\n```text\n{help_of(verb, task)}```\n")
    return "\n".join(sections)


def help_of(*arguments: str) -> str:
    """Return what a command prints with `--help`."""
    os.environ["COLUMNS"] = "88"
    with redirect_stdout(io.StringIO()) as shown, suppress(SystemExit):
        main([*arguments, "--help"])
    return shown.getvalue()


def api_entries(names: list[str]) -> str:
    """Return the autodoc directives of public names."""
    lines = ["```{eval-rst}"]
    for name in names:
        directive = "autoclass" if inspect.isclass(getattr(biomedclip, name)) else "autofunction"
        lines += [f".. {directive}:: biomedclip.{name}"]
        if directive == "autoclass":
            lines += ["   :members:"]
        lines += [""]
    return "\n".join([*lines, "```\n"])


def python_reference(page: str) -> str:
    """Replace each line `{public-names} A B C` of a page by the entries of these names.

    Raises:
        ValueError: If the page does not list every name of `biomedclip.__all__` exactly once.
    """
    groups = re.findall(r"^\{public-names\} (.+)$", page, re.MULTILINE)
    listed = sorted(name for group in groups for name in group.split())
    if listed != sorted(biomedclip.__all__):
        difference = sorted(set(listed) ^ set(biomedclip.__all__)) or "a name is listed twice"
        raise ValueError(f"docs/python_api.md does not list biomedclip.__all__: {difference}")
    return re.sub(r"^\{public-names\} (.+)$", lambda group: api_entries(group[1].split()), page, flags=re.MULTILINE)


def generate(app, docname: str, source: list[str]) -> None:
    """Add the generated parts of the two reference pages."""
    if docname == "commands":
        source[0] += "\n" + command_reference()
    elif docname == "python_api":
        source[0] = python_reference(source[0])


def markdown_to_rest(app, what, name, obj, options, lines: list[str]) -> None:
    """Convert the Markdown of a docstring: fenced examples, links in brackets, and code in single backticks."""
    if len(lines) > 1 and re.fullmatch(r"\w+:", lines[0]) and not lines[1].startswith(" "):
        lines[1:] = [f"    {line}" for line in lines[1:]]  # nothing but this section: its indentation was removed
    if what == "class" and dataclasses.is_dataclass(obj) and "Args:" not in lines:
        helps = {field.name: field.metadata.get("help") for field in dataclasses.fields(obj)}
        own = [f"    {field}: {helps[field]}" for field in obj.__dict__["__annotations__"] if helps.get(field)]
        lines += ["", "Args:", *own] if own else []
    text = "\n".join(lines)
    examples: list[str] = []

    def keep(fence: re.Match) -> str:
        code = [line.removeprefix(fence[1]) for line in fence[3].split("\n")]
        examples.append(
            "\n".join([f"{fence[1]}.. code-block:: {fence[2]}", "", *(f"{fence[1]}    {c}" for c in code), ""])
        )
        return f"\n\0{len(examples) - 1}\0"

    text = FENCE.sub(keep, text)
    text = re.sub(r"^( *)Examples?:\n", r"\1.. rubric:: Example\n", text, flags=re.MULTILINE)
    text = re.sub(r"\[`([\w.]+)`\]", r":py:obj:`.\1`", text)
    text = re.sub(r"(?<![`:\w])`([^`\n]+(?:\n[^`\n]+)?)`(?!`)", r"``\1``", text)
    parts = re.split(r"(``[^`]+``)", text)  # stars are escaped outside of code
    parts[::2] = [re.sub(r"(?<![*\w])(\*{1,2})(?=\w+\b(?!\*))", r"\\\1", part) for part in parts[::2]]
    text = "".join(parts)
    for number, example in enumerate(examples):
        text = text.replace(f"\0{number}\0", example)
    lines[:] = text.split("\n")


def short_signature(app, what, name, obj, options, signature, return_annotation):
    """Hide the signatures of configurations, which repeat several dozen fields with their defaults."""
    if inspect.isclass(obj) and len(inspect.signature(obj).parameters) > 12:
        return "(**kwargs)", None
    return signature, return_annotation


def setup(app) -> None:
    """Connect the functions of this file to the events of Sphinx."""
    app.connect("source-read", generate)
    app.connect("autodoc-process-docstring", markdown_to_rest, priority=400)
    app.connect("autodoc-process-signature", short_signature)
