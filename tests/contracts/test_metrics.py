"""The metrics log survives the process that wrote it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from fusion_core.contracts.metrics_log import MetricsLog
from fusion_core.errors import DiskError

if TYPE_CHECKING:
    from pathlib import Path


def test_lines_are_written_at_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.add(0, {"loss": 2.0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0, "loss": 2.0}\n'
    log.add(1, {"loss": 1.5})
    assert (tmp_path / "metrics.jsonl").read_bytes() == log.as_bytes()


def test_steps_logged_again_after_a_resume_appear_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsLog(path)
    for step in range(5):
        first.add(step, {"loss": float(step)})
    again = MetricsLog(path)
    for step in range(3, 7):
        again.add(step, {"loss": float(step)})
    lines = [json.loads(line) for line in again.as_bytes().splitlines()]
    assert lines == [{"step": step, "loss": float(step)} for step in range(7)]


def test_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": 2.0}\n{"step": 1, "lo')
    log = MetricsLog(path)
    log.add(1, {"loss": 1.0})
    assert path.read_text() == '{"step": 0, "loss": 2.0}\n{"step": 1, "loss": 1.0}\n'


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe\n",
        b"{}\n",
        b"[1]\n",
        b"\0\0\0\n",
        b"[" * 100_000 + b"\n",
        b'{"step": "1", "loss": 1.0}\n',
        b'{"step": [1], "loss": 1.0}\n',
        b'{"step": 1e999, "loss": 1.0}\n',
        b'{"step": 1, "loss": {}}\n',
    ],
    ids=lambda damage: damage[:30].decode("ascii", "replace"),
)
def test_lines_after_a_damaged_line_are_dropped(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0, "loss": 2.0}\n' + damage + b'{"step": 2, "loss": 1.0}\n')
    assert list(MetricsLog(path).steps) == [0]
    assert path.read_text() == '{"step": 0, "loss": 2.0}\n'


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "metrics.jsonl"
    victim.write_text("precious")
    path.symlink_to(victim)
    with pytest.raises(DiskError, match="not a regular file"):
        MetricsLog(path).add(0, {"loss": 1.0})
    assert victim.read_text() == "precious"


def test_a_disk_error_names_the_path(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "metrics.jsonl"
    with pytest.raises(DiskError, match="gone"):
        MetricsLog(path).add(0, {"loss": 1.0})


def test_without_a_file_the_log_is_in_memory() -> None:
    log = MetricsLog()
    log.add(3, {"loss": 1.0})
    assert log.as_bytes() == b'{"step": 3, "loss": 1.0}\n'
