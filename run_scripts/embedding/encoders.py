"""Load the model that embeds: a dual encoder, or exported graphs."""

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from biomedclip import BiomedCLIPProcessor, ExportedModel
from biomedclip.embedding import embed_texts, normalize
from biomedclip.export import DESCRIPTION, FORMATS, PACKAGES_TO_RUN, check_packages, read_description

from ..evaluation.checks import check_model
from ..evaluation.dual_encoders import DualEncoder, load_dual_encoder, processing_fingerprint


OF_MODELS = ("float32", "bfloat16")
PRECISIONS = (*dict.fromkeys([*OF_MODELS, *(name for names in FORMATS.values() for name in names)]),)
_BLOCK = 2**20


class ExportedEncoder(DualEncoder):
    """Exported graphs with the interface of [`DualEncoder`]. `weights` is a fingerprint of their files."""

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(digest_size=8)
        for path in sorted(Path(self.name).rglob("*")):
            if path.suffix in (".onnx", ".xml", ".bin", ".data") or path.name == DESCRIPTION:
                digest.update(path.name.encode())
                with path.open("rb") as file:
                    while block := file.read(_BLOCK):
                        digest.update(block)
        self.weights = digest.hexdigest()
        self.processing = processing_fingerprint(self.processor)

    def precise(self) -> AbstractContextManager[Any]:
        """Return a context manager without effect, because the graphs have their own precision."""
        return nullcontext()


def check_encoder(
    name: str,
    precision: str | None,
    task: str = "embed",
    *,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> str:
    """Check that a model can be loaded and can embed, and return its precision. The model is not loaded.

    `task` names the command in messages.

    Raises:
        FileNotFoundError: If the model does not exist.
        ImportError: If a package that the model needs is not installed.
        ValueError: If it is not a dual encoder, or if exported graphs have another precision than the given one or
            cannot run on the device.
    """
    if not is_exported(name):
        check_model(name, task, trust_remote_code=trust_remote_code)
        if precision not in (None, *OF_MODELS):
            raise ValueError(f"--model {name} is not exported. Its `precision` can be {' or '.join(OF_MODELS)}.")
        return precision or "float32"
    exported = read_description(Path(name))
    check_packages(PACKAGES_TO_RUN[exported["format"]])
    if device not in ("auto", "cpu"):
        raise ValueError(f"--model {name} is exported, and runs only on the CPU. Omit --device.")
    precisions = exported["precisions"]
    if precision not in (None, *precisions):
        raise ValueError(
            f"--model {name} was exported in {', '.join(precisions)}, not in {precision}. Leave out `precision`, or "
            "export the model again."
        )
    return precision or precisions[0]


def is_exported(name: str) -> bool:
    """Return whether a model is a folder of exported graphs, which run on the CPU and compute no gradients."""
    return (Path(name) / DESCRIPTION).is_file()


def load_encoder(
    name: str, precision: str, *, device: torch.device | None = None, trust_remote_code: bool = False
) -> DualEncoder:
    """Load a model that [`check_encoder`] has checked."""
    if not is_exported(name):
        encoder = load_dual_encoder(name, precision=precision, trust_remote_code=trust_remote_code)
        # Matrix products of small batches depend on the alignment of the weights in memory. After loading, it differs
        # between processes. PyTorch aligns copies.
        for tensor in [*encoder.model.parameters(), *encoder.model.buffers()]:
            tensor.data = tensor.data.clone()
        if device is not None:
            encoder.model.to(device)
        return encoder
    processor = BiomedCLIPProcessor.from_pretrained(name, trust_remote_code=False)
    return ExportedEncoder(name, "exported", ExportedModel(name, precision=precision), processor, precision)


def label_embeds(embeds: torch.Tensor, prompts: Iterable[Sequence[str]]) -> torch.Tensor:
    """Return the normalized mean of the embeddings of the prompts of each label.

    Args:
        embeds: Embeddings of all prompts, of shape `(prompts, dimension)`.
        prompts: Prompts of each label, in the order of the embeddings.
    """
    groups = embeds.split([len(texts) for texts in prompts])
    # Normalizing one embedding again would change its last bit.
    return torch.stack([group[0] if len(group) == 1 else normalize(group.mean(dim=0)) for group in groups])


def text_embeds(encoder: DualEncoder, texts: list[str], batch_size: int) -> torch.Tensor:
    """Return normalized embeddings of texts in the precision of the encoder, as [`embed_texts`]."""
    with encoder.precise():
        return embed_texts(encoder.model, encoder.processor, texts, batch_size=batch_size)
