"""Fill a model card from the configuration, the training and the evaluation results of a model."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from .escaping import Markdown, code, code_block, markdown, one_line
from .formatting import public_name, render
from .results import Measure, chances, measures, reasons, selection_of


PUBLISHED = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
# Marks a missing fact in the card. A card with a missing fact is not published.
NOT_STATED = "Not stated"
NOT_MEASURED = "not measured"
UNDEFINED = "undefined"
NAMED = 5  # number of damaged images that the card lists; results.json lists all

# Name of each task in the card, and in the metadata of the Hub.
TASKS = {
    "retrieval": ("Retrieval", "image-text-retrieval"),
    "zero-shot": ("Zero-shot classification", "zero-shot-image-classification"),
    "linear-probe": ("Linear probe", "image-classification"),
    "few-shot": ("Few-shot classification", "image-classification"),
    "image-classification": ("Image classification", "image-classification"),
    "visual-question-answering": ("Visual question answering", "visual-question-answering"),
}
BENCHMARKS = {
    "pmc15m": "PMC-15M pairs",
    "pcam": "PCam",
    "lc25000_lung": "LC25000 lung",
    "lc25000_colon": "LC25000 colon",
    "tcga_til": "TCGA-TIL",
    "rsna": "RSNA pneumonia",
    "vqa_rad": "VQA-RAD",
    "slake": "SLAKE",
    "medmnist": "MedMNIST",
    "btmri": "BTMRI",
    "busi": "BUSI",
    "chmnist": "CHMNIST",
    "covid_qu_ex": "COVID-QU-Ex",
    "ctkidney": "CTKidney",
    "dermamnist": "DermaMNIST",
    "kneexray": "KneeXray",
    "kvasir": "Kvasir",
    "lungcolon": "LungColon",
    "octmnist": "OCTMNIST",
    "retina": "RETINA",
    "imagefolder": "a folder of images",
}
# The measurements of the paper (arXiv 2303.00915, sections 4 and 5). The card lists those that are missing.
OF_THE_PAPER = [
    ("retrieval", "pmc15m"),
    *(("zero-shot", name) for name in ("pcam", "lc25000_lung", "lc25000_colon", "tcga_til", "rsna")),
    *(("linear-probe", name) for name in ("pcam", "rsna")),
    *(("visual-question-answering", name) for name in ("vqa_rad", "slake")),
]
# Numbers in `train_results.json` that a card states, and their names in the card.
COSTS = (
    ("steps", "steps"),
    ("samples", "pairs seen"),
    ("batch_size", "pairs per step"),
    ("processes", "processes"),
    ("loss", "mean loss"),
    ("seconds", "seconds"),
    ("peak_memory_mib", "peak memory of a process, MiB"),
    ("peak_device_memory_mib", "peak memory of a device, MiB"),
    ("substituted_rows", "rows that could not be decoded and were replaced"),
)
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_METRIC_TYPES = {"auroc": "roc_auc"}  # names on the Hub that differ from ours


def fill_model_card(facts: Mapping[str, Any]) -> str:
    """Fill a model card from the facts of `card_facts`. Return Markdown with the metadata for the Hub.

    If a fact is None, the card states that it is missing.
    """
    training, dataset, results = facts["training"], facts["dataset"], facts["results"]
    recipe = training and training["recipe"]
    return render(
        "model_card.md",
        **facts,
        metadata=Markdown(_metadata(facts)),
        code_name=Markdown(re.sub(r"[^\w./-]", "_", facts["name"])),
        published=facts["conversion"] is not None and facts["conversion"]["source"] == PUBLISHED,
        not_stated=Markdown(NOT_STATED),
        dataset_link=_dataset_link(dataset["id"]) if dataset and dataset.get("id") else None,
        costs=[*_costs(training)] if training else [],
        recipe=recipe and code_block(yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True).strip(), "yaml"),
        rows=[row for result in results for row in measured_rows(result)] + _missing_rows(results, facts["paper"]),
        published_rows=[*dict.fromkeys(row for result in results for row in _published_rows(result))],
        measurements=[_measurement(result) for result in results],
    )


def _metadata(facts: Mapping[str, Any]) -> str:
    results = [entry for result in facts["results"] for entry in eval_results(result)]
    license = one_line(facts["license"] or "unknown")
    data = ModelCardData(
        language=["en"],
        license=license,
        license_name="other-terms" if license == "other" else None,
        license_link="#license" if license == "other" else None,
        library_name=facts["model"]["layout"],
        pipeline_tag="zero-shot-image-classification",
        datasets=[facts["dataset"]["id"]] if is_hub_id((facts["dataset"] or {}).get("id")) else None,
        tags=["biomedclip", "clip", "biology", "medical", *_other_libraries(facts)],
        **({"model_name": one_line(facts["title"]), "eval_results": results} if results else {}),
    )
    return data.to_yaml()


def _other_libraries(facts: Mapping[str, Any]) -> list[str]:
    """Return the libraries, besides transformers, that load the repository."""
    loads = {"open_clip": facts["open_clip"], "sentence-transformers": facts["model"].get("sentence_transformers")}
    return [name for name, is_loaded in loads.items() if is_loaded]


def eval_results(result: Mapping[str, Any]) -> list[EvalResult]:
    """Return the entries of the Hub's `model-index` for a result."""
    words, task_type = TASKS.get(result["task"], (result["task"], result["task"]))
    return [
        EvalResult(
            task_type=one_line(task_type),
            task_name=one_line(words),
            dataset_type=one_line(result["benchmark"] or "own"),
            # The Hub shows only this name, so it states how many rows were used.
            dataset_name=f"{one_line(benchmark_name(result))}, {result['data']['rows']:,} rows",
            dataset_split=one_line(result["data"]["split"]),
            dataset_revision=one_line(result["data"]["fingerprint"]),
            metric_type=one_line(_METRIC_TYPES.get(measure.path[-1], measure.path[-1])),
            metric_name=one_line(_words(measure)),
            metric_value=measure.value,
        )
        for measure in measures(result)
        if "recall_of_class" not in measure.path and not _is_deviation(measure) and measure.value is not None
    ]


