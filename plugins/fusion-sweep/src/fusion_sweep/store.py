"""The store: one SQLite file of trials and of the sweeps that they are part of.

Several processes may use it at once. A trial is the work of the one that holds its claim, a lock
that the kernel frees however its holder dies; nothing in the file says that a trial is running, so
nothing has to be mended after a crash.
"""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fusion_core import Report
from fusion_core.errors import DiskError, OutputError, RecipeError
from fusion_sweep.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_SCHEMA = 1
_TABLES = """
create table trials (
    id text primary key, recipe text not null, measured text not null, report text, error text,
    seconds real not null, cpu real not null, finished text not null
) without rowid;
create table sweeps (id text primary key, started text not null, about text not null, tested text);
create table members (
    sweep text not null, point text not null, seed integer not null, trial text not null,
    primary key (sweep, point, seed)
) without rowid;
create index members_by_trial on members (trial);
"""
_FIELDS = "t.id, t.recipe, t.measured, t.report, t.error, t.seconds, t.cpu, t.finished"
_PATIENCE = 60.0  # seconds that another process may write


@dataclass(frozen=True)
class Swept:
    """A sweep as it was asked for."""

    id: str
    started: str
    #: objectives, axes, seeds, and what options are chosen on
    about: Mapping[str, Any]
    #: the trial that measured the best one on examples that chose nothing
    tested: str | None = None


