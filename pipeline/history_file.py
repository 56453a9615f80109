"""The history's file: one SQLite database in the runs folder, opened, migrated, and told of in our own errors.

It is an index of the run folders, not the truth: what it says of a run can be read from the run's folder again, so
a file that is lost is built anew by the next `ammd runs`. Only what was pruned is known here alone.

It uses SQLite's rollback journal, not the write-ahead log: that one needs memory shared by all processes, so it is of
no use where several machines mount the runs folder. A writer holds the file for one short transaction; others wait.
A process that is killed leaves its journal, from which the next one puts the file back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ammd.errors import ArtifactError

HISTORY_NAME = "history.sqlite"
_BUSY_S = 30.0  # others' transactions take milliseconds; on a network folder perhaps a second
_APPLICATION_ID = int.from_bytes(
    b"ammd", "big"
)  # in the file's header, so that no other database is taken for ours
# Low bytes of error codes that tell of the place and the moment, not of what is in the file.
_UNWRITABLE = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_AUTH,
}

# What brings the file from version N to N + 1; one entry for each, in order, never changed once released.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # `folder_ns`: when the run's folder last changed as far as is known here; NULL where there is no folder.
        # `state`: `running`, `finished`, `unfinished`, `failed` or `interrupted`, as of the last attempt.
        # `stage`, `message`, `exit_code`: of an attempt that failed or was interrupted. Times are Unix seconds.
        """CREATE TABLE runs (
            id INTEGER PRIMARY KEY,
            run TEXT NOT NULL UNIQUE,
            state TEXT NOT NULL,
            folder_ns INTEGER,
            started REAL,
            ended REAL,
            pruned REAL,
            stage TEXT,
            message TEXT,
            exit_code INTEGER
        )""",
        "CREATE TABLE keys (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE)",
        # Ordered by key: a filter or a sort reads one key of all runs, and so one stretch of the file.
        """CREATE TABLE facts (
            key INTEGER NOT NULL REFERENCES keys (id),
            run INTEGER NOT NULL REFERENCES runs (id),
            value NOT NULL,
            PRIMARY KEY (key, run)
        ) WITHOUT ROWID""",
    ),
)


class UnwritableHistoryError(ArtifactError):
    """The history cannot be written now: no right, no room, or another program holds it."""


@contextmanager
def open_history(
    runs_dir: Path, *, migrations: Sequence[Sequence[str]] = MIGRATIONS
) -> Iterator[sqlite3.Connection]:
    """Give the history of `runs_dir`, made or migrated if need be; in memory alone where there is no folder.

    Statements stand for themselves; `transaction` puts several together.

    Raises:
        UnwritableHistoryError: It cannot be written.
        ArtifactError: It is damaged, of a newer version, or no history; nothing is changed then.
    """
    path = runs_dir / HISTORY_NAME
    with told(path):
        where = path if runs_dir.is_dir() else ":memory:"
        connection = _connect(where)
        try:
            _migrate(connection, path, migrations)
            yield connection
        finally:
            connection.close()


@contextmanager
def open_copy(runs_dir: Path) -> Iterator[sqlite3.Connection]:
    """Give a copy in memory of a history that may be read only.

    Raises:
        ArtifactError: It is damaged, of a newer version, or no history.
    """
    path = runs_dir / HISTORY_NAME
    with told(path):
        copy = _connect(":memory:")
        try:
            if path.is_file():
                original = _connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
                try:
                    original.backup(copy)
                finally:
                    original.close()
            _migrate(copy, path, MIGRATIONS)
            yield copy
        finally:
            copy.close()


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Do all of it or nothing; other writers wait meanwhile, or this one for them."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Make our errors of SQLite's.

    Raises:
        UnwritableHistoryError: It cannot be written.
        ArtifactError: It is damaged.
    """
    try:
        yield
    except UnicodeDecodeError as exc:  # of SQLite's message, which quotes the file
        raise _damaged(path, "its schema is no text") from exc
    except (AttributeError, OverflowError, TypeError, ValueError) as exc:
        # SQLite looks at pages, and not at what type a column has.
        raise _damaged(path, f"a row is none of ours ({exc})") from exc
    except sqlite3.DatabaseError as exc:
        code = getattr(exc, "sqlite_errorcode", None)
        if code is None:
            raise  # Python's own: a defect here
        if code & 0xFF in _UNWRITABLE:
            raise UnwritableHistoryError(
                f"cannot use the history `{path}`: {exc}", hint=_way_out(code), path=str(path)
            ) from exc
        raise _damaged(path, str(exc)) from exc


def _damaged(path: Path, why: str) -> ArtifactError:
    """Return the error that says so of the history at `path`."""
    return ArtifactError(
        f"the history `{path}` is damaged: {why}",
        hint="move it away: `ammd runs` makes a new one from the run folders, without those that were pruned",
        path=str(path),
    )


def _connect(where: str | Path, *, uri: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(where, timeout=_BUSY_S, isolation_level=None, uri=uri)
    connection.text_factory = lambda raw: raw.decode(errors="replace")  # a damaged text is no reason to fail
    return connection


def _way_out(code: int) -> str:
    if code & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return "another program has held it for half a minute"
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return "free room on the disk; `ammd runs prune` does"
    return "its folder must be writable"


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Sequence[str]]) -> None:
    connection.execute("BEGIN")  # one view of all that is asked: another may be writing the first tables
    try:
        version = _version(connection, path, migrations)
    finally:
        connection.execute("COMMIT")
    if version == len(migrations):
        return
    with transaction(connection):
        version = _version(connection, path, migrations)  # another process may have been faster
        for number, statements in enumerate(migrations[version:], version + 1):
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")


def _version(connection: sqlite3.Connection, path: Path, migrations: Sequence[Sequence[str]]) -> int:
    """Return the file's version, 0 of an empty one.

    Raises:
        ArtifactError: It is newer, or not ours.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and owner != _APPLICATION_ID:
        raise ArtifactError(
            f"`{path}` is a database, but no history of ammd",
            hint="move it away, or name another folder with `--runs-dir`",
            path=str(path),
        )
    if version > len(migrations):
        raise ArtifactError(
            f"the history `{path}` has version {version}, this ammd knows versions up to {len(migrations)}",
            hint="update ammd",
            path=str(path),
            expected=len(migrations),
            found=version,
        )
    return int(version)
