"""Options that take several words, next to arguments without a name."""

import pytest

from biomedclip.run_scripts.card import CardOptions
from biomedclip.run_scripts.classify import ClassifyOptions
from biomedclip.run_scripts.cli.options import parse_options
from biomedclip.run_scripts.convert import ConvertOptions
from biomedclip.run_scripts.export import ExportOptions
from biomedclip.run_scripts.main import main
from biomedclip.run_scripts.search import SearchOptions


TWO = ["model", "output_dir"]


def parse(options, positionals, command):
    return parse_options("verb", [options], command.split(), positionals=positionals)[0]


@pytest.mark.parametrize(
    "command",
    [
        "--precision int8 float32 m o",
        "m --precision int8 float32 o",
        "--precision int8 float32 m --overwrite o",
        "m o --precision int8 float32",
    ],
)
def test_a_word_that_is_not_a_choice_ends_a_list(command):
    options = parse(ExportOptions, TWO, command)
    assert (options.model, options.output_dir, options.precision) == ("m", "o", ["int8", "float32"])


@pytest.mark.parametrize("command", ["m o --precision int8 int9", "--precision int9 m o"])
def test_a_word_that_is_neither_a_choice_nor_a_missing_argument_is_refused(command, capsys):
    with pytest.raises(SystemExit):
        parse(ExportOptions, TWO, command)
    assert "invalid choice: 'int9'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "positionals", "command", "expected"),
    [
        (ClassifyOptions, ["images"], "--model m --labels x y -- a b", {"images": ["a", "b"], "labels": ["x", "y"]}),
        (ExportOptions, TWO, "--images x y -- a b", {"model": "a", "output_dir": "b", "images": ["x", "y"]}),
        (ConvertOptions, ["source", "output_dir"], "--images x -- a b", {"source": "a", "images": ["x"]}),
        (CardOptions, ["model"], "--results x y -- a", {"model": "a", "results": ["x", "y"]}),
        (SearchOptions, ["embeddings", "text"], "--html p --images x -- a b", {"embeddings": "a", "text": "b"}),
    ],
)
def test_two_dashes_end_a_list(options, positionals, command, expected):
    parsed = parse(options, positionals, command)
    assert {name: getattr(parsed, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("classify --model m --labels x y a", "missing --images. All words after --labels are its values. Put IMAGES"),
        ("card --results x a", "missing --model. All words after --results are its values. Put MODEL first"),
        ("convert --images x a b", "All words after --images are its values. Put SOURCE OUTPUT-DIR first, or end"),
        ("export --images x a b", "Put MODEL OUTPUT-DIR first, or end the list with --"),
        ("search --html p --images x a b", "Put EMBEDDINGS TEXT first, or end the list with --"),
        ("evaluate --output-dir o --model a zero-shot --prompts x", "Put the task first: biomedclip evaluate zero-"),
    ],
)
def test_an_argument_that_became_a_value_of_a_list_is_explained(command, message, capsys):
    try:
        status = main(command.split())
    except SystemExit as end:
        status = end.code
    assert status == 2 and message in capsys.readouterr().err
