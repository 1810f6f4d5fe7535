"""Fit a small classifier on the image embeddings of a dual encoder, from a few or all labeled images.

biomedclip train --task few-shot-head --model-name-or-path model --train-data folder_of_classes --output-dir head
"""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from biomedclip import ZeroShotClassifier
from biomedclip.configuration_few_shot import FewShotConfig
from biomedclip.few_shot_head import METHODS
from biomedclip.modeling_few_shot import FewShotForImageClassification
from biomedclip.processing import read_labeled_images
from biomedclip.processing.benchmarks.facts import choose_prompts, facts_of
from biomedclip.processing.benchmarks.fingerprint import fingerprint_of
from biomedclip.processing.images.labeled import LabeledImages, check_readable

from ..classification.seen_images import write_seen_images
from ..cli.devices import use_device
from ..cli.errors import UsageError
from ..cli.fields import REQUIRED, WORKERS, image_root_option, option, split_column_option
from ..cli.permissions import apply_umask
from ..cli.reporting import say, show_table, versions, write_json
from ..evaluation.checks import check_empty_folder, check_model
from ..evaluation.dual_encoders import BIOVIL, DualEncoder, load_dual_encoder
from ..evaluation.features import FeatureStore
from ..evaluation.few_shot.context import ContextEncoder
from ..evaluation.few_shot.draws import draw_shots
from ..evaluation.few_shot.methods import Images, Shots, fit
from ..evaluation.zero_shot import OWN_IMAGES
from .classification import class_names, with_validation
from .split_facts import split_facts


TASK = "few-shot-head"
EXAMPLE = """biomedclip train --task few-shot-head --model-name-or-path model \\
      --train-data folder_of_classes --output-dir head"""
GROUPS = {
    "data": "task train_data image_column label_column image_root group_column split_column validation_fraction",
    "model": "model_name_or_path method shots prompts templates max_length",
    "run": "output_dir seed batch_size workers use_cpu",
}
ALTERNATIVES: tuple[Sequence[str], ...] = ()
METHOD = "tip-adapter-f"
VALIDATION_FRACTION = 0.2


@dataclass(kw_only=True)
class HeadOptions:
    """Options of a few-shot head."""

    train_data: str = option(
        REQUIRED,
        "Folder with one folder of images per class or with a metadata.csv (optionally under train, validation), a "
        "CSV, JSON Lines or Parquet file, a datasets folder, or a Hub id.",
    )
    model_name_or_path: str = option(REQUIRED, "Folder or Hub id of a dual encoder of transformers.")
    output_dir: str = option(REQUIRED, "New folder for the head.")
    task: str = option(TASK, "Training task.")
    method: str = option(METHOD, f"Method of the head (default: {METHOD}).", choices=list(METHODS))
    shots: int | None = option(None, "Number of training images of each class (default: all).")
    image_column: str = option("image", "Column of the images in tables (default: image).")
    label_column: str = option("label", "Column of the labels in tables (default: label).")
    image_root: str | None = image_root_option()
    group_column: str | None = option(
        None, "Column of the patient or source in a table. A group is not split into training and validation."
    )
    split_column: str | None = split_column_option()
    validation_fraction: float | None = option(
        None, f"Fraction of each class to hold out if there is no validation split (default: {VALIDATION_FRACTION})."
    )
    prompts: str | None = option(None, "YAML file with templates or class_names (default: the labels).")
    templates: list[str] = option([], "Prompts with {} for the class name.")
    max_length: int | None = option(None, "Maximum number of tokens in a text (default: the tokenizer's limit).")
    seed: int = option(0, "Seed of the drawn images, the held-out images and the random weights (default: 0).")
    batch_size: int = option(32, "Batch size of the embedding (default: 32).")
    workers: int = option(WORKERS, f"Number of threads that read images (default: {WORKERS}).")
    use_cpu: bool = option(False, "Use the CPU, even if there is a GPU.")

    def __post_init__(self):
        for name, least in (("shots", 1), ("batch_size", 1), ("workers", 1), ("max_length", 1), ("seed", 0)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(self, name)}.")
        if self.validation_fraction is not None and not 0 < self.validation_fraction < 1:
            raise ValueError("--validation-fraction must be greater than 0 and less than 1.")
        if self.prompts and self.templates:
            raise ValueError("--prompts and --templates both choose the prompts. Pass one of them.")
        if self.method == "zero-shot" and self.shots is not None:
            raise ValueError("--shots has no effect on --method zero-shot. Omit it.")
        for name in ("templates", "max_length"):  # --prompts may name the classes, by which pipelines choose them
            if self.method == "linear-probe" and getattr(self, name):
                raise ValueError(f"--{name.replace('_', '-')} has no effect on --method linear-probe. Omit it.")
        for template in self.templates:
            if "{}" not in template:
                raise ValueError(f"--templates: {template!r} has no {{}} for the class name.")


