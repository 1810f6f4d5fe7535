"""Serve a model on this machine: a web page, and classification, embeddings and search over HTTP.

biomedclip demo --model out/model --index vectors
"""

import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .classification.labels import read_labels
from .cli.devices import DEVICE_HELP
from .cli.errors import UsageError
from .cli.fields import REQUIRED, option
from .cli.models import import_optional
from .cli.options import parse_options
from .cli.progress import no_bars_without_terminal
from .cli.reporting import show_stage
from .embedding.encoders import PRECISIONS
from .embedding.thumbnails import Thumbnails


EXAMPLE = """biomedclip demo --model out/model
  biomedclip demo --model out/model --index vectors --labels "chart" "scan"
  curl -F images=@scan.png -F labels="chest X-ray" -F labels="brain MRI" \\
      http://127.0.0.1:7860/classify"""
INSTALL = "pip install 'biomedclip[demo]'"
_PACKAGES = ("fastapi", "uvicorn", "python_multipart")
_CONNECTIONS = 512
_FORM = 10_000  # bytes of a form around its file
_SHUTDOWN_SECONDS = 3


@dataclass(kw_only=True)
class DemoOptions:
    """Options of `biomedclip demo`."""

    model: str = option(REQUIRED, "Folder or Hub id of a dual encoder, or folder of an exported one.")
    index: str | None = option(None, "Folder that biomedclip embed wrote with this model, to search it.")
    labels: list[str] = option([], "Labels of the requests that have none, as in biomedclip classify.")
    images: list[str] = option(
        [], "Images or datasets that were embedded, for thumbnails (default: paths below this folder and INDEX)."
    )
    host: str = option("127.0.0.1", "Address to listen on (default: 127.0.0.1, only this machine).")
    port: int = option(7860, "Port to listen on. 0 chooses a free port (default: 7860).")
    max_request_mb: int = option(32, "Largest size of a request in MB (default: 32).")
    batch_size: int = option(32, "Largest number of images or texts in a batch (default: 32).")
    precision: str | None = option(
        None, "Precision of the model, also as bf16 (default: float32, or that of the export).", PRECISIONS
    )
    device: str = option("auto", DEVICE_HELP)

    def __post_init__(self):
        if self.images and self.index is None:
            raise ValueError("--images has no effect without --index.")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"--port must be between 0 and {2**16 - 1}, not {self.port}.")
        if self.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, not {self.batch_size}.")
        if not 1 <= self.max_request_mb <= 1000:
            raise ValueError(f"--max-request-mb must be between 1 and 1000, not {self.max_request_mb}.")
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            if self.host != "localhost":
                raise ValueError(f"--host {self.host!r} is not an IP address or localhost.") from None


def main(arguments: Sequence[str]) -> None:
    """Run `biomedclip demo`. It ends with Ctrl-C."""
    description = __doc__.split("\n\n")[0]
    (options,) = parse_options("demo", [DemoOptions], arguments, description=description, example=EXAMPLE)
    for package in _PACKAGES:
        import_optional(package, "biomedclip demo", INSTALL)
    demo(options)


def demo(options: DemoOptions) -> None:
    """Load the model and serve it until the process is interrupted."""
    import uvicorn  # optional packages

    from .serving.api import create_app
    from .serving.engine import load_engine

    prompts = read_labels(options.labels) if options.labels else None
    thumbnails = Thumbnails(options.images, [Path(folder) for folder in (".", options.index) if folder is not None])
    with _listening(options.host, options.port) as listener:
        with no_bars_without_terminal():
            engine = load_engine(
                options.model,
                index=options.index,
                prompts=prompts,
                device=options.device,
                precision=options.precision,
                batch_size=options.batch_size,
            )
        app = create_app(engine, max_request_mb=options.max_request_mb, host=options.host)
        if find_spec("gradio"):
            from .serving.page import mount_page

            mount_page(app, engine, thumbnails, max_file_size=options.max_request_mb * 1_000_000 - _FORM)
        else:
            show_stage(f"There is no web page, because Gradio is not installed. Install it: {INSTALL}")
        config = uvicorn.Config(
            app,
            log_config=None,  # errors reach the log of the command
            access_log=False,
            log_level="error",  # not every broken request
            server_header=False,
            ws="none",
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        )
        show_stage(_announcement(options, listener))
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            pass  # the server has stopped, and raises the signal again
        show_stage("Stopped.")


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens on the address, before the model is loaded."""
    address = "127.0.0.1" if host == "localhost" else host
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    if os.name == "posix":  # on Windows, this option lets another program take the port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(_CONNECTIONS)  # until then, another program can take the port
    except OSError as error:
        listener.close()
        raise UsageError(f"--host {host} --port {port}: {error.strerror}. Choose another port or address.") from error
    return listener


def _announcement(options: DemoOptions, listener: socket.socket) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    port = listener.getsockname()[1]
    text = f"Serving {options.model} on http://{host}:{port}. Stop it with Ctrl-C."
    if options.host != "localhost" and not ipaddress.ip_address(options.host).is_loopback:
        text += " Everyone who can reach this address can use it: there is no password."
    return f"{text} Not for clinical use."
