"""Feed damaged articles, images, figures and captions to the parser, the image reader, and the code for panels.

Each input must be read, or refused with the error of its target, within 10 seconds and 1 GiB of memory.

```
python tests/fuzzing/fuzz.py --inputs 50000 --seed 0
python tests/fuzzing/fuzz.py --inputs 50000 --seed 0 --target pictures --data ../shared/data
```

An input depends on the seed, its number and the sample files. Inputs that fail are saved, and the exit status is 1.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np


ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fuzzing.mutate import damage_article, damage_caption, damage_picture  # noqa: E402
from fuzzing.panels import NotSplit, find_and_check, load_detectors, split_and_check  # noqa: E402
from PIL import Image  # noqa: E402

from biomedclip.processing.images.reading import ImageError  # noqa: E402
from biomedclip.processing.pmc.images import inspect_image  # noqa: E402
from biomedclip.processing.pmc.jats import JatsError, parse_figures  # noqa: E402


SECONDS = 10
PEAK_MIB = 1024


@dataclass(frozen=True)
class Target:
    """A function to fuzz. It returns, or raises `refusal`.

    `prepare` imports what the function needs, because the time and memory of this do not count.
    """

    name: str
    function: Callable[[bytes], Any]
    refusal: type[Exception]
    damage: Callable[[bytes, bytes, Random], bytes]
    prepare: Callable[[], None] = lambda: None


TARGETS = (
    Target("articles", parse_figures, JatsError, damage_article),
    Target("pictures", inspect_image, ImageError, damage_picture),
    Target("panels", find_and_check, ImageError, damage_picture, load_detectors),
    Target("captions", split_and_check, NotSplit, damage_caption),
)


@dataclass
class Result:
    """The outcomes of a run."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)
    slowest_ms: float = 0.0
    slowest: int = -1
    peak_mib: int = 0

    def add(self, number: int, outcome: str) -> None:
        self.outcomes[outcome] += 1
        if outcome.startswith("FAILED"):
            self.failures.append((number, outcome))


def make_input(target: Target, samples: Sequence[bytes], seed: int, number: int) -> bytes:
    """Return an input of a run. It does not depend on other inputs."""
    random = Random(f"{target.name}/{seed}/{number}")
    return target.damage(random.choice(samples), random.choice(samples), random)


