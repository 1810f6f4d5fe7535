"""`biomedclip evaluate suite`: measure one or several models on all benchmarks in a folder.

Each result is written to `OUTPUT_DIR/MODEL/TASK/BENCHMARK/results.json`. A result is measured again only if its model,
data or options have changed.
"""

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import PartialState

from biomedclip.model_cards.results import RESULTS_FILE, read_result
from biomedclip.processing.benchmarks import ClassificationBenchmark, RetrievalBenchmark, VisualQuestionBenchmark
from biomedclip.processing.benchmarks.facts import facts_version

from ...cli.reporting import say, write_json
from ..checks import check_output, check_writable
from ..dual_encoders import DualEncoder, load_dual_encoder
from ..options import SUITE
from ..pairs import pairs_fingerprint
from ..run import Run
from ..tasks import TASKS
from ..visual_question_answering import load_answerer
from .comparison import compare_suite
from .plan import Entry, Outcome, find_entries, read_entries, show_plan, tasks_of_models, text_of


KEY = "measured_with.json"  # next to results.json: everything that the result depends on
# Options that do not change results.
_WITHOUT_EFFECT = {
    *("model", "data", "output_dir", "features_dir", "task", "batch_size", "workers", "trust_remote_code"),
}


def evaluate_suite(options: Any, folders: Sequence[Path], command: Sequence[str]) -> None:
    """Run `biomedclip evaluate suite`, with a results folder for each model.

    Raise `FileNotFoundError` if there are no benchmarks, or if one of `--benchmarks` is missing. Raise `ValueError` if
    a model fits none of the tasks, an output folder cannot be used, or an evaluation failed. After a failed evaluation,
    the other results and the comparison are still written.
    """
    outcome = Outcome()
    entries = find_entries(options, outcome)
    tasks = tasks_of_models(options, entries, outcome)
    output = Path(options.output_dir)
    check_output([output, *folders], SUITE, None)
    if options.features_dir is not None:
        check_writable(Path(options.features_dir), "--features-dir")
    for model, folder in zip(options.model, folders, strict=True):
        for entry in (entry for entry in entries if entry.task in tasks[model]):
            check_output([folder / entry.task / entry.name], entry.task, entry.benchmark)
    readable = read_entries(options, entries, outcome)
    if PartialState().is_main_process:
        show_plan(options, entries, readable, outcome)
    try:
        for model, folder in zip(options.model, folders, strict=True):
            mine = [entry for entry in readable if entry.task in tasks[model]]
            if mine and not _evaluate_model(model, folder, mine, options, command, outcome):
                break  # other processes may have failed elsewhere, and may be waiting
    finally:
        if PartialState().is_main_process and outcome.results:
            measured = [entry for entry in readable if entry in outcome.results]
            compare_suite(
                [(entry.task, entry.benchmark, entry.name, outcome.results[entry]) for entry in measured],
                [folder.name for folder in folders],
                output,
                remarks={
                    "Missing": outcome.missing,
                    "Not applicable": outcome.not_applicable,
                    "Failed": outcome.failed,
                },
            )
    if outcome.failed:
        errors = "\n".join(f"{what}: {error}" for what, error in outcome.failed.items())
        raise ValueError(
            f"{len(outcome.failed)} of the evaluations failed:\n{errors}\nCorrect this and run the same command again. "
            "Finished results are kept."
        )


def _evaluate_model(
    model: str, folder: Path, entries: Sequence[Entry], options: Any, command: Sequence[str], outcome: Outcome
) -> bool:
    """Evaluate a model on some entries, and return whether to continue with the other models."""
    alone = PartialState().num_processes == 1
    try:
        encoder = _load(model, entries[0].task, options)
    except Exception as error:
        outcome.failed[f"--model {model}"] = text_of(error)
        return alone
    for entry in entries:
        of_entry, what = entry.options(options), f"{entry}, {model}"
        try:
            if PartialState().is_main_process:
                say(what)
            data = TASKS[entry.task].read(of_entry)
            run = Run(model, data, of_entry, folder / entry.task / entry.name, command, encoder)
            result = _measure(run, encoder)
        except Exception as error:
            # Stored as text, because the exception would keep its model in memory.
            outcome.failed[what] = text_of(error)
            if not alone:
                return False
            continue
        if result is not None:
            outcome.results.setdefault(entry, {})[folder.name] = result
    return True


def _load(model: str, task: str, options: Any) -> DualEncoder:
    if task == "visual-question-answering":  # a model with a head for questions has no other task
        return load_answerer(model, trust_remote_code=options.trust_remote_code)
    return load_dual_encoder(model, precision=options.precision, trust_remote_code=options.trust_remote_code)


def _measure(run: Run, encoder: DualEncoder) -> dict[str, Any] | None:
    """Return the result of an earlier run with the same key, or measure a new one."""
    key, path = _key(run, encoder), run.output_dir / KEY
    try:
        if json.loads(path.read_text(encoding="utf-8")) == key:
            before = read_result(run.output_dir / RESULTS_FILE)
            if PartialState().is_main_process:
                say(f"Already measured: {run.output_dir / RESULTS_FILE}")
            return before
    except (OSError, ValueError):
        pass  # not measured yet, or damaged
    if PartialState().is_main_process:
        path.unlink(missing_ok=True)
    result = TASKS[run.options.task].evaluate(run)
    if result is not None:
        write_json(path, key)
    return result


def _key(run: Run, encoder: DualEncoder) -> dict[str, Any]:
    """Return everything that a result depends on, in the form in which JSON stores it."""
    key = {
        "options": {name: value for name, value in vars(run.options).items() if name not in _WITHOUT_EFFECT},
        "weights": encoder.weights,
        "processor": encoder.processing,
        "data": list(_fingerprints(run.data)),
        "version": version("biomedclip"),
        "facts": facts_version(),
    }
    return json.loads(json.dumps(key))


def _fingerprints(data: Any) -> Iterator[Any]:
    """Yield the fingerprints and prompts of the data of a task: a benchmark, or a tuple or mapping of benchmarks."""
    if isinstance(data, tuple | dict):
        for part in data.values() if isinstance(data, dict) else data:
            yield from _fingerprints(part)
    elif isinstance(data, RetrievalBenchmark):
        pairs: Any = data.pairs
        yield pairs_fingerprint(pairs, pairs["pair_id"], pairs["caption"])
    elif isinstance(data, ClassificationBenchmark):
        yield [data.fingerprint, data.class_names, data.templates]
    elif isinstance(data, VisualQuestionBenchmark):
        yield data.fingerprint
