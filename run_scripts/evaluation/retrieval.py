"""The `retrieval` task: match images and captions of a dataset, among all pairs or in pools."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState

from biomedclip.contrastive_trainer import LOSS_IN_BATCHES, VALIDATION_BATCH, loss_in_batches
from biomedclip.processing import load_benchmark, load_pmc15m
from biomedclip.processing.benchmarks import RetrievalBenchmark
from biomedclip.processing.pairs import Pairs
from biomedclip.processing.shard_reader import column_names
from biomedclip.retrieval_metrics import (
    DIRECTIONS,
    RECALLS,
    RankCounter,
    RankCounts,
    all_finite,
    expected_ranks,
    recall_at,
    summarize_ranks,
)

from ..cli.errors import UsageError
from ..cli.own_pairs import COLUMNS, is_built, load_own_pairs
from ..cli.reporting import UNDEFINED, format_value, say, say_undefined, show_table
from .dual_encoders import BIOVIL, DualEncoder
from .examples import find_examples, find_worst, write_examples
from .pairs import EmbeddedPairs, check_captions, embed_pairs
from .parts import Part, Parts
from .pools import draw_pool, number_of_draws
from .predictions import PredictionTable, Rows
from .report.gallery import SHOWN
from .report.retrieval import write_retrieval_report
from .run import Run, note_if_few, with_interval
from .statistics.bootstrap import bootstrap_means, is_constant, percentile_interval
from .statistics.exact_intervals import exact_interval


# Images in a block. Each of the 45 blocks of 725,739 pairs takes 6 MB on disk.
BLOCK = 16_384
RANKS = pa.schema(
    [
        ("direction", pa.string()),
        ("query", pa.string()),
        ("rank", pa.float64()),
        ("candidates", pa.int64()),
        ("group", pa.string()),
    ]
)


class Pool(NamedTuple):
    """The rank counts of a pool by direction, the article of each text, and the image of each text.

    The counts are None if an embedding is not finite. The images are None if text i belongs to image i.
    """

    counts: Mapping[str, RankCounts] | None
    articles: Sequence[Any]
    image_of_text: torch.Tensor | None = None

    @property
    def images(self) -> int:
        """Return the number of images."""
        return len(self.articles) if self.image_of_text is None else int(self.image_of_text.max()) + 1

    def articles_of_queries(self) -> dict[str, Sequence[Any]]:
        """Return the article of each query, by direction."""
        of_images = self.articles
        if self.image_of_text is not None:
            article_of = dict(zip(self.image_of_text.tolist(), self.articles, strict=True))
            of_images = [article_of[image] for image in range(len(article_of))]
        return dict(zip(DIRECTIONS, (of_images, self.articles), strict=True))


def read_pairs(options: Any) -> tuple[RetrievalBenchmark | None, Any]:
    """Return the benchmark, if there is one, and the pairs of a split."""
    benchmark: Any = None
    if options.benchmark is not None:
        for name in (name for name in COLUMNS if getattr(options, name, None) is not None):
            raise UsageError(f"--{name.replace('_', '-')} has no effect on --benchmark {options.benchmark}. Omit it.")
        benchmark = load_benchmark(options.benchmark, options.data, split=options.split)
    elif not is_built(options.data, options):
        return None, _own_pairs(options)
    columns = ["pair_id", "pmcid", "image", "caption"]
    if (options.examples or options.report) and "license" in column_names(options.data, options.split):
        columns.append("license")  # plots and the report reproduce figures of articles
    if options.image_id and options.image_id not in columns:
        columns.append(options.image_id)
    pairs: Any = load_pmc15m(options.data, options.split, streaming=False, columns=columns, decode=False)
    check_captions(pairs["pair_id"], pairs["caption"])
    number_of_draws(len(pairs), options.pool_size, options.pool_draws, options.split)
    return benchmark, pairs


def _own_pairs(options: Any) -> Pairs:
    """Return a split of the user's own pairs. If they have no splits, all of them are the test split."""
    if options.validation_fraction is not None and options.split == "test":
        raise UsageError("--validation-fraction has no effect on the test split. Omit it, or pass --split validation.")
    splits = load_own_pairs(options.data, options, columns=[options.image_id] if options.image_id else [])
    if options.split == "test" and splits["train"].held_out:
        numbers = np.sort(np.concatenate([pairs.numbers for pairs in splits.values()]))
        note = (
            "The data has no splits, so all pairs are the test split. For the pairs that biomedclip train holds out, "
            "pass --split validation."
        )
        splits["test"] = replace(splits["train"], split="test", numbers=numbers, notes=[note])
    if options.split not in splits:
        raise ValueError(f"{options.data}: there is no {options.split} split, only {', '.join(splits)}.")
    pairs = splits[options.split]
    check_captions(pairs["pair_id"], pairs["caption"])
    number_of_draws(len(pairs), options.pool_size, options.pool_draws, options.split)
    return pairs


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
    names = list(pairs["pair_id"])
    own = isinstance(pairs, Pairs)
    articles = pairs.row_groups() if own else list(pairs["pmcid"])
    sources = "articles" if not own else "groups" if options.group_column else "images"
    pools, losses = [], []
    first = embedded
    for draw in range(draws):
        pool = embedded.select(draw_pool(usable, size, seed=options.seed, draw=draw))
        of_pool = key if size == usable else {**key, "pool": size, "seed": options.seed, "draw": draw}
        counts = count_ranks(pool, store.folder, of_pool)
        if draw == 0:
            first = pool
        if PartialState().is_main_process:
            pools.append(Pool(counts, [articles[row] for row in pool.rows.tolist()], pool.image_of_text))
            losses.append(validation_loss(pool, encoder))
    if not PartialState().is_main_process:
        return None
    metrics = retrieval_of_pools(pools, options.seed)
    loss = float(np.mean(losses))
    metrics[LOSS_IN_BATCHES] = loss if math.isfinite(loss) else None
    metrics["pool"] = {"size": size, "draws": draws, "pairs": usable, "seed": options.seed}
    paper, notes = _published(benchmark, metrics["pool"], options.image_id)
    if metrics["pairs"] < 10:
        notes.append(f"Only {metrics['pairs']} pairs: recall at 10 is 1 for every model.")
    notes += pairs.notes if own else []
    show_retrieval(metrics, paper=paper, split=options.split, sources=sources)
    examples = []
    if options.examples and pools[0].counts is not None:
        found = find_examples(first, pools[0].counts, options.examples, options.seed)
        examples = write_examples(found, pairs, run.output_dir)
        if options.examples > size:
            notes.append(f"--examples {options.examples}: there are only {size} pairs, and all are examples.")
        say(f"Examples in {run.output_dir}: {', '.join(dict.fromkeys(entry['file'] for entry in examples))}")
    report = None
    if options.report:
        worst = find_worst(first, pools[0].counts, SHOWN) if pools[0].counts is not None else {}
        candidates = dict(zip(DIRECTIONS, (len(first.texts), len(first.images)), strict=True))
        report = partial(
            write_retrieval_report, counts=pools[0].counts, candidates=candidates, worst=worst, pairs=pairs
        )
    return run.write(
        encoder,
        data={
            "fingerprint": embedded.fingerprint,
            "rows": metrics["pairs"],
            "damaged": embedded.damaged,
            "notes": notes + note_if_few(metrics["articles"], sources),
        },
        metrics=metrics,
        paper=paper,
        paper_source=benchmark.source if benchmark and paper else "",
        settings={
            "image_id": options.image_id,
            "pool_size": options.pool_size,
            "pool_draws": draws,
            **({name: getattr(options, name) for name in COLUMNS if name != "image_root"} if own else {}),
        },
        predictions=ranks_of_queries(pools[0], [names[row] for row in first.rows.tolist()]),
        examples=examples,
        report=report,
    )


