"""Load test of `biomedclip demo` on loopback, then hostile requests.

python tests/performance/serving.py --model out/model --index vectors --output serving.json

Each client sends its next request when it has the answer: two of three classify an image of 400 x 300 pixels by five
labels, the others embed a text. All answers are compared with those of single requests before. Then hostile requests
come from 16 clients: damaged and huge images, wrong fields, deep JSON, slow and endless bodies, broken HTTP. At the
end, the server must still give the first answer.
"""

import base64
import contextlib
import http.client
import io
import json
import os
import random
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timing import parser_of, report


LABELS = ("chest X-ray", "brain MRI", "line chart", "histology", "bar chart")
IMAGES, TEXTS = 16, 16
TOLERANCE = 1e-5
HOSTILE_CLIENTS = 16
JSON = {"Content-Type": "application/json"}
Request = tuple[str, str, Any, dict[str, str]]  # method, path, body and headers


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model", required=True, help="model to serve")
    parser.add_argument("--index", help="embeddings to search")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--hostile", type=int, default=2000, help="number of hostile requests")
    options = parser.parse_args()
    with serving(options) as server:
        expected = [ask(server.port, request) for request in requests()]
        load = load_test(server.port, expected, options)
        statuses, failures, slowest = attack(server.port, options.hostile)
        memory = peak_mib(server.process.pid)
        again = ask(server.port, requests()[0])
        survived = server.process.poll() is None and differs(again, expected[0]) <= TOLERANCE
    hostile = {"statuses": statuses, "failures": failures, "slowest_seconds": slowest, "survived": survived}
    rows = [[name, load[name]] for name in load]
    attacks = [["requests", options.hostile], *([f"status {key}", statuses[key]] for key in sorted(statuses))]
    attacks += [
        ["status 500 or no answer to whole requests", len(failures)],
        [f"seconds of the slowest ({slowest[1]})", slowest[0]],
    ]
    attacks += [["peak memory of the server in MiB", memory], ["answers as before", survived]]
    title = f"{options.clients} clients for {options.seconds:.0f} s"
    tables = [(title, rows, ["", "value"]), ("Hostile requests", attacks, ["", "value"])]
    report({"load": load, "hostile": hostile, "peak_mib": memory}, tables, options.output)
    if load["errors"] or failures or not survived:
        sys.exit(f"failed: {load['errors']} errors, {failures[:5]}")


class Server:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], port: int):
        self.process, self.port = process, port


@contextlib.contextmanager
def serving(options: Any) -> Iterator[Server]:
    """Start `biomedclip demo`, wait until it answers, and interrupt it at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "biomedclip.run_scripts.main", "demo", "--model", options.model]
    command += ["--port", str(port), *(["--index", options.index] if options.index else [])]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, text=True)
        try:
            while True:
                with contextlib.suppress(OSError):
                    if ask(port, ("GET", "/health", None, {})):
                        break
                if process.poll() is not None:
                    log.seek(0)
                    sys.exit(log.read())
                time.sleep(0.2)
            yield Server(process, port)
        finally:
            process.terminate()
            process.wait()
            log.seek(0)
            sys.stderr.write(log.read()[-2000:])


def requests() -> list[Request]:
    """Return the requests of the load test."""
    generator, found = np.random.default_rng(0), []
    for _ in range(IMAGES):
        small = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((400, 300), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        found.append(form({"labels": LABELS}, [("images", "scan.jpg", file.getvalue())]))
    texts = [json.dumps({"texts": [f"figure {n} shows a scan of patient {n * n}"]}).encode() for n in range(TEXTS)]
    return [request for n in range(IMAGES) for request in (*[found[n]] * 2, ("POST", "/embed", texts[n], JSON))]


def form(fields: dict[str, Any], files: list[tuple[str, str, bytes]], path: str = "/classify") -> Request:
    """Return a request with a form."""
    parts = [
        f'--limit\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, values in fields.items()
        for value in values
    ]
    for name, file, content in files:
        head = f'--limit\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    body = b"".join([*parts, b"--limit--\r\n"])
    return "POST", path, body, {"Content-Type": "multipart/form-data; boundary=limit"}


def ask(port: int, request: Request) -> Any:
    """Return the answer to a request, on a new connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        return _answer(connection, request)
    finally:
        connection.close()


