"""Convert checkpoints between the layouts of open_clip and transformers, and from the layout of a community port.

Weights are renamed. Fused q, k and v are split or joined, and the projection of CLIP's text tower is transposed. Values
do not change. A missing or unexpected tensor raises an error with the name of the tensor.
"""

import os
from pathlib import Path

from .. import BiomedCLIPProcessor
from ..modeling_biomedclip import BiomedCLIPModel
from ..source_checks import ADAPTER_CONFIG, check_source
from .community_port import is_port, read_port
from .files import ORIGINAL_CONFIG, is_transformers_layout, read_json
from .open_clip import OPEN_CLIP_CONFIG, read_open_clip, to_open_clip
from .training_checkpoint import local_checkpoint
from .vision_text import from_vision_text_pretrained


def from_open_clip(
    source: str | os.PathLike[str], *, revision: str | None = None
) -> tuple[BiomedCLIPModel, BiomedCLIPProcessor]:
    """Load a BiomedCLIP checkpoint in the layout of open_clip or of the community port.

    Args:
        source: Folder, Hub id, or a checkpoint file of open_clip's training. The layout of open_clip consists of
            `open_clip_config.json`, `open_clip_model.safetensors` or `open_clip_pytorch_model.bin`, and tokenizer
            files. The layout of the port consists of `config.json`, `model.safetensors` or `pytorch_model.bin`, and
            tokenizer files. For a checkpoint file, the configuration and the tokenizer are read from its folder or the
            run folder.
        revision: Branch, tag or commit of a Hub id.

    Returns:
        The model and its processor. The model is in evaluation mode and has the trained `logit_scale` and the precision
        of the file.

    Raises:
        FileNotFoundError: If a file of the layout is missing.
        ValueError: If a tensor is missing, unexpected or has the wrong shape, if BiomedCLIP does not support a setting,
            or if a pickle contains more than tensors.

    Example:
    ```python
    >>> from biomedclip import from_open_clip

    >>> model, processor = from_open_clip("microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224")
    >>> model.save_pretrained("published"), processor.save_pretrained("published")
    ```
    """
    with local_checkpoint(source, revision) as folder:
        if (folder / OPEN_CLIP_CONFIG).is_file():
            return read_open_clip(folder)
        if is_port(folder):
            return read_port(folder)
        if checkpoints := sorted([*folder.glob("epoch_*.pt"), *folder.glob("checkpoints/epoch_*.pt")]):
            raise FileNotFoundError(
                f"{source} contains checkpoints of open_clip's training. Pass one of them, such as {checkpoints[-1]}"
            )
    raise FileNotFoundError(
        f"{source} has neither {OPEN_CLIP_CONFIG} nor the config.json of chuhac/BiomedCLIP-vit-bert-hf. Load folders "
        "in the layout of transformers with `AutoModel.from_pretrained`."
    )


def load_any_layout(folder: Path) -> tuple[BiomedCLIPModel, BiomedCLIPProcessor]:
    """Load a model and its processor from a folder in the layout of transformers, open_clip or the community port.

    Adapters, parts of the model (such as an image classifier), unexpected weights, and settings that would run code or
    load another model raise a `ValueError`.
    """
    if not is_transformers_layout(folder):
        return from_open_clip(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"{folder} contains an adapter. Merge it into the model first with `merge_and_unload()` of PEFT."
        )
    check_source(str(folder), trust_remote_code=False)
    model, loading = BiomedCLIPModel.from_pretrained(
        folder, dtype="auto", output_loading_info=True, trust_remote_code=False
    )
    complaints = [f"{kind.split('_')[0]} {sorted(map(str, names))[0]}" for kind, names in loading.items() if names]
    if complaints:
        saved = ", ".join(read_json(folder / "config.json").get("architectures") or ["another model"])
        raise ValueError(f"{folder} contains {saved}, not a complete BiomedCLIPModel: {'; '.join(complaints)}.")
    # Version 0.1 stored the original open_clip configuration in config.json.
    original = getattr(model.config, "open_clip_config", None)
    if (folder / ORIGINAL_CONFIG).is_file():
        original = (folder / ORIGINAL_CONFIG).read_text(encoding="utf-8")
    if original is not None:
        model.open_clip_config = original
    return model, BiomedCLIPProcessor.from_pretrained(folder, trust_remote_code=False)


def save_with_processor(model: BiomedCLIPModel, processor: BiomedCLIPProcessor, folder: str | os.PathLike[str]) -> None:
    """Save a model, its processor, and the original `open_clip_config.json` if the model was converted.

    [`to_open_clip`] can then write the original file. After `save_pretrained`, it derives the file from the model.
    """
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    original = getattr(model, "open_clip_config", None)
    if original is not None:
        (Path(folder) / ORIGINAL_CONFIG).write_text(original, encoding="utf-8")


__all__ = [
    "from_open_clip",
    "from_vision_text_pretrained",
    "load_any_layout",
    "local_checkpoint",
    "save_with_processor",
    "to_open_clip",
]
