"""A web server on loopback for tests, which can be slow and fail, by a seed."""

import random
import re
import threading
import time
from collections.abc import Collection
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class UnreliableServer:
    """
    Serves a folder; use it as a context manager.

    Args:
        root: The folder.
        failing: Share of requests that are answered with 503, or broken off in the middle, in turns.
        slow: Share of requests that wait for `delay` seconds.
        forbidden: Names of files that are answered with 403.
        seed: Seed of which are.

    Attributes:
        requests: Paths that were asked for.
        most_at_once: Slow requests that waited side by side.
    """

    def __init__(
        self,
        root: Path,
        *,
        failing: float = 0.0,
        slow: float = 0.0,
        delay: float = 0.05,
        seed: int = 0,
        forbidden: Collection[str] = (),
    ):
        self.failing, self.slow, self.delay, self.forbidden = failing, slow, delay, forbidden
        self.requests: list[str] = []
        self.failures = self.most_at_once = self._waiting = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self, directory=str(root)))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "UnreliableServer":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fate(self, path: str) -> str:
        """What becomes of the next request: `fine`, `refused`, `broken off`."""
        with self._lock:
            self.requests.append(path)
            wait = self._random.random() < self.slow
            fails = self._random.random() < self.failing
            self.failures += fails
            kind = ("refused", "broken off")[self.failures % 2] if fails else "fine"
        if wait:
            self._wait()
        return kind

    def _wait(self) -> None:
        with self._lock:
            self._waiting += 1
            self.most_at_once = max(self.most_at_once, self._waiting)
        time.sleep(self.delay)
        with self._lock:
            self._waiting -= 1


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server: UnreliableServer, *arguments, **options):
        self.unreliable = server
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        fate = self.unreliable.fate(self.path)
        path = Path(self.translate_path(self.path))
        if fate == "refused":
            self._answer(503, b"try again")
        elif path.name in self.unreliable.forbidden:
            self._answer(403, b"forbidden")
        elif not path.is_file():
            self._answer(404, b"not found")
        else:
            status, content = self._in_range(path.read_bytes())
            self._answer(status, content[: len(content) // 2] if fate == "broken off" else content, len(content))

    def do_HEAD(self) -> None:
        fate = self.unreliable.fate(self.path)
        path = Path(self.translate_path(self.path))
        if fate != "fine":
            self._answer(503, b"")
        elif path.name in self.unreliable.forbidden:
            self._answer(403, b"")
        else:
            self._answer(200 if path.is_file() else 404, b"", path.stat().st_size if path.is_file() else 0)
            self.close_connection = False  # no body belongs to it

    def _in_range(self, content: bytes) -> tuple[int, bytes]:
        """The part that was asked for, with 206, or 416 where there is none: S3 does so for an empty object."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return 200, content
        start, end = int(asked[1]), int(asked[2] or len(content))
        return (206, content[start : end + 1]) if start < len(content) else (416, b"")

    def _answer(self, status: int, content: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)
        if length is not None and length > len(content):
            self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass
