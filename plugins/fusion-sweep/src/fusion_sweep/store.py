"""The store: one SQLite file with trials and sweeps.

Several processes can use it at once. A process claims a trial by a lock, which the kernel releases
when the process dies. The file does not record which trials are running, so nothing needs repair
after a crash.
"""

from __future__ import annotations

import json
import os
import shlex
import sqlite3
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self, TypeVar

from fusion_core.errors import DiskError, OutputError, RecipeError
from fusion_sweep.rows import DamagedRowError, SweepRecord, read_sweep, read_trial
from fusion_sweep.schema import RESTORE, check_file, copy_file, enable_wal, prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fusion_sweep.objectives import Objective
    from fusion_sweep.trial import Trial

    Row = tuple[Any, ...]

ItemT = TypeVar("ItemT")

#: The version of trial identities, which cover code and data. Trials of schema 1 have 0.
_IDENTITY = 1
_FIELDS = "t.id, t.recipe, t.measured, t.report, t.error, t.seconds, t.cpu, t.finished"
_PATIENCE = 60.0  # seconds to wait for another process to finish writing


class Store:
    """A file of trials; a context manager that closes it.

    A missing file is created when it is first used, or raises `DiskError` if `create` is false.
    With `create` false, a file that cannot be written is read. Raises `DiskError` for a file that
    cannot be opened or is not a store, without changing it, and for a damaged row, with the command
    that removes it.
    """

    def __init__(self, path: Path | None = None, *, create: bool = True) -> None:
        self.path = path or default_path()
        self._reads_only = not create
        self._resources = ExitStack()
        try:
            exists = self.path.exists()
            check_file(self.path)
        except (OSError, sqlite3.Error) as error:
            raise self._cannot_open(error) from error
        if exists:
            self._connection  # noqa: B018 - raises errors now
        elif not create:
            raise DiskError(
                f"no store at {self.path}",
                hint="Name another file with --store, or create this one with fuse sweep.",
            )

    @cached_property
    def _connection(self) -> sqlite3.Connection:
        """The open file, which is created if it is missing."""
        try:
            with ExitStack() as on_failure:
                on_failure.callback(self._resources.close)
                connection = self._connect()
                connection.text_factory = lambda data: data.decode(errors="surrogateescape")
                with self._transaction(connection):
                    prepare(connection, self.path)
                enable_wal(connection, _PATIENCE)
                # A crash of the machine may lose the last trial, but nothing else.
                connection.execute("pragma synchronous = normal")
                connection.execute(f"pragma query_only = {int(self._is_copied)}")
                on_failure.pop_all()
        except (OSError, sqlite3.Error) as error:
            raise self._cannot_open(error) from error
        return connection

    def _connect(self) -> sqlite3.Connection:
        path = self.path
        if self._is_copied:
            directory = TemporaryDirectory(prefix="fusion-sweep-")
            path = copy_file(path, Path(self._resources.enter_context(directory)))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path.absolute(), timeout=_PATIENCE, isolation_level=None)
        self._resources.callback(connection.close)
        return connection

    @property
    def _is_copied(self) -> bool:
        """Whether a copy is read: SQLite writes to a file and its directory to read it."""
        writable = (self.path, self.path.absolute().parent)
        return self._reads_only and not all(os.access(path, os.W_OK) for path in writable)

    def _cannot_open(self, error: Exception) -> DiskError:
        return DiskError(f"cannot open the store {self.path}: {error}", hint=RESTORE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @contextmanager
    def _transaction(self, connection: sqlite3.Connection | None = None) -> Iterator[None]:
        """Write everything or nothing, while no other process writes; raises `DiskError`."""
        connection = connection or self._connection
        try:
            connection.execute("begin immediate")
            with connection:
                yield
        except sqlite3.OperationalError as error:
            raise DiskError(f"cannot write the store {self.path}: {error}") from error
        except sqlite3.Error as error:
            raise DiskError(f"the store {self.path} is damaged: {error}", hint=RESTORE) from error

    def _query(self, query: str, *values: object) -> list[Row]:
        """Return the rows of a query; raises `DiskError` for a file that SQLite cannot read."""
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise DiskError(f"the store {self.path} is damaged: {error}", hint=RESTORE) from error

    def _parse(self, kind: str, parse: Callable[[Row], ItemT], row: Row, owner: object) -> ItemT:
        """Parse a row; `owner` is the id to remove if the row is damaged."""
        try:
            return parse(row)
        except DamagedRowError as error:
            raise self._damaged(f"{kind} {row[0]!r}", str(error), owner) from error

    def _damaged(self, row: str, problem: str, owner: object) -> DiskError:
        hint = RESTORE
        if isinstance(owner, str) and owner:
            command = shlex.join(["fuse", "runs", "rm", owner, "--store", str(self.path)])
            hint = f"Remove it, and run the sweep again: {command}"
        return DiskError(f"the store {self.path} is damaged: {row}: {problem}", hint=hint)

    def check_measured(self, trial: Trial, objectives: Sequence[Objective]) -> None:
        """Raise `DiskError` for a trial whose report lacks an objective of a sweep."""
        report = trial.report
        for objective in objectives:
            if report and not objective.is_in(report):
                problem = f"report: the objective {objective.name!r} is missing"
                raise self._damaged(f"trial {trial.id!r}", problem, trial.id)

    @contextmanager
    def claim(self, trial: Trial) -> Iterator[bool]:
        """Claim a trial for this process; yields whether that succeeded."""
        from fusion_core.files import lock_output  # heavy, and readers do not need it

        directory = self.path.with_name(f"{self.path.name}.claims")
        directory.mkdir(exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(lock_output(directory / trial.id))
                succeeded = True
            except OutputError:
                succeeded = False
            yield succeeded

    def save(self, trial: Trial) -> None:
        """Save a trial that has finished or failed."""
        report = None if trial.report is None else _to_json(trial.report.as_json())
        row = (trial.id, _to_json(trial.recipe), _to_json(trial.measured), report, trial.error)
        with self._transaction():
            self._connection.execute(
                "insert or replace into trials values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, trial.seconds, trial.cpu, trial.finished, _IDENTITY),
            )

    def recall(self, trial: str) -> Trial | None:
        """Return a trial that has finished, or None."""
        rows = self._query(
            f"select {_FIELDS}, '{{}}', 0 from trials t where id = ? and report is not null",  # noqa: S608
            trial,
        )
        return self._parse("trial", read_trial, rows[0], trial) if rows else None

    def add_trials(self, sweep: SweepRecord, trials: Sequence[Trial]) -> None:
        """Make trials part of a sweep, each with its point and seed; add the sweep if it is new."""
        rows = [(sweep.id, _to_json(trial.point), trial.seed, trial.id) for trial in trials]
        with self._transaction():
            self._connection.execute(
                "insert or ignore into sweeps values (?, ?, ?, null)",
                (sweep.id, sweep.started, _to_json(sweep.about)),
            )
            self._connection.executemany("insert or replace into members values (?, ?, ?, ?)", rows)

    def set_tested(self, sweep: str, trial: str) -> None:
        """Record the trial that measured a sweep's best one on unused examples."""
        with self._transaction():
            self._connection.execute("update sweeps set tested = ? where id = ?", (trial, sweep))

    def count_unidentified(self, sweep: str) -> int:
        """Return how many finished trials of a sweep were saved without identity of their code."""
        if not self.path.exists():
            return 0
        rows = self._query(
            "select count(t.report) from members m join trials t on t.id = m.trial "
            "where m.sweep = ? and t.identity <> ?",
            *(sweep, _IDENTITY),
        )
        return int(rows[0][0])

    def sweeps(self) -> list[SweepRecord]:
        """Return all sweeps, the newest last."""
        rows = self._query("select id, started, about, tested from sweeps order by started")
        return [self._parse("sweep", read_sweep, row, row[0]) for row in rows]

    def counts(self, sweep: str) -> tuple[int, int, int]:
        """Return a sweep's numbers of finished, failed and all trials."""
        ((finished, failed, total),) = self._query(
            "select count(t.report), count(t.error), count(*) from members m "
            "left join trials t on t.id = m.trial where m.sweep = ?",
            sweep,
        )
        return finished, failed, total

    def trials_of(self, sweep: str) -> list[Trial]:
        """Return the finished and failed trials of a sweep, with points and seeds."""
        rows = self._query(
            f"select {_FIELDS}, m.point, m.seed from members m "  # noqa: S608
            "join trials t on t.id = m.trial where m.sweep = ?",
            sweep,
        )
        return [self._parse("trial", read_trial, row, row[0]) for row in rows]

    def trial(self, prefix: str) -> Trial:
        """Return the trial whose id begins with a prefix; raises `RecipeError` unless it is one."""
        (row,) = self._query(
            f"select {_FIELDS}, '{{}}', 0 from trials t where id = ?",  # noqa: S608
            self._resolve("trials", prefix),
        )
        return self._parse("trial", read_trial, row, row[0])

    def sweep(self, prefix: str) -> SweepRecord:
        """Return the sweep whose id begins with a prefix; raises `RecipeError` unless it is one."""
        sweep = self._resolve("sweeps", prefix)
        (row,) = self._query("select id, started, about, tested from sweeps where id = ?", sweep)
        return self._parse("sweep", read_sweep, row, sweep)

    def is_sweep(self, prefix: str) -> bool:
        """Tell whether a sweep's id begins with a prefix; raises `RecipeError` for several."""
        return bool(self._matching_ids("sweeps", prefix)) and bool(self._resolve("sweeps", prefix))

    def remove(self, *prefixes: str) -> int:
        """Remove trials, and sweeps with the trials that no other has; return their number.

        Raises `RecipeError` for a name that fits none or several, and then removes nothing.
        """
        targets = [
            (self._remove_sweep, self._resolve("sweeps", prefix))
            if self.is_sweep(prefix)
            else (self._remove_trial, self._resolve("trials", prefix))
            for prefix in prefixes
        ]
        with self._transaction():
            return sum(remove(target) for remove, target in targets)

    def forget_sweep(self, sweep: str) -> None:
        """Remove a sweep, but not its trials."""
        with self._transaction():
            self._forget(sweep)

    def _forget(self, sweep: str) -> None:
        self._connection.execute("delete from members where sweep = ?", (sweep,))
        self._connection.execute("delete from sweeps where id = ?", (sweep,))

    def _remove_trial(self, trial: str) -> int:
        execute = self._connection.execute
        execute("delete from members where trial = ?", (trial,))
        execute("update sweeps set tested = null where tested = ?", (trial,))
        return execute("delete from trials where id = ?", (trial,)).rowcount

    def _remove_sweep(self, sweep: str) -> int:
        members = (
            "select trial from members where sweep {0} ? "
            "union select tested from sweeps where id {0} ? and tested is not null"
        )
        count = self._connection.execute(
            f"delete from trials where id in ({members.format('=')}) "  # noqa: S608
            f"and id not in ({members.format('<>')})",
            (sweep, sweep, sweep, sweep),
        ).rowcount
        self._forget(sweep)
        return count

    def _matching_ids(self, table: str, prefix: str) -> list[str]:
        """Return the first two ids that begin with a prefix."""
        rows = self._query(
            f"select id from {table} where substr(id, 1, ?) = ? limit 2",  # noqa: S608
            *(len(prefix), prefix),
        )
        return [row_id for (row_id,) in rows]

    def _resolve(self, table: str, prefix: str) -> str:
        """Return the only id that begins with a prefix; raises `RecipeError` otherwise."""
        ids = self._matching_ids(table, prefix)
        if len(ids) == 1:
            return ids[0]
        problem = "more than one name begins with" if ids else "no name begins with"
        raise RecipeError(
            f"{problem} {prefix!r} in the store {self.path}",
            hint="See: fuse runs ls, and fuse runs ls SWEEP",
        )


def default_path() -> Path:
    """Return the default file: under `XDG_DATA_HOME`, or `~/.local/share`."""
    root = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(root).expanduser() / "fusion-core" / "sweeps.sqlite"


def _to_json(value: Any) -> str:  # noqa: ANN401 - JSON
    return json.dumps(value, separators=(",", ":"), default=str)
