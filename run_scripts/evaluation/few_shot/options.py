"""Check the options of few-shot learning."""

from typing import Any

from biomedclip.few_shot_head import METHODS

from ...cli.errors import UsageError, suggestion
from .methods import TRANSFERABLE


SHOTS = (1, 2, 4, 8, 16)
DRAWS = 5  # default number of draws
ZERO_SHOT = "zero-shot"  # the method that needs no training images


def check_few_shot_options(options: Any, given: set[str]) -> None:
    """Raise `UsageError` if an option of few-shot learning has an invalid value or no effect."""
    for method in options.methods:
        if method not in METHODS:
            raise UsageError(
                f"--methods: {method!r} is unknown.{suggestion(method, METHODS)} Choose from {', '.join(METHODS)}."
            )
    for name in ("methods", "shots"):
        values = getattr(options, name)
        if not values or len(set(values)) < len(values):
            raise UsageError(
                f"--{name} needs one or more different values, not {' '.join(map(str, values)) or 'none'}."
            )
    if min(options.shots) < 1:
        raise UsageError(f"--shots must be 1 or more, not {min(options.shots)}.")
    if options.methods == [ZERO_SHOT] and given & {"shots", "draws"}:
        raise UsageError("--shots and --draws have no effect on --methods zero-shot. Omit them, or add a method.")
    texts = sorted(given & {"templates", "prompts", "max_length"})
    for method, in_vain in ((ZERO_SHOT, sorted(given & {"find_leaks"})), ("linear-probe", texts)):
        if options.methods == [method] and in_vain:
            name = "no-find-leaks" if in_vain[0] == "find_leaks" else in_vain[0].replace("_", "-")
            raise UsageError(f"--{name} has no effect on --methods {method}. Omit it, or add a method.")
    if options.split == "train":
        raise UsageError("--split train: the methods would be tested on their training images. Pass --split test.")
    fixed = [method for method in options.methods if method not in TRANSFERABLE]
    if options.base_to_novel and fixed:
        raise UsageError(
            f"--base-to-novel: {', '.join(fixed)} cannot classify images of classes without training images. Pass "
            f"--methods with some of {', '.join(TRANSFERABLE)}."
        )
    if options.base_to_novel and options.corruptions:
        raise UsageError(
            "--corruptions measures how the accuracy on all classes drops, and --base-to-novel measures two halves of "
            "the classes. Omit one of the two options."
        )
