"""Options of `biomedclip evaluate`, and checks of them."""

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biomedclip.few_shot_head import METHODS
from biomedclip.processing.benchmarks import benchmark_names
from biomedclip.processing.benchmarks.loading import benchmark_options
from biomedclip.processing.benchmarks.rsna import RSNA_SPLITS

from ..cli.devices import DEVICE_HELP
from ..cli.errors import UsageError, usage_errors
from ..cli.fields import REQUIRED, WORKERS, image_root_option, option, split_column_option, trust_option
from ..cli.finding_fields import (
    blank_option,
    check_finding_columns,
    label_columns_option,
    label_separator_option,
    uncertain_option,
)
from ..panel_rows.detectors import DETECTOR_HELP
from .decision_options import DecisionOptions, check_decisions, given_decisions
from .few_shot.options import SHOTS, check_few_shot_options
from .findings.zero_shot import IGNORED
from .linear_probe import FRACTIONS, PROBE_DRAWS, PROTOCOLS
from .panels import PANELS, check_panel_options
from .pools import DRAWS
from .robustness import ALL, chosen_corruptions
from .visual_question_answering import WORDS
from .zero_shot import OWN_IMAGES, given_benchmark_options


SUITE = "suite"
ALIASES = {"vqa": "visual-question-answering"}
_LEAST = {"batch_size": 1, "workers": 1, "draws": 1, "max_length": 1, "pool_size": 2, "pool_draws": 1}
_LEAST |= {"seed": 0, "examples": 0}
# Options that `--help` of a task lists, by group.
GROUPS = {
    "common": "model task output_dir data benchmark split precision batch_size workers max_length device "
    "examples features_dir seed trust_remote_code",
    "retrieval": "image_id pool_size pool_draws",
    "zero-shot and few-shot": "prompts templates",
    "own data": "image_column text_column label_column image_root group_column split_column validation_fraction",
    "robustness": "corruptions prompt_sensitivity",
    "several findings": "label_columns label_separator uncertain blank",
    "labeled images": "cancer rsna_split find_leaks",
    "linear-probe and few-shot": "draws",
    "linear-probe": "protocol fractions probe_features",
    "few-shot": "shots methods base_to_novel",
    "reports": "report subgroup_column",
    "calibration and decisions": "calibrate sensitivity specificity coverage",
    "visual-question-answering": "image_folder f1_tokenizer",
    "panels": "images detector",
    "suite": "data_root tasks benchmarks",
}
_LABELED = ["zero-shot", "linear-probe", "few-shot", "image-classification"]
_SINGLE = ["retrieval", *_LABELED, "visual-question-answering"]
# The tasks that have an option. All tasks have the options that are not listed.
_TASKS = {
    "data": [*_SINGLE, PANELS],
    "benchmark split": _SINGLE,
    "workers": ["retrieval", *_LABELED, PANELS, SUITE],
    "precision features_dir": ["retrieval", *_LABELED, SUITE],
    "max_length": ["retrieval", "zero-shot", "few-shot", "visual-question-answering", SUITE],
    "examples": ["retrieval", "visual-question-answering", SUITE],
    "image_id pool_size pool_draws": ["retrieval", SUITE],
    "cancer rsna_split": [*_LABELED, SUITE],
    "image_column image_root group_column": ["retrieval", *_LABELED],
    "label_column split_column": _LABELED,
    "label_columns label_separator uncertain blank": ["zero-shot", "linear-probe", "image-classification"],
    "report": [*_SINGLE, PANELS],
    "subgroup_column": ["zero-shot", "linear-probe", "image-classification"],
    "calibrate sensitivity specificity coverage": ["zero-shot", "linear-probe", "image-classification"],
    "text_column validation_fraction": ["retrieval"],
    "corruptions": [*_LABELED, SUITE],
    "prompt_sensitivity": ["zero-shot"],
    "prompts templates": ["zero-shot", "few-shot"],
    "draws": ["linear-probe", "few-shot", SUITE],
    "find_leaks": ["linear-probe", "few-shot", "image-classification", SUITE],
    "protocol fractions probe_features": ["linear-probe", SUITE],
    "shots methods base_to_novel": ["few-shot"],
    "trust_remote_code": [*(task for task in _SINGLE if task != "image-classification"), PANELS, SUITE],
    "f1_tokenizer": ["visual-question-answering", SUITE],
    "image_folder": ["visual-question-answering"],
    "images detector": [PANELS],
    "data_root tasks benchmarks": [SUITE],
}


