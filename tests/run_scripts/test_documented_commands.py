"""The commands of the README, the docs and the recipes are accepted by the command line as they are written."""

import re
import shlex
from importlib import import_module

import pytest
from helpers.commands import ROOT

from biomedclip.run_scripts.cli import options
from biomedclip.run_scripts.main import VERBS, main


# A command: `biomedclip` and a verb at the start of a line of a block, or behind a launcher.
IN_BLOCK = re.compile(
    rf"(?:^[# ]*|RAY_ADDRESS=auto |--no[-_]python )(biomedclip (?:{'|'.join(VERBS)})\b[^`\n]*)", re.MULTILINE
)
# In running text only commands with an output folder are complete.
IN_TEXT = re.compile(rf"`(biomedclip (?:{'|'.join(VERBS)})\b[^`\n]* --output-dir [^`\n]*)`")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "run_scripts" / "recipes").glob("*.yaml")])


class Parsed(BaseException):
    """Raised in place of the work of a command, once its options have been parsed."""


def commands_of(text: str, markdown: bool) -> list[str]:
    """Return the complete commands of a page, without comments and those with placeholders."""
    text = re.sub(r"\\\n[# ]*", " ", text)
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if markdown else [text]
    commands = [*IN_TEXT.findall(text), *(command for block in blocks for command in IN_BLOCK.findall(block))]
    commands = [re.split(r"\s#", command)[0].strip() for command in commands]
    return [command for command in commands if " ... " not in command]


DOCUMENTED = sorted(
    {
        (page.name, command)
        for page in PAGES
        for command in commands_of(page.read_text(encoding="utf-8"), page.suffix == ".md")
    }
)


def parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command up to the point where its options are parsed."""

    def parse_only(*arguments, **keywords):
        options.parse_options(*arguments, **keywords)
        raise Parsed

    for module in (*VERBS, "training.classification", "training.visual_question_answering"):
        if hasattr(module := import_module(f"biomedclip.run_scripts.{module}"), "parse_options"):
            monkeypatch.setattr(module, "parse_options", parse_only)
    arguments = shlex.split(command)[1:]
    if arguments[0] == "train" and "--dry-run" not in arguments:
        arguments += ["--use-cpu", "true"]  # bf16 needs this where there is no GPU
    main(arguments)


@pytest.mark.parametrize(
    ("page", "command"), DOCUMENTED, ids=[f"{page}-{command[11:60]}" for page, command in DOCUMENTED]
)
def test_a_documented_command_is_accepted(page, command, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(Parsed):
        parse(command, monkeypatch)
        pytest.fail(f"{page}: {command}\n{capsys.readouterr().err}")


def test_an_option_that_does_not_exist_is_noticed(monkeypatch, capsys):
    parse("biomedclip evaluate retrieval --model run --data out --no-such-option 3 --output-dir results", monkeypatch)
    assert "--no-such-option" in capsys.readouterr().err


def test_the_pages_contain_commands_of_every_verb():
    assert len(DOCUMENTED) > 60
    assert {command.split()[1] for _, command in DOCUMENTED} >= set(VERBS) - {"quickstart"}
