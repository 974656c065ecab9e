"""A store's file: another program's is left alone, an earlier one is taken up, damage is named."""

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
from fusion_sweep.rows import Swept
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
    """Leave changes in a log next to a file, as a program that is killed does."""
    script = (
        "import os, sqlite3, sys\nfile = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "[file.execute(each).fetchall() for each in sys.argv[2:]]\nos._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script, str(path), *statements], check=True)


FOREIGN: dict[str, Callable[[Path], object]] = {
    "another table": lambda path: run_sql(path, "create table notes (text)"),
    "a log": lambda path: run_sql(path, "pragma journal_mode = wal", "create table notes (text)"),
    "a crash": lambda path: crash_after(
        path, "pragma journal_mode = wal", "create table notes (text)"
    ),
    "a table called like ours": lambda path: run_sql(
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
        store.keep(Trial(TRIAL, recipe, {"on": "half"}, report, None, 1.0, 1.0, "2026-01-01"))
        about = {"objectives": ["average"], "on": "half", "over": {"algorithm.scale": [0.1]}}
        store.begin(Swept(SWEEP, "2026-01-01", about))
        store.add(SWEEP, [Trial(TRIAL, {}, {}, point={"algorithm.scale": 0.1})])


def make_early(path: Path) -> None:
    """Make of a store what the first version left, whose trials had other names."""
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
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"2 runs of this sweep in {path} are run again: an earlier version")
    sweep(recipe, over=over, store=path)
    assert len(caplog.records) == 1


def test_an_early_store_whose_program_was_killed_is_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "sweeps.sqlite"
    make_store(path)
    make_early(path)
    with closing(sqlite3.connect(path)) as file:
        script = [line for line in file.iterdump() if "sqlite_master" not in line]
    path.unlink()
    version = "pragma user_version = 1"
    crash_after(path, "pragma journal_mode = wal", *script, version)
    with Store(path) as store:
        assert [each.id for each in store.sweeps()] == [SWEEP]


@pytest.mark.parametrize(
    ("statement", "value", "said"),
    [
        ("update trials set recipe = ?", "{", "recipe: it cannot be read"),
        ("update trials set recipe = ?", "[" * 100_000, "recipe: it cannot be read"),
        ("update trials set recipe = ?", '{"algorithm": [3]}', "recipe: it names no algorithm"),
        ("update trials set measured = ?", b"{}", "measured: expected text, got bytes"),
        ("update trials set report = ?", REPORT % '"0.5"', "x accuracy is not a number: '0.5'"),
        ("update trials set report = ?", REPORT % "NaN", "x accuracy is not a number: nan"),
        ("update trials set report = ?", REPORT % "null", "report: it cannot be read"),
        ("update trials set report = ?", None, "expected either a report or an error"),
        ("update trials set finished = cast(? as text)", b"\xff", "finished: it is not UTF-8"),
        ("update trials set seconds = ?", "long", "seconds: expected seconds, got str"),
        ("update members set point = ?", "[]", "point: expected an object, got list"),
        ("update members set seed = ?", "first", "seed: expected a whole number, got str"),
        ("update sweeps set about = ?", "{}", "about: it names no objectives"),
    ],
)
def test_a_damaged_row_is_named_and_can_be_removed(
    tmp_path: Path, statement: str, value: object, said: str
) -> None:
    path = tmp_path / "sweeps.sqlite"
    make_store(path)
    run_sql(path, statement, values=(value,))
    flags = ["--store", str(path)]
    error = CliRunner().invoke(app, ["ls", SWEEP[:8], *flags]).exception
    assert isinstance(error, DiskError)
    assert error.message.startswith(f"the store {path} is damaged: ")
    assert said in error.message
    assert error.hint is not None
    remedy = shlex.split(error.hint.partition(": ")[2])
    assert remedy[:3] == ["fuse", "runs", "rm"]
    assert remedy[3] in error.message
    assert CliRunner().invoke(app, remedy[2:]).exception is None
    assert CliRunner().invoke(app, ["ls", *flags]).exception is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: run_sql(path, "alter table trials drop column cpu"), "its tables are not"),
        (lambda path: run_sql(path, "pragma user_version = 9"), "is of schema 9"),
        (lambda path: os.truncate(path, 4096), "is damaged"),
        (lambda path: os.truncate(path, 50), "was cut short"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(
    tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    path = tmp_path / "sweeps.sqlite"
    make_store(path)
    damage(path)
    with pytest.raises(DiskError, match=said) as caught:
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
