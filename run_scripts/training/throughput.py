"""Which of the two limits a training: the loader, or the model."""

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer, TrainerCallback


# What the run could win by more workers at most; below it the model is what a faster run needs.
NOTICEABLE_SHARE = 0.1


class StepClock(TrainerCallback):
    """Counts the seconds that a trainer takes steps, and those that it waits for batches.

    It waits from the end of whatever came last (a step, logging, saving, an evaluation) until the next step begins. The
    first step is left out: workers start before it, and a model is compiled in it.

    Args:
        now: Seconds of some clock.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self.steps = 0
        self.stepping = 0.0
        self.waiting = 0.0
        self._since: float | None = None  # none until the first step is done

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._since is not None:
            self.waiting += self._lap()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._since is None:
            self._since = self.now()
            return
        self.stepping += self._lap()
        self.steps += 1

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._since is not None:
            self._lap()

    on_save = on_evaluate = on_log

    def _lap(self) -> float:
        """Seconds since the last call."""
        before, self._since = self._since or 0.0, self.now()
        return self._since - before


def throughput(trainer: Trainer, clock: StepClock, collator: Any) -> dict[str, Any]:
    """The throughput of the loader beside that of the steps.

    All processes must call it: a batch is waited for where it comes last, so the process that waited longest counts.

    Args:
        trainer: A trainer that has trained with the clock among its callbacks.
        clock: What has counted its seconds.
        collator: The training collator, which has counted the work of its workers.

    Returns:
        `step_samples_per_second`, what the model does when it need not wait; `loader_samples_per_second`, what the
        workers of all processes can decode, crop and tokenise (reading the shards is not in it); `waiting_share`, of
        the time of steps and waiting; and `limit`, a sentence. All of them none in a run of one step.
    """
    args = trainer.args
    local = [clock.waiting, clock.stepping, (collator.rows_per_second or 0.0) * max(1, args.dataloader_num_workers)]
    processes = trainer.accelerator.gather(torch.tensor([local], device=args.device)).tolist()
    waiting, stepping, _ = max(processes)
    if not clock.steps or stepping <= 0:
        return dict.fromkeys(("step_samples_per_second", "loader_samples_per_second", "waiting_share", "limit"))
    batch_size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    share = waiting / (waiting + stepping)
    return {
        "step_samples_per_second": round(clock.steps * batch_size / stepping, 1),
        "loader_samples_per_second": round(sum(loader for _, _, loader in processes), 1),
        "waiting_share": share,
        "limit": name_limit(share, fast_decode=collator.fast_decode),
    }


def name_limit(waiting_share: float, *, fast_decode: bool) -> str:
    """Says what limits a run that waits for batches this share of its time, and what to do about it."""
    if waiting_share < NOTICEABLE_SHARE:
        return "the model limits"
    return "the loader limits: raise --dataloader-num-workers" + ("" if fast_decode else " or pass --fast-decode")


__all__ = ["StepClock", "name_limit", "throughput"]
