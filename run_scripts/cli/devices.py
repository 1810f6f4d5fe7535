"""Choose the device that a model runs on."""

import re

import torch

from .errors import UsageError


DEVICE_HELP = "Device: auto, cpu, cuda, cuda:N or mps (default: auto, an accelerator if there is one)."


def choose_device(name: str) -> torch.device:
    """Return the device with a name, or the default one for `auto`.

    Raises:
        UsageError: If the name is not that of a device.
        ValueError: If this machine or the installed PyTorch does not have the device.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?|mps", name):
        raise UsageError(f"--device {name!r} must be auto, cpu, cuda, cuda:N or mps.")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(f"--device {name}: PyTorch finds {count} CUDA devices. Pass --device auto or cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: PyTorch finds no MPS device. Pass --device auto or cpu.")
    return device
