"""Metrics of runs reach the files of the real TensorBoard and, offline, of the real W&B."""

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
    """Logs like an adaptive method on top of a nested recipe: steps start again at 0."""

    config_class = SearchingConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        for step in (0, 1, 2, 0):
            context.log(step, {"entropy": 1.0 / (1 + step)})
        if self.config.fails:
            raise FusionError("it fails")
        shares = (1 / len(pool.experts),) * len(pool.experts)
        return context.merge(pool, Linear(shares))


def run(output: Path | None, *, fails: bool = False) -> RunResult:
    algorithm = Searching(SearchingConfig(fails=fails))
    tasks = TinyTasks()
    for name in tasks.names:
        tasks[name].evaluate = lambda _: {"accuracy": 0.75}  # type: ignore[method-assign]
    return run_fusion(algorithm=algorithm, model_pool=tiny_pool(), task_pool=tasks, output=output)


def fail(output: Path | None) -> None:
    with pytest.raises(FusionError, match="it fails"):
        run(output, fails=True)
    gc.collect()  # trackers learn of a failure when the run is garbage-collected


def expected_scores(result: RunResult) -> dict[str, float]:
    assert result.report is not None
    scores = {
        f"tasks/{name}/accuracy": metrics["accuracy"]
        for name, metrics in result.report.tasks.items()
    }
    scores["average"] = sum(scores.values()) / len(scores)
    assert result.report.normalised_average is not None
    return {**scores, "normalised": result.report.normalised_average}


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
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
    points: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                points.setdefault(value.tag, []).append((event.step, value.simple_value))
    return points


def test_tensorboard_logs_metrics_and_scores(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FUSION_TRACKERS", "tensorboard:logs")
    result = run(directory / "merged")
    assert caplog.text == ""
    drawn = curves(directory / "logs" / "merged")
    steps = [(step, pytest.approx(1 / (1 + step))) for step in (0, 1, 2, 0)]
    assert drawn.pop("entropy") == steps
    assert drawn == {
        name: [(0, pytest.approx(value))] for name, value in expected_scores(result).items()
    }
    texts = [
        v.tensor.string_val for e in events(directory / "logs" / "merged") for v in e.summary.value
    ]
    assert any(b"seed: 0" in text for strings in texts for text in strings)


def test_runs_with_the_same_name_get_separate_folders(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSION_TRACKERS", "tensorboard")
    fail(None)
    run(None)
    run(None)
    folders = sorted((directory / "runs").iterdir())
    assert [folder.name for folder in folders] == ["Searching", "Searching-2", "Searching-3"]
    assert [len(curves(folder)) for folder in folders] == [1, 6, 6]


# --- Weights & Biases -----------------------------------------------------------------------------


def records(data: bytes) -> Iterator[Any]:
    """Yield the records of a run's file: blocks of parts with checksum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    offset, whole = 7, b""
    while offset < len(data):
        left = 2**15 - offset % 2**15
        if left < 7:
            offset += left
            continue
        _, length, kind = struct.unpack("<IHB", data[offset : offset + 7])
        whole += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in {1, 4}:  # a whole record, or its last part
            yield Record.FromString(whole)
            whole = b""


def read_wandb(directory: Path) -> dict[str, Any]:
    """Return the content of a run's file, without the times that W&B adds to the history.

    The file is complete when W&B's own process has ended.
    """
    import wandb

    wandb.teardown()
    (file,) = directory.glob("wandb/offline-run-*/*.wandb")
    content: dict[str, Any] = {"history": [], "summary": {}}
    for record in records(file.read_bytes()):
        match record.WhichOneof("record_type"):
            case "run":
                content["name"], content["project"] = record.run.display_name, record.run.project
                content["config"] = {
                    e.key: json.loads(e.value_json) for e in record.run.config.update
                }
            case "history":
                row = {e.nested_key[0]: json.loads(e.value_json) for e in record.history.item}
                content["history"].append({k: v for k, v in row.items() if not k.startswith("_")})
            case "summary":
                for item in record.summary.update:
                    key = item.key or item.nested_key[0]
                    content["summary"][key] = json.loads(item.value_json)
            case "exit":
                content["exit"] = record.exit.exit_code
    return content


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use W&B without a network; end its process afterwards, since that remembers the folder."""
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    wandb.teardown()


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("fails", [False, True])
def test_wandb_logs_metrics_scores_and_recipe(
    *,
    fails: bool,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FUSION_TRACKERS", "wandb:merging")
    if fails:
        fail(directory / "merged")
        expected = {}
    else:
        expected = expected_scores(run(directory / "merged"))
    content = read_wandb(directory)
    assert (content["name"], content["project"], content["exit"]) == (
        "merged",
        "merging",
        int(fails),
    )
    assert content["config"]["seed"] == 0
    assert content["history"] == [{"step": n, "entropy": 1 / (1 + n)} for n in (0, 1, 2, 0)]
    logged = {"step", "entropy"}
    summary = {n: v for n, v in content["summary"].items() if n not in logged and n[0] != "_"}
    assert summary == expected
    assert capsys.readouterr().out == ""


# --- failures -------------------------------------------------------------------------------------


def test_missing_trackers_are_named_and_the_run_continues(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, directory: Path
) -> None:
    monkeypatch.setenv("FUSION_TRACKERS", "tensorbord, wandb:x,tensorboard")
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run(None).report is not None
    unknown, missing = (record.getMessage() for record in caplog.records)
    assert "unknown tracker 'tensorbord'\nTrackers: tensorboard, wandb." in unknown
    assert missing.startswith("FUSION_TRACKERS=wandb:x")
    assert missing.endswith('Install it: pip install "fusion-trackers[wandb]"')
    assert (directory / "runs" / "Searching").is_dir()


def test_a_tracker_that_fails_later_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setenv("FUSION_TRACKERS", "tensorboard")
    monkeypatch.setattr("tensorboardX.SummaryWriter.add_scalar", refuse)
    run(None)
    (warning,) = (record.getMessage() for record in caplog.records)
    assert warning == "TensorBoard no longer logs this run: no space left"


def test_nothing_is_written_by_default(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSION_TRACKERS", raising=False)
    run(None)
    assert list(directory.iterdir()) == []
