"""Adapt transformers' `Trainer` where it has no public hook.

No other module may override or call private methods of `Trainer`. `PRIVATE_METHODS` lists those that this module uses.
A test fails if a release of transformers lacks one of them.
"""

import logging
import os
import shutil
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, get_last_checkpoint, sort_checkpoints

from .argument_rules import check_accelerator, check_training_arguments
from .freed_memory import keep_freed_memory


logger = logging.getLogger(__name__)

PRIVATE_METHODS = ("_get_output_dir", "_load_rng_state", "_save", "_save_checkpoint", "_save_rng_state", "_wrap_model")


class AdaptedTrainer(Trainer):
    """`Trainer` with exact resuming, checkpoints that survive a kill, and evaluation on all rows.

    `args` must be `CheckedTrainingArguments`. `eval_data_collator` collates evaluation batches without augmentation.
    """

    def __init__(self, *args: Any, eval_data_collator: Any = None, **kwargs: Any):
        self.is_finished = False  # whether `train` resumes from a checkpoint that has reached `max_steps`
        super().__init__(*args, **kwargs)
        self.eval_data_collator = eval_data_collator or self.data_collator
        self.check_options()

    def check_options(self) -> None:
        """Raise `ValueError` if an option is not supported. Some may have changed since the trainer was created."""
        check_training_arguments(self.args, self.args.training, stream=False)
        check_accelerator(self.accelerator)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Train, or do nothing if the checkpoint to resume from has reached `max_steps`.

        `resume_from_checkpoint` is a checkpoint folder, or True for the last checkpoint in `output_dir`.
        """
        self.check_options()
        named = str(self.args.resume_from_checkpoint or "false")
        if resume_from_checkpoint is None and named.lower() != "false":
            raise ValueError(
                f"resume_from_checkpoint={named!r} in the training arguments is read only by the command. Pass it to "
                "trainer.train(resume_from_checkpoint=...)."
            )
        # Otherwise, Trainer would run one more step.
        self.is_finished = self._has_all_steps(resume_from_checkpoint)
        with keep_freed_memory() if self.args.device.type == "cpu" else nullcontext():
            output = super().train(resume_from_checkpoint, **kwargs)
        # The run may have been killed between writing its last checkpoint and removing older ones.
        self._remove_old_checkpoints(self._get_output_dir(kwargs.get("trial")))
        return output

    def _has_all_steps(self, checkpoint: str | bool | None) -> bool:
        folder = get_last_checkpoint(self.args.output_dir) if checkpoint is True else checkpoint
        state = Path(folder or "") / TRAINER_STATE_NAME
        if not folder or not state.is_file() or self.args.max_steps <= 0:
            return False
        return TrainerState.load_from_json(str(state)).global_step >= self.args.max_steps

    def get_train_dataloader(self) -> Any:
        """Return the training batches, or none if the run is finished."""
        return [] if self.is_finished else super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return batches of all rows of an evaluation set.

        `Trainer` would use the training augmentation and drop the last incomplete batch.
        """
        if eval_dataset is None or isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset] if eval_dataset else self.eval_dataset
        if eval_dataset is None:
            raise ValueError("Evaluation requires an eval_dataset.")
        loader = DataLoader(
            eval_dataset,
            batch_size=self.args.eval_batch_size,
            collate_fn=self.eval_data_collator,
            **self.loader_options(),
        )
        return self.accelerator.prepare(loader)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Return batches of all rows of a test set."""
        return self.get_eval_dataloader(test_dataset)

    def loader_options(self) -> dict[str, Any]:
        """Return the options of a `DataLoader` that are set by the training arguments."""
        workers = self.args.dataloader_num_workers
        return {
            "num_workers": workers,
            "prefetch_factor": self.args.dataloader_prefetch_factor if workers else None,
            "multiprocessing_context": self.args.dataloader_multiprocessing_context if workers else None,
            "pin_memory": self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        }

    def model_for_evaluation(self) -> nn.Module:
        """Return the model in evaluation mode, wrapped as in `Trainer.evaluation_loop`."""
        model = self._wrap_model(self.model, training=False)
        if len(self.accelerator._models) == 0 and model is self.model:
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        return model.eval()

    @property
    def total_loss(self) -> float:
        """Return the sum of the losses of all steps since training started or resumed."""
        # Releases of transformers divide `TrainOutput.training_loss` by different numbers of steps.
        return self._total_loss_scalar

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if isinstance(self.model, FSDPModule):
            # FSDP2 replaces the class of the model. transformers would save the file of that class as remote code.
            type(self.model).__module__ = type(self.model).__bases__[-1].__module__
        super()._save(output_dir, state_dict=state_dict)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint, and remove older ones only after it has been written to disk.

        `trainer_state.json` is written last. If the run is killed before that, the checkpoint has no valid file of
        this name, and the older checkpoints still exist.
        """
        run_folder = self._get_output_dir(trial)
        folder = Path(run_folder) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            # This checkpoint is from an abandoned run. Its files must not be mixed with the new ones.
            _remove_checkpoint(folder)
        self.accelerator.wait_for_everyone()
        limit = self.args.save_total_limit
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            _flush(folder)
        self._remove_old_checkpoints(run_folder)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # Next, the first process writes trainer_state.json, which must follow the files of all processes.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            _flush(Path(output_dir))
        # Trainer would then remove older checkpoints before trainer_state.json is on disk.
        self.args.save_total_limit = None

    def _remove_old_checkpoints(self, run_folder: str) -> None:
        """Keep `save_total_limit` checkpoints, including the newest and the best one."""
        limit = self.args.save_total_limit
        if not self.args.should_save or not limit or limit < 0:
            return
        best = self.state.best_model_checkpoint
        newest = Path(run_folder) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        checkpoints = sort_checkpoints(run_folder, use_mtime=True, best_model_checkpoint=best)
        for path in map(Path, checkpoints[:-limit]):
            if path not in (newest, best and Path(best)):
                _remove_checkpoint(path)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the random states, or set a new seed if the number of processes has changed."""
        if checkpoint is None:
            return
        processes = len(list(Path(checkpoint).glob("rng_state*.pth")))
        if processes == self.args.world_size:
            return super()._load_rng_state(checkpoint)
        if self.is_world_process_zero() and processes == 0:
            logger.warning("%s contains only weights: the optimizer and the learning rate start again.", checkpoint)
        elif self.is_world_process_zero():
            logger.warning(
                "%s contains the random states of %d processes, but this run has %d. Weights, optimizer, learning "
                "rate and the pairs of each batch continue as before. With dropout, the run differs from an "
                "uninterrupted one.",
                checkpoint,
                processes,
                self.args.world_size,
            )
        # With the initial seed, dropout would repeat the masks of the first steps.
        set_seed(self.args.seed + self.state.global_step)


def _remove_checkpoint(folder: Path) -> None:
    """Remove the file that marks a checkpoint as complete, then the rest."""
    (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Flush the files of a folder and their names to disk."""
    for path in [*folder.rglob("*"), folder, folder.parent]:
        # Some file systems cannot flush a folder.
        with suppress(OSError) if path.is_dir() else nullcontext():
            descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
