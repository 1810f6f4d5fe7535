"""Evaluates models: retrieval, zero-shot classification, a linear probe, visual questions, or all benchmarks at once.

biomedclip evaluate retrieval --model run --data out --output-dir results
biomedclip evaluate zero-shot --model run --data folder_of_classes --output-dir results
biomedclip evaluate zero-shot --model run --model another --benchmark pcam --data pcam --output-dir results
biomedclip evaluate linear-probe --model run --benchmark rsna --data rsna --output-dir results
biomedclip evaluate visual-question-answering --model answers --benchmark vqa_rad --data VQA_RAD --output-dir results
biomedclip evaluate suite --model run another --data-root benchmarks --output-dir results
"""

import dataclasses
import datetime
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from biomedclip.contrastive_trainer import LOSS_IN_BATCHES
from biomedclip.processing import load_benchmark, load_pmc15m
from biomedclip.processing.benchmarks import ClassificationBenchmark, RetrievalBenchmark, benchmark_names
from biomedclip.processing.benchmarks.leaks import find_leaks
from biomedclip.processing.benchmarks.rsna import RSNA_SPLITS
from biomedclip.processing.images.labeled import IMAGE_COLUMN, LABEL_COLUMN, LabeledImages, check_readable
from biomedclip.processing.shard_reader import column_names
from biomedclip.processing.stratified import hold_out
from biomedclip.training_arguments import are_processes_on_cpu

from .cli.errors import UsageError, options_in_errors
from .cli.options import parse_options
from .cli.reporting import say
from .cli.trust import trust_option
from .evaluation.checks import check_model, check_output, check_writable
from .evaluation.comparison import compare, short_names, show_published
from .evaluation.dual_encoders import DualEncoder, load_dual_encoder
from .evaluation.examples import find_examples, write_examples
from .evaluation.features import FEATURES, WORKERS, Features, FeatureStore
from .evaluation.linear_probe import PROTOCOLS, LabeledFeatures, check_fraction, probe, show_probe
from .evaluation.pools import DRAWS, draw_pool, number_of_draws
from .evaluation.results import write_results
from .evaluation.retrieval import (
    check_captions,
    count_ranks,
    embed_pairs,
    mean_or_none,
    retrieval_of_pools,
    show_retrieval,
    validation_loss,
)
from .evaluation.suite import SUITE, evaluate_suite
from .evaluation.suite_plan import selected_runs
from .evaluation.visual_question_answering import (
    WORDS,
    Questions,
    evaluate_questions,
    load_answer_tokenizer,
    read_questions,
)
from .evaluation.zero_shot import classify_zero_shot, show_zero_shot
from .training.runs import end_processes


logger = logging.getLogger(__name__)

EXAMPLE = """biomedclip evaluate retrieval --model run --data out --output-dir results
  biomedclip evaluate zero-shot --model run --data classes --output-dir results
  biomedclip evaluate linear-probe --model run --benchmark rsna --data rsna \\
      --output-dir results
  biomedclip evaluate visual-question-answering --model answers --benchmark vqa_rad --data VQA_RAD \\
      --output-dir results
  biomedclip evaluate suite --model run another --data-root benchmarks \\
      --output-dir results"""
