"""Measure how many small faults in the core modules the tests notice.

    make mutation
    python tests/mutation/run.py --mutants-per-module 5 --only jats --output mutation.json

Each mutant is one change that cosmic-ray makes to one module: another operator, comparison or number, a negated
condition, an exchanged `and`/`or`, `True`/`False` or `break`/`continue`, a loop without iterations, a removed
decorator. The places are drawn by seed from all places of the module that can be changed, and one change for each
place. Changes that give invalid code, and changes that cannot alter the results of correct code (`SAME_RESULT`,
`CHECKS`, type annotations), are not drawn. The mutant is written into a copy of the working tree, where the test files
that belong to the module run until the first failure. A mutant survives if they pass. A run that takes longer than
`TIMEOUT_FACTOR` times the unchanged tests counts as noticed.
"""

import argparse
import ast
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue


os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: its threads do not survive a fork

import cosmic_ray.plugins
import datasets  # noqa: F401  imported for the forked processes
import open_clip  # noqa: F401
import pytest
import torch  # noqa: F401
import transformers.modeling_utils
import transformers.trainer  # noqa: F401
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from tqdm.auto import tqdm


ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_FACTOR = 4
SEED = 0
# `==` and `is` give the same result for the small numbers, constants and interned names that are compared.
SAME_RESULT = ("ReplaceComparisonOperator_Eq_Is", "ReplaceComparisonOperator_NotEq_IsNot")
# Arguments that only raise an error for faults elsewhere: assignment to a frozen object, sequences of unequal length.
CHECKS = ("frozen", "slots", "strict")
MODEL, DATA = "tests/modeling_biomedclip", "tests/processing"
# The modules, and the arguments of pytest that run the tests of each, fastest first. Tests that only measure time or
# memory are left out.
TARGETS = {
    "modeling_biomedclip/contrastive_loss.py": [f"{MODEL}/test_contrastive_loss.py"],
    "modeling_biomedclip/cached_gradients.py": [f"{MODEL}/test_cached_gradients.py"],
    "modeling_biomedclip/contrastive_trainer.py": [
        f"{MODEL}/test_contrastive_trainer.py",
        f"{MODEL}/test_training_options.py",
        f"{MODEL}/test_images_in_training.py",
        "tests/run_scripts/training/test_exact_resume.py",
        "-knot again_and_again",
    ],
    "modeling_biomedclip/retrieval_metrics.py": [f"{MODEL}/test_retrieval_metrics.py"],
    "modeling_biomedclip/conversion/open_clip.py": [
        f"{MODEL}/test_conversion.py",
        f"{MODEL}/test_open_clip_settings.py",
    ],
    "modeling_biomedclip/conversion/tensors.py": [f"{MODEL}/test_conversion.py"],
    "processing/bit_depth_biomedclip.py": [f"{DATA}/test_image_processor.py"],
    "processing/image_processing_biomedclip.py": [f"{DATA}/test_image_processor.py"],
    "processing/images/high_bit_depth.py": [f"{DATA}/images/test_high_bit_depth.py"],
    "processing/images/dicom.py": [f"{DATA}/images/test_dicom.py", f"{DATA}/images/test_dicom_display.py"],
    "processing/images/dicom_display.py": [f"{DATA}/images/test_dicom_display.py"],
    "processing/streaming.py": [f"{DATA}/test_streaming.py"],
    "processing/shard_reader.py": [f"{DATA}/test_streaming.py", f"{DATA}/test_integrity.py", "-knot flip"],
    "processing/pmc/splits.py": [f"{DATA}/pmc/test_splits.py"],
    "processing/pmc/dates.py": [f"{DATA}/pmc/test_dates.py", "-knot real_articles"],
    "processing/pmc/jats.py": [
        f"{DATA}/pmc/test_jats_structure.py",
        f"{DATA}/pmc/test_jats.py",
        "-knot longer_than and not real_articles",
    ],
    "processing/pmc/jats_text.py": [
        f"{DATA}/pmc/test_jats.py",
        f"{DATA}/pmc/test_gold_figures.py",
        "-knot longer_than and not real_articles",
    ],
}


@dataclass(frozen=True)
class Mutant:
    """One change of one module: `operator` applied at its `occurrence`-th place, which is at `line`."""

    module: str
    operator: str
    occurrence: int
    line: int

    def code(self) -> str:
        """The text of the changed module."""
        operator = cosmic_ray.plugins.get_operator(self.operator)()
        changed = mutate_code((ROOT / self.module).read_text(encoding="utf-8"), operator, self.occurrence)
        assert changed is not None, self
        return changed

    def is_valid(self) -> bool:
        """Whether the changed module is Python. The `*` before keyword-only parameters is no multiplication."""
        try:
            ast.parse(self.code())
        except SyntaxError:
            return False
        return True

    def difference(self) -> str:
        """The changed line."""
        before = (ROOT / self.module).read_text(encoding="utf-8").splitlines()
        after = self.code().splitlines()
        return next(
            (f"{old.strip()}  ->  {new.strip()}" for old, new in zip(before, after, strict=False) if old != new), ""
        )


