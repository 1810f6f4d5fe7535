"""Collect the facts of a model card from the model and from the files of its training, dataset and evaluations."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from biomedclip.configuration_biomedclip import BiomedCLIPTextConfig
from biomedclip.conversion.open_clip import open_clip_obstacle
from biomedclip.model_cards.formatting import PLACEHOLDER, public_name
from biomedclip.model_cards.model_card import COSTS, OF_THE_PAPER, PUBLISHED, TASKS, public_result
from biomedclip.model_cards.reading import check_shape, find_file, read_json, read_yaml
from biomedclip.model_cards.results import RESULT, find_results, read_result
from biomedclip.processing.benchmarks.facts import facts_of
from biomedclip.processing.integrity import report_of_build

from ..cli.options import WRITTEN_RECIPE
from ..cli.reporting import versions
from .fingerprints import evaluated_fingerprint


CARD = "README.md"
CARD_FACTS = "card.json"
CONVERSION = "conversion.json"  # written by biomedclip convert
TRAIN_RESULTS = "train_results.json"
TRAINER_STATE = "trainer_state.json"
BUILD_REPORT = "report.json"
_NUMBER = (int, float)
# Fields of the files that a card uses, in the form that `check_shape` expects.
_VERSIONS = {"versions": {"biomedclip": str}}
_CONVERSION = {
    "source": str,
    "layout": str,
    "verification?": {
        "images": int,
        "labels": int,
        "same_best_label": int,
        "bert_assumed": bool,
        "largest_difference": {str: _NUMBER},
    },
    **_VERSIONS,
}
_TRAINING = {
    "steps": int,
    **dict.fromkeys((f"{name}?" for name, _ in COSTS), _NUMBER),
    "training_pairs?": int,
    **_VERSIONS,
}
_DATASET = {
    "source": str,
    "inventory_date?": str,
    "built": str,
    "synthetic": bool,
    "pairs": int,
    "splits": {"train": {"pairs": int}},
    "licenses": {str: int},
    "articles": {"kept": int},
    **_VERSIONS,
}
FACTS = {
    "model": {"weights": str},
    "training?": {"results": _TRAINING, "recipe?": {str: object}},
    "dataset?": _DATASET | {"id?": str},
    "results": [RESULT],
}


def card_facts(
    model: Mapping[str, Any],
    *,
    conversion: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    dataset: Mapping[str, Any] | None = None,
    results: Sequence[Mapping[str, Any]] = (),
    license: str | None = None,
    title: str | None = None,
    name: str = PLACEHOLDER,
) -> dict[str, Any]:
    """Return the facts that [`fill_model_card`] requires, without local paths."""
    if license is None and conversion is not None:
        license = "mit" if conversion["source"] == PUBLISHED else "other"
    paper: dict[str, dict[str, Any]] = {task: {} for task, _ in OF_THE_PAPER}
    for task, benchmark in OF_THE_PAPER:
        published = facts_of(benchmark)
        key = "paper_of_linear_probe" if task == "linear-probe" else "paper"
        paper[task][benchmark] = published.get(key, {})
    return {
        "title": title or "BiomedCLIP",
        "name": name,
        "license": license,
        "model": dict(model),
        "conversion": conversion and {**conversion, "source": public_name(conversion["source"])},
        "training": training,
        "dataset": dataset and {**dataset, "source": public_name(dataset["source"])},
        "results": [public_result(result) for result in results],
        "paper": paper,
        "open_clip": model["open_clip_obstacle"] is None,
        "date": date.today().isoformat(),
        "versions": versions(),
    }


def describe_model(model: Any, processor: Any) -> dict[str, Any]:
    """Return the architecture of a model and the fingerprint of its weights in float32."""
    config = model.config
    vision, text = config.vision_config, config.text_config

    def count(*prefixes: str) -> int:
        return sum(tensor.numel() for name, tensor in model.named_parameters() if name.startswith(prefixes))

    def sizes(encoder: Any) -> dict[str, int]:
        return {
            "layers": encoder.num_hidden_layers,
            "width": encoder.hidden_size,
            "heads": encoder.num_attention_heads,
            "feed_forward": encoder.intermediate_size,
        }

    return {
        "parameters": model.num_parameters(),
        "image_parameters": count("vision_model.", "visual_projection."),
        "text_parameters": count("text_model.", "text_projection."),
        "image_tower": sizes(vision)
        | {"input": f"images of {vision.image_size} pixels in patches of {vision.patch_size}"},
        "text_tower": sizes(text)
        | {
            "kind": "BERT" if isinstance(text, BiomedCLIPTextConfig) else "CLIP's, with a causal mask",
            "input": f"a vocabulary of {text.vocab_size:,} tokens, {text.max_position_embeddings:,} positions",
        },
        "embedding": config.projection_dim,
        "context_length": processor.tokenizer.model_max_length,
        "logit_scale": model.logit_scale.item(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "open_clip_obstacle": open_clip_obstacle(model, processor),
        "weights": evaluated_fingerprint(model),
    }


def select_results(weights: str, places: Sequence[str]) -> tuple[list[dict[str, Any]], list[Path]]:
    """Return the results of given weights in the order of the card, and the files with results of other weights."""
    results: dict[str, tuple[Path, dict[str, Any]]] = {}
    left_out = []
    for path in find_results(places):
        result = read_result(path)
        # The result of a head that was trained on top of the model contains the fingerprint of the model.
        if weights not in (result["model"]["weights"], result["model"].get("base_weights")):
            left_out.append(path)
            continue
        key = json.dumps([result["task"], result["benchmark"], result["data"], result.get("settings")], sort_keys=True)
        if key in results:
            raise ValueError(f"{results[key][0]} and {path} measure the same thing. Remove one of them from --results.")
        results[key] = path, result
    if left_out and not results:
        raise ValueError(
            f"No result in --results was measured with the weights of the model ({weights}). The first one, "
            f"{left_out[0]}, was measured with other weights. Evaluate this model: biomedclip evaluate --help"
        )
    order = [*TASKS]

    def position(result: Mapping[str, Any]) -> tuple[int, str]:
        return order.index(result["task"]) if result["task"] in order else len(order), result["benchmark"] or ""

    return sorted((result for _, result in results.values()), key=position), left_out


def read_conversion(folder: Path) -> dict[str, Any] | None:
    """Return the report of `biomedclip convert`, or None if it did not write the folder."""
    return read_part(folder, CONVERSION, _CONVERSION)


def read_training(model: Path, train_run: str | None) -> dict[str, Any] | None:
    """Return the results, last evaluation and recipe of a training run, or None if the model folder contains no run."""
    run = Path(train_run) if train_run else model
    results = read_part(run, TRAIN_RESULTS, _TRAINING)
    if results is None:
        if train_run is None:
            return None
        raise FileNotFoundError(f"--train-run {run} contains no {TRAIN_RESULTS} from biomedclip train.")
    state = read_part(run, TRAINER_STATE, {"log_history": [{str: object}]}) or {"log_history": []}
    evaluations = [entry for entry in state["log_history"] if any(name.startswith("eval_") for name in entry)]
    last = {
        name.removeprefix("eval_").replace("_", " "): value
        for name, value in (evaluations[-1] if evaluations else {}).items()
        if name.startswith("eval_") and not name.endswith(("runtime", "per_second"))
    }
    check_shape(run / TRAINER_STATE, last, {str: _NUMBER}, "the last evaluation")
    recipe = read_part(run, WRITTEN_RECIPE, {str: object}, read_yaml)
    if recipe is not None and "base" in recipe:
        raise ValueError(f"{run / WRITTEN_RECIPE} has a base recipe, so biomedclip train did not write it.")
    recipe = recipe and {name: value for name, value in recipe.items() if value is not None}
    return {"results": results, "last": last, "recipe": recipe}


def read_dataset(name: str, training: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the fields of a dataset's report that a card uses, and the `id` if the dataset is on the Hub."""
    path, repo_id = Path(name) / BUILD_REPORT, None
    if Path(name).is_dir():
        found = find_file(Path(name), BUILD_REPORT)
    else:
        try:
            found, repo_id = Path(hf_hub_download(name, BUILD_REPORT, repo_type="dataset")), name
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise FileNotFoundError(f"--dataset {name} is neither a folder nor on the Hub ({reason}).") from error
    if found is None:
        raise FileNotFoundError(f"--dataset {name} contains no {BUILD_REPORT} from biomedclip build.")
    report = read_json(found)
    check_shape(path, report, {str: object})
    report = report_of_build(report)
    report = {"synthetic": report.get("drawn"), **report}  # the name in version 0.1
    check_shape(path, report, _DATASET)
    trained, available = training and training["results"].get("training_pairs"), report["splits"]["train"]["pairs"]
    recipe = (training and training["recipe"]) or {}
    selected = any(recipe.get(name) for name in ("licenses", "image_types", "panels"))
    if trained is not None and not selected and trained != available:
        raise ValueError(
            f"--dataset {name} has {available:,} training pairs, but the model was trained on {trained:,}. Pass the "
            "dataset that it was trained on."
        )
    return {key.removesuffix("?"): report.get(key.removesuffix("?")) for key in _DATASET} | {"id": repo_id}


def read_part(folder: Path, name: str, shape: Mapping[Any, Any], read: Callable[[Path], Any] = read_json) -> Any:
    """Return the content of a file of a folder, or None if the file does not exist."""
    path = find_file(folder, name)
    if path is None:
        return None
    content = read(path)
    check_shape(folder / name, content, shape)
    return content