HELD_OUT = 0.2  # share of images without splits that the linear probe is judged by, and as many choose its strength
SHOWN_DAMAGED = 5
PROBE_DOCS = "docs/evaluation.md"
# Options that only some tasks read. Other tasks refuse them. The suite takes those of its tasks, except options that
# belong to a single benchmark.
_SINGLE = ["retrieval", "zero-shot", "linear-probe", "visual-question-answering"]
READ_BY = {
    **dict.fromkeys(["data_root", "tasks", "benchmarks"], [SUITE]),
    **dict.fromkeys(["data", "benchmark", "split"], _SINGLE),
    **dict.fromkeys(["image_id", "pool_size", "pool_draws"], ["retrieval"]),
    "examples": ["retrieval", "visual-question-answering"],
    "prompts": ["zero-shot"],
    "templates": ["zero-shot"],
    **dict.fromkeys(["image_folder", "f1_tokenizer"], ["visual-question-answering"]),
    **dict.fromkeys(["image_column", "label_column", "cancer", "rsna_split"], ["zero-shot", "linear-probe"]),
    **dict.fromkeys(["precision", "features_dir", "workers"], ["retrieval", "zero-shot", "linear-probe"]),
    "max_length": ["retrieval", "zero-shot", "visual-question-answering"],
    **dict.fromkeys(["protocol", "fractions", "draws", "probe_features", "find_leaks"], ["linear-probe"]),
}
# Options of a single benchmark.
OF_BENCHMARK = {"cancer": "tcga_til", "rsna_split": "rsna"}
OF_ONE_BENCHMARK = (
    *("data", "benchmark", "split", "prompts", "templates"),
    *("image_folder", "image_column", "label_column"),
)
BENCHMARKS_OF = {task: benchmark_names(task) for task in _SINGLE}
_LACKS = {
    "retrieval": "no captions",
    "zero-shot": "no classes",
    "linear-probe": "no classes",
    "visual-question-answering": "no questions",
}
ALIASES = {"vqa": "visual-question-answering"}
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
    output_dir: str = field(metadata={"help": "Folder for results.json; of several models one folder for each."})
    task: str = field(
        default="retrieval",
        metadata={"help": "retrieval, zero-shot, linear-probe, visual-question-answering (or vqa) or suite."},
    )
    data: str = field(
        default="",
        metadata={
            "help": "Folder that biomedclip build wrote (for zero-shot with a labels.csv of pair_id,label), the files "
            "of the benchmark, or labeled images: class folders, images with a metadata.csv, or a datasets set."
        },
    )
    data_root: str = field(
        default="",
        metadata={"help": "Suite: folder that contains a folder for each benchmark, such as pcam, lc25000 and rsna."},
    )
    tasks: list[str] = field(default_factory=list, metadata={"help": "Suite: tasks to run. All if left out."})
    benchmarks: list[str] = field(
        default_factory=list, metadata={"help": "Suite: benchmarks to run. All whose files are there if left out."}
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
    pool_size: int | None = field(
        default=None,
        metadata={
            "help": "Retrieval: measure among this many pairs, drawn with --seed from the split (default: all). "
            "The paper's is 725739 for test and 13600 for validation."
        },
    )
    pool_draws: int | None = field(
        default=None,
        metadata={
            "help": f"Retrieval: number of pools to draw and average (default: {DRAWS}, or 1 if a pool is the whole "
            "split)."
        },
    )
    image_column: str = field(
        default=IMAGE_COLUMN, metadata={"help": "Column of images of a metadata.csv or a datasets set."}
    )
    label_column: str = field(
        default=LABEL_COLUMN, metadata={"help": "Column of labels of such a table, or of labels.csv."}
    )
    prompts: str | None = field(
        default=None,
        metadata={
            "help": "Set of prompts of the benchmark (default: paper; lc25000_lung: rerun; rsna: biovil), or a YAML "
            "file with templates or class_names."
        },
    )
    templates: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Prompts of zero-shot classification; {} stands for the class name (default: the benchmark's)."
        },
    )
    cancer: str | None = field(
        default=None, metadata={"help": "tcga_til: study (luad, brca, ...) or all (default: luad, as in the paper)."}
    )
    rsna_split: str | None = field(
        default=None,
        metadata={
            "help": "rsna: paper-test has 9,069 test patients, paper-fractions 70/15/15 %% (default: paper-test).",
            "choices": list(RSNA_SPLITS),
        },
    )
    image_folder: str | None = field(
        default=None, metadata={"help": "vqa: where the images of vqa_rad or slake lie, if not beside the questions."}
    )
    f1_tokenizer: str = field(
        default=WORDS,
        metadata={
            "help": "vqa: tokens of the token F1: words (default, as in SQuAD), or a folder or Hub id of a tokenizer, "
            "such as openai-community/gpt2 as in the paper."
        },
    )
    examples: int = field(
        default=0,
        metadata={
            "help": "Retrieval and vqa: number of pairs or questions to draw as pictures in OUTPUT_DIR/examples, with "
            "the best candidates or answers of the model (default: 0)."
        },
    )
    protocol: str = field(
        default="logistic",
        metadata={
            "help": "Linear probe: logistic regression, or SGD with ELEVATER's search (default: logistic).",
            "choices": list(PROTOCOLS),
        },
    )
    fractions: list[float] = field(
        default_factory=lambda: [0.01, 0.1, 1.0],
        metadata={"help": "Linear probe: fractions of the training labels (default: 0.01 0.1 1)."},
    )
    draws: int = field(default=5, metadata={"help": "Linear probe: number of draws of each fraction."})
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
    """One model on one task: what a task is given. `data` is what the task has read, once for all models."""

    model: str
    data: Any
    options: EvaluateOptions
    output_dir: Path
    command: Sequence[str]
    encoder: DualEncoder | None = None  # the model, if it is loaded already

    def load(self) -> tuple[DualEncoder, FeatureStore]:
        """The model, and where its features are kept."""
        encoder = self.encoder or load_dual_encoder(
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
    options.task = ALIASES.get(options.task, options.task)
    options.tasks = [ALIASES.get(task, task) for task in options.tasks]
    if options.task not in (*TASKS, SUITE):
        raise UsageError(f"There is no task {options.task!r}; there are {', '.join([*TASKS, SUITE])}.")
    check_options(options)
    PartialState(cpu=are_processes_on_cpu(), timeout=datetime.timedelta(days=1))
    if options.task == SUITE:
        evaluate_suite(options, _folders(options.model, Path(options.output_dir), several=True), arguments)
        return end_processes()
    folders = _folders(options.model, Path(options.output_dir))
    data = _checked_data(options, folders)
    results, failed = [], {}
    for model, folder in zip(options.model, folders, strict=True):
        if len(folders) > 1 and PartialState().is_main_process:
            say(f"{model}")
        try:
            results.append(TASKS[options.task].evaluate(Run(model, data, options, folder, arguments)))
        except Exception as error:
            if len(folders) == 1:
                raise
            # As text: the error itself would keep the memory of its model.
            failed[model] = f"{type(error).__name__}: {error}"
            logger.error("%s: %s", model, failed[model])
            if PartialState().num_processes > 1:
                break  # the other processes may have failed elsewhere, and wait
    measured = [result for result in results if result is not None]
    if len(folders) > 1 and measured:
        compare(measured, Path(options.output_dir))
    elif measured:
        show_published(options.task, measured[0]["published"])
    if failed:
        names = "; ".join(f"{model}: {reason}" for model, reason in failed.items())
        raise ValueError(f"{len(failed)} of {len(folders)} models could not be measured: {names}")
    end_processes()


def _checked_data(options: EvaluateOptions, folders: Sequence[Path]) -> Any:
    """Check everything that can be checked before a model is loaded, and read the data.

    Raises:
        ValueError, OSError, ImportError: What is wrong. Several problems are told together.
    """
    problems: list[Exception] = []
    data = None
    checks: list[Callable[[], Any]] = [
        partial(check_model, model, options.task, trust_remote_code=options.trust_remote_code)
        for model in options.model
    ]
    checks.append(partial(options_in_errors("image_column", "label_column")(TASKS[options.task].read), options))
    for check in checks:
        try:
            data = check()
        except (ValueError, OSError, ImportError) as error:
            problems.append(error)
    if not problems:
        check_output([*dict.fromkeys([Path(options.output_dir), *folders])], options.task, options.benchmark)
        if options.features_dir is not None:
            check_writable(Path(options.features_dir), "--features-dir")
        return data
    if len(problems) == 1:
        raise problems[0]
    raise ValueError("\n".join(str(problem) for problem in problems))


def check_options(options: EvaluateOptions) -> None:
    """Check the options of a task, without a look at data or models.

    Raises:
        UsageError: If an option has no effect on the task or the benchmark, has a value that cannot be used, or names
            a benchmark of another task.
    """
    is_suite = options.task == SUITE
    runs = selected_runs(options) if is_suite else [(options.task, options.benchmark)]
    reading = list(dict.fromkeys(task for task, _ in runs))
    for name in given_options(options):
        option, tasks = f"--{name.replace('_', '-')}", READ_BY.get(name, reading)
        if is_suite and name in OF_ONE_BENCHMARK:
            raise UsageError(
                f"{option} belongs to a single benchmark, and {SUITE} runs several. Leave it out, or run biomedclip "
                f"evaluate {tasks[0]}."
            )
        if not {options.task, *reading} & set(tasks):
            what = f"{SUITE} --tasks {' '.join(reading)}" if is_suite else options.task
            raise UsageError(f"{option} has no effect on {what}, only on {', '.join(tasks)}. Leave it out.")
    if not (options.data_root if is_suite else options.data):
        needed = "--data-root, the folder with the benchmarks" if is_suite else "--data, the folder of the data"
        raise UsageError(f"{options.task} needs {needed}.")
    least_values = {"batch_size": 1, "workers": 1, "draws": 1, "max_length": 1, "seed": 0, "pool_size": 2}
    for name, least in (least_values | {"pool_draws": 1, "examples": 0}).items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} must be {least} or more, not {value}.")
    if options.pool_draws is not None and options.pool_size is None:
        raise UsageError("--pool-draws has no effect without --pool-size. Leave it out, or set --pool-size too.")
    if options.benchmark is not None and options.benchmark not in BENCHMARKS_OF[options.task]:
        of_task = ", ".join(BENCHMARKS_OF[options.task])
        if options.benchmark not in benchmark_names():
            raise UsageError(f"No benchmark is called {options.benchmark!r}. For {options.task} there are {of_task}.")
        raise UsageError(
            f"--benchmark {options.benchmark} has {_LACKS[options.task]}: it is not for {options.task}. Choose one of "
            f"{of_task}."
        )
    for name, default in (("image_column", IMAGE_COLUMN), ("label_column", LABEL_COLUMN)):
        if getattr(options, name) != default and options.benchmark not in (None, "imagefolder"):
            raise UsageError(
                f"--{name.replace('_', '-')} has no effect on --benchmark {options.benchmark}, whose files are known. "
                "Leave it out."
            )
    for name, benchmark in OF_BENCHMARK.items():
        if getattr(options, name) is not None and all(benchmark != chosen for _, chosen in runs):
            choice = f"--benchmark{'s' if is_suite else ''} {benchmark}"
            raise UsageError(f"--{name.replace('_', '-')} has no effect without {choice}. Leave it out, or choose it.")
    if options.prompts is not None and options.templates:
        raise UsageError(
            "--prompts and --templates both choose the prompts. Pass one of them. A YAML file for --prompts can have "
            "templates and class_names."
        )
    if options.task == "linear-probe" and options.split == "train":
        raise UsageError("--split train: the probe would be judged by the images that it learns from. Choose test.")
    if not options.fractions:
        raise UsageError("--fractions needs at least one fraction of the labels, such as 1.0.")
    for fraction in options.fractions:
        check_fraction(fraction)
    for template in options.templates:
        if "{}" not in template:
            raise UsageError(f"--templates: {template!r} has no {{}} for the class name.")


