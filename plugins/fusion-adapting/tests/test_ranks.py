"""What several processes exchange, and what of it is left."""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from torch import distributed

from fusion_adapting import Ranks, joined_ranks
from fusion_adapting._ranks import Meeting
from fusion_core.errors import WorkerError


def test_tasks_are_dealt_out_in_turn() -> None:
    assert Ranks(1, 3).own(["a", "b", "c", "d", "e"]) == ["b", "e"]
    assert Ranks().own(["a", "b"]) == ["a", "b"]


def test_alone_there_is_nothing_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = joined_ranks.__wrapped__()
    assert ranks == Ranks()
    assert ranks.gathered({"a": 1}) == [{"a": 1}]
    values = torch.rand(3)
    assert torch.equal(ranks.summed(values), values)


def test_several_processes_without_a_place_to_meet_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(WorkerError, match=r"cannot join the other ranks: .*RANK.*torchrun"):
        joined_ranks.__wrapped__()


def test_what_was_exchanged_is_cleared_away() -> None:
    store = distributed.HashStore()
    turns = 5
    with ThreadPoolExecutor(3) as threads:
        meetings = [Ranks(rank, 3, Meeting(store)) for rank in range(3)]

        def several(ranks: Ranks) -> list[list[str]]:
            return [ranks.gathered(f"{ranks.rank} at {turn}") for turn in range(turns)]

        brought = list(threads.map(several, meetings))
    assert brought == [[[f"{rank} at {turn}" for rank in range(3)] for turn in range(turns)]] * 3
    assert store.num_keys() == 0


def test_a_rank_that_brings_nothing_is_named() -> None:
    store = distributed.HashStore()
    store.set_timeout(timedelta(seconds=0.1))
    with pytest.raises(WorkerError, match="rank 1 brought nothing to the others"):
        Ranks(0, 2, Meeting(store)).gathered("mine")


def test_ranks_that_are_started_again_read_nothing_that_dead_ones_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = distributed.HashStore()
    monkeypatch.setenv("WORLD_SIZE", "2")
    place = importlib.import_module("torch.distributed.rendezvous")
    monkeypatch.setattr(place, "rendezvous", lambda *_, **__: iter([(store, 0, 2)]))
    found = []
    for start in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", start)
        ranks = joined_ranks.__wrapped__()
        assert ranks.meeting is not None
        ranks.meeting.store.set_timeout(timedelta(seconds=0.1))
        found.append(ranks)
    found[0].meeting.store.set("0/1", "left by a dead rank")
    with pytest.raises(WorkerError, match="rank 1 brought nothing"):
        found[1].gathered("mine")
