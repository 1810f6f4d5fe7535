"""The device of a command, and the options of other verbs that `biomedclip train` accepts too."""

import argparse
import datetime
import re
from collections.abc import Sequence

import torch
from accelerate import PartialState

from biomedclip.training_arguments import are_processes_on_cpu

from .errors import UsageError


DEVICE_HELP = "Device: auto, cpu, cuda, cuda:N or mps (default: auto, an accelerator if there is one)."
# `biomedclip train` takes the fields of TrainingArguments instead.
_TRAINING = {
    "device": {"auto": [], "cuda": [], "mps": [], "cpu": ["--use-cpu", "true"]},
    "precision": dict.fromkeys(("bf16", "bfloat16"), ["--bf16", "true"])
    | dict.fromkeys(("fp32", "float32"), ["--bf16", "false"]),
}


def check_device_name(name: str) -> None:
    """Raise `UsageError` if the name is not that of a device. The device need not exist on this machine."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", name):
        raise UsageError(f"--device {name!r} must be auto, cpu, cuda, cuda:N or mps.")


def choose_device(name: str) -> torch.device:
    """Return the device with a name, or the default one for `auto`.

    Raises:
        UsageError: If the name is not that of a device.
        ValueError: If this machine or the installed PyTorch does not have the device.
    """
    check_device_name(name)
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(f"--device {name}: PyTorch finds {count} CUDA devices. Pass --device auto or cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: PyTorch finds no MPS device. Pass --device auto or cpu.")
    return device


def use_device(name: str) -> PartialState:
    """Set the device of all models that the command loads, and return the state of its processes.

    With `auto`, each process takes an accelerator if there is one.
    """
    device = choose_device(name)
    state = PartialState(cpu=name == "cpu" or are_processes_on_cpu(), timeout=datetime.timedelta(days=1))
    if ":" in name and state.num_processes > 1:
        raise UsageError(f"--device {name} would put {state.num_processes} processes on one GPU. Pass --device cuda.")
    if name != "auto" and state.num_processes == 1:
        state.device = device  # all instances share it
        if ":" in name:
            torch.cuda.set_device(device)
    return state


def training_arguments(arguments: Sequence[str]) -> list[str]:
    """Replace `--device` and `--precision` in a command line of `biomedclip train` by fields of TrainingArguments."""
    parser = argparse.ArgumentParser(prog="biomedclip train", add_help=False, allow_abbrev=False)
    for name in _TRAINING:
        parser.add_argument(f"--{name}")
    given, rest = parser.parse_known_args(list(arguments))
    for name, values in _TRAINING.items():
        value = getattr(given, name)
        if value is None:
            continue
        if name == "device":
            choose_device(value)
        if value not in values:
            advice = "CUDA_VISIBLE_DEVICES chooses the GPUs" if name == "device" else f"Choose {', '.join(values)}"
            raise UsageError(f"--{name} {value} does not apply to training. {advice}.")
        rest += values[value]
    return rest