def given_options(options: EvaluateOptions) -> list[str]:
    """Return the names of the options whose values are not the defaults."""
    defaults = EvaluateOptions(model=options.model, output_dir=options.output_dir, task=options.task)
    return [name for name, value in vars(options).items() if value != getattr(defaults, name)]


def evaluate_retrieval(run: Run) -> dict[str, Any] | None:
    """Retrieval among the pairs of a split or of pools; writes and gives the results, in the first process."""
    started, options = time.monotonic(), run.options
    benchmark, pairs = run.data
    encoder, store = run.load()
    embedded = embed_pairs(pairs, store, image_id=options.image_id)
    usable = len(embedded.texts)
    draws = number_of_draws(usable, options.pool_size, options.pool_draws, options.split)
    size = options.pool_size or usable
    key = {
        "weights": encoder.weights,
        "processor": encoder.processing,
        "precision": encoder.precision,
        "max_length": options.max_length,
        "data": embedded.fingerprint,
        "image_id": options.image_id,
    }
    pmcids = list(pairs["pmcid"])
    counts, articles, images_of_texts, losses = [], [], [], []
    first = embedded
    for draw in range(draws):
        pool = embedded.select(draw_pool(usable, size, seed=options.seed, draw=draw))
        of_pool = key if size == usable else {**key, "pool": size, "seed": options.seed, "draw": draw}
        counts.append(count_ranks(pool, store.folder, of_pool))
        if draw == 0:
            first = pool
        if PartialState().is_main_process:
            articles.append([pmcids[row] for row in pool.rows.tolist()])
            images_of_texts.append(pool.image_of_text)
            losses.append(validation_loss(pool, encoder))
    if not PartialState().is_main_process:
        return None
    metrics = retrieval_of_pools(counts, articles, options.seed, images_of_texts)
    metrics[LOSS_IN_BATCHES] = mean_or_none(losses)
    metrics["pool"] = {"size": size, "draws": draws, "pairs": usable, "seed": options.seed}
    paper, notes = _published_retrieval(benchmark, metrics["pool"], options.image_id)
    if metrics["pairs"] < 10:
        notes.append(f"Only {metrics['pairs']} pairs: recall at 10 is 1 for every model.")
    show_retrieval(metrics, paper=paper, split=options.split)
    examples = []
    if options.examples and counts[0] is not None:
        found = find_examples(first, counts[0], options.examples, options.seed)
        examples = write_examples(found, pairs, run.output_dir)
        if options.examples > size:
            notes.append(f"--examples {options.examples}: there are {size} pairs, and each is an example.")
        say(f"Examples in {run.output_dir}: {', '.join(dict.fromkeys(entry['file'] for entry in examples))}")
    return _write(
        run,
        encoder,
        data={
            "fingerprint": embedded.fingerprint,
            "rows": metrics["pairs"],
            "damaged": embedded.damaged,
            "notes": notes,
        },
        metrics=metrics,
        paper=paper,
        paper_source=benchmark.source if benchmark and paper else "",
        settings=run.settings(image_id=options.image_id, pool_size=options.pool_size, pool_draws=draws),
        started=started,
        examples=examples,
    )


