"""The file of a store: its detection, creation and migration.

A file that is not a store keeps its bytes, and no files appear next to it. So the file is inspected
before SQLite opens it for writing.
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

#: "FUSE", in the field of SQLite's header by which programs recognise their files.
APPLICATION_ID = int.from_bytes(b"FUSE", "big")
SCHEMA = 2
RESTORE = "Restore it from a backup, or move it away: a sweep then runs its trials again."

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
#: In schema 1 the identity of a trial did not cover code, and no column said so.
_MIGRATE_1 = "alter table trials add column identity integer not null default 0"

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
_ELSEWHERE = "Choose another file with --store. This one was not changed."
_SECONDS_BETWEEN_TRIES = 0.05


def check_file(path: Path) -> None:
    """Raise `DiskError` for a file that is neither a store nor empty; writes nothing."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a special file"
        raise DiskError(f"expected a store file, found {kind}: {path}", hint=_ELSEWHERE)
    with path.open("rb") as file:
        header = file.read(_HEADER)
    if not header:
        return
    if header[: len(_MAGIC)] != _MAGIC:
        raise DiskError(f"expected a store file, found another format: {path}", hint=_ELSEWHERE)
    if len(header) < _HEADER:
        raise DiskError(f"the SQLite file {path} is truncated", hint=RESTORE)
    application = int.from_bytes(header[68:72], "big")
    if application == APPLICATION_ID:
        return
    if application or _inspect_tables(path) != _COLUMNS_OF_1:
        raise DiskError(
            f"expected a store file, found another program's SQLite file: {path}", hint=_ELSEWHERE
        )


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Create the tables of a new store, or migrate those of an earlier version.

    Call it in a transaction. Raises `DiskError` for other tables.
    """
    (application,) = connection.execute("pragma application_id").fetchone()
    (version,) = connection.execute("pragma user_version").fetchone()
    columns = _list_columns(connection)
    if application == APPLICATION_ID and version == SCHEMA and columns == _COLUMNS:
        return
    if not columns and not application and not version:
        statements = _TABLES
    elif version == 1 and columns == _COLUMNS_OF_1:
        statements = _MIGRATE_1
    elif version > SCHEMA:
        raise DiskError(
            f"the store {path} has schema {version}, but this version supports up to {SCHEMA}",
            hint="Upgrade fusion-sweep, or choose another file with --store.",
        )
    else:
        raise DiskError(
            f"the store {path} is damaged: its tables do not match schema {version}",
            hint=RESTORE,
        )
    for statement in statements.split(";"):
        connection.execute(statement)
    connection.execute(f"pragma application_id = {APPLICATION_ID}")
    connection.execute(f"pragma user_version = {SCHEMA}")


def enable_wal(connection: sqlite3.Connection, patience: float) -> None:
    """Switch to a write-ahead log, so that other processes can read while one writes."""
    until = time.monotonic() + patience
    while True:
        try:
            connection.execute("pragma journal_mode = wal")
        except sqlite3.OperationalError:  # raised at once if another process does the same
            if time.monotonic() > until:
                raise
            time.sleep(_SECONDS_BETWEEN_TRIES)
        else:
            return


def copy_file(path: Path, directory: Path) -> Path:
    """Copy a file into a directory, with its write-ahead log if it has one; return the copy."""
    copy, log = directory / "copy", path.with_name(f"{path.name}-wal")
    shutil.copyfile(path, copy)
    if log.exists():
        shutil.copyfile(log, f"{copy}-wal")
    return copy


def _inspect_tables(path: Path) -> Mapping[str, tuple[str, ...]]:
    """Return the columns of a file's tables, or nothing if SQLite cannot read it.

    The file is read as immutable, so that SQLite creates no files next to it. SQLite then ignores a
    write-ahead log. If there is one, a copy is read instead.
    """
    log = path.with_name(f"{path.name}-wal")
    try:
        if log.exists() and log.stat().st_size and path.stat().st_size <= _LARGEST_COPY:
            with TemporaryDirectory(prefix="fusion-sweep-") as directory:
                copy = copy_file(path, Path(directory))
                with closing(sqlite3.connect(copy.as_uri(), uri=True)) as connection:
                    return _list_columns(connection)
        uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            return _list_columns(connection)
    except sqlite3.Error:
        return {}


def _list_columns(connection: sqlite3.Connection) -> Mapping[str, tuple[str, ...]]:
    """Return the columns of each table, view and trigger; a trigger has none."""
    names = connection.execute(
        "select name from sqlite_master where type <> 'index' and name not like 'sqlite~_%' "
        "escape '~'"
    ).fetchall()
    query = "select name from pragma_table_info(?)"
    return {
        name: tuple(column for (column,) in connection.execute(query, (name,))) for (name,) in names
    }
