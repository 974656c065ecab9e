"""The store: one SQLite file of trials and of the sweeps that they are part of.

Several processes may use it at once. A trial is the work of the one that holds its claim, a lock
that the kernel frees however its holder dies; nothing in the file says that a trial is running, so
nothing has to be mended after a crash.
"""

from __future__ import annotations

import json
import os
import shlex
import sqlite3
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from fusion_core.errors import DiskError, OutputError, RecipeError
from fusion_sweep.rows import DamagedRowError, Swept, swept_of, trial_of
from fusion_sweep.schema import RESTORE, check_file, let_others_read, prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fusion_sweep.objectives import Objective
    from fusion_sweep.trial import Trial

    Row = tuple[Any, ...]

MadeT = TypeVar("MadeT")

#: How trials are told apart: by code and data too. Those of schema 1 have 0, which is unknown.
_IDENTITY = 1
_FIELDS = "t.id, t.recipe, t.measured, t.report, t.error, t.seconds, t.cpu, t.finished"
_PATIENCE = 60.0  # seconds that another process may write


class Store:
    """A file of trials; a context manager, which closes it.

    Raises `DiskError` for a file that cannot be opened or is not a store, which stays as it is, and
    wherever a row is damaged: the error names it, and how to go on.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        try:
            check_file(self.path)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(
                self.path.absolute(), timeout=_PATIENCE, isolation_level=None
            )
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise DiskError(
                f"the store {self.path} cannot be opened: {error}", hint=RESTORE
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _prepare(self) -> None:
        self._file.text_factory = lambda data: data.decode(errors="surrogateescape")
        with self._writing():
            prepare(self._file, self.path)
        let_others_read(self._file, _PATIENCE)
        self._file.execute("pragma synchronous = normal")  # a crash of the machine may cost a run

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Write all of it or nothing, while no other process writes; raises `DiskError`."""
        try:
            self._file.execute("begin immediate")
            with self._file:
                yield
        except sqlite3.OperationalError as error:
            raise DiskError(f"the store {self.path} cannot be written: {error}") from error
        except sqlite3.Error as error:
            raise DiskError(f"the store {self.path} is damaged: {error}", hint=RESTORE) from error

    def _read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query; raises `DiskError` for a file that SQLite cannot read."""
        try:
            return self._file.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise DiskError(f"the store {self.path} is damaged: {error}", hint=RESTORE) from error

    def _made(self, kind: str, make: Callable[[Row], MadeT], row: Row, owner: object) -> MadeT:
        """Make what a row holds; `owner` is the name of what to remove if the row is damaged."""
        try:
            return make(row)
        except DamagedRowError as error:
            raise self._damaged(f"{kind} {row[0]!r}", str(error), owner) from error

    def _damaged(self, what: str, problem: str, owner: object) -> DiskError:
        remedy = RESTORE
        if isinstance(owner, str) and owner:
            command = shlex.join(["fuse", "runs", "rm", owner, "--store", str(self.path)])
            remedy = f"Remove it, and run the sweep again: {command}"
        return DiskError(f"the store {self.path} is damaged: {what}: {problem}", hint=remedy)

    def check_measured(self, trial: Trial, objectives: Sequence[Objective]) -> None:
        """Raise `DiskError` for a trial whose report lacks what a sweep chooses by."""
        report = trial.report
        lacking = [
            objective.name for objective in objectives if report and not objective.is_in(report)
        ]
        if lacking:
            problem = f"report: it lacks the objective {lacking[0]!r}"
            raise self._damaged(f"trial {trial.id!r}", problem, trial.id)

    @contextmanager
    def claim(self, trial: Trial) -> Iterator[bool]:
        """Hold a trial as this process's own work; yields whether that is so."""
        from fusion_core.files import locked  # heavy: whoever only looks does without

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
                "insert or replace into trials values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, trial.seconds, trial.cpu, trial.finished, _IDENTITY),
            )

    def recall(self, name: str) -> Trial | None:
        """Return a trial that was measured before."""
        rows = self._read(
            f"select {_FIELDS}, '{{}}', 0 from trials t where id = ? and report is not null",  # noqa: S608
            name,
        )
        return self._made("trial", trial_of, rows[0], name) if rows else None

    def begin(self, sweep: Swept) -> None:
        """Add a sweep, unless it is there."""
        with self._writing():
            self._file.execute(
                "insert or ignore into sweeps values (?, ?, ?, null)",
                (sweep.id, sweep.started, _dumped(sweep.about)),
            )

    def add(self, sweep: str, trials: Sequence[Trial]) -> None:
        """Make trials part of a sweep, each with its point and seed."""
        rows = [(sweep, _dumped(trial.point), trial.seed, trial.id) for trial in trials]
        with self._writing():
            self._file.executemany("insert or replace into members values (?, ?, ?, ?)", rows)

    def set_tested(self, sweep: str, trial: str) -> None:
        """Keep which trial measured a sweep's best one on examples that chose nothing."""
        with self._writing():
            self._file.execute("update sweeps set tested = ? where id = ?", (trial, sweep))

    def count_unidentified(self, sweep: str) -> int:
        """Return how many finished trials of a sweep were kept without what their code was."""
        rows = self._read(
            "select count(t.report) from members m join trials t on t.id = m.trial "
            "where m.sweep = ? and t.identity <> ?",
            *(sweep, _IDENTITY),
        )
        return int(rows[0][0])

    def sweeps(self) -> list[Swept]:
        """Return all sweeps, the newest last."""
        rows = self._read("select id, started, about, tested from sweeps order by started")
        return [self._made("sweep", swept_of, row, row[0]) for row in rows]

    def counts(self, sweep: str) -> tuple[int, int, int]:
        """Return how many trials a sweep has that are finished, that failed, and in all."""
        ((finished, failed, total),) = self._read(
            "select count(t.report), count(t.error), count(*) from members m "
            "left join trials t on t.id = m.trial where m.sweep = ?",
            sweep,
        )
        return finished, failed, total

    def trials_of(self, sweep: str) -> list[Trial]:
        """Return what is finished of a sweep, or failed, with points and seeds."""
        rows = self._read(
            f"select {_FIELDS}, m.point, m.seed from members m "  # noqa: S608
            "join trials t on t.id = m.trial where m.sweep = ?",
            sweep,
        )
        return [self._made("trial", trial_of, row, row[0]) for row in rows]

    def trial(self, name: str) -> Trial:
        """Return the trial whose name begins so; raises `RecipeError` for none, or several."""
        (row,) = self._read(
            f"select {_FIELDS}, '{{}}', 0 from trials t where id = ?",  # noqa: S608
            self._whole("trials", name),
        )
        return self._made("trial", trial_of, row, row[0])

    def sweep(self, name: str) -> Swept:
        """Return the sweep whose name begins so; raises `RecipeError` for none, or several."""
        whole = self._whole("sweeps", name)
        (row,) = self._read("select id, started, about, tested from sweeps where id = ?", whole)
        return self._made("sweep", swept_of, row, whole)

    def is_sweep(self, name: str) -> bool:
        """Tell whether a sweep's name begins so; raises `RecipeError` for several."""
        return bool(self._beginning("sweeps", name)) and bool(self._whole("sweeps", name))

    def remove(self, name: str) -> int:
        """Remove a trial, or a sweep with the trials that no other has; returns how many."""
        if not self.is_sweep(name):
            whole = self._whole("trials", name)
            with self._writing():
                self._file.execute("delete from members where trial = ?", (whole,))
                self._file.execute("update sweeps set tested = null where tested = ?", (whole,))
                return self._file.execute("delete from trials where id = ?", (whole,)).rowcount
        whole = self._whole("sweeps", name)
        with self._writing():
            own = (
                "select trial from members where sweep = ? "
                "union select tested from sweeps where id = ? and tested is not null"
            )
            others = (
                "select trial from members where sweep <> ? "
                "union select tested from sweeps where id <> ? and tested is not null"
            )
            count = self._file.execute(
                f"delete from trials where id in ({own}) and id not in ({others})",  # noqa: S608
                (whole, whole, whole, whole),
            ).rowcount
            self._file.execute("delete from members where sweep = ?", (whole,))
            self._file.execute("delete from sweeps where id = ?", (whole,))
        return count

    def _beginning(self, table: str, name: str) -> list[str]:
        rows = self._read(
            f"select id from {table} where substr(id, 1, ?) = ? limit 2",  # noqa: S608
            *(len(name), name),
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