@dataclass(kw_only=True)
class AllOptions(DecisionOptions):
    """The options of all tasks, for `biomedclip evaluate --help`."""

    model: list[str] = option(
        REQUIRED,
        "Folder or Hub id of a dual encoder (BiomedCLIP, CLIP, SigLIP, ...), an adapter, an open_clip folder, biovil, "
        "biovil-t, or (image-classification) a fine-tuned classifier. The results of several models are compared.",
    )
    output_dir: str = option(REQUIRED, "Folder for the results. With several models, each has a subfolder.")
    task: str = option(
        "retrieval",
        "retrieval, zero-shot, linear-probe, few-shot, image-classification, visual-question-answering (or vqa), "
        "panels or suite.",
    )
    batch_size: int = option(32, "Batch size (default: 32).")
    seed: int = option(0, "Seed of the bootstrap, draws and splits (default: 0).")
    trust_remote_code: bool = trust_option()
    data: str = option(
        "",
        "Files of the benchmark, a folder that biomedclip build wrote, own pairs (a CSV, JSON Lines or Parquet "
        "file, images with a metadata.csv, a dataset or a Hub id), labeled images (class folders, or all forms "
        "of own pairs with labels, or a built dataset with a labels.csv), or a table of annotated panels.",
    )
    benchmark: str | None = option(
        None, "Format of --data, such as pcam or rsna, with its prompts and published values."
    )
    split: str = option("test", "Split to evaluate (default: test).")
    workers: int = option(WORKERS, f"Number of threads that read images (default: 4, or fewer cores; here {WORKERS}).")
    precision: str = option(
        "float32",
        "Precision of the towers, also as fp32 or bf16 (default: float32). Similarities are float32.",
        choices=["float32", "bfloat16"],
    )
    device: str = option("auto", DEVICE_HELP)
    features_dir: str | None = option(None, "Folder to cache embeddings in (default: OUTPUT_DIR/features).")
    max_length: int | None = option(None, "Maximum number of tokens in a text (default: the tokenizer's limit).")
    examples: int = option(
        0,
        "Retrieval and visual-question-answering: number of pairs or questions to plot in "
        "OUTPUT_DIR/examples, with the best candidates or answers (default: 0).",
    )
    image_id: str | None = option(None, "Column that identifies the image, such as image_md5 (default: none).")
    pool_size: int | None = option(
        None,
        "Number of pairs in a pool drawn from the split with --seed (default: all). "
        "The paper uses 725739 for test and 13600 for validation.",
    )
    pool_draws: int | None = option(
        None, f"Number of pools to average (default: {DRAWS}, or 1 if a pool is the whole split)."
    )
    cancer: str | None = option(None, "tcga_til: study (luad, brca, ...) or all (default: luad, as in the paper).")
    rsna_split: str | None = option(
        None,
        "rsna: paper-test has 9,069 test patients, paper-fractions 70/15/15 %% (default: paper-test).",
        choices=RSNA_SPLITS,
    )
    image_column: str | None = option(None, "Column of the images or their paths in own data (default: image).")
    text_column: str | None = option(None, "Retrieval: column of the texts in own pairs (default: caption).")
    image_root: str | None = image_root_option()
    group_column: str | None = option(
        None, "Column of the patient or source in own data. Intervals and held-out splits use whole groups."
    )
    split_column: str | None = split_column_option()
    validation_fraction: float | None = option(
        None, "Retrieval: fraction that biomedclip train held out from own pairs (default: 0.1)."
    )
    label_column: str | None = option(None, "Label column of a table, labels.csv or dataset (default: label).")
    corruptions: list[str] = option(
        [], "Measure on corrupted images too, such as noise blur (default: none; all without a value)."
    )
    prompt_sensitivity: bool = option(False, "Measure paraphrased prompts too (default: no).")
    label_columns: list[str] = label_columns_option()
    label_separator: str | None = label_separator_option()
    uncertain: str | None = uncertain_option()
    blank: str | None = blank_option()
    prompts: str | None = option(
        None,
        "Prompts of the benchmark (default: paper; lc25000_lung: rerun; rsna: biovil; several findings: chexzero), or "
        "a YAML file with templates or class_names.",
    )
    templates: list[str] = option([], "Prompts with {} for the class name (default: the benchmark's).")
    protocol: str = option(
        "logistic",
        "Logistic regression, or SGD with ELEVATER's search (default: logistic).",
        choices=PROTOCOLS,
    )
    fractions: list[float] = option(list(FRACTIONS), "Fractions of the training labels (default: 0.01 0.1 1).")
    draws: int | None = option(
        None, f"Number of draws of each fraction below 1, or number of shots (default: {PROBE_DRAWS})."
    )
    shots: list[int] = option(list(SHOTS), "Numbers of training images of a class (default: 1 2 4 8 16).")
    methods: list[str] = option(list(METHODS), f"Methods to compare (default: {' '.join(METHODS)}).")
    base_to_novel: bool = option(
        False, "Train on the first half of the classes, and also measure the accuracy on the other half."
    )
    probe_features: str = option(
        "embeds",
        "Image embeddings, or hidden states before the projection (default: embeds).",
        choices=["embeds", "hidden"],
    )
    find_leaks: bool = option(
        True,
        "Check for test images among training images, and among validation images that decisions use. few-shot refuses "
        "copies of drawn images.",
    )
    f1_tokenizer: str = option(
        WORDS,
        "Tokenizer of the token F1: words (default, as in SQuAD), or a folder or "
        "Hub id, such as openai-community/gpt2 as in the paper.",
    )
    image_folder: str | None = option(None, "vqa_rad, slake: folder of the images (default: next to the questions).")
    images: str | None = option(None, "panels: folder of the figures (default: none, only captions are evaluated).")
    detector: str | None = option(None, f"panels: {DETECTOR_HELP[0].lower()}{DETECTOR_HELP[1:]}")
    data_root: str = option("", "Folder that contains the folders of the benchmarks, such as pcam and lc25000.")
    tasks: list[str] = option([], "Tasks to run (default: all).")
    benchmarks: list[str] = option([], "Benchmarks to run (default: all that are found).")


