"""The function that the processes of an evaluation test run. Each process imports this module by name."""

import json
import os
from functools import partial
from pathlib import Path

import torch
from helpers.gradient_processes import some_batch, tiny_model

from biomedclip import ContrastiveTrainer, ContrastiveTrainingArguments, contrastive_trainer


PAIRS, VALIDATION_BATCH = 25, 4


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack the tensors of rows."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def evaluate_in_a_process(rank: int, world_size: int, folder: str, port: int, batch_size: int) -> None:
    """Evaluate the tiny model on some pairs, and write the metrics of the first process."""
    if world_size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    contrastive_trainer.loss_in_batches = partial(contrastive_trainer.loss_in_batches, batch_size=VALIDATION_BATCH)
    batch = some_batch(PAIRS)
    rows = [{name: values[row] for name, values in batch.items()} for row in range(PAIRS)]
    args = ContrastiveTrainingArguments(
        folder, use_cpu=True, per_device_eval_batch_size=batch_size, dataloader_pin_memory=False, disable_tqdm=True
    )
    trainer = ContrastiveTrainer(tiny_model(), args, eval_dataset=rows, data_collator=collate)
    assert trainer.args.world_size == world_size
    metrics = trainer.evaluate()
    if rank == 0:
        Path(folder, f"{world_size}.json").write_text(json.dumps(metrics))
