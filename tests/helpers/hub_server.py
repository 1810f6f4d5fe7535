"""A small Hub on loopback, in memory: huggingface_hub can create, fill, list and read repositories on it.

Models, datasets and spaces; tokens with and without the right to write; private repositories; commits of which the
history stays readable; branches. Uploads go by LFS alone, so a client of it runs with `HF_HUB_DISABLE_XET=1`.
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
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import huggingface_hub.constants
import pytest
import yaml


PAGE = 1000  # entries of a listing, as on the Hub
REGULAR_BYTES = 10_000_000  # larger files, and binary ones, go by LFS
BINARY = re.compile(r"\.(parquet|arrow|png|jpg|safetensors|bin|pt|onnx|gz|zip)$")


@dataclass(frozen=True)
class File:
    """A file of a commit."""

    content: bytes
    lfs: bool = False

    @property
    def oid(self) -> str:
        """git's name of the blob, which for LFS is that of the pointer."""
        blob = self.pointer.encode() if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def etag(self) -> str:
        """What tells the client whether it has, or has sent, the same content."""
        return self.sha256 if self.lfs else self.oid

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> str:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"

    def info(self, path: str) -> dict[str, Any]:
        lfs = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        return {"type": "file", "path": path, "size": len(self.content), "oid": self.oid} | (
            {"lfs": lfs} if self.lfs else {}
        )


@dataclass
class Repository:
    """A repository: its commits, the last one being `main`, and those of its other branches."""

    private: bool
    commits: list[tuple[str, str, dict[str, File]]] = field(default_factory=list)
    branches: dict[str, list[tuple[str, str, dict[str, File]]]] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, File]:
        """The files of `main`."""
        return self.commits[-1][2]

    def commits_of(self, revision: str) -> list[tuple[str, str, dict[str, File]]] | None:
        """The commits of a branch, or up to a commit; none where there is no such thing."""
        name = revision.removeprefix("refs/heads/")
        branches = {"main": self.commits, **self.branches}
        if name in branches:
            return branches[name]
        for commits in branches.values():
            for number, (oid, _, _) in enumerate(commits):
                if oid == revision:
                    return commits[: number + 1]
        return None

    def commit(self, title: str, files: dict[str, File], branch: str = "main") -> str:
        commits = self.commits if branch == "main" else self.branches[branch]
        content = {path: file.etag for path, file in sorted(files.items())}
        oid = hashlib.sha1(f"{branch} {len(commits)} {title} {content}".encode()).hexdigest()
        commits.append((oid, title, files))
        return oid


class Refused(Exception):
    """An answer that is not 200; the Hub's clients look at the header `X-Error-Code`."""

    def __init__(self, status: int, message: str, code: str = "", **content: str):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.content = {"error": message, **content}


class HubServer:
    """
    The server, a context manager.

    Args:
        users: For each token what `whoami` says: `name`, `role` of the token (`read` or `write`), and for each
            organisation the role in it.

    Attributes:
        endpoint: For `HF_ENDPOINT`.
        repositories: By type (`model`, `dataset`, `space`) and id.
        requests: Method and path of every request.
        bytes_sent: Of all answers together.
    """

    def __init__(self, users: dict[str, dict[str, Any]] | None = None):
        self.users = users or {"hf_writer": {"name": "someone", "role": "write", "orgs": {"lab": "write"}}}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}  # of LFS, by SHA-256
        self.requests: list[tuple[str, str]] = []
        self.bytes_sent = 0
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
        """Answers `times` requests whose path fits `pattern` with `status`, once `after` of them have passed."""
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

    def add(self, repo_id: str, files: dict[str, bytes], *, repo_type: str = "model", private: bool = False) -> None:
        """Puts a repository there without any upload."""
        repository = self.repositories.setdefault((repo_type, repo_id), Repository(private))
        repository.commit("Add", {path: File(content, bool(BINARY.search(path))) for path, content in files.items()})


def log_in(monkeypatch: pytest.MonkeyPatch, server: HubServer, token: str = "hf_writer") -> None:
    """Leads huggingface_hub of this process to the server, as whoever has the token."""
    files = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", token)


def environment_of(server: HubServer, cache: Path, token: str | None = None) -> dict[str, str]:
    """The environment of another process that the server is the Hub of, and that has an empty cache."""
    environment = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    return environment | {"HF_HUB_OFFLINE": "0", "HF_TOKEN": token or ""}


