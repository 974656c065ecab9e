"""The file of a store: how it is told from other programs' files, made, and brought up to date.

A file that is not a store keeps its bytes, and nothing is made next to it: it is looked at before
SQLite opens it for writing.
"""

from __future__ import annotations

import shutil
import sqlite3
import stat
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from fusion_core.errors import DiskError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: "FUSE", which SQLite keeps in the header of a file, for programs to know their own by.
APPLICATION_ID = int.from_bytes(b"FUSE", "big")
SCHEMA = 2
RESTORE = "Restore it from a copy, or move it away: a sweep then runs its trials again."

_TABLES = """
create table trials (
    id text primary key, recipe text not null, measured text not null, report text, error text,
    seconds real not null, cpu real not null, finished text not null,
    identity integer not null default 0
) without rowid;
create table sweeps (id text primary key, started text not null, about text not null, tested text);
create table members (
    sweep text not null, point text not null, seed integer not null, trial text not null,
    primary key (sweep, point, seed)
) without rowid;
create index members_by_trial on members (trial)
"""
#: Schema 1 did not say by what trials were identified, which was not by code.
_FROM_1 = "alter table trials add column identity integer not null default 0"

_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "trials": (
        *("id", "recipe", "measured", "report", "error"),
        *("seconds", "cpu", "finished", "identity"),
    ),
    "sweeps": ("id", "started", "about", "tested"),
    "members": ("sweep", "point", "seed", "trial"),
}
_COLUMNS_OF_1 = {**_COLUMNS, "trials": _COLUMNS["trials"][:-1]}

_MAGIC = b"SQLite format 3\0"
_HEADER = 100  # bytes, with the application id at 68
_LARGEST_COPY = 2**28
_ELSEWHERE = "Name another file with --store. This one was left as it is."
_SECONDS_BETWEEN_TRIES = 0.05


def check_file(path: Path) -> None:
    """Raise `DiskError` for a file that is not a store, and not empty either; writes nothing."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a special file"
        raise DiskError(f"the store {path}: expected a file, found {kind}", hint=_ELSEWHERE)
    with path.open("rb") as file:
        header = file.read(_HEADER)
    if not header:
        return
    if header[: len(_MAGIC)] != _MAGIC:
        raise DiskError(f"{path} is not a store of sweeps, nor a SQLite file", hint=_ELSEWHERE)
    if len(header) < _HEADER:
        raise DiskError(f"{path} is a SQLite file that was cut short", hint=RESTORE)
    application = int.from_bytes(header[68:72], "big")
    if application == APPLICATION_ID:
        return
    if application or _tables_before_opening(path) != _COLUMNS_OF_1:
        raise DiskError(
            f"{path} is not a store of sweeps, but another program's SQLite file", hint=_ELSEWHERE
        )


def prepare(file: sqlite3.Connection, path: Path) -> None:
    """Make the tables of a new store, or bring those of an earlier one up to date.

    The caller is in a transaction. Raises `DiskError` for tables that are not a store's.
    """
    (application,) = file.execute("pragma application_id").fetchone()
    (version,) = file.execute("pragma user_version").fetchone()
    columns = _columns_in(file)
    if application == APPLICATION_ID and version == SCHEMA and columns == _COLUMNS:
        return
    if not columns and not application and not version:
        statements = _TABLES
    elif version == 1 and columns == _COLUMNS_OF_1:
        statements = _FROM_1
    elif version > SCHEMA:
        raise DiskError(
            f"the store {path} is of schema {version}, and this version knows {SCHEMA}",
            hint="Upgrade fusion-sweep, or name another file with --store.",
        )
    else:
        raise DiskError(
            f"the store {path} is damaged: its tables are not those of schema {version}",
            hint=RESTORE,
        )
    for statement in statements.split(";"):
        file.execute(statement)
    file.execute(f"pragma application_id = {APPLICATION_ID}")
    file.execute(f"pragma user_version = {SCHEMA}")


def let_others_read(file: sqlite3.Connection, patience: float) -> None:
    """Switch to a log of changes, so that processes read while one writes."""
    until = time.monotonic() + patience
    while True:
        try:
            file.execute("pragma journal_mode = wal")
        except sqlite3.OperationalError:  # at once, where another process does the same
            if time.monotonic() > until:
                raise
            time.sleep(_SECONDS_BETWEEN_TRIES)
        else:
            return


def _tables_before_opening(path: Path) -> Mapping[str, tuple[str, ...]]:
    """Return the columns of a file's tables by table; of what SQLite cannot read, none.

    The file is read as if nothing could change it. SQLite then makes no files next to it, and does
    not see a log next to it either: where there is one, a copy is read.
    """
    log = path.with_name(f"{path.name}-wal")
    try:
        if log.exists() and log.stat().st_size and path.stat().st_size <= _LARGEST_COPY:
            with TemporaryDirectory(prefix="fusion-sweep-") as directory:
                copy = Path(directory) / "copy"
                shutil.copyfile(path, copy)
                shutil.copyfile(log, f"{copy}-wal")
                return _read_columns(copy.as_uri())
        return _read_columns(f"{path.absolute().as_uri()}?mode=ro&immutable=1")
    except sqlite3.Error:
        return {}


def _read_columns(uri: str) -> Mapping[str, tuple[str, ...]]:
    with closing(sqlite3.connect(uri, uri=True)) as file:
        return _columns_in(file)


def _columns_in(file: sqlite3.Connection) -> Mapping[str, tuple[str, ...]]:
    """Return the columns of each table, view and trigger: the last has none."""
    names = file.execute(
        "select name from sqlite_master where type <> 'index' and name not like 'sqlite~_%' "
        "escape '~'"
    ).fetchall()
    return {
        name: tuple(
            column for (column,) in file.execute("select name from pragma_table_info(?)", (name,))
        )
        for (name,) in names
    }
