"""Run all steps on synthetic data: build a dataset, train, convert, evaluate, load and fine-tune a small model.

biomedclip quickstart --output-dir out
biomedclip quickstart --source ../pmc_mirror --output-dir out
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biomedclip.model_cards.reading import read_json
from biomedclip.processing.synthetic_corpus import write_labels, write_synthetic_corpus

from .cli.errors import UsageError
from .cli.fields import REQUIRED, option
from .cli.options import parse_options, read_recipe
from .cli.reporting import claim_folder, peak_memory_mib, say, show_stage, show_table, versions, write_json


EXAMPLE = "biomedclip quickstart --output-dir out"
# Everything that a quickstart writes. --overwrite removes these and nothing else.
RESULTS = (
    ".build corpus data model training adapter results README.md articles.parquet skipped.jsonl labels.csv".split()
)
RESULTS += ["report.json", "report.md", "report.png", "curves.png", "answers.png"]
LORA = "--config lora_contrastive --learning-rate 1e-3 --logging-steps 1 --eval-strategy no --save-strategy no".split()
LORA += ["--merge-adapter", "true", "--dataloader-num-workers", "0"]


@dataclass
class QuickstartOptions:
    """Options of `biomedclip quickstart`."""

    output_dir: str = option(REQUIRED, "Folder for the dataset, the model, the adapter and the report.")
    config: str = option("quickstart", "Recipe of the steps (default: quickstart).")
    source: str | None = option(
        None, "Mirror of PubMed Central's bucket, or s3://pmc-oa-opendata (default: synthetic data)."
    )
    pmcids: str | None = option(None, "Articles to use, such as PMC1,PMC2 (default: all).")
    license: str = option("all", "Licenses, as for biomedclip build (default: all).")
    figures: int = option(3000, "Number of synthetic figures (default: 3000).")
    max_steps: int | None = option(None, "Training steps (default: as in the recipe).")
    lora_steps: int = option(10, "Steps of fine-tuning with LoRA (default: 10).")
    seed: int = option(0, "Seed of the data, the training and the evaluation (default: 0).")
    overwrite: bool = option(False, "Replace an earlier quickstart (default: no).")


def main(arguments: Sequence[str]) -> None:
    """Run `biomedclip quickstart`."""
    summary = __doc__.split("\n\n")[0]
    (options,) = parse_options("quickstart", [QuickstartOptions], arguments, description=summary, example=EXAMPLE)
    started = time.monotonic()
    out = Path(options.output_dir)
    if options.source and Path(options.source).resolve().is_relative_to(out.resolve()):
        raise UsageError(f"--source {options.source} is in the output folder. Choose another --output-dir.")
    claim_folder(out, RESULTS, overwrite=options.overwrite)
    show_stage("1/5 Build a dataset")
    source = options.source or str(out / "corpus")
    if options.source is None:
        write_synthetic_corpus(source, figures=options.figures, seed=options.seed, progress=True)
    # These modules import torch, which takes several seconds.
    import datasets
    import transformers

    from . import build, convert, evaluate, train
    from .cli.plots import plot_curves
    from .evaluation.reloading import compare_adapter, compare_pipeline

    transformers.utils.logging.disable_progress_bar()  # the files have only a few megabytes
    datasets.disable_progress_bars()
    built = build.build(
        build.SourceOptions(source, options.pmcids, license=options.license),
        build.OutputOptions(options.output_dir, options.seed),
        synthetic=options.source is None,
    )
    assert built is not None, "a build on this machine returns its report"
    if options.source is None:
        write_labels(source, out)

    show_stage("2/5 Train")
    data = ["--train-data", out, "--seed", options.seed]
    batch = _batch_size(options.config, built["splits"]["train"]["pairs"])
    steps = [] if options.max_steps is None else ["--max-steps", options.max_steps]
    _run(train, "--config", options.config, *data, "--output-dir", out / "training", "--batch-size", batch, *steps)
    _run(convert, out / "training", out / "model")

    show_stage("3/5 Evaluate on held-out articles")
    metrics: dict[str, Any] = {"zero-shot": None}
    for task in ("retrieval", "zero-shot") if options.source is None else ("retrieval",):
        folder = out / "results" / task
        where = ["--model", out / "model", "--data", out, "--output-dir", folder, "--seed", options.seed]
        _run(evaluate, task, "--config", options.config, *where, *(["--examples", 6] if task == "retrieval" else []))
        metrics[task] = read_json(folder / "results.json")["metrics"]
    for page in (out / "results" / "retrieval" / "examples").glob("image_to_text_1.png"):
        shutil.copyfile(page, out / "answers.png")
    if zero_shot := metrics["zero-shot"]:
        # Recall of a model that knows the kind of a figure and guesses among the pairs of that kind.
        metrics["retrieval"]["oracle_of_kind_at_1"] = len(zero_shot["classes"]) / zero_shot["images"]

    show_stage("4/5 Load the model with transformers")
    reloaded = compare_pipeline(out / "model", out)

    show_stage("5/5 Fine-tune with LoRA")
    lora = None
    if options.lora_steps > 0:
        where = ["--model-name-or-path", out / "model", *data, "--output-dir", out / "adapter"]
        _run(train, *LORA, *where, "--max-steps", options.lora_steps, "--batch-size", min(32, batch))
        lora = compare_adapter(out / "adapter", out / "model", out)

    report = {
        "retrieval": metrics["retrieval"],
        "zero_shot": zero_shot,
        "training": read_json(out / "training" / "train_results.json"),
        "reloaded": reloaded,
        "lora": lora,
        "build": built,
        "seed": options.seed,
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_mib": peak_memory_mib(),
        "versions": versions(),
    }
    plot_curves(read_json(out / "training" / "trainer_state.json")["log_history"], out / "curves.png")
    write_json(out / "report.json", report)
    retrieval = metrics["retrieval"]
    rows = [
        ("image to text, recall at 1", retrieval["image_to_text"]["recall_at_1"]),
        ("text to image, recall at 1", retrieval["text_to_image"]["recall_at_1"]),
        ("  chance", retrieval["chance_at_1"]),
        ("zero-shot accuracy", zero_shot and zero_shot["accuracy"]),
        ("total seconds", report["seconds"]),
    ]
    show_table("Quickstart", rows, ["", "value"])
    say(f"Output in {out}: model/, adapter/, data/, results/, report.json, curves.png, answers.png")


def _run(verb: Any, *arguments: Any) -> None:
    """Run a verb in this process, and show its command line."""
    words = [str(argument) for argument in arguments]
    show_stage(f"$ biomedclip {verb.__name__.rpartition('.')[2]} {' '.join(words)}")
    verb.main(words)


def _batch_size(config: str, pairs: int) -> int:
    """Return the batch size of the recipe, or the largest power of two that a small dataset fills."""
    recipe = read_recipe(config, ["train"])
    wanted = recipe.get("batch_size") or recipe["per_device_train_batch_size"]
    return wanted if pairs >= wanted else 1 << (pairs.bit_length() - 1)
