"""The upload protocol of the loopback hub: repositories, branches, LFS, commits. Xet is off.

The shapes of requests and answers are those that huggingface_hub 2.4 sends and expects.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hub_server import HubServer, Repository

    Answer = tuple[int, Mapping[str, str], bytes]

#: Files of at least this size, and binary ones, go to large file storage.
_LARGE_SUFFIXES = (".safetensors", ".bin", ".pt")
_JSON = {"Content-Type": "application/json"}
_MODEL = r"/api/models/([^/]+/[^/]+)"


def answer_upload(server: HubServer, path: str, query: str, body: bytes) -> Answer:
    """Answer a POST or PUT request with a token."""
    for pattern, handle in _ROUTES:
        if match := re.fullmatch(pattern, path):
            arguments = [unquote(part) for part in match.groups()]
            return handle(server, *arguments, query=parse_qs(query), body=body)
    return 404, {}, b"{}"


def _ok(content: Any, status: int = 200) -> Answer:
    return status, _JSON, json.dumps(content).encode()


def _create(server: HubServer, *, body: bytes, **_: Any) -> Answer:
    wanted = json.loads(body)
    repo = f"{wanted['organization']}/{wanted['name']}"
    if ("models", repo) in server.repositories:
        return _ok({"url": f"{server.url}/{repo}"}, 409)
    is_private = wanted.get("private") or wanted.get("visibility") == "private"
    server.add(repo, {".gitattributes": b""}, private=bool(is_private))
    return _ok({"url": f"{server.url}/{repo}"})


def _validate(server: HubServer, *, body: bytes, **_: Any) -> Answer:
    """Refuse what the documentation of model cards says that the hub refuses."""
    card = json.loads(body)["content"]
    server.cards.append(card)
    fields = yaml.safe_load(card.split("---\n")[1])
    return _ok({"errors": [], "warnings": []} if isinstance(fields, dict) else {}, 200)


def _branch(server: HubServer, repo: str, branch: str, **_: Any) -> Answer:
    refs = server.repositories["models", repo].refs
    if branch in refs:
        return _ok({}, 409)
    refs[branch] = refs["main"]
    return _ok({})


def _preupload(server: HubServer, repo: str, revision: str, *, body: bytes, **_: Any) -> Answer:
    repository = server.repositories["models", repo]
    files = repository.commits[repository.refs[revision]]

    def describe(name: str) -> dict[str, Any]:
        is_large = name.endswith(_LARGE_SUFFIXES)
        content = files.get(name)
        oid = None if content is None else _oid(content, is_large=is_large)
        mode = "lfs" if is_large else "regular"
        return {"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    return _ok({"files": [describe(file["path"]) for file in json.loads(body)["files"]]})


def _batch(server: HubServer, _: str, *, body: bytes, **__: Any) -> Answer:
    def describe(wanted: Mapping[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in server.large_files:
            return {"oid": wanted["oid"], "size": wanted["size"]}
        upload = {"href": f"{server.url}/lfs/{wanted['oid']}", "header": {}}
        return {"oid": wanted["oid"], "size": wanted["size"], "actions": {"upload": upload}}

    objects = [describe(wanted) for wanted in json.loads(body)["objects"]]
    return _ok({"transfer": "basic", "objects": objects})


def _store(server: HubServer, oid: str, *, body: bytes, **_: Any) -> Answer:
    if hashlib.sha256(body).hexdigest() != oid:
        return 400, {}, b"{}"
    server.large_files[oid] = body
    return _ok({})


def _commit(
    server: HubServer, repo: str, revision: str, *, query: Mapping[str, list[str]], body: bytes
) -> Answer:
    repository = server.repositories["models", repo]
    header, *operations = (json.loads(line) for line in body.splitlines())
    if header["value"].get("parentCommit") != repository.refs[revision]:
        return _ok({"error": "a commit has happened since"}, 412)
    files = dict(repository.commits[repository.refs[revision]])
    for operation in operations:
        value = operation["value"]
        if operation["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif operation["key"] == "deletedFile":
            del files[value["path"]]
        elif value["oid"] in server.large_files:
            files[value["path"]] = server.large_files[value["oid"]]
        else:
            return _ok({"error": "missing large file"}, 400)
    pull_request = _open(repository, header["value"]["summary"]) if "create_pr" in query else None
    branch = revision if pull_request is None else f"refs/pr/{pull_request}"
    commit = server.add(repo, files, branch=branch)
    address = f"{server.url}/{repo}"
    url = None if pull_request is None else f"{address}/discussions/{pull_request}"
    answer = {"commitUrl": f"{address}/commit/{commit}", "commitOid": commit, "success": True}
    return _ok({**answer, "pullRequestUrl": url})


def _open(repository: Repository, title: str) -> int:
    number = len(repository.pushed) + 1
    repository.pushed[number] = title
    return number


def _oid(content: bytes, *, is_large: bool) -> str:
    if is_large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


_ROUTES: tuple[tuple[str, Any], ...] = (
    (r"/api/repos/create", _create),
    (r"/api/validate-yaml", _validate),
    (rf"{_MODEL}/branch/([^/]+)", _branch),
    (rf"{_MODEL}/preupload/([^/]+)", _preupload),
    (rf"{_MODEL}/commit/([^/]+)", _commit),
    (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", _batch),
    (r"/lfs/([0-9a-f]{64})", _store),
)
