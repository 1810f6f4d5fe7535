"""A local S3 server for tests: moto, with a layer that counts bytes and can fail."""

import json
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest


KEYS = {"key": "access-key-of-a-test", "secret": "secret-key-of-a-test"}
How = Literal["503", "reset"]


@dataclass
class _Fault:
    pattern: re.Pattern[str]
    how: How
    left: int


@dataclass
class ObjectStore:
    """A running server."""

    url: str = ""
    sent: list[tuple[str, str, int]] = field(default_factory=list)  # method, /bucket/key and size of each response
    signers: set[str] = field(default_factory=set)  # access keys of the requests, empty for anonymous ones
    _faults: list[_Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def upload(self, folder: Path, bucket: str, prefix: str = "", *, public: bool = True) -> str:
        """Upload all files of a folder, create the bucket if needed, and return their `s3://` URL."""
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        client = self.client()
        if bucket not in [entry["Name"] for entry in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=bucket)
            if public:  # everybody can list and read, like the bucket of PMC
                names = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
                actions = ["s3:GetObject", "s3:HeadObject", "s3:ListBucket"]
                statement = {"Effect": "Allow", "Principal": "*", "Action": actions, "Resource": names}
                policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
                client.put_bucket_policy(Bucket=bucket, Policy=policy)
        # Writing to the memory of the server is ten times faster than requests.
        backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                key = f"{prefix}/{path.relative_to(folder).as_posix()}".lstrip("/")
                backend.put_object(bucket, key, path.read_bytes())
        self.sent.clear()
        self.signers.clear()
        return f"s3://{bucket}/{prefix}".rstrip("/")

    def delete(self, address: str) -> None:
        """Delete the object `s3://bucket/key`."""
        bucket, _, key = address.removeprefix("s3://").partition("/")
        self.client().delete_object(Bucket=bucket, Key=key)

    def client(self) -> Any:
        """Return a client of boto3."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEYS["key"],
            aws_secret_access_key=KEYS["secret"],
            region_name="us-east-1",
        )

    def fail(self, pattern: str, how: How, times: int = 1) -> None:
        """Let the next GET requests fail whose path `/bucket/key` matches: with 503, or in the middle of the body."""
        self._faults.append(_Fault(re.compile(pattern), how, times))

    def bytes_sent(self) -> int:
        """Return the number of bytes sent for GET requests."""
        return sum(size for method, _, size in self.sent if method == "GET")

    @property
    def faults_left(self) -> int:
        """Number of faults that have not happened yet."""
        return sum(fault.left for fault in self._faults)

    def _next_fault(self, method: str, path: str) -> How | None:
        with self._lock:
            for fault in self._faults:
                if method == "GET" and fault.left and fault.pattern.search(path):
                    fault.left -= 1
                    return fault.how
        return None

    def _around(self, application: Any) -> Any:
        """Wrap the application of the server."""

        def disturbed(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
            method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
            self.signers.add("".join(re.findall(r"Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))))
            how = self._next_fault(method, path)
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


def _forget(s3fs: Any) -> None:
    """Discard file systems and processes that know another server."""
    s3fs.S3FileSystem.clear_instance_cache()
    # The fork server keeps the environment of the time at which it was started.
    if "multiprocessing.forkserver" in sys.modules:
        sys.modules["multiprocessing.forkserver"]._forkserver._stop()


@contextmanager
def running_object_store() -> Iterator[ObjectStore]:
    """Run a server, and use it for all `s3://` URLs of this process and its children."""
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
