"""Measure models: retrieval, classification, linear probes, visual questions, panels, or all benchmarks."""

import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState

from .cli.devices import use_device
from .cli.errors import UsageError, suggestion
from .cli.options import option_value, parse_options
from .cli.reporting import say
from .evaluation.checks import check_model, check_output, check_writable
from .evaluation.comparison import compare, short_names, show_published
from .evaluation.options import (
    ALIASES,
    OPTIONS,
    SUITE,
    AllOptions,
    check_options,
    help_groups,
    models_together,
    refuse_options_of_other_tasks,
)
from .evaluation.panels import PANELS
from .evaluation.run import Run
from .evaluation.suite.plan import check_suite_options
from .evaluation.suite.suite import evaluate_suite
from .evaluation.tasks import TASKS
from .training.runs import end_processes


logger = logging.getLogger(__name__)

EXAMPLE = """biomedclip evaluate retrieval --model run --data out --output-dir results
  biomedclip evaluate zero-shot --model run --data classes --output-dir results
  biomedclip evaluate linear-probe --model run --data classes --output-dir out
  biomedclip evaluate image-classification --model classifier --data classes \\
      --output-dir results
  biomedclip evaluate visual-question-answering --model answers \\
      --benchmark vqa_rad --data VQA_RAD --output-dir results
  biomedclip evaluate panels --data gold.jsonl --images figures --output-dir out
  biomedclip evaluate suite --model run another --data-root benchmarks \\
      --output-dir results"""


def main(arguments: Sequence[str]) -> None:
    """Run `biomedclip evaluate`."""
    options = _parse(arguments)
    if options.task == SUITE:
        check_suite_options(options)
    else:
        check_options(options, [(options.task, options.benchmark)])
    use_device(options.device)
    models = options.model if options.task != PANELS else [options.detector or ""]  # one detector
    folders = _folders(models, Path(options.output_dir), several=options.task == SUITE)
    if options.task == SUITE:
        evaluate_suite(options, folders, arguments)
    else:
        _evaluate_models(options, models, folders, arguments)
    end_processes()


def _parse(arguments: Sequence[str]) -> Any:
    words = models_together(arguments)
    first = arguments[0] if arguments and not arguments[0].startswith("-") else None
    task = first or option_value("evaluate", "task", arguments) or "retrieval"
    task = ALIASES.get(task, task)
    if task not in OPTIONS:
        raise UsageError(f"Unknown task {task!r}.{suggestion(task, OPTIONS)} Choose one of {', '.join(OPTIONS)}.")
    refuse_options_of_other_tasks(task, arguments)
    (options,) = parse_options(
        "evaluate",
        [OPTIONS[task] if first or not {"-h", "--help"} & set(arguments) else AllOptions],
        words,
        description=f"{__doc__} biomedclip evaluate TASK --help lists the options of one task.",
        example=EXAMPLE,
        groups=help_groups(first),
        positionals=["task"],
    )
    options.task, options.benchmark = task, getattr(options, "benchmark", None)
    return options


def _evaluate_models(options: Any, models: Sequence[str], folders: Sequence[Path], arguments: Sequence[str]) -> None:
    data = _checked_data(options, folders)
    results, failed = {}, {}
    for model, folder in zip(models, folders, strict=True):
        if len(folders) > 1 and PartialState().is_main_process:
            say(model)
        try:
            results[folder] = TASKS[options.task].evaluate(Run(model, data, options, folder, arguments))
        except Exception as error:
            if len(folders) == 1:
                raise
            # Stored as text, because the exception would keep its model in memory.
            failed[model] = f"{type(error).__name__}: {error}"
            logger.error("%s: %s", model, failed[model])
            if PartialState().num_processes > 1:
                break  # other processes may have failed elsewhere, and may be waiting
    measured = [result for result in results.values() if result is not None]
    if len(folders) > 1 and measured:
        compare(measured, Path(options.output_dir), [*results])
    elif measured:
        show_published(options.task, measured[0]["published"])
    if failed:
        names = "; ".join(f"{model}: {reason}" for model, reason in failed.items())
        raise ValueError(f"{len(failed)} of {len(folders)} models could not be measured: {names}")


def _checked_data(options: Any, folders: Sequence[Path]) -> Any:
    """Check everything that can be checked before a model is loaded, and read the data.

    Several problems are reported together, as one `ValueError`.
    """
    problems: list[Exception] = []
    data = None
    models = [] if TASKS[options.task].checks_models else options.model
    checks: list[Callable[[], Any]] = [
        *(partial(check_model, name, options.task, trust_remote_code=options.trust_remote_code) for name in models),
        partial(TASKS[options.task].read, options),
    ]
    for check in checks:
        try:
            data = check()
        except (ValueError, OSError, ImportError) as error:
            problems.append(error)
    if len(problems) > 1:
        raise ValueError("\n".join(map(str, problems)))
    if problems:
        raise problems[0]
    check_output([*dict.fromkeys([Path(options.output_dir), *folders])], options.task, options.benchmark)
    if getattr(options, "features_dir", None) is not None:
        check_writable(Path(options.features_dir), "--features-dir")
    return data


def _folders(models: Sequence[str], output_dir: Path, *, several: bool) -> list[Path]:
    """Return a folder named after each model, or the output folder for a single model without `several`."""
    if len(models) == 1 and not several:
        return [output_dir]
    if len(set(models)) < len(models):
        raise UsageError("--model contains the same model twice.")
    names = [re.sub(r"[^\w.-]+", "_", name) for name in short_names(models)]
    if len(set(names)) < len(names):
        names = [f"{name}_{number}" for number, name in enumerate(names, 1)]
    return [output_dir / name for name in names]