_TYPE_MODEL = option(
    [], "Folder or Hub id of a dual encoder that tells image types by prompts (default: the detector)."
)


def _options_of(task: str) -> Any:
    """Return a dataclass with the options that a task has. The task `panels` needs no model."""
    others = {name for names, tasks in _TASKS.items() if task not in tasks for name in names.split()}
    known = [option for option in dataclasses.fields(AllOptions) if option.name not in others]
    fields = {option.name: option for option in known} | ({"model": _TYPE_MODEL} if task == PANELS else {})
    types = {option.name: option.type for option in known}
    return dataclasses.make_dataclass("TaskOptions", [(name, types[name], fields[name]) for name in types])


OPTIONS = {task: _options_of(task) for task in (*_SINGLE, PANELS, SUITE)}


def help_groups(task: str | None) -> dict[str, str]:
    """Return the groups that `--help` lists: all that a task has, or without a task those that most tasks have."""
    return GROUPS if task else {title: GROUPS[title] for title in ("common", "own data", "reports")}


def models_together(arguments: Sequence[str]) -> list[str]:
    """Rewrite `--model A --model B` and `--model A,B` as `--model A B`, which the parser accepts.

    `--corruptions` without a value gets one, see [`all_corruptions`].

    Raise `UsageError` if one of the models is the name of a task, which must be the first argument.
    """
    others: list[str] = []
    models: list[str] = []
    place = others
    for argument in all_corruptions(arguments):
        if argument == "--model" or argument.startswith("--model="):
            place = models
            argument = argument.removeprefix("--model").removeprefix("=")
        elif argument.startswith("--"):
            place = others
        place += argument.split(",") if place is models and argument else [argument] if place is others else []
    for model in models:
        if ALIASES.get(model, model) in OPTIONS and not Path(model).exists():
            raise UsageError(
                f"All words after --model are models. Put the task first: biomedclip evaluate {model} --model ..."
            )
    return [*others, "--model", *models] if models else others


def all_corruptions(arguments: Sequence[str]) -> list[str]:
    """Add the value `all` to `--corruptions` without a value, because the parser expects one."""
    following = [*arguments, "--"][1:]
    return [
        word
        for argument, after in zip(arguments, following, strict=True)
        for word in ([argument, ALL] if argument == "--corruptions" and after.startswith("--") else [argument])
    ]


def tasks_with(option: str) -> list[str]:
    """Return the tasks that have an option."""
    return [task for task, options in OPTIONS.items() if option in options.__dataclass_fields__]


def refuse_options_of_other_tasks(task: str, arguments: Sequence[str]) -> None:
    """Raise `UsageError` if the command line has an option that only other tasks have."""
    for argument in arguments:
        if argument.startswith("--"):
            option = argument.partition("=")[0]
            tasks = tasks_with(option[2:].replace("-", "_").removeprefix("no_"))
            if tasks and task not in tasks:
                raise UsageError(f"{option} applies only to {', '.join(tasks)}, not to {task}. Omit it.")


