"""A progress bar for training that shows the latest metrics in one line."""

import sys
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback


SHOWN = {
    "loss": "loss",
    "eval_loss": "eval loss",
    "eval_accuracy": "accuracy",
    "eval_image_to_text_recall_at_1": "image to text R@1",
    "eval_text_to_image_recall_at_1": "text to image R@1",
}


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
