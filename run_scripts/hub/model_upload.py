"""Upload a model as a pull request, compare the download with the model on disk, and merge."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file

from biomedclip.conversion import from_open_clip
from biomedclip.conversion.files import OPEN_CLIP_CONFIG

from ..evaluation.verification import LABELS, LARGEST_DIFFERENCE, TEMPLATE, pictures_to_compare
from . import model_outputs
from .fingerprints import evaluated_fingerprint
from .model_files import is_from_push
from .publishing import commit, hub_errors, list_files, verify_upload


@dataclass(frozen=True)
class Publication:
    """A model that is ready to be uploaded.

    Args:
        title: What it is, for the title of the commit.
        files: The files to upload, by name.
        card: Text of its card.
        weights: Fingerprint of the weights.
        left_out: Reason for each file of the folder that is not uploaded, by name.
        without_open_clip: Why there is no copy for open_clip, or None.
        check: Raises `ValueError` if the model does not fit to what it needs from the Hub.
        compare: Takes the folder of the downloaded files. Returns the largest difference of each output from that of
            the model on disk, or raises `ValueError`.
    """

    title: str
    files: Mapping[str, Path | bytes]
    card: str
    weights: str
    left_out: Mapping[str, str]
    without_open_clip: str | None
    compare: Callable[[Path], dict[str, float]]
    check: Callable[[], None] = lambda: None


def upload_model(api: HfApi, publication: Publication, repo_id: str, branch: str, scratch: Path) -> dict[str, Any]:
    """Upload the files of a model. The branch changes only if the uploaded files pass all checks.

    If the process is killed before the checks end, the pull request stays open. `scratch` is a folder for the download.
    Return the largest differences, the commit and the URL.
    """
    files = publication.files
    if branch != "main":
        with hub_errors(f"The branch {branch} of {repo_id} cannot be created"):
            api.create_branch(repo_id, branch=branch, exist_ok=True)
    stale = [name for name in list_files(api, repo_id, "model", branch) if name not in files and is_from_push(name)]
    title = f"{publication.title} with weights {publication.weights}"
    info, sent = commit(api, repo_id, "model", files, title, delete=stale, revision=branch, create_pr=True)
    uploaded = info.pr_revision or branch  # no pull request is created if the branch contains the same files
    try:
        verify_upload(list_files(api, repo_id, "model", uploaded), sent, stale)
        downloaded = api.model_info(repo_id, revision=uploaded).sha
        differences = publication.compare(
            Path(api.snapshot_download(repo_id, revision=downloaded, cache_dir=scratch / "cache"))
        )
    except BaseException:
        if info.pr_num is not None:
            with contextlib.suppress(Exception):
                api.change_discussion_status(repo_id, info.pr_num, "closed")
        raise
    if info.pr_num is not None:
        with hub_errors(f"The pull request {info.pr_url} cannot be merged"):
            api.merge_pull_request(repo_id, info.pr_num)
        verify_upload(list_files(api, repo_id, "model", branch), sent, stale)
    return {
        "largest_difference": differences,
        "commit": api.model_info(repo_id, revision=branch).sha,
        "url": f"{api.endpoint}/{repo_id}" + ("" if branch == "main" else f"/tree/{branch}"),
    }


def compare_model(repo_id: str, source: tuple[Any, Any], scratch: Path, folder: Path) -> dict[str, float]:
    """Return the largest difference of each output of a downloaded dual encoder. Raise `ValueError` if they differ."""
    weights = evaluated_fingerprint(source[0])
    if (folder / OPEN_CLIP_CONFIG).is_file() and evaluated_fingerprint(from_open_clip(folder)[0]) != weights:
        raise ValueError(f"{repo_id}: the weights of the uploaded copy for open_clip differ. Nothing was published.")
    inputs = write_inputs(scratch)
    differences = largest_differences(
        outputs_in_new_process(folder, inputs, scratch), model_outputs.outputs(*source, inputs)
    )
    exact = max(differences["token ids"], differences["pixels"])
    # Matrix products may round differently in another process, because memory is aligned differently.
    if exact > 0 or max(differences["image embeddings"], differences["text embeddings"]) > LARGEST_DIFFERENCE:
        raise outputs_differ(repo_id, differences)
    return differences


def write_inputs(scratch: Path) -> Path:
    """Write the images and texts with which two models are compared, and return their folder."""
    inputs = scratch / "inputs"
    inputs.mkdir()
    for number, image in enumerate(pictures_to_compare([])):
        image.save(inputs / f"{number:03d}.png")
    (inputs / model_outputs.TEXTS).write_text(
        json.dumps([TEMPLATE.format(label) for label in LABELS]), encoding="utf-8"
    )
    return inputs


def largest_differences(outputs: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return the largest difference of each output, infinite for another shape."""
    return {
        name: (outputs[name].double() - values.double()).abs().max().item()
        if outputs[name].shape == values.shape
        else torch.inf
        for name, values in expected.items()
    }


def outputs_differ(repo_id: str, differences: Mapping[str, float]) -> ValueError:
    """Return the error for a downloaded model whose outputs differ."""
    named = ", ".join(f"{name} by {value:.2g}" for name, value in differences.items() if value)
    return ValueError(f"{repo_id}: the outputs of the uploaded model differ ({named}). Nothing was published.")


def outputs_in_new_process(folder: Path, inputs: Path, scratch: Path) -> dict[str, torch.Tensor]:
    """Run `model_outputs.py` in a process that has access to neither this package nor the user's token."""
    result = scratch / "outputs.safetensors"
    # -P keeps the folder of the script, and thereby this package, off the module path.
    command = [sys.executable, "-P", model_outputs.__file__, str(folder), str(inputs), str(result)]
    hidden = ("PYTHONPATH", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HF_HOME": str(scratch / "home"), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        command, cwd=scratch, env=environment, capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ValueError(f"The uploaded model cannot be loaded ({last[0]}). Nothing was published.")
    return load_file(result)
