"""Speed, memory and cost of a build.

python tests/performance/building.py --output building.json
python tests/performance/building.py --parts memory --articles 100000
python tests/performance/building.py --parts panels --rounds 3 --detector detector
python tests/performance/building.py --assume picture_bytes=200000 --assume milliseconds_per_request=100

line: `build_dataset` with one worker over the articles of `pmc_mirror`, in turns with decoding the same pictures. No
    build that decodes its pictures can be faster than the decoder. Seconds are processor time.
panels: the build with `--panels also` in turns with the build without, each with one worker and one thread. The steps
    show what the detector takes.
memory: resident memory while one task builds many articles. The bucket repeats some hundred synthetic articles, with
    pictures of 32 pixels, under new numbers.
costs: core-hours, requests, bytes and disk for all article versions, from the measured line and from assumptions that
    the table lists.
"""

import gzip
import io
import json
import os
import re
import shutil
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import md5
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from datatrove.pipeline.base import PipelineStep
from fsspec.spec import AbstractFileSystem
from PIL import Image
from timing import median_ratio, parser_of, report, take_turns
from tqdm.auto import tqdm

from biomedclip.processing.pmc.build import BuildOptions, build_dataset
from biomedclip.processing.pmc.executors import Engine, Stage
from biomedclip.processing.pmc.images import inspect_image
from biomedclip.processing.pmc.inventory import INVENTORY
from biomedclip.processing.pmc.journal import count_articles
from biomedclip.processing.pmc.staging import Staging
from biomedclip.processing.synthetic_corpus.bucket import write_synthetic_corpus
from biomedclip.run_scripts.panel_rows.lazy_detector import load_lazy_detector


DECODE, LINE = "Pillow, decoding", "the whole build"
WITHOUT, WITH = "the build without panels", "the build with panels"
SMALL_SIDE = 32
FIRST_NUMBER = 1_000_000


def main() -> None:
    parser = parser_of(__doc__, rounds=7)
    parser.add_argument("--parts", nargs="+", choices=["line", "panels", "memory", "costs"], default=["line", "costs"])
    parser.add_argument("--articles", type=int, default=100_000, help="articles of the part `memory`")
    parser.add_argument("--detector", help="detector of the part `panels` (default: that of biomedclip build)")
    parser.add_argument("--limit", type=int, help="articles of the part `panels` (default: all of pmc_mirror)")
    parser.add_argument("--assume", action="append", default=[], metavar="NAME=NUMBER", help="see the table of costs")
    options = parser.parse_args()
    names = [each.name for each in fields(Assumptions)]
    given = dict(text.partition("=")[::2] for text in options.assume)
    if unknown := set(given) - set(names):
        parser.error(f"--assume {unknown.pop()}: choose from {', '.join(names)}")
    if "costs" in options.parts and "line" not in options.parts:
        parser.error("--parts costs needs line, because costs follow from the measured line")
    assumed = replace(Assumptions(), **{name: float(value) for name, value in given.items()})
    results: dict[str, Any] = {}
    tables: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        if "line" in options.parts:
            results["line"] = measure_line(options.data / "pmc_mirror", Path(folder), options.rounds)
            tables += line_tables(results["line"])
        if "panels" in options.parts:
            results["panels"] = measure_panels(options, Path(folder))
            tables += panel_tables(results["panels"])
        if "memory" in options.parts:
            results["memory"] = measure_memory(Path(folder), options.articles)
            rows = [(name, *(f"{value / 2**20:.1f}" for value in found)) for name, found in results["memory"].items()]
            tables.append((f"Resident memory, {options.articles:,} articles, MiB", rows, ["stage", "before", "peak"]))
    if "costs" in options.parts:
        results["costs"] = costs(results["line"], assumed)
        rows = [(each.name, results["costs"]["assumed"][each.name], each.metadata["text"]) for each in fields(assumed)]
        tables.append(("Assumptions", rows, ["name", "value", "meaning"]))
        tables.append(("A build of all articles", list(results["costs"]["totals"].items()), ["", "value"]))
    report(results, tables, options.output)


# The line.


