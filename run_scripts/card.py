"""Fills the card of a model out of what training, build and evaluation have left on disk.

biomedclip card out/model --train-run out/training --dataset out --results results --license apache-2.0
biomedclip card biomedclip --results results --name my-lab/biomedclip
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from biomedclip.configuration_biomedclip import BiomedCLIPTextConfig
from biomedclip.conversion import load_any_layout
from biomedclip.conversion.files import is_transformers_layout
from biomedclip.conversion.open_clip import open_clip_obstacle
from biomedclip.model_cards.fill import PLACEHOLDER, public_name
from biomedclip.model_cards.model_card import (
    BENCHMARKS,
    COSTS,
    NOT_MEASURED,
    OF_THE_PAPER,
    PUBLISHED,
    TASKS,
    benchmark_name,
    fill_model_card,
    public_result,
)
from biomedclip.model_cards.reading import check_shape, find_file, read_json, read_yaml
from biomedclip.model_cards.results import RESULT, find_results, measures, read_result
from biomedclip.processing.benchmarks.facts import facts_of

from .cli.options import WRITTEN_RECIPE, parse_options
from .cli.reporting import UNDEFINED, say, show_table, versions, write_json, write_text
from .hub.fingerprints import evaluated_fingerprint


EXAMPLE = """biomedclip card out/model --train-run out/training --dataset out \\
      --results results --license apache-2.0"""
CARD = "README.md"
CONVERSION = "conversion.json"  # what biomedclip convert leaves
CARD_FACTS = "card.json"
TRAIN_RESULTS = "train_results.json"
TRAINER_STATE = "trainer_state.json"
BUILD_REPORT = "report.json"
SHOWN_PATHS = 3  # results of other weights that are named
_NUMBER = (int, float)
# Shapes of the files that a card is filled from, as `check_shape` reads them.
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
    "drawn": bool,
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


@dataclass
class CardOptions:
    """Whose card is filled, and from what."""

    model: str = field(metadata={"help": "Folder of a BiomedCLIP model. May stand without its name."})
    results: list[str] = field(
        default_factory=list,
        metadata={"help": "Folders in which biomedclip evaluate left results.json, or such files."},
    )
    train_run: str | None = field(
        default=None, metadata={"help": "Folder that biomedclip train left. The model's own if it is one."}
    )
    dataset: str | None = field(
        default=None, metadata={"help": "What it was trained on: folder that biomedclip build left, or its Hub id."}
    )
    license: str | None = field(
        default=None, metadata={"help": "Licence of the weights, by the Hub's name of it, such as apache-2.0."}
    )
    title: str | None = field(default=None, metadata={"help": "Heading of the card. BiomedCLIP if left out."})
    name: str = field(
        default=PLACEHOLDER,
        metadata={"help": "Repository that the card's examples name. biomedclip push fills it in if left out."},
    )
    output: str | None = field(
        default=None, metadata={"help": "Folder for README.md and card.json. The model's if left out."}
    )


def main(arguments: Sequence[str]) -> None:
    """Runs `biomedclip card`."""
    (options,) = parse_options(
        "card",
        [CardOptions],
        arguments,
        description=__doc__.split("\n\n")[0],
        example=EXAMPLE,
        positionals=["model"],
    )
    facts, left_out = write_card(options)
    show_facts(facts, left_out)
    folder = options.output or options.model
    say(f"Card in {Path(folder) / CARD}, its facts in {CARD_FACTS}")


def write_card(options: CardOptions) -> tuple[dict[str, Any], list[Path]]:
    """Fills and writes the card of a model.

    Args:
        options: Whose card, and from what.

    Returns:
        The facts that `card.json` holds, and the files of results that are of other weights and were left out.

    Raises:
        FileNotFoundError: A folder that is not there, or lacks what it should hold.
        ValueError: Damaged results, results of other weights alone, a data set that the run was not trained on.
    """
    folder = Path(options.model)
    if not folder.is_dir():
        raise FileNotFoundError(f"--model {folder}: there is no such folder. A model on the Hub has its card there.")
    model, processor = load_any_layout(folder)
    described = describe_model(model, processor)
    del model
    conversion = _read_part(folder, CONVERSION, _CONVERSION)
    training = read_training(folder, options.train_run)
    dataset = read_dataset(options.dataset, training) if options.dataset else None
    results, left_out = results_of(described["weights"], options.results)
    facts = card_facts(
        described | {"layout": "transformers" if is_transformers_layout(folder) else "open_clip"},
        conversion=conversion,
        training=training,
        dataset=dataset,
        results=results,
        license=options.license,
        title=options.title,
        name=options.name,
    )
    output = Path(options.output or folder)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / CARD, fill_model_card(facts))
    write_json(output / CARD_FACTS, facts)
    return facts, left_out


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
    """What the template of the card is filled with; see [`fill_model_card`]."""
    if license is None and conversion is not None:
        license = "mit" if conversion["source"] == PUBLISHED else "other"
    return {
        "title": title or "BiomedCLIP",
        "name": name,
        "license": license,
        "model": dict(model),
        "conversion": conversion and {**conversion, "source": public_name(conversion["source"])},
        "training": training,
        "dataset": dataset and {**dataset, "source": public_name(dataset["source"])},
        "results": [public_result(result) for result in results],
        "paper": published_values(),
        "open_clip": model["open_clip_obstacle"] is None,
        "date": date.today().isoformat(),
        "versions": versions(),
    }


def published_values() -> dict[str, dict[str, Any]]:
    """The paper's values by task and benchmark."""
    values: dict[str, dict[str, Any]] = {task: {} for task, _ in OF_THE_PAPER}
    for task, benchmark in OF_THE_PAPER:
        facts = facts_of(benchmark)
        values[task][benchmark] = facts.get("paper_of_linear_probe", {}) if task == "linear-probe" else facts["paper"]
    return values


