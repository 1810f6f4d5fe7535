"""Gradients of losses in several processes, which import this module by its name."""

import importlib.util
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel
from biomedclip.cached_gradients import cached_backward, mini_batch_rows, take_rows
from biomedclip.contrastive_loss import LOSSES, contrastive_loss


PAIRS = 8
_TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def unit(pairs: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return rows of length 1."""
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(pairs, 8, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def tiny_model(*, dropout: float = 0.0) -> BiomedCLIPModel:
    """Return a model with a few thousand fixed random weights and a logit bias."""
    torch.manual_seed(0)
    config = BiomedCLIPConfig(
        projection_dim=8,
        logit_bias_init_value=-3.0,
        vision_config=_TOWER | {"image_size": 16, "patch_size": 8, "initializer_range": 0.2},
        text_config=_TOWER
        | {"vocab_size": 32, "max_position_embeddings": 16, "hidden_dropout": dropout, "attention_dropout": dropout}
        | {"initializer_range": 0.2},
    )
    return BiomedCLIPModel(config)


def transformers_model(name: str, image_size: int) -> CLIPModel | SiglipModel:
    """Return a small `CLIP` or `Siglip` model with fixed random weights."""
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = size | {"vocab_size": 128, "max_position_embeddings": 64}
    vision = size | {"image_size": image_size, "patch_size": 8}
    torch.manual_seed(0)
    if name == "Siglip":
        return SiglipModel(SiglipConfig(text_config=text | {"projection_size": 32}, vision_config=vision))
    # At a temperature of 1 all logits are between -1 and 1 for any random weights.
    options = {"projection_dim": 16, "logit_scale_init_value": 0.0}
    return CLIPModel(CLIPConfig(text_config=text | {"eos_token_id": 3}, vision_config=vision, **options))


def some_batch(pairs: int) -> dict[str, torch.Tensor]:
    """Return images, and texts of 2 to 12 words."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, 13, (pairs, 1), generator=generator)
    mask = (torch.arange(12) < lengths).long()
    return {
        "input_ids": torch.randint(4, 32, (pairs, 12), generator=generator) * mask,
        "attention_mask": mask,
        "pixel_values": torch.randn(pairs, 3, 16, 16, generator=generator),
    }


def assert_same_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Compare gradients relative to the largest entry of the parameter, at least 0.1.

    Float32 sums in another order differ by up to 4e-6. The gradients of the bias of the keys and of InfoNCE's logit
    bias are zero except for rounding.
    """
    assert ours.keys() == theirs.keys() and ours
    for name, gradient in ours.items():
        largest = theirs[name].abs().max().clamp(min=0.1)
        torch.testing.assert_close(gradient / largest, theirs[name] / largest, rtol=0, atol=1e-5, msg=name)


def _losses_of_open_clip() -> ModuleType:
    """Return the module `open_clip.loss` without importing the package, which takes seconds in each process."""
    (folder,) = importlib.util.find_spec("open_clip").submodule_search_locations
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(folder, "loss.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gradients_of_a_process(rank: int, world_size: int, folder: str) -> None:
    """Save the DDP gradients of each loss over a divided batch: ours, cached, and those of open_clip."""
    open_clip = _losses_of_open_clip()
    meeting_point = f"file://{folder}/meeting_point_{world_size}"
    torch.distributed.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=world_size)
    share = slice(rank * PAIRS // world_size, (rank + 1) * PAIRS // world_size)
    inputs = {name: value[share] for name, value in some_batch(PAIRS).items()}
    processes = {"rank": rank, "world_size": world_size}
    theirs = {
        "infonce": open_clip.ClipLoss(local_loss=True, gather_with_grad=True, **processes),
        "siglip": open_clip.SigLipLoss(**processes),
    }
    gradients = {}
    for name in LOSSES:
        for author, loss_of in (("ours", partial(contrastive_loss, loss=name)), ("theirs", theirs[name])):
            model = tiny_model()
            wrapped = DistributedDataParallel(model)
            outputs = wrapped(**inputs)
            loss_of(outputs.image_embeds, outputs.text_embeds, model.logit_scale.exp(), model.logit_bias).backward()
            gradients[name, author] = {key: parameter.grad for key, parameter in model.named_parameters()}
        gradients[name, "cached"] = _cached_gradients(inputs, name)
    if rank == 0:
        torch.save(gradients, Path(folder) / f"{world_size}.pt")
    torch.distributed.destroy_process_group()


def _cached_gradients(inputs: dict[str, torch.Tensor], loss: str) -> dict[str, torch.Tensor]:
    """Return cached gradients with mini-batches of one pair. Gradients must be reduced once."""
    model, reductions = tiny_model(), []
    wrapped = DistributedDataParallel(model, find_unused_parameters=False)

    def counted(_, bucket):
        reductions.append(bucket.is_last())
        return default_hooks.allreduce_hook(None, bucket)

    wrapped.register_comm_hook(None, counted)

    def embed(rows):
        outputs = wrapped(**take_rows(inputs, rows))
        return outputs.image_embeds, outputs.text_embeds

    cached_backward(
        embed,
        mini_batch_rows(inputs, 1),
        lambda *embeds: contrastive_loss(*embeds, model.logit_scale.exp(), model.logit_bias, loss=loss),
        [model.logit_scale, model.logit_bias],
        no_sync=wrapped.no_sync,
    )
    assert sum(reductions) == 1
    return {key: parameter.grad for key, parameter in model.named_parameters()}
