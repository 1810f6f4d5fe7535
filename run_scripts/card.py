"""Write the card of a model or a classifier from its training, its dataset and its evaluation results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biomedclip.conversion import load_any_layout
from biomedclip.conversion.files import OPEN_CLIP_CONFIG, is_transformers_layout
from biomedclip.model_cards.classifier_card import fill_classifier_card
from biomedclip.model_cards.formatting import PLACEHOLDER
from biomedclip.model_cards.model_card import BENCHMARKS, NOT_MEASURED, OF_THE_PAPER, benchmark_name, fill_model_card
from biomedclip.model_cards.results import measures
from biomedclip.source_checks import ADAPTER_CONFIG

from .cli.errors import UsageError
from .cli.fields import REQUIRED, option
from .cli.options import parse_options
from .cli.reporting import UNDEFINED, say, show_table, write_json, write_text
from .hub.card_facts import (
    CARD,
    CARD_FACTS,
    card_facts,
    describe_model,
    read_conversion,
    read_dataset,
    read_training,
    select_results,
)
from .hub.classifier_facts import classifier_facts, is_classifier, show_classifier


EXAMPLE = """biomedclip card out/model --train-run out/training --dataset out \\
      --results results --license apache-2.0"""
_CONFIGS = ("config.json", OPEN_CLIP_CONFIG, ADAPTER_CONFIG)


@dataclass
class CardOptions:
    """Options of `biomedclip card`."""

    model: str = option(REQUIRED, "Folder of a model or a classifier. Can be the first positional argument.")
    results: list[str] = option([], "results.json files of biomedclip evaluate, or folders that contain them.")
    train_run: str | None = option(None, "Output folder of biomedclip train (default: the model folder).")
    dataset: str | None = option(
        None, "Training data: output folder of biomedclip build, or an id on the Hub (classifiers: only an id)."
    )
    base_model: str | None = option(
        None, "Classifiers: id of the base model on the Hub (default: that of the training). Few-shot heads need it."
    )
    subgroups: list[str] = option(
        [], "Classifiers: columns of --subgroup-column whose values and metrics are published (default: none)."
    )
    license: str | None = option(None, "License of the weights, by its name on the Hub, such as apache-2.0.")
    title: str | None = option(None, "Title of the card (default: BiomedCLIP, or the number of classes).")
    name: str = option(PLACEHOLDER, "Repository in the code examples (default: set by biomedclip push).")
    output: str | None = option(None, "Folder for README.md and card.json (default: the model folder).")


def main(arguments: Sequence[str]) -> None:
    """Run `biomedclip card`."""
    (options,) = parse_options(
        "card", [CardOptions], arguments, description=str(__doc__), example=EXAMPLE, positionals=["model"]
    )
    facts, left_out = write_card(options)
    (show_classifier if facts.get("classifier") else show_facts)(facts, left_out)
    say(f"Card: {Path(options.output or options.model) / CARD}, with its facts in {CARD_FACTS}")


def write_card(options: CardOptions) -> tuple[dict[str, Any], list[Path]]:
    """Write the card of a model and its facts. Return them, and the files with results of other weights."""
    folder = Path(options.model)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"--model {folder} is not a folder. The card of a model on the Hub is in its repository."
        )
    if not any((folder / name).is_file() for name in _CONFIGS):
        raise FileNotFoundError(f"--model {folder} contains no model: it has none of {', '.join(_CONFIGS)}.")
    if is_classifier(folder):
        facts, left_out = classifier_facts(
            folder,
            train_run=options.train_run,
            results=options.results,
            license=options.license,
            base_model=options.base_model,
            dataset=options.dataset,
            subgroups=options.subgroups,
            title=options.title,
            name=options.name,
        )
        return _write(options, fill_classifier_card(facts), facts), left_out
    for name in ("base_model", "subgroups"):
        if getattr(options, name):
            given = f"--{name.replace('_', '-')}"
            raise UsageError(f"{given} has no effect on {folder}, which is not a classifier. Omit it.")
    described = describe_model(*load_any_layout(folder))
    described["layout"] = "transformers" if is_transformers_layout(folder) else "open_clip"
    described["sentence_transformers"] = (folder / "modules.json").is_file()
    training = read_training(folder, options.train_run)
    results, left_out = select_results(described["weights"], options.results)
    facts = card_facts(
        described,
        conversion=read_conversion(folder),
        training=training,
        dataset=read_dataset(options.dataset, training) if options.dataset else None,
        results=results,
        license=options.license,
        title=options.title,
        name=options.name,
    )
    return _write(options, fill_model_card(facts), facts), left_out


def _write(options: CardOptions, card: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Write a card and its facts, and return the facts."""
    output = Path(options.output or options.model)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / CARD, card)
    write_json(output / CARD_FACTS, facts)
    return facts


def show_facts(facts: Mapping[str, Any], left_out: Sequence[Path]) -> None:
    """Print the facts of a card, the paper's benchmarks that were not measured, and the excluded results."""
    training, dataset = facts["training"], facts["dataset"]
    rows: list[tuple[Any, ...]] = [
        ("parameters", facts["model"]["parameters"]),
        ("weights", facts["model"]["weights"]),
        ("license", facts["license"] or "not stated"),
        ("training run", f"{training['results']['steps']:,} steps" if training else "not stated"),
        ("training data", f"{dataset['splits']['train']['pairs']:,} pairs" if dataset else "not stated"),
    ]
    for result in facts["results"]:
        first = measures(result)[0]
        name = f"{result['task']}, {benchmark_name(result)}: {' '.join(first.path)}"
        rows.append((name, UNDEFINED if first.value is None else first.value))
    measured = {(result["task"], result["benchmark"]) for result in facts["results"]}
    rows += [
        (f"{task}, {BENCHMARKS[name]}", NOT_MEASURED) for task, name in OF_THE_PAPER if (task, name) not in measured
    ]
    show_table(f"Card of {facts['title']}", rows, ["", "value"])
    if left_out:
        say(f"Left out: {len(left_out):,} results of other weights, such as {left_out[0]}")
