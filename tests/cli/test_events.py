"""Programs that drive `fuse` read what it does from a file, line by line."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from fusion_core.cli.events import Events
from fusion_core.errors import DiskError, RecipeError
from fusion_core.plugins.manager import load_plugins
from fusion_core.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Outcome

    Fuse = Callable[..., Outcome]

pytestmark = pytest.mark.plugins


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_writes_events_from_start_to_end(fuse: Fuse, tmp_path: Path) -> None:
    file, out = tmp_path / "events.jsonl", tmp_path / "out"
    options = ["algorithm.steps=2", "algorithm.batch_size=4", "task_pool.limit=8"]
    flags = [word for option in options for word in ("--set", option)]
    run = ("run", "--algo", "adamerging", "--pool", "mini8", "--tasks", "shapes,latin", *flags)
    done = fuse(*run, "-o", out, "--events", file)
    assert done.code == 0
    assert "evaluate merged: 2 in " in done.err  # what people see stays
    events = read(file)
    names = [event["event"] for event in events]
    assert events[0] | {"time": 0} == {"event": "started", "time": 0, "schema": 1, "command": "run"}
    assert names[-2:] == ["report", "finished"]
    assert events[-2]["report"] == json.loads((out / "report.json").read_text())
    planned = events[names.index("planned")]
    assert planned["path"] == str(out)
    assert planned["recipe"]["algorithm"]["steps"] == 2
    logged = [event["metrics"].keys() for event in events if event["event"] == "metrics"]
    assert len(logged) == 2
    assert "entropy" in logged[0]
    starts = [event for event in events if event["event"] == "stage_started"]
    ends = [event for event in events if event["event"] == "stage_finished"]
    assert [start["stage"] for start in starts] == list(range(len(starts)))
    assert {end["stage"]: end["done"] for end in ends} == {
        start["stage"]: start["total"] for start in starts
    }
    (merged,) = (start for start in starts if start["label"] == "evaluate merged")
    assert (merged["total"], merged["unit"]) == (2, "")
    steps = [e for e in events if e["event"] == "stage_advanced" and e["stage"] == merged["stage"]]
    assert steps[0]["note"]
    times = [event["time"] for event in events]
    assert times == sorted(times)
    assert not any(isinstance(plugin, Events) for plugin in load_plugins().get_plugins())

    assert fuse("evaluate", out, "--events", file, "--json", "-q").code == 0
    more = read(file)[len(events) :]  # lines are added
    assert more[0]["command"] == "evaluate"
    assert [event["event"] for event in more[-2:]] == ["report", "finished"]
    assert more[-2]["report"]["tasks"] == events[-2]["report"]["tasks"]


def test_an_error_is_written_as_it_is_printed(fuse: Fuse, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    done = fuse("run", "--algo", "tise", "--pool", "mini8", "--events", file)
    assert done.code == 3
    started, failed = read(file)
    assert started["event"] == "started"
    del failed["time"]
    assert failed == {
        "event": "failed",
        "class": "UnknownComponentError",
        "message": "unknown algorithm 'tise'; did you mean ties or fisher?",
        "hint": failed["hint"],
    }
    assert failed["hint"] in done.err


@pytest.mark.parametrize(
    ("target", "error"), [("-", RecipeError), ("nowhere/events", DiskError), (".", DiskError)]
)
def test_a_file_that_cannot_be_written_is_an_error_before_any_work(
    fuse: Fuse, tmp_path: Path, target: str, error: type[DiskError]
) -> None:
    path = target if target == "-" else tmp_path / target
    done = fuse("run", "--algo", "ties", "--pool", "mini8", "--events", path)
    assert (done.code, done.out) == (error.exit_code, "")
    assert f"--events {path}: " in done.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_an_unwritable_event_file_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    shown: list[int] = []

    class Shown(Progress):
        def track(self, label: str, *, total: int, unit: str = "") -> Any:
            track = super().track(label, total=total, unit=unit)
            shown.append(total)
            return track

    with open("/dev/full", "wb", buffering=0) as full:
        events = Events(full)
        with events.record_progress(Shown()).track("merge", total=3) as advance:
            advance(3)
        assert caplog.messages == [
            "events are no longer written: [Errno 28] No space left on device"
        ]
        assert shown == [3]


def test_metrics_that_are_not_finite_are_text(tmp_path: Path) -> None:
    with open(tmp_path / "events", "wb", buffering=0) as file:
        Events(file).fusion_metrics_logged(1, {"loss": float("nan")})
    (line,) = read(tmp_path / "events")
    assert line["metrics"] == {"loss": "NaN"}
