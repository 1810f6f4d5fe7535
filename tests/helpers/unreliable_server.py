"""A local web server for tests that can be slow and fail, reproducibly."""

import random
import re
import threading
import time
from collections.abc import Collection
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class UnreliableServer:
    """Serve a folder. Use it as a context manager.

    A fraction of the requests is `failing`, with 503 or, every other time, with half of the body. Another fraction is
    `slow` and waits for `delay` seconds. Files with `forbidden` names are answered with 403.
    """

    def __init__(
        self, root: Path, *, failing: float = 0, slow: float = 0, delay: float = 0.05, forbidden: Collection[str] = ()
    ):
        self.failing, self.slow, self.delay, self.forbidden = failing, slow, delay, forbidden
        self.failures = 0  # failed requests
        self.most_at_once = self._waiting = 0  # requests that wait at the same time
        self._random = random.Random(0)
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

    def next_fault(self) -> str | None:
        """Wait if the next request is slow, and return how it fails."""
        with self._lock:
            wait = self._random.random() < self.slow
            fails = self._random.random() < self.failing
            self.failures += fails
            fault = ("refused", "cut off")[self.failures % 2] if fails else None
            self._waiting += wait
            self.most_at_once = max(self.most_at_once, self._waiting)
        if wait:
            time.sleep(self.delay)
            with self._lock:
                self._waiting -= 1
        return fault


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server: UnreliableServer, *arguments, **options):
        self.unreliable = server
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        fault, has_body = self.unreliable.next_fault(), self.command == "GET"
        path = Path(self.translate_path(self.path))
        status, content = 200, b""
        if fault == "refused" or (fault and not has_body):
            status = 503
        elif path.name in self.unreliable.forbidden:
            status = 403
        elif not path.is_file():
            status = 404
        else:
            status, content = self._requested_range(path.read_bytes())
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if has_body:
            self.wfile.write(content[: len(content) // 2] if fault else content)
            self.close_connection = self.close_connection or fault == "cut off"

    do_HEAD = do_GET

    def _requested_range(self, content: bytes) -> tuple[int, bytes]:
        """Return 206 and the requested range, or 416 if it is outside, as for an empty object on S3."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return 200, content
        start, end = int(asked[1]), int(asked[2] or len(content))
        return (206, content[start : end + 1]) if start < len(content) else (416, b"")

    def log_message(self, *arguments: object) -> None:
        pass
