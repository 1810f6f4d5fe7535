"""Memory and time of a training step: the whole batch at once, or in mini-batches with cached gradients.

python tests/performance/cached_gradients.py --output cached_gradients.json

Each step runs in a process of its own, on the CPU in float32. Memory is what the step adds to the peak of the process
(VmHWM of Linux). Captions have 8 to 64 random tokens. The last table shows the loss alone, for one of 16 processes at
the batch size of the paper's second stage.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import parser_of, report
from torch.nn.functional import cross_entropy, normalize

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel, ContrastiveTrainer, ContrastiveTrainingArguments
from biomedclip.contrastive_loss import summed_loss


BATCHES = (64, 128, 256, 512)
MINI_BATCHES = (None, 64, 16)
TOWER = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 3}
LOCAL, WHOLE, DIMENSION = 4096, 65536, 512


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--measure", nargs="+", help="measure one step or loss in this process")
    options = parser.parse_args()
    if options.measure:
        kind, *numbers = options.measure
        sys.stdout.write(json.dumps({"step": step, "loss": loss}[kind](*map(int, numbers))) + "\n")
        return
    steps = {batch: [in_a_process("step", batch, size or 0) for size in MINI_BATCHES] for batch in BATCHES}
    losses = {name: in_a_process("loss", sliced) for sliced, name in enumerate(("whole", "slices of rows"))}
    columns = ["batch", "whole", *(f"mini-batches of {size}" for size in MINI_BATCHES[1:])]
    tables: list[Any] = [
        (title, [(str(batch), *(found[key] for found in steps[batch])) for batch in BATCHES], columns)
        for title, key in (("MiB that a step adds", "mib"), ("Seconds of a step", "seconds"))
    ]
    rows = [(name, found["mib"], found["seconds"]) for name, found in losses.items()]
    tables.append((f"The loss of {LOCAL:,} rows against {WHOLE:,}", rows, ["logits", "added MiB", "seconds"]))
    report({"steps": {str(batch): found for batch, found in steps.items()}, "losses": losses}, tables, options.output)


def in_a_process(*arguments: Any) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def step(pairs: int, mini_batch: int) -> dict[str, float]:
    """Measure a step of a model with 4 + 4 layers of width 192, on images of 96 pixels with patches of 16."""
    torch.manual_seed(0)
    vision = TOWER | {"image_size": 96, "patch_size": 16}
    text = TOWER | {"vocab_size": 1000, "max_position_embeddings": 64}
    model = BiomedCLIPModel(BiomedCLIPConfig(vision_config=vision, text_config=text))
    args = ContrastiveTrainingArguments(
        output_dir="unused", use_cpu=True, report_to="none", mini_batch_size=mini_batch or None
    )
    trainer = ContrastiveTrainer(model, args)
    mask = (torch.arange(64) < torch.randint(8, 65, (pairs, 1))).long()
    mask[0] = 1
    texts = {"input_ids": torch.randint(5, 1000, (pairs, 64)) * mask, "attention_mask": mask}
    inputs = {**texts, "pixel_values": torch.randn(pairs, 3, 96, 96)}
    trainer.training_step(model, {name: value[:2] for name, value in inputs.items()})
    return measured(lambda: trainer.training_step(model, inputs))


def loss(sliced: int) -> dict[str, float]:
    """Measure InfoNCE of one direction with its gradients."""
    images, texts = (normalize(torch.randn(n, DIMENSION), dim=-1).requires_grad_() for n in (LOCAL, WHOLE))
    scale = torch.tensor(14.0, requires_grad=True)

    def forward_and_backward() -> None:
        if sliced:
            summed_loss(images, texts, scale).backward()
        else:
            cross_entropy(scale * images @ texts.t(), torch.arange(LOCAL), reduction="sum").backward()

    return measured(forward_and_backward)


def measured(work: Callable[[], Any]) -> dict[str, float]:
    before, start = peak_mib(), time.perf_counter()
    work()
    return {"mib": peak_mib() - before, "seconds": round(time.perf_counter() - start, 1)}


def peak_mib() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


if __name__ == "__main__":
    main()
