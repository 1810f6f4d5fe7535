"""A small Hub on loopback, in memory. huggingface_hub can create, fill, list and read repositories on it.

It supports models and datasets, tokens with and without write access, private repositories, branches and pull requests.
Files are uploaded by LFS, so a client needs `HF_HUB_DISABLE_XET=1`.
"""

import base64
import hashlib
import itertools
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import huggingface_hub.constants
import pytest
import yaml
from helpers.commands import run_python


REGULAR_BYTES = 10_000_000  # larger files, and binary files, are sent by LFS
BINARY = re.compile(r"\.(parquet|png|safetensors|bin|pt)$")
DATE = "2026-01-01T00:00:00.000Z"


def is_lfs(path: str, content: bytes) -> bool:
    return bool(BINARY.search(path)) or len(content) > REGULAR_BYTES


def etag(path: str, content: bytes) -> str:
    """The SHA-256 of an LFS file, or the hash that git gives the content."""
    if is_lfs(path, content):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Commit(NamedTuple):
    """A commit and all files of the repository at that commit."""

    oid: str
    title: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """A repository.

    Attributes:
        branches: Commits of each branch, and of each pull request as `refs/pr/NUMBER`.
        targets: The branch that each pull request is to be merged into.
        closed: Numbers of the pull requests that were merged or closed.
    """

    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {"main": []})
    targets: list[str] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)

    @property
    def commits(self) -> list[Commit]:
        return self.branches["main"]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1].files

    def commit(self, title: str, files: dict[str, bytes], branch: str = "main") -> str:
        commits = self.branches[branch]
        content = "".join(f"{path} {etag(path, files[path])}" for path in sorted(files))
        commits.append(Commit(hashlib.sha1(f"{branch} {len(commits)} {content}".encode()).hexdigest(), title, files))
        return commits[-1].oid


class RequestError(Exception):
    """An error response. Clients read the header `X-Error-Code`."""

    def __init__(self, status: int, message: str, code: str = "", **content: str):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.content = {"error": message, **content}


class HubServer:
    """The server, as a context manager.

    Args:
        users: For each token the `name` of the user, the `role` of the token (`read` or `write`), and `orgs`, the
            user's role in each organization.

    Attributes:
        endpoint: Value for `HF_ENDPOINT`.
        repositories: By type (`model` or `dataset`) and id.
        requests: Method and path of each request.
        bytes_sent: Size of all responses.
        damaged: Path of a file whose bytes are reversed in each commit.
    """

    def __init__(self, users: dict[str, dict[str, Any]] | None = None):
        self.users = users or {"hf_writer": {"name": "someone", "role": "write", "orgs": {"lab": "write"}}}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS files by SHA-256
        self.requests: list[tuple[str, str]] = []
        self.bytes_sent = 0
        self.damaged = ""
        self.lock = threading.Lock()
        self._failures: list[list[Any]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(self, method: str, pattern: str, *, status: int = 500, after: int = 0, times: int = 1) -> None:
        """Answer `times` requests whose path matches `pattern` with `status`, after `after` of them have passed."""
        self._failures.append([method, pattern, status, after, times])

    def failure(self, method: str, path: str) -> int | None:
        with self.lock:
            self.requests.append((method, path))
            for failure in self._failures:
                if failure[0] == method and re.search(failure[1], path):
                    failure[3] -= 1
                    if -failure[4] <= failure[3] < 0:
                        return failure[2]
        return None

    @property
    def uploads(self) -> list[str]:
        """Paths of the LFS files that were sent."""
        return [path for method, path in self.requests if method == "PUT"]

    def add(self, repo_id: str, files: dict[str, bytes], *, repo_type: str = "model", private: bool = False) -> None:
        """Add files to a repository without an upload. The repository is created if it does not exist."""
        self.repositories.setdefault((repo_type, repo_id), Repository(private)).commit("Add", files)

    def python(self, code: str, folder: Path) -> str:
        """Return what a process prints that uses this server, and an empty cache in a folder."""
        environment = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(folder / "empty cache"), "HF_TOKEN": ""}
        environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        done = run_python("-c", code, environment=environment, folder=folder)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout


def log_in(monkeypatch: pytest.MonkeyPatch, server: HubServer, token: str = "hf_writer") -> None:
    """Connect huggingface_hub of this process to the server."""
    files = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", token)


