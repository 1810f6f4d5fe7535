"""The code blocks of the README, the documentation and CONTRIBUTING.md."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from helpers.commands import COMMAND, ENVIRONMENT, ROOT, run_python

from biomedclip.run_scripts.main import main


RUN = ("bash", "python")  # languages of the blocks that tests execute
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*) -->\n)?^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass
class Block:
    """A fenced block.

    A comment before a block controls its test. `<!-- not run: network -->` excludes it, and
    `<!-- test with: --max-steps 5 -->` appends options to each command.
    """

    page: Path
    line: int
    language: str
    code: str
    note: str

    @property
    def not_run(self) -> str:
        """Return why the block is not executed, or an empty string."""
        return self.note.removeprefix("not run: ") if self.note.startswith("not run: ") else ""

    @property
    def test_options(self) -> str:
        """Return the options that make the commands of the block cheap."""
        return self.note.removeprefix("test with: ") if self.note.startswith("test with: ") else ""

    @property
    def commands(self) -> list[str]:
        """Return the commands of a shell block, with continued lines joined and without comments."""
        lines = re.sub(r"\\\n\s*", " ", self.code).splitlines()
        commands = [re.split(r"(?:^|\s+)#", line)[0].strip() for line in lines]
        return [command for command in commands if command]


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, match.start("code")) + 1,
            match["language"],
            match["code"],
            match["note"] or "",
        )
        for match in BLOCK.finditer(text)
    ]


def run_page(page: Path) -> None:
    """Run the blocks of a page in the working directory, except those that its comments exclude."""
    namespace = {"__name__": "__example__"}
    for block in blocks_of(page):
        if block.not_run or block.language not in RUN:
            continue
        if block.language == "python":
            code = "\n" * (block.line - 1) + block.code  # so that tracebacks show the line of the page
            exec(compile(code, str(page), "exec"), namespace)
        else:
            for command in block.commands:
                run_command(block, command)


def run_command(block: Block, command: str) -> None:
    where = f"{block.page.name}:{block.line}: {command}"
    words = shlex.split(command)
    if words[0] == "biomedclip" and words[-1] != "--version":
        try:
            status = main([*words[1:], *shlex.split(block.test_options)])
        except SystemExit as end:  # raised by --help
            status = end.code
        assert status == 0, where
        return
    first, pipe, second = command.partition(" | biomedclip ")
    answers = ""
    if pipe:
        answers = subprocess.run(["bash", "-c", first], capture_output=True, text=True, check=True).stdout
        words = ["python", *COMMAND[1:], *shlex.split(second)]
    if words[0] == "python":
        result = run_python(*words[1:], *shlex.split(block.test_options), folder=Path.cwd(), answers=answers)
        assert result.returncode == 0, f"{where}\n{result.stderr[-3000:]}"
        return
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell = ["bash", "-c", f"{command} {block.test_options}"]
    result = subprocess.run(shell, capture_output=True, text=True, env=ENVIRONMENT | {"PATH": path}, timeout=600)
    assert result.returncode == 0, f"{where}\n{result.stderr[-3000:]}"
