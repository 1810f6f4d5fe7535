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
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_and_test, mutate_code
from cosmic_ray.testing import run_tests
from cosmic_ray.work_item import MutationSpec, TestOutcome
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
        f"{MODEL}/test_argument_rules.py",
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


def draw_mutants(module: str, count: int) -> list[MutationSpec]:
    """Draw places of a module, and one change for each, without the changes that cannot alter behaviour."""
    source = (ROOT / module).read_text(encoding="utf-8")
    tree, ignored = get_ast(source), _ignored(source)
    by_place: dict[tuple[int, int], list[MutationSpec]] = {}
    for name in cosmic_ray.plugins.operator_names():
        operator = cosmic_ray.plugins.get_operator(name)
        if operator.arguments() or name.endswith(SAME_RESULT):
            continue  # the arguments are names of variables, which would have to be listed
        places = (place for node in ast_nodes(tree) for place in operator().mutation_positions(node))
        for occurrence, (start, end) in enumerate(places):
            if not any(first <= start <= last for first, last in ignored):
                by_place.setdefault(start, []).append(MutationSpec(module, name, occurrence, start, end))
    draw = random.Random(f"{SEED}/{module}")
    drawn: list[MutationSpec] = []
    for place in draw.sample(sorted(by_place), len(by_place)):
        mutant = draw.choice(by_place[place])
        if len(drawn) < count and _is_valid(source, mutant):
            drawn.append(mutant)
    return sorted(drawn, key=lambda mutant: mutant.start_pos[0])


def _is_valid(source: str, mutant: MutationSpec) -> bool:
    """Return whether the changed module is Python. The `*` before keyword-only parameters is not a multiplication."""
    operator = cosmic_ray.plugins.get_operator(mutant.operator_name)()
    try:
        ast.parse(mutate_code(source, operator, mutant.occurrence))
    except SyntaxError:
        return False
    return True


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


def enter_copy(folder: str) -> None:
    """Copy the working tree, and run tests in the copy. Each job has its own copy."""
    copy = Path(tempfile.mkdtemp(dir=folder))
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    # The package, as links to the copied folders.
    package = copy / "site" / "biomedclip"
    package.mkdir(parents=True)
    others = [copy / name for name in ("processing", "run_scripts", "model_cards")]
    for path in [*(copy / "modeling_biomedclip").iterdir(), *others]:
        (package / path.name).symlink_to(path)
    os.environ |= {"PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"}
    os.chdir(copy)


def command_of(module: str) -> str:
    return shlex.join([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TARGETS[module]])


def run_unchanged(module: str) -> float | str:
    """Return the seconds that the tests of a module take, or their output if they fail."""
    started = time.monotonic()
    outcome, output = run_tests(command_of(module), timeout=3600)
    return time.monotonic() - started if outcome is TestOutcome.SURVIVED else output


def run_mutant(mutant: MutationSpec, timeout: float) -> str | None:
    """Return the changed line if the tests pass, or None if they notice the change."""
    result = mutate_and_test([mutant], command_of(str(mutant.module_path)), timeout)
    if result.is_killed:
        return None
    changed = [line for line in result.diff.splitlines() if line[:1] in ("-", "+") and line[:3] not in ("---", "+++")]
    return "  ->  ".join(line[1:].strip() for line in changed)


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
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(options.jobs, initializer=enter_copy, initargs=(folder,)) as pool,
    ):
        if (shared := ROOT.parent / "shared").exists():
            Path(folder, "shared").symlink_to(shared)
        unchanged = dict(zip(modules, pool.map(run_unchanged, modules), strict=True))
        if failing := {module: output for module, output in unchanged.items() if isinstance(output, str)}:
            for module, output in failing.items():
                sys.stderr.write(f"{module}: the tests fail without any change:\n{output[-3000:]}\n")
            return 1
        mutants = [mutant for module in modules for mutant in draw_mutants(module, options.mutants_per_module)]
        timeouts = [TIMEOUT_FACTOR * unchanged[str(mutant.module_path)] + 30 for mutant in mutants]
        lines = list(tqdm(pool.map(run_mutant, mutants, timeouts), total=len(mutants), unit="mutant"))
    report(mutants, lines, options.output)
    return 0


def report(mutants: list[MutationSpec], lines: list[str | None], output: Path) -> None:
    """Write the results to a file and a table to stdout. Survivors have a changed line."""
    rows = [
        {
            "module": str(mutant.module_path),
            "operator": mutant.operator_name,
            "occurrence": mutant.occurrence,
            "line": mutant.start_pos[0],
            "difference": line,
        }
        for mutant, line in zip(mutants, lines, strict=True)
        if line is not None
    ]
    output.write_text(json.dumps({"mutants": len(mutants), "survivors": rows}, indent=2), encoding="utf-8")
    sys.stdout.write("| module | mutants | noticed |\n|---|---:|---:|\n")
    survived = Counter(row["module"] for row in rows)
    for module, total in Counter(str(mutant.module_path) for mutant in mutants).items():
        sys.stdout.write(f"| {module} | {total} | {total - survived[module]} |\n")
    sys.stdout.write(f"| all | {len(mutants)} | {len(mutants) - len(rows)} |\n\nSurvivors:\n")
    for row in rows:
        sys.stdout.write(f"- {row['module']}:{row['line']} {row['operator']}: {row['difference']}\n")


if __name__ == "__main__":
    sys.exit(main())
