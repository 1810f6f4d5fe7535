"""Progress on stderr: a bar for training with the latest metrics, and a count of images."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.utils import logging


SHOWN = {
    "loss": "loss",
    "eval_loss": "eval loss",
    "eval_accuracy": "accuracy",
    "eval_image_to_text_recall_at_1": "image to text R@1",
    "eval_text_to_image_recall_at_1": "text to image R@1",
}


_SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def no_bars_without_terminal() -> Iterator[None]:
    """Hide the bars that transformers shows while it loads weights, unless stderr is a terminal."""
    shown = logging.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def counting(
    total: int,
    description: str,
    unit: str = "image",
    *,
    bar_in_terminal: bool = True,
    done: int = 0,
    shown: bool = True,
) -> Iterator[Callable[[int], None]]:
    """Show the progress of work on many images on stderr: a bar in a terminal, and otherwise a line every 15 seconds.

    The context is a function that takes the number of images that were completed since the last call. The bar ends with
    the last image. Without `bar_in_terminal`, a terminal shows nothing, because rows are printed to it. `done` is the
    number that an earlier run has completed. Only one of several processes should have its progress `shown`.
    """
    if not shown:
        yield lambda count: None
        return
    if sys.stderr.isatty():
        hidden = not bar_in_terminal
        options: Any = {"file": sys.stderr, "dynamic_ncols": True, "disable": hidden}
        with tqdm(total=total, initial=done, desc=description, unit=unit, **options) as bar:

            def advance(count: int) -> None:
                bar.update(count)
                if not hidden and bar.n >= total:
                    bar.close()

            yield advance
        return
    start = last = time.monotonic()
    new = 0

    def add(count: int) -> None:
        nonlocal new, last
        new += count
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            rate = new / (now - start)
            sys.stderr.write(f"{description}: {done + new:,} of {total:,} {unit}s, {rate:,.1f} per second\n")

    yield add


class TrainingBar(TrainerCallback):
    """Show the steps and the latest metrics in one line instead of the many lines that `Trainer` prints."""

    def __init__(self) -> None:
        self.metrics: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Create the bar."""
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="Training",
            unit="step",
            file=sys.stderr,
            dynamic_ncols=True,
            disable=not state.is_world_process_zero,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the bar."""
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the metrics that were logged."""
        for key, value in (logs or {}).items():
            name = SHOWN.get(key)
            if key.startswith("eval_zero_shot_") and key.endswith("_balanced_accuracy"):
                name = key.removeprefix("eval_zero_shot_").replace("_", " ")
            if name is not None:
                self.metrics[name] = f"{float(value):.3f}"
        if hasattr(self, "bar"):
            self.bar.set_postfix(self.metrics)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.bar.close()


def show_progress(trainer: Trainer) -> None:
    """Replace the progress bar of a trainer with [`TrainingBar`]."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(TrainingBar())
