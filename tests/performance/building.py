"""What a build takes: figures and articles a second beside the JPEG decoder, memory over 100,000 articles, and what all
of PubMed Central would cost.

python tests/performance/building.py --output building.json
python tests/performance/building.py --parts memory --articles 100000 --plot memory.png
python tests/performance/building.py --assume picture_bytes=200000 --assume milliseconds_per_request=100

line: the whole line, `build_dataset` with one worker, over the articles of --data (a drawn corpus where they are not
    there), in turns with what decoding the same pictures takes. Seconds are those of the processor, medians over the
    rounds are shown; no way to build the set that decodes its pictures can be faster than the decoder.
memory: resident memory of the process while it builds a bucket that holds some hundred drawn articles, of pictures of
    32 pixels, again and again under new numbers.
costs: what all article versions take in core-hours, requests, bytes and disk, out of what `line` has measured and of
    what is assumed; the table lists both. --assume changes an assumption.
"""

import argparse
import gzip
import io
import json
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import md5
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from datatrove.pipeline.base import PipelineStep
from fsspec.spec import AbstractFileSystem
from PIL import Image, features
from tqdm.auto import tqdm

from biomedclip.processing.pmc.build import BuildOptions, build_dataset
from biomedclip.processing.pmc.executors import Engine, Stage
from biomedclip.processing.pmc.inventory import INVENTORY
from biomedclip.processing.pmc.journal import count_articles
from biomedclip.processing.pmc.pictures import inspect_picture
from biomedclip.processing.pmc.staging import Staging
from biomedclip.processing.synthetic_corpus.bucket import draw_corpus


MIRROR = Path(__file__).resolve().parents[3] / "shared" / "data" / "pmc_mirror"
PARTS = ("line", "memory", "costs")
DECODE, DRAFT, INSPECT, DIGEST, LINE = (
    "Pillow, decoding",
    "Pillow, decoding in draft mode",
    "decoding and perceptual hash",
    "MD5",
    "the whole line",
)
DRAFT_SIDE = 224  # pixels; the decoder may stop at the next size above
SMALL_SIDE = 32
DATE = "2026-01-18T01-00Z"
FIRST_NUMBER = 1_000_000
PLAN_BYTES = (90, 280)  # of memory, for each pair and each article: between 1 and 4 million drawn pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["line", "costs"])
    parser.add_argument("--data", type=Path, default=MIRROR, help="a mirror of PMC's bucket")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--articles", type=int, default=100_000, help="articles over which memory is watched")
    parser.add_argument("--every", type=int, default=2_000, help="articles between two looks at memory")
    parser.add_argument("--plot", help="PNG of memory over articles")
    parser.add_argument("--assume", action="append", default=[], metavar="NAME=NUMBER", help="see the table of costs")
    parser.add_argument("--temporary", help="folder for what is built on the way")
    parser.add_argument("--output", help="JSON file for the figures")
    options = parser.parse_args()
    try:
        assumed = replace(Assumptions(), **dict(map(parse_assumption, options.assume)))
    except ValueError as error:
        parser.error(str(error))
    if "costs" in options.parts and "line" not in options.parts:
        parser.error("--parts costs: the costs follow from what is measured, so name line as well")
    results: dict[str, Any] = {"machine": machine(), "versions": versions()}
    with tempfile.TemporaryDirectory(dir=options.temporary) as folder:
        if "line" in options.parts:
            results["line"] = measure_line(options.data, Path(folder), options.rounds)
        if "memory" in options.parts:
            results["memory"] = watch_memory(Path(folder), options.articles, options.every)
    if "costs" in options.parts:
        results["costs"] = costs(results["line"], assumed)
    show(results)
    if options.plot and "memory" in results:
        plot(results["memory"], options.plot)
    if options.output:
        Path(options.output).write_text(json.dumps(results, indent=2) + "\n")


# The whole line beside the decoder.


