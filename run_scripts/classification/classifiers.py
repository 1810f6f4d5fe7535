"""Load classifiers with a common interface: dual encoders with prompts, and fine-tuned classifiers."""

import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from biomedclip import ZeroShotClassifier
from biomedclip.conversion.files import read_json
from biomedclip.source_checks import ADAPTER_CONFIG, check_source
from biomedclip.weights_fingerprint import weights_fingerprint

from ..cli.errors import UsageError
from ..cli.models import check_model_name
from ..cli.reporting import no_warnings_of_transformers
from ..cli.trust import questions_are_errors
from ..embedding.encoders import OF_MODELS, check_encoder, label_embeds, load_encoder
from ..evaluation.checks import check_weights, config_on_hub
from ..evaluation.dual_encoders import DualEncoder
from .calibrations import UNCALIBRATED, Calibration


CONFIG = "config.json"
MULTI_LABEL = "multi_label_classification"  # `problem_type` of classifiers of several findings
_TASK = "classify with --labels"


@dataclass(frozen=True)
class Classifier:
    """A model that predicts labels of images.

    Args:
        name: Folder or Hub id.
        type: Type of the model.
        labels: The labels in the order of the predictions.
        image_processor: Processor of the images.
        weights: Fingerprint of the weights.
        device: Device of the model.
        encoder: The model and its processor, if it is a dual encoder.
        predict: Takes pixels `(images, 3, height, width)` and returns probabilities and cosine similarities
            `(images, labels)` in float32 on the CPU. A fine-tuned classifier has no similarities.
    """

    name: str
    type: str
    labels: list[str]
    image_processor: Any
    weights: str
    device: torch.device
    encoder: DualEncoder | None
    predict: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]


def check_classifier(
    name: str, *, has_labels: bool, precision: str | None, device: str
) -> tuple[list[str] | None, str]:
    """Check a model before it is loaded. Return its labels and its precision. A dual encoder has None as labels.

    The default precision is float32, or that of an exported model.

    Raises:
        UsageError: If labels are missing for a dual encoder, or given for a fine-tuned classifier.
        FileNotFoundError: If the model or a file of it does not exist.
        ValueError: If the model is neither a dual encoder nor a classifier.
    """
    config = config_of_classifier(name)
    if config is None:
        precision = check_encoder(name, precision, _TASK, device=device)
        if not has_labels:
            raise UsageError(
                f"--model {name} needs --labels: values, a text file, a YAML file, or taxonomy:imagetypes. Only "
                "fine-tuned classifiers have their own labels."
            )
        return None, precision
    labels = _labels_of(config, name)
    if has_labels:
        shown = ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")
        raise UsageError(
            f"--model {name} is a fine-tuned classifier without a text tower. It predicts its own {len(labels)} labels "
            f"({shown}). Omit --labels and --template, or pass a dual encoder."
        )
    if precision not in (None, *OF_MODELS):
        raise UsageError(f"--model {name} is not exported. Choose --precision {' or '.join(OF_MODELS)}.")
    _check_files(Path(name))
    return labels, precision or OF_MODELS[0]


def check_fine_tuned(name: str, *, several: bool) -> list[str]:
    """Check a fine-tuned classifier, or the adapter of one, before it is loaded, and return its labels.

    Args:
        name: Folder or Hub id.
        several: Whether the images of the data have several findings each.

    Raises:
        FileNotFoundError: If the model or a file of it does not exist.
        ValueError: If the model is not a classifier with two or more labels, or not one of several findings if the data
            has them.
    """
    check_model_name(name)
    config = config_of_classifier(name)
    if config is None:
        raise ValueError(
            f"--model {name} is not a fine-tuned image classifier. Train one with biomedclip train --task "
            "image-classification, or measure a dual encoder with biomedclip evaluate zero-shot."
        )
    _check_files(Path(name))
    labels = _labels_of(config, name)
    if several and config.get("problem_type") != MULTI_LABEL:
        raise ValueError(
            f"--model {name} predicts one label for each image. Omit --label-columns, or train a classifier of several "
            "findings with biomedclip train --task image-classification --label-columns."
        )
    if not several and config.get("problem_type") == MULTI_LABEL:
        raise ValueError(
            f"--model {name} predicts several findings for each image. Pass the column of each one: --label-columns "
            f"{shlex.join(labels)}."
        )
    return labels


def _check_files(folder: Path) -> None:
    if not folder.is_dir():
        return
    check_weights(folder, f"--model {folder}")
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file():
        base = read_json(folder / ADAPTER_CONFIG)["base_model_name_or_path"]
        where = f"--model {folder} is an adapter, and its base model"
        check_model_name(base, where)
        check_source(str(folder / "config"), trust_remote_code=False)
        if Path(base).is_dir():
            check_weights(Path(base), f"{where} {base}")


