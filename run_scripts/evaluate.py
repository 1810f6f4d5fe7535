"""Evaluates models: retrieval, zero-shot classification, a linear probe, visual questions.

biomedclip evaluate retrieval --model run --data out --output-dir results
biomedclip evaluate zero-shot --model run --data folder_of_classes --output-dir results
biomedclip evaluate zero-shot --model run --model another --benchmark pcam --data pcam --output-dir results
biomedclip evaluate linear-probe --model run --benchmark rsna --data rsna --output-dir results
biomedclip evaluate vqa --model answers --benchmark vqa_rad --data VQA_RAD --output-dir results
"""

import dataclasses
import datetime
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from modeling_biomedclip.contrastive_trainer import are_processes_on_cpu
from processing import load_benchmark, load_pmc15m
from processing.benchmarks.benchmark import ClassificationBenchmark, RetrievalBenchmark
from processing.benchmarks.leaks import find_leaks
from processing.labelled_images import hold_out

from .errors import UsageError
from .evaluation.comparison import compare, short_names
from .evaluation.dual_encoders import DualEncoder, load_dual_encoder
from .evaluation.features import FEATURES, WORKERS, Features, FeatureStore
from .evaluation.linear_probe import LabelledFeatures, check_share, probe, show_probe
from .evaluation.own_images import TEMPLATES, unpublished_benchmark
from .evaluation.results import write_results
from .evaluation.retrieval import count_ranks, embed_pairs, retrieval_of, show_retrieval
from .evaluation.visual_question_answering import evaluate_questions
from .evaluation.zero_shot import classify_zero_shot, show_zero_shot
from .options import parse_options
from .reporting import say
from .runs import part_processes
from .trust import trust_option


EXAMPLE = """biomedclip evaluate retrieval --model run --data out --output-dir results
  biomedclip evaluate zero-shot --model run --data classes --output-dir results
  biomedclip evaluate linear-probe --model run --benchmark rsna --data rsna \\
      --output-dir results
  biomedclip evaluate vqa --model answers --benchmark vqa_rad --data VQA_RAD \\
      --output-dir results"""
HELD_OUT = 0.2  # share of images without splits that the linear probe is judged by, and as many choose its strength
SHOWN_DAMAGED = 5
# Options that only some tasks read: another one would drop them without a word.
READ_BY = {
    "image_id": ["retrieval"],
    "prompts": ["zero-shot"],
    "templates": ["zero-shot"],
    "image_folder": ["vqa"],
    **dict.fromkeys(["image_column", "label_column"], ["zero-shot", "linear-probe"]),
    "precision": ["retrieval", "zero-shot", "linear-probe"],
    **dict.fromkeys(["shares", "draws", "probe_features", "find_leaks"], ["linear-probe"]),
}
FEW = 30  # articles or images, below which the bootstrap draws too few different sets