def _published_retrieval(
    benchmark: RetrievalBenchmark | None, pool: Mapping[str, int], image_id: str | None
) -> tuple[dict[str, Any], list[str]]:
    """Return the paper's values, if they are of as many pairs as the pool has, and notes."""
    if benchmark is None:
        return {}, []
    if benchmark.paper and image_id is not None:
        return {}, [
            f"--image-id {image_id}: an image can have several right captions here, and has one in the paper. The "
            "paper's values are not shown."
        ]
    published = benchmark.published_pairs
    if not benchmark.paper or published is None or pool["size"] == published:
        return dict(benchmark.paper), list(benchmark.notes)
    remedy = f" Pass --pool-size {published} to compare." if pool["pairs"] >= published else ""
    return {}, [
        f"The pools differ: retrieval is among {pool['size']:,} pairs here and among {published:,} in the paper. The "
        f"paper's values are not shown, as recall depends on the number of pairs.{remedy}"
    ]


def evaluate_zero_shot(run: Run) -> dict[str, Any] | None:
    """Zero-shot classification of labeled images; writes and gives the results, in the first process."""
    started, options = time.monotonic(), run.options
    benchmark: ClassificationBenchmark = run.data
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
            template_set=sets[0] if sets and not options.templates else None,
            class_names=dict(zip(benchmark.classes, benchmark.class_names, strict=True)),
            positive=benchmark.positive,
        ),
        started=started,
    )