def check_options(options: Any, runs: Sequence[tuple[str, str | None]]) -> None:
    """Check options without reading data or models. `runs` are the tasks and benchmarks to run.

    Raise `UsageError` if an option has no effect or an invalid value, or if the benchmark is for another task.
    """
    for name, least in _LEAST.items():
        value = getattr(options, name, None)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} must be {least} or more, not {value}.")
    given = {known.name for known in dataclasses.fields(options) if _is_given(options, known)}
    check_finding_columns(given)
    if "corruptions" in given:
        with usage_errors():
            chosen_corruptions(options.corruptions)
        if getattr(options, "protocol", "logistic") != "logistic":
            raise UsageError("--corruptions needs --protocol logistic, whose classifier does not see the test images.")
    if getattr(options, "protocol", "logistic") != "logistic" and (fitted := given_decisions(options)):
        raise UsageError(f"--{fitted[0]} needs --protocol logistic, which has a validation split.")
    if "label_columns" in given:
        _check_findings(options, given)
    if options.task == PANELS:
        check_panel_options(options, given)
    elif options.task != SUITE:
        _check_benchmark(options)
    _check_options_of_benchmarks(options, runs)
    check_decisions(options)
    if "pool_draws" in given and options.pool_size is None:
        raise UsageError("--pool-draws has no effect without --pool-size. Omit it, or set --pool-size too.")
    if {"prompts", "templates"} <= given:
        raise UsageError("--prompts and --templates both choose the prompts. Pass one of them.")
    if options.task == "linear-probe" and options.split == "train":
        raise UsageError("--split train: the probe would be tested on its training images. Pass --split test.")
    if options.task == "few-shot":
        check_few_shot_options(options, given)
    for template in getattr(options, "templates", []):
        if "{}" not in template:
            raise UsageError(f"--templates: {template!r} has no {{}} for the class name.")
    if "fractions" in given and not options.fractions:
        raise UsageError("--fractions needs at least one fraction of the labels, such as 1.0.")
    for fraction in getattr(options, "fractions", []):
        if not 0 < fraction <= 1:
            raise UsageError(f"--fractions: a fraction must be above 0 and at most 1, not {fraction}.")
    if "draws" in given and options.task != "few-shot" and min(options.fractions) == 1:
        raise UsageError("--draws has no effect on --fractions 1, which has only one draw. Omit it.")


def _check_findings(options: Any, given: Collection[str]) -> None:
    """Refuse options that have no effect on data with several findings."""
    no_set = (
        "An image has several findings, and not one true class that a set could contain. Pass --sensitivity or "
        "--specificity, which choose a threshold for each finding."
    )
    for name, remedy in (
        ("coverage", no_set),
        ("benchmark", "The images of benchmarks have one label each. Omit one of the two options."),
        ("templates", "Pass --prompts FILE with positive and negative templates instead."),
    ):
        if name in given:
            raise UsageError(f"--{name.replace('_', '-')} has no effect with --label-columns. {remedy}")
    if IGNORED in options.subgroup_column:
        raise UsageError(
            f"--subgroup-column {IGNORED}: the predictions have another column of this name. Rename it in the table."
        )
    if getattr(options, "protocol", "logistic") != "logistic":
        raise UsageError("--protocol elevater has one label for each image. With --label-columns, use logistic.")


def _check_benchmark(options: Any) -> None:
    if not options.data:
        raise UsageError(f"{options.task} requires --data, the folder of the data.")
    names = benchmark_names(options.task)
    if options.benchmark is not None and options.benchmark not in names:
        known = options.benchmark in benchmark_names()
        what = f"is not for {options.task}" if known else "is unknown"
        raise UsageError(f"--benchmark {options.benchmark} {what}. Choose one of {', '.join(names)}.")


def _check_options_of_benchmarks(options: Any, runs: Sequence[tuple[str, str | None]]) -> None:
    benchmarks = list(dict.fromkeys(benchmark or OWN_IMAGES for _, benchmark in runs))
    for name in given_benchmark_options(options):
        if not any(name in benchmark_options(benchmark) for benchmark in benchmarks):
            having = [known for known in benchmark_names() if name in benchmark_options(known)]
            raise UsageError(
                f"--{name.replace('_', '-')} has no effect on {', '.join(benchmarks)}, only on {', '.join(having)}. "
                "Omit it, or choose another benchmark."
            )


def _is_given(options: Any, known: dataclasses.Field[Any]) -> bool:
    default = known.default_factory() if known.default_factory is not dataclasses.MISSING else known.default
    return getattr(options, known.name) != default


def check_options_of_tasks(options: Any, tasks: Sequence[str]) -> None:
    """Raise `UsageError` if an option of the suite has no effect on the tasks that it runs."""
    for known in dataclasses.fields(options):
        readers = [task for task in tasks_with(known.name) if task != SUITE]
        if readers and _is_given(options, known) and not set(readers) & set(tasks):
            raise UsageError(
                f"--{known.name.replace('_', '-')} has no effect on suite --tasks {' '.join(tasks)}, only on "
                f"{', '.join(readers)}. Omit it."
            )
