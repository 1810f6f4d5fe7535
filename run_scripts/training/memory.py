"""The memory that a process of a contrastive run takes on its device, by arithmetic.

P parameters, of which T are trained, take in bytes:

    weights      4 P         in float32; under bf16 autocast 2 P more, for copies in half precision
    gradients    4 T         and 4 T more for DDP's buckets, where there are several processes
    optimizer    8 T         AdamW's two moments
    step         4 T         what an optimizer step works out on the way; the activations are gone by then

What a forward pass keeps for the backward pass of one pair, in a tower of L layers, width H and feed-forward width I
over N tokens:

    block        N (32 H + 8 I)   in float32: of width H what goes into and comes out of two LayerNorms, queries, keys,
                                  values, and what attention gives; of width I both sides of the activation function
                 N (24 H + 4 I)   under bf16 autocast: LayerNorm's inputs stay in float32, and queries, keys and values
                                  are each made from a copy of their own in half precision
    tower        L blocks, or with gradient checkpointing 4 L N H for the inputs of the blocks and one block
    ends         8 N H and the pixels, in float32, for what stands before and behind the blocks

These are times the pairs that are in memory at a time: the mini-batch, or a process's share of the batch of B pairs.
A locked tower keeps nothing; a block is all that it holds, before the other tower comes. For embeddings of width D
there are then

    features     24 B D      images and texts of all processes, and two gradients of each
    logits       8 times those held at a time: a slice of rows, of LOGITS_AT_ONCE logits at most but one row at least

The peak is weights, gradients and optimizer, and of activations, features and logits on one hand and the step on the
other whatever is more. That is an upper bound, as gradients grow while activations are given back unless there are
several mini-batches: the test, on towers of width 256, finds it 4 to 19 % above the peak, and the published model with
eight pairs 10 to 13 % (on the CPU, as torch's allocator counts). Attention is taken to be fused, so that its N x N
probabilities are never held. Not counted are CUDA's context and libraries (0.5 to 1 GiB), what the allocator loses by
fragmentation, and the loader.
"""

import math
from dataclasses import dataclass
from typing import Any

from biomedclip.contrastive_loss import LOGITS_AT_ONCE
from biomedclip.modeling_biomedclip import patches_kept

from .towers import part_of


@dataclass(frozen=True)
class TowerShape:
    """What the memory of a tower depends on.

    Args:
        tokens: Length of the sequence.
        layers: Number of blocks.
        hidden: Width.
        intermediate: Width of the feed-forward layers.
        inputs: Floats of an input that are kept, such as pixels.
        trained: Whether anything of it is.
    """

    tokens: int
    layers: int
    hidden: int
    intermediate: int
    inputs: int
    trained: bool

    def block_bytes(self, *, bf16: bool) -> int:
        """What a block keeps of one pair."""
        widths = 24 * self.hidden + 4 * self.intermediate if bf16 else 32 * self.hidden + 8 * self.intermediate
        return self.tokens * widths

    def kept_bytes(self, *, bf16: bool, checkpointing: bool) -> int:
        """What the whole tower keeps of one pair, less the block that is worked out again with checkpointing."""
        if not self.trained:
            return 0
        block = 4 * self.tokens * self.hidden if checkpointing else self.block_bytes(bf16=bf16)
        return self.layers * block + 8 * self.tokens * self.hidden + 4 * self.inputs


def tower_shapes(model: Any, text_length: int) -> list[TowerShape]:
    """The two towers of BiomedCLIPModel or CLIPModel.

    Args:
        model: The model, with weights or without.
        text_length: Tokens of the texts.
    """
    vision, text = model.config.vision_config, model.config.text_config
    patches = (vision.image_size // vision.patch_size) ** 2
    trained = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    image_tower = TowerShape(
        1 + patches_kept(patches, getattr(vision, "patch_dropout", 0.0)),
        vision.num_hidden_layers,
        vision.hidden_size,
        vision.intermediate_size,
        vision.num_channels * vision.image_size**2,
        "image tower" in trained,
    )
    text_tower = TowerShape(
        min(text_length, text.max_position_embeddings),
        text.num_hidden_layers,
        text.hidden_size,
        text.intermediate_size,
        0,
        "text tower" in trained,
    )
    return [image_tower, text_tower]


def estimate_memory(
    model: Any,
    *,
    batch_size: int,
    processes: int,
    mini_batch_size: int,
    text_length: int,
    bf16: bool,
    checkpointing: bool,
) -> dict[str, int]:
    """Bytes that a process takes on its device, by the formula at the head of this file.

    Args:
        model: BiomedCLIPModel or CLIPModel, with weights or without.
        batch_size: Pairs of a step over all processes.
        processes: Number of processes.
        mini_batch_size: Pairs of a process that are in memory at a time.
        text_length: Tokens of the texts.
        bf16: Training under bf16 autocast.
        checkpointing: Gradient checkpointing.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    towers = tower_shapes(model, text_length)
    kept = sum(tower.kept_bytes(bf16=bf16, checkpointing=checkpointing) for tower in towers)
    again = [tower.block_bytes(bf16=bf16) for tower in towers if checkpointing and tower.trained]
    locked = [tower.block_bytes(bf16=bf16) for tower in towers if not tower.trained]
    rows = max(1, min(batch_size // processes, LOGITS_AT_ONCE // batch_size))
    memory = {
        "weights": (6 if bf16 else 4) * total,
        "gradients": (8 if processes > 1 else 4) * trained,
        "optimizer": 8 * trained,
        "step": 4 * trained,
        "activations": mini_batch_size * max(kept + max(again, default=0), *locked, 0),
        "features": 24 * batch_size * model.config.projection_dim,
        "logits": 8 * rows * batch_size,
    }
    passing = max(memory["step"], memory["activations"] + memory["features"] + memory["logits"])
    memory["peak"] = memory["weights"] + memory["gradients"] + memory["optimizer"] + passing
    return memory


def mib(size: int) -> int:
    """Bytes in MiB, rounded up."""
    return math.ceil(size / 2**20)