def measure_line(mirror: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of the processor for the line, its steps and the decoder, over the same files in turns."""
    if not mirror.is_dir():
        sys.stderr.write(f"{mirror} is not there: articles are drawn.\n")
        mirror = folder / "drawn"
        draw_corpus(mirror, figures=475)
    pictures = [path.read_bytes() for path in sorted(mirror.glob("PMC*/*")) if is_picture(path)]
    ways: dict[str, Callable[[], Any]] = {
        DECODE: lambda: [decode(content) for content in pictures],
        DRAFT: lambda: [decode(content, DRAFT_SIDE) for content in pictures],
        INSPECT: lambda: [inspect_picture(content) for content in pictures],
        DIGEST: lambda: [md5(content).hexdigest() for content in pictures],
        LINE: lambda: build(str(mirror), folder / "set", engine),
    }
    engine = MeasuredEngine()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    steps: list[dict[str, float]] = []
    reports = []
    for turn in tqdm(range(rounds + 1), desc="line"):
        for name, way in ways.items():
            _SPENT.clear()
            started = time.process_time()
            result = way()
            spent = time.process_time() - started
            if turn:  # the first round warms up
                seconds[name].append(spent)
        reports.append(result)
        steps.append({**_SPENT, "engine": spent - sum(_SPENT.values())})
    report = reports[-1]
    pixels = [image.width * image.height for image in (Image.open(io.BytesIO(content)) for content in pictures)]
    return {
        "articles": report["articles"]["seen"],
        "figures": report["pairs"],
        "pictures": len(pictures),
        "picture_bytes": sum(map(len, pictures)) / len(pictures),
        "picture_pixels": sum(pixels) / len(pixels),
        "xml_bytes": mean_size(mirror.glob("PMC*/*.xml")),
        "metadata_bytes": mean_size(mirror.glob("metadata/*.json")),
        "bytes": engine.bytes,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "steps": {name: statistics.median(step[name] for step in steps[1:]) for name in steps[0]},
        "decoder_share": statistics.median(
            bound / own for bound, own in zip(seconds[DECODE], seconds[LINE], strict=True)
        ),
    }


def decode(content: bytes, side: int | None = None) -> None:
    image = Image.open(io.BytesIO(content))
    if side:
        image.draft(None, (side, side))
    image.load()


def build(source: str, output: Path, engine: Engine, **options: Any) -> dict[str, Any]:
    shutil.rmtree(output, ignore_errors=True)
    report = build_dataset(BuildOptions(source), output, engine=engine, concurrency=1, **options)
    assert report is not None
    return report


def is_picture(path: Path) -> bool:
    return path.suffix in (".jpg", ".png", ".gif", ".tif")


def mean_size(paths: Any) -> float:
    return statistics.mean(path.stat().st_size for path in paths)


_SPENT: Counter[str] = Counter()  # seconds of the processor by step; steps are copied, so they cannot keep it


class TimedStep(PipelineStep):
    """A step, without what the steps before it take."""

    def __init__(self, step: PipelineStep):
        super().__init__()
        self.name, self.type = step.name, step.type
        self.step = step

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        output = self.step.run(self._without_time(data) if data is not None else None, rank, world_size)
        yield from self._timed(output, 1)

    def _without_time(self, data: Any) -> Iterator[Any]:
        return self._timed(data, -1)

    def _timed(self, data: Any, sign: int) -> Iterator[Any]:
        iterator = iter(data)
        while True:
            started = time.process_time()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                _SPENT[self.name] += sign * (time.process_time() - started)
            yield item


@dataclass(frozen=True)
class MeasuredEngine(Engine):
    """One worker in this process: times each step, weighs the staging folder, and surrounds each stage with `watch`."""

    watch: Callable[[str, Path], AbstractContextManager[None]] | None = None
    bytes: dict[str, int] = field(default_factory=dict)

    def run(self, stages: Sequence[Stage], logs: Path, around: Callable[[str], AbstractContextManager[None]]) -> bool:
        staging = Staging(logs.parent.parent)

        @contextmanager
        def measured(stage: str) -> Iterator[None]:
            with self.watch(stage, staging.journals) if self.watch else around(stage):
                yield
            if stage == "shards":
                self.bytes["records"] = size_of(staging.journals, ".arrows")
                self.bytes["journals"] = size_of(staging.journals, ".jsonl")
                self.bytes["plan"] = staging.plan.stat().st_size
                self.bytes["shards"] = size_of(staging.result, ".parquet")

        return super().run(
            [replace(stage, steps=list(map(TimedStep, stage.steps))) for stage in stages], logs, measured
        )


def size_of(folder: Path, suffix: str) -> int:
    return sum(path.stat().st_size for path in folder.rglob(f"*{suffix}"))


# Memory.


class RepeatedFileSystem(AbstractFileSystem):
    """
    A bucket of any number of articles that holds the articles of a mirror again and again, under numbers of its own.

    Addresses are `repeated://<articles>/<folder of the mirror>`.
    """

    protocol = "repeated"

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._templates: dict[str, list[str]] = {}

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        names = [f"{path}/{DATE}"] if path.endswith(INVENTORY) else []
        return [{"name": name, "size": 0, "type": "directory"} for name in names] if detail else names

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        if "/PMC" in path:
            raise FileNotFoundError(path)
        return {"name": path, "size": 0, "type": "file", "ETag": path}

    def exists(self, path: str, **options: Any) -> bool:
        return True

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        articles, root, key = self._split(path)
        if key.endswith("manifest.json"):
            return json.dumps({"files": [{"key": f"{INVENTORY}/data/all.csv.gz"}]}).encode()
        if key.endswith("all.csv.gz"):
            numbers = range(FIRST_NUMBER, FIRST_NUMBER + articles)
            lines = (f'"bucket","metadata/PMC{number}.1.json","2026-01-08","{number:032x}"\n' for number in numbers)
            return gzip.compress("".join(lines).encode(), compresslevel=1)
        name = re.search(r"PMC\d+\.\d+", key)[0]  # type: ignore[index]
        templates = self._templates.setdefault(root, [])
        if not templates:
            templates += sorted(path.name for path in Path(root).glob("PMC*"))
        template = templates[int(name[3:].split(".")[0]) % len(templates)]
        content = Path(root, key.replace(name, template)).read_bytes()
        return content.replace(template.encode(), name.encode()) if key.endswith(".json") else content[start:end]

    @staticmethod
    def _split(path: str) -> tuple[int, str, str]:
        articles, _, rest = path.removeprefix("repeated://").partition("/")
        root, _, key = rest.partition("/.mirror/")
        return int(articles), f"/{root.lstrip('/')}", key


def watch_memory(folder: Path, articles: int, every: int) -> dict[str, Any]:
    """Resident memory while one task takes all articles, and the peaks of the stages."""
    mirror = folder / "small"
    draw_corpus(mirror, figures=1_000)
    shrink(mirror)
    fsspec.register_implementation("repeated", RepeatedFileSystem, clobber=True)
    samples: list[tuple[int, int]] = []
    peaks: dict[str, dict[str, float]] = {}

    @contextmanager
    def watch(stage: str, journals: Path) -> Iterator[None]:
        done = threading.Event()
        bar = tqdm(total=articles, desc=stage, unit="article", disable=stage != "articles", file=sys.stderr)
        started, before, seen = time.perf_counter(), resident(), []

        def look() -> None:
            while not done.wait(0.05):
                seen.append(resident())
                if stage == "articles" and journals.is_dir():
                    finished = count_articles(journals)
                    bar.update(finished - bar.n)
                    if finished >= every * (len(samples) + 1):
                        samples.append((finished, seen[-1]))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            bar.close()
            peaks[stage] = {
                "seconds": time.perf_counter() - started,
                "before": before,
                "peak": max([before, resident(), *seen]),
            }

    engine = MeasuredEngine(watch=watch)
    report = build(f"repeated://{articles}{mirror}/.mirror", folder / "set", engine, tasks=1)
    return {
        "articles": report["articles"]["seen"],
        "figures": report["pairs"],
        "samples": samples,
        "bytes_per_article": {
            "from a tenth on": slope(samples, articles / 10),
            "in the second half": slope(samples, articles / 2),
        },
        "stages": peaks,
        "bytes": engine.bytes,
    }


def slope(samples: list[tuple[int, int]], start: float) -> float | None:
    """Bytes by which memory grows with an article, fitted to the samples from some article on."""
    chosen = [sample for sample in samples if sample[0] >= start]
    return float(np.polyfit(*zip(*chosen, strict=True), 1)[0]) if len(chosen) > 2 else None


def shrink(mirror: Path) -> None:
    """Makes all pictures of a mirror small, so that 100,000 articles take minutes and little disk."""
    digests = {}
    for path in filter(is_picture, mirror.glob("PMC*/*")):
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            kind = image.format
            image.resize((SMALL_SIDE, SMALL_SIDE)).save(path, kind)
        digests[md5(content).hexdigest()] = md5(path.read_bytes()).hexdigest()
    for path in mirror.rglob("*.json"):
        path.write_text(re.sub(r"(?<=\?md5=)\w+", lambda match: digests.get(match[0], match[0]), path.read_text()))


def resident() -> int:
    """Bytes that this process holds in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# Costs.


@dataclass(frozen=True)
class Assumptions:
    """What cannot be measured here. Each is an option of `--assume`; the texts are those of the table."""

    article_versions: float = field(default=8_000_000, metadata={"text": "article versions in the bucket"})
    share_taken: float = field(default=1, metadata={"text": "share of them that licence and version let in: at most"})
    share_with_figures: float = field(default=3 / 4.4, metadata={"text": "share with figures: 3 of 4.4 million, paper"})
    pairs_per_article: float = field(
        default=15_282_336 / 3_000_000, metadata={"text": "pairs of an article with figures: 15.28 million of 3, paper"}
    )
    files_per_pair: float = field(default=2, metadata={"text": "files of a picture: .jpg, and now and then .gif, .tif"})
    picture_bytes: float = field(default=150_000, metadata={"text": "bytes of the file that is kept"})
    other_file_bytes: float = field(default=15_000, metadata={"text": "bytes of each other file, mostly a thumbnail"})
    picture_pixels: float = field(default=600_000, metadata={"text": "pixels of a picture"})
    xml_bytes: float = field(default=120_000, metadata={"text": "bytes of an XML file"})
    processor_milliseconds_per_request: float = field(
        default=2, metadata={"text": "of the processor for a GET: 1.7 measured with s3fs on loopback, and TLS"}
    )
    milliseconds_per_request: float = field(default=30, metadata={"text": "until a GET is answered, in us-east-1"})
    connections_per_task: float = field(default=16, metadata={"text": "GETs at a time in a task, one task a core"})
    cores_per_node: float = field(default=64, metadata={"text": "cores of a node, as fast as this machine's"})
    folder_requests_per_second: float = field(
        default=5_500, metadata={"text": "GETs a second in one folder: S3 grants so many, metadata/ is one"}
    )
    gigabits_per_node: float = field(default=25, metadata={"text": "network of a node, Gbit/s"})
    disk_gigabytes_per_second: float = field(default=2, metadata={"text": "disk of a node, GB/s, read and write"})


def parse_assumption(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    names = [assumption.name for assumption in fields(Assumptions)]
    if name not in names:
        raise ValueError(f"--assume {text}: {name!r} is none of {', '.join(names)}")
    try:
        return name, float(value)
    except ValueError:
        raise ValueError(f"--assume {text}: {value!r} is not a number") from None


def costs(line: dict[str, Any], assumed: Assumptions) -> dict[str, Any]:
    """
    What a build of everything takes.

    Args:
        line: What `measure_line` gave: seconds for each step over some articles and figures.
        assumed: The rest.
    """
    versions_, steps = assumed.article_versions, line["steps"]
    articles = versions_ * assumed.share_taken
    pairs = articles * assumed.share_with_figures * assumed.pairs_per_article
    requests = {
        "metadata": versions_,
        "XML": articles,
        "pictures": pairs * assumed.files_per_pair,
    }
    pair_bytes = assumed.picture_bytes + (assumed.files_per_pair - 1) * assumed.other_file_bytes
    read = versions_ * line["metadata_bytes"] + articles * assumed.xml_bytes + pairs * pair_bytes
    # A step's seconds grow with what it works on: XML, bytes or pixels of pictures.
    by_xml = assumed.xml_bytes / line["xml_bytes"] / line["articles"]
    by_bytes = pair_bytes / line["picture_bytes"] / line["figures"]
    by_pixels = assumed.picture_pixels / line["picture_pixels"] / line["figures"]
    core_hours = {
        "read and parse articles": articles
        * by_xml
        * (steps["Read work list"] + steps["Read articles"] + steps["Parse figures"]),
        "fetch pictures": pairs * by_bytes * steps["Fetch pictures"],
        "decode, hash and pair": pairs * by_pixels * steps["Pair figures"],
        "write pairs": pairs * by_bytes * steps["Write articles"],
        "write shards": pairs * by_bytes * steps["Write shards"],
        "S3 client": sum(requests.values()) * assumed.processor_milliseconds_per_request / 1000,
        "plan, on one core": pairs * steps["Plan shards"] / line["figures"],
    }
    core_hours = {name: seconds / 3600 for name, seconds in core_hours.items()}
    overhead = {
        name: max(line["bytes"][name] / line["figures"] - line["picture_bytes"], 0) for name in ("records", "shards")
    }
    disk = {
        "staging": pairs * (assumed.picture_bytes + overhead["records"] + line["bytes"]["journals"] / line["figures"]),
        "result": pairs * (assumed.picture_bytes + overhead["shards"]),
    }
    serial = core_hours["plan, on one core"]
    nodes = {}
    for count in (1, 16):
        cores = count * assumed.cores_per_node
        hours = {
            "processor": (sum(core_hours.values()) - serial) / cores,
            "network": read * 8 / (assumed.gigabits_per_node * 1e9 * count) / 3600,
            "latency": sum(requests.values())
            * assumed.milliseconds_per_request
            / 1000
            / (assumed.connections_per_task * cores)
            / 3600,
            "requests to metadata/": requests["metadata"] / assumed.folder_requests_per_second / 3600,
            "disk": (2 * disk["staging"] + disk["result"]) / (assumed.disk_gigabytes_per_second * 1e9 * count) / 3600,
        }
        binding = max(hours, key=lambda name: hours[name])
        nodes[str(count)] = {
            "hours": hours,
            "binding": binding,
            "wall_hours": hours[binding] + serial,
            "requests_per_second": sum(requests.values()) / hours[binding] / 3600,
        }
    return {
        "assumed": asdict(assumed),
        "articles": articles,
        "pairs": pairs,
        "requests": requests,
        "bytes_read": read,
        "core_hours": core_hours,
        "disk": disk,
        "plan_memory": pairs * PLAN_BYTES[0] + articles * PLAN_BYTES[1],
        "nodes": nodes,
    }


# What is shown.


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, one core of {os.cpu_count()}"


def versions() -> dict[str, str]:
    names = ("pillow", "pyarrow", "datatrove", "lxml", "numpy")
    found = {"python": sys.version.split()[0], **{name: version(name) for name in names}}
    return {**found, "libjpeg-turbo": features.version("libjpeg_turbo") or "none"}


def show(results: dict[str, Any]) -> None:
    lines = [results["machine"], ", ".join(f"{name} {version}" for name, version in results["versions"].items())]
    if "line" in results:
        lines += ["", *line_table(results["line"])]
    if "memory" in results:
        lines += ["", *memory_table(results["memory"])]
    if "costs" in results:
        lines += ["", *cost_table(results["costs"])]
    sys.stdout.write("\n".join(lines) + "\n")


def line_table(line: dict[str, Any]) -> list[str]:
    articles, figures, whole = line["articles"], line["figures"], line["seconds"][LINE]
    lines = [
        f"{articles} articles with {figures} figures of {line['picture_pixels'] / 1e6:.2f} megapixels and "
        f"{line['picture_bytes'] / 1000:.0f} kB",
        "",
        "| | figures/s | articles/s | ms a figure |",
        "|---|---:|---:|---:|",
    ]
    for name, seconds in line["seconds"].items():
        count = figures if name == LINE else line["pictures"]
        per_second = f"{articles / seconds:.0f}" if name == LINE else ""
        lines.append(f"| {name} | {count / seconds:.0f} | {per_second} | {seconds / count * 1000:.2f} |")
    lines += [
        "",
        f"The decoder takes {line['decoder_share']:.0%} of the whole line.",
        "",
        "| step | ms an article | ms a figure | share |",
        "|---|---:|---:|---:|",
    ]
    for name, seconds in line["steps"].items():
        cells = (f"{seconds / articles * 1000:.2f}", f"{seconds / figures * 1000:.2f}", f"{seconds / whole:.0%}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def memory_table(memory: dict[str, Any]) -> list[str]:
    lines = [
        f"{memory['articles']} articles with {memory['figures']} figures in one task of one process",
        "",
        "| articles | resident memory, MiB |",
        "|---:|---:|",
    ]
    step = max(1, len(memory["samples"]) // 12)
    lines += [f"| {number} | {used / 2**20:.1f} |" for number, used in memory["samples"][step - 1 :: step]]
    for part, growth in memory["bytes_per_article"].items():
        if growth is not None:
            lines += ["", f"It grows by {growth:.1f} bytes an article {part}."]
    lines += ["", "| stage | seconds | before, MiB | peak, MiB |", "|---|---:|---:|---:|"]
    for name, stage in memory["stages"].items():
        cells = (f"{stage['seconds']:.0f}", f"{stage['before'] / 2**20:.1f}", f"{stage['peak'] / 2**20:.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def cost_table(cost: dict[str, Any]) -> list[str]:
    lines = ["| assumed | | |", "|---|---:|---|"]
    for assumption in fields(Assumptions):
        value = f"{cost['assumed'][assumption.name]:,.2f}".removesuffix(".00")
        lines.append(f"| {assumption.name} | {value} | {assumption.metadata['text']} |")
    lines += [
        "",
        "| what it costs | |",
        "|---|---:|",
        f"| articles | {cost['articles'] / 1e6:.1f} million |",
        f"| pairs | {cost['pairs'] / 1e6:.1f} million |",
        *(f"| GETs, {name} | {number / 1e6:.1f} million |" for name, number in cost["requests"].items()),
        f"| bytes read | {cost['bytes_read'] / 1e12:.2f} TB |",
        *(f"| disk, {name} | {number / 1e12:.2f} TB |" for name, number in cost["disk"].items()),
        *(f"| core-hours, {name} | {hours:.1f} |" for name, hours in cost["core_hours"].items()),
        f"| core-hours, all | {sum(cost['core_hours'].values()):.0f} |",
        f"| memory of the plan | {cost['plan_memory'] / 2**30:.1f} GiB |",
        "",
        "| hours | " + " | ".join(f"{count} node{'s' * (count != '1')}" for count in cost["nodes"]) + " |",
        "|---|" + "---:|" * len(cost["nodes"]),
    ]
    nodes = list(cost["nodes"].values())
    for name in nodes[0]["hours"]:
        cells = (f"{node['hours'][name]:.2f}{' (binds)' * (name == node['binding'])}" for node in nodes)
        lines.append(f"| {name} alone | {' | '.join(cells)} |")
    walls = (f"{node['wall_hours']:.2f}" for node in nodes)
    rates = (f"{node['requests_per_second']:,.0f}" for node in nodes)
    return [*lines, f"| wall, plan included | {' | '.join(walls)} |", f"| GETs a second | {' | '.join(rates)} |"]


def plot(memory: dict[str, Any], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    numbers, used = np.array(memory["samples"]).T
    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot(numbers, used / 2**20)
    axes.set(xlabel="articles", ylabel="resident memory, MiB", ylim=(0, None))
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
