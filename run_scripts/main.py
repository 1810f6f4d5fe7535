"""The `biomedclip` command: finds the verb, runs it, and turns errors into one line a person can act on."""

import io
import logging
import os
import sys
from importlib import import_module
from importlib.metadata import version

from biomedclip.model_cards.escaping import lines

from .cli.errors import UsageError


VERBS = {
    "quickstart": "the whole line: build, train, evaluate, load again, fine-tune",
    "build": "figure-caption pairs out of PubMed Central's bucket, or a mirror",
    "train": "contrastive, classification, visual questions; all weights or LoRA",
    "evaluate": "retrieval, zero-shot, linear probe, visual questions; many models",
    "convert": "open_clip's checkpoints to transformers', and back",
    "export": "the towers as ONNX or OpenVINO graphs, also in 8 bits",
    "card": "the card of a model, from what was trained and measured",
    "push": "a model with card, code and results to the Hub",
}
DEBUG_VARIABLE = "BIOMEDCLIP_DEBUG"
TRUST_OPTION = "--trust-remote-code"


def usage() -> str:
    """What `biomedclip --help` shows."""
    verbs = "\n".join(f"  {verb:<12}{summary}" for verb, summary in VERBS.items())
    return (
        "usage: biomedclip VERB [options]\n\n"
        "BiomedCLIP for transformers.\n\n"
        f"verbs:\n{verbs}\n\n"
        "Every verb has --help with an example, and takes --config: a YAML file or the\n"
        "name of a shipped recipe. Options on the command line win over the recipe.\n\n"
        "No verb runs the code in a model's folder, and none asks whether to. train and\n"
        "evaluate run it with --trust-remote-code, which no recipe can set.\n\n"
        "exit status: 0 for success, 1 if the work failed, 2 for a wrong command line\n\n"
        "example:\n  biomedclip quickstart --output-dir out\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs a verb.

    Args:
        arguments: What follows `biomedclip` on the command line; `sys.argv` when left out.

    Returns:
        The exit status: 0, 1 if the work failed, 2 if the command line or the recipe is wrong.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding lacks must not end a command whose work is done.
        sys.stdout.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        sys.stdout.write(f"biomedclip {version('biomedclip')}\n")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        sys.stderr.write(f"biomedclip: there is no verb {verb!r}; there are {', '.join(VERBS)}.\n")
        return 2
    handler = logging.StreamHandler()
    handler.setFormatter(_Visible("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("huggingface_hub").propagate = False  # it prints for itself
    try:
        module = import_module(f"biomedclip.run_scripts.{verb}")
        with import_module("biomedclip.run_scripts.cli.trust").questions_are_errors():
            module.main(rest)
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        sys.stderr.write(
            f"\nbiomedclip {verb}: {lines(_describe(error))}\n({DEBUG_VARIABLE}=1 shows where it happened.)\n"
        )
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        sys.stderr.write(f"\nbiomedclip {verb}: interrupted.\n")
        return 130
    return 0


class _Visible(logging.Formatter):
    """Messages contain untrusted names, which must not reach the terminal as escape sequences."""

    def format(self, record: logging.LogRecord) -> str:
        return lines(super().format(record))


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    # transformers names its argument; users of the command have the option.
    text = str(error).replace("the argument `trust_remote_code=True`", f"`{TRUST_OPTION}` (train, evaluate)")
    return text.replace("the option `trust_remote_code=True`", f"`{TRUST_OPTION}` (train, evaluate)") or (
        type(error).__name__
    )


if __name__ == "__main__":
    sys.exit(main())
