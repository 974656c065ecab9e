"""`fuse lock`: a recipe that refuses other inputs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest
from tiny_outputs import read_statement

from fusion_core import run_fusion
from fusion_core.commands import load_recipe
from fusion_core.errors import IntegrityError, OutputError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hub_server import HubServer


@pytest.fixture
def recipe(models: dict[str, str], tmp_path: Path) -> Path:
    """Write a recipe next to the models."""
    assert Path(models["base"]).parent == tmp_path / "in"
    pool = {"name": "checkpoints", "base": "in/base", "models": {"a": "in/a", "b": "in/b"}}
    path = tmp_path / "recipe.yaml"
    path.write_text(
        json.dumps({"algorithm": "ties", "model_pool": pool, "output": {"path": "merged"}})
    )
    return path


def test_a_locked_run_refuses_other_inputs(
    fuse: Callable[..., str], recipe: Path, tmp_path: Path
) -> None:
    assert "6 files, 0 commits" in fuse("lock", recipe)
    locked = tmp_path / "recipe.lock.yaml"
    run_fusion(locked)
    merged = tmp_path / "merged"
    assert load_recipe(merged / "recipe.yaml")["lock"] == load_recipe(locked)["lock"]
    files = read_statement(merged)["predicate"]["recipe"]["lock"]["files"]
    assert files["a"].keys() == {"config.json", "model.safetensors"}
    assert "bit for bit" in fuse("reproduce", merged)
    path = tmp_path / "in" / "a" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (tmp_path / "in" / "b" / "vocab.txt").touch()
    with pytest.raises(IntegrityError, match=r"a: model\.safetensors: expected SHA-256") as error:
        run_fusion(locked, output="other")
    assert "b: vocab.txt is not in the lock" in str(error.value)
    assert not Path("other").exists()
    with pytest.raises(IntegrityError, match="the inputs differ from the lock"):
        fuse("reproduce", merged)
    fuse("lock", recipe)
    run_fusion(locked, output=str(tmp_path / "other"))


def test_a_locked_recipe_keeps_the_commits(
    fuse: Callable[..., str],
    recipe: Path,
    tmp_path: Path,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit = hub.add_directory("them/expert", tmp_path / "in" / "a")
    lock = json.loads(fuse("lock", recipe, "--set", "model_pool.models.a=them/expert", "--json"))
    assert lock["commits"] == {"them/expert@main": commit}
    hub.add_directory("them/expert", tmp_path / "in" / "b")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))  # another machine, and later
    merged = run_fusion(tmp_path / "recipe.lock.yaml")
    assert merged.path is not None
    source = read_statement(merged.path)["predicate"]["inputs"]["a"]["source"]
    assert source == f"them/expert@{commit}"


def test_models_that_share_files_are_hashed_once(
    fuse: Callable[..., str], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuse("lock", recipe)  # recipe.lock.yaml, a model of the outer recipe
    pool = {"name": "checkpoints", "base": "in/base", "models": {"x": "recipe.lock.yaml"}}
    outer = tmp_path / "outer.yaml"
    outer.write_text(json.dumps({"algorithm": "ties", "model_pool": pool}))
    fuse("lock", outer)
    hashed: list[Path] = []
    digest = hashlib.file_digest

    def count(stream: BinaryIO, algorithm: str) -> object:
        hashed.append(Path(stream.name))
        return digest(stream, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", count)
    run_fusion(tmp_path / "outer.lock.yaml", output=str(tmp_path / "outer"))
    weights = [file.parent.name for file in hashed if file.suffix == ".safetensors"]
    assert sorted(weights) == ["a", "b", "base"]


def test_only_a_locked_recipe_is_replaced(fuse: Callable[..., str], recipe: Path) -> None:
    with pytest.raises(OutputError, match="is not a locked recipe"):
        fuse("lock", recipe, "-o", recipe)


def test_a_commit_that_is_none_is_refused(recipe: Path) -> None:
    content = json.loads(recipe.read_text())
    recipe.write_text(json.dumps({**content, "lock": {"commits": {"a/b@main": "v1"}}}))
    with pytest.raises(RecipeError, match="expected a commit of 40 hexadecimal digits, got 'v1'"):
        run_fusion(recipe)
