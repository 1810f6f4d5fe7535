"""Look for test images among the training images, and say how many there are."""

from typing import Any

from biomedclip.processing.benchmarks.leaks import find_leaks

from ..cli.reporting import say


LEAKS_UNKNOWN = "Leaks are unknown without training images."  # note, followed by the reason


def report_leaks(train: Any, test: Any) -> dict[str, Any] | None:
    """Find and print the test images that are training images. None without a training split."""
    if train is None:
        return None
    leaks = find_leaks(train, test, progress=True).as_dict()
    if leaks["leaked"]:
        say(f"{leaks['leaked']:,} of {leaks['test_images']:,} test images are, or look like, training images.")
    return leaks