def _answer(connection: http.client.HTTPConnection, request: Request) -> Any:
    connection.request(*request)
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise ValueError(f"{response.status}: {content[:200]!r}")
    return json.loads(content)


def differs(found: Any, expected: Any) -> float:
    """Return the largest difference between the numbers of two answers, or infinity if they have another form."""
    first, second = ([*_numbers(value)] for value in (found, expected))
    if [name for name, _ in first] != [name for name, _ in second]:
        return float("inf")
    return max(abs(a - b) for (_, a), (_, b) in zip(first, second, strict=True))


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, list) and value and isinstance(value[0], dict) and "label" in value[0]:
        value = {row["label"]: row["probability"] for row in sorted(value, key=lambda row: row["label"])}
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{name}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _numbers(item, f"{name}.{number}")
    elif isinstance(value, int | float):
        yield name, float(value)


def load_test(port: int, expected: list[Any], options: Any) -> dict[str, Any]:
    """Send requests from all clients at once, and return the numbers."""
    todo, seconds, errors, largest = requests(), [], [], [0.0]
    start = threading.Barrier(options.clients)

    def work(client: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        start.wait()
        end, number = time.perf_counter() + options.seconds, client * 7
        while time.perf_counter() < end:
            place = number % len(todo)
            began = time.perf_counter()
            try:
                found = _answer(connection, todo[place])
                seconds.append((place % 3 == 2, time.perf_counter() - began))
                largest[0] = max(largest[0], differs(found, expected[place]))
            except (OSError, ValueError, http.client.HTTPException) as error:
                errors.append(repr(error))
                connection.close()
            number += 1
        connection.close()

    threads = [threading.Thread(target=work, args=(client,)) for client in range(options.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    of_images = sorted(taken for is_text, taken in seconds if not is_text)
    of_texts = sorted(taken for is_text, taken in seconds if is_text)
    wrong = largest[0] > TOLERANCE
    return {
        "requests": len(seconds),
        "errors": len(errors) + wrong,
        "requests per second": len(seconds) / options.seconds,
        "classify, p50 in ms": 1000 * statistics.median(of_images),
        "classify, p95 in ms": 1000 * _quantile(of_images, 0.95),
        "embed, p50 in ms": 1000 * statistics.median(of_texts),
        "embed, p95 in ms": 1000 * _quantile(of_texts, 0.95),
        "slowest in ms": 1000 * max(taken for _, taken in seconds),
        "largest difference to single requests": largest[0],
    }


def _quantile(values: list[float], fraction: float) -> float:
    return values[min(len(values) - 1, int(fraction * len(values)))]


def attack(port: int, count: int) -> tuple[dict[str, int], list[str], tuple[float, str]]:
    """Send hostile requests. Return the statuses, the failures, and the seconds and kind of the slowest."""
    statuses: Counter[str] = Counter()
    failures: list[str] = []
    slowest = [(0.0, "")]

    def work(number: int) -> None:
        chance = random.Random(number)
        kind = KINDS[number % len(KINDS)]
        began = time.perf_counter()
        try:
            status = kind(port, chance)
        except Exception as error:
            status = f"{type(error).__name__}"
            failures.append(f"{kind.__name__}: {error!r}")
        slowest[0] = max(slowest[0], (time.perf_counter() - began, kind.__name__))
        statuses[status] += 1
        if status.startswith("5") and status != "503":
            failures.append(f"{kind.__name__}: {status}")

    with ThreadPoolExecutor(HOSTILE_CLIENTS) as clients:
        list(clients.map(work, range(count)))
    return dict(statuses), failures, slowest[0]


def status_of(port: int, request: Request) -> str:
    """Return the status of the answer to a request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        try:
            connection.request(*request)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server may refuse a body before it is sent
        try:
            response = connection.getresponse()
        except ConnectionResetError:
            return "closed"
        content = response.read()
        details = (b"Traceback", b" object at 0x", os.fsencode(os.getcwd()), b"/home/")
        if any(detail in content for detail in details):
            raise ValueError(f"the answer has details: {content[:300]!r}")
        return str(response.status)
    finally:
        connection.close()


def sent(port: int, *parts: bytes, wait: float = 0.0) -> str:
    """Send bytes with pauses between them, and return the status of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except (BrokenPipeError, ConnectionResetError):
                break
            time.sleep(wait)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        try:
            head = connection.recv(64).split()
        except (TimeoutError, ConnectionResetError):
            return "closed"
        return head[1].decode() if len(head) > 1 else "closed"


def picture(chance: random.Random) -> bytes:
    """Return a valid image of a random format."""
    pixels = np.random.default_rng(chance.randrange(1000)).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, chance.choice(["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "JPEG2000"]))
    return file.getvalue()


def png_of(width: int, height: int, content: bytes, color: int = 0) -> bytes:
    """Return a PNG with any declared size."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)), (b"IDAT", content), (b"IEND", b"")
    body = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def upload(content: bytes, name: str = "a.png") -> Request:
    return form({"labels": LABELS}, [("images", name, content)])


def in_json(path: str, body: Any) -> Request:
    return "POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), JSON


def truncated_image(port: int, chance: random.Random) -> str:
    content = picture(chance)
    return status_of(port, upload(content[: chance.randrange(len(content))]))


def mutated_image(port: int, chance: random.Random) -> str:
    content = bytearray(picture(chance))
    for _ in range(chance.randrange(1, 30)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    return status_of(port, upload(bytes(content)))


def huge_declared_size(port: int, chance: random.Random) -> str:
    side = chance.choice([20_000, 100_000, 2**31 - 1])
    return status_of(port, upload(png_of(side, side, b"")))


def decompression_bomb(port: int, chance: random.Random) -> str:
    width, height = chance.choice([(30_000, 30_000), (170_000_000, 1), (1, 170_000_000), (9_000, 9_000)])
    packer = zlib.compressobj(9)
    row = bytes(width + 1)
    content = b"".join(packer.compress(row) for _ in range(min(height, 9_000))) + packer.flush()
    return status_of(port, upload(png_of(width, height, content)))


def other_file(port: int, chance: random.Random) -> str:
    heads = [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"%!PS-Adobe",
        b"PK\3\4",
        b"\x93NUMPY",
        b"\x80\4",
    ]
    name = chance.choice(["a.svg", "a.dcm", "../../etc/passwd", "a\0b", "x" * 5000, "\u202egnp.a"])
    return status_of(port, upload(chance.choice(heads) + chance.randbytes(500), name))


def wrong_types(port: int, chance: random.Random) -> str:
    values = [None, 1, -1, 1e308, True, "", "x", [], {}, [[]], [None], {"a": 1}, "a" * 20_000, ["a"] * 3000, 10**30]
    fields = ["images", "labels", "template", "top_k", "texts", "text", "image", "where", "input", "model", "x"]
    path = chance.choice(["/classify", "/embed", "/search", "/v1/embeddings"])
    return status_of(port, in_json(path, {chance.choice(fields): chance.choice(values) for _ in range(4)}))


def deep_json(port: int, chance: random.Random) -> str:
    opening, closing = chance.choice([(b"[", b"]"), (b'{"a":', b"}")])
    depth = chance.choice([500, 5_000, 500_000])
    return status_of(port, in_json("/embed", opening * depth + b"1" + closing * depth))


def many_values(port: int, chance: random.Random) -> str:
    body = chance.choice([b'{"labels":[' + b"1," * 2_000_000 + b"1]}", b'{"texts":[' + b'"",' * 1_000_000 + b'""]}'])
    names = b"{" + b",".join(b'"%d":1' % number for number in range(300_000)) + b"}"
    return status_of(port, in_json("/classify", chance.choice([body, names])))


def numbers_that_are_none(port: int, chance: random.Random) -> str:
    value = chance.choice([b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000, b"0x10", b"01"])
    return status_of(port, in_json("/search", b'{"text": "a", "top_k": ' + value + b"}"))


def long_labels(port: int, chance: random.Random) -> str:
    labels = chance.choice([["a" * 10**6, "b"], [str(n) for n in range(50_000)], ["\0", "\x1b[2J"], ["\ud800", "a"]])
    image = base64.b64encode(picture(chance)).decode()
    return status_of(port, in_json("/classify", {"images": [image], "labels": labels}))


def invalid_utf_8(port: int, chance: random.Random) -> str:
    return status_of(port, in_json("/embed", b'{"texts": ["' + chance.randbytes(50) + b'\xff"]}'))


def wrong_method(port: int, chance: random.Random) -> str:
    path = chance.choice(["/classify", "/embed", "/health", "/search", "/%2e%2e/etc/passwd", "//", "/x?" + "a" * 5000])
    method = chance.choice(["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD", "POST"])
    return status_of(port, (method, path, b"x" * chance.randrange(100), {}))


def slow_body(port: int, chance: random.Random) -> str:
    head = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    return sent(port, head, *[b"{"] * chance.randrange(8), wait=0.3)


def huge_body(port: int, chance: random.Random) -> str:
    size = 40_000_000
    if chance.random() < 0.5:
        return status_of(port, ("POST", "/embed", bytes(size), JSON))
    return status_of(port, ("POST", "/embed", iter([bytes(1_000_000)] * 40), JSON))


def wrong_length(port: int, chance: random.Random) -> str:
    length = chance.choice(["99999999999999999999", "-1", "abc", "5, 6", "10"])
    head = (
        f"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
    return sent(port, head.encode() + b"{}")


def broken_http(port: int, chance: random.Random) -> str:
    parts = [b"GET\r\n\r\n", chance.randbytes(300), b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\2\0\1\0\1\xfc\3\3", b""]
    parts += [b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 20_000 + b"\r\n", b"G" * 200_000]
    parts += [b"POST /embed HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"]
    return sent(port, chance.choice(parts))


def other_site(port: int, chance: random.Random) -> str:
    headers = chance.choice(
        [
            {"Origin": "http://evil.example"},
            {"Host": "evil.example"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Host": "[::1"},
            {"Origin": "http://["},
        ]
    )
    return status_of(port, ("POST", "/embed", b'{"texts": ["a"]}', JSON | headers))


def damaged_form(port: int, chance: random.Random) -> str:
    method, path, body, headers = form({name: ["1"] * 40 for name in ("labels", "top_k", "x")}, [("images", "a", b"b")])
    kind = chance.randrange(4)
    if kind == 0:
        body = body[: chance.randrange(len(body))]
    elif kind == 1:
        headers = {
            "Content-Type": chance.choice(["multipart/form-data", "multipart/form-data; boundary=" + "a" * 9000])
        }
    elif kind == 2:
        headers = {"Content-Type": "multipart/form-data; boundary=limit; charset=no-such"}
    else:
        _, _, body, _ = form({"labels": ["a"] * 20_000}, [("images", "a", b"b")] * 200)
    return status_of(port, (method, path, body, headers))


def bad_base64(port: int, chance: random.Random) -> str:
    values = ["=", "AAA", "https://example.com/a.png", "file:///etc/passwd", "data:image/png;base64,!", "é", "\0"]
    field = {"images": [chance.choice(values)]} if chance.random() < 0.5 else {"images": [chance.choice(values)] * 70}
    return status_of(port, in_json("/embed", field))


def conditions(port: int, chance: random.Random) -> str:
    values = ["1 = 1", "id = 'a' " + "and id = 'a' " * 75, "(" * 900, "not " * 240, "'", "id like '%" + "_" * 900 + "'"]
    values += ["id in (" + "'a'," * 240 + "'a')", "__import__('os')", "id = 1; drop table", "year > 1e400"]
    return status_of(port, in_json("/search", {"text": "a", "where": chance.choice(values)}))


def many_texts(port: int, chance: random.Random) -> str:
    count, length = chance.choice([(2049, 1), (2048, 3), (64, 10_001), (64, 10_000)])
    return status_of(port, in_json("/v1/embeddings", {"input": ["z " * (length // 2) + "z" * (length % 2)] * count}))


KINDS = (
    truncated_image,
    mutated_image,
    huge_declared_size,
    other_file,
    wrong_types,
    deep_json,
    numbers_that_are_none,
    long_labels,
    invalid_utf_8,
    wrong_method,
    slow_body,
    wrong_length,
    broken_http,
    other_site,
    damaged_form,
    bad_base64,
    conditions,
    truncated_image,
    mutated_image,
    wrong_types,
    decompression_bomb,
    huge_body,
    many_values,
    many_texts,
)


def peak_mib(process: int) -> int | None:
    """Return the peak resident memory of a process, on Linux."""
    status = Path(f"/proc/{process}/status")
    if not status.is_file():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
    return int(lines["VmHWM"].split()[0]) // 1024


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