OPTION_CLASSES = [HeadOptions]


def run(options: HeadOptions) -> dict[str, Any]:
    """Fit and save a head, and return the content of `train_results.json`."""
    processes = use_device("cpu" if options.use_cpu else "auto").num_processes
    if processes > 1:
        raise UsageError(f"--task {TASK} runs in one process, not {processes}. Run it without torchrun or accelerate.")
    splits = _read(options)
    classes = class_names(splits, options.train_data)
    names, templates = _prompts(options, classes)
    _check_base(options.model_name_or_path)
    for split, images in splits.items():
        check_readable(images, f"{options.train_data}, {split} split")
    folder = Path(options.output_dir)
    check_empty_folder(folder, "--output-dir")
    encoder = load_dual_encoder(options.model_name_or_path)
    with tempfile.TemporaryDirectory() as features:
        embedded = [_embed(encoder, images, classes, options, features) for images in splits.values()]
    damaged = [entry for _, entries in embedded for entry in entries]
    train, validation = (images for images, _ in embedded)
    with torch.no_grad():
        texts = ZeroShotClassifier(
            encoder.model, encoder.processor, names, templates, max_length=options.max_length
        ).class_embeds
    is_coop = options.method == "coop"
    contexts = ContextEncoder(encoder, names, templates, options.max_length) if is_coop else None
    shots = Shots(train, validation, texts, encoder.logit_scale, contexts, options.seed)
    fitted = fit(options.method, shots)
    with torch.no_grad():
        answers = fitted.head(validation.embeds).argmax(dim=-1)
    counts = Counter(classes[number] for number in train.labels.tolist())
    training = {
        "data": options.train_data,
        "shots": options.shots,
        "seed": options.seed,
        "images": {label: counts[label] for label in classes},
        **{name: value for name, value in split_facts(splits).items() if name != "images"},
        "validation_images": len(validation),
        "validation_accuracy": float((answers == validation.labels).double().mean()),
        "chosen": dict(fitted.chosen),
        "damaged": damaged,
    }
    tokenizer = encoder.processor.tokenizer
    base = Path(options.model_name_or_path)
    config = FewShotConfig(
        method=options.method,
        head_settings=fitted.head.settings,
        base_model_name_or_path=str(base.resolve()) if base.is_dir() else options.model_name_or_path,
        base_weights=encoder.weights,
        class_names=names,
        templates=templates,
        class_token_ids=[
            [tokenizer(text, add_special_tokens=False)["input_ids"] for text in dict.fromkeys(pair)]
            for pair in zip(classes, names, strict=True)
        ],
        training=training,
        id2label=dict(enumerate(classes)),
        label2id={label: number for number, label in enumerate(classes)},
    )
    FewShotForImageClassification(config, encoder.model, fitted.head).save_pretrained(folder)
    encoder.processor.save_pretrained(folder)
    results = {"task": TASK, "method": options.method, "classes": classes, "chance": 1 / len(classes), **training}
    results |= {"base": config.base_model_name_or_path, "base_weights": encoder.weights, "versions": versions()}
    write_json(folder / "train_results.json", results)
    write_seen_images([folder], splits)
    apply_umask(folder)
    return results


