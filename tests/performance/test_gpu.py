"""The script for GPUs runs in little on a CPU, and continues where it ended."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import ENVIRONMENT, ROOT


# Without an accelerator or the package.
MISSING = {("training", "training of 512 pairs, flash_attention_2"), ("correctness", "FSDP2 with one process")}


def run(folder: Path, *options: str) -> str:
    command = [sys.executable, "tests/performance/gpu.py", str(folder), "--small", "--device", "cpu", *options]
    result = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
def test_all_measurements_of_the_gpu_script_run_on_a_cpu_and_a_second_run_repeats_none(shared_data, tmp_path):
    run(tmp_path, "--parts", "products")
    products = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["products"]
    run(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    parts = {name: entries for name, entries in results.items() if name not in ("machine", "device", "versions")}
    assert len(parts) == 8 and all(parts.values())
    errors = {(part, name) for part, entries in parts.items() for name, entry in entries.items() if "error" in entry}
    assert errors <= MISSING
    assert parts["correctness"]["resumed run"]["bitwise_equal"]
    assert parts["correctness"]["50 steps"]["float32_to_cpu"] == 0
    trained = parts["training"]["training of 512 pairs"]
    assert trained["utilization"] > 0 and trained["hours_of_445_million"] == pytest.approx(
        445e6 / trained["samples_per_second"] / 3600
    )
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "**global batches**" in table and "| open_clip |" in table
    assert results["products"] == products and all("took" in entry for entry in products.values())