def fuzz(
    target: Target,
    samples: Sequence[bytes],
    inputs: int,
    seed: int,
    seconds: int = SECONDS,
    peak_mib: int = PEAK_MIB,
) -> Result:
    """Run all inputs in another process. If an input ends the process, a new one continues after it."""

    def run(sender: Any, first: int) -> None:
        """Run inputs in the child process. An alarm ends it even in C code."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        before = _peak_mib()
        target.prepare()
        libraries = _peak_mib() - before
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        warnings.simplefilter("ignore")
        for number in range(first, inputs):
            content = make_input(target, samples, seed, number)
            signal.alarm(seconds)
            started = time.process_time()
            try:
                target.function(content)
                outcome = "read"
            except target.refusal as error:
                outcome = f"refused: {getattr(error, 'reason', type(error).__name__)}"
            except BaseException as error:
                outcome = f"FAILED: {type(error).__name__}: {str(error)[:200]}"
            milliseconds = (time.process_time() - started) * 1000
            signal.alarm(0)
            peak = _peak_mib() - libraries
            too_much = peak >= peak_mib
            sender.send((number, f"FAILED: {peak} MiB" if too_much else outcome, milliseconds, peak))
            if too_much:
                return  # the peak of a process never falls, so the next input needs a new one

    result = Result()
    context = multiprocessing.get_context("fork")
    number = 0
    while number < inputs:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=run, args=(sender, number))
        child.start()
        sender.close()
        with contextlib.suppress(EOFError):
            while True:
                number, outcome, milliseconds, peak = receiver.recv()
                result.add(number, outcome)
                if milliseconds > result.slowest_ms:
                    result.slowest, result.slowest_ms = number, milliseconds
                result.peak_mib = max(result.peak_mib, peak)
                number += 1
        child.join()
        if number < inputs and child.exitcode:
            outcome = f"exit {child.exitcode}"
            if child.exitcode < 0:
                after = f" after {seconds} s" if child.exitcode == -signal.SIGALRM else ""
                outcome = f"process ended by {signal.Signals(-child.exitcode).name}{after}"
            result.add(number, f"FAILED: {outcome}")
            number += 1
    return result


def _peak_mib() -> int:
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) // 1024


def article_samples(data: Path) -> list[bytes]:
    """Return real articles, or synthetic ones if there are none."""
    files = [*data.glob("jats_xml/*.*ml"), *data.glob("pmc_mirror/PMC*/*.xml"), *data.glob("jats_with_images/*/*.nxml")]
    return [file.read_bytes() for file in sorted(files)] or _synthetic_samples("*.xml")


def picture_samples(data: Path) -> list[bytes]:
    """Return real or synthetic images, and small ones of each format and mode."""
    patterns = ("pmc_mirror/PMC*/*.jpg", "jats_with_images/*/*.*", "crc_he/*/*.*")
    files = sorted(file for pattern in patterns for file in data.glob(pattern))[::2]
    suffixes = {".jpg", ".png", ".tif"}
    real = [file.read_bytes() for file in files if file.suffix in suffixes and file.stat().st_size < 300_000]
    # Real images are nearly all baseline JPEG. Half of the inputs should be of other kinds.
    base = real or _synthetic_samples("*.jpg")
    kinds = [content for number in range(4) for content in _every_format(number)]
    return base + kinds * max(1, len(base) // len(kinds))


def caption_samples(data: Path) -> list[bytes]:
    """Return real captions, those that were split by hand first, or a few of each form of markers."""
    names = ("panels/gold.jsonl", "panels/sub_captions_prostate.jsonl", "captions/captions.jsonl")
    files = [data / name for name in names if (data / name).is_file()]
    texts = [json.loads(line)["caption"] for file in files for line in file.read_text("utf-8").splitlines()]
    return [text.encode() for text in texts[:1500] or CAPTIONS]


CAPTIONS = (
    "Findings. (a) A lesion and (b) fat tissue. Scale bars: 10 μm.",
    "A, CT of the chest. B, MRI. C, PET of the liver at 3 T.",
    "(A-C) Stains. (D) A plot of the values (n = 3). (E, F) Levels of AAT (E) and Akt (F).",
    "Spectra of particles made with tulsi extract (a), quercetin (b) and glucose (c).",
    "(a-c) Sections of liver, lung and skin, respectively.",
    "Left: CT. Right: MRI. Arrows point at the lesion.",
    "Top row: patients of group A. Bottom row: patients of group B.",
    "(i) CT, (ii) MRI, (iii) PET. * P < 0.05.",
    "(1) CT, (2) MRI, (3) PET.",
    "Serum vitamin D (C) and hepatitis B in patients.",
)
SAMPLES = {"articles": article_samples, "captions": caption_samples}


def _synthetic_samples(pattern: str) -> list[bytes]:
    from biomedclip.processing.synthetic_corpus import write_synthetic_corpus

    with tempfile.TemporaryDirectory() as folder:
        write_synthetic_corpus(Path(folder) / "corpus", figures=60, seed=0)
        return [file.read_bytes() for file in sorted((Path(folder) / "corpus").glob(f"PMC*/{pattern}"))]


def _every_format(seed: int) -> list[bytes]:
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((96 + 16 * seed, 64), Image.Resampling.BICUBIC)
    palette, gray = picture.quantize(64), picture.convert("L")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 200)
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (picture, "JPEG", {"progressive": True}),
        (picture, "JPEG", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}),
        (picture.convert("CMYK"), "JPEG", {}),
        (picture, "PNG", {}),
        (picture.convert("RGBA"), "PNG", {}),
        (gray.convert("LA"), "PNG", {}),
        (palette, "PNG", {"transparency": bytes(range(64))}),
        (deep, "PNG", {}),
        (picture, "PNG", {"save_all": True, "append_images": [picture.rotate(90)]}),
        (palette, "GIF", {"save_all": True, "append_images": [palette.rotate(90), palette.rotate(180)]}),
        (palette, "GIF", {"interlace": True}),
        (palette, "BMP", {}),
        (picture, "BMP", {}),
        (picture, "WEBP", {}),
        (picture.convert("RGBA"), "WEBP", {"lossless": True}),
        (picture, "WEBP", {"save_all": True, "append_images": [picture.rotate(90)]}),
        (picture, "TIFF", {}),
        (picture, "TIFF", {"save_all": True, "append_images": [gray, palette]}),
        (Image.fromarray(np.asarray(gray).astype(np.float32) / 7), "TIFF", {}),
        (Image.frombytes("I;16B", deep.size, np.asarray(deep).astype(">u2").tobytes()), "TIFF", {}),
        (picture.convert("CMYK"), "TIFF", {"compression": "tiff_lzw"}),
        (picture.convert("LAB"), "TIFF", {}) if seed % 2 else (picture.convert("YCbCr"), "TIFF", {}),
        (picture, "TIFF", {"compression": "jpeg"}),
        (deep, "TIFF", {"compression": "tiff_adobe_deflate"}),
        (palette, "TIFF", {"compression": "packbits"}),
        (picture.convert("1"), "TIFF", {"compression": "group4"}),
        (picture, "TIFF", {"compression": "zstd"}),
    ]
    contents = []
    for image, format, options in kinds:
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        contents.append(buffer.getvalue())
    return contents


def show(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the targets and print a table. Return 1 if an input failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=50_000, help="inputs per target (default: 50000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=SECONDS, help=f"limit for an input (default: {SECONDS})")
    parser.add_argument("--target", choices=[target.name for target in TARGETS], help="target (default: all)")
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="real articles, images and captions"
    )
    parser.add_argument("--failures", type=Path, default=Path("fuzz_failures"), help="folder for inputs that fail")
    options = parser.parse_args(arguments)
    failed = False
    for target in TARGETS:
        if options.target not in (None, target.name):
            continue
        samples = SAMPLES.get(target.name, picture_samples)(options.data)
        started = time.perf_counter()
        result = fuzz(target, samples, options.inputs, options.seed, options.seconds)
        show(f"{target.name}: {options.inputs} inputs of {len(samples)} files, seed {options.seed}")
        for outcome, count in result.outcomes.most_common():
            show(f"{count:10d}  {outcome}")
        show(f"{result.slowest_ms:10.0f}  ms of CPU time for the slowest input ({result.slowest})")
        show(f"{result.peak_mib:10d}  MiB peak memory")
        show(f"{time.perf_counter() - started:10.0f}  s in total")
        for number, outcome in result.failures:
            options.failures.mkdir(parents=True, exist_ok=True)
            path = options.failures / f"{target.name}-{options.seed}-{number}"
            path.write_bytes(make_input(target, samples, options.seed, number))
            show(f"  {outcome}: input {number} is saved as {path}")
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
