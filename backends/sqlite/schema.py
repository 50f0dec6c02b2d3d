"""The tables of a SqliteOutbox, by versioned migrations. They work with SQLite 3.34 and later."""

from __future__ import annotations

import sqlite3
import uuid
from contextlib import closing
from pathlib import Path

import sqlite_utils
from sqlite_utils.migrations import Migrations

from owm_outbox import OutboxInvalid

__all__ = ["APPLICATION_ID", "is_newest", "prepare"]

APPLICATION_ID = 0x4F574D31  # "OWM1" in the file's header: what tells our file from any other SQLite file

_migrations = Migrations("owm_outbox")


def prepare(connection: sqlite3.Connection, path: Path, *, shared: bool) -> None:
    """Bring a file to the newest version, in one transaction.

    :param shared: the file is an application's own database, whose settings stay as they are.
    :raises OutboxInvalid: a newer version of this package wrote it.
    """
    if not shared and connection.execute("PRAGMA application_id").fetchone()[0] == 0:
        # In one commit, the first, and before WAL: a file that has anything in it says in its header that it is ours.
        connection.execute("BEGIN")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    if not is_newest(connection, path):
        connection.execute("BEGIN IMMEDIATE")  # two that start at once: the second waits, and finds it done
        try:
            _migrations.apply(sqlite_utils.Database(connection, execute_plugins=False))
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise


def is_newest(connection: sqlite3.Connection, path: Path) -> bool:
    """Return whether a file has the tables of the newest version. This only reads.

    :raises OutboxInvalid: a newer version of this package wrote it.
    """
    db = sqlite_utils.Database(connection, execute_plugins=False)
    with closing(sqlite3.connect(":memory:")) as empty:
        no_tables = sqlite_utils.Database(empty, execute_plugins=False)
        known = {migration.name for migration in _migrations.pending(no_tables)}
    newer = [done.name for done in _migrations.applied(db) if done.name not in known]
    if newer:
        raise OutboxInvalid(
            f"{path} was written by a newer version of owm_outbox ({newer[-1]}): upgrade, or name another file"
        )
    return not _migrations.pending(db)


def _is_strict() -> bool:
    return sqlite3.sqlite_version_info >= (3, 37)


@_migrations()
def m001_tables(db: sqlite_utils.Database) -> None:
    """Create the tables of version 0.1."""
    strict = _is_strict()
    db.create_table("outbox", {"id": str, "acknowledged": int}, pk="id", not_null={"acknowledged"}, strict=strict)
    db.create_table("outbox_notes", {"name": str, "value": bytes}, pk="name", strict=strict)
    db.create_table(
        "outbox_runs",
        {
            "number": int,
            "id": str,
            "job": str,
            "state": str,
            "started_at": float,
            "finished_at": float,
            "checkpoint": bytes,
            "expected": int,
            "extracted": int,
            "duplicates": int,
            "rejected": int,
            "unusable": int,
            "report": bytes,
        },
        pk="number",
        not_null={"id", "job", "state", "started_at"},
        defaults={"extracted": 0, "duplicates": 0, "rejected": 0, "unusable": 0},
        strict=strict,
    )
    # AUTOINCREMENT: a position is never reused, not even that of a cleared last entry. sqlite-utils cannot say that.
    # A key is stored as it is: ANY does that in a strict table, a column without a type in any other.
    db.execute(
        f"""
        CREATE TABLE outbox_entries (
            position INTEGER PRIMARY KEY AUTOINCREMENT,
            run INTEGER,
            key {"ANY" if strict else ""},
            task_id TEXT,
            payload BLOB NOT NULL,
            stored_at REAL NOT NULL,
            reason TEXT,
            rejected_at REAL
        ) {"STRICT" if strict else ""}
        """
    )
    # This index costs little with keys that arrive in order; one on task ids would cost five times as much. Files made
    # earlier have it as UNIQUE (run, key), also of rows without a run: as right, and slower for those.
    db.execute("CREATE UNIQUE INDEX outbox_keys ON outbox_entries (run, key) WHERE run IS NOT NULL")
    db.execute("CREATE INDEX outbox_dead ON outbox_entries (position) WHERE reason IS NOT NULL")
    db.execute("INSERT INTO outbox (id, acknowledged) VALUES (?, 0)", [str(uuid.uuid4())])


@_migrations()
def m002_marks(db: sqlite_utils.Database) -> None:
    """Keep a mark instead of a position, headers with each entry, and each run's last progress."""
    db.execute("ALTER TABLE outbox_notes RENAME TO outbox_state")
    db.execute("INSERT OR REPLACE INTO outbox_state SELECT 'id', CAST(id AS BLOB) FROM outbox")
    db.execute(
        "INSERT OR REPLACE INTO outbox_state SELECT 'acknowledged', "
        "CAST(CASE acknowledged WHEN 0 THEN '' ELSE acknowledged END AS BLOB) FROM outbox"
    )
    db.execute("DROP TABLE outbox")
    db.execute("ALTER TABLE outbox_entries ADD COLUMN headers TEXT")
    db.execute("ALTER TABLE outbox_runs ADD COLUMN progressed_at REAL")
    db.execute("ALTER TABLE outbox_runs ADD COLUMN resume_within REAL NOT NULL DEFAULT 3600")
    db.execute("UPDATE outbox_runs SET progressed_at = started_at")


@_migrations()
def m003_letters(db: sqlite_utils.Database) -> None:
    """Count how often a dead letter was rejected, and since when."""
    db.execute("ALTER TABLE outbox_entries ADD COLUMN first_rejected_at REAL")
    db.execute("ALTER TABLE outbox_entries ADD COLUMN times INTEGER NOT NULL DEFAULT 0")
    db.execute("UPDATE outbox_entries SET first_rejected_at = rejected_at, times = 1 WHERE reason IS NOT NULL")
    db.execute("CREATE INDEX outbox_letters ON outbox_entries (key) WHERE reason IS NOT NULL")