class Store:
    """A file of trials; a context manager, which closes it.

    Raises `DiskError` for a file that cannot be opened, or is not a store.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise DiskError(f"the store {self.path} cannot be opened: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _prepare(self) -> None:
        self._file.execute("pragma journal_mode = wal")
        self._file.execute("pragma synchronous = normal")  # a crash of the machine may cost a run
        with self._writing():
            (found,) = self._file.execute("pragma user_version").fetchone()
            if found not in {0, _SCHEMA}:
                raise sqlite3.DatabaseError(f"it is of schema {found}, and {_SCHEMA} is known here")
            if not found:
                for statement in _TABLES.split(";"):
                    self._file.execute(statement)
                self._file.execute(f"pragma user_version = {_SCHEMA}")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Write all of it or nothing, while no other process writes; raises `DiskError`."""
        try:
            self._file.execute("begin immediate")
            with self._file:
                yield
        except sqlite3.Error as error:
            raise DiskError(f"the store {self.path} cannot be written: {error}") from error

    @contextmanager
    def claim(self, trial: Trial) -> Iterator[bool]:
        """Hold a trial as this process's own work; yields whether that is so."""
        from fusion_core import locked  # heavy: whoever only looks does without

        place = self.path.with_name(f"{self.path.name}.claims")
        place.mkdir(exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(place / trial.id))
                is_ours = True
            except OutputError:
                is_ours = False
            yield is_ours

    def keep(self, trial: Trial) -> None:
        """Keep what became of a trial."""
        report = None if trial.report is None else _dumped(trial.report.as_json())
        row = (trial.id, _dumped(trial.recipe), _dumped(trial.measured), report, trial.error)
        with self._writing():
            self._file.execute(
                "insert or replace into trials values (?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, trial.seconds, trial.cpu, trial.finished),
            )

    def recall(self, name: str) -> Trial | None:
        """Return a trial that was measured before."""
        found = self._file.execute(
            f"select {_FIELDS}, '{{}}', 0 from trials t where id = ? and report is not null",  # noqa: S608
            (name,),
        ).fetchone()
        return found and _trial(found)

    def begin(self, sweep: Swept) -> None:
        """Add a sweep, unless it is there."""
        with self._writing():
            self._file.execute(
                "insert or ignore into sweeps values (?, ?, ?, null)",
                (sweep.id, sweep.started, _dumped(sweep.about)),
            )

    def add(self, sweep: str, trials: Sequence[Trial]) -> None:
        """Make trials part of a sweep, each with its point and seed."""
        rows = [(sweep, _dumped(each.point), each.seed, each.id) for each in trials]
        with self._writing():
            self._file.executemany("insert or replace into members values (?, ?, ?, ?)", rows)

    def set_tested(self, sweep: str, trial: str) -> None:
        """Keep which trial measured a sweep's best one on examples that chose nothing."""
        with self._writing():
            self._file.execute("update sweeps set tested = ? where id = ?", (trial, sweep))

    def sweeps(self) -> list[Swept]:
        """Return all sweeps, the newest last."""
        rows = self._file.execute("select id, started, about, tested from sweeps order by started")
        return [Swept(name, started, json.loads(about), t) for name, started, about, t in rows]

    def counts(self, sweep: str) -> tuple[int, int, int]:
        """Return how many trials a sweep has that are finished, that failed, and in all."""
        row: tuple[int, int, int] = self._file.execute(
            "select count(t.report), count(t.error), count(*) from members m "
            "left join trials t on t.id = m.trial where m.sweep = ?",
            (sweep,),
        ).fetchone()
        return row

    def trials_of(self, sweep: str) -> list[Trial]:
        """Return what is finished of a sweep, or failed, with points and seeds."""
        rows = self._file.execute(
            f"select {_FIELDS}, m.point, m.seed from members m "  # noqa: S608
            "join trials t on t.id = m.trial where m.sweep = ?",
            (sweep,),
        )
        return [_trial(row) for row in rows]

    def trial(self, name: str) -> Trial:
        """Return the trial whose name begins so; raises `RecipeError` for none, or several."""
        (found,) = self._file.execute(
            f"select {_FIELDS}, '{{}}', 0 from trials t where id = ?",  # noqa: S608
            (self._whole("trials", name),),
        )
        return _trial(found)

    def sweep(self, name: str) -> Swept:
        """Return the sweep whose name begins so; raises `RecipeError` for none, or several."""
        whole = self._whole("sweeps", name)
        return next(each for each in self.sweeps() if each.id == whole)

    def is_sweep(self, name: str) -> bool:
        """Tell whether a sweep's name begins so; raises `RecipeError` for several."""
        return bool(self._beginning("sweeps", name)) and bool(self._whole("sweeps", name))

    def remove(self, name: str) -> int:
        """Remove a trial, or a sweep with the trials that no other has; returns how many."""
        if not self.is_sweep(name):
            whole = self._whole("trials", name)
            with self._writing():
                self._file.execute("delete from members where trial = ?", (whole,))
                return self._file.execute("delete from trials where id = ?", (whole,)).rowcount
        sweep = self.sweep(name)
        with self._writing():
            own = "select trial from members where sweep = ? union select ?"
            others = (
                "select trial from members where sweep <> ? "
                "union select tested from sweeps where id <> ? and tested is not null"
            )
            count = self._file.execute(
                f"delete from trials where id in ({own}) and id not in ({others})",  # noqa: S608
                (sweep.id, sweep.tested, sweep.id, sweep.id),
            ).rowcount
            self._file.execute("delete from members where sweep = ?", (sweep.id,))
            self._file.execute("delete from sweeps where id = ?", (sweep.id,))
        return count

    def _beginning(self, table: str, name: str) -> list[str]:
        rows = self._file.execute(
            f"select id from {table} where substr(id, 1, ?) = ? limit 2",  # noqa: S608
            (len(name), name),
        )
        return [each for (each,) in rows]

    def _whole(self, table: str, name: str) -> str:
        found = self._beginning(table, name)
        if len(found) == 1:
            return found[0]
        many = "more than one name begins so" if found else "nothing is called so"
        raise RecipeError(
            f"{name!r}: {many} in {self.path}", hint="See: fuse runs ls, and fuse runs ls SWEEP"
        )


def default_path() -> Path:
    """Return where trials are kept: under `XDG_DATA_HOME`, or `~/.local/share`."""
    root = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(root).expanduser() / "fusion-core" / "sweeps.sqlite"


def _dumped(value: Any) -> str:  # noqa: ANN401 - JSON's data
    return json.dumps(value, separators=(",", ":"), default=str)


def _trial(row: Sequence[Any]) -> Trial:
    name, recipe, measured, report, error, seconds, cpu, finished, point, seed = row
    return Trial(
        name,
        json.loads(recipe),
        json.loads(measured),
        None if report is None else Report.from_json(json.loads(report)),
        error,
        seconds,
        cpu,
        finished,
        json.loads(point),
        seed,
    )