def describe_model(model: Any, processor: Any) -> dict[str, Any]:
    """What a card says of the architecture of a model, and the fingerprint of its weights in float32."""
    config = model.config
    vision, text = config.vision_config, config.text_config
    dtype = str(model.dtype).removeprefix("torch.")
    return {
        "parameters": model.num_parameters(),
        "image_parameters": _count(model, "vision_model.", "visual_projection."),
        "text_parameters": _count(model, "text_model.", "text_projection."),
        "image_tower": _tower(vision)
        | {"input": f"images of {vision.image_size} pixels in patches of {vision.patch_size}"},
        "text_tower": _tower(text)
        | {"kind": "BERT" if isinstance(text, BiomedCLIPTextConfig) else "CLIP's, with a causal mask"}
        | {"input": f"{text.vocab_size:,} words, {text.max_position_embeddings:,} positions"},
        "embedding": config.projection_dim,
        "context_length": processor.tokenizer.model_max_length,
        "logit_scale": model.logit_scale.item(),
        "dtype": dtype,
        "open_clip_obstacle": open_clip_obstacle(model, processor),
        "weights": evaluated_fingerprint(model),
    }


def read_training(model: Path, train_run: str | None) -> dict[str, Any] | None:
    """Results, last evaluation and recipe of the training of a model; none where there is no run.

    Raises:
        FileNotFoundError: `train_run` holds no results of a training.
    """
    run = Path(train_run) if train_run else model
    results = _read_part(run, TRAIN_RESULTS, _TRAINING)
    if results is None:
        if train_run is None:
            return None
        raise FileNotFoundError(f"--train-run {run}: no {TRAIN_RESULTS} there, which biomedclip train leaves.")
    state = _read_part(run, TRAINER_STATE, {"log_history": [{str: object}]})
    history = state["log_history"] if state else []
    evaluations = [entry for entry in history if any(name.startswith("eval_") for name in entry)]
    speed = ("runtime", "per_second")
    last = {
        name.removeprefix("eval_").replace("_", " "): value
        for name, value in (evaluations[-1] if evaluations else {}).items()
        if name.startswith("eval_") and not name.endswith(speed)
    }
    check_shape(run / TRAINER_STATE, last, {str: _NUMBER}, "the last evaluation")
    return {"results": results, "last": last, "recipe": _read_options(run)}


def read_dataset(name: str, training: Mapping[str, Any] | None) -> dict[str, Any]:
    """The report of the data set that a model was trained on, with `id` where it is one of the Hub.

    Raises:
        FileNotFoundError: No report there.
        ValueError: The run was trained on another number of pairs.
    """
    path, repo_id = Path(name) / BUILD_REPORT, None
    if Path(name).is_dir():
        found = find_file(Path(name), BUILD_REPORT)
    else:
        try:
            found, repo_id = Path(hf_hub_download(name, BUILD_REPORT, repo_type="dataset")), name
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise FileNotFoundError(f"--dataset {name}: neither a folder nor on the Hub ({reason})") from error
    if found is None:
        raise FileNotFoundError(f"--dataset {name}: no {BUILD_REPORT} there, which biomedclip build leaves.")
    report = read_json(found)
    check_shape(path, report, {str: object})
    report = report.get("build", report)  # quickstart's own report holds that of its build
    check_shape(path, report, _DATASET)
    trained, there = training and training["results"].get("training_pairs"), report["splits"]["train"]["pairs"]
    narrowed = training and (training["recipe"] or {}).get("licenses")
    if trained is not None and not narrowed and trained != there:
        raise ValueError(
            f"--dataset {name} has {there:,} training pairs, and the run was trained on {trained:,}. Name the set that "
            "it was trained on."
        )
    return {key.removesuffix("?"): report.get(key.removesuffix("?")) for key in _DATASET} | {"id": repo_id}