def measure_line(mirror: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Measure the build, its steps and the decoder over the same files."""
    pictures = [path.read_bytes() for path in sorted(mirror.glob("PMC*/*")) if is_picture(path)]
    engine = MeasuredEngine(connections=1)
    steps: list[dict[str, float]] = []

    def build_once() -> dict[str, Any]:
        _SPENT.clear()
        built = build(str(mirror), folder / "set", engine)
        steps.append(dict(_SPENT))
        return built

    ways: dict[str, Callable[[], Any]] = {
        DECODE: lambda: [Image.open(io.BytesIO(content)).load() for content in pictures],
        "decoding and perceptual hash": lambda: [inspect_image(content) for content in pictures],
        "MD5": lambda: [md5(content).hexdigest() for content in pictures],
        LINE: build_once,
    }
    seconds, last = take_turns(ways, rounds, time.process_time)
    pixels = [np.prod(Image.open(io.BytesIO(content)).size) for content in pictures]
    return {
        "articles": last[LINE]["articles"]["seen"],
        "figures": last[LINE]["pairs"],
        "pictures": len(pictures),
        "picture_bytes": statistics.mean(map(len, pictures)),
        "picture_pixels": float(np.mean(pixels)),
        "xml_bytes": mean_size(mirror.glob("PMC*/*.xml")),
        "metadata_bytes": mean_size(mirror.glob("metadata/*.json")),
        "bytes": engine.bytes,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "steps": {name: statistics.median(step[name] for step in steps[1:]) for name in steps[0]},
        "decoder_fraction": median_ratio(seconds[DECODE], seconds[LINE]),
    }


def build(source: str, output: Path, engine: Engine, **options: Any) -> dict[str, Any]:
    shutil.rmtree(output, ignore_errors=True)
    built = build_dataset(BuildOptions(source, **options), output, engine=engine)
    assert built is not None
    return built


def is_picture(path: Path) -> bool:
    return path.suffix in (".jpg", ".png", ".gif", ".tif")


def mean_size(paths: Any) -> float:
    return statistics.mean(path.stat().st_size for path in paths)


_SPENT: Counter[str] = Counter()  # processor seconds per step; steps are copied, so they cannot keep the time


class TimedStep(PipelineStep):
    """Measure the time of a step without the steps before it."""

    def __init__(self, step: PipelineStep):
        super().__init__()
        self.name, self.type, self.step = step.name, step.type, step

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        data = None if data is None else self._timed(data, -1)
        yield from self._timed(self.step.run(data, rank, world_size), 1)

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
    """Run all tasks in this process, time each step, and measure the files of the staging folder."""

    watch: Callable[[str, Path], AbstractContextManager[None]] | None = None
    bytes: dict[str, int] = field(default_factory=dict)

    def _run_stage(self, stage: Stage, logs: Path) -> None:
        staging = Staging(logs.parents[3], logs.parents[1].name)
        with self.watch(stage.name, staging.journals) if self.watch else nullcontext():
            super()._run_stage(replace(stage, steps=list(map(TimedStep, stage.steps))), logs)
        if stage.name == "shards":
            self.bytes["records"] = size_of(staging.journals, ".arrows")
            self.bytes["journals"] = size_of(staging.journals, ".jsonl")
            self.bytes["shards"] = size_of(staging.result, ".parquet")


def size_of(folder: Path, suffix: str) -> int:
    return sum(path.stat().st_size for path in folder.rglob(f"*{suffix}"))


def line_tables(line: dict[str, Any]) -> list[tuple[str, list[Any], list[str]]]:
    articles, figures = line["articles"], line["figures"]
    title = f"{articles} articles with {figures} figures; decoding takes {line['decoder_fraction']:.0%} of the build"
    rows = [
        (name, count / seconds, seconds / count * 1000)
        for name, seconds in line["seconds"].items()
        for count in [figures if name == LINE else line["pictures"]]
    ]
    whole = line["seconds"][LINE]
    steps = [
        (name, seconds / articles * 1000, seconds / figures * 1000, f"{seconds / whole:.0%}")
        for name, seconds in line["steps"].items()
    ]
    return [
        (title, rows, ["", "figures/s", "ms per figure"]),
        ("Steps of the build", steps, ["step", "ms per article", "ms per figure", "of the build"]),
    ]


# Panels.


def measure_panels(options: Any, folder: Path) -> dict[str, Any]:
    """Measure the build with and without panels over the same articles."""
    mirror = options.data / "pmc_mirror"
    pmcids = [path.name for path in sorted(mirror.glob("PMC*"))][: options.limit] if options.limit else None
    detector = load_lazy_detector(options.detector)
    steps: list[dict[str, float]] = []

    def build_once(**given: Any) -> dict[str, Any]:
        _SPENT.clear()
        output = folder / ("with_panels" if given else "without")
        built = build(str(mirror), output, MeasuredEngine(connections=1), pmcids=pmcids, **given)
        if given:
            steps.append(dict(_SPENT))
        return built

    ways = {WITHOUT: build_once, WITH: lambda: build_once(panels="also", detector=detector)}
    seconds, last = take_turns(ways, options.rounds, time.process_time)
    found = last[WITH]["panel_detection"]
    return {
        "detector": detector.fingerprint,
        "figures": found["examined_figures"],
        "compound_figures": found["compound_figures"],
        "panels": last[WITH]["composition"]["rows"].get("panels", 0),
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "detector_step": statistics.median(step["Find panels"] for step in steps[1:]),
        "throughput_ratio": median_ratio(seconds[WITHOUT], seconds[WITH]),
    }


def panel_tables(part: dict[str, Any]) -> list[tuple[str, list[Any], list[str]]]:
    figures = part["figures"]
    title = (
        f"{figures} figures, {part['compound_figures']} compound, {part['panels']} panels, by {part['detector']}; "
        f"with panels, the build has {part['throughput_ratio']:.0%} of its throughput"
    )
    rows = {**part["seconds"], "the step that finds panels": part["detector_step"]}
    table = [(name, figures / seconds, seconds / figures * 1000) for name, seconds in rows.items()]
    return [(title, table, ["", "figures/s", "ms per figure"])]


# Memory.


class RepeatedFileSystem(AbstractFileSystem):
    """A bucket that repeats the articles of a mirror under new numbers: `repeated://<articles>/<mirror>/.mirror`."""

    protocol = "repeated"

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        names = [f"{path}/2026-01-18T01-00Z"] if path.endswith(INVENTORY) else []
        return [{"name": name, "size": 0, "type": "directory"} for name in names] if detail else names

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        if "/PMC" in path:
            raise FileNotFoundError(path)
        return {"name": path, "size": 0, "type": "file", "ETag": path}

    def exists(self, path: str, **options: Any) -> bool:
        return True

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        articles, _, rest = path.removeprefix("repeated://").partition("/")
        root, _, key = rest.partition("/.mirror/")
        if key.endswith("manifest.json"):
            return json.dumps({"files": [{"key": f"{INVENTORY}/data/all.csv.gz"}]}).encode()
        if key.endswith("all.csv.gz"):
            numbers = range(FIRST_NUMBER, FIRST_NUMBER + int(articles))
            lines = (f'"bucket","metadata/PMC{number}.1.json","2026-01-08","{number:032x}"\n' for number in numbers)
            return gzip.compress("".join(lines).encode(), compresslevel=1)
        name = re.search(r"PMC(\d+)\.\d+", key)
        assert name is not None
        templates = sorted(entry for entry in os.listdir(f"/{root}") if entry.startswith("PMC"))
        template = templates[int(name[1]) % len(templates)]
        content = Path(f"/{root}", key.replace(name[0], template)).read_bytes()
        return content.replace(template.encode(), name[0].encode()) if key.endswith(".json") else content[start:end]


def measure_memory(folder: Path, articles: int) -> dict[str, tuple[int, int]]:
    """Return the resident bytes before and at the peak of each stage, and at a tenth and at the end of the articles."""
    mirror = folder / "small"
    write_synthetic_corpus(mirror, figures=1_000)
    shrink(mirror)
    fsspec.register_implementation("repeated", RepeatedFileSystem, clobber=True)
    found: dict[str, tuple[int, int]] = {}

    @contextmanager
    def watch(stage: str, journals: Path) -> Iterator[None]:
        done, before, seen = threading.Event(), resident(), [resident()]
        tenth: list[int] = []

        def look() -> None:
            with tqdm(total=articles, desc=stage, unit="article", disable=stage != "articles") as bar:
                while not done.wait(0.05):
                    seen.append(resident())
                    if stage == "articles" and journals.is_dir():
                        bar.update(count_articles(journals) - bar.n)
                        if bar.n >= articles / 10 and not tenth:
                            tenth.append(seen[-1])

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            found[stage] = (before, max(seen))
            if tenth:
                found["after a tenth of the articles, and at their end"] = (tenth[0], seen[-1])

    build(f"repeated://{articles}{mirror}/.mirror", folder / "set", MeasuredEngine(tasks=1, connections=1, watch=watch))
    return found


def shrink(mirror: Path) -> None:
    """Make all pictures of a mirror small, so that 100,000 articles take minutes and little disk."""
    digests = {}
    for path in filter(is_picture, mirror.glob("PMC*/*")):
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.resize((SMALL_SIDE, SMALL_SIDE)).save(path, image.format)
        digests[md5(content).hexdigest()] = md5(path.read_bytes()).hexdigest()
    for path in mirror.rglob("*.json"):
        path.write_text(re.sub(r"(?<=\?md5=)\w+", lambda match: digests.get(match[0], match[0]), path.read_text()))


def resident() -> int:
    """Return the bytes that this process holds in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Costs.


def assumption(default: float, text: str) -> Any:
    return field(default=default, metadata={"text": text})


@dataclass(frozen=True)
class Assumptions:
    """Values that cannot be measured here. `--assume` changes them."""

    article_versions: float = assumption(8_000_000, "article versions in the bucket")
    fraction_with_figures: float = assumption(3 / 4.4, "fraction with figures (paper: 3 of 4.4 million)")
    pairs_per_article: float = assumption(15_282_336 / 3_000_000, "pairs per article with figures (paper)")
    files_per_pair: float = assumption(2, "files per picture: .jpg, and sometimes .gif and .tif")
    picture_bytes: float = assumption(150_000, "bytes of the file that is kept")
    other_file_bytes: float = assumption(15_000, "bytes of each other file, mostly a thumbnail")
    picture_pixels: float = assumption(600_000, "pixels of a picture")
    xml_bytes: float = assumption(120_000, "bytes of an XML file")
    processor_milliseconds_per_request: float = assumption(2, "processor time of a GET, with TLS")
    milliseconds_per_request: float = assumption(30, "latency of a GET in us-east-1")
    connections_per_task: float = assumption(16, "concurrent GETs of a task, one task per core")
    cores: float = assumption(64, "cores of the node, as fast as this machine's")
    gigabits: float = assumption(25, "network of the node, Gbit/s")
    disk_gigabytes_per_second: float = assumption(2, "disk of the node, GB/s, read and write")


def costs(line: dict[str, Any], assumed: Assumptions) -> dict[str, Any]:
    """Return what a build of everything takes. The seconds of a step grow with XML, bytes or pixels."""
    articles, steps = assumed.article_versions, line["steps"]
    pairs = articles * assumed.fraction_with_figures * assumed.pairs_per_article
    requests = 2 * articles + pairs * assumed.files_per_pair
    pair_bytes = assumed.picture_bytes + (assumed.files_per_pair - 1) * assumed.other_file_bytes
    read = articles * (line["metadata_bytes"] + assumed.xml_bytes) + pairs * pair_bytes
    by_xml = articles * assumed.xml_bytes / line["xml_bytes"] / line["articles"]
    by_bytes = pairs * pair_bytes / line["picture_bytes"] / line["figures"]
    by_pixels = pairs * assumed.picture_pixels / line["picture_pixels"] / line["figures"]
    core_seconds = {
        "read and parse articles": by_xml * (steps["Read work list"] + steps["Read articles"] + steps["Parse figures"]),
        "fetch pictures": by_bytes * steps["Fetch pictures"],
        "decode, hash and pair": by_pixels * steps["Pair figures"],
        "write pairs and shards": by_bytes * (steps["Write articles"] + steps["Write shards"]),
        "S3 client": requests * assumed.processor_milliseconds_per_request / 1000,
    }
    staged = pairs * (assumed.picture_bytes + line["bytes"]["journals"] / line["figures"])
    disk = pairs * assumed.picture_bytes
    latency = requests * assumed.milliseconds_per_request / 1000 / (assumed.connections_per_task * assumed.cores)
    totals = {
        "pairs, millions": pairs / 1e6,
        "GETs, millions": requests / 1e6,
        "TB read": read / 1e12,
        "TB of disk for staging": staged / 1e12,
        "TB of the dataset": disk / 1e12,
        **{f"core-hours, {name}": seconds / 3600 for name, seconds in core_seconds.items()},
        "hours on one node, processor": sum(core_seconds.values()) / 3600 / assumed.cores,
        "hours on one node, network": read * 8 / (assumed.gigabits * 1e9) / 3600,
        "hours on one node, latency": latency / 3600,
        "hours on one node, disk": (2 * staged + disk) / (assumed.disk_gigabytes_per_second * 1e9) / 3600,
    }
    return {"assumed": asdict(assumed), "totals": totals}


if __name__ == "__main__":
    main()
