"""The device that a user chooses."""

import pytest
import torch

from biomedclip.run_scripts.cli.devices import choose_device
from biomedclip.run_scripts.cli.errors import UsageError


def test_the_cpu_can_always_be_chosen():
    assert choose_device("cpu") == torch.device("cpu")


def test_auto_is_an_accelerator_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **options: None)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **options: torch.device("cuda"))
    assert choose_device("auto") == torch.device("cuda")


def test_the_number_of_a_gpu_is_checked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="PyTorch finds 2 CUDA devices"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "", "CUDA"])
def test_an_unknown_name_is_a_wrong_command_line(name):
    with pytest.raises(UsageError, match="must be auto, cpu, cuda, cuda:N or mps"):
        choose_device(name)
