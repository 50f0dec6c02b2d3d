"""Outboxes on PostgreSQL that take the order of inserts for that of commits, as is often recommended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString

from owm_outbox import MAX_BYTES, Entry
from owm_outbox_backends.postgresql import PostgresqlOutbox

from support.contract_kit.registry import caught_by


class _BySequence(PostgresqlOutbox):
    """Takes the value of an identity column for the position."""

    visible: LiteralString

    def read(self, after: int, limit: int, max_bytes: int = MAX_BYTES) -> Sequence[Entry]:
        with self._db.writer.connected() as conn:
            rows = conn.execute(
                self._tables.sql(
                    "SELECT sequence, task_id, payload FROM {entries} AS e WHERE sequence > %s AND "  # noqa: S608 - ours
                    + self.visible
                    + " ORDER BY sequence LIMIT %s"
                ),
                [after, limit],
            )
            return [Entry(position, task_id, bytes(payload)) for position, task_id, payload in rows]


@caught_by("test_a_transaction_that_ends_late_is_read_late", "became readable behind a reader")
class TakesIdentityValuesForPositions(_BySequence):
    """Reads whatever is committed: a transaction that is committed late has a lower value, and is never read."""

    visible = "true"


@caught_by("test_a_transaction_that_ends_late_is_read_late", "became readable behind a reader")
class WaitsForOlderTransactions(_BySequence):
    """Reads what older transactions than all that are open have written: one of these may insert late, too."""

    visible = "e.xmin::text::bigint < pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
