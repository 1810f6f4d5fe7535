"""Measure whether the data loader or the model limits the training throughput."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer, TrainerCallback


# If at least this fraction of the time is spent waiting for data, the loader is reported as the limit.
NOTICEABLE_FRACTION = 0.1
LAPS_KEPT = 64  # until their seconds are read


class DeviceMoment:
    """A moment on a CUDA device, which the host does not wait for until moments are subtracted."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def __sub__(self, earlier: "DeviceMoment") -> float:
        self.event.synchronize()
        return earlier.event.elapsed_time(self.event) / 1000


class StepClock(TrainerCallback):
    """Measure the time spent in training steps and the time spent waiting for batches.

    Waiting is the time between the last event (a step, logging, saving, or evaluation) and the next step. The first
    step is excluded, because it includes the start of the workers and the compilation of the model. On a CUDA device,
    the times are those of the device, because the host runs ahead of it.
    """

    def __init__(self, now: Callable[[], Any] | None = None) -> None:
        self.now = now
        self.steps = 0
        self._seconds = {"stepping": 0.0, "waiting": 0.0, "other": 0.0}
        self._laps: deque[tuple[str, Any, Any]] = deque()
        self._since: Any = None  # None until the end of the first step

    @property
    def stepping(self) -> float:
        """Seconds in steps."""
        return self._read("stepping")

    @property
    def waiting(self) -> float:
        """Seconds between steps."""
        return self._read("waiting")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Choose the clock of the device."""
        if self.now is None:
            self.now = DeviceMoment if args.device.type == "cuda" else time.perf_counter

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the time since the last event to the waiting time."""
        self._lap("waiting")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the time of the step."""
        self.steps += self._since is not None
        self._lap("stepping", begins=True)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Exclude the time of logging, saving and evaluation."""
        self._lap("other")

    on_save = on_evaluate = on_log

    def _lap(self, name: str, *, begins: bool = False) -> None:
        """Add the time since the last call to a sum."""
        if self.now is None or (self._since is None and not begins):
            return
        before, self._since = self._since, self.now()
        if before is not None:
            self._laps.append((name, before, self._since))
        if len(self._laps) > LAPS_KEPT:  # by now, the device has reached the oldest
            self._add_oldest()

    def _add_oldest(self) -> None:
        name, before, after = self._laps.popleft()
        self._seconds[name] += after - before

    def _read(self, name: str) -> float:
        while self._laps:
            self._add_oldest()
        return self._seconds[name]


def throughput(trainer: Trainer, clock: StepClock, collator: Any) -> dict[str, Any]:
    """Return the throughput of the loader and of the steps, and what limits the run. All are None in a run of one step.

    All processes must call it. The process that waited longest counts, because the others wait for it. The steps are
    measured without waiting, and the loader without reading shards: decoding, cropping and tokenizing in all workers.
    """
    args = trainer.args
    local = [clock.waiting, clock.stepping, (collator.rows_per_second or 0.0) * max(1, args.dataloader_num_workers)]
    processes = trainer.accelerator.gather(torch.tensor([local], device=args.device)).tolist()
    waiting, stepping, _ = max(processes)
    if not clock.steps or stepping <= 0:
        return dict.fromkeys(("step_samples_per_second", "loader_samples_per_second", "waiting_share", "limit"))
    batch_size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    waiting_fraction = waiting / (waiting + stepping)
    return {
        "step_samples_per_second": round(clock.steps * batch_size / stepping, 1),
        "loader_samples_per_second": round(sum(loader for _, _, loader in processes), 1),
        "waiting_share": waiting_fraction,
        "limit": name_limit(waiting_fraction, fast_decode=collator.fast_decode),
    }


def name_limit(waiting_fraction: float, *, fast_decode: bool) -> str:
    """Return what limits a run, and how to improve it, from the fraction of time spent waiting for batches."""
    if waiting_fraction < NOTICEABLE_FRACTION:
        return "the model is the bottleneck"
    return "the data loader is the bottleneck: raise --dataloader-num-workers" + (
        "" if fast_decode else " or omit --fast-decode false"
    )
