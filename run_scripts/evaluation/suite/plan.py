"""The plan of `biomedclip evaluate suite`: which benchmarks are available, and which tasks each model supports."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from biomedclip.processing.benchmarks import benchmark_names
from biomedclip.processing.benchmarks.facts import facts_of
from biomedclip.processing.benchmarks.loading import benchmark_options
from biomedclip.processing.benchmarks.medmnist import set_name

from ...cli.errors import UsageError
from ...cli.reporting import say, show_table
from ..checks import check_model
from ..options import ALIASES, OPTIONS, check_options, check_options_of_tasks
from ..tasks import TASKS
from ..zero_shot import OF_BENCHMARK


MEDMNIST = "medmnist"
EXPECTED = "expected in"  # start of the reason for a missing benchmark
_ORDER = ["zero-shot", "linear-probe", "retrieval", "visual-question-answering"]  # the fastest task first


@dataclass(frozen=True)
class Entry:
    """A task on a benchmark, and the folder or file of the benchmark."""

    task: str
    benchmark: str
    path: Path

    @property
    def name(self) -> str:
        """Name of the benchmark. For a MedMNIST dataset, the name of its file."""
        return self.path.stem if self.benchmark == MEDMNIST and self.path.suffix else self.benchmark

    def __str__(self) -> str:
        return f"{self.task} on {self.name}"

    def options(self, of_suite: Any) -> Any:
        """Return the options of the task, without those of other benchmarks."""
        kind = OPTIONS[self.task]
        names = {known.name for known in dataclasses.fields(kind)} - {"task", "benchmark", "data"}
        others = set(OF_BENCHMARK) - set(benchmark_options(self.benchmark))
        values = {name: getattr(of_suite, name) for name in names - others if hasattr(of_suite, name)}
        values |= {"task": self.task, "benchmark": self.benchmark, "data": str(self.path)}
        return kind(**values)


@dataclass
class Outcome:
    """Results of the suite by entry and by short name of the model, and reasons for the missing ones.

    An entry is `missing` without its files, and `not_applicable` if a model does not support it.
    """

    results: dict[Entry, dict[str, dict[str, Any]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    not_applicable: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def suite_runs() -> list[tuple[str, str]]:
    """Return the tasks and benchmarks of the suite, as listed in `benchmarks.yaml`."""
    runs = [(task, name) for name in benchmark_names() for task in facts_of(name).get("suite", [])]
    return sorted(runs, key=lambda run: _ORDER.index(run[0]))


def check_suite_options(options: Any) -> None:
    """Check the options without reading data or models. Raise `UsageError` as [`check_options`] does."""
    options.tasks = [ALIASES.get(task, task) for task in options.tasks]
    runs = selected_runs(options)
    if not options.data_root:
        raise UsageError("suite requires --data-root, the folder of the benchmarks.")
    check_options_of_tasks(options, list(dict.fromkeys(task for task, _ in runs)))
    check_options(options, runs)


def selected_runs(options: Any) -> list[tuple[str, str]]:
    """Return the tasks and benchmarks that `--tasks` and `--benchmarks` select.

    Raise `UsageError` if a task or benchmark is unknown, or if nothing is selected.
    """
    runs = suite_runs()
    tasks, benchmarks = (list(dict.fromkeys(names)) for names in zip(*runs, strict=True))
    for name, given, known in (("tasks", options.tasks, tasks), ("benchmarks", options.benchmarks, benchmarks)):
        if unknown := sorted(set(given) - set(known)):
            raise UsageError(f"--{name}: {unknown[0]!r} is not part of the suite. Choose from {', '.join(known)}.")
    runs = [
        (task, benchmark)
        for task, benchmark in runs
        if task in (options.tasks or tasks) and benchmark in (options.benchmarks or benchmarks)
    ]
    if not runs:
        raise UsageError(f"--tasks {' '.join(options.tasks)} cannot be measured on {', '.join(options.benchmarks)}.")
    return runs


def find_entries(options: Any, outcome: Outcome) -> list[Entry]:
    """Find the benchmarks whose files are below `--data-root`. Missing ones are added to `outcome.missing`.

    Raise `FileNotFoundError` if there are none, or if a benchmark listed in `--benchmarks` is missing.
    """
    root = Path(options.data_root)
    if not root.is_dir():
        raise FileNotFoundError(f"--data-root {root}: the folder does not exist.")
    entries = []
    for task, benchmark in selected_runs(options):
        folder = root / _folder_of(benchmark)
        if benchmark == MEDMNIST:
            paths = []
            for file in sorted(folder.glob("*.npz")):
                if set_name(file) in facts_of(MEDMNIST)["sets"]:
                    paths.append(file)
                else:
                    reason = f"{folder.name}/{file.name} is not a set of 2D images with one label each"
                    outcome.not_applicable[f"{task} on {file.stem}"] = reason
        else:
            paths = [folder] if _is_filled(folder) else []
        entries += [Entry(task, benchmark, path) for path in paths]
        if not paths:
            outcome.missing[f"{task} on {benchmark}"] = f"{EXPECTED} {_expected_in(benchmark)}"
    named = [f"{what} ({why})" for what, why in outcome.missing.items() if what.split(" on ")[1] in options.benchmarks]
    if named:
        raise FileNotFoundError(f"--data-root {root}: files of --benchmarks are missing: {', '.join(named)}.")
    if not entries:
        names = dict.fromkeys(_folder_of(benchmark) for _, benchmark in selected_runs(options))
        raise FileNotFoundError(
            f"--data-root {root}: no benchmark found. It must contain folders named {', '.join(names)}, each with the "
            "files of the benchmark (docs/benchmarks.md)."
        )
    return entries


def _folder_of(benchmark: str) -> str:
    return facts_of(benchmark).get("folder", benchmark)


def _expected_in(benchmark: str) -> str:
    return f"{_folder_of(benchmark)}/" + ("*.npz" if benchmark == MEDMNIST else "")


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())


def tasks_of_models(options: Any, entries: Sequence[Entry], outcome: Outcome) -> dict[str, list[str]]:
    """Return the tasks that each model supports, from its configuration.

    Raise `ValueError` with the reasons for all models that support none of them.
    """
    tasks = list(dict.fromkeys(entry.task for entry in entries))
    found: dict[str, list[str]] = {}
    problems: list[str] = []
    for model in options.model:
        errors: dict[str, str] = {}
        for task in tasks:
            try:
                check_model(model, task, trust_remote_code=options.trust_remote_code)
            except (ValueError, OSError, ImportError) as error:
                errors[task] = str(error)
        found[model] = [task for task in tasks if task not in errors]
        if not found[model]:
            problems += dict.fromkeys(errors.values())
        outcome.not_applicable |= {f"{task}, {model}": error for task, error in errors.items()}
    if problems:
        raise ValueError("\n".join(problems))
    return found


def read_entries(options: Any, entries: Sequence[Entry], outcome: Outcome) -> list[Entry]:
    """Read each benchmark once, before a model is loaded, and return those that can be read.

    A folder can lack files of one benchmark or task and have those of another: the training split for the linear probe,
    or one of the two organs of LC25000. Then the benchmark counts as missing, not as failed.
    """
    readable: list[Entry] = []
    errors: dict[Entry, Exception] = {}
    for entry in entries:
        try:
            TASKS[entry.task].read(entry.options(options))
            readable.append(entry)
        except Exception as error:  # a damaged file can raise any exception
            errors[entry] = error
    used = {entry.path for entry in readable}
    for entry, reason in errors.items():
        partly = isinstance(reason, FileNotFoundError) and entry.path in used
        (outcome.missing if partly else outcome.failed)[str(entry)] = text_of(reason)
    return readable


def show_plan(options: Any, entries: Sequence[Entry], readable: Sequence[Entry], outcome: Outcome) -> None:
    """Print the benchmarks of the suite, where their files are or are expected, and what will not be measured."""
    rows = []
    for task, benchmark in selected_runs(options):
        of_run = [entry for entry in entries if (entry.task, entry.benchmark) == (task, benchmark)]
        for entry in of_run:
            state = "found" if entry in readable else "missing" if str(entry) in outcome.missing else "cannot be read"
            rows.append((entry.name, task, entry.path.relative_to(options.data_root).as_posix(), state))
        if not of_run:
            rows.append((benchmark, task, _expected_in(benchmark), "missing"))
    show_table(f"Suite: benchmarks in {options.data_root}", rows, ["benchmark", "task", "folder or file", ""])
    reasons = {what: why for what, why in outcome.missing.items() if not why.startswith(EXPECTED)}
    for what, reason in (reasons | outcome.not_applicable | outcome.failed).items():
        say(f"{what}: {reason}")


def text_of(error: Exception) -> str:
    """Return the message of an error, with its type if the evaluation does not raise such errors itself."""
    known = isinstance(error, ValueError | OSError | ImportError) and str(error)
    return str(error) if known else f"{type(error).__name__}: {error}"