@dataclass
class EvaluateOptions:
    """What is evaluated on what."""

    model: list[str] = field(
        metadata={
            "help": "Folder or Hub id of BiomedCLIP, CLIP, SigLIP or another dual encoder, of an adapter, an open_clip "
            "folder, biovil or biovil-t. Several models are compared."
        }
    )
    data: str = field(
        metadata={
            "help": "Folder that biomedclip build wrote (for zero-shot with a labels.csv of pair_id,label), the files "
            "of the benchmark, or a folder with one folder of images for each class."
        }
    )
    output_dir: str = field(metadata={"help": "Folder for results.json; of several models one folder for each."})
    task: str = field(
        default="retrieval",
        metadata={"help": "retrieval, zero-shot, linear-probe or vqa; may be the first word."},
    )
    benchmark: str | None = field(
        default=None, metadata={"help": "pcam, rsna, pmc15m, ...: whose files --data holds; brings prompts and values."}
    )
    split: str = field(default="test", metadata={"help": "Split that is measured on."})
    batch_size: int = field(default=32, metadata={"help": "Pairs or images at a time."})
    workers: int = field(default=WORKERS, metadata={"help": "Batches of images read at the same time, in threads."})
    precision: str = field(
        default="float32",
        metadata={"help": "Of the towers; similarities are float32 always.", "choices": ["float32", "bfloat16"]},
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens a caption or prompt is cut at. The tokenizer's limit if left out."}
    )
    image_id: str | None = field(
        default=None,
        metadata={
            "help": "Retrieval: column whose equal values mean one image with several captions, such as image_md5."
        },
    )
    image_column: str = field(
        default="image", metadata={"help": "Column of images, where imagefolder's data are a set of `datasets`."}
    )
    label_column: str = field(default="label", metadata={"help": "Column of labels of such a set."})
    prompts: str | None = field(
        default=None, metadata={"help": "Set of templates of the benchmark, or a YAML file. The paper's if left out."}
    )
    templates: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Prompts of zero-shot classification; {} stands for the class name. The benchmark's, or "
            + " and ".join(f"'{template}'" for template in TEMPLATES)
            + ", if left out."
        },
    )
    image_folder: str | None = field(
        default=None, metadata={"help": "vqa: where the images of vqa_rad or slake lie, if not beside the questions."}
    )
    shares: list[float] = field(
        default_factory=lambda: [0.01, 0.1, 1.0], metadata={"help": "Linear probe: shares of the training labels."}
    )
    draws: int = field(default=5, metadata={"help": "Linear probe: how often each share is drawn."})
    probe_features: str = field(
        default="embeds",
        metadata={
            "help": "Linear probe: the normalised image embedding, or the image tower's state before its projection.",
            "choices": ["embeds", "hidden"],
        },
    )
    find_leaks: bool = field(
        default=True, metadata={"help": "Linear probe: look for test images among those of training."}
    )
    features_dir: str | None = field(
        default=None,
        metadata={"help": "Folder that keeps embeddings, for other runs too. OUTPUT_DIR/features if left out."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap, and of draws and splits."})
    trust_remote_code: bool = trust_option()


@dataclass(frozen=True)
class Run:
    """One model on one task: what a task is given."""

    model: str
    options: EvaluateOptions
    output_dir: Path
    command: Sequence[str]

    def load(self) -> tuple[DualEncoder, FeatureStore]:
        """The model, and where its features are kept."""
        encoder = load_dual_encoder(
            self.model, precision=self.options.precision, trust_remote_code=self.options.trust_remote_code
        )
        # Of several models all in one folder: they are told apart by their weights.
        folder = Path(self.options.features_dir or Path(self.options.output_dir) / FEATURES)
        store = FeatureStore(
            encoder,
            folder,
            batch_size=self.options.batch_size,
            max_length=self.options.max_length,
            workers=self.options.workers,
        )
        return encoder, store

    def settings(self, **more: Any) -> dict[str, Any]:
        """What the numbers depend on, for `results.json`."""
        names = ("batch_size", "max_length", "seed")
        return {
            **{name: getattr(self.options, name) for name in names},
            "processes": PartialState().num_processes,
            **more,
        }


def main(arguments: Sequence[str]) -> None:
    """Runs `biomedclip evaluate`."""
    (options,) = parse_options(
        "evaluate",
        [EvaluateOptions],
        _with_models_together(arguments),
        description=__doc__.split("\n\n")[0],
        example=EXAMPLE,
        positionals=["task"],
    )
    if options.task not in TASKS:
        raise UsageError(f"There is no task {options.task!r}; there are {', '.join(TASKS)}.")
    check_options(options)
    PartialState(cpu=are_processes_on_cpu(), timeout=datetime.timedelta(days=1))
    folders = _folders(options.model, Path(options.output_dir))
    results = []
    for model, folder in zip(options.model, folders, strict=True):
        if len(folders) > 1 and PartialState().is_main_process:
            say(f"{model}")
        folder.mkdir(parents=True, exist_ok=True)
        results.append(TASKS[options.task](Run(model, options, folder, arguments)))
    if len(results) > 1 and PartialState().is_main_process:
        compare([result for result in results if result is not None], Path(options.output_dir))
    part_processes()


def check_options(options: EvaluateOptions) -> None:
    """
    Raises:
        UsageError: An option that the task does not read, shares of the labels that cannot be drawn, or a template
            without a place for the class name.
    """
    for option in dataclasses.fields(options):
        tasks, made = READ_BY.get(option.name, [options.task]), option.default_factory
        default = option.default if made is dataclasses.MISSING else made()
        if options.task not in tasks and getattr(options, option.name) != default:
            name = option.name.replace("_", "-")
            raise UsageError(f"--{name} has no effect on {options.task}, only on {', '.join(tasks)}. Leave it out.")
    for share in options.shares:
        check_share(share)
    for template in options.templates:
        if "{}" not in template:
            raise UsageError(f"--templates: {template!r} has no {{}} for the class name.")


def evaluate_retrieval(run: Run) -> dict[str, Any] | None:
    """Retrieval among all pairs of a split; writes and gives the results, in the first process."""
    started, options = time.monotonic(), run.options
    benchmark = _retrieval_benchmark(options)
    columns = ["pair_id", "pmcid", "image", "caption"]
    if options.image_id and options.image_id not in columns:
        columns.append(options.image_id)
    pairs = load_pmc15m(options.data, options.split, streaming=False, columns=columns, decode=False)
    encoder, store = run.load()
    embedded = embed_pairs(pairs, store, image_id=options.image_id)
    key = {
        "weights": encoder.weights,
        "processor": encoder.processing,
        "precision": encoder.precision,
        "max_length": options.max_length,
        "data": embedded.fingerprint,
        "image_id": options.image_id,
    }
    counts = count_ranks(embedded, store.folder, key)
    if not PartialState().is_main_process:
        return None
    articles = pairs["pmcid"]
    articles = [articles[row] for row in embedded.rows.tolist()] if embedded.damaged else list(articles)
    metrics = retrieval_of(counts, articles, options.seed, embedded.image_of_text)
    paper = benchmark.paper if benchmark else {}
    show_retrieval(metrics, paper=paper, split=options.split)
    return _write(
        run,
        encoder,
        data={
            "fingerprint": embedded.fingerprint,
            "rows": metrics["pairs"],
            "damaged": embedded.damaged,
            "notes": benchmark.notes if benchmark else [],
        },
        metrics=metrics,
        paper=paper,
        paper_source=benchmark.source if benchmark else "",
        settings=run.settings(image_id=options.image_id),
        started=started,
    )


def evaluate_zero_shot(run: Run) -> dict[str, Any] | None:
    """Zero-shot classification of labelled images; writes and gives the results, in the first process."""
    started, options = time.monotonic(), run.options
    benchmark = _classification_benchmark(options, options.split)
    encoder, store = run.load()
    images = benchmark.images
    features = store.images(images.images, images.names, benchmark.fingerprint)
    if not PartialState().is_main_process:
        return None
    judged = images.select(features.rows.tolist())
    metrics = classify_zero_shot(
        encoder,
        features.embeds,
        judged.labels,
        benchmark.classes,
        benchmark.class_names,
        benchmark.templates,
        positive=benchmark.positive,
        groups=judged.groups,
        max_length=options.max_length,
        seed=options.seed,
    )
    show_zero_shot(metrics, benchmark.paper)
    sets = [name for name, templates in benchmark.template_sets.items() if templates == benchmark.templates]
    return _write(
        run,
        encoder,
        data=_data(benchmark, len(judged), features.damaged),
        metrics=metrics,
        paper=benchmark.paper,
        paper_source=benchmark.source,
        settings=run.settings(
            templates=benchmark.templates,
            template_set=sets[0] if sets else None,
            class_names=dict(zip(benchmark.classes, benchmark.class_names, strict=True)),
            positive=benchmark.positive,
        ),
        started=started,
    )


def evaluate_linear_probe(run: Run) -> dict[str, Any] | None:
    """Logistic regression on frozen image features; writes and gives the results, in the first process."""
    started, options = time.monotonic(), run.options
    splits = _probed_splits(options)
    test = splits[options.split]
    encoder, store = run.load()
    features = {
        split: store.images(read.images.images, read.images.names, read.fingerprint, features=options.probe_features)
        for split, read in splits.items()
    }
    if not PartialState().is_main_process:
        return None
    labelled = {split: _labelled(read, features[split], test.classes) for split, read in splits.items()}
    notes = []
    if "validation" not in labelled:
        whole = labelled["train"]
        stay, held = hold_out([str(label) for label in whole.labels], HELD_OUT, options.seed)
        labelled["train"], labelled["validation"] = whole.select(stay), whole.select(held)
        notes.append(f"No validation split: {HELD_OUT:.0%} of the training images chose the regularisation.")
    metrics = probe(
        labelled["train"],
        labelled["validation"],
        labelled[options.split],
        test.classes,
        shares=options.shares,
        seeds=options.draws,
        positive=test.positive,
        metric=test.metric,
        seed=options.seed,
    )
    show_probe(metrics, test.paper_of_linear_probe)
    leaks = None
    if options.find_leaks:
        leaks = find_leaks(splits["train"], test, progress=True).as_dict()
        if leaks["leaked"]:
            say(f"{leaks['leaked']:,} of {leaks['test_images']:,} test images are among those of training, or nearly.")
    damaged = [entry for split in splits for entry in features[split].damaged]
    return _write(
        run,
        encoder,
        data=_data(test, metrics["images"], damaged, notes) | {"leaks": leaks},
        metrics=metrics,
        paper=test.paper_of_linear_probe,
        paper_source="BiomedCLIP, linear probe, read off the figure" if test.paper_of_linear_probe else "",
        settings=run.settings(
            features=options.probe_features, shares=options.shares, draws=options.draws, chosen_by=test.metric
        ),
        started=started,
    )


# Each takes a `Run` and gives what it has written, or none in a process that is not the first.
TASKS: dict[str, Callable[[Run], dict[str, Any] | None]] = {
    "retrieval": evaluate_retrieval,
    "zero-shot": evaluate_zero_shot,
    "linear-probe": evaluate_linear_probe,
    "vqa": lambda run: evaluate_questions(run.model, run.options, run.output_dir, run.command),
}


def _classification_benchmark(options: EvaluateOptions, split: Any) -> ClassificationBenchmark:
    if options.benchmark is None:
        if options.prompts is not None:
            raise UsageError("--prompts names a set of a benchmark: pass --benchmark too, or --templates instead.")
        return unpublished_benchmark(options.data, split, options.templates or TEMPLATES)
    benchmark = load_benchmark(
        options.benchmark, options.data, split=split, prompts=options.prompts, **_reading(options)
    )
    if not isinstance(benchmark, ClassificationBenchmark):
        raise UsageError(f"--benchmark {options.benchmark} has no classes: it is not for {options.task}.")
    return dataclasses.replace(benchmark, templates=list(options.templates)) if options.templates else benchmark


def _reading(options: EvaluateOptions) -> dict[str, Any]:
    """What the readers of labelled images are told by options of the same names."""
    return {name: getattr(options, name) for name in ("image_column", "label_column", "seed")}


def _probed_splits(options: EvaluateOptions) -> dict[str, ClassificationBenchmark]:
    """The splits to train on and to judge by, and one to choose the regularisation by where the set has it."""
    name = options.benchmark or "imagefolder"
    splits: dict[str, ClassificationBenchmark] = {}
    wanted: list[Any] = ["train", "validation", options.split]
    for split in wanted:
        try:
            read = load_benchmark(name, options.data, split=split, held_out=HELD_OUT, **_reading(options))
        except (FileNotFoundError, ValueError):
            if split != "validation":
                raise
            continue
        if not isinstance(read, ClassificationBenchmark):
            raise UsageError(f"--benchmark {name} has no classes: it is not for a linear probe.")
        splits[split] = read
    return splits


def _labelled(benchmark: ClassificationBenchmark, features: Features, classes: Sequence[str]) -> LabelledFeatures:
    """A split whose images could be embedded, with the numbers of their classes."""
    number_of = {label: number for number, label in enumerate(classes)}
    kept = benchmark.images.select(features.rows.tolist())
    labels = np.array([number_of[label] for label in kept.labels])
    return LabelledFeatures(features.embeds.numpy(), labels, kept.groups)


def _retrieval_benchmark(options: EvaluateOptions) -> RetrievalBenchmark | None:
    if options.benchmark is None:
        return None
    benchmark = load_benchmark(options.benchmark, options.data, split=options.split)  # type: ignore[arg-type]
    if not isinstance(benchmark, RetrievalBenchmark):
        raise UsageError(f"--benchmark {options.benchmark} has no captions: it is not for retrieval.")
    return benchmark


def _data(
    benchmark: ClassificationBenchmark, rows: int, damaged: list[dict[str, str]], notes: Sequence[str] = ()
) -> dict[str, Any]:
    return {
        "fingerprint": benchmark.fingerprint,
        "rows": rows,
        "damaged": damaged,
        "notes": [*benchmark.notes, *notes],
    }


def _write(
    run: Run, encoder: DualEncoder, *, data: Mapping[str, Any], started: float, **content: Any
) -> dict[str, Any]:
    """Writes the results, and says what was left out and how the data differ from what is published."""
    metrics, damaged = content["metrics"], data["damaged"]
    drawn, what = (metrics["articles"], "articles") if "articles" in metrics else (data["rows"], "images")
    if drawn < FEW:
        data = {**data, "notes": [*data["notes"], f"Only {drawn} {what}: the intervals are too narrow."]}
    if damaged:
        names = ", ".join(f"{entry['name']} ({entry['reason']})" for entry in damaged[:SHOWN_DAMAGED])
        rest = f", and {len(damaged) - SHOWN_DAMAGED:,} more" if len(damaged) > SHOWN_DAMAGED else ""
        say(f"{len(damaged):,} damaged images are left out: {names}{rest}.")
    for note in data["notes"]:
        say(f"Note: {note}")
    results = write_results(
        run.output_dir,
        task=run.options.task,
        benchmark=run.options.benchmark,
        command=run.command,
        encoder=encoder,
        data={"path": run.options.data, "split": run.options.split, **data},
        seconds=time.monotonic() - started,
        **content,
    )
    say(f"Results in {run.output_dir / 'results.json'}")
    return results


def _with_models_together(arguments: Sequence[str]) -> list[str]:
    """The command line with `--model A --model B` as `--model A B`, which the parser takes."""
    others: list[str] = []
    models: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument.startswith("--model="):
            models += argument.removeprefix("--model=").split(",")
        elif argument == "--model":
            while rest and not rest[0].startswith("--"):
                models += rest.pop(0).split(",")
        else:
            others.append(argument)
    return [*others, "--model", *models] if models else others


def _folders(models: Sequence[str], output_dir: Path) -> list[Path]:
    """A folder for each of several models, called as it is; the output folder itself for a single one."""
    if len(models) == 1:
        return [output_dir]
    if len(set(models)) < len(models):
        raise UsageError("--model names the same model twice.")
    return [output_dir / re.sub(r"[^\w.-]+", "_", name) for name in short_names(models)]
