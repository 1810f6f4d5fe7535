"""Estimate the device memory of a process in contrastive training.

For P parameters, T of them trained, in bytes:

    weights      4 P, and under bf16 autocast 2 P more for the copies in half precision
    gradients    4 T, and with several processes 4 T more for the buckets of DDP
    optimizer    8 T for the two moments of AdamW
    step         4 T for temporary values of the optimizer step, when the activations are freed

For each pair in memory, an encoder of L layers with N tokens, width H and feed-forward width I keeps:

    block        N (32 H + 8 I) in float32, N (24 H + 4 I) under bf16 autocast
    encoder      L blocks
    ends         8 N H and the pixels

With gradient checkpointing, it keeps the inputs of attention and MLP of each block, which are 8 N H for images, and
18 N H for texts, with the inputs of LayerNorm and the masks of dropout. An MLP is recomputed at a time: N (8 H + 8 I)
in float32, N (8 H + 4 I) under bf16 autocast. CLIP keeps 4 N H and recomputes whole blocks.

A locked encoder keeps one block at a time. For a batch of B pairs with embeddings of width D:

    features     24 B D for the embeddings of all processes and their gradients
    logits       8 bytes for each logit in memory

The peak is weights, gradients, optimizer, and the larger of (activations, features, logits) and (step). It is an upper
bound, because gradients grow while activations are freed. Attention is assumed to be fused. The CUDA context, the
fragmentation of the allocator and the data loader are not included.
"""

from typing import Any

from biomedclip.contrastive_loss import LOGITS_AT_ONCE
from biomedclip.modeling_biomedclip import BiomedCLIPTextModel, BiomedCLIPVisionModel, patches_kept


# Bytes that a block keeps for each token and unit of its width with gradient checkpointing.
_CHECKPOINTED = {BiomedCLIPVisionModel: 8, BiomedCLIPTextModel: 18}


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
    """Return the estimated memory of a process on its device in bytes, by category.

    `batch_size` is the number of pairs in a step over all processes. `mini_batch_size` is the number of pairs that a
    process keeps in memory.
    """
    vision, text = model.config.vision_config, model.config.text_config
    patches = patches_kept((vision.image_size // vision.patch_size) ** 2, getattr(vision, "patch_dropout", 0.0))
    encoders = [
        (model.vision_model, vision, 1 + patches, vision.num_channels * vision.image_size**2),
        (model.text_model, text, min(text_length, text.max_position_embeddings), 0),
    ]
    kept, recomputed, locked = 0, 0, 0
    for encoder, config, tokens, inputs in encoders:
        hidden, intermediate = config.hidden_size, config.intermediate_size
        block = tokens * (24 * hidden + 4 * intermediate if bf16 else 32 * hidden + 8 * intermediate)
        if not any(parameter.requires_grad for parameter in encoder.parameters()):
            locked = max(locked, block)
            continue
        layer = block
        if checkpointing:
            bytes_per_value = _CHECKPOINTED.get(type(encoder))
            layer = tokens * hidden * (bytes_per_value or 4)
            recomputed_at_once = tokens * (8 * hidden + (4 if bf16 else 8) * intermediate) if bytes_per_value else block
            recomputed = max(recomputed, recomputed_at_once)
        kept += config.num_hidden_layers * layer + 8 * tokens * hidden + 4 * inputs
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    rows = max(1, min(batch_size // processes, LOGITS_AT_ONCE // batch_size))
    memory = {
        "weights": (6 if bf16 else 4) * total,
        "gradients": (8 if processes > 1 else 4) * trained,
        "optimizer": 8 * trained,
        "step": 4 * trained,
        "activations": mini_batch_size * max(kept + recomputed, locked),
        "features": 24 * batch_size * model.config.projection_dim,
        "logits": 8 * rows * batch_size,
    }
    temporary = max(memory["step"], memory["activations"] + memory["features"] + memory["logits"])
    return memory | {"peak": memory["weights"] + memory["gradients"] + memory["optimizer"] + temporary}
