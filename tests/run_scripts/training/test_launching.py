"""Launchers of runs on several GPUs or machines, with processes on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import ENVIRONMENT, ROOT, biomedclip, free_port, losses
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
ACCELERATE = "--num_processes 2 --mixed_precision no --dynamo_backend no"


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


def launch(command: list[str]) -> subprocess.Popen:
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT / "tests")}
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def lines(launcher: str, port: str) -> list[list[str]]:
    """Return the command line of each machine, for two processes in total."""
    accelerate = [str(BIN / "accelerate"), "launch", *ACCELERATE.split(), "--main_process_port", port, "--no_python"]
    if launcher == "accelerate's own FSDP":
        fsdp = "--use_fsdp --fsdp_version 2 --fsdp_cpu_ram_efficient_loading false --num_machines 1"
        return [[*accelerate, *fsdp.split()]]
    if launcher == "accelerate on 2 machines":
        # `--multi_gpu` starts processes on a CPU too. `--cpu` would start one, whatever --num_processes says.
        machines = "--multi_gpu --num_machines 2 --main_process_ip 127.0.0.1 --machine_rank"
        return [[*accelerate, *machines.split(), rank] for rank in "01"]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--no-python"]
    return [[str(BIN / "torchrun"), "--nnodes", "2", "--nproc-per-node", "1", *rendezvous]] * 2


# The documentation of pretraining runs torchrun on one machine.
def test_two_processes_on_two_machines_have_the_losses_of_one(arguments, alone, tmp_path):
    launcher = "accelerate on 2 machines"
    command = [str(BIN / "biomedclip"), *arguments, "--output-dir", str(tmp_path / "run")]
    results = results_of([[*line, *command] for line in lines(launcher, str(free_port()))], tmp_path / "run")
    assert not results["sharded"]
    assert_losses_of_one(losses(tmp_path / "run"), alone)


@pytest.mark.parametrize("launcher", ["torchrun on 2 machines", "accelerate's own FSDP"])
def test_two_processes_with_a_sharded_model_have_the_losses_of_one(launcher, arguments, alone, tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "sharded_command.py"), *arguments]
    command += ["--output-dir", str(tmp_path / "run")]
    if launcher != "accelerate's own FSDP":
        command += ["--fsdp", "true"]
    results = results_of([[*line, *command] for line in lines(launcher, str(free_port()))], tmp_path / "run")
    assert results["sharded"]
    assert_losses_of_one(losses(tmp_path / "run"), alone)


def results_of(machines: list[list[str]], folder: Path) -> dict:
    """Run a command line for each machine, and return the results."""
    processes = [launch(command) for command in machines]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    results = json.loads((folder / "train_results.json").read_text())
    assert results["processes"] == 2, "some launchers silently start one process"
    assert results["batch_size"] == 32 and results["samples"] == 96
    assert "".join(outputs).count("trainable fraction") == 1, "only the first process prints a table"
    return results
