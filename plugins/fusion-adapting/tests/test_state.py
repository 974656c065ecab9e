"""State of long work in two generations, of which one is always intact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from fusion_adapting import StateStore

if TYPE_CHECKING:
    from pathlib import Path

WORK = {"seed": 1, "experts": ["a"]}


def test_the_older_generation_is_recalled_if_the_newer_is_damaged(tmp_path: Path) -> None:
    store = StateStore(tmp_path, "work", WORK)
    for step in (10, 20, 30):
        store.save(step, {"value": step / 3})
    assert store.recall() == {"identity": WORK, "step": 30, "value": 10.0}
    newest = next(path for path in tmp_path.iterdir() if b'"step": 30' in path.read_bytes())
    whole = newest.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", whole.replace(b"30", b"31")):
        newest.write_bytes(damaged)
        assert store.recall() == {"identity": WORK, "step": 20, "value": 20 / 3}
    store.save(40, {"value": 0.0})
    assert b'"step": 40' in newest.read_bytes(), "the damaged one is replaced, not the intact one"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_keep_every_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randn(3, 5, dtype=dtype).T  # strided
    store = StateStore(tmp_path, "work", WORK)
    store.save(1, {"values": values, "pair": (7, values[0])})
    state = store.recall()
    assert state is not None
    assert state["values"].dtype is dtype
    assert torch.equal(state["values"], values)
    assert state["pair"][0] == 7
    assert torch.equal(state["pair"][1], values[0])


def test_a_state_of_other_work_is_not_recalled(tmp_path: Path) -> None:
    StateStore(tmp_path, "work", WORK).save(10, {})
    assert StateStore(tmp_path, "work", {**WORK, "seed": 2}).recall() is None


def test_nothing_is_saved_without_a_directory() -> None:
    store = StateStore(None, "work", WORK)
    store.save(1, {})
    assert store.recall() is None
