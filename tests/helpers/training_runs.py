"""Short runs of `biomedclip train` in this process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import losses
from safetensors.torch import load_file

from biomedclip.run_scripts.main import main


DEFAULTS = {
    "max_steps": 2,
    "batch_size": 16,
    "logging_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "no",
    "report_to": "none",
    "dataloader_num_workers": 0,  # the processes take longer to start than these runs to load their data
}


def command(output_dir: Path, **options: Any) -> list[str]:
    """Return the command line. None removes a default, a list gives several values."""
    arguments = ["train", "--output-dir", str(output_dir)]
    for name, value in (DEFAULTS | options).items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        texts = [json.dumps(value) if isinstance(value, dict) else str(value) for value in values]
        arguments += [f"--{name.replace('_', '-')}", *texts] if texts else []
    return arguments


def train(output_dir: Path, **options: Any) -> Path:
    """Train, and return the folder of the run."""
    assert main(command(output_dir, **options)) == 0
    return output_dir


def train_error(capsys: Any, output_dir: Path, status: int, **options: Any) -> str:
    """Run a command that fails with a status, and return the error on one line."""
    capsys.readouterr()
    assert main(command(output_dir, **options)) == status
    error = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in error
    return error


def assert_losses_of_one(of_two: list[float], of_one: list[float]) -> None:
    """Check that two processes have the losses of one.

    Float32: sums over two processes in another order, and an optimizer that divides by small numbers.
    """
    assert of_two == pytest.approx(of_one, rel=2e-3)
    assert of_two[0] == pytest.approx(of_one[0], rel=1e-5)


def results(folder: Path) -> dict[str, Any]:
    """Return the content of `train_results.json`."""
    return json.loads((folder / "train_results.json").read_text())


def assert_equal_runs(ours: Path, theirs: Path) -> None:
    """Check that two runs have the same losses and saved weights, bit by bit."""
    assert losses(ours) == losses(theirs)
    files = [path.name for path in theirs.glob("*.safetensors")]
    assert files
    for name in files:
        weights = load_file(theirs / name)
        assert all(torch.equal(weight, weights[key]) for key, weight in load_file(ours / name).items())