def evaluate_linear_probe(run: Run) -> dict[str, Any] | None:
    """Evaluate a linear classifier of frozen image features. The first process writes and returns the results."""
    started, options = time.monotonic(), run.options
    splits, notes = run.data
    test = splits[options.split]
    encoder, store = run.load()
    features = {
        split: store.images(read.images.images, read.images.names, read.fingerprint, features=options.probe_features)
        for split, read in splits.items()
    }
    if not PartialState().is_main_process:
        return None
    labeled = {split: _labeled(read, features[split], test.classes) for split, read in splits.items()}
    notes = list(notes)
    if options.protocol == "elevater":
        notes.append(f"Protocol of ELEVATER: see {PROBE_DOCS} for what differs from its toolkit.")
    elif options.benchmark is not None:
        notes.append(
            "The paper's linear probe uses ELEVATER's toolkit. This one is a logistic regression, whose regularization "
            f"is chosen on the validation split. --protocol elevater is closer to the paper; see {PROBE_DOCS}."
        )
    if "validation" not in labeled and options.protocol == "logistic":
        whole = labeled["train"]
        stay, held = hold_out([str(label) for label in whole.labels], HELD_OUT, options.seed)
        labeled["train"], labeled["validation"] = whole.select(stay), whole.select(held)
        notes.append(f"No validation split: {HELD_OUT:.0%} of the training images chose the regularisation.")
    metrics = probe(
        labeled["train"],
        labeled.get("validation") if options.protocol == "logistic" else None,
        labeled[options.split],
        test.classes,
        protocol=options.protocol,  # type: ignore[arg-type]
        fractions=options.fractions,
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
            protocol=options.protocol,
            features=options.probe_features,
            fractions=options.fractions,
            draws=options.draws,
            chosen_by=test.metric,
        ),
        started=started,
    )