def ranks_of_queries(pool: Pool, names: Sequence[str]) -> PredictionTable:
    """Return the rank of the correct candidate for each query of a pool. `names` are the ids of its pairs.

    The name of an image with several captions is that of its first pair. An undefined rank is None.
    """
    of_images = list(names)
    if pool.image_of_text is not None:
        first = dict(zip(reversed(pool.image_of_text.tolist()), reversed(names), strict=True))
        of_images = [first[image] for image in range(len(first))]

    def rows() -> Iterator[dict[str, Any]]:
        for direction, queries, others in zip(DIRECTIONS, (of_images, names), (names, of_images), strict=True):
            ranks = [None] * len(queries) if pool.counts is None else expected_ranks(pool.counts[direction]).tolist()
            row = {"direction": direction, "candidates": len(others)}
            for query, rank, group in zip(queries, ranks, pool.articles_of_queries()[direction], strict=True):
                yield row | {"query": query, "rank": rank, "group": str(group)}

    return PredictionTable(Rows(rows), RANKS)


def _published(
    benchmark: RetrievalBenchmark | None, pool: Mapping[str, int], image_id: str | None
) -> tuple[dict[str, Any], list[str]]:
    """Return the paper's values if they were measured on the same number of pairs as the pool, and notes."""
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


def count_ranks(embedded: EmbeddedPairs, folder: Path, key: Mapping[str, Any]) -> dict[str, RankCounts] | None:
    """Count ranks in blocks of images. Processes share the blocks, and finished blocks are kept in a folder.

    Each process has all pairs. `key` contains everything that identifies the embeddings. Return the counts by
    direction, or None if an embedding contains NaN or infinity.
    """
    if not all_finite(embedded.images, embedded.texts):
        return None
    device = PartialState().device
    counter = RankCounter(embedded.images.to(device), embedded.texts.to(device), embedded.image_of_text)
    block = max(counter.rows, BLOCK // counter.rows * counter.rows)
    key = {**key, "what": "rank counts", "images": counter.images, "texts": counter.texts, "block": block}
    parts = Parts(folder, key, math.ceil(counter.images / block))

    def work(number: int) -> Part:
        counts = counter.count(number * block, (number + 1) * block)
        return {direction: values.int() for direction, values in counts.items()}, None

    parts.complete(work, "Ranks")
    return counter.combine(parts.read(number)[0] for number in range(parts.count))


def retrieval_of_pools(pools: Sequence[Pool], seed: int) -> dict[str, Any]:
    """Measure retrieval in both directions, as the mean over pools. The bootstrap draws whole articles.

    Return recall at 1, 5 and 10 with 95 % intervals and the median rank, by direction, the recall at chance level, and
    the numbers of pairs and articles (of the smallest pool). If an embedding was not finite, the metrics are None, and
    `undefined` contains the reason. `recall_at_K_of_draws` lists the recall of several pools. Then the ends of an
    interval are percentiles of the bootstrap samples of all pools together, as for a single pool. A recall of 0 or 1
    has the interval of [`exact_interval`] over articles.
    """
    texts = len(pools[0].articles)
    images = [pool.images for pool in pools]
    metrics: dict[str, Any] = {
        "pairs": texts,
        "articles": min(len(set(pool.articles)) for pool in pools),
        "chance_at_1": _mean([1 / number for number in images]),
    }
    if pools[0].image_of_text is not None:
        metrics |= {"images": _mean(images), "captions_of_an_image": _mean([texts / number for number in images])}
    counts = [pool.counts for pool in pools if pool.counts is not None]
    if len(counts) < len(pools):
        names = [name for k in RECALLS for name in (f"recall_at_{k}", f"recall_at_{k}_interval")]
        metrics |= {direction: dict.fromkeys([*names, "median_rank"]) for direction in DIRECTIONS}
        return metrics | {"undefined": dict.fromkeys(DIRECTIONS, "the embeddings contain NaN or infinity")}
    groups = [pool.articles_of_queries() for pool in pools]
    for direction in DIRECTIONS:
        of_pools = [summarize_ranks(counted[direction]) for counted in counts]
        summary: dict[str, Any] = {name: _mean([pool[name] for pool in of_pools]) for name in of_pools[0]}
        for k in RECALLS:
            hits = [recall_at(k, counted[direction]).numpy() for counted in counts]
            if metrics["articles"] < 2:
                interval = None
            elif is_constant(np.concatenate(hits)):
                interval = exact_interval(float(hits[0][0]), metrics["articles"])
            else:
                resampled = [
                    bootstrap_means(of_pool, groups[draw][direction], seed=seed if len(pools) == 1 else [seed, draw])
                    for draw, of_pool in enumerate(hits)
                ]
                interval = percentile_interval(np.concatenate(resampled))
            summary[f"recall_at_{k}_interval"] = interval
            if len(pools) > 1:
                summary[f"recall_at_{k}_of_draws"] = [pool[f"recall_at_{k}"] for pool in of_pools]
        metrics[direction] = summary
    return metrics


def _mean(values: Sequence[Any]) -> Any:
    """Return the mean. A single value keeps its type."""
    return values[0] if len(values) == 1 else float(np.mean(values))


def validation_loss(embedded: EmbeddedPairs, encoder: DualEncoder) -> float:
    """Return the loss in batches of 4,096 pairs, or NaN if the temperature is unknown."""
    if encoder.type in BIOVIL:
        return math.nan
    device = PartialState().device
    images = embedded.images if embedded.image_of_text is None else embedded.images[embedded.image_of_text]
    return loss_in_batches(
        images.to(device), embedded.texts.to(device), torch.tensor(encoder.logit_scale, device=device)
    )


def show_retrieval(
    metrics: dict[str, Any],
    paper: Mapping[str, Any] | None = None,
    split: str = "test",
    sources: str = "articles",
) -> None:
    """Print retrieval metrics with the chance level and the paper's values. `sources` is what the bootstrap draws."""
    rows: list[tuple[Any, ...]] = []
    paper = paper or {}
    for k in RECALLS:
        cells = [with_interval(metrics[direction], f"recall_at_{k}") for direction in DIRECTIONS]
        rows.append((f"recall at {k}", *cells, min(1.0, k * metrics["chance_at_1"])))
        if paper:
            rows.append(
                ("  paper", *(paper.get(direction, {}).get(f"recall_at_{k}") for direction in DIRECTIONS), None)
            )
    ranks = [metrics[direction]["median_rank"] for direction in DIRECTIONS]
    shown = [UNDEFINED if rank is None else rank for rank in ranks]
    rows.append(("median rank", *shown, (metrics["pairs"] + 1) / 2))
    title = f"Retrieval, {metrics['pairs']:,} pairs of {metrics['articles']:,} {sources}, {split} split [95 % interval]"
    show_table(title, rows, ["", "image to text", "text to image", "chance"])
    if pool := metrics.get("pool"):
        drawn = f"Mean of {pool['draws']} draws" if pool["draws"] > 1 else "One draw"
        say(f"{drawn} of {pool['size']:,} of {pool['pairs']:,} pairs, seed {pool['seed']}.")
    if metrics.get(LOSS_IN_BATCHES) is not None:
        published = f" (paper: {format_value(paper[LOSS_IN_BATCHES])})" if LOSS_IN_BATCHES in paper else ""
        say(f"Loss in batches of {VALIDATION_BATCH:,} pairs: {format_value(metrics[LOSS_IN_BATCHES])}{published}.")
    say_undefined(metrics)
