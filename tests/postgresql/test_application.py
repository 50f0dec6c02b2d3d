"""Tasks in an application's own transaction, which the outbox never ends."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.sql import SQL, Identifier

from owm_outbox import OutboxInvalid, TaskError
from owm_outbox_backends.postgresql import PostgresqlOutbox

from support.postgres_outbox import Place, note


def _append(outbox: PostgresqlOutbox, text: str, connection: Any) -> None:
    outbox.append([note(text)], connection=connection)


def test_tasks_are_committed_and_rolled_back_with_the_application_s_own(place: Place) -> None:
    """What is appended is there once the caller commits, with its own rows, and not if it rolls back."""
    place.rows("CREATE TABLE {t}_orders (id integer)")
    with place.open() as outbox, psycopg.connect(place.server.url()) as connection:
        for end, pending in ((connection.rollback, 0), (connection.commit, 1)):
            connection.execute(SQL("INSERT INTO {} VALUES (1)").format(Identifier(f"{place.table}_orders")))
            _append(outbox, "order", connection)
            assert outbox.stats().pending == 0, "the append committed by itself"
            end()
            assert outbox.stats().pending == pending
            assert place.rows("SELECT count(*) FROM {t}_orders") == [(pending,)]
    place.rows("DROP TABLE {t}_orders")


def test_a_savepoint_that_is_rolled_back_takes_its_tasks_with_it(place: Place) -> None:
    """Within one transaction, only what was appended outside of the savepoint is stored."""
    with place.open() as outbox, psycopg.connect(place.server.url()) as connection:
        _append(outbox, "kept", connection)
        with connection.transaction(force_rollback=True):
            _append(outbox, "dropped", connection)
        connection.commit()
        assert [b"kept" in entry.payload for entry in outbox.read(0, 10)] == [True]


def test_the_connection_may_have_any_settings(place: Place) -> None:
    """Rows as dicts, another schema path, another isolation: the connection is the application's."""
    with place.open() as outbox, psycopg.connect(place.server.url(), row_factory=dict_row) as connection:
        connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        connection.execute("SET search_path = pg_catalog")
        _append(outbox, "yes", connection)
        connection.commit()
        assert outbox.stats().pending == 1


def test_a_commit_is_on_disk_whatever_the_connection_asks_for(place: Place) -> None:
    """Where the application turned synchronous_commit off, a transaction with tasks is durable all the same."""
    with place.open() as outbox, psycopg.connect(place.server.url()) as connection:
        connection.execute("SET synchronous_commit = off")
        connection.commit()
        _append(outbox, "yes", connection)
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
        connection.commit()
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("off",)


def test_a_connection_that_cannot_keep_the_promise_is_refused(place: Place) -> None:
    """One that commits each statement, is closed, in a failed transaction, or elsewhere, is an error that says so."""
    with place.open() as outbox:
        with place.server.client() as commits, pytest.raises(OutboxInvalid, match="commits each statement by itself"):
            _append(outbox, "torn", commits)
        with pytest.raises(OutboxInvalid, match="is closed"):
            _append(outbox, "lost", commits)
        with psycopg.connect(place.server.url()) as failed:
            with pytest.raises(psycopg.Error):
                failed.execute("SELECT 1/0")
            with pytest.raises(OutboxInvalid, match="transaction that failed: roll it back"):
                _append(outbox, "lost", failed)
        missing = f'relation "public.{place.table}_entries" does not exist'
        with (
            psycopg.connect(place.server.url(), dbname="template1") as elsewhere,
            pytest.raises(OutboxInvalid, match=missing),
        ):
            _append(outbox, "lost", elsewhere)
        with place.server.client() as begun, begun.transaction():
            _append(outbox, "yes", begun)
        assert outbox.stats().pending == 1


def test_what_postgresql_cannot_store_is_refused_before_anything_is(place: Place) -> None:
    """A null in a task_id, or a key that no index takes, is an error of the task; in keys and headers a null works."""
    with place.open() as outbox:
        with pytest.raises(TaskError, match="2002 bytes, and PostgreSQL can index 2000"):
            outbox.append([note("a"), note("x" * 2000)], key=lambda task: task.text)
        assert outbox.stats().pending == 0
        odd = "a\0b\ud800c"
        outbox.append([note("a")], key=lambda task: odd, headers={odd: odd})
        (entry,) = outbox.read(0, 10)
        assert (entry.key, dict(entry.headers)) == (odd, {odd: odd})
        outbox.reject({entry.position: odd})
        (letter,) = outbox.dead_letters()
        assert letter.reason == "a\\x00b\\ud800c"