def read_pairs(options: EvaluateOptions) -> tuple[RetrievalBenchmark | None, Any]:
    """Read the benchmark, if there is one, and the pairs of a split."""
    benchmark = None
    if options.benchmark is not None:
        loaded = load_benchmark(options.benchmark, options.data, split=options.split)  # type: ignore[arg-type]
        assert isinstance(loaded, RetrievalBenchmark)
        benchmark = loaded
    columns = ["pair_id", "pmcid", "image", "caption"]
    if options.examples and "license" in column_names(options.data, options.split):
        columns.append("license")  # the pictures show figures of articles
    if options.image_id and options.image_id not in columns:
        columns.append(options.image_id)
    pairs: Any = load_pmc15m(options.data, options.split, streaming=False, columns=columns, decode=False)
    check_captions(pairs["pair_id"], pairs["caption"])
    number_of_draws(len(pairs), options.pool_size, options.pool_draws, options.split)
    return benchmark, pairs


def read_classes(options: EvaluateOptions) -> ClassificationBenchmark:
    """Read the labeled images of a split.

    Raises:
        ValueError: If there are fewer than two classes, or a class without readable images.
    """
    name = options.benchmark or "imagefolder"
    benchmark: Any = load_benchmark(
        name,
        options.data,
        split=options.split,  # type: ignore[arg-type]
        prompts=options.prompts,
        **_reading(options),
    )
    _check_classes(benchmark.images, benchmark.classes, options)
    return dataclasses.replace(benchmark, templates=list(options.templates)) if options.templates else benchmark


def read_probed(options: EvaluateOptions) -> tuple[dict[str, ClassificationBenchmark], list[str]]:
    """Read the splits of a linear probe, all with the classes of the training split, and notes on them.

    Raises:
        ValueError: If a split has classes that training lacks, or fewer than two, or one without readable images.
    """
    splits = _probed_splits(options)
    test, learned = splits[options.split], sorted(set(splits["train"].images.labels))
    _check_classes(splits["train"].images, learned, options)
    for split, read in splits.items():
        if unknown := sorted(set(read.images.labels) - set(learned)):
            raise ValueError(
                f"--data {options.data}: no training image is of the class {', '.join(map(repr, unknown))}, which the "
                f"{split} split has. Training has {', '.join(learned)}."
            )
    check_readable(test.images, f"--data {options.data}, {options.split} split")
    notes = []
    if options.split == "validation" and options.protocol == "logistic":
        notes.append("The regularization was chosen on the split that is measured on.")
    if absent := sorted(set(learned) - set(test.images.labels)):
        notes.append(f"No image of the {options.split} split is of the class {', '.join(map(repr, absent))}.")
    # Of images of the user's own, a split has the classes of its images alone.
    classes = test.classes if set(learned) <= set(test.classes) else learned
    return {split: dataclasses.replace(read, classes=classes) for split, read in splits.items()}, notes