def _costs(training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each number of a training run."""
    results = training["results"]
    values = {name: results[key] for key, name in COSTS if results.get(key) is not None}
    values |= {f"{name}, at the last evaluation": value for name, value in training["last"].items()}
    for name, value in values.items():
        yield name, f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def measured_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a result in the results table."""
    found = measures(result)
    deviations = {measure.path: measure.value for measure in found if _is_deviation(measure)}
    for measure in found:
        if _is_deviation(measure):
            continue
        deviation = deviations.get((*measure.path[:-1], f"{measure.path[-1]}_sd"))
        spread = "not given" if deviation is None else f"± {number(deviation)}"
        yield (
            _task(result),
            f"{benchmark_name(result)}, {result['data']['split']}",
            f"{result['data']['rows']:,}",
            _words(measure),
            number(measure.value),
            " to ".join(map(number, measure.interval)) if measure.interval else spread,
            "not given" if measure.paper is None else number(measure.paper),
        )


def _missing_rows(
    results: Sequence[Mapping[str, Any]], paper: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, ...]]:
    """Return the rows of the results table for measurements of the paper that are missing."""
    measured = {(result["task"], result["benchmark"]) for result in results}
    rows = []
    for task, benchmark in OF_THE_PAPER:
        if (task, benchmark) not in measured:
            values = [(_words(value), number(value.value)) for value in measures({"metrics": paper[task][benchmark]})]
            for metric, value in values or [("all", "see the paper")]:
                rows.append((TASKS[task][0], BENCHMARKS[benchmark], "none", metric, *[NOT_MEASURED] * 2, value))
    return rows