_REPO = r"(?P<id>[\w.-]+(?:/[\w.-]+)?)"
_API = rf"/api/(?P<type>model|dataset)s/{_REPO}"
_PLAIN = rf"/(?:(?P<type>dataset)s/)?{_REPO}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    ROUTES = [
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("POST", rf"{_API}/branch/(?P<branch>[^/]+)", "create_branch"),
        ("POST", rf"{_API}/discussions/(?P<number>\d+)/(?P<change>merge|status)", "pull_request"),
        ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", "tree"),
        ("GET", rf"{_API}(?:/revision/(?P<revision>[^/]+))?", "information"),
        ("POST", rf"{_PLAIN}\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "store"),
        ("GET", rf"{_PLAIN}/resolve/(?P<revision>[^/]+)/(?P<path>.*)", "resolve"),
    ]

    def log_message(self, *_: object) -> None:
        pass

    def do_any(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        # Always, because the rest would be read as the next request.
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            if status := self.hub.failure(self.command, url.path):
                raise RequestError(status, "a failure that a test asked for")
            method = "GET" if self.command == "HEAD" else self.command
            for route, pattern, name in self.ROUTES:
                if route == method and (match := re.fullmatch(pattern, url.path)):
                    parts = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                    with self.hub.lock:
                        answer = getattr(self, name)(**parts)
                    return self.answer(200, *(answer if isinstance(answer, tuple) else (answer, {})))
            raise RequestError(404, f"{self.command} {url.path} is not supported")
        except RequestError as error:
            self.answer(error.status, error.content, error.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_any

    def answer(self, status: int, content: Any, headers: dict[str, str]) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        if status == 200 and (wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            first, last = int(wanted[1]), min(int(wanted[2] or len(body) - 1), len(body) - 1)
            headers = headers | {"Content-Range": f"bytes {first}-{last}/{len(body)}"}
            status, body = (206, body[first : last + 1]) if first <= last else (416, b"")
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for key, value in {"Content-Type": kind, **headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.hub.bytes_sent += len(body)
            self.wfile.write(body)

    def user(self, *, required: bool = True) -> dict[str, Any]:
        user = self.hub.users.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if user is None and required:
            raise RequestError(401, "Invalid username or password.")
        return user or {"name": None}

    def must_write(self, repo_id: str) -> None:
        user = self.user()
        role = ({user["name"]: "admin"} | user.get("orgs", {})).get(repo_id.split("/")[0])
        if user["role"] != "write" or role not in ("admin", "write"):
            raise RequestError(403, f"You don't have the rights to write to {repo_id}.")

    def repository(self, type: str, id: str) -> Repository:
        found, user = self.hub.repositories.get((type, id)), self.user(required=False)
        if found is None or (found.private and id.split("/")[0] not in (user["name"], *user.get("orgs", {}))):
            raise RequestError(404 if user["name"] else 401, "Repository not found", "RepoNotFound")
        return found

    def snapshot(self, type: str, id: str, revision: str = "main") -> Commit:
        branches = self.repository(type, id).branches
        if revision in branches:
            return branches[revision][-1]
        for commit in itertools.chain(*branches.values()):
            if commit.oid == revision:
                return commit
        raise RequestError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def whoami(self) -> dict[str, Any]:
        user = self.user()
        orgs = [{"type": "org", "name": name, "roleInOrg": role} for name, role in user.get("orgs", {}).items()]
        token = {"displayName": "test", "role": user["role"]}
        return {"type": "user", "name": user["name"], "orgs": orgs, "auth": {"accessToken": token}}

    def validate(self) -> dict[str, Any]:
        card = json.loads(self.body)["content"]
        metadata = yaml.safe_load(card.split("---")[1]) if card.startswith("---") else None
        if not isinstance(metadata, dict) or not isinstance(metadata.get("license"), str):
            raise RequestError(400, '"license" must be a string')
        return {"errors": [], "warnings": []}

    def create(self) -> dict[str, Any]:
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or self.user()['name']}/{asked['name']}"
        kind = asked.get("type") or "model"
        self.must_write(repo_id)
        url = f"{self.hub.endpoint}/{'' if kind == 'model' else f'{kind}s/'}{repo_id}"
        if (kind, repo_id) in self.hub.repositories:
            raise RequestError(409, "You already created this repository.", url=url)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.add(repo_id, {".gitattributes": b"*.parquet filter=lfs\n"}, repo_type=kind, private=private)
        return {"url": url, "name": repo_id}

    def preupload(self, type: str, id: str, revision: str) -> dict[str, Any]:
        files = self.snapshot(type, id, revision).files
        self.must_write(id)
        answers = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            mode = "lfs" if BINARY.search(path) or asked["size"] > REGULAR_BYTES else "regular"
            known = {"oid": etag(path, files[path])} if path in files else {}
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
        return {"files": answers}

    def batch(self, id: str, type: str = "model") -> dict[str, Any]:
        self.repository(type, id)
        self.must_write(id)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}"}}
            objects.append(wanted | ({} if wanted["oid"] in self.hub.objects else {"actions": upload}))
        return {"transfer": "basic", "objects": objects}

    def store(self, oid: str) -> dict[str, Any]:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise RequestError(400, "The content does not have this SHA-256.")
        self.hub.objects[oid] = self.body
        return {}

    def commit(self, type: str, id: str, revision: str) -> dict[str, Any]:
        files = dict(self.snapshot(type, id, revision).files)
        self.must_write(id)
        header, *changes = [json.loads(line) for line in self.body.splitlines()]
        for change in changes:
            kind, value = change["key"], change["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile" and value["oid"] in self.hub.objects:
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif kind == "deletedFile" and value["path"] in files:
                del files[value["path"]]
            else:
                raise RequestError(400, f"{kind} of {value['path']} is not possible")
        if self.hub.damaged in files:
            files[self.hub.damaged] = files[self.hub.damaged][::-1]
        repository = self.repository(type, id)
        branch, url = revision, f"{self.hub.endpoint}/{id}"
        if self.query.get("create_pr"):
            repository.targets.append(revision)
            branch = f"refs/pr/{len(repository.targets)}"
            repository.branches[branch] = list(repository.branches[revision])
        oid = repository.commit(header["value"]["summary"], files, branch)
        request = {"pullRequestUrl": f"{url}/discussions/{len(repository.targets)}"} if branch != revision else {}
        return {"commitOid": oid, "commitUrl": f"{url}/commit/{oid}", "hookOutput": "", **request}

    def pull_request(self, type: str, id: str, number: str, change: str) -> dict[str, Any]:
        self.must_write(id)
        repository = self.repository(type, id)
        if change == "merge":
            _, title, files = repository.branches[f"refs/pr/{number}"][-1]
            repository.commit(title, files, repository.targets[int(number) - 1])
        elif json.loads(self.body)["status"] != "closed":
            raise RequestError(400, "A pull request can only be closed here.")
        repository.closed.append(int(number))
        event = {"id": "0", "type": "status-change", "createdAt": DATE, "author": {"name": "someone"}}
        return {"newStatus": event | {"data": {"status": "closed"}}}

    def create_branch(self, type: str, id: str, branch: str) -> dict[str, Any]:
        self.must_write(id)
        branches = self.repository(type, id).branches
        if branch in branches:
            raise RequestError(409, f"Reference already exists: {branch}")
        branches[branch] = list(branches["main"])
        return {}

    def entries(self, type: str, id: str, revision: str) -> dict[str, dict[str, Any]]:
        """Return files and folders by path."""
        found: dict[str, dict[str, Any]] = {}
        for path, content in sorted(self.snapshot(type, id, revision).files.items()):
            for folder in itertools.accumulate(path.split("/")[:-1], lambda above, name: f"{above}/{name}"):
                found.setdefault(folder, {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40})
            entry = {"type": "file", "path": path, "size": len(content), "oid": etag(path, content)}
            lfs = {"lfs": {"oid": entry["oid"], "size": entry["size"], "pointerSize": 1}}
            found[path] = entry | (lfs if is_lfs(path, content) else {})
        return found

    def tree(self, type: str, id: str, revision: str, path: str = "") -> list[dict[str, Any]]:
        below = f"{path}/" if path else ""
        recursive = self.query.get("recursive", "").lower() in ("true", "1")
        entries = self.entries(type, id, revision)
        return [
            entry
            for name, entry in entries.items()
            if name.startswith(below) and (recursive or "/" not in name[len(below) :])
        ]

    def paths_info(self, type: str, id: str, revision: str) -> list[dict[str, Any]]:
        entries = self.entries(type, id, revision)
        as_json = "json" in self.headers.get("Content-Type", "")
        asked = json.loads(self.body) if as_json else parse_qs(self.body.decode())
        return [entries[path] for path in asked["paths"] if path in entries]

    def information(self, type: str, id: str, revision: str = "main") -> dict[str, Any]:
        oid, _, files = self.snapshot(type, id, revision)
        siblings = [{"rfilename": path} for path in sorted(files)]
        private = self.repository(type, id).private
        return {"id": id, "sha": oid, "private": private, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}

    def resolve(self, id: str, revision: str, path: str, type: str = "model") -> tuple[bytes, dict[str, str]]:
        oid, _, files = self.snapshot(type, id, revision)
        if path not in files:
            raise RequestError(404, f"{path} does not exist", "EntryNotFound")
        tag = f'"{etag(path, files[path])}"'
        linked = {"X-Linked-Etag": tag, "X-Linked-Size": str(len(files[path]))} if is_lfs(path, files[path]) else {}
        return files[path], {"ETag": tag, "X-Repo-Commit": oid, "Accept-Ranges": "bytes", **linked}
