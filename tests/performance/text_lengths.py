"""What padding costs a training step with cached gradients, and what mini-batches of texts of like length save of it.

python tests/performance/text_lengths.py --captions captions.jsonl --tokenizer biomedclip_tokenizer

One batch of captions, as drawn, cut at 256 tokens, and images of 224 pixels; the model has 4 + 4 layers of width 256.
Seconds are the processor's, medians of ways that take turns; all of them have the loss and the gradients of the batch.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel
from biomedclip.cached_gradients import cached_backward, mini_batch_rows, take_rows
from biomedclip.contrastive_loss import contrastive_loss
from biomedclip.run_scripts.cli.reporting import show_table, versions


CONTEXT = 256
TOWER = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--captions", required=True, help="JSON lines with a caption each")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--mini-batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="JSON file for the figures")
    options = parser.parse_args()
    torch.manual_seed(0)
    inputs = batch_of(options.captions, options.tokenizer, options.batch)
    vocabulary = int(inputs["input_ids"].max()) + 1
    model = BiomedCLIPModel(
        BiomedCLIPConfig(
            vision_config=TOWER,
            text_config=TOWER | {"vocab_size": vocabulary, "hidden_dropout": 0.0, "attention_dropout": 0.0},
        )
    )
    in_order = list(torch.arange(options.batch).split(options.mini_batch))
    by_length = mini_batch_rows(inputs, options.mini_batch)
    ways = {
        f"padded to {CONTEXT}": (in_order, False),
        "as they come, each cut to its longest": (in_order, True),
        "of like length, each cut to its longest": (by_length, True),
    }
    results = measure(model, inputs, ways, options.rounds)
    for figures, (rows, cut) in zip(results.values(), ways.values(), strict=True):
        figures["tokens"] = sum(take_rows(inputs, part, cut_text=cut)["input_ids"].numel() for part in rows)
    words = int(inputs["attention_mask"].sum())
    show_table(
        f"A step of {options.batch} pairs in mini-batches of {options.mini_batch}; the captions have {words:,} tokens",
        [[name, *figures.values()] for name, figures in results.items()],
        ["mini-batches", "seconds", "loss", "gradients off by", "tokens"],
    )
    if options.output:
        Path(options.output).write_text(json.dumps({"versions": versions(), **results}, indent=2) + "\n")


def batch_of(captions: str, tokenizer: str, pairs: int) -> dict[str, torch.Tensor]:
    """Captions of a file, drawn, padded to the whole context; images of noise."""
    lines = [json.loads(line)["caption"] for line in Path(captions).read_text().splitlines()]
    texts = AutoTokenizer.from_pretrained(tokenizer)(
        random.Random(0).sample([line for line in lines if line.strip()], pairs),
        padding="max_length",
        truncation=True,
        max_length=CONTEXT,
        return_tensors="pt",
    )
    return {
        "input_ids": texts["input_ids"],
        "attention_mask": texts["attention_mask"],
        "pixel_values": torch.randn(pairs, 3, 224, 224),
    }


def measure(model: Any, inputs: dict[str, torch.Tensor], ways: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Seconds of each way, its loss, and how far its gradients are from the first way's, relative to the largest."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses, gradients = {}, {}
    for _ in range(rounds):
        for name, (rows, cut) in ways.items():
            model.zero_grad()
            start = time.process_time()
            losses[name] = float(step(model, inputs, rows, cut))
            seconds[name].append(time.process_time() - start)
            gradients[name] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    first = next(iter(gradients.values()))
    return {
        name: {
            "seconds": statistics.median(seconds[name]),
            "loss": losses[name],
            "gradients": float((gradients[name] - first).abs().max() / first.abs().max()),
        }
        for name in ways
    }


def step(model: Any, inputs: dict[str, torch.Tensor], mini_batches: Any, cut: bool) -> torch.Tensor:
    def embed(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = model(**take_rows(inputs, rows, cut_text=cut))
        return outputs.image_embeds, outputs.text_embeds

    def loss_of(*embeds: torch.Tensor) -> torch.Tensor:
        return contrastive_loss(*embeds, model.logit_scale.exp())

    return cached_backward(embed, mini_batches, loss_of, [model.logit_scale])


if __name__ == "__main__":
    main()