def _published_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the rows with published values of other models on the benchmark of a result."""
    for entry in result.get("published") or []:
        values = "; ".join(
            f"{_words(value)}: {number(value.value)}" for value in measures({"metrics": entry["values"]})
        )
        source = entry["source"] + ("; read off a figure" if entry["read_from_figure"] else "")
        yield _task(result), benchmark_name(result), entry["model"], values, source


def _measurement(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the details of a measurement that the card states."""
    data, leaks = result["data"], result["data"].get("leaks")
    names = [name for name in leaks or {} if name.startswith("same_") or name == "similar"]
    counts = {name: leaks[name] for name in names if leaks[name] is not None}
    damaged = data.get("damaged")
    settings = result.get("settings")
    optional = {name: result.get(name) for name in ("seconds", "paper_source")} | {"notes": data.get("notes") or []}
    return optional | {
        "title": f"{_task(result)}, {benchmark_name(result)}",
        "command": code_block(one_line(public_command(result["command"])), "bash"),
        "result": result,
        "chances": [(metric_name(name), number(value)) for name, value in chances(result)],
        "reasons": [(metric_name(name).capitalize(), why) for name, why in reasons(result)],
        "damaged": damaged,
        "named_damaged": [(row["name"], row["reason"]) for row in (damaged or [])[:NAMED]],
        "leaks": leaks,
        "leak_counts": ", ".join(f"{metric_name(name)} {count:,}" for name, count in counts.items()),
        "leaked": any(counts.values()),
        "settings": settings and code(json.dumps(settings, ensure_ascii=False)),
    }


def public_command(command: str) -> str:
    """Return a command that contains only the last part of each local path."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    return shlex.join(public_name(word) for word in words)


def public_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result that contains only the last part of each local path."""
    model, data = dict(result["model"]), dict(result["data"])
    for part, name in ((model, "name"), (data, "path")):
        if isinstance(part.get(name), str):
            part[name] = public_name(part[name])
    return {**result, "command": public_command(result["command"]), "model": model, "data": data}


def benchmark_name(result: Mapping[str, Any]) -> str:
    """Return the benchmark name of a result. For the user's own data, this is the last part of the path."""
    path = public_name(str(result["data"].get("path") or ""))
    if result["benchmark"] is None:
        return path or "own data"
    if result["benchmark"] == "medmnist" and path.endswith(".npz"):
        return f"{BENCHMARKS['medmnist']}, {path.split('/')[-1].removesuffix('.npz')}"
    return (BENCHMARKS.get(result["benchmark"]) or result["benchmark"]) + selection_of(result)


def _task(result: Mapping[str, Any]) -> str:
    return TASKS[result["task"]][0] if result["task"] in TASKS else result["task"]


def _is_deviation(measure: Measure) -> bool:
    return measure.path[-1].endswith("_sd")


def _words(measure: Measure) -> str:
    if measure.path[0] == "by_fraction" and len(measure.path) == 3:
        _, fraction, name = measure.path
        return f"{metric_name(name)}, {100 * float(fraction):g} % of the labels"
    return ", ".join(map(metric_name, measure.path))


def metric_name(name: str) -> str:
    """Return the name of a metric as words."""
    return re.sub(r"\bf1$", "token F1", name.replace("_", " ").replace("auroc", "AUROC"))


def is_hub_id(name: str | None) -> bool:
    """Return whether a name has the form of an id on the Hub, `OWNER/NAME`."""
    return _HUB_ID.fullmatch(name or "") is not None


def _dataset_link(repo_id: str) -> Markdown:
    """Return a link to a dataset on the Hub, or the text if it is not a Hub id."""
    if not is_hub_id(repo_id):
        return code(repo_id)
    return Markdown(f"[{markdown(repo_id)}](https://huggingface.co/datasets/{repo_id})")


def number(value: float | None) -> str:
    """Return a metric with four digits, a rank with one, and None as undefined."""
    if value is None:
        return UNDEFINED
    return f"{value:.4f}" if value <= 1 else f"{value:,.1f}"
