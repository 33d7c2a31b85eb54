"""The file of the store: SQLite with a write-ahead log, a connection for each thread, and its tables."""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studio.jobs.job import StoreError

NAME = "jobs.sqlite3"
_VERSION = 1
_WAIT = 30.0
"""Seconds to wait for another process's transaction; those take milliseconds, 100,000 new jobs a second."""

_TABLES = """
CREATE TABLE settings(key TEXT PRIMARY KEY, request TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE jobs(
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL DEFAULT 'queued',
    prompt TEXT NOT NULL,
    seed INTEGER NOT NULL,
    name TEXT NOT NULL UNIQUE,
    settings TEXT NOT NULL REFERENCES settings(key),
    priority INTEGER NOT NULL,
    position REAL NOT NULL,
    batch TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    most INTEGER NOT NULL,
    timeout REAL,
    wish TEXT NOT NULL DEFAULT '',
    error TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    worker TEXT NOT NULL DEFAULT '',
    deaths INTEGER NOT NULL DEFAULT 0,
    reached INTEGER NOT NULL DEFAULT -1
);
CREATE INDEX queue ON jobs(state, priority DESC, position);
CREATE INDEX batches ON jobs(batch, state);
CREATE INDEX ages ON jobs(created, position);
CREATE TABLE workers(
    name TEXT PRIMARY KEY, pid INTEGER NOT NULL, device TEXT NOT NULL, seen REAL NOT NULL, job TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE notes(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO notes VALUES('changes', 0);
"""


class Database:
    """Connections to the store's file, which is made where there is none."""

    def __init__(self, home: Path):
        self.path = home / NAME
        self._own = threading.local()

    def read(self) -> sqlite3.Connection:
        """This thread's connection; a statement on it sees one consistent state.

        Raises:
            StoreError: the file is damaged or of a later version.
            OSError: its folder cannot be made.
        """
        kept: _Kept | None = getattr(self._own, "kept", None)
        if kept is None or kept.process != os.getpid():  # SQLite's connections do not survive a fork
            kept = self._own.kept = _Kept(_opened(self.path))
        return kept.connection

    @contextlib.contextmanager
    def write(self, counts: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction that nobody else writes during: all of it happens, or nothing.

        Args:
            counts: whether it is a change that watchers want to know of.
        """
        connection = self.read()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            if counts:
                connection.execute("UPDATE notes SET value = value + 1 WHERE key = 'changes'")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


class _Kept:
    """A connection that is closed when its thread ends."""

    def __init__(self, connection: sqlite3.Connection):
        self.connection, self.process = connection, os.getpid()

    def __del__(self) -> None:
        if self.process == os.getpid():
            self.connection.close()


def _opened(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
    try:
        _switch_on_log(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        _make_tables(connection, path)
    except sqlite3.OperationalError:  # locked for too long, no rights, disk full: the file itself is whole
        connection.close()
        raise
    except sqlite3.DatabaseError as problem:
        connection.close()
        advice = f"`studio jobs rebuild --runs {path.parent}` makes it anew from the folders of the runs."
        raise StoreError(f"{path} is damaged ({problem}). {advice}") from problem
    except StoreError:
        connection.close()
        raise
    connection.row_factory = sqlite3.Row
    return connection


def _switch_on_log(connection: sqlite3.Connection) -> None:
    """Of a new file; SQLite does not itself wait where another process is at the same."""
    until = time.monotonic() + _WAIT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as problem:
            if "locked" not in str(problem) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _make_tables(connection: sqlite3.Connection, path: Path) -> None:
    if _version(connection) == 0:
        connection.execute("BEGIN IMMEDIATE")
        if _version(connection) == 0:  # nobody was faster
            for statement in _TABLES.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute("COMMIT")
    if (version := _version(connection)) != _VERSION:
        raise StoreError(f"{path} was made by another version of the studio (its format is {version}, not {_VERSION}).")


def _version(connection: sqlite3.Connection) -> int:
    row: Any = connection.execute("PRAGMA user_version").fetchone()
    return row[0]
