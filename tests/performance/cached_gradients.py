"""Memory and time of a training step: the whole batch at once, or in mini-batches with cached gradients.

python tests/performance/cached_gradients.py --output cached_gradients.json

Each step runs in a process of its own, on the CPU in float32. Memory is what the step adds to the process at its peak
(Linux's VmHWM), beside the model, its gradients and the batch, which are there before it.
Captions are 8 to 64 words, drawn. The last table is of the loss alone, at the batch of the paper's second stage.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy, normalize

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel, ContrastiveTrainer, ContrastiveTrainingArguments
from biomedclip.contrastive_loss import summed_loss
from biomedclip.run_scripts.cli.reporting import show_table, versions


BATCHES = (64, 128, 256, 512)
MINI_BATCHES = (None, 64, 16)
TOWER = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 3}
LOCAL, WHOLE, DIMENSION = 4096, 65536, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", help="JSON file for the figures")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)  # what one process of the benchmark does
    options = parser.parse_args()
    if options.measure:
        measure, *numbers = options.measure
        print(json.dumps({"step": step, "loss": loss}[measure](*map(int, numbers))))  # noqa: T201
        return
    results: dict[str, Any] = {"versions": versions(), "steps": [], "losses": []}
    for batch in BATCHES:
        for size in MINI_BATCHES:
            results["steps"].append({"batch": batch, "mini_batch": size, **in_a_process("step", batch, size or 0)})
    for sliced in (False, True):
        results["losses"].append({"sliced": sliced, **in_a_process("loss", int(sliced))})
    show(results)
    if options.output:
        Path(options.output).write_text(json.dumps(results, indent=2) + "\n")


def in_a_process(*arguments: Any) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def step(pairs: int, mini_batch: int) -> dict[str, float]:
    """One step of a model of 4 + 4 layers of width 192 on images of 96 pixels, patches of 16."""
    torch.manual_seed(0)
    model = BiomedCLIPModel(
        BiomedCLIPConfig(
            vision_config=TOWER | {"image_size": 96, "patch_size": 16},
            text_config=TOWER | {"vocab_size": 1000, "max_position_embeddings": 64},
        )
    )
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
    """InfoNCE of one direction, with its gradients."""
    images, texts = (normalize(torch.randn(n, DIMENSION), dim=-1).requires_grad_() for n in (LOCAL, WHOLE))
    scale = torch.tensor(14.0, requires_grad=True)

    def forward_and_backward() -> None:
        if sliced:
            summed_loss(images, texts, scale).backward()
        else:
            cross_entropy(scale * images @ texts.t(), torch.arange(LOCAL), reduction="sum").backward()

    return measured(forward_and_backward)


def measured(work: Any) -> dict[str, float]:
    before, start = peak_mib(), time.perf_counter()
    work()
    return {"mib": peak_mib() - before, "seconds": round(time.perf_counter() - start, 1)}


def peak_mib() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def show(results: dict[str, Any]) -> None:
    columns = ["batch", "at once", *(f"mini-batches of {size}" for size in MINI_BATCHES[1:])]
    for title, figure in (("MiB that a step adds", "mib"), ("Seconds of a step", "seconds")):
        rows = [[str(batch), *(r[figure] for r in results["steps"] if r["batch"] == batch)] for batch in BATCHES]
        show_table(title, rows, columns)
    rows = [["slices of rows" if r["sliced"] else "at once", r["mib"], r["seconds"]] for r in results["losses"]]
    show_table(f"The loss of {LOCAL:,} rows against {WHOLE:,}", rows, ["logits", "added MiB", "seconds"])


if __name__ == "__main__":
    main()