def results_of(weights: str, places: Sequence[str]) -> tuple[list[dict[str, Any]], list[Path]]:
    """Results that were measured with these weights.

    Args:
        weights: Fingerprint of the weights.
        places: Folders with `results.json` files, or such files.

    Returns:
        The results, those of other weights left out, and the files that were left out.

    Raises:
        FileNotFoundError: A place without results.
        ValueError: A damaged file, the same thing measured twice, or nothing that is of these weights.
    """
    results: dict[str, tuple[Path, dict[str, Any]]] = {}
    left_out = []
    for path in find_results(places):
        result = read_result(path)
        # A head that was fine-tuned on top of a model names the weights that it started from.
        if weights not in (result["model"]["weights"], result["model"].get("base_weights")):
            left_out.append(path)
            continue
        what = json.dumps([result["task"], result["benchmark"], result["data"], result.get("settings")], sort_keys=True)
        if what in results:
            raise ValueError(f"{results[what][0]} and {path} measured the same thing. Leave one out of --results.")
        results[what] = path, result
    if left_out and not results:
        raise ValueError(
            f"{left_out[0]} was measured with other weights than the model's ({weights}), as all that --results names. "
            "Evaluate this model: biomedclip evaluate --help"
        )
    order = [*TASKS]
    found = [result for _, result in results.values()]
    return sorted(
        found, key=lambda r: (order.index(r["task"]) if r["task"] in order else 99, r["benchmark"] or "")
    ), left_out


def show_facts(facts: Mapping[str, Any], left_out: Sequence[Path]) -> None:
    """Prints what the card states, what it could not, and which results were left out."""
    results = facts["results"]
    rows: list[tuple[Any, ...]] = [
        ("parameters", facts["model"]["parameters"]),
        ("weights", facts["model"]["weights"]),
        ("licence", facts["license"] or "not stated"),
        ("training run", f"{facts['training']['results']['steps']:,} steps" if facts["training"] else "not stated"),
        (
            "training data",
            f"{facts['dataset']['splits']['train']['pairs']:,} pairs" if facts["dataset"] else "not stated",
        ),
    ]
    for result in results:
        first = measures(result)[0]
        rows.append(
            (
                f"{result['task']}, {benchmark_name(result)}: {' '.join(first.path)}",
                UNDEFINED if first.value is None else first.value,
            )
        )
    there = {(result["task"], result["benchmark"]) for result in results}
    rows += [
        (f"{task}, {BENCHMARKS[benchmark]}", NOT_MEASURED)
        for task, benchmark in OF_THE_PAPER
        if (task, benchmark) not in there
    ]
    show_table(f"Card of {facts['title']}", rows, ["", "value"])
    if left_out:
        names = ", ".join(map(str, left_out[:SHOWN_PATHS])) + (", ..." if len(left_out) > SHOWN_PATHS else "")
        say(f"Left out: {len(left_out):,} results that were measured with other weights: {names}")


def _read_part(folder: Path, name: str, shape: Mapping[str, Any]) -> Any:
    """Return the content of a JSON file of a folder, or `None` if there is none."""
    path = find_file(folder, name)
    if path is None:
        return None
    content = read_json(path)
    check_shape(folder / name, content, shape)
    return content


def _read_options(run: Path) -> dict[str, Any] | None:
    """Return the options that `biomedclip train` has written into the folder of a run."""
    path = find_file(run, WRITTEN_RECIPE)
    if path is None:
        return None
    options = read_yaml(path)
    check_shape(run / WRITTEN_RECIPE, options, {str: object})
    if "base" in options:
        raise ValueError(f"{run / WRITTEN_RECIPE} builds on another recipe, which biomedclip train never writes.")
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{run / WRITTEN_RECIPE} holds a value that JSON does not have ({error}).") from error
    return {name: value for name, value in options.items() if value is not None}


def _tower(config: Any) -> dict[str, int]:
    return {
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "feed_forward": config.intermediate_size,
    }


def _count(model: Any, *prefixes: str) -> int:
    return sum(tensor.numel() for name, tensor in model.named_parameters() if name.startswith(prefixes))