_REPO = r"(?P<id>[\w.-]+(?:/[\w.-]+)?)"
_API = rf"/api/(?P<type>model|dataset|space)s/{_REPO}"
_PLAIN = rf"/(?:(?P<type>dataset|space)s/)?{_REPO}"


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
        ("DELETE", rf"{_API}/branch/(?P<branch>[^/]+)", "delete_branch"),
        ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", "tree"),
        ("GET", rf"{_API}/refs", "refs"),
        ("GET", rf"{_API}/commits/(?P<revision>[^/]+)", "history"),
        ("GET", rf"{_API}(?:/revision/(?P<revision>[^/]+))?", "information"),
        ("POST", rf"{_PLAIN}\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "store"),
        ("GET", rf"{_PLAIN}/(?:resolve|raw)/(?P<revision>[^/]+)/(?P<path>.*)", "resolve"),
    ]

    def log_message(self, *_: object) -> None:
        pass

    def do_any(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        self.body = self.read_body()  # always, or what is left of it would be taken for the next request
        try:
            if status := self.hub.failure(self.command, url.path):
                raise Refused(status, "a failure that a test asked for")
            method = "GET" if self.command == "HEAD" else self.command
            for route, pattern, name in self.ROUTES:
                if route == method and (match := re.fullmatch(pattern, url.path)):
                    parts = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                    with self.hub.lock:
                        answer = getattr(self, name)(**parts)
                    return self.answer(200, *(answer if isinstance(answer, tuple) else (answer, {})))
            raise Refused(404, f"{self.command} {url.path}: this server does not know it")
        except Refused as refused:
            self.answer(refused.status, refused.content, refused.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_any

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

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

    # Who asks, and for what

    def user(self) -> dict[str, Any]:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.hub.users:
            raise Refused(401, "Invalid username or password.")
        return self.hub.users[token]

    def must_write(self, repo_id: str) -> None:
        user = self.user()
        roles = {user["name"]: "admin"} | user.get("orgs", {})
        if user["role"] != "write" or roles.get(repo_id.split("/")[0]) not in ("admin", "write", "contributor"):
            raise Refused(403, f"You don't have the rights to write to {repo_id}.")

    def repository(self, type: str, id: str) -> Repository:
        found = self.hub.repositories.get((type, id))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        user = self.hub.users.get(token, {"name": None})
        if found is None or found.private and id.split("/")[0] not in (user["name"], *user.get("orgs", {})):
            raise Refused(401 if not token else 404, "Repository not found", "RepoNotFound")
        return found

    def snapshot(self, type: str, id: str, revision: str = "main") -> tuple[str, dict[str, File]]:
        commits = self.repository(type, id).commits_of(revision)
        if commits is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        oid, _, files = commits[-1]
        return oid, files

    # The routes

    def whoami(self) -> dict[str, Any]:
        user = self.user()
        orgs = [{"type": "org", "name": name, "roleInOrg": role} for name, role in user.get("orgs", {}).items()]
        token = {"displayName": "test", "role": user["role"]}
        return {"type": "user", "name": user["name"], "orgs": orgs, "auth": {"accessToken": token}}

    def validate(self) -> dict[str, Any]:
        card = json.loads(self.body)["content"]
        metadata = yaml.safe_load(card.split("---")[1]) if card.startswith("---") else None
        if not isinstance(metadata, dict) or not isinstance(metadata.get("license"), str):
            raise Refused(400, '"license" must be a string')
        return {"errors": [], "warnings": []}

    def create(self) -> dict[str, Any]:
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or self.user()['name']}/{asked['name']}"
        kind = asked.get("type") or "model"
        self.must_write(repo_id)
        url = f"{self.hub.endpoint}/{'' if kind == 'model' else f'{kind}s/'}{repo_id}"
        if (kind, repo_id) in self.hub.repositories:
            raise Refused(409, "You already created this repository.", url=url)
        repository = Repository(private=asked.get("private") or asked.get("visibility") == "private")
        repository.commit(
            "initial commit", {".gitattributes": File(b"*.parquet filter=lfs diff=lfs merge=lfs -text\n")}
        )
        self.hub.repositories[kind, repo_id] = repository
        return {"url": url, "name": repo_id}

    def preupload(self, type: str, id: str, revision: str) -> dict[str, Any]:
        _, files = self.snapshot(type, id, revision)
        self.must_write(id)
        answers = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            by_lfs = BINARY.search(path) or asked["size"] > REGULAR_BYTES
            answer = {"path": path, "uploadMode": "lfs" if by_lfs else "regular", "shouldIgnore": False}
            answers.append(answer | ({"oid": files[path].etag} if path in files else {}))
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
            raise Refused(400, "The content is not what its SHA-256 says.")
        self.hub.objects[oid] = self.body
        return {}

    def commit(self, type: str, id: str, revision: str) -> dict[str, Any]:
        _, files = self.snapshot(type, id, revision)
        self.must_write(id)
        header, *changes = [json.loads(line) for line in self.body.splitlines()]
        files = dict(files)
        for change in changes:
            kind, value = change["key"], change["value"]
            if kind == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]))
            elif kind == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refused(400, f"LFS pointer of {value['path']} points to nothing.")
                files[value["path"]] = File(self.hub.objects[value["oid"]], lfs=True)
            elif kind in ("deletedFile", "deletedFolder"):
                gone = [path for path in files if path == value["path"] or path.startswith(f"{value['path']}/")]
                if not gone:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                for path in gone:
                    del files[path]
            else:
                raise Refused(400, f"unknown change {kind}")
        branch = () if revision == "main" else (revision,)
        oid = self.repository(type, id).commit(header["value"]["summary"], files, *branch)
        return {"commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{id}/commit/{oid}", "hookOutput": ""}

    def entries(self, files: dict[str, File]) -> dict[str, dict[str, Any]]:
        """Files and folders by path."""
        found: dict[str, dict[str, Any]] = {}
        for path, file in sorted(files.items()):
            for folder in itertools.accumulate(path.split("/")[:-1], lambda above, name: f"{above}/{name}"):
                oid = hashlib.sha1(folder.encode()).hexdigest()
                found.setdefault(folder, {"type": "directory", "path": folder, "size": 0, "oid": oid})
            found[path] = file.info(path)
        if self.query.get("expand", "").lower() == "true":
            last = {"id": "0" * 40, "title": "", "date": "2026-01-01T00:00:00.000Z"}
            found = {path: entry | {"lastCommit": last} for path, entry in found.items()}
        return found

    def tree(self, type: str, id: str, revision: str, path: str = "") -> tuple[Any, dict[str, str]]:
        _, files = self.snapshot(type, id, revision)
        below = f"{path}/" if path else ""
        recursive = self.query.get("recursive", "").lower() in ("true", "1")
        found = [
            entry
            for name, entry in self.entries(files).items()
            if name.startswith(below) and (recursive or "/" not in name[len(below) :])
        ]
        if path and not found:
            raise Refused(404, f"{path} does not exist on {revision}", "EntryNotFound")
        first = int(self.query.get("cursor", 0))
        more = f"{self.path.split('?')[0]}?recursive={recursive}&cursor={first + PAGE}"
        link = {"Link": f'<{self.hub.endpoint}{more}>; rel="next"'} if len(found) > first + PAGE else {}
        return found[first : first + PAGE], link

    def paths_info(self, type: str, id: str, revision: str) -> list[dict[str, Any]]:
        _, files = self.snapshot(type, id, revision)
        if "json" in self.headers.get("Content-Type", ""):
            asked = json.loads(self.body)
        else:
            asked = parse_qs(self.body.decode())
            self.query |= {"expand": asked.get("expand", ["false"])[-1]}
        entries = self.entries(files)
        return [entries[path] for path in asked["paths"] if path in entries]

    def refs(self, type: str, id: str) -> dict[str, Any]:
        oid, _ = self.snapshot(type, id)
        heads = {"main": oid} | {name: commits[-1][0] for name, commits in self.repository(type, id).branches.items()}
        branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid} for name, oid in heads.items()]
        return {"branches": branches, "converts": [], "tags": [], "pullRequests": []}

    def create_branch(self, type: str, id: str, branch: str) -> dict[str, Any]:
        self.must_write(id)
        repository = self.repository(type, id)
        if branch == "main" or branch in repository.branches:
            raise Refused(409, f"Reference already exists: {branch}")
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        self.snapshot(type, id, start)
        repository.branches[branch] = list(repository.commits_of(start) or [])
        return {}

    def delete_branch(self, type: str, id: str, branch: str) -> dict[str, Any]:
        self.must_write(id)
        if self.repository(type, id).branches.pop(branch, None) is None:
            raise Refused(404, f"Reference does not exist: {branch}", "RevisionNotFound")
        return {}

    def history(self, type: str, id: str, revision: str) -> list[dict[str, Any]]:
        self.snapshot(type, id, revision)
        commits = self.repository(type, id).commits_of(revision) or []
        date = "2026-01-01T00:00:00.000Z"
        return [
            {"id": oid, "title": title, "message": "", "date": date, "authors": []}
            for oid, title, _ in reversed(commits)
        ]

    def information(self, type: str, id: str, revision: str = "main") -> dict[str, Any]:
        oid, files = self.snapshot(type, id, revision)
        names = {
            "id": id,
            "modelId": id,
            "author": id.split("/")[0],
            "sha": oid,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }
        dates = dict.fromkeys(("lastModified", "createdAt"), "2026-01-01T00:00:00.000Z")
        flags = {"private": self.repository(type, id).private, "disabled": False, "gated": False}
        flags |= {"downloads": 0, "likes": 0}
        siblings = [{"rfilename": path} for path in sorted(files)]
        if self.query.get("blobs"):
            siblings = [
                {"rfilename": path, "size": file.info(path)["size"], "blobId": file.oid, "lfs": _blob_lfs(file)}
                for path, file in sorted(files.items())
            ]
        return {**names, **dates, **flags, "siblings": siblings}

    def resolve(self, id: str, revision: str, path: str, type: str = "model") -> tuple[bytes, dict[str, str]]:
        oid, files = self.snapshot(type, id, revision)
        if path not in files:
            raise Refused(404, f"{path} is not there", "EntryNotFound")
        file = files[path]
        etag = f'"{file.etag}"'
        headers = {"ETag": etag, "X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if file.lfs:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(file.content))}
        return file.content, headers


def _blob_lfs(file: File) -> dict[str, Any] | None:
    return {"sha256": file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)} if file.lfs else None
