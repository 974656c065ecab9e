"""Several processes share the tasks out and find the same coefficients."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import distributed

from fusion_adamerging.adamerging import AdaMerging
from fusion_adamerging.config import AdaMergingConfig
from fusion_adamerging.ranks import Meeting, Ranks, joined_ranks
from fusion_core import RunContext
from fusion_core.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusion_core import CheckpointsPool

HERE = Path(__file__).parent
SCRIPT = """
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, sys.argv[2])
from conftest import RandomTasks, TurnedTask, pool_of
from fusion_adamerging.adamerging import AdaMerging
from fusion_adamerging.config import AdaMergingConfig
from fusion_core import RunContext

torch.set_num_threads(1)
for granularity in ("layer", "task"):
    context = RunContext(tasks=RandomTasks(("a", "b"), TurnedTask))
    config = AdaMergingConfig(steps=8, lr=0.05, granularity=granularity)
    AdaMerging(config).run(pool_of("mlp", experts=3), context)
    path = Path(sys.argv[1], f"{granularity}-{os.environ.get('RANK', 0)}.json")
    path.write_bytes(context.side_files["coefficients.json"])
"""
Found = dict[str, dict[str, dict[str, float]]]


def _found(folder: Path, world: int) -> list[Found]:
    """Search in `world` processes; what each of them found, by granularity."""
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={world}", "--rdzv-backend=c10d"]
    arguments = ["--rdzv-endpoint=127.0.0.1:0", str(script), str(folder), str(HERE)]
    command = [sys.executable, *launcher, *arguments]
    done = subprocess.run(command, check=False, timeout=240, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [
        {
            each: json.loads((folder / f"{each}-{rank}.json").read_text())["coefficients"]
            for each in ("layer", "task")
        }
        for rank in range(world)
    ]


def _flat(found: dict[str, dict[str, float]]) -> torch.Tensor:
    return torch.tensor([value for row in found.values() for value in row.values()])


def _alone(pool: CheckpointsPool, tasks: Any, granularity: str) -> dict[str, dict[str, float]]:
    context = RunContext(tasks=tasks)
    config = AdaMergingConfig(steps=8, lr=0.05, granularity=granularity)
    AdaMerging(config).run(pool, context)
    found: dict[str, dict[str, float]] = json.loads(context.side_files["coefficients.json"])[
        "coefficients"
    ]
    return found


def test_several_processes_find_what_one_finds(
    tmp_path: Path, make_pool: Callable[..., CheckpointsPool], turned_tasks: Any
) -> None:
    pool, tasks = make_pool("mlp", experts=3), type(turned_tasks)(("a", "b"), turned_tasks.kind)
    alone = {each: _alone(pool, tasks, each) for each in ("layer", "task")}
    both = _found(tmp_path / "two", 2)
    assert both[0] == both[1], "every rank ends with the same coefficients"
    assert _found(tmp_path / "again", 2) == both, "and again the same bits"
    idle = _found(tmp_path / "three", 3)  # more processes than tasks
    assert all(each == idle[0] for each in idle)
    for granularity, found in alone.items():
        for others in (both[0], idle[0]):
            torch.testing.assert_close(
                _flat(others[granularity]), _flat(found), rtol=1e-6, atol=1e-8
            )
        assert (_flat(found) - 0.2).abs().max() > 0.05


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
