"""Upload a model as a pull request, compare the download with the model on disk, and merge."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
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


def upload_model(
    api: HfApi, report: Mapping[str, Any], files: Mapping[str, Path | bytes], source: tuple[Any, Any], scratch: Path
) -> dict[str, Any]:
    """Upload the files of a model. The branch changes only if the uploaded files pass all checks.

    If the process is killed before the checks end, the pull request stays open. `report` has `repo_id`, `revision` and
    `weights`. `source` is the model and processor on disk. `scratch` is a folder for the download. Return the largest
    differences, the commit and the URL.
    """
    repo_id, branch = report["repo_id"], report["revision"]
    if branch != "main":
        with hub_errors(f"The branch {branch} of {repo_id} cannot be created"):
            api.create_branch(repo_id, branch=branch, exist_ok=True)
    stale = [name for name in list_files(api, repo_id, "model", branch) if name not in files and is_from_push(name)]
    title = f"BiomedCLIP with weights {report['weights']}"
    info, sent = commit(api, repo_id, "model", files, title, delete=stale, revision=branch, create_pr=True)
    uploaded = info.pr_revision or branch  # no pull request is created if the branch contains the same files
    try:
        verify_upload(list_files(api, repo_id, "model", uploaded), sent, stale)
        differences = compare_download(api, repo_id, uploaded, source, scratch)
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


def compare_download(
    api: HfApi, repo_id: str, revision: str, source: tuple[Any, Any], scratch: Path
) -> dict[str, float]:
    """Download a repository into an empty cache, and return the largest difference of each output of the model."""
    commit = api.model_info(repo_id, revision=revision).sha
    folder = Path(api.snapshot_download(repo_id, revision=commit, cache_dir=scratch / "cache"))
    weights = evaluated_fingerprint(source[0])
    if (folder / OPEN_CLIP_CONFIG).is_file() and evaluated_fingerprint(from_open_clip(folder)[0]) != weights:
        raise ValueError(f"{repo_id}: the weights of the uploaded copy for open_clip differ. Nothing was published.")
    inputs = scratch / "inputs"
    inputs.mkdir()
    for number, image in enumerate(pictures_to_compare([])):
        image.save(inputs / f"{number:03d}.png")
    (inputs / model_outputs.TEXTS).write_text(
        json.dumps([TEMPLATE.format(label) for label in LABELS]), encoding="utf-8"
    )
    outputs = outputs_in_new_process(folder, inputs, scratch)
    differences = {}
    for name, expected in model_outputs.outputs(*source, inputs).items():
        same_shape = outputs[name].shape == expected.shape
        differences[name] = (outputs[name].double() - expected.double()).abs().max().item() if same_shape else torch.inf
    exact = max(differences["token ids"], differences["pixels"])
    # Matrix products may round differently in another process, because memory is aligned differently.
    if exact > 0 or max(differences["image embeddings"], differences["text embeddings"]) > LARGEST_DIFFERENCE:
        named = ", ".join(f"{name} by {value:.2g}" for name, value in differences.items() if value)
        raise ValueError(f"{repo_id}: the outputs of the uploaded model differ ({named}). Nothing was published.")
    return differences


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