def read_asked(options: EvaluateOptions) -> Questions:
    """Read the questions, after a check that the tokenizer of token F1 can be loaded."""
    load_answer_tokenizer(options.f1_tokenizer, trust_remote_code=options.trust_remote_code)
    return read_questions(options.benchmark, options.data, options.split, options.image_folder)


def _check_classes(images: LabeledImages, classes: Sequence[str], options: EvaluateOptions) -> None:
    if len(classes) < 2:
        raise ValueError(
            f"--data {options.data}: all images are labeled {classes[0]!r}. Classification needs at least two classes."
        )
    check_readable(images, f"--data {options.data}")


@dataclass(frozen=True)
class Task:
    """A task of the evaluation.

    Args:
        read: Reads and checks the data, before a model is loaded.
        evaluate: Measures a model. Returns what it has written, or None in a process that is not the first.
    """

    read: Callable[[EvaluateOptions], Any]
    evaluate: Callable[[Run], dict[str, Any] | None]


TASKS = {
    "retrieval": Task(read_pairs, evaluate_retrieval),
    "zero-shot": Task(read_classes, evaluate_zero_shot),
    "linear-probe": Task(read_probed, evaluate_linear_probe),
    "visual-question-answering": Task(
        read_asked,
        lambda run: evaluate_questions(run.model, run.data, run.options, run.output_dir, run.command),
    ),
}


def _reading(options: EvaluateOptions) -> dict[str, Any]:
    """Return the arguments of [`load_benchmark`] that have options of the same names."""
    defaults = {"image_column": IMAGE_COLUMN, "label_column": LABEL_COLUMN}
    chosen = {name: getattr(options, name) for name in (*OF_BENCHMARK, *defaults)}
    return {
        "seed": options.seed,
        **{name: value for name, value in chosen.items() if value not in (None, defaults.get(name))},
    }


def _probed_splits(options: EvaluateOptions) -> dict[str, ClassificationBenchmark]:
    """The splits to train on and to judge by, and one to choose the regularisation by where the set has it."""
    name = options.benchmark or "imagefolder"
    splits: dict[str, ClassificationBenchmark] = {}
    wanted: list[Any] = ["train", *(["validation"] if options.protocol == "logistic" else []), options.split]
    for split in wanted:
        try:
            read = load_benchmark(name, options.data, split=split, held_out=HELD_OUT, **_reading(options))
        except FileNotFoundError:
            if split != "validation":
                raise
            continue
        assert isinstance(read, ClassificationBenchmark)
        splits[split] = read
    return splits


def _labeled(benchmark: ClassificationBenchmark, features: Features, classes: Sequence[str]) -> LabeledFeatures:
    """A split whose images could be embedded, with the numbers of their classes."""
    number_of = {label: number for number, label in enumerate(classes)}
    kept = benchmark.images.select(features.rows.tolist())
    labels = np.array([number_of[label] for label in kept.labels])
    return LabeledFeatures(features.embeds.numpy(), labels, kept.groups)


def _data(
    benchmark: ClassificationBenchmark, rows: int, damaged: list[dict[str, str]], notes: Sequence[str] = ()
) -> dict[str, Any]:
    return {
        "fingerprint": benchmark.fingerprint,
        "rows": rows,
        "damaged": damaged,
        "notes": [*benchmark.notes, *notes],
        **({"selection": benchmark.selection} if benchmark.selection else {}),
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


def _folders(models: Sequence[str], output_dir: Path, *, several: bool = False) -> list[Path]:
    """Return a folder for each of several models, named like it; the output folder itself for one without `several`."""
    if len(models) == 1 and not several:
        return [output_dir]
    if len(set(models)) < len(models):
        raise UsageError("--model names the same model twice.")
    names = [re.sub(r"[^\w.-]+", "_", name) for name in short_names(models)]
    if len(set(names)) < len(names):
        names = [f"{name}_{number}" for number, name in enumerate(names, 1)]
    return [output_dir / name for name in names]
