"""Error messages in a terminal and in a pipe."""

import io
import logging

import pytest

from biomedclip.run_scripts.cli.errors import set_option_names, wrap_for
from biomedclip.run_scripts.main import _EscapingFormatter, main


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    return Terminal()


def test_a_long_message_is_wrapped_between_words_at_the_width_of_the_terminal(terminal):
    message = "biomedclip train: the validation split has no image of two of the classes. Add some."
    assert wrap_for(terminal, message).split("\n") == [
        "biomedclip train: the validation split",
        "has no image of two of the classes. Add",
        "some.",
    ]


def test_a_message_in_a_pipe_is_not_wrapped():
    message = "a word " * 40
    assert wrap_for(io.StringIO(), message) == message


def test_file_names_and_quoted_texts_are_not_broken(terminal):
    name = "/data/scans-of-2024/patient-0001/a-very-long-name-of-an-image.png"
    quoted = "'a folder with spaces/and one file.png'"
    lines = wrap_for(terminal, f"No image could be read. The first one is {name}, and the others are in {quoted}.")
    assert f"{name}," in lines.split("\n")
    assert f"{quoted}." in lines.split("\n")


def test_lines_keep_their_breaks_and_their_indentation(terminal):
    message = "The card is not complete:\n  metadata: license is missing, and two other fields are empty\n"
    assert wrap_for(terminal, message).split("\n") == [
        "The card is not complete:",
        "  metadata: license is missing, and two",
        "  other fields are empty",
        "",
    ]


def test_an_apostrophe_does_not_start_a_quoted_text(terminal):
    lines = wrap_for(terminal, "It isn't the user's own folder, and the model's files aren't all there yet.")
    assert max(map(len, lines.split("\n"))) <= 40


def test_warnings_name_the_options_of_the_command():
    set_option_names(["split_column"])
    record = logging.LogRecord("reader", logging.WARNING, "", 0, "Pass split_column='%s'.", ("split",), None)
    assert _EscapingFormatter("%(message)s").format(record) == "Pass --split-column 'split'."


def test_the_command_wraps_its_errors_in_a_terminal(monkeypatch, terminal, tmp_path):
    monkeypatch.setattr("sys.stderr", terminal)
    assert main(["card", str(tmp_path / "nowhere")]) == 1
    assert "biomedclip card: --model" in terminal.getvalue()
    assert all(
        len(line) <= 40 or " " not in line for line in terminal.getvalue().split("\n") if "BIOMEDCLIP" not in line
    )
