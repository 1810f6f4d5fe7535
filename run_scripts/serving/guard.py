"""Check requests before an application sees them: where they come from, and the size of their bodies."""

import asyncio
import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_MAX_HELD_BYTES = 500_000_000  # of all bodies that are in memory at the same time. One body may always be larger.
_BODY_SECONDS = 30  # and another second for each MB that has arrived, so that a large body is not refused
_BYTES_PER_SECOND = 1_000_000
_DRAIN_SECONDS = 3


class RefusedError(Exception):
    """Raised for a request that is answered with an error.

    Args:
        status: Status code of HTTP.
        kind: Type of the error, a word for programs.
        message: What is wrong, and what to do.
    """

    def __init__(self, status: int, kind: str, message: str):
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message

    @property
    def content(self) -> dict[str, Any]:
        """Return the body of the answer."""
        return {"error": {"message": self.message, "type": self.kind}}

    @property
    def headers(self) -> dict[str, str]:
        """Return additional headers of the answer."""
        return {"Retry-After": "1"} if self.status == 503 else {}


class Guard:
    """ASGI middleware that refuses requests of other web sites, and bodies that are too large or too slow.

    A page of another site can send requests to a server on the machine of its visitor. Its `Origin` or
    `Sec-Fetch-Site` gives it away. With DNS rebinding, it can also read the answers. Then the name of that site is in
    `Host`.

    The whole body is read before the application starts, so that the limits hold with and without `Content-Length`.

    Args:
        app: The application.
        max_bytes: Largest size of a body.
        hosts: Names that `Host` may have. None allows all names.
    """

    def __init__(self, app: Any, *, max_bytes: int, hosts: Iterable[str] | None):
        self._app = app
        self._max_bytes = max_bytes
        self._hosts = None if hosts is None else frozenset(hosts)
        self._held_bytes = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # neither the API nor the page uses them
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        try:
            try:
                self._check_source(scope)
                if not await self._read(scope, receive, body):
                    return  # the client has gone
            except RefusedError as refusal:
                await _answer(send, refusal)
                return
            await self._app(scope, _replay(bytes(body), receive), send)
        finally:
            self._held_bytes -= len(body)

    def _check_source(self, scope: Message) -> None:
        headers = _headers(scope)
        host = headers.get("host", "")
        if self._hosts is not None and _name_of(host) not in self._hosts:
            raise RefusedError(
                403, "forbidden", f"The host must be one of {', '.join(sorted(self._hosts))}. Use one of these names."
            )
        reads_a_page = scope["method"] in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
        origin = headers.get("origin")
        foreign = origin is not None and _netloc_of(origin) != host.lower()
        foreign |= headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if foreign and not reads_a_page:
            raise RefusedError(403, "forbidden", "Requests of other web sites are refused.")
        if headers.get("content-encoding", "identity") != "identity":
            raise RefusedError(415, "unsupported_media_type", "Compressed bodies are not supported.")

    async def _read(self, scope: Message, receive: Receive, body: bytearray) -> bool:
        """Read the body of a request. Return whether the client is still there."""
        declared = _headers(scope).get("content-length", "0")
        too_large = RefusedError(
            413,
            "too_large",
            f"The body has more than {self._max_bytes:,} bytes. Send fewer or smaller images, or start the server "
            "with a larger --max-request-mb.",
        )
        try:
            end = asyncio.get_running_loop().time() + _BODY_SECONDS
            async with asyncio.timeout_at(end) as timeout:
                if declared.isdecimal() and int(declared) > self._max_bytes:
                    await _drain(receive, self._max_bytes)
                    raise too_large
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return False
                    chunk = message.get("body", b"")
                    body += chunk
                    self._held_bytes += len(chunk)
                    timeout.reschedule(end + len(body) / _BYTES_PER_SECOND)
                    if len(body) > self._max_bytes:
                        await _drain(receive, self._max_bytes)
                        raise too_large
                    if self._held_bytes > max(_MAX_HELD_BYTES, self._max_bytes):
                        raise RefusedError(503, "busy", "The server is busy. Try again later.")
                    if not message.get("more_body", False):
                        return True
        except TimeoutError:
            raise RefusedError(
                408,
                "timeout",
                f"The body took more than {_BODY_SECONDS} seconds and one second for each MB. Send fewer or smaller "
                "images in a request, or use a faster connection.",
            ) from None


def hosts_of(host: str) -> tuple[str, ...] | None:
    """Return the names that clients use for a server, or None if it listens beyond this machine."""
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    return (*dict.fromkeys([*LOOPBACK_NAMES, host]),) if is_loopback else None


def _headers(scope: Message) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _name_of(host: str) -> str:
    """Return the name in a `Host` header, without the port and the brackets of IPv6."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _netloc_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


async def _drain(receive: Receive, limit: int) -> None:
    """Read a part of a body that is refused. Many clients read the answer only after they have sent the body."""
    count = 0
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while count <= limit:
                message = await receive()
                count += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a function that receives the body, and then what the client does."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


async def _answer(send: Send, refusal: RefusedError) -> None:
    content = json.dumps(refusal.content).encode()
    # The rest of the body would be read as the next request.
    headers = {"content-type": "application/json", "content-length": str(len(content)), "connection": "close"}
    headers |= refusal.headers
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": encoded})
    await send({"type": "http.response.body", "body": content})
