"""A hub on 127.0.0.1: what huggingface_hub asks of the real one, and every way to fail.

A pytest plugin (named in the root conftest.py, so that plugins' tests have it too):

    def test_something(hub: HubServer) -> None:
        commit = hub.add("org/name", {"config.json": b"{}", "model.safetensors": data})
        hub.fail("model.safetensors", status=503)

The fixture points HF_ENDPOINT and an empty cache at it. It advertises Xet storage, as the real one
does, where `hub.xet` is set: who downloads from that brings a stand-in for `hf_xet`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest
from hub_uploads import answer_upload

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

#: Stored as large files, by their sha256, as on the hub.
LARGE = (".safetensors", ".bin", ".parquet", ".pt", ".model")

_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/?]+))?$")
_XET_TOKEN = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/xet-read-token/[0-9a-f]{40}$")
_DISCUSSIONS = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/discussions$")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


@dataclass
class Repository:
    """One repository: the files of every commit, and what its branches and tags are."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    #: pull requests: number, author
    requests: dict[int, str] = field(default_factory=dict)
    #: who does not send this sees nothing
    token: str | None = None
    private: bool = False
    #: pushed pull requests: number, title
    pushed: dict[int, str] = field(default_factory=dict)


@dataclass
class Fault:
    """What is to go wrong with requests whose path matches."""

    pattern: str
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    #: end the body after so many bytes
    cut: int | None = None
    #: turn over one bit of the body
    flip: bool = False
    #: close the connection without an answer
    lost: bool = False
    #: seconds before the answer
    delay: float = 0.0
    methods: tuple[str, ...] = ("GET", "HEAD")
    #: how often; None: always
    times: int | None = None

    def strikes(self, method: str, path: str) -> bool:
        """Tell whether this request is to fail, and count it."""
        if method not in self.methods or not fnmatch(path, self.pattern) or self.times == 0:
            return False
        self.times = None if self.times is None else self.times - 1
        return True


class HubServer:
    """Repositories, faults, and what was asked so far."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.faults: list[Fault] = []
        #: method, path, value of the Range header
        self.requests: list[tuple[str, str, str | None]] = []
        #: the Authorization headers that were sent
        self.authorizations: set[str | None] = set()
        self.valid_tokens: set[str] | None = None
        #: large files that were sent, by SHA-256, committed or not
        self.large_files: dict[str, bytes] = {}
        #: the model cards that were validated
        self.cards: list[str] = []
        #: whether large files are listed with the hash that Xet knows them by
        self.xet = False
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def add(
        self,
        repo: str,
        files: Mapping[str, bytes | Path],
        *,
        kind: str = "model",
        branch: str = "main",
        **properties: Any,
    ) -> str:
        """Commit files, all that the repository then has, to a branch; return the commit."""
        repository = self.repositories.setdefault((f"{kind}s", repo), Repository())
        for name, value in properties.items():
            setattr(repository, name, value)
        content = {
            path: data if isinstance(data, bytes) else data.read_bytes()
            for path, data in files.items()
        }
        digest = hashlib.sha1(f"{repo}{len(repository.commits)}".encode())
        for path, data in sorted(content.items()):
            digest.update(path.encode() + b"\0" + data)
        commit = digest.hexdigest()
        repository.commits[commit] = content
        repository.refs[branch] = commit
        return commit

    def add_directory(self, repo: str, directory: Path, **properties: Any) -> str:
        """Commit all files of a directory."""
        paths = sorted(path for path in directory.rglob("*") if path.is_file())
        files = {path.relative_to(directory).as_posix(): path for path in paths}
        return self.add(repo, files, **properties)

    def request(self, repo: str, author: str, files: Mapping[str, bytes | Path]) -> str:
        """Open a pull request of a model with these files; return its commit."""
        repository = self.repositories["models", repo]
        number = len(repository.requests) + 1
        commit = self.add(repo, files, branch=f"refs/pr/{number}")
        repository.requests[number] = author
        return commit

    def fail(self, pattern: str, **fault: Any) -> Fault:
        """Let requests fail whose path matches `*pattern*`."""
        new_fault = Fault(f"*{pattern}*", **fault)
        self.faults.append(new_fault)
        return new_fault

    def asked(self, part: str, method: str | None = None) -> list[tuple[str, str, str | None]]:
        """Return the requests whose path holds `part`."""
        return [
            request
            for request in self.requests
            if part in request[1] and method in (None, request[0])
        ]

    def start(self) -> None:
        """Serve, on a thread."""
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Stop serving: connections are refused from now on."""
        self._http.shutdown()
        self._http.server_close()


