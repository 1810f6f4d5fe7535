"""The command line accepts the commands of the README, the documentation and the recipes as they are written."""

import re
import shlex
from importlib import import_module

import pytest
from helpers.commands import ROOT
from helpers.pages import PAGES, blocks_of

from biomedclip.run_scripts.cli import options
from biomedclip.run_scripts.main import VERBS, main


# A command starts a line, perhaps as a comment of a recipe, or follows a launcher.
COMMAND = re.compile(rf"(?:^|--no[-_]python )(biomedclip (?:{'|'.join(VERBS)})\b.*)")
# In running text only commands with an output folder are complete.
IN_TEXT = re.compile(rf"`(biomedclip (?:{'|'.join(VERBS)})\b[^`\n]* --output-dir [^`\n]*)`")


class Parsed(BaseException):
    """Raised in place of the work of a command, once its options have been parsed."""


def documented_commands() -> list[tuple[str, str]]:
    """Return the names of the files and their complete commands."""
    found = set()
    for page in PAGES:
        if page.name == "CONTRIBUTING.md":
            continue  # its examples exist only in a copy of the repository
        lines = [line for block in blocks_of(page) if block.language == "bash" for line in block.commands]
        lines += IN_TEXT.findall(page.read_text(encoding="utf-8"))
        found |= {(page.name, line) for line in lines}
    for recipe in (ROOT / "run_scripts" / "recipes").glob("*.yaml"):
        text = re.sub(r"\\\n[# ]*", " ", recipe.read_text(encoding="utf-8"))
        found |= {(recipe.name, line) for line in re.findall(r"^# *(.*)", text, re.MULTILINE)}
    commands = [(name, match[1].strip()) for name, line in found if (match := COMMAND.search(line))]
    return sorted((name, command) for name, command in commands if " ... " not in command)


DOCUMENTED = documented_commands()


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


@pytest.mark.parametrize(("page", "command"), DOCUMENTED, ids=[f"{p}-{command[11:60]}" for p, command in DOCUMENTED])
def test_a_documented_command_is_accepted(page, command, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "1")
    if command.endswith("--help"):
        with pytest.raises(SystemExit, match="0"):
            main(shlex.split(command)[1:])
        return
    with pytest.raises(Parsed):
        parse(command, monkeypatch)
        pytest.fail(f"{page}: {command}\n{capsys.readouterr().err}")


def test_an_unknown_option_is_refused(monkeypatch, capsys):
    parse("biomedclip evaluate retrieval --model run --data out --no-such-option 3 --output-dir results", monkeypatch)
    assert "--no-such-option" in capsys.readouterr().err


def test_the_pages_contain_commands_of_every_verb():
    assert len(DOCUMENTED) > 60
    assert {command.split()[1] for _, command in DOCUMENTED} >= set(VERBS)
