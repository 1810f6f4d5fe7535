"""How time and memory grow with the work, at three sizes a factor ten apart.

python tests/performance/scaling.py --output scaling.json
python tests/performance/scaling.py --tasks "start a stream" search --smallest 10

Each size runs in a process of its own. Seconds are processor time, except for the start of a stream, which waits for
the disk. Memory is what the process adds to its peak during the work. The exponent is fitted to the seconds (the slope
of their logarithms): 1 is linear. Search and ranks are products of all queries and candidates.

build: articles of a synthetic mirror, in one process.
start a stream: shards of a dataset, all of them links to one file, until the first batch.
resume a stream: position in a stream of 100 shards, until the batch at that position.
embed: texts, with a narrow model.
zero-shot classification: labels for one image, with a narrow model.
search: embeddings of 64 numbers, for one query and the ten best.
ranks: pairs, each image ranks all texts. The work is quadratic.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm


sys.path.insert(0, str(Path(__file__).parents[1]))  # for `helpers`, wherever the script is started from

from embedding import NARROW, save_random_model
from helpers.mirror_writer import MirrorWriter, build_set
from searching import write_embeddings
from timing import parser_of, report
from transformers import AutoModel, AutoProcessor

from biomedclip import EmbeddingIndex, ZeroShotClassifier, embed_texts
from biomedclip.processing import PairStream
from biomedclip.retrieval_metrics import rank_counts


DIMENSION = 64
Work = Callable[[], Any]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--smallest", type=int, help="the smallest size of all tasks (default: its own for each)")
    parser.add_argument("--measure", nargs=2, metavar=("TASK", "SIZE"), help="measure one size in this process")
    options = parser.parse_args()
    if options.measure:
        name, size = options.measure
        sys.stdout.write(json.dumps(measure(TASKS[name], int(size), options)) + "\n")
        return
    results: dict[str, list[dict[str, Any]]] = {}
    for name in tqdm(options.tasks, desc="tasks"):
        smallest = options.smallest or TASKS[name].smallest
        results[name] = [in_a_process(name, smallest * factor, options.data) for factor in (1, 10, 100)]
    rows = []
    for name, found in results.items():
        seconds, sizes = ([entry[key] for entry in found] for key in ("seconds", "size"))
        numbers = [f"{value:.3g}" for value in seconds]
        memory = [f"{entry['mib']:,}" for entry in found]
        rows.append(
            (f"{name}, {TASKS[name].unit}", f"{sizes[0]:,}", *numbers, f"{exponent(sizes, seconds):.2f}", *memory)
        )
    columns = ["", "smallest", "s", "× 10", "× 100", "exponent", "MiB", "× 10", "× 100"]
    report({"scaling": results}, [("Growth with the work", rows, columns)], options.output)


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Return the slope of the logarithms of seconds, for the last two sizes: fixed costs hide in the smallest."""
    return math.log(seconds[-1] / seconds[-2]) / math.log(sizes[-1] / sizes[-2])


def in_a_process(name: str, size: int, data: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--data", str(data), "--measure", name, str(size)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def measure(task: "Task", size: int, options: Any) -> dict[str, Any]:
    """Return the seconds and the added memory of the work of a task."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        work = task.prepare(size, Path(scratch), options)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before, clock = peak_kib(), time.perf_counter if task.waits else time.process_time
        started = clock()
        work()
        seconds = clock() - started
        return {"size": size, "seconds": seconds, "mib": (peak_kib() - before) // 1024}


def peak_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def prepare_build(size: int, folder: Path, options: Any) -> Work:
    MirrorWriter(folder / "mirror").plain_articles(size)
    return lambda: build_set(folder / "mirror", folder / "set")


def write_shards(shards: int, folder: Path) -> Path:
    """Write a dataset whose shards are links to the same file of about 100 pairs."""
    MirrorWriter(folder / "mirror").plain_articles(50)
    build_set(folder / "mirror", folder / "built", split_fractions=[1, 0, 0])
    file = min((folder / "built" / "data").glob("train-*"))
    stated = json.loads((folder / "built" / "report.json").read_text(encoding="utf-8"))["files"][f"data/{file.name}"]
    (folder / "set" / "data").mkdir(parents=True)
    names = [f"data/train-{number:05}-of-{shards:05}.parquet" for number in range(shards)]
    for name in names:
        os.link(file, folder / "set" / name)
    files = json.dumps({"files": dict.fromkeys(names, stated)})
    (folder / "set" / "report.json").write_text(files, encoding="utf-8")
    return folder / "set"


def prepare_stream(size: int, folder: Path, options: Any) -> Work:
    dataset = write_shards(size, folder)
    return lambda: next(iter(PairStream(dataset).batches(16)))


def prepare_resume(size: int, folder: Path, options: Any) -> Work:
    stream = PairStream(write_shards(100, folder))
    return lambda: next(iter(stream.batches(16, samples_seen=16 * size)))


def narrow_model(folder: Path, options: Any) -> tuple[Any, Any]:
    path = save_random_model(folder / "model", options.data, NARROW)
    return AutoModel.from_pretrained(path).eval(), AutoProcessor.from_pretrained(path)


def prepare_embedding(size: int, folder: Path, options: Any) -> Work:
    model, processor = narrow_model(folder, options)
    texts = [f"radiograph {number} of the chest" for number in range(size)]
    return lambda: embed_texts(model, processor, texts)


def prepare_classification(size: int, folder: Path, options: Any) -> Work:
    from PIL import Image

    model, processor = narrow_model(folder, options)
    labels = [f"finding {number}" for number in range(size)]
    return lambda: ZeroShotClassifier(model, processor, labels)([Image.new("RGB", (300, 200))])


def prepare_search(size: int, folder: Path, options: Any) -> Work:
    write_embeddings(folder / "vectors", size, DIMENSION)
    index = EmbeddingIndex(folder / "vectors")
    query = np.ones((1, DIMENSION), dtype=np.float32) / DIMENSION**0.5
    index.search(query, top_k=10)
    return lambda: [index.search(query, top_k=10) for _ in range(20)]


def prepare_ranks(size: int, folder: Path, options: Any) -> Work:
    embeds = [torch.nn.functional.normalize(torch.randn(size, DIMENSION), dim=-1) for _ in range(2)]
    return lambda: rank_counts(*embeds)


class Task(NamedTuple):
    """A task: what one unit of its work is, how to prepare it, and its smallest size."""

    unit: str
    prepare: Callable[[int, Path, Any], Work]
    smallest: int
    waits: bool = False  # for the disk, so that the seconds are those of the clock


TASKS = {
    "build": Task("articles", prepare_build, 20),
    "start a stream": Task("shards", prepare_stream, 100, waits=True),
    "resume a stream": Task("batches before", prepare_resume, 100, waits=True),
    "embed": Task("texts", prepare_embedding, 200),
    "zero-shot classification": Task("labels", prepare_classification, 100),
    "search": Task("embeddings", prepare_search, 10_000),
    "ranks": Task("pairs", prepare_ranks, 500),
}


if __name__ == "__main__":
    main()
