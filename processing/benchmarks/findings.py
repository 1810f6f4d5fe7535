"""Splits of images with several findings, and the prompts of the findings."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from ..images.finding_tables import read_finding_splits
from ..images.findings import FindingImages
from ..images.labeled import choose_split, shared_groups
from .benchmark import Benchmark
from .fingerprint import fingerprint_of


_FILE = Path(__file__).parent / "finding_prompts.yaml"
Pair = tuple[list[str], list[str]]  # positive and negative prompts of a finding


@dataclass(frozen=True, kw_only=True)
class FindingsBenchmark(Benchmark):
    """A split of images with several findings.

    Args:
        images: The images and their targets.
        prompts: Positive and negative prompts of each finding, in the order of `images.findings`.
        prompt_set: Name of the prompts.
    """

    images: FindingImages
    prompts: dict[str, Pair]
    prompt_set: str

    def __len__(self) -> int:
        return len(self.images)


def load_findings(
    path: str | os.PathLike[str],
    *,
    splits: Sequence[str] = ("test",),
    prompts: str | None = None,
    held_out: float | None = None,
    seed: int = 0,
    **columns: Any,
) -> dict[str, FindingsBenchmark]:
    """Load splits of images with several findings.

    Args:
        path: Data that [`read_finding_splits`] accepts.
        splits: The splits to return.
        prompts: Name of a set of prompts, or a YAML file (default: `chexzero`).
        held_out: Fraction of the images, or of whole groups, to hold out for a missing test or validation split.
        seed: Seed for drawing splits.
        columns: Options of [`read_finding_splits`].

    Raises:
        FileNotFoundError: If files are missing.
        ValueError: If a split does not exist, or the data or the prompts cannot be read.
    """
    found = read_finding_splits(path, **columns)
    chosen = {split: choose_split(found, path, split, held_out, seed) for split in splits}
    leaks = shared_groups(chosen)
    pairs, prompt_set = choose_finding_prompts(prompts, next(iter(chosen.values())).findings)
    return {
        split: FindingsBenchmark(
            name="findings",
            split=split,
            path=os.fspath(path),
            paper={},
            source="",
            fingerprint=_fingerprint(images),
            notes=[*images.notes, *(leaks if split == splits[-1] else [])],
            images=images,
            prompts=pairs,
            prompt_set=prompt_set,
        )
        for split, images in chosen.items()
    }


def _fingerprint(images: FindingImages) -> str:
    rows = [(name, *(f"{value:g}" for value in row)) for name, row in zip(images.names, images.targets, strict=True)]
    return fingerprint_of([tuple(images.findings), *rows], images.images)


@lru_cache(maxsize=1)
def _facts() -> dict[str, Any]:
    return yaml.safe_load(_FILE.read_text(encoding="utf-8"))


def choose_finding_prompts(prompts: str | None, findings: Sequence[str]) -> tuple[dict[str, Pair], str]:
    """Return the prompts of each finding, and the name of the set.

    `prompts` is the name of a set, or a YAML file with `positive` and `negative` (lists of templates with `{}`),
    `names` (names by finding), `findings` (`positive` and `negative` prompts by finding), or some of them.

    Raises:
        ValueError: If the set is unknown, or the file is invalid.
    """
    facts = _facts()
    templates = next(iter(facts["sets"].values()))
    names: dict[str, str] = {}
    of_findings: dict[str, Any] = dict(facts["findings"])
    chosen = next(iter(facts["sets"])) if prompts is None else prompts
    if chosen in facts["sets"]:
        templates = facts["sets"][chosen]
    else:
        path = Path(chosen)
        if path.suffix.lower() not in (".yaml", ".yml") or not path.is_file():
            raise ValueError(
                f"prompts={chosen!r} is neither a set of prompts ({', '.join(facts['sets'])}) nor a YAML file."
            )
        content = _read_prompts(path, findings)
        templates = {**templates, **{side: content[side] for side in ("positive", "negative") if side in content}}
        names = content.get("names", {})
        of_findings |= content.get("findings", {})
        chosen = path.name
    pairs = {}
    for finding in findings:
        own = of_findings.get(finding)
        name = names.get(finding, finding.replace("_", " "))
        if own is None or finding in names:
            own = {side: [text.replace("{}", name) for text in templates[side]] for side in ("positive", "negative")}
        pairs[finding] = (list(own["positive"]), list(own["negative"]))
    return pairs, chosen


def _read_prompts(path: Path, findings: Sequence[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable YAML file ({error}).") from error
    known = {"positive", "negative", "names", "findings"}
    if not isinstance(content, dict) or not content or not content.keys() <= known:
        raise ValueError(f"{path}: prompts of findings must be a mapping with some of {', '.join(sorted(known))}.")
    for side in ("positive", "negative"):
        if side in content:
            _check_texts(content[side], f"{path}: `{side}`", "{}")
    for key in ("names", "findings"):
        if not isinstance(content.get(key, {}), dict):
            raise ValueError(f"{path}: `{key}` must be a mapping with findings as keys.")
        if unknown := sorted(set(map(str, content.get(key, {}))) - set(findings)):
            raise ValueError(
                f"{path}: `{key}` has the unknown finding {unknown[0]!r}. Choose from {', '.join(findings)}."
            )
    for finding, name in content.get("names", {}).items():
        _check_texts([name], f"{path}: the name of {finding}")
    for finding, pair in content.get("findings", {}).items():
        if not isinstance(pair, Mapping) or set(pair) != {"positive", "negative"}:
            raise ValueError(f"{path}: `findings` must have `positive` and `negative` prompts for {finding}.")
        for side, texts in pair.items():
            _check_texts(texts, f"{path}: `{side}` of {finding}")
    return content


def _check_texts(texts: Any, what: str, placeholder: str = "") -> None:
    good = isinstance(texts, list) and texts and all(isinstance(text, str) and text.strip() for text in texts)
    if not good or not all(text.count(placeholder) == 1 for text in texts if placeholder):
        holder = f" with one {placeholder} each" if placeholder else ""
        raise ValueError(f"{what} must be a list of texts{holder}.")
