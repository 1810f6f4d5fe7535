"""Publishes a model on the Hub in one commit: weights, processor, code, card, results, and a copy for open_clip.

biomedclip push my-lab/biomedclip --model out/model --dry-run
biomedclip push my-lab/biomedclip --model out/model --private
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError
from safetensors.torch import load_file

from biomedclip import to_open_clip
from biomedclip.conversion import from_open_clip, load_any_layout
from biomedclip.conversion.files import OPEN_CLIP_CONFIG
from biomedclip.model_cards.checking import problems_of
from biomedclip.model_cards.fill import PLACEHOLDER, size
from biomedclip.model_cards.reading import check_shape, read_json, read_text

from .card import CARD, CARD_FACTS, FACTS, describe_model
from .cli.options import WRITTEN_RECIPE, parse_options
from .cli.reporting import say, show_table, versions, write_json
from .evaluation.verification import LABELS, LARGEST_DIFFERENCE, TEMPLATE, pictures_to_compare
from .hub import reloading
from .hub.fingerprints import evaluated_fingerprint
from .hub.model_files import find_model_files, is_published
from .hub.publishing import (
    Sent,
    check_card,
    check_write_access,
    commit,
    create_repository,
    files_on_hub,
    verify_upload,
)


EXAMPLE = "biomedclip push my-lab/biomedclip --model out/model --dry-run"
REPORT = "push.json"
_TEXT = (".json", ".md", ".py", ".txt", ".yaml")
# Files of an earlier push. They are deleted if they are not part of this one.
_OF_A_PUSH = ("open_clip_*", "results/*.json", WRITTEN_RECIPE)
# Where an upload waits until it has been looked at.
_WAITING = "biomedclip-push"


@dataclass
class PushOptions:
    """What is published where."""

    repo_id: str = field(metadata={"help": "ORG/NAME or USER/NAME on the Hub. May stand without its name."})
    model: str = field(metadata={"help": "Folder of the model, with the card that biomedclip card has filled."})
    private: bool = field(default=False, metadata={"help": "Create the repository as a private one."})
    revision: str | None = field(
        default=None, metadata={"help": "Branch to push to, created where it does not exist. main if left out."}
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "List what would be sent and what stays, and check the card; without a network."},
    )


def main(arguments: Sequence[str]) -> None:
    """Runs `biomedclip push`."""
    (options,) = parse_options(
        "push",
        [PushOptions],
        arguments,
        description=__doc__.split("\n\n")[0],
        example=EXAMPLE,
        positionals=["repo_id"],
    )
    report = push_model(options)
    rows: list[tuple[Any, ...]] = [(name, size(count)) for name, count in report["files"].items()]
    rows.append((f"{len(rows)} files", size(sum(report["files"].values()))))
    what = "would go" if options.dry_run else "went"
    show_table(f"What {what} to {options.repo_id}", rows, ["file", "size"])
    if report["left_out"]:
        show_table(f"Stays in {options.model}", list(report["left_out"].items()), ["file", "why"])
    if report["without_open_clip"]:
        say(f"No copy for open_clip: {report['without_open_clip']}")
    if options.dry_run:
        say("The card is complete, and all files are there. Nothing was sent.")
    else:
        differences = ", ".join(f"{name} {value:.2g}" for name, value in report["largest_difference"].items())
        say(f"Downloaded again and held against {options.model}; largest differences: {differences}")
        say(f"Published at {report['url']}, commit {report['commit']}")
    say(f"Report in {Path(options.model) / REPORT}")


def push_model(options: PushOptions) -> dict[str, Any]:
    """Publishes a model.

    The upload waits on a branch of its own until it has been downloaded again and gives the same embeddings; only then
    the same files become one commit of the branch that was asked for, for which nothing is sent again.

    Args:
        options: What is published where.

    Returns:
        The report that `push.json` holds.

    Raises:
        PermissionError: No token, or none that may write there.
        ValueError: If [`find_model_files`] refuses a file; the card has something left to fill or is that of other
            weights; a file names a path of this machine; or the upload gives other embeddings.
        FileNotFoundError: If something is missing in the folder.
        OSError: The Hub cannot be reached, gave up in the middle, or holds something else than was sent.
    """
    folder, repo_id = Path(options.model), options.repo_id
    api = None if options.dry_run else check_write_access(repo_id, "push")
    found, left_out = find_model_files(folder)
    card = read_text(found.pop(CARD)).replace(PLACEHOLDER, repo_id)
    facts = read_json(found.pop(CARD_FACTS))
    check_shape(folder / CARD_FACTS, facts, FACTS)
    if problems := problems_of(card):
        raise ValueError(
            f"{folder / CARD} is not complete. Fill it by biomedclip card (--help), or by hand:\n  "
            + "\n  ".join(problems)
        )
    with tempfile.TemporaryDirectory() as scratch:
        model, processor = load_files(found, folder, Path(scratch))
        described = describe_model(model, processor)
        if facts["model"]["weights"] != described["weights"]:
            raise ValueError(f"{folder / CARD} is the card of other weights. Fill it again: biomedclip card --help")
        files: dict[str, Path | bytes] = {**found, CARD: card.encode(), CARD_FACTS: _json(facts | {"name": repo_id})}
        files |= results_as_files(facts)
        if described["open_clip_obstacle"] is None:
            to_open_clip(model, processor, Path(scratch) / "open_clip")
            # Tokenizer files of the same names are ours already: open_clip reads them as well.
            files = {**{path.name: path for path in (Path(scratch) / "open_clip").iterdir()}, **files}
        refuse_machine_paths(files, folder)
        report: dict[str, Any] = {
            "repo_id": repo_id,
            "revision": options.revision or "main",
            "private": options.private,
            "weights": described["weights"],
            "files": {name: _size(file) for name, file in sorted(files.items())},
            "left_out": left_out,
            "without_open_clip": described["open_clip_obstacle"],
            "dry_run": options.dry_run,
        }
        if api is not None:
            report |= _upload(api, options, files, card, (model, processor), Path(scratch))
    write_json(folder / REPORT, report | {"versions": versions()})
    return report


def load_files(files: Mapping[str, Path], folder: Path, scratch: Path) -> tuple[Any, Any]:
    """Load model and processor from the files that are published, and from no other file of their folder.

    Args:
        files: The files by name.
        folder: The folder that they come from, for errors.
        scratch: A folder for a copy made of links.

    Raises:
        ValueError: If they do not hold a whole BiomedCLIP.
    """
    copy = scratch / "published"
    copy.mkdir()
    for name, path in files.items():
        try:
            (copy / name).symlink_to(path)
        except OSError:  # Windows without the right to make links
            shutil.copyfile(path, copy / name)
    try:
        return load_any_layout(copy)
    except ValueError as error:
        raise ValueError(str(error).replace(str(copy), str(folder))) from error


def results_as_files(facts: Mapping[str, Any]) -> dict[str, bytes]:
    """The results that a card states, each as a file of its own, and the recipe of the training."""
    files: dict[str, bytes] = {}
    for result in facts.get("results", []):
        name = re.sub(r"[^\w-]+", "_", f"{result['task']}_{result['benchmark'] or 'own'}")
        number = sum(known.startswith(f"results/{name}") for known in files)
        files[f"results/{name}{f'_{number + 1}' if number else ''}.json"] = _json(result)
    if recipe := (facts.get("training") or {}).get("recipe"):
        files[WRITTEN_RECIPE] = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).encode()
    return files


def refuse_machine_paths(files: Mapping[str, Path | bytes], folder: Path) -> None:
    """Raises:
    ValueError: A text among the files names a folder of this machine.
    """
    private = {f"{path}/".encode() for path in (Path.home(), folder.resolve().parent) if len(path.parts) > 1}
    for name, file in files.items():
        if name.endswith(_TEXT):
            content = file if isinstance(file, bytes) else file.read_bytes()
            if found := next((path for path in private if path in content), None):
                raise ValueError(
                    f"{folder / name} names {found.decode()} of this machine. Take it out before you publish."
                )


def _upload(
    api: HfApi,
    options: PushOptions,
    files: Mapping[str, Path | bytes],
    card: str,
    source: tuple[Any, Any],
    scratch: Path,
) -> dict[str, Any]:
    repo_id, target = options.repo_id, options.revision or "main"
    title = f"BiomedCLIP with weights {evaluated_fingerprint(source[0])}"
    check_card(card, "model")
    create_repository(api, repo_id, options.private, "model")
    say(f"Sending {size(sum(map(_size, files.values())))} to {repo_id}")
    with _waiting_branch(api, repo_id):
        sent = _commit_and_verify(api, repo_id, files, title, _WAITING)
        differences = compare_download(api, repo_id, _WAITING, source, scratch)
        if options.revision:
            api.create_branch(repo_id, branch=options.revision, exist_ok=True)
        if sent != _commit_and_verify(api, repo_id, files, title, target):
            raise OSError(f"{repo_id}: the files changed while they were sent. Run the same command again.")
    return {
        "largest_difference": differences,
        "commit": api.model_info(repo_id, revision=target).sha,
        "url": f"{api.endpoint}/{repo_id}" + (f"/tree/{target}" if options.revision else ""),
    }


def _commit_and_verify(
    api: HfApi, repo_id: str, files: Mapping[str, Path | bytes], title: str, revision: str
) -> dict[str, Sent]:
    there = files_on_hub(api, repo_id, "model", revision)
    stale = [name for name in there if name not in files and _is_of_a_push(name)]
    sent = commit(api, repo_id, "model", files, title, delete=stale, revision=revision)
    verify_upload(files_on_hub(api, repo_id, "model", revision), sent, stale, repo_id)
    return sent


@contextmanager
def _waiting_branch(api: HfApi, repo_id: str) -> Iterator[None]:
    """A branch for an upload that has not been looked at; one that an earlier push has left is cleared away."""
    try:
        if any(branch.name == _WAITING for branch in api.list_repo_refs(repo_id).branches):
            api.delete_branch(repo_id, branch=_WAITING)
        api.create_branch(repo_id, branch=_WAITING)
    except HTTPError as error:
        raise OSError(f"{repo_id}: no branch can be made for the upload ({error}). Try again.") from error
    try:
        yield
    finally:
        try:
            api.delete_branch(repo_id, branch=_WAITING)
        except HTTPError:
            say(f"The branch {_WAITING} of {repo_id} could not be deleted: the next push does it.")


def compare_download(
    api: HfApi, repo_id: str, revision: str, source: tuple[Any, Any], scratch: Path
) -> dict[str, float]:
    """Downloads a repository into an empty cache, and has a process with its own code answer for it.

    Args:
        api: The client.
        repo_id: The repository.
        revision: Branch that is looked at.
        source: Model and processor that it should equal.
        scratch: An empty folder's place.

    Returns:
        The largest difference of each kind of answer.

    Raises:
        ValueError: It does not load, or gives other embeddings; open_clip's copy has other weights.
    """
    commit_hash = api.model_info(repo_id, revision=revision).sha
    folder = Path(api.snapshot_download(repo_id, revision=commit_hash, cache_dir=scratch / "cache"))
    weights = evaluated_fingerprint(source[0])
    if (folder / OPEN_CLIP_CONFIG).is_file() and evaluated_fingerprint(from_open_clip(folder)[0]) != weights:
        raise ValueError(f"{repo_id}: the uploaded copy for open_clip has other weights. Nothing was published.")
    inputs = scratch / "inputs"
    inputs.mkdir()
    for number, picture in enumerate(pictures_to_compare([])):
        picture.save(inputs / f"{number:03d}.png")
    (inputs / reloading.TEXTS).write_text(json.dumps([TEMPLATE.format(label) for label in LABELS]), encoding="utf-8")
    theirs = _answers_of(folder, inputs, scratch)
    ours = reloading.answers(*source, inputs)
    differences = {}
    for name, expected in ours.items():
        same_shape = theirs[name].shape == expected.shape
        differences[name] = (theirs[name].double() - expected.double()).abs().max().item() if same_shape else torch.inf
    exact = max(differences["token ids"], differences["pixels"])
    # Products in another process round another way now and then, as memory happens to be aligned.
    if exact > 0 or max(differences["image embeddings"], differences["text embeddings"]) > LARGEST_DIFFERENCE:
        named = ", ".join(f"{name} by {value:.2g}" for name, value in differences.items() if value)
        raise ValueError(
            f"{repo_id}: the upload, downloaded again, gives other answers ({named}). Nothing was published."
        )
    return differences


def _answers_of(folder: Path, inputs: Path, scratch: Path) -> dict[str, torch.Tensor]:
    # -P: not even the folder of the script is looked into for modules, let alone this package's.
    command = [sys.executable, "-P", reloading.__file__, str(folder), str(inputs), str(scratch / "answers.safetensors")]
    hidden = ("PYTHONPATH", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HF_HOME": str(scratch / "home"), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        command, cwd=scratch, env=environment, capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ValueError(f"The upload, downloaded again, does not load ({last[0]}). Nothing was published.")
    return load_file(scratch / "answers.safetensors")


def _is_of_a_push(name: str) -> bool:
    return is_published(name) or any(fnmatch(name, pattern) for pattern in _OF_A_PUSH)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _size(file: Path | bytes) -> int:
    return len(file) if isinstance(file, bytes) else file.stat().st_size
