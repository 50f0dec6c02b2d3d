"""Dead letters of a PostgresqlOutbox: one per job, key and reason, which counts how often it was rejected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import psycopg

from owm_outbox import NO_HEADERS, DeadLetter, NewEntry

from .address import Tables
from .connection import Row
from .lane import Lane
from .rows import columns, key_of, storable_text

__all__ = ["insert_letters", "letters_after", "reject_entries", "retry_letters"]


def insert_letters(lane: Lane, run: int | None, records: Sequence[NewEntry]) -> int:
    """Insert records that never became a task and that a run does not have yet, and return how many."""
    keys, ids, headers, payloads = columns(records)
    added = 0
    for key, task_id, head, payload, record in zip(keys, ids, headers, payloads, records, strict=True):
        done = lane.conn.execute(
            lane.tables.sql(
                "INSERT INTO {entries} (lane, position, run, key, task_id, headers, payload, stored_at, "
                "reason, rejected_at, first_rejected_at, times) "
                "VALUES (%(lane)s, %(at)s, %(run)s, %(key)s, %(id)s, %(headers)s::json, %(payload)b, %(now)s, "
                "%(reason)s, %(now)s, %(now)s, 1) "
                "ON CONFLICT (run, key) WHERE run IS NOT NULL AND key IS NOT NULL DO NOTHING"
            ),
            {
                "lane": lane.tables.lane,
                "at": lane.last + 1,
                "run": run,
                "key": key,
                "id": task_id,
                "headers": head,
                "payload": payload,
                "now": lane.now,
                "reason": storable_text(record.reason or ""),
            },
        )
        if done.rowcount:
            added += 1
            lane.last += 1
            _merge(lane, lane.last)
    return added


def reject_entries(lane: Lane, reasons: Mapping[int, str]) -> None:
    """Turn the entries at these positions into dead letters; ignore positions that have none."""
    given = {position: storable_text(reason) for position, reason in reasons.items() if 0 < position < 2**63}
    rejected = lane.conn.execute(
        lane.tables.sql(
            "WITH gone AS (DELETE FROM {positions} AS p "
            "USING unnest(%(positions)s::bigint[], %(reasons)s::text[]) AS given (position, reason) "
            "WHERE p.lane = %(lane)s AND p.position = given.position RETURNING p.position, p.sequence, given.reason) "
            "UPDATE {entries} AS e SET position = gone.position, reason = gone.reason, rejected_at = %(now)s, "
            "first_rejected_at = coalesce(first_rejected_at, %(now)s), times = times + 1 "
            "FROM gone WHERE e.sequence = gone.sequence RETURNING e.position, e.run, e.key IS NOT NULL"
        ),
        {"now": lane.now, "lane": lane.tables.lane, "positions": list(given), "reasons": list(given.values())},
    ).fetchall()
    _count_rejected(lane, [run for _, run, _ in rejected if run is not None], 1)
    for position, run, has_key in sorted(rejected):
        if run is not None and has_key:
            _merge(lane, position)


def _count_rejected(lane: Lane, runs: Sequence[int], by: int) -> None:
    lane.conn.execute(
        lane.tables.sql(
            "UPDATE {runs} AS r SET rejected = rejected + %s * counted.times "
            "FROM (SELECT run, count(*) AS times FROM unnest(%s::bigint[]) AS run GROUP BY run) AS counted "
            "WHERE r.number = counted.run"
        ),
        [by, list(runs)],
    )


def _merge(lane: Lane, position: int) -> None:
    """Let the letter of the newest run be the only one of this job, key, reason and kind.

    Not that of an older run: the newest one may be in progress, and needs its keys.
    """
    letters = lane.conn.execute(
        lane.tables.sql(
            "SELECT old.position, old.times, old.first_rejected_at, old.rejected_at FROM {entries} AS new "
            "JOIN {runs} AS its ON its.number = new.run "
            "JOIN {entries} AS old ON old.lane = new.lane AND old.key = new.key AND old.reason = new.reason "
            "AND (old.task_id IS NULL) = (new.task_id IS NULL) "
            "JOIN {runs} AS other ON other.number = old.run AND other.job = its.job "
            "WHERE new.lane = %s AND new.position = %s AND new.reason IS NOT NULL ORDER BY old.run"
        ),
        [lane.tables.lane, position],
    ).fetchall()
    if len(letters) < 2:
        return
    _, times, first, last = zip(*letters, strict=True)
    *others, kept = (letter[0] for letter in letters)
    lane.conn.execute(
        lane.tables.sql("DELETE FROM {entries} WHERE lane = %s AND position = ANY(%s) AND reason IS NOT NULL"),
        [lane.tables.lane, others],
    )
    lane.conn.execute(
        lane.tables.sql(
            "UPDATE {entries} SET times = %s, first_rejected_at = %s, rejected_at = %s "
            "WHERE lane = %s AND position = %s AND reason IS NOT NULL"
        ),
        [sum(times), min(first), max(last), lane.tables.lane, kept],
    )


def letters_after(conn: psycopg.Connection[Row], tables: Tables, position: int, limit: int) -> list[DeadLetter]:
    """Return the first dead letters beyond this position."""
    rows = conn.execute(
        tables.sql(
            "SELECT position, task_id, payload, reason, rejected_at, first_rejected_at, times, "
            "(SELECT id FROM {runs} AS r WHERE r.number = e.run), key, headers FROM {entries} AS e "
            "WHERE lane = %s AND reason IS NOT NULL AND position > %s ORDER BY position LIMIT %s"
        ),
        [tables.lane, position, limit],
    )
    return [_letter(*row) for row in rows]


def _letter(
    position: int,
    task_id: str | None,
    payload: bytes,
    reason: str,
    last: datetime,
    first: datetime,
    times: int,
    run: str | None,
    key: str | None,
    headers: dict[str, str] | None,
) -> DeadLetter:
    known = None if key is None else key_of(key)
    return DeadLetter(position, task_id, payload, reason, last, first, times, run, known, headers or NO_HEADERS)


def retry_letters(lane: Lane, positions: Sequence[int]) -> int:
    """Store letters that are tasks again as entries, at new positions in the same order; return how many they are."""
    retried = lane.conn.execute(
        lane.tables.sql(
            "WITH letter AS (SELECT sequence, row_number() OVER (ORDER BY position) AS number FROM {entries} "
            "WHERE lane = %(lane)s AND position = ANY(%(positions)s) AND reason IS NOT NULL AND task_id IS NOT NULL), "
            "done AS (UPDATE {entries} AS e SET position = NULL, reason = NULL, rejected_at = NULL "
            "FROM letter WHERE e.sequence = letter.sequence RETURNING e.run, e.sequence, letter.number), "
            "new AS (INSERT INTO {positions} (lane, position, sequence) "
            "SELECT %(lane)s, %(last)s + number, sequence FROM done) SELECT run FROM done"
        ),
        {"lane": lane.tables.lane, "positions": list(positions), "last": lane.last},
    ).fetchall()
    lane.last += len(retried)
    lane.keep_last()
    _count_rejected(lane, [run for (run,) in retried if run is not None], -1)
    return len(retried)
