"""A real S3 server on loopback, for tests: moto behind a layer that counts what is sent, and fails when told to."""

import json
import random
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest


KEYS = {"key": "access-key-of-a-test", "secret": "secret-key-of-a-test"}
How = Literal["503", "reset", "slow"]


@dataclass
class _Fault:
    pattern: re.Pattern[str]
    how: How
    left: int
    share: float
    seconds: float


@dataclass
class ObjectStore:
    """
    A running server.

    Args:
        url: Its address.
        sent: Method, path (`/bucket/key`) and bytes of the body of every answer so far.
        signers: Access keys that requests were signed with; empty for anonymous ones.
    """

    url: str = ""
    sent: list[tuple[str, str, int]] = field(default_factory=list)
    signers: set[str] = field(default_factory=set)
    _faults: list[_Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def upload(self, folder: Path, bucket: str, prefix: str = "", *, public: bool = True) -> str:
        """Puts all files of a folder into a bucket, which is made where needed; returns their `s3://` address."""
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        client = self.client()
        if bucket not in [entry["Name"] for entry in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=bucket)
            if public:
                client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(_public_policy(bucket)))
        # Straight into the server's memory: a thousand files take a second instead of ten.
        backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                key = f"{prefix}/{path.relative_to(folder).as_posix()}".lstrip("/")
                backend.put_object(bucket, key, path.read_bytes())
        self.sent.clear()
        self.signers.clear()
        return f"s3://{bucket}/{prefix}".rstrip("/")

    def delete(self, address: str) -> None:
        """Removes one object, `s3://bucket/key`."""
        bucket, _, key = address.removeprefix("s3://").partition("/")
        self.client().delete_object(Bucket=bucket, Key=key)

    def client(self) -> Any:
        """boto3's client."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEYS["key"],
            aws_secret_access_key=KEYS["secret"],
            region_name="us-east-1",
        )

    def fail(self, pattern: str, how: How, times: int = 1, *, share: float = 1, seconds: float = 0.03) -> None:
        """
        Disturbs the next GETs whose path matches.

        Args:
            pattern: A regular expression for `/bucket/key`.
            how: Refused with a 503, cut off in the middle of the body, or answered some seconds later.
            times: How many of them.
            share: Only this share of those that match, drawn at random with a fixed seed.
            seconds: How much later.
        """
        self._faults.append(_Fault(re.compile(pattern), how, times, share, seconds))

    def bytes_sent(self) -> int:
        """Bytes of all bodies sent so far in answer to GETs."""
        return sum(size for method, _, size in self.sent if method == "GET")

    @property
    def faults_left(self) -> int:
        """Failures that were asked for and have not happened yet."""
        return sum(fault.left for fault in self._faults)

    def _next_fault(self, method: str, path: str) -> _Fault | None:
        with self._lock:
            for fault in self._faults:
                if method == "GET" and fault.left and fault.pattern.search(path):
                    if self._random.random() < fault.share:
                        fault.left -= 1
                        return fault
        return None

    def _around(self, application: Any) -> Any:
        """The server's application between a count and the faults."""

        def disturbed(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
            method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
            self.signers.add("".join(re.findall(r"Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))))
            fault = self._next_fault(method, path)
            how = fault.how if fault else None
            if fault and how == "slow":
                time.sleep(fault.seconds)
            if how == "503":
                start_response("503 Slow Down", [("Content-Length", "0")])
                return
            body = b"".join(application(environ, start_response))
            self.sent.append((method, path, len(body)))
            if how == "reset":
                yield body[: len(body) // 2]
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                raise ConnectionResetError
            yield body

        return disturbed


def _public_policy(bucket: str) -> dict[str, Any]:
    """Everybody may list and read, as in PMC's bucket."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": "*",
                "Action": ["s3:GetObject", "s3:HeadObject", "s3:ListBucket"],
                "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
            }
        ],
    }


def _forget(s3fs: Any) -> None:
    """Ends what still knows another server."""
    # fsspec hands out the same file system for the same arguments.
    s3fs.S3FileSystem.clear_instance_cache()
    # Workers of a build come from a process that keeps the environment of the time it was started.
    if "multiprocessing.forkserver" in sys.modules:
        sys.modules["multiprocessing.forkserver"]._forkserver._stop()


@contextmanager
def running_object_store() -> Iterator[ObjectStore]:
    """
    Runs a server on a free port, and sets the environment so that every `s3://` of this process and of those it starts
    leads there, with keys that may read all. What is uploaded is public unless told otherwise.
    """
    pytest.importorskip("moto", reason="the S3 server of the tests is moto: pip install 'moto[s3,server]'")
    s3fs = pytest.importorskip("s3fs")
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import make_server

    class Quiet(MotoRequestHandler):
        def log_request(self, *arguments: Any) -> None:
            pass

    store = ObjectStore()
    application = store._around(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    store.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as environment:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            environment.delenv(name, raising=False)
        for name, value in {
            "AWS_ENDPOINT_URL": store.url,
            "FSSPEC_S3_ENDPOINT_URL": store.url,
            "AWS_ACCESS_KEY_ID": KEYS["key"],
            "AWS_SECRET_ACCESS_KEY": KEYS["secret"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }.items():
            environment.setenv(name, value)
        _forget(s3fs)
        try:
            yield store
        finally:
            _forget(s3fs)
            server.shutdown()
            thread.join()
            server.server_close()
            s3_backends.reset()
