"""Publish a model on the Hub: weights, processor, code, card, results, and a copy for open_clip."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
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
from .hub.model_files import check_private_content, files_from_card, find_model_files, load_published
from .hub.model_upload import upload_model
from .hub.publishing import check_card, check_write_access, create_repository


EXAMPLE = "biomedclip push my-lab/biomedclip --model out/model --dry-run"
REPORT = "push.json"


@dataclass
class PushOptions:
    """Options of `biomedclip push`."""

    repo_id: str = option(
        REQUIRED, "Repository on the Hub: ORG/NAME or USER/NAME. Can be the first positional argument."
    )
    model: str = option(REQUIRED, "Model folder with a card written by biomedclip card.")
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

    The files are uploaded as a pull request, which is then downloaded. It is merged if it produces the same embeddings
    as the model on disk. Otherwise, it is closed and the branch does not change.
    """
    folder, repo_id = Path(options.model), options.repo_id
    api = None if options.dry_run else check_write_access(repo_id, "push")
    found, left_out = find_model_files(folder)
    card = read_text(found.pop(CARD)).replace(PLACEHOLDER, repo_id)
    facts = read_json(found.pop(CARD_FACTS))
    check_shape(folder / CARD_FACTS, facts, FACTS)
    if problems := find_problems(card):
        raise ValueError("\n  ".join([f"{folder / CARD} is not complete. Run biomedclip card, or edit it:", *problems]))
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
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
        check_private_content(files, folder)
        report: dict[str, Any] = {
            "repo_id": repo_id,
            "revision": options.revision or "main",
            "private": options.private,
            "weights": described["weights"],
            "files": {
                name: len(file) if isinstance(file, bytes) else file.stat().st_size
                for name, file in sorted(files.items())
            },
            "left_out": left_out,
            "without_open_clip": described["open_clip_obstacle"],
            "dry_run": options.dry_run,
        }
        if api is not None:
            check_card(card, "model", folder / CARD)
            create_repository(api, repo_id, "model", private=options.private)
            say(f"Uploading {size(sum(report['files'].values()))} to {repo_id}")
            report |= upload_model(api, report, files, (model, processor), scratch)
    write_json(folder / REPORT, report | {"versions": versions()})
    return report
