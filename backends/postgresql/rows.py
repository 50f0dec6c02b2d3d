"""Rows of a PostgresqlOutbox's tables, and what they are to the outside."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import LiteralString

import psycopg

from owm_outbox import (
    NO_HEADERS,
    Entry,
    Key,
    Mark,
    NewEntry,
    OutboxInvalid,
    OutboxStats,
    RunRecord,
    TaskError,
)

from .address import LANE_BITS, Tables
from .connection import Row
from .lane import Lane

__all__ = [
    "SELECT_RUNS",
    "clear",
    "columns",
    "entry",
    "insert",
    "key_of",
    "record",
    "replace",
    "runs_of",
    "stats_of",
    "storable_text",
]

SELECT_RUNS: LiteralString = (
    "SELECT id, job, state, started_at, progressed_at, finished_at, checkpoint, expected, extracted, duplicates, "
    "rejected, unusable, report FROM {runs} "
)

_LONGEST_KEY = 2_000  # bytes; an index of PostgreSQL takes some 2,700
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # no text of PostgreSQL can have these


def columns(
    entries: Sequence[NewEntry],
) -> tuple[list[str | None], list[str | None], list[str | None], list[bytes]]:
    """Return the keys, task ids, headers and payloads of entries, each as one array.

    :raises TaskError: one of them cannot be stored.
    """
    keys: list[str | None] = []
    ids: list[str | None] = []
    headers: list[str | None] = []
    for key, task_id, given, _, _ in entries:
        keys.append(None if key is None else _storable_key(key))
        if task_id is not None and _UNSTORABLE.search(task_id):
            raise TaskError(
                f"the task_id {task_id!r} has a null or half a surrogate pair, which PostgreSQL cannot store: "
                "use a UUID or another plain text"
            )
        ids.append(task_id)
        headers.append(_json(dict(given)) if given else None)
    return keys, ids, headers, [entry.payload for entry in entries]


def _storable_key(key: Key) -> str:
    """Return what a key is in a column: as JSON, so that 7 is not "7" and a null in it does no harm."""
    stored = str(int(key)) if isinstance(key, int) else _json(key)
    if len(stored) > _LONGEST_KEY // 4 and len(stored.encode()) > _LONGEST_KEY:
        raise TaskError(
            f"the key {stored[:40]}… has {len(stored.encode())} bytes, and PostgreSQL can index {_LONGEST_KEY}: "
            "return a shorter one, such as a digest of it"
        )
    return stored


def storable_text(text: str) -> str:
    """Return a text for a person to read, with escapes for what PostgreSQL cannot store."""
    return _UNSTORABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if _UNSTORABLE.search(text) else text


def entry(position: int, task_id: str, payload: bytes, key: str | None, headers: dict[str, str] | None) -> Entry:
    """Make an entry of its columns."""
    known = None if key is None else key_of(key)
    return Entry(position, task_id, payload, known, headers or NO_HEADERS)


def key_of(stored: str) -> Key:
    """Return the key that is in a column."""
    found: Key = json.loads(stored) if stored[0] == '"' else int(stored)
    return found


def record(row: Row) -> RunRecord:
    """Make a run of what `SELECT_RUNS` gives."""
    return RunRecord(*row)


def insert(lane: Lane, run: int | None, entries: Sequence[NewEntry]) -> int:
    """Insert entries that a run does not have yet, at the next positions, and return how many."""
    keys, ids, headers, payloads = columns(entries)
    done = lane.conn.execute(
        lane.tables.sql(
            "WITH given AS (SELECT *, row_number() OVER (PARTITION BY key ORDER BY number) AS nth "
            "FROM unnest(%(keys)s::text[], %(ids)s::text[], %(headers)s::json[], %(payloads)b::bytea[]) "
            "WITH ORDINALITY AS given (key, task_id, headers, payload, number)), "
            "new AS (INSERT INTO {entries} (lane, run, key, task_id, headers, payload, stored_at) "
            "SELECT %(lane)s, %(run)s, key, task_id, headers, payload, %(now)s FROM given "
            "WHERE %(run)s::bigint IS NULL OR key IS NULL OR (nth = 1 AND NOT EXISTS "
            "(SELECT FROM {entries} AS e WHERE e.run = %(run)s AND e.key = given.key)) "
            "ORDER BY number RETURNING sequence) INSERT INTO {positions} (lane, position, sequence) "
            "SELECT %(lane)s, %(last)s + row_number() OVER (ORDER BY sequence), sequence FROM new"
        ),
        {
            "keys": keys,
            "ids": ids,
            "headers": headers,
            "payloads": payloads,
            "lane": lane.tables.lane,
            "last": lane.last,
            "run": run,
            "now": lane.now,
        },
    )
    lane.last += done.rowcount
    return done.rowcount


def replace(lane: Lane, run: int | None, entries: Sequence[NewEntry]) -> int:
    """Delete the records that never became a task, and whose key a task has now; return how many."""
    done = lane.conn.execute(
        lane.tables.sql("DELETE FROM {entries} WHERE run = %s AND key = ANY(%s) AND task_id IS NULL"),
        [run, [key for key in columns(entries)[0] if key is not None]],
    )
    return done.rowcount


def clear(lane: Lane, after: int, limit: int) -> int | None:
    """Delete some of what is acknowledged and belongs to no open run; return where to continue, ``None`` at the end."""
    row = lane.conn.execute(
        lane.tables.sql(
            "WITH due AS (SELECT p.position, p.sequence FROM {positions} AS p JOIN {entries} AS e USING (sequence) "
            "WHERE p.lane = %(lane)s AND p.position > %(after)s AND p.position <= %(acknowledged)s "
            "AND (e.run IS NULL OR e.run NOT IN (SELECT number FROM {runs} WHERE state = 'open')) "
            "ORDER BY p.position LIMIT %(limit)s), "
            "gone AS (DELETE FROM {entries} AS e USING due WHERE e.sequence = due.sequence), "
            "free AS (DELETE FROM {positions} AS p USING due WHERE p.lane = %(lane)s AND p.position = due.position) "
            "SELECT count(*), max(position) FROM due"
        ),
        {"lane": lane.tables.lane, "after": after, "acknowledged": lane.acknowledged.position, "limit": limit},
    ).fetchone()
    count, last = row or (0, None)
    return int(last) if count == limit else None


def stats_of(conn: psycopg.Connection[Row], tables: Tables, at: str, *, may_lack_lane: bool = False) -> OutboxStats:
    """Return what a lane holds.

    :param may_lack_lane: no relay need have opened the lane yet.
    """
    row = conn.execute(
        tables.sql("SELECT last_position, acknowledged FROM {lanes} WHERE lane = %s"),
        [tables.lane],
    ).fetchone()
    if row is None and may_lack_lane:
        row = tables.lane << LANE_BITS, b""
    if row is None:
        raise OutboxInvalid(f"{at} has lost the row of lane {tables.lane}: restore it")
    last, mark = row[0], Mark(row[1].decode())
    waiting = conn.execute(
        tables.sql(
            "SELECT sum(n)::bigint, min(oldest) FROM (SELECT count(*) AS n, min(stored_at) AS oldest "
            "FROM {positions} AS p JOIN {entries} AS e USING (sequence) "
            "WHERE p.lane = %(lane)s AND p.position > %(after)s UNION ALL "
            "SELECT count(*), min(stored_at) FROM {incoming} AS i JOIN {entries} AS e USING (sequence) "
            "WHERE i.lane = %(lane)s) AS waiting"
        ),
        {"lane": tables.lane, "after": mark.position},
    ).fetchone()
    dead = conn.execute(
        tables.sql("SELECT count(*) FROM {entries} WHERE lane = %s AND reason IS NOT NULL"),
        [tables.lane],
    ).fetchone()
    pending, oldest = waiting or (0, None)
    return OutboxStats(
        pending=pending,
        oldest=oldest,
        dead=dead[0] if dead else 0,
        acknowledged=mark,
        last_position=last,
        runs=runs_of(conn, tables, 10),
    )


def runs_of(conn: psycopg.Connection[Row], tables: Tables, limit: int) -> Sequence[RunRecord]:
    """Return the newest runs of a lane, newest first."""
    rows = conn.execute(
        tables.sql(SELECT_RUNS + "WHERE lane = %s ORDER BY number DESC LIMIT %s"), [tables.lane, limit]
    ).fetchall()
    return tuple(map(record, rows))
