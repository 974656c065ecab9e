"""Files of stores: other programs' stay unchanged, earlier versions migrate, damage is named."""

from __future__ import annotations

import os
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from fusion_core import Report
from fusion_core.errors import DiskError
from fusion_sweep import Store, Trial, sweep
from fusion_sweep.rows import SweepRecord
from fusion_sweep.runs.command import app

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TRIAL, SWEEP = "a" * 32, "b" * 32
REPORT = '{"schema": 2, "reference": {}, "tasks": {"x": {"accuracy": %s}}}'


def run_sql(path: Path, *statements: str, values: tuple[object, ...] = ()) -> None:
    with closing(sqlite3.connect(path)) as file:
        for statement in statements:
            file.execute(statement, values)
        file.commit()


def crash_after(path: Path, *statements: str) -> None:
    """Leave changes in a write-ahead log next to a file, like a program that was killed."""
    script = (
        "import os, sqlite3, sys\nfile = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "[file.execute(statement).fetchall() for statement in sys.argv[2:]]\nos._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script, str(path), *statements], check=True)


FOREIGN: dict[str, Callable[[Path], object]] = {
    "another table": lambda path: run_sql(path, "create table notes (text)"),
    "a log": lambda path: run_sql(path, "pragma journal_mode = wal", "create table notes (text)"),
    "a crash": lambda path: crash_after(
        path, "pragma journal_mode = wal", "create table notes (text)"
    ),
    "a table with the name of ours": lambda path: run_sql(
        path, "create table trials (id)", "pragma user_version = 1"
    ),
    "another id": lambda path: run_sql(path, "pragma application_id = 7", "create table t (a)"),
    "no table left": lambda path: run_sql(path, "create table t (a)", "drop table t"),
    "text": lambda path: path.write_text("not a database, by any means" * 100),
    "a header alone": lambda path: path.write_bytes(b"SQLite format 3\0"),
    "a pipe": os.mkfifo,
    "a directory": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_program_is_refused_and_keeps_its_bytes(
    tmp_path: Path, kind: str
) -> None:
    FOREIGN[kind](tmp_path / "foreign")

    def contents() -> dict[str, bytes]:
        return {p.name: p.read_bytes() if p.is_file() else b"" for p in tmp_path.iterdir()}

    before = contents()
    with pytest.raises(DiskError, match="foreign"):
        Store(tmp_path / "foreign")
    assert contents() == before


def make_store(path: Path) -> None:
    """Make a store of one sweep with one trial."""
    report = Report({"x": {"accuracy": 0.5}})
    recipe = {"algorithm": {"name": "ties"}}
    with Store(path) as store:
        store.save(Trial(TRIAL, recipe, {"on": "half"}, report, None, 1.0, 1.0, "2026-01-01"))
        about = {"objectives": ["average"], "on": "half", "over": {"algorithm.scale": [0.1]}}
        record = SweepRecord(SWEEP, "2026-01-01", about)
        store.add_trials(record, [Trial(TRIAL, {}, {}, point={"algorithm.scale": 0.1})])


def test_a_store_that_cannot_be_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    make_store(path)
    crash_after(path, "update sweeps set started = 'later'")  # in a log next to the file
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(os, "access", lambda *_: False)
    with Store(path, create=False) as store:
        assert [sweep.started for sweep in store.sweeps()] == ["later"]
        with pytest.raises(DiskError, match="cannot write"):
            store.remove(TRIAL)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def make_early(path: Path) -> None:
    """Turn a store into one of the first version, whose trials had other ids."""
    run_sql(
        path,
        "alter table trials drop column identity",
        "update trials set id = 'early' || id",
        "update members set trial = 'early' || trial",
        "pragma application_id = 0",
        "pragma user_version = 1",
    )


def test_an_early_store_is_read_and_its_trials_are_run_again(
    recipe: dict[str, Any], tmp_path: Path, log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "sweeps.sqlite"
    over = {"algorithm.scale": [0.1, 0.3]}
    sweep(recipe, over=over, store=path)
    make_early(path)
    with Store(path) as store:
        (early,) = store.sweeps()
        assert len(store.trials_of(early.id)) == 2
    log.write_text("")
    again = sweep(recipe, over=over, store=path)
    assert again.id == early.id
    assert len(log.read_text().split()) == 3  # the best once more
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"2 runs of this sweep in {path} are run again: an earlier version")
    sweep(recipe, over=over, store=path)
    assert len(caplog.records) == 1


def test_an_early_store_with_a_log_of_a_killed_program_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "sweeps.sqlite"
    make_store(path)
    make_early(path)
    with closing(sqlite3.connect(path)) as file:
        script = [line for line in file.iterdump() if "sqlite_master" not in line]
    path.unlink()
    version = "pragma user_version = 1"
    crash_after(path, "pragma journal_mode = wal", *script, version)
    with Store(path) as store:
        assert [sweep.id for sweep in store.sweeps()] == [SWEEP]


@pytest.mark.parametrize(
    ("statement", "value", "message"),
    [
        ("update trials set recipe = ?", "{", "recipe: cannot read it"),
        ("update trials set recipe = ?", "[" * 100_000, "recipe: cannot read it"),
        (
            "update trials set recipe = ?",
            '{"algorithm": [3]}',
            "recipe: the algorithm's name is missing",
        ),
        ("update trials set measured = ?", b"{}", "measured: expected text, got bytes"),
        (
            "update trials set report = ?",
            REPORT % '"0.5"',
            "expected a number for x accuracy, got '0.5'",
        ),
        (
            "update trials set report = ?",
            REPORT % "NaN",
            "expected a number for x accuracy, got nan",
        ),
        ("update trials set report = ?", REPORT % "null", "report: cannot read it"),
        ("update trials set report = ?", None, "expected either a report or an error"),
        ("update trials set finished = cast(? as text)", b"\xff", "finished: expected UTF-8"),
        ("update trials set seconds = ?", "long", "seconds: expected seconds, got str"),
        ("update members set point = ?", "[]", "point: expected an object, got list"),
        ("update members set seed = ?", "first", "seed: expected a whole number, got str"),
        ("update sweeps set about = ?", "{}", "about: the objectives are missing"),
    ],
)
def test_a_damaged_row_is_named_and_can_be_removed(
    tmp_path: Path, statement: str, value: object, message: str
) -> None:
    path = tmp_path / "sweeps.sqlite"
    make_store(path)
    run_sql(path, statement, values=(value,))
    flags = ["--store", str(path)]
    error = CliRunner().invoke(app, ["ls", SWEEP[:8], *flags]).exception
    assert isinstance(error, DiskError)
    assert error.message.startswith(f"the store {path} is damaged: ")
    assert message in error.message
    assert error.hint is not None
    remedy = shlex.split(error.hint.partition(": ")[2])
    assert remedy[:3] == ["fuse", "runs", "rm"]
    assert remedy[3] in error.message
    assert CliRunner().invoke(app, remedy[2:]).exception is None
    assert CliRunner().invoke(app, ["ls", *flags]).exception is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: run_sql(path, "alter table trials drop column cpu"),
            "its tables do not match",
        ),
        (lambda path: run_sql(path, "pragma user_version = 9"), "has schema 9"),
        (lambda path: os.truncate(path, 4096), "is damaged"),
        (lambda path: os.truncate(path, 50), "is truncated"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "sweeps.sqlite"
    make_store(path)
    damage(path)
    with pytest.raises(DiskError, match=message) as caught:
        Store(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_trial_that_was_removed_leaves_its_sweep_readable(tmp_path: Path) -> None:
    path = tmp_path / "sweeps.sqlite"
    make_store(path)
    with Store(path) as store:
        store.set_tested(SWEEP, TRIAL)
        store.remove(TRIAL)
        assert store.sweep(SWEEP).tested is None
