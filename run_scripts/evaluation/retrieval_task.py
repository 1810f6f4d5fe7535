"""The `retrieval` task: match images and captions of a built dataset, among all pairs or in pools."""

from collections.abc import Mapping
from typing import Any

from accelerate import PartialState

from biomedclip.contrastive_trainer import LOSS_IN_BATCHES
from biomedclip.processing import load_benchmark, load_pmc15m
from biomedclip.processing.benchmarks import RetrievalBenchmark
from biomedclip.processing.shard_reader import column_names

from ..cli.reporting import say
from .examples import find_examples, write_examples
from .pools import draw_pool, number_of_draws
from .retrieval import (
    check_captions,
    count_ranks,
    embed_pairs,
    mean_or_none,
    retrieval_of_pools,
    show_retrieval,
    validation_loss,
)
from .run import Run, note_if_few


def read_pairs(options: Any) -> tuple[RetrievalBenchmark | None, Any]:
    """Return the benchmark, if there is one, and the pairs of a split."""
    benchmark: Any = None
    if options.benchmark is not None:
        benchmark = load_benchmark(options.benchmark, options.data, split=options.split)
    columns = ["pair_id", "pmcid", "image", "caption"]
    if options.examples and "license" in column_names(options.data, options.split):
        columns.append("license")  # the plots reproduce figures of articles
    if options.image_id and options.image_id not in columns:
        columns.append(options.image_id)
    pairs: Any = load_pmc15m(options.data, options.split, streaming=False, columns=columns, decode=False)
    check_captions(pairs["pair_id"], pairs["caption"])
    number_of_draws(len(pairs), options.pool_size, options.pool_draws, options.split)
    return benchmark, pairs


def evaluate_retrieval(run: Run) -> dict[str, Any] | None:
    """Evaluate retrieval. The first process writes and returns the results."""
    options = run.options
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
    paper, notes = _published(benchmark, metrics["pool"], options.image_id)
    if metrics["pairs"] < 10:
        notes.append(f"Only {metrics['pairs']} pairs: recall at 10 is 1 for every model.")
    show_retrieval(metrics, paper=paper, split=options.split)
    examples = []
    if options.examples and counts[0] is not None:
        found = find_examples(first, counts[0], options.examples, options.seed)
        examples = write_examples(found, pairs, run.output_dir)
        if options.examples > size:
            notes.append(f"--examples {options.examples}: there are only {size} pairs, and all are examples.")
        say(f"Examples in {run.output_dir}: {', '.join(dict.fromkeys(entry['file'] for entry in examples))}")
    return run.write(
        encoder,
        data={
            "fingerprint": embedded.fingerprint,
            "rows": metrics["pairs"],
            "damaged": embedded.damaged,
            "notes": notes + note_if_few(metrics["articles"], "articles"),
        },
        metrics=metrics,
        paper=paper,
        paper_source=benchmark.source if benchmark and paper else "",
        settings={"image_id": options.image_id, "pool_size": options.pool_size, "pool_draws": draws},
        examples=examples,
    )


def _published(
    benchmark: RetrievalBenchmark | None, pool: Mapping[str, int], image_id: str | None
) -> tuple[dict[str, Any], list[str]]:
    """Return the paper's values, if they were measured on as many pairs as the pool has, and notes."""
    if benchmark is None:
        return {}, []
    if benchmark.paper and image_id is not None:
        return {}, [
            f"--image-id {image_id}: an image can have several right captions here, but has one in the paper. The "
            "paper's values are not shown."
        ]
    published = benchmark.published_pairs
    if not benchmark.paper or published is None or pool["size"] == published:
        return dict(benchmark.paper), list(benchmark.notes)
    remedy = f" Pass --pool-size {published} to compare." if pool["pairs"] >= published else ""
    return {}, [
        f"The pools differ: retrieval is among {pool['size']:,} pairs here and among {published:,} in the paper. The "
        f"paper's values are not shown, because recall depends on the number of pairs.{remedy}"
    ]
