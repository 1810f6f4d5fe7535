"""Launchers of runs on several GPUs or machines, with processes on the CPU."""

import json
import os
import sys
from pathlib import Path

import pytest
from helpers import forked_processes
from helpers.commands import ENVIRONMENT, ROOT, biomedclip, free_port, losses, run_python
from helpers.pair_shards import write_shards
from helpers.training_runs import assert_losses_of_one


pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
RECIPE = """
base: quickstart
train:
  per_device_train_batch_size: null
  batch_size: 32
  vocabulary_size: 300
  max_steps: 3
  logging_steps: 1
  eval_strategy: "no"
  save_strategy: "no"
"""
ACCELERATE = [str(BIN / "accelerate"), "launch", "--num_processes", "2", "--mixed_precision", "no"]
ACCELERATE += ["--dynamo_backend", "no"]
PREFIXES = ("ACCELERATE_", "FSDP_")
SHARDED = ROOT / "tests" / "helpers" / "sharded_command.py"
TESTS = {"PYTHONPATH": str(ROOT / "tests")}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    """A short run with a recipe that builds on a shipped one."""
    folder = tmp_path_factory.mktemp("launching")
    (folder / "recipe.yaml").write_text(RECIPE)
    write_shards(folder / "set", image_size=(40, 30))
    return ["train", "--config", str(folder / "recipe.yaml"), "--train-data", str(folder / "set")]


@pytest.fixture(scope="module")
def alone(arguments, tmp_path_factory) -> list[float]:
    """The losses of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    biomedclip(*arguments, "--output-dir", folder)
    assert json.loads((folder / "train_results.json").read_text())["processes"] == 1
    return losses(folder)


def lines(launcher: str, port: str) -> list[list[str]]:
    """Return the command line of each machine, for two processes in total."""
    if launcher == "accelerate":
        # `--multi_gpu` starts processes on a CPU too. `--cpu` would start one, whatever --num_processes says.
        machines = "--multi_gpu --num_machines 2 --main_process_ip 127.0.0.1 --machine_rank"
        return [[*ACCELERATE, "--main_process_port", port, *machines.split(), rank, "--no_python"] for rank in "01"]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--no-python"]
    return [[str(BIN / "torchrun"), "--nnodes", "2", "--nproc-per-node", "1", *rendezvous]] * 2


# The documentation of pretraining runs torchrun on one machine.
@pytest.mark.parametrize(("launcher", "sharded"), [("accelerate", False), ("torchrun", True)])
def test_two_processes_on_two_machines_have_the_losses_of_one(launcher, sharded, arguments, alone, tmp_path):
    command = [sys.executable, str(SHARDED)] if sharded else [str(BIN / "biomedclip")]
    command += [*arguments, "--output-dir", str(tmp_path / "run"), "--fsdp", str(sharded)]
    machines = []
    for number, line in enumerate(lines(launcher, str(free_port()))):
        output = tmp_path / f"output_{number}"
        output.touch()
        files = [Path(os.devnull), output, output]
        machines.append((forked_processes.start([*line, *command], ENVIRONMENT | TESTS, ROOT, files), output))
    for launched, output in machines:
        launched.join(timeout=200)
        assert launched.exitcode == 0, output.read_text()[-3000:]
    check_results(tmp_path / "run", "".join(output.read_text() for _, output in machines), sharded=sharded)
    assert_losses_of_one(losses(tmp_path / "run"), alone)


def test_two_processes_with_the_fsdp_settings_of_accelerate_have_the_losses_of_one(arguments, alone, tmp_path):
    """The settings of accelerate are environment variables. Our processes get those that it gives to its own."""
    settings = "--use_fsdp --fsdp_version 2 --fsdp_cpu_ram_efficient_loading false --num_machines 1 --no_python"
    line = [*ACCELERATE, "--main_process_port", str(free_port()), *settings.split()]
    launched = run_python(*line, "sh", "-c", f"env -0 > '{tmp_path}'/$RANK")
    assert launched.returncode == 0, launched.stderr[-3000:]
    given = [dict(entry.split("=", 1) for entry in (tmp_path / rank).read_text().split("\0") if entry) for rank in "01"]
    assert [environment["WORLD_SIZE"] for environment in given] == ["2", "2"]
    settings_of = [{name: value for name, value in each.items() if name.startswith(PREFIXES)} for each in given]
    assert settings_of[0] == settings_of[1] and settings_of[0]["FSDP_VERSION"] == "2"
    command = [SHARDED, *arguments, "--output-dir", tmp_path / "run"]
    done = run_python(*command, processes=2, environment=settings_of[0] | TESTS)
    assert done.returncode == 0, done.stderr[-3000:]
    check_results(tmp_path / "run", done.stdout, sharded=True)
    assert_losses_of_one(losses(tmp_path / "run"), alone)


def check_results(folder: Path, output: str, *, sharded: bool) -> None:
    results = json.loads((folder / "train_results.json").read_text())
    assert results["processes"] == 2, "some launchers silently start one process"
    assert results["batch_size"] == 32 and results["samples"] == 96
    assert results["sharded"] == sharded
    assert output.count("trainable fraction") == 1, "only the first process prints a table"
