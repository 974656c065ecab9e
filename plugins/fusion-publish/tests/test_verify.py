"""`fuse verify`: what it accepts and refuses, here and on the hub."""

from __future__ import annotations

import errno
import hashlib
import json
from typing import TYPE_CHECKING

import pytest
from tiny_outputs import read_statement

from fusion_core.errors import CheckpointError, IntegrityError, RecipeError
from fusion_core.hub import parse, resolve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hub_server import HubServer


def test_documents_may_be_added_and_other_files_by_name(
    fuse: Callable[..., str], output: Path
) -> None:
    (output / "README.md").write_text("# Mine")
    (output / ".gitattributes").touch()
    assert "verified: " in fuse("verify", output)
    (output / "model.gguf").touch()
    with pytest.raises(IntegrityError, match=r"model\.gguf \(unexpected\)") as error:
        fuse("verify", output)
    assert error.value.exit_code == 8
    data = json.loads(fuse("verify", output, "--json", "--allow", "*.gguf"))
    assert data["verified"]
    assert data["tensors"] == 3
    statuses = {entry["file"]: entry["status"] for entry in data["files"]}
    assert statuses["README.md"] == statuses["model.gguf"] == "not covered"
    assert statuses["recipe.yaml"] == "ok"


def test_a_file_that_may_not_be_read_is_not_called_changed(
    fuse: Callable[..., str], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("fusion_publish.verification.verifying.open_named", refuse)
    with pytest.raises(IntegrityError, match=r"recipe\.yaml \(unreadable\)"):
        fuse("verify", output)


def write_schema_1(directory: Path) -> None:
    """Replace a provenance by one that an earlier version would have written."""
    statement = read_statement(directory)
    files = {}
    for entry in statement["subject"]:
        content = (directory / entry["name"]).read_bytes()
        header = content[: 8 + int.from_bytes(content[:8], "little")]
        is_shard = entry["name"].endswith(".safetensors")
        digest = hashlib.sha256(header if is_shard else content).hexdigest()
        key = "header_sha256" if is_shard else "sha256"
        files[entry["name"]] = {"bytes": len(content), key: digest}
    blake3 = statement["predicate"]["outputs"]["tensors_blake3"]
    content = {
        "schema": 1,
        "versions": {"fusion-core": "0.1.0"},
        "outputs": {"files": files, "tensors_blake3": blake3},
    }
    (directory / "provenance.json").write_text(json.dumps(content))


def test_an_output_of_an_earlier_version_is_verified_within_its_limits(
    fuse: Callable[..., str], output: Path
) -> None:
    write_schema_1(output)
    text = fuse("verify", output)
    assert "verified: " in text
    assert "limit: schema 1 has no checksum of its own" in text
    shard = output / "model-00001-of-00003.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"model-00001-of-00003\.safetensors"):
        fuse("verify", output)


def test_a_repository_is_verified(fuse: Callable[..., str], output: Path, hub: HubServer) -> None:
    files = {path.name: path.read_bytes() for path in output.iterdir()}
    commit = hub.add("us/merged", {**files, ".gitattributes": b"", "README.md": b"#"})
    assert f"verified: us/merged@{commit}" in fuse("verify", "us/merged")
    changed = {**files, "recipe.yaml": b"seed: 1"}
    hub.add("us/merged", changed)  # the cache knows the commit before
    with pytest.raises(IntegrityError, match=r"recipe\.yaml \(changed\)"):
        fuse("verify", "us/merged")
    assert resolve(parse("us/merged")).revision == commit  # later runs keep their commit
    hub.add("us/other", {**files, "modeling.py": b"", "config.json": b"{}"})
    with pytest.raises(IntegrityError, match=r"config\.json \(changed\), modeling\.py"):
        fuse("verify", "us/other")
    hub.add("us/plain", {"config.json": b"{}"})
    with pytest.raises(IntegrityError, match="has no provenance"):
        fuse("verify", "us/plain")


def test_something_else_is_refused(fuse: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a directory"):
        fuse("verify", tmp_path / "nothing")
    with pytest.raises(IntegrityError, match="has no provenance"):
        fuse("verify", tmp_path)
    with pytest.raises(RecipeError, match="--signature needs --public-key"):
        fuse("verify", tmp_path, "--signature", "x")
