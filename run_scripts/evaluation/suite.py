"""All benchmarks of a folder, on one or several models: `biomedclip evaluate suite`.

Each result is kept in `OUTPUT_DIR/MODEL/TASK/BENCHMARK/results.json`. A result whose model, data and options have not
changed is not measured again.
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

from ..cli.reporting import say, write_json
from .checks import check_output, check_writable
from .dual_encoders import DualEncoder, load_dual_encoder
from .retrieval import pairs_fingerprint
from .suite_comparison import compare_suite
from .suite_plan import Entry, Outcome, find_entries, options_of, read_entries, show_plan, tasks_of_models, text_of
from .visual_question_answering import load_answerer


SUITE = "suite"
KEY = "measured_with.json"  # beside results.json: what the result depends on
# Options that do not change results.
_WITHOUT_EFFECT = {
    *("model", "data", "output_dir", "features_dir", "task", "batch_size", "workers", "trust_remote_code"),
}


def evaluate_suite(options: Any, folders: Sequence[Path], command: Sequence[str]) -> None:
    """Run `biomedclip evaluate suite`.

    Args:
        options: `EvaluateOptions`.
        folders: The folder of each model for its results.
        command: The command line behind `biomedclip evaluate`.

    Raises:
        FileNotFoundError: If no benchmark is there, or one that `--benchmarks` names is missing.
        ValueError: If a model fits none of the tasks, an output folder cannot be used, or an evaluation failed. Other
            results are kept, and the comparison is written.
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
                break  # other processes may have failed elsewhere, and wait
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
    """Evaluate a model on some entries. Return whether other evaluations may follow."""
    from ..evaluate import TASKS, Run

    alone = PartialState().num_processes == 1
    try:
        encoder = _load(model, entries[0].task, options)
    except Exception as error:
        outcome.failed[f"--model {model}"] = text_of(error)
        return alone
    for entry in entries:
        of_entry, what = options_of(entry, options), f"{entry}, {model}"
        try:
            if PartialState().is_main_process:
                say(what)
            data = TASKS[entry.task].read(of_entry)
            run = Run(model, data, of_entry, folder / entry.task / entry.name, command, encoder)
            result = _measure(run, encoder)
        except Exception as error:
            # As text: the error itself would keep its memory.
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


def _measure(run: Any, encoder: DualEncoder) -> dict[str, Any] | None:
    """Return the result of an earlier run with the same key, or measure."""
    from ..evaluate import TASKS

    key, path = _key(run, encoder), run.output_dir / KEY
    try:
        if json.loads(path.read_text(encoding="utf-8")) == key:
            before = read_result(run.output_dir / RESULTS_FILE)
            if PartialState().is_main_process:
                say(f"Measured before: {run.output_dir / RESULTS_FILE}")
            return before
    except (OSError, ValueError):
        pass  # not measured yet, or damaged
    if PartialState().is_main_process:
        path.unlink(missing_ok=True)
    result = TASKS[run.options.task].evaluate(run)
    if result is not None:
        write_json(path, key)
    return result


def _key(run: Any, encoder: DualEncoder) -> dict[str, Any]:
    """Return what a result depends on, as JSON holds it."""
    from ..evaluate import READ_BY

    task = run.options.task
    options = {
        name: value
        for name, value in vars(run.options).items()
        if name not in _WITHOUT_EFFECT and task in READ_BY.get(name, [task])
    }
    key = {
        "options": options,
        "weights": encoder.weights,
        "processor": encoder.processing,
        "data": list(_fingerprints(run.data)),
        "version": version("biomedclip"),
        "facts": facts_version(),
    }
    return json.loads(json.dumps(key))


def _fingerprints(data: Any) -> Iterator[Any]:
    """Yield the fingerprints and prompts of what a task has read: benchmarks, alone or in a tuple or mapping."""
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
