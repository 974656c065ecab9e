"""What runs measure reaches the real TensorBoard's files and the real W&B's, offline."""

from __future__ import annotations

import gc
import json
import struct
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from fusion_core import Algorithm, ComponentConfig, run_fusion
from fusion_core.errors import FusionError
from fusion_core.weights import Linear
from fusion_testing import TinyTasks, tiny_pool
from fusion_trackers import plugin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fusion_core import ModelPool, RunContext, RunResult, WeightSource


class SearchingConfig(ComponentConfig):
    fails: bool = False


class Searching(Algorithm[SearchingConfig]):
    """Logs as an adaptive method does that goes on from a nested recipe: steps begin again."""

    config_class = SearchingConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        for step in (0, 1, 2, 0):
            context.log(step, {"entropy": 1.0 / (1 + step)})
        if self.config.fails:
            raise FusionError("it fails")
        shares = (1 / len(pool.experts),) * len(pool.experts)
        return context.merged(pool, Linear(shares))


def run(output: Path | None, *, fails: bool = False) -> RunResult:
    algorithm = Searching(SearchingConfig(fails=fails))
    tasks = TinyTasks()
    for name in tasks.names:
        tasks[name].evaluate = lambda _: {"accuracy": 0.75}  # type: ignore[method-assign]
    return run_fusion(algorithm=algorithm, model_pool=tiny_pool(), task_pool=tasks, output=output)


def fail(output: Path | None) -> None:
    with pytest.raises(FusionError, match="it fails"):
        run(output, fails=True)
    gc.collect()  # nobody holds the run any more, which is how it is told


def figures(result: RunResult) -> dict[str, float]:
    assert result.report is not None
    found = {f"tasks/{n}/accuracy": each["accuracy"] for n, each in result.report.tasks.items()}
    found["average"] = sum(found.values()) / len(found)
    assert result.report.normalised_average is not None
    return {**found, "normalised": result.report.normalised_average}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert plugin._OPEN == {}  # noqa: SLF001 - nothing is left open


# --- TensorBoard ----------------------------------------------------------------------------------


def events(folder: Path) -> Iterator[Any]:
    """Yield the events of a folder's file: length, checksum, content, checksum, and so on."""
    (file,) = folder.iterdir()
    data = file.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_draws_metrics_and_figures(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FUSION_TRACKERS", "tensorboard:logs")
    result = run(place / "merged")
    assert caplog.text == ""
    drawn = curves(place / "logs" / "merged")
    steps = [(step, pytest.approx(1 / (1 + step))) for step in (0, 1, 2, 0)]
    assert drawn.pop("entropy") == steps
    assert drawn == {name: [(0, pytest.approx(each))] for name, each in figures(result).items()}
    texts = [
        v.tensor.string_val for e in events(place / "logs" / "merged") for v in e.summary.value
    ]
    assert any(b"seed: 0" in text for each in texts for text in each)


def test_runs_of_one_name_have_folders_of_their_own(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSION_TRACKERS", "tensorboard")
    fail(None)
    run(None)
    run(None)
    folders = sorted((place / "runs").iterdir())
    assert [folder.name for folder in folders] == ["Searching", "Searching-2", "Searching-3"]
    assert [len(curves(folder)) for folder in folders] == [1, 6, 6]


# --- Weights & Biases -----------------------------------------------------------------------------


def records(data: bytes) -> Iterator[Any]:
    """Yield the records of a run's file: blocks of parts with checksum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    place, whole = 7, b""
    while place < len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in {1, 4}:  # the whole, or its last part
            yield Record.FromString(whole)
            whole = b""


def tracked(place: Path) -> dict[str, Any]:
    """Return what a run's file says; history without the times that W&B adds.

    That is complete when W&B's own process has ended.
    """
    import wandb

    wandb.teardown()
    (file,) = place.glob("wandb/offline-run-*/*.wandb")
    found: dict[str, Any] = {"history": [], "summary": {}}
    for record in records(file.read_bytes()):
        match record.WhichOneof("record_type"):
            case "run":
                found["name"], found["project"] = record.run.display_name, record.run.project
                found["config"] = {
                    e.key: json.loads(e.value_json) for e in record.run.config.update
                }
            case "history":
                row = {e.nested_key[0]: json.loads(e.value_json) for e in record.history.item}
                found["history"].append({k: v for k, v in row.items() if not k.startswith("_")})
            case "summary":
                for each in record.summary.update:
                    found["summary"][each.key or each.nested_key[0]] = json.loads(each.value_json)
            case "exit":
                found["exit"] = record.exit.exit_code
    return found


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B without a network, its process ended afterwards, which remembers the first folder."""
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    wandb.teardown()


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("fails", [False, True])
def test_wandb_keeps_metrics_figures_and_recipe(
    *, fails: bool, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FUSION_TRACKERS", "wandb:merging")
    if fails:
        fail(place / "merged")
        wanted = {}
    else:
        wanted = figures(run(place / "merged"))
    found = tracked(place)
    assert (found["name"], found["project"], found["exit"]) == ("merged", "merging", int(fails))
    assert found["config"]["seed"] == 0
    assert found["history"] == [{"step": n, "entropy": 1 / (1 + n)} for n in (0, 1, 2, 0)]
    logged = {"step", "entropy"}
    summary = {n: v for n, v in found["summary"].items() if n not in logged and n[0] != "_"}
    assert summary == wanted
    assert capsys.readouterr().out == ""


# --- what goes wrong ------------------------------------------------------------------------------


def test_what_is_not_there_is_named_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: Path
) -> None:
    monkeypatch.setenv("FUSION_TRACKERS", "tensorbord, wandb:x,tensorboard")
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run(None).report is not None
    unknown, missing = (record.getMessage() for record in caplog.records)
    assert "there is no tracker 'tensorbord'\nThere are: tensorboard, wandb." in unknown
    assert missing.startswith("FUSION_TRACKERS=wandb:x")
    assert missing.endswith('Install it: pip install "fusion-trackers[wandb]"')
    assert (place / "runs" / "Searching").is_dir()


def test_one_that_fails_later_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setenv("FUSION_TRACKERS", "tensorboard")
    monkeypatch.setattr("tensorboardX.SummaryWriter.add_scalar", refuse)
    run(None)
    (said,) = (record.getMessage() for record in caplog.records)
    assert said == "TensorBoard tracks this run no longer: no space left"


def test_nothing_is_written_unasked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSION_TRACKERS", raising=False)
    run(None)
    assert list(place.iterdir()) == []
