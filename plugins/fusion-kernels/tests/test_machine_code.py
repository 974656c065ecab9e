"""Machine code is loaded from its file, and compiled again if the file cannot be trusted."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import pytest

from fusion_kernels import machine_code

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_NAME = ("linear", "combine")


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keep files in a new directory, and list the loops that are compiled."""
    names: list[str] = []
    machine_code.load_loop(*_NAME)
    content = machine_code.path_of(*_NAME).read_bytes()

    def compile_code(module: str, name: str) -> bytes:
        names.append(f"{module}.{name}")
        return content

    monkeypatch.setattr(machine_code, "cache_directory", lambda: tmp_path / "new" / "code")
    monkeypatch.setattr(machine_code, "compile_code", compile_code)
    return names


def _call(loop: Callable[..., int]) -> int:
    """Combine a piece of no elements and no experts."""
    layout = (ctypes.c_int64 * 9)()
    return loop(ctypes.addressof(layout), 0, 0, 0, 1.0, 0)


def test_a_loop_is_compiled_once(compiled: list[str]) -> None:
    assert [_call(machine_code.load_loop(*_NAME)) for _ in range(2)] == [1, 1]
    assert compiled == ["linear.combine"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_file_is_compiled_again(compiled: list[str], damage: str) -> None:
    machine_code.load_loop(*_NAME)
    path = machine_code.path_of(*_NAME)
    content = path.read_bytes()
    flipped = content[:100] + bytes([content[100] ^ 1]) + content[101:]
    path.write_bytes({"flip": flipped, "truncate": content[:-1], "empty": b""}[damage])
    assert _call(machine_code.load_loop(*_NAME)) == 1
    assert path.read_bytes() == content
    assert len(compiled) == 2


@pytest.mark.parametrize("change", ["get_host_cpu_name", "version"])
def test_another_processor_or_version_is_another_file(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    machine_code.load_loop(*_NAME)
    owner = machine_code if change == "version" else machine_code.llvm
    monkeypatch.setattr(owner, change, lambda *_: "another")
    machine_code.load_loop(*_NAME)
    assert len(compiled) == 2
    assert len([*machine_code.cache_directory().iterdir()]) == 2


def test_without_a_cache_a_loop_works(
    compiled: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    machine_code.cache_directory().parent.write_text("a file in place of the directory")
    assert _call(machine_code.load_loop(*_NAME)) == 1
    assert compiled == ["linear.combine"]
    assert "cannot be cached" in caplog.text


def test_a_loop_that_needs_numba_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from fusion_kernels.loops import linear

    def refuse(size: int) -> int:
        if size < 0:
            raise ValueError
        return size

    monkeypatch.setattr(linear, "refuse", refuse, raising=False)
    with pytest.raises(RuntimeError, match="the loop refuse calls functions outside of it"):
        machine_code.compile_code("linear", "refuse")
