"""The `biomedclip` command. It runs a verb and reports an error in one line.

A new verb is a module of this package with a function `main(arguments)`, and one line in `VERBS`.
"""

import argparse
import io
import logging
import os
import sys
import warnings
from collections.abc import Generator
from importlib import import_module
from importlib.metadata import version

from biomedclip.model_cards.escaping import lines

from .cli.errors import IncompleteError, UsageError, name_options, suggestion, wrap_for


VERBS = {
    "quickstart": "run all steps on synthetic data in a few minutes",
    "build": "build a dataset of figure-caption pairs from PubMed Central",
    "panels": "find the panels of compound figures, and split captions",
    "train": "train or fine-tune a model, with all weights or with LoRA",
    "evaluate": "measure retrieval, zero-shot, linear probe, visual questions",
    "classify": "classify images by labels, or with a fine-tuned classifier",
    "embed": "write the embeddings of images and texts as Parquet files",
    "search": "search embeddings by text, image or id",
    "demo": "serve a model on this machine, with an HTTP API",
    "convert": "convert checkpoints between open_clip and transformers",
    "export": "export the encoders to ONNX or OpenVINO",
    "recipes": "list the shipped recipes, or print one",
    "card": "write the model card from training and evaluation results",
    "push": "publish a model with its card and results on the Hub",
}
DEBUG_VARIABLE = "BIOMEDCLIP_DEBUG"
# The start of warnings that other packages give about each other's code, which no user of the command can change.
KNOWN_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    # Recipes use the old name, which all supported versions of transformers accept.
    ("`gradient_checkpointing` is deprecated and will be removed", FutureWarning),
    ("`is_gradient_checkpointing` is deprecated", FutureWarning),  # PEFT reads a property that transformers renames
)
TRUST_OPTION = "--trust-remote-code"
_EPILOG = f"""\
Each verb has --help with an example, and --config for a YAML file or a shipped
recipe. `biomedclip recipes` lists them. Options on the command line override
the recipe.

No verb runs code from a model folder unless train, evaluate, embed, search,
panels or build is called with {TRUST_OPTION}. A recipe cannot set it.

exit status: 0 for success, 1 if the work failed or if classify, embed or panels
skipped unreadable images, 2 for a wrong command line

example:
  biomedclip quickstart --output-dir out
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a verb, and return the exit status that `--help` describes. argparse can raise `SystemExit`."""
    # OpenMP threads that spin while waiting make training many times slower next to another busy process. The
    # variables are read when torch is imported: the first by GNU's OpenMP (Linux), the second by LLVM's (macOS).
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal cannot encode must not make a command fail after its work is done.
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:] if arguments is None else arguments
    first = next((word for word in arguments if not word.startswith("-")), None)
    if first is not None and first not in VERBS:
        sys.stderr.write(
            f"biomedclip: {lines(first)!r} is not a verb.{suggestion(first, VERBS)} See: biomedclip --help\n"
        )
        return 2
    options, rest = _parser().parse_known_args(arguments)
    for message, category in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message, category)
    handler = logging.StreamHandler()
    handler.setFormatter(_EscapingFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("huggingface_hub").propagate = False  # it has its own handler
    try:
        verb = import_module(f"biomedclip.run_scripts.{options.verb}")
        with import_module("biomedclip.run_scripts.cli.trust").questions_are_errors():
            verb.main(rest)
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        message = lines(name_options(_describe(error)))
        hint = "" if isinstance(error, IncompleteError) else f"(Set {DEBUG_VARIABLE}=1 to see the traceback.)\n"
        sys.stderr.write(f"\n{wrap_for(sys.stderr, f'biomedclip {options.verb}: {message}')}\n{hint}")
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        sys.stderr.write(f"\nbiomedclip {options.verb}: interrupted.\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="biomedclip",
        description="BiomedCLIP for transformers.",
        epilog=_EPILOG,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"biomedclip {version('biomedclip')}")
    verbs = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB", required=True)
    for verb, summary in VERBS.items():
        # The module of the verb parses its options: `biomedclip --help` does not need torch.
        verbs.add_parser(verb, help=summary, add_help=False, allow_abbrev=False)
    return parser


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """List the verbs without indentation. argparse would not count it when it aligns their descriptions."""

    def _iter_indented_subactions(self, action: argparse.Action) -> Generator[argparse.Action, None, None]:
        yield from getattr(action, "_get_subactions", list)()


class _EscapingFormatter(logging.Formatter):
    """Escape control characters, which the terminal would interpret, name options, and wrap long lines."""

    def format(self, record: logging.LogRecord) -> str:
        return wrap_for(sys.stderr, lines(name_options(super().format(record))))


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    # transformers mentions its argument even if the verb does not have the option.
    text = str(error).replace("`trust_remote_code=True`", f"`{TRUST_OPTION}` (train, evaluate, embed and search only)")
    return text or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
