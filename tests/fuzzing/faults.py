"""Faults that fuzzing must find, in a module that a fresh process can import."""

import os
import signal
import time
from collections.abc import Callable

from fuzzing.fuzz import Result, Target, fuzz, make_input
from fuzzing.mutate import damage


def raise_error(content: bytes) -> None:
    raise KeyError("unexpected")


def hang(content: bytes) -> None:
    time.sleep(60)


def crash(content: bytes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def use_memory(content: bytes) -> None:
    b"x" * (200 << 20)


def fuzz_with(fault: Callable[[bytes], None]) -> tuple[Result, list[int]]:
    """Return the result of 12 inputs, and the numbers of those with the fault."""
    target = Target("faulty", lambda content: fault(content) if content else None, ValueError, damage)
    samples = [b"", b"", b"", b"x"]
    peak_mib = fuzz(target, [b""], inputs=1, seed=0).peak_mib + 100
    result = fuzz(target, samples, inputs=12, seed=0, seconds=2, peak_mib=peak_mib)
    return result, [number for number in range(12) if make_input(target, samples, 0, number)]