def _handler(server: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement

        def do_GET(self) -> None:
            self._answer("GET")

        def do_HEAD(self) -> None:
            self._answer("HEAD")

        def do_POST(self) -> None:
            self._answer("POST")

        def do_PUT(self) -> None:
            self._answer("PUT")

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, method: str) -> None:
            path = unquote(urlsplit(self.path).path)
            server.requests.append((method, path, self.headers.get("Range")))
            body = self._read_body()
            authorization = self.headers.get("Authorization")
            server.authorizations.add(authorization)
            striking = (planned for planned in server.faults if planned.strikes(method, path))
            fault = next(striking, None)
            if fault is not None:
                time.sleep(fault.delay)
            if fault is not None and fault.lost:
                self.close_connection = True
                self.connection.close()
                return
            if fault is not None and fault.status is not None:
                self._send(method, fault.status, {}, b"{}", fault)
                return
            if self._has_bad_token(authorization):
                message = {"X-Error-Message": "Invalid credentials in Authorization header"}
                self._send(method, 401, message, b"{}")
                return
            # What follows `revision/` or `resolve/` is quoted: it may hold slashes.
            raw = urlsplit(self.path).path
            if method in {"POST", "PUT"}:
                is_public = authorization is not None or method == "PUT"
                query = urlsplit(self.path).query
                answer = answer_upload(server, raw, query, body) if is_public else None
                status, headers, content = answer or (401, {}, b"{}")
                self._send(method, status, headers, content, fault)
            elif match := _API.match(raw):
                self._api(method, *match.groups(), fault=fault)
            elif _XET_TOKEN.match(raw):
                expires = str(int(time.time()) + 3600)
                names = ("X-Xet-Cas-Url", "X-Xet-Access-Token", "X-Xet-Token-Expiration")
                values = (server.url, "token", expires)
                self._send(method, 200, dict(zip(names, values, strict=True)), b"{}", fault)
            elif match := _DISCUSSIONS.match(raw):
                self._discussions(method, *match.groups(), fault=fault)
            elif match := _FILE.match(raw):
                self._file(method, *match.groups(), fault=fault)
            else:
                self._send(method, 404, {"X-Error-Code": "RepoNotFound"}, b"{}")

        def _read_body(self) -> bytes:
            size = int(self.headers.get("Content-Length") or 0)
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(size)
            chunks = []
            while length := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(length))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def _has_bad_token(self, authorization: str | None) -> bool:
            if authorization is None or server.valid_tokens is None:
                return False
            return authorization.removeprefix("Bearer ") not in server.valid_tokens

        def _commit(
            self, method: str, kind: str, repo: str, revision: str
        ) -> tuple[str, dict[str, bytes]] | None:
            """Find a commit; None if an error has been sent."""
            repository = server.repositories.get((kind, repo))
            sent = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if repository is None or (repository.token is not None and sent != repository.token):
                status = 404 if sent else 401
                self._send(method, status, {"X-Error-Code": "RepoNotFound"}, b"{}")
                return None
            if repository.gated and "/api/" not in self.path:
                status = 403 if sent else 401
                self._send(method, status, {"X-Error-Code": "GatedRepo"}, b"{}")
                return None
            revision = unquote(revision)
            commit = repository.refs.get(revision, revision)
            if commit not in repository.commits:
                self._send(method, 404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
                return None
            return commit, repository.commits[commit]

        def _api(  # noqa: PLR0913
            self,
            method: str,
            kind: str,
            repo: str,
            what: str | None,
            revision: str | None,
            *,
            fault: Fault | None,
        ) -> None:
            revised = self._commit(method, kind, unquote(repo), revision or "main")
            if revised is None:
                return
            commit, files = revised
            if what == "tree":
                answer: Any = [_listed(path, data, xet=server.xet) for path, data in files.items()]
            else:
                answer = {
                    "_id": commit[:24],
                    "id": unquote(repo),
                    "sha": commit,
                    "private": server.repositories[kind, unquote(repo)].private,
                    "gated": False,
                    "disabled": False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "siblings": [{"rfilename": path} for path in files],
                }
            headers = {"Content-Type": "application/json"}
            self._send(method, 200, headers, json.dumps(answer).encode(), fault)

        def _discussions(self, method: str, kind: str, repo: str, *, fault: Fault | None) -> None:
            if self._commit(method, kind, unquote(repo), "main") is None:
                return
            discussions = [
                {
                    "num": number,
                    "title": "Adding `safetensors` variant of this model",
                    "status": "open",
                    "author": {"name": author},
                    "repo": {"name": unquote(repo), "type": kind.removesuffix("s")},
                    "isPullRequest": True,
                    "createdAt": "2023-01-01T00:00:00.000Z",
                }
                for number, author in server.repositories[kind, unquote(repo)].requests.items()
            ]
            answer = {"discussions": discussions, "count": len(discussions), "start": 0}
            headers = {"Content-Type": "application/json"}
            self._send(method, 200, headers, json.dumps(answer).encode(), fault)

        def _file(  # noqa: PLR0913
            self,
            method: str,
            datasets: str | None,
            repo: str,
            revision: str,
            path: str,
            *,
            fault: Fault | None,
        ) -> None:
            revised = self._commit(method, "datasets" if datasets else "models", repo, revision)
            if revised is None:
                return
            commit, files = revised
            path = unquote(path)
            headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            if path not in files:
                self._send(method, 404, {**headers, "X-Error-Code": "EntryNotFound"}, b"{}")
                return
            data = files[path]
            listed = _listed(path, data)
            if "lfs" in listed:
                headers["X-Linked-Etag"] = f'"{listed["lfs"]["oid"]}"'
                headers["X-Linked-Size"] = str(len(data))
            headers["ETag"] = f'"{listed["oid"]}"'
            status = 200
            if asked := re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range") or ""):
                start, total = int(asked[1]), len(data)
                data = data[start : int(asked[2]) + 1 if asked[2] else None]
                headers["Content-Range"] = f"bytes {start}-{start + len(data) - 1}/{total}"
                status = 206
            self._send(method, status, headers, data, fault)

        def _send(
            self,
            method: str,
            status: int,
            headers: Mapping[str, str],
            body: bytes,
            fault: Fault | None = None,
        ) -> None:
            self.send_response(status)
            extra = fault.headers if fault is not None else {}
            for name, value in {**headers, "Content-Length": str(len(body)), **extra}.items():
                self.send_header(name, value)
            self.end_headers()
            if method == "HEAD":
                return
            if fault is not None and fault.flip and body:
                middle = len(body) // 2
                body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
            if fault is not None and fault.cut is not None:
                body = body[: fault.cut]
                self.close_connection = True
            self.wfile.write(body)

    return Handler


def _listed(path: str, data: bytes, *, xet: bool = False) -> dict[str, Any]:
    """Describe a file as the hub's tree does."""
    blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob}
    if path.endswith(LARGE):
        sha256 = hashlib.sha256(data).hexdigest()
        entry["oid"] = hashlib.sha1(sha256.encode()).hexdigest()  # the pointer's, not the data's
        entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
        if xet:
            entry["xetHash"] = sha256
    return entry


@contextmanager
def serving(directory: Path) -> Iterator[HubServer]:
    """Run a hub, the only one that can be seen, beside an empty cache in a directory."""
    server = HubServer()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE"):
            patch.delenv(name, raising=False)
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setenv("HF_HOME", str(directory / "hf-home"))
        patch.setenv("NO_PROXY", "127.0.0.1")
        server.start()
        yield server
    server.stop()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """Return a hub of this test's own."""
    with serving(tmp_path) as server:
        yield server
