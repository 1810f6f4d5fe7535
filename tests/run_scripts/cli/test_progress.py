"""Progress of work on many images."""

import sys

import pytest

from biomedclip.run_scripts.cli import progress
from biomedclip.run_scripts.cli.progress import counting


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_there_are_few_plain_lines(capsys, clock):
    with counting(1200, "Classified") as add:
        for second in range(0, 60):
            clock[0] = float(second)
            add(20)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Classified: 320 of 1,200 images, 21.3 per second"
    assert len(lines) == 3 and not any("\r" in line for line in lines)


def test_a_bar_counts_images_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with counting(40, "Classified") as add:
        add(40)
        found = capsys.readouterr()
        assert "40/40" in found.err and "image" in found.err and found.out == ""
        assert found.err.endswith("\n"), "a table that follows begins on its own line"
    with counting(40, "Classified", bar_in_terminal=False) as add:
        add(40)
    assert capsys.readouterr().err == ""