def draw_mutants(module: str, count: int) -> list[Mutant]:
    """Draw places of a module, and one change for each, without the changes that cannot alter behaviour."""
    path = ROOT / module
    source = path.read_text(encoding="utf-8")
    tree, ignored = get_ast(source), _ignored(source)
    by_place: dict[tuple[int, int], list[Mutant]] = {}
    for name in cosmic_ray.plugins.operator_names():
        operator_class = cosmic_ray.plugins.get_operator(name)
        if operator_class.arguments():
            continue  # changes of named variables, which would have to be listed
        if name.endswith(SAME_RESULT):
            continue
        places = (place for node in ast_nodes(tree) for place, _ in operator_class().mutation_positions(node))
        for occurrence, place in enumerate(places):
            if not any(start <= place <= end for start, end in ignored):
                by_place.setdefault(place, []).append(Mutant(module, name, occurrence, place[0]))
    draw = random.Random(f"{SEED}/{module}")
    drawn: list[Mutant] = []
    for place in draw.sample(sorted(by_place), len(by_place)):
        mutant = draw.choice(by_place[place])
        if len(drawn) < count and mutant.is_valid():
            drawn.append(mutant)
    return sorted(drawn, key=lambda mutant: mutant.line)


def _ignored(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the type annotations and the enabled `CHECKS` of a module begin and end, as lines and columns."""
    tree = ast.parse(source)
    nodes: list[ast.AST | None] = [
        getattr(node, name, None) for node in ast.walk(tree) for name in ("annotation", "returns")
    ]
    nodes += [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword)
        and node.arg in CHECKS
        and isinstance(node.value, ast.Constant)
        and node.value.value is True
    ]
    return [
        ((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0))
        for node in nodes
        if isinstance(node, ast.expr)
    ]


class Copies:
    """Copies of the working tree, one for each job, in which tests run with a changed module."""

    def __init__(self, folder: Path, jobs: int):
        self._free: SimpleQueue[Path] = SimpleQueue()
        if (shared := ROOT.parent / "shared").exists():
            (folder / "shared").symlink_to(shared)
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for job in range(jobs):
            copy = folder / f"copy-{job}"
            for name in filter(None, names.split("\0")):
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copy / name)
            # The package, as links to the copied folders.
            package = copy / "site" / "biomedclip"
            package.mkdir(parents=True)
            others = [copy / name for name in ("processing", "run_scripts", "model_cards")]
            for path in [*(copy / "modeling_biomedclip").iterdir(), *others]:
                (package / path.name).symlink_to(path)
            self._free.put(copy)

    def run(self, module: str, code: str | None, timeout: float) -> tuple[bool, float]:
        """Whether the tests of a module pass with its code changed, and the seconds that they took."""
        copy = self._free.get()
        started = time.monotonic()
        try:
            if code is not None:
                (copy / module).write_text(code, encoding="utf-8")
            passed = self._run_tests(copy, TARGETS[module], timeout)
        finally:
            shutil.copy(ROOT / module, copy / module)
            self._free.put(copy)
        return passed, time.monotonic() - started

    def _run_tests(self, copy: Path, files: list[str], timeout: float) -> bool:
        # Forked, because importing torch and transformers takes longer than most of the tests.
        process = multiprocessing.get_context("fork").Process(target=_run_pytest, args=(copy, files))
        process.start()
        process.join(timeout)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        return process.exitcode == 0


def _run_pytest(copy: Path, files: list[str]) -> None:
    os.setsid()
    os.chdir(copy)
    sys.path[0] = os.environ["PYTHONPATH"] = str(copy / "site")
    log = os.open("pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    status = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *files])
    os._exit(int(status))  # at once: what the parent has imported must not be shut down


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--mutants-per-module", type=int, default=16, help="places to draw in each module (default: 16)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="mutants tested at a time (default: 2)")
    parser.add_argument("--only", default="", help="test the modules whose path contains this text")
    parser.add_argument("--output", type=Path, default=Path("mutation.json"), help="file for the results")
    options = parser.parse_args()
    modules = [module for module in TARGETS if options.only in module]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        copies = Copies(Path(folder), options.jobs)
        unchanged = dict(zip(modules, pool.map(lambda module: copies.run(module, None, 3600), modules), strict=True))
        if failing := [module for module, (passed, _) in unchanged.items() if not passed]:
            sys.stderr.write(f"The tests fail without any change: {', '.join(failing)}\n")
            for log in Path(folder).glob("*/pytest.log"):
                sys.stderr.write(log.read_text(encoding="utf-8")[-3000:])
            return 1
        mutants = [mutant for module in modules for mutant in draw_mutants(module, options.mutants_per_module)]

        def survives(mutant: Mutant) -> bool:
            timeout = TIMEOUT_FACTOR * unchanged[mutant.module][1] + 30
            return copies.run(mutant.module, mutant.code(), timeout)[0]

        outcomes = list(tqdm(pool.map(survives, mutants), total=len(mutants), unit="mutant"))
    survivors = [mutant for mutant, survived in zip(mutants, outcomes, strict=True) if survived]
    report(mutants, survivors, options.output)
    return 0


def report(mutants: list[Mutant], survivors: list[Mutant], output: Path) -> None:
    """Write the results to a file and a table to stdout."""
    rows = [{**asdict(mutant), "difference": mutant.difference()} for mutant in survivors]
    output.write_text(json.dumps({"mutants": len(mutants), "survivors": rows}, indent=2), encoding="utf-8")
    sys.stdout.write("| module | mutants | noticed |\n|---|---:|---:|\n")
    for module in dict.fromkeys(mutant.module for mutant in mutants):
        total = sum(mutant.module == module for mutant in mutants)
        sys.stdout.write(f"| {module} | {total} | {total - sum(each.module == module for each in survivors)} |\n")
    sys.stdout.write(f"| all | {len(mutants)} | {len(mutants) - len(survivors)} |\n\nSurvivors:\n")
    for row in rows:
        sys.stdout.write(f"- {row['module']}:{row['line']} {row['operator']}: {row['difference']}\n")


if __name__ == "__main__":
    sys.exit(main())
