"""Inputs that change during a run: exit 8 names the file, and nothing is written."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from fusion_core import run_fusion
from fusion_core.errors import FusionError, IntegrityError
from fusion_core.planning.run_options import RunOptions
from fusion_core.weights import CheckpointSource
from fusion_core.weights.reading import checkpoint as checkpoint_module
from fusion_core.weights.writing.writer import Staging

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Change = Callable[[Path], object]

pytestmark = pytest.mark.plugins


def _overwrite(file: Path) -> None:
    """Overwrite some data without changing the size."""
    with file.open("r+b") as stream:
        stream.seek(-8, os.SEEK_END)
        stream.write(b"\x01" * 4)


def _forge(file: Path) -> None:
    """Overwrite some data and restore the times that a program can set."""
    status = file.stat()
    _overwrite(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def _append(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"\0")


def _replace(file: Path) -> None:
    """Replace the file by an equal one, as a download does."""
    other = file.with_name("new")
    other.write_bytes(file.read_bytes())
    status = file.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(file)


CHANGES: dict[str, Change] = {
    "overwritten": _overwrite,
    "overwritten, with its time put back": _forge,
    "replaced": _replace,
    "appended to": _append,
    "shortened by a byte": lambda file: os.truncate(file, file.stat().st_size - 1),
    "emptied": lambda file: os.truncate(file, 0),
    "removed": lambda file: file.unlink(),
    "touched": lambda file: os.utime(file, ns=(0, 0)),
}
#: Points in a run: the Nth read of weights, or a method of the writer.
POINTS: list[int | str] = [1, 2, 7, 15, "finish_shards", "add"]


@pytest.fixture
def pool(tmp_path: Path) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "x", "y"):
        tensors = {f"t{n}": torch.randn(40, 50, generator=generator) for n in range(6)}
        save_file(tensors, tmp_path / f"{name}.safetensors")
        # Clocks of file systems tick a few times per second, so a change right after the creation
        # could go unnoticed.
        os.utime(tmp_path / f"{name}.safetensors", ns=(0, 10**18))
    files = {name: str(tmp_path / f"{name}.safetensors") for name in ("base", "x", "y")}
    return {"name": "checkpoints", "base": files.pop("base"), "models": files}


def _at(point: int | str, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Perform an action once, at a point of the run."""
    remaining = [1 if isinstance(point, str) else point]

    def perform(real: Callable[..., Any], *arguments: Any) -> Any:
        remaining[0] -= 1
        if not remaining[0]:
            action()
        return real(*arguments)

    if isinstance(point, int):
        real = os.preadv
        monkeypatch.setattr(
            checkpoint_module.os, "preadv", lambda *arguments: perform(real, *arguments)
        )
    else:
        method = getattr(Staging, point)
        monkeypatch.setattr(Staging, point, lambda *arguments: perform(method, *arguments))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("change", CHANGES)
def test_input_changed_during_run_raises(
    pool: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    point: int | str,
) -> None:
    file = tmp_path / f"{'y' if change == 'replaced' else 'base'}.safetensors"
    _at(point, monkeypatch, lambda: CHANGES[change](file))
    with pytest.raises(IntegrityError) as caught:
        run_fusion(
            algorithm="ties",
            model_pool=pool,
            output=tmp_path / "out",
            options=RunOptions(executor="serial"),
        )
    assert caught.value.exit_code == 8
    assert str(file) in caught.value.message
    assert not (tmp_path / "out").exists()


def test_unchanged_inputs_succeed(pool: dict[str, Any], tmp_path: Path) -> None:
    run_fusion(algorithm="ties", model_pool=pool, output=tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_input_changed_during_in_memory_merge_raises(
    pool: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = {f"t{n}": torch.zeros(40, 50) for n in range(6)}
    mixed = {"base": live, "models": pool["models"]}
    assert run_fusion(algorithm="ties", model_pool=mixed).path is None
    _at(3, monkeypatch, lambda: _overwrite(tmp_path / "y.safetensors"))
    with pytest.raises(IntegrityError, match=r"y\.safetensors changed"):
        run_fusion(algorithm="ties", model_pool=mixed)


def test_failed_overwrite_keeps_old_output(
    pool: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run_fusion(algorithm="simple-average", model_pool=pool, output=out)
    before = (out / "model.safetensors").read_bytes()
    _at("finish_shards", monkeypatch, lambda: _overwrite(tmp_path / "x.safetensors"))
    with pytest.raises(FusionError):
        run_fusion(
            algorithm="ties", model_pool=pool, output=out, options=RunOptions(overwrite=True)
        )
    assert (out / "model.safetensors").read_bytes() == before


def test_worker_process_refuses_replaced_file(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(4)}, file)
    sent = pickle.dumps(CheckpointSource(file))
    assert pickle.loads(sent).tensor("a").tolist() == [0] * 4
    _replace(file)
    with pytest.raises(IntegrityError, match="differs from the file that was opened"):
        pickle.loads(sent)
