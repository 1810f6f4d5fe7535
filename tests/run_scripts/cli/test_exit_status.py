"""The exit status: 2 if the command line or the recipe is wrong, 1 if the work failed, whatever the verb."""

import pytest

from biomedclip.run_scripts.main import VERBS, main


NEEDED = {
    "quickstart": ["--output-dir", "out"],
    "build": ["--output-dir", "out"],
    "train": ["--train-data", "x", "--output-dir", "out"],
    "panels": ["figures", "--output", "out"],
    "evaluate": ["retrieval", "--model", "m", "--data", "d", "--output-dir", "out"],
    "classify": ["scans", "--model", "m", "--labels", "a", "b", "--output", "out"],
    "embed": ["scans", "--model", "m", "--output", "out"],
    "search": ["embeddings", "--like", "id", "--output", "out"],
    "demo": ["--model", "m"],
    "convert": ["a", "b"],
    "export": ["a", "b"],
    "recipes": [],
    "card": ["model"],
    "push": ["lab/model", "--model", "model"],
}


def status_of(*arguments: str) -> int:
    """The status of a command, which argparse ends in its own way."""
    try:
        return main([*arguments])
    except SystemExit as end:
        return end.code


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_command_is_tested():
    assert set(NEEDED) == set(VERBS)


@pytest.mark.parametrize("verb", NEEDED)
@pytest.mark.parametrize(
    "options",
    [["--no-such-option", "1"], ["--config", "nowhere"], ["--config", "list.yaml"], ["--config", "unknown.yaml"]],
)
def test_a_usage_error_exits_with_2(verb, options, tmp_path, capsys):
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "unknown.yaml").write_text(f"{verb}:\n  no_such_option: 1\n")
    assert status_of(verb, *NEEDED[verb], *options) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command",
    [
        "dance",
        "train --output-dir out",
        "train --train-data x --output-dir out --max-steps ten",
        "train --train-data x --output-dir out --loss triplet",
        "train --train-data x --output-dir out --mini-batch-size 0",
        "train --train-data x --output-dir out --gradient-accumulation-steps 2",
        "train --train-data x --output-dir out --batch-size 0",
        "train --train-data x --output-dir out --batch-size 8 --per-device-train-batch-size 4",
        "train --train-data x --output-dir out --batch-size 8 --mini-batch-size 16",
        "train --train-data x --output-dir out --report-to wandbb",
        "train --train-data x --output-dir out --report-to none wandb",
        "train --train-data x --output-dir out --eval-steps 5",
        "train --train-data x --output-dir out --max-eval-pairs 5",
        'train --train-data x --output-dir out --accelerator-config {"nonsense":1}',
        "train --train-data x --output-dir out --model-config {",
        "train --train-data x --output-dir out --licenses CC-BY",
        "train --train-data x --output-dir out --pairs 100",
        "train --train-data x --output-dir out --processes 2",
        "train --dry-run --train-data x --pairs 100",
        "train --train-data x --output-dir out --zero-shot-templates {}",
        "train --train-data x --output-dir out --model-name-or-path m --vocabulary-size 100",
        "train --train-data x --output-dir out --image-size 0",
        "train --task image-classification --train-data x --output-dir out",
        "train --task image-classification --train-data x --output-dir out --model-name-or-path m --text mentions",
        "train --task image-classification --train-data x --output-dir out --model-name-or-path m --merge-adapter true",
        "evaluate dance --model m --data d --output-dir out",
        "evaluate retrieval --model m --data d",
        "evaluate retrieval --model m --data d --output-dir out --batch-size many",
        "build --output-dir out --workers 0",
        "build --output-dir out --workers many",
        "build --output-dir out --license CC-BY",
        "build --output-dir out --overwrite --update",
        "push lab --model model",
    ],
)
def test_options_that_are_invalid_for_any_files_exit_with_2(command, tmp_path, capsys):
    assert status_of(*command.split()) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command",
    [
        "train --train-data nowhere --output-dir out",
        "train --task image-classification --train-data ./nowhere --output-dir out --model-name-or-path .",
        "card --model nowhere",
    ],
)
def test_failed_work_exits_with_1(command, capsys):
    assert status_of(*command.split()) == 1
    assert "nowhere" in capsys.readouterr().err