def config_of_classifier(name: str) -> Mapping[str, Any] | None:
    """Return the configuration of a fine-tuned classifier, or None for any other model."""
    folder = Path(name)
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file():
        if "classifier" not in (read_json(folder / ADAPTER_CONFIG).get("modules_to_save") or []):
            return None
        check_source(name, trust_remote_code=False)
        if not (folder / "config" / CONFIG).is_file():
            raise FileNotFoundError(
                f"--model {name} is the adapter of a classifier, and config/{CONFIG} with its labels is missing. "
                "Copy the whole folder that biomedclip train wrote."
            )
        return read_json(folder / "config" / CONFIG)
    if folder.is_dir():
        config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else None
    elif "/" in name:
        check_model_name(name)
        config = config_on_hub(name, f"--model {name}")
    else:
        return None
    names = (config or {}).get("architectures") or [""] if isinstance(config, dict) else [""]
    if not str(names[0]).endswith("ForImageClassification"):
        return None
    check_source(name, trust_remote_code=False)
    return config


def _labels_of(config: Mapping[str, Any], name: str) -> list[str]:
    labels = config.get("id2label") or {}
    try:
        found = [str(labels[number]) for number in sorted(labels, key=int)]
    except (TypeError, ValueError) as error:
        raise ValueError(f"--model {name}: id2label of its {CONFIG} must map class indices to labels.") from error
    if len(found) < 2:
        raise ValueError(f"--model {name}: id2label of its {CONFIG} has {len(found)} labels. It needs two or more.")
    if len(set(found)) < len(found):
        raise ValueError(f"--model {name}: id2label of its {CONFIG} has a label twice.")
    return found


def load_zero_shot(
    name: str,
    prompts: Mapping[str, Sequence[str]],
    *,
    precision: str,
    device: torch.device,
    calibration: Calibration = UNCALIBRATED,
) -> Classifier:
    """Load a dual encoder that classifies by the similarity to prompts.

    The embedding of a label is the normalized mean of the embeddings of its prompts. With one prompt for each label,
    the results equal those of [`ZeroShotClassifier`].

    Args:
        name: Folder or Hub id.
        prompts: Prompts of each label.
        precision: Precision of the model.
        device: The device. Exported models always run on the CPU.
        calibration: Calibration of the logits.
    """
    encoder = load_encoder(name, precision, device=device)
    flat = [prompt for texts in prompts.values() for prompt in texts]
    with encoder.precise():
        embeds = ZeroShotClassifier(encoder.model, encoder.processor, flat, "{}").class_embeds
    of_labels = label_embeds(embeds, prompts.values())

    def predict(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Texts times images, as in the forward pass of the model: the last bit of the product depends on the order.
        similarities = (of_labels @ encoder.embed_pixels(pixels).t()).t()
        return calibration.apply(similarities * encoder.logit_scale).softmax(dim=-1), similarities

    processor = encoder.processor.image_processor
    device = encoder.model.device
    return Classifier(name, encoder.type, list(prompts), processor, encoder.weights, device, encoder, predict)


@questions_are_errors()
def load_classifier_model(name: str) -> tuple[Any, Any]:
    """Return the model of a fine-tuned classifier, or of the adapter of one, in evaluation mode, and its processor."""
    folder = Path(name)
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file():
        config = AutoConfig.from_pretrained(folder / "config", trust_remote_code=False)
        base = read_json(folder / ADAPTER_CONFIG)["base_model_name_or_path"]
        with no_warnings_of_transformers():  # the head is not in the base but in the adapter
            model = AutoModelForImageClassification.from_pretrained(
                base, config=config, dtype=torch.float32, trust_remote_code=False
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            model = PeftModel.from_pretrained(model, name).merge_and_unload()
    else:
        model = AutoModelForImageClassification.from_pretrained(name, dtype=torch.float32, trust_remote_code=False)
    # torchvision resamples differently, so Pillow is used even if torchvision is installed.
    processor = AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=False)
    return model.eval(), processor


def load_fine_tuned(
    name: str,
    labels: Sequence[str],
    *,
    precision: str,
    device: torch.device,
    calibration: Calibration = UNCALIBRATED,
) -> Classifier:
    """Load a fine-tuned classifier, or the adapter of one, in evaluation mode. See [`load_zero_shot`] for arguments."""
    model, processor = load_classifier_model(name)
    several = model.config.problem_type == MULTI_LABEL
    calibration.check_kind(name, several)
    model = model.to(device)
    activation = torch.sigmoid if several else _softmax

    def precise() -> AbstractContextManager[Any]:
        return nullcontext() if precision == "float32" else torch.autocast(model.device.type, dtype=torch.bfloat16)

    @torch.no_grad()
    def predict(pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        with precise():
            logits = model(pixel_values=pixels.to(model.device)).logits
        return activation(calibration.apply(logits.float())).cpu(), None

    kind, weights = model.config.model_type, weights_fingerprint(model)
    return Classifier(name, kind, list(labels), processor, weights, model.device, None, predict)


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    return logits.softmax(dim=-1)


__all__ = [
    "Classifier",
    "check_classifier",
    "check_fine_tuned",
    "config_of_classifier",
    "load_classifier_model",
    "load_fine_tuned",
    "load_zero_shot",
]
