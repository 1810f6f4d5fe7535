"""Publish a model or a classifier on the Hub: weights, processor, code, card, results, and a copy for open_clip."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from biomedclip import to_open_clip
from biomedclip.model_cards.checking import find_problems
from biomedclip.model_cards.formatting import PLACEHOLDER, size
from biomedclip.model_cards.reading import check_shape, read_json, read_text

from .cli.fields import REQUIRED, option
from .cli.options import parse_options
from .cli.reporting import say, show_table, versions, write_json
from .hub.card_facts import CARD, CARD_FACTS, FACTS, describe_model
from .hub.classifier_facts import is_classifier
from .hub.classifier_upload import prepare_classifier
from .hub.model_files import check_private_content, files_from_card, find_model_files, load_published
from .hub.model_upload import Publication, compare_model, upload_model
from .hub.publishing import check_card, check_write_access, create_repository


EXAMPLE = "biomedclip push my-lab/biomedclip --model out/model --dry-run"
REPORT = "push.json"


@dataclass
class PushOptions:
    """Options of `biomedclip push`."""

    repo_id: str = option(
        REQUIRED, "Repository on the Hub: ORG/NAME or USER/NAME. Can be the first positional argument."
    )
    model: str = option(REQUIRED, "Folder of a model or a classifier with a card written by biomedclip card.")
    private: bool = option(False, "Create a private repository.")
    revision: str | None = option(None, "Branch to push to (default: main). It is created if it does not exist.")
    dry_run: bool = option(False, "Check the card and list the files to upload, without network access.")


def main(arguments: Sequence[str]) -> None:
    """Run `biomedclip push`."""
    (options,) = parse_options(
        "push", [PushOptions], arguments, description=str(__doc__), example=EXAMPLE, positionals=["repo_id"]
    )
    report = push_model(options)
    rows: list[tuple[Any, ...]] = [(name, size(count)) for name, count in report["files"].items()]
    rows.append((f"{len(rows)} files", size(sum(report["files"].values()))))
    show_table(f"{'To upload' if options.dry_run else 'Uploaded'} to {options.repo_id}", rows, ["file", "size"])
    if report["left_out"]:
        show_table(f"Not published from {options.model}", list(report["left_out"].items()), ["file", "reason"])
    if report["without_open_clip"]:
        say(f"No copy for open_clip: {report['without_open_clip']}")
    if options.dry_run:
        say("The card is complete, and no file is missing. Nothing was uploaded.")
    else:
        differences = ", ".join(f"{name} {value:.2g}" for name, value in report["largest_difference"].items())
        say(f"Downloaded and compared with {options.model}. Largest differences: {differences}")
        say(f"Published at {report['url']}, commit {report['commit']}")
    say(f"Report: {Path(options.model) / REPORT}")


def push_model(options: PushOptions) -> dict[str, Any]:
    """Publish a model, and return the report that is also written to `push.json`.

    The files are uploaded as a pull request, which is then downloaded. It is merged if it produces the same outputs as
    the model on disk. Otherwise, it is closed and the branch does not change.
    """
    folder, repo_id, branch = Path(options.model), options.repo_id, options.revision or "main"
    api = None if options.dry_run else check_write_access(repo_id, "push")
    prepare = prepare_classifier if is_classifier(folder) else prepare_model
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        publication = prepare(folder, repo_id, scratch)
        check_private_content(publication.files, folder)
        report: dict[str, Any] = {
            "repo_id": repo_id,
            "revision": branch,
            "private": options.private,
            "weights": publication.weights,
            "files": {
                name: len(file) if isinstance(file, bytes) else file.stat().st_size
                for name, file in sorted(publication.files.items())
            },
            "left_out": dict(publication.left_out),
            "without_open_clip": publication.without_open_clip,
            "dry_run": options.dry_run,
        }
        if api is not None:
            check_card(publication.card, "model", folder / CARD)
            publication.check()
            create_repository(api, repo_id, "model", private=options.private)
            say(f"Uploading {size(sum(report['files'].values()))} to {repo_id}")
            report |= upload_model(api, publication, repo_id, branch, scratch)
    write_json(folder / REPORT, report | {"versions": versions()})
    return report


def prepare_model(folder: Path, repo_id: str, scratch: Path) -> Publication:
    """Check and load a dual encoder, and convert it for open_clip below the folder `scratch`."""
    found, left_out = find_model_files(folder)
    card = read_text(found.pop(CARD)).replace(PLACEHOLDER, repo_id)
    facts = read_json(found.pop(CARD_FACTS))
    check_shape(folder / CARD_FACTS, facts, FACTS)
    if problems := find_problems(card):
        raise ValueError("\n  ".join([f"{folder / CARD} is not complete. Run biomedclip card, or edit it:", *problems]))
    model, processor = load_published(found, folder, scratch / "published")
    described = describe_model(model, processor)
    if facts["model"]["weights"] != described["weights"]:
        raise ValueError(f"{folder / CARD} describes other weights. Run biomedclip card again.")
    files: dict[str, Path | bytes] = {**found, CARD: card.encode()}
    files |= files_from_card(facts | {"name": repo_id})
    if described["open_clip_obstacle"] is None:
        to_open_clip(model, processor, scratch / "open_clip")
        # open_clip reads the tokenizer files of transformers, so files with equal names are not replaced.
        files = {**{path.name: path for path in (scratch / "open_clip").iterdir()}, **files}
    return Publication(
        title="BiomedCLIP",
        files=files,
        card=card,
        weights=described["weights"],
        left_out=left_out,
        without_open_clip=described["open_clip_obstacle"],
        compare=partial(compare_model, repo_id, (model, processor), scratch),
    )
