"""The exchange of items between processes through a store."""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from torch import distributed

from fusion_adapting import Ranks, join_ranks
from fusion_adapting._ranks import Exchange
from fusion_core.errors import WorkerError


def test_tasks_are_shared_round_robin() -> None:
    assert Ranks(1, 3).share(["a", "b", "c", "d", "e"]) == ["b", "e"]
    assert Ranks().share(["a", "b"]) == ["a", "b"]


def test_a_single_process_joins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = join_ranks.__wrapped__()
    assert ranks == Ranks()
    assert ranks.gather({"a": 1}) == [{"a": 1}]
    values = torch.rand(3)
    assert torch.equal(ranks.sum(values), values)


def test_several_processes_without_a_rendezvous_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(WorkerError, match=r"cannot join the other ranks: .*RANK.*torchrun"):
        join_ranks.__wrapped__()


def test_exchanged_items_are_deleted_from_the_store() -> None:
    store = distributed.HashStore()
    turns = 5
    with ThreadPoolExecutor(3) as threads:
        all_ranks = [Ranks(rank, 3, Exchange(store)) for rank in range(3)]

        def gather_turns(ranks: Ranks) -> list[list[str]]:
            return [ranks.gather(f"{ranks.rank} at {turn}") for turn in range(turns)]

        received = list(threads.map(gather_turns, all_ranks))
    assert received == [[[f"{rank} at {turn}" for rank in range(3)] for turn in range(turns)]] * 3
    assert store.num_keys() == 0


def test_a_rank_that_sends_nothing_is_named() -> None:
    store = distributed.HashStore()
    store.set_timeout(timedelta(seconds=0.1))
    with pytest.raises(WorkerError, match="rank 1 sent nothing to the others"):
        Ranks(0, 2, Exchange(store)).gather("mine")


def test_restarted_ranks_ignore_the_items_of_dead_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = distributed.HashStore()
    monkeypatch.setenv("WORLD_SIZE", "2")
    module = importlib.import_module("torch.distributed.rendezvous")
    monkeypatch.setattr(module, "rendezvous", lambda *_, **__: iter([(store, 0, 2)]))
    restarts = []
    for start in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", start)
        ranks = join_ranks.__wrapped__()
        assert ranks.exchange is not None
        ranks.exchange.store.set_timeout(timedelta(seconds=0.1))
        restarts.append(ranks)
    restarts[0].exchange.store.set("0/1", "left by a dead rank")
    with pytest.raises(WorkerError, match="rank 1 sent nothing"):
        restarts[1].gather("mine")
