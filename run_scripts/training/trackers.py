"""Check the experiment trackers of a training run."""

import importlib.util
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..cli.errors import UsageError


TRACKERS = ("tensorboard", "trackio", "wandb")  # of the extra `tracking`
# Trackers that transformers omits from its list of installed ones.
_MODULES = {"flyte": "flytekit", "azure_ml": "azureml"}


def check_trackers(args: TrainingArguments) -> None:
    """Check that the trackers of `--report-to` can start, before anything is loaded."""
    unknown = [name for name in args.report_to if name not in INTEGRATION_TO_CALLBACK]
    if unknown:
        known = ", ".join(INTEGRATION_TO_CALLBACK)
        raise UsageError(f"--report-to {' '.join(unknown)} is unknown. Choose from {known}, or pass all or none.")
    missing = sorted(name for name in args.report_to if not _is_installed(name))
    if missing:
        how = "pip install 'biomedclip[tracking]'" if set(missing) <= set(TRACKERS) else "the package of the tracker"
        raise ImportError(f"--report-to {' '.join(missing)}: not installed. Install it: {how}")
    if "wandb" in args.report_to and not _wandb_can_start():
        raise OSError(
            "--report-to wandb: no API key was found. Run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline "
            "to keep the metrics on this machine."
        )


@contextmanager
def tracker_errors() -> Iterator[None]:
    """Convert an error of any type that a tracker raises to an `OSError` with the name of the tracker."""
    callbacks = {callback: name for name, callback in INTEGRATION_TO_CALLBACK.items()}
    try:
        yield
    except Exception as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            tracker = callbacks.get(type(frame.f_locals.get("self")))
            if tracker is not None:
                raise OSError(f"--report-to {tracker}: {type(error).__name__}: {error}") from error
        raise


def _is_installed(tracker: str) -> bool:
    if tracker in _MODULES:
        return importlib.util.find_spec(_MODULES[tracker]) is not None
    return tracker in get_available_reporting_integrations()


def _wandb_can_start() -> bool:
    """Return whether Weights & Biases has a key, or needs none."""
    import wandb

    if wandb.run is not None or wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
        return True
    return wandb.login(prompt=False, verify=False)
