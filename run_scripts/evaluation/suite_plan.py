"""What `biomedclip evaluate suite` runs: the benchmarks that are there, and the tasks that each model can do."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from biomedclip.model_cards.model_card import OF_THE_PAPER
from biomedclip.processing.benchmarks.facts import facts_of
from biomedclip.processing.benchmarks.medmnist import set_name

from ..cli.errors import UsageError
from ..cli.reporting import say, show_table
from .checks import check_model


MEDMNIST = "medmnist"
EXPECTED = "expected in"  # begins the reason why a benchmark is missing
_ORDER = [
    "zero-shot",
    "linear-probe",
    "retrieval",
    "visual-question-answering",
]  # zero-shot classification takes the least time
# Tasks and benchmarks of the suite: those of the paper, and MedMNIST.
RUNS = sorted([*OF_THE_PAPER, ("zero-shot", MEDMNIST)], key=lambda run: _ORDER.index(run[0]))


@dataclass(frozen=True)
class Entry:
    """A task on a benchmark, and the folder or file of the benchmark."""

    task: str
    benchmark: str
    path: Path

    @property
    def name(self) -> str:
        """The name of the benchmark; of a set of MedMNIST the name of its file."""
        return self.path.stem if self.benchmark == MEDMNIST and self.path.suffix else self.benchmark

    def __str__(self) -> str:
        return f"{self.task} on {self.name}"


@dataclass
class Outcome:
    """What the suite has measured, and what it could not measure.

    Args:
        results: Contents of `results.json` by entry and by short name of the model.
        missing: Entries whose files are not there, with the reason.
        not_applicable: Entries that a model cannot do, with the reason.
        failed: Entries that failed, with the error.
    """

    results: dict[Entry, dict[str, dict[str, Any]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    not_applicable: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def expected_in(benchmark: str) -> str:
    """Return the folder of a benchmark below `--data-root`, or for MedMNIST the files."""
    return f"{folder_of(benchmark)}/" + ("*.npz" if benchmark == MEDMNIST else "")


def folder_of(benchmark: str) -> str:
    """Return the name of the folder of a benchmark below `--data-root`."""
    return "lc25000" if benchmark.startswith("lc25000") else benchmark


def selected_runs(options: Any) -> list[tuple[str, str]]:
    """Return the tasks and benchmarks that `--tasks` and `--benchmarks` select.

    Raises:
        UsageError: If a task or benchmark is unknown, or if none of the benchmarks has one of the tasks.
    """
    tasks, benchmarks = (list(dict.fromkeys(names)) for names in zip(*RUNS, strict=True))
    for name, given, known in (("tasks", options.tasks, tasks), ("benchmarks", options.benchmarks, benchmarks)):
        if unknown := sorted(set(given) - set(known)):
            raise UsageError(f"--{name}: {unknown[0]!r} is not part of the suite. It has {', '.join(known)}.")
    runs = [
        (task, benchmark)
        for task, benchmark in RUNS
        if task in (options.tasks or tasks) and benchmark in (options.benchmarks or benchmarks)
    ]
    if not runs:
        raise UsageError(
            f"--tasks {' '.join(options.tasks)}: none of these is measured on {', '.join(options.benchmarks)}."
        )
    return runs


def find_entries(options: Any, outcome: Outcome) -> list[Entry]:
    """Find the benchmarks whose files are below `--data-root`. Others are added to `outcome.missing`.

    Raises:
        FileNotFoundError: If there is none, or if one that `--benchmarks` names is missing.
    """
    root = Path(options.data_root)
    if not root.is_dir():
        raise FileNotFoundError(f"--data-root {root}: there is no such folder.")
    entries = []
    for task, benchmark in selected_runs(options):
        folder = root / folder_of(benchmark)
        if benchmark != MEDMNIST:
            paths = [folder] if _is_filled(folder) else []
        else:
            files = sorted(folder.glob("*.npz"))
            paths = [file for file in files if set_name(file) in facts_of(MEDMNIST)["sets"]]
            for file in files:
                if file not in paths:
                    outcome.not_applicable[f"{task} on {file.stem}"] = (
                        f"{folder.name}/{file.name} is not a set of 2D images with one label each"
                    )
        entries += [Entry(task, benchmark, path) for path in paths]
        if not paths:
            outcome.missing[f"{task} on {benchmark}"] = f"{EXPECTED} {expected_in(benchmark)}"
    named = [f"{what} ({why})" for what, why in outcome.missing.items() if what.split(" on ")[1] in options.benchmarks]
    if named:
        raise FileNotFoundError(f"--data-root {root}: --benchmarks names files that are missing: {', '.join(named)}.")
    if not entries:
        names = dict.fromkeys(folder_of(benchmark) for _, benchmark in selected_runs(options))
        raise FileNotFoundError(
            f"--data-root {root}: no benchmark there. Expected are folders called {', '.join(names)}, each with the "
            "files of the benchmark (docs/benchmarks.md)."
        )
    return entries


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())


def tasks_of_models(options: Any, entries: Sequence[Entry], outcome: Outcome) -> dict[str, list[str]]:
    """Return the tasks that each model can do, from its configuration.

    Raises:
        ValueError: If a model can do none of them. The message has the reasons for all such models.
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

    A benchmark counts as missing, and not as failed, if its files are not there while another task or benchmark uses
    the same folder: the training split for the linear probe, or one of the two organs of LC25000.
    """
    from ..evaluate import TASKS  # which imports this module

    readable: list[Entry] = []
    errors: dict[Entry, Exception] = {}
    for entry in entries:
        try:
            TASKS[entry.task].read(options_of(entry, options))
            readable.append(entry)
        except Exception as error:  # a damaged file can raise anything
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
            rows.append((benchmark, task, expected_in(benchmark), "missing"))
    show_table(f"Suite: benchmarks in {options.data_root}", rows, ["benchmark", "task", "folder or file", ""])
    reasons = {what: why for what, why in outcome.missing.items() if not why.startswith(EXPECTED)}
    for what, reason in (reasons | outcome.not_applicable | outcome.failed).items():
        say(f"{what}: {reason}")


def options_of(entry: Entry, options: Any) -> Any:
    """Return the options of an entry, without those of other benchmarks."""
    from ..evaluate import OF_BENCHMARK

    others = {name: None for name, benchmark in OF_BENCHMARK.items() if benchmark != entry.benchmark}
    of_entry = {"task": entry.task, "benchmark": entry.benchmark, "data": str(entry.path)}
    return dataclasses.replace(options, **others, **of_entry)


def text_of(error: Exception) -> str:
    """Return the message of an error, with its type if it is not one that the evaluation raises."""
    known = isinstance(error, ValueError | OSError | ImportError) and str(error)
    return str(error) if known else f"{type(error).__name__}: {error}"