def show_results(results: Mapping[str, Any], folder: str) -> None:
    """Print the numbers of images, the settings and the accuracy on the validation images."""
    rows = [(f"training images, {label}", count) for label, count in results["images"].items()]
    rows += [("validation images", results["validation_images"]), *results["chosen"].items()]
    rows += [("validation accuracy", results["validation_accuracy"]), ("chance", results["chance"])]
    show_table(f"Few-shot head, {results['method']}", rows, ["", "value"])
    for entry in results["damaged"]:
        say(f"Excluded: {entry['name']} ({entry['reason']})")
    size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    say(f"Head in {folder} ({size / 1000:,.0f} kB), results in train_results.json")


def _read(options: HeadOptions) -> dict[str, LabeledImages]:
    """Return the training and validation images that are used. Raise `ValueError` if there are too few."""
    read = read_labeled_images(
        options.train_data,
        image_column=options.image_column,
        label_column=options.label_column,
        image_root=options.image_root,
        group_column=options.group_column,
        split_column=options.split_column,
    )
    if "validation" not in read:
        fraction = options.validation_fraction or VALIDATION_FRACTION
        read = with_validation(read, fraction, options.seed, options.train_data)
    elif options.validation_fraction is not None:
        raise ValueError("--validation-fraction has no effect: the dataset has a validation split. Omit it.")
    train, validation = read["train"], read["validation"]
    if not len(validation):
        raise ValueError(
            f"{options.train_data}: there are no validation images, on which the settings are chosen. Each class has a "
            "single image. Add images, or a folder validation."
        )
    if options.shots is not None:
        label, largest = Counter(train.labels).most_common(1)[0]
        if options.shots > largest:
            raise ValueError(
                f"--shots {options.shots}: no class of {options.train_data} has as many training images. The largest, "
                f"{label!r}, has {largest}."
            )
        train, validation = (_drawn(images, options.shots, options.seed) for images in (train, validation))
    return {"train": train, "validation": validation}


def _drawn(images: LabeledImages, shots: int, seed: int) -> LabeledImages:
    numbers = {label: number for number, label in enumerate(sorted(set(images.labels)))}
    labels = torch.tensor([numbers[label] for label in images.labels]).numpy()
    return images.select(draw_shots(labels, shots, seed, range(len(labels))))


def _prompts(options: HeadOptions, classes: Sequence[str]) -> tuple[list[str], list[str]]:
    facts = facts_of(OWN_IMAGES) | {"classes": {label: label.replace("_", " ") for label in classes}}
    names, templates, _ = choose_prompts(options.prompts, facts)
    return names, list(options.templates) or templates


def _check_base(name: str) -> None:
    """Check that a dual encoder can be loaded with its head, which transformers does."""
    try:
        check_model(name, TASK)
    except (ValueError, OSError, ImportError) as error:
        raise type(error)(str(error).replace("--model ", "--model-name-or-path ")) from error
    if name in BIOVIL or (Path(name).is_dir() and not any((Path(name) / file).is_file() for file in _CONFIGS)):
        raise ValueError(
            f"--model-name-or-path {name} is not a model of transformers, so a head cannot load it. Convert it with "
            "biomedclip convert."
        )


_CONFIGS = ("config.json", "adapter_config.json")


def _embed(
    encoder: DualEncoder, images: LabeledImages, classes: Sequence[str], options: HeadOptions, folder: str
) -> tuple[Images, list[dict[str, str]]]:
    """Return embedded images with their class indices, and the damaged images."""
    store = FeatureStore(encoder, Path(folder), batch_size=options.batch_size, workers=options.workers)
    data = fingerprint_of(list(zip(images.names, images.labels, strict=True)), images.images)
    features = store.images(images.images, images.names, data)
    if not bool(torch.isfinite(features.embeds).all()):
        raise ValueError(f"{encoder.name}: embeddings are NaN or infinite. Check the weights of the model.")
    number_of = {label: number for number, label in enumerate(classes)}
    labels = torch.tensor([number_of[images.labels[row]] for row in features.rows.tolist()], dtype=torch.int64)
    return Images(features.embeds.float(), labels), features.damaged
