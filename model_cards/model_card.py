"""Fills the card of a model from its configuration, its training, and what was measured."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from .escaping import Markdown, code, code_block, markdown, one_line, table, table_rows
from .fill import percent, public_name, template
from .results import Measure, chances, measures, reasons, selection_of


PUBLISHED = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
# Stands in a card for what nobody said. It is for the author to fill, and nothing is pushed with it.
NOT_STATED = "Not stated"
NOT_MEASURED = "not measured"
UNDEFINED = "undefined"
NAMED = 5  # damaged images and leaks that the card names; results.json names all

# Tasks by the name that results.json has: in words, and as the Hub's metadata have them.
TASKS = {
    "retrieval": ("Retrieval", "image-text-retrieval"),
    "zero-shot": ("Zero-shot classification", "zero-shot-image-classification"),
    "linear-probe": ("Linear probe", "image-classification"),
    "visual-question-answering": ("Visual question answering", "visual-question-answering"),
}
BENCHMARKS = {
    "pmc15m": "pairs as PMC-15M's",
    "pcam": "PCam",
    "lc25000_lung": "LC25000 lung",
    "lc25000_colon": "LC25000 colon",
    "tcga_til": "TCGA-TIL",
    "rsna": "RSNA pneumonia",
    "vqa_rad": "VQA-RAD",
    "slake": "SLAKE",
    "medmnist": "MedMNIST",
    "imagefolder": "a folder of images",
}
# What the paper measured (arXiv 2303.00915, sections 4 and 5): what is not measured here is told.
OF_THE_PAPER = [
    ("retrieval", "pmc15m"),
    *(("zero-shot", name) for name in ("pcam", "lc25000_lung", "lc25000_colon", "tcga_til", "rsna")),
    *(("linear-probe", name) for name in ("pcam", "rsna")),
    *(("visual-question-answering", name) for name in ("vqa_rad", "slake")),
]
# Numbers of `train_results.json` that a card states, in words.
COSTS = (
    ("steps", "steps"),
    ("samples", "pairs seen"),
    ("batch_size", "pairs of a step"),
    ("processes", "processes"),
    ("loss", "mean loss"),
    ("seconds", "seconds"),
    ("peak_memory_mib", "peak memory of a process, MiB"),
    ("peak_device_memory_mib", "peak memory of a device, MiB"),
    ("substituted_rows", "rows that could not be decoded, and were replaced"),
)
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_METRIC_TYPES = {"auroc": "roc_auc"}  # names of `evaluate`'s modules, where they differ from ours

_TEN_LINES = """\
```python
import biomedclip  # of the package biomedclip; or trust_remote_code=True in the two calls below
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained("NAME_OF_MODEL"), AutoProcessor.from_pretrained("NAME_OF_MODEL")
labels = ["brain MRI", "chest X-ray", "pie chart"]
prompts = [f"this is a photo of {label}" for label in labels]
with torch.no_grad():
    outputs = model(**processor(text=prompts, images=Image.open("figure.png"), return_tensors="pt"))
print(dict(zip(labels, outputs.logits_per_image.softmax(-1)[0].tolist())))
```"""
_OPEN_CLIP_LINES = """\
```python
import open_clip

model, preprocess = open_clip.create_model_from_pretrained("NAME_OF_MODEL")
tokenizer = open_clip.get_tokenizer("NAME_OF_MODEL")
```"""


def fill_model_card(facts: Mapping[str, Any]) -> str:
    """The card of a model.

    Args:
        facts: What `biomedclip card` gathers: `title`, `name` (its repository), `model` (of the configuration),
            `license`, `conversion`, `training`, `dataset`, `results`, `open_clip` (whether its repository has the model
            for open_clip too), `versions`, and `paper`, the published values by task and benchmark. None stands for
            what is not known, and the card says so.

    Returns:
        Markdown with the metadata block that the Hub reads.
    """
    model, conversion = facts["model"], facts["conversion"]
    published = conversion is not None and conversion["source"] == PUBLISHED
    verified = conversion and conversion["verification"]
    return template("model_card.md").substitute(
        metadata=_metadata(facts),
        title=markdown(facts["title"]),
        origin=_origin(facts),
        usage=_usage(facts),
        text_kind=markdown(model["text_tower"].get("kind", "BERT")),
        context=model["context_length"],
        architecture=table_rows(_architecture(model)),
        data=_data(facts, published),
        recipe=_recipe(facts["training"], published),
        results=_results(facts["results"], facts["paper"]),
        verification=_verification(verified) if verified else "Not checked: `biomedclip convert --verify` does it.",
        environment=_environment(facts),
        license_note=_license_note(facts["license"], conversion),
    )


def _metadata(facts: Mapping[str, Any]) -> str:
    entries = [entry for result in facts["results"] for entry in _eval_results(result)]
    license = one_line(facts["license"] or "unknown")
    data = ModelCardData(
        language=["en"],
        license=license,
        license_name="other-terms" if license == "other" else None,
        license_link="#license" if license == "other" else None,
        library_name=facts["model"]["layout"],
        pipeline_tag="zero-shot-image-classification",
        datasets=[facts["dataset"]["id"]] if _HUB_ID.fullmatch((facts["dataset"] or {}).get("id") or "") else None,
        tags=["biomedclip", "clip", "biology", "medical", *(["open_clip"] if facts["open_clip"] else [])],
        **({"model_name": one_line(facts["title"]), "eval_results": entries} if entries else {}),
    )
    return data.to_yaml()


def _eval_results(result: Mapping[str, Any]) -> list[EvalResult]:
    """The entries of the Hub's `model-index` that a result gives."""
    words, task_type = TASKS.get(result["task"], (result["task"], result["task"]))
    return [
        EvalResult(
            task_type=one_line(task_type),
            task_name=one_line(words),
            dataset_type=one_line(result["benchmark"] or "own"),
            # The Hub shows no more than this: a number on twenty rows must not pass for one on the whole benchmark.
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


def _origin(facts: Mapping[str, Any]) -> str:
    conversion = facts["conversion"]
    text = f"Its weights have the fingerprint {code(facts['model']['weights'])}."
    if conversion is not None:
        return (
            f"Converted by biomedclip {markdown(conversion['versions']['biomedclip'])} from "
            f"{code(public_name(conversion['source']))} to the layout of {markdown(conversion['layout'])}. No weight "
            f"was changed. {text}"
        )
    if facts["training"] is not None:
        version = markdown(facts["training"]["results"]["versions"]["biomedclip"])
        return f"Trained with biomedclip {version}. {text}"
    return text


def _usage(facts: Mapping[str, Any]) -> str:
    name = re.sub(r"[^\w./-]", "_", facts["name"])  # it stands in code
    if facts["model"]["layout"] == "open_clip":
        return _OPEN_CLIP_LINES.replace("NAME_OF_MODEL", "local-dir:path/of/this/folder")
    text = _TEN_LINES.replace("NAME_OF_MODEL", name)
    if facts["open_clip"]:
        text += "\n\nThe same model for open_clip, out of the same repository:\n\n"
        text += _OPEN_CLIP_LINES.replace("NAME_OF_MODEL", f"hf-hub:{name}")
    return text


def _architecture(model: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    rows = [
        ("parameters", model["parameters"]),
        ("of the image tower", model["image_parameters"]),
        ("of the text tower", model["text_parameters"]),
    ]
    for name, tower in (("image", model["image_tower"]), ("text", model["text_tower"])):
        rows.append(
            (
                f"{name} tower",
                f"{tower['layers']} layers of width {tower['width']:,}, {tower['heads']} heads, feed-forward "
                f"{tower['feed_forward']:,}, {tower['input']}",
            )
        )
    return [
        *rows,
        ("embeddings", f"{model['embedding']} dimensions, of length 1"),
        (Markdown("`logit_scale`"), f"{model['logit_scale']:.4f}"),
        ("precision of the weights", model["dtype"]),
    ]


def _data(facts: Mapping[str, Any], published: bool) -> str:
    report = facts["dataset"]
    if report is None:
        if published:
            return (
                "PMC-15M: 15,282,336 pairs of a figure and its caption out of PubMed Central's open access subset of "
                "15 June 2022, 13.9 million of them for training. The pairs were never published; the licences are "
                "those of the articles, which the authors' pipeline did not keep."
            )
        return f"{NOT_STATED}: `biomedclip card --dataset` reads it from what `biomedclip build` left."
    pairs, train = report["pairs"], report["splits"]["train"]["pairs"]
    source = (
        "Drawn by a program to try the software on: no article, picture or licence in it is real."
        if report["synthetic"]
        else f"Figures and captions of PubMed Central (source {code(public_name(report['source']))}, inventory "
        f"{markdown(report['inventory_date'] or 'none in the source')}), built on {markdown(report['built'])} with "
        f"biomedclip {markdown(report['versions']['biomedclip'])}."
    )
    named = f" Data set: {_dataset_link(report['id'])}." if report.get("id") else ""
    rows = [
        (code, count, percent(count / pairs)) for code, count in sorted(report["licenses"].items(), key=lambda x: -x[1])
    ]
    return (
        f"{source}{named} {pairs:,} pairs of {report['articles']['kept']:,} articles, split by article; {train:,} of "
        f"them are for training.\n\n"
        f"{table(['licence of the article', 'pairs', 'share'], rows)}\n\n"
        "The figures and captions stay under the licences of their articles."
    )


def _recipe(training: Mapping[str, Any] | None, published: bool) -> str:
    if training is None:
        if published:
            return (
                "That of the paper, section 3: AdamW, learning rate 5e-4, 2,000 steps of warm-up, cosine to 0, 32 "
                "epochs, batches of 4,096 pairs, 256 tokens, image tower from ImageNet, text tower from PubMedBERT."
            )
        return f"{NOT_STATED}: `biomedclip card --train-run` reads it from what `biomedclip train` left."
    results, recipe = training["results"], training["recipe"]
    rows = [(words, _figure(results[name])) for name, words in COSTS if results.get(name) is not None]
    rows += [
        (f"{name}, at the last evaluation in training", _figure(value)) for name, value in training["last"].items()
    ]
    text = table(["", ""], rows)
    if recipe is None:
        return f"{text}\n\n{NOT_STATED}: the options. The run has no `recipe.yaml`, which `biomedclip train` writes."
    written = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=100).strip()
    return (
        f"{text}\n\nThe options that are not the defaults, a recipe for `biomedclip train --config`:\n\n"
        f"{code_block(written, 'yaml')}"
    )


def _results(results: Sequence[Mapping[str, Any]], paper: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [row for result in results for row in _measured_rows(result)]
    there = {(result["task"], result["benchmark"]) for result in results}
    for task, benchmark in OF_THE_PAPER:
        if (task, benchmark) not in there:
            published = measures({"metrics": paper[task][benchmark]})
            values = [(_words(value), _number(value.value)) for value in published]
            for metric, value in values or [("all", "see the paper")]:
                rows.append((TASKS[task][0], BENCHMARKS[benchmark], "none", metric, NOT_MEASURED, NOT_MEASURED, value))
    columns = ["task", "benchmark", "rows", "metric", "measured", "95 % interval", "paper"]
    text = f"| {' | '.join(columns)} |\n|---|---|---:|---|---:|---:|---:|\n{table_rows(rows)}\n\n"
    if any(row[4] == UNDEFINED for row in rows):
        text += "A metric is undefined where the data do not hold what it needs; see the notes below.\n\n"
    text += (
        "Values are fractions; ± stands before a standard deviation over draws of the labels. The last column is what "
        "the paper reports for the published BiomedCLIP; its retrieval is among 725,739 test pairs or 13,600 "
        "validation pairs, and among fewer it is easier."
    )
    if not results:
        return f"{text} Nothing was measured here: `biomedclip evaluate` measures it."
    return "\n\n".join([text, *_published(results), *(_how(result) for result in results)])


def _published(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a table of the published values of other models on the benchmarks of the results, if there are any."""
    rows = [
        (
            _task(result),
            benchmark_name(result),
            entry["model"],
            "; ".join(f"{_words(value)}: {_number(value.value)}" for value in measures({"metrics": entry["values"]})),
            entry["source"] + ("; read off a figure" if entry["read_from_figure"] else ""),
        )
        for result in results
        for entry in result.get("published") or []
    ]
    if not rows:
        return []
    return [
        "Published values of models on these benchmarks. They come from the publications named and were not measured "
        "here.",
        table(["task", "benchmark", "model", "published values", "source"], list(dict.fromkeys(rows)), text_columns=5),
    ]


def _measured_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    deviations = {
        measure.path: measure.value
        for measure in measures(result)
        if _is_deviation(measure) and measure.value is not None
    }
    return [
        (
            _task(result),
            f"{benchmark_name(result)}, {result['data']['split']}",
            f"{result['data']['rows']:,}",
            _words(measure),
            _number(measure.value),
            _spread(measure, deviations),
            "not given" if measure.paper is None else _number(measure.paper),
        )
        for measure in measures(result)
        if not _is_deviation(measure)
    ]


def _spread(measure: Measure, deviations: Mapping[tuple[str, ...], float]) -> str:
    """The interval of a measure, or its standard deviation over draws of the labels."""
    if measure.interval:
        return " to ".join(map(_number, measure.interval))
    deviation = deviations.get((*measure.path[:-1], f"{measure.path[-1]}_sd"))
    return "not given" if deviation is None else f"± {_number(deviation)}"


def _is_deviation(measure: Measure) -> bool:
    return measure.path[-1].endswith("_sd")


def _how(result: Mapping[str, Any]) -> str:
    """How a result was measured: command, date, data, what was left out, leaks."""
    data = result["data"]
    took = f", in {result['seconds']:,} s" if isinstance(result.get("seconds"), int | float) else ""
    lines = [
        f"Measured on {markdown(result['date'])}{took}, on {data['rows']:,} rows of the split "
        f"{markdown(data['split'])}; fingerprint of the data {code(data['fingerprint'])}."
    ]
    lines += [f"{markdown(_spaced(name).capitalize())}: {_number(value)}." for name, value in chances(result)]
    lines += [f"{markdown(_spaced(name).capitalize())} is undefined: {markdown(why)}." for name, why in reasons(result)]
    lines += [_damaged(data.get("damaged")), _leaks(data.get("leaks"))]
    lines += [markdown(note) for note in data.get("notes") or []]
    if settings := result.get("settings"):
        lines.append(f"Settings: {code(json.dumps(settings, ensure_ascii=False))}")
    if source := result.get("paper_source"):
        lines.append(f"The paper's values: {markdown(source)}.")
    lines.append(f"With {_versions(result['versions'])}")
    command = code_block(one_line(public_command(result["command"])), "bash")
    bullets = "\n".join(f"- {line}" for line in lines)
    return f"### {markdown(_task(result))}, {markdown(benchmark_name(result))}\n\n{command}\n\n{bullets}"


def _damaged(damaged: Sequence[Mapping[str, Any]] | None) -> str:
    if damaged is None:
        return "Damaged images: not counted."
    if not damaged:
        return "Damaged images: none."
    named = [f"{code(row['name'])} ({markdown(row['reason'])})" for row in damaged[:NAMED]]
    return f"**Damaged images, left out: {len(damaged):,}**: {_and_more(named, len(damaged))}."


def _leaks(leaks: Mapping[str, Any] | None) -> str:
    """What two splits share, by the headings that `find_leaks` has."""
    if leaks is None:
        return "Leaks between training and test: not looked for."
    counts = {name: value for name, value in leaks.items() if name.startswith("same_") and value is not None}
    found = markdown(", ".join(f"{_spaced(name)} {_figure(count)}" for name, count in counts.items()))
    if not any(counts.values()):
        return f"Leaks between training and test: none ({found})."
    return (
        f"**Leaks: {leaks['leaked']:,} of {leaks['test_images']:,} test images are among those of training, or "
        f"nearly**: {found}."
    )


def _verification(verified: Mapping[str, Any]) -> str:
    rows = [(name, f"{difference:.2g}") for name, difference in verified["largest_difference"].items()]
    return (
        f"The same {verified['images']} images and {verified['labels']} labels through both, in float32 on a CPU; the "
        f"best label is the same for {verified['same_best_label']}.\n\n"
        f"{table(['stage', 'largest difference'], rows)}"
        + ("\n\nThe text tower's heads and epsilon were taken as usual." if verified["bert_assumed"] else "")
    )


def _environment(facts: Mapping[str, Any]) -> str:
    lines = [f"This card: {_versions(facts['versions'])}"]
    if facts["training"] is not None:
        lines.insert(0, f"Training: {_versions(facts['training']['results']['versions'])}")
    return "\n".join(f"- {line}" for line in lines)


def _license_note(license: str | None, conversion: Mapping[str, Any] | None) -> str:
    if license is None:
        return f"{NOT_STATED}: `biomedclip card --license` states it."
    if conversion is None:
        return f"Weights: {markdown(license)}. The data have licences of their own: see there."
    if conversion["source"] == PUBLISHED:
        return "MIT, as the published weights."
    return f"Weights: {markdown(license)}, that of {code(public_name(conversion['source']))}, which see."


def public_command(command: str) -> str:
    """A command as it can be published: of paths on the machine only their last part."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    return shlex.join(public_name(word) for word in words)


def public_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result as it can be published: of paths on the machine only their last part."""
    model, data = dict(result["model"]), dict(result["data"])
    for part, name in ((model, "name"), (data, "path")):
        if isinstance(part.get(name), str):
            part[name] = public_name(part[name])
    return {**result, "command": public_command(result["command"]), "model": model, "data": data}


def _task(result: Mapping[str, Any]) -> str:
    return TASKS[result["task"]][0] if result["task"] in TASKS else result["task"]


def benchmark_name(result: Mapping[str, Any]) -> str:
    """Return the name of the benchmark of a result. For the user's own data, it is the last part of the path."""
    path = public_name(str(result["data"].get("path") or ""))
    if result["benchmark"] is None:
        return path or "a set of one's own"
    if result["benchmark"] == "medmnist" and path.endswith(".npz"):
        return f"{BENCHMARKS['medmnist']}, {path.split('/')[-1].removesuffix('.npz')}"
    return (BENCHMARKS.get(result["benchmark"]) or result["benchmark"]) + selection_of(result)


def _words(measure: Measure) -> str:
    if measure.path[0] == "by_fraction" and len(measure.path) == 3:
        _, fraction, name = measure.path
        return f"{_spaced(name)}, {100 * float(fraction):g} % of the labels"
    return ", ".join(map(_spaced, measure.path))


def _spaced(name: str) -> str:
    return re.sub(r"\bf1$", "token F1", name.replace("_", " ").replace("auroc", "AUROC"))


def _dataset_link(repo_id: str) -> Markdown:
    """Return a link to a data set on the Hub; of what is no id of the Hub, its text."""
    if not _HUB_ID.fullmatch(repo_id):
        return code(repo_id)
    return Markdown(f"[{markdown(repo_id)}](https://huggingface.co/datasets/{repo_id})")


def _versions(versions: Mapping[str, Any]) -> str:
    return markdown(", ".join(f"{name} {version}" for name, version in versions.items())) + "."


def _number(value: float | None) -> str:
    """Return a measure with four places, or one where it is no fraction, or that it is undefined."""
    if value is None:
        return UNDEFINED
    return f"{value:.4f}" if value <= 1 else f"{value:,.1f}"


def _figure(value: float) -> str:
    """A figure of a training: four digits, and all of a whole number."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _and_more(named: Sequence[str], count: int) -> str:
    return ", ".join(named) + (f", and {count - len(named):,} more" if count > len(named) else "")
