"""PostgresqlSink: tables that keep no mark are refused, bad rows are named, and failures add nothing twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from psycopg.sql import SQL, Identifier

from owm_outbox import (
    Batch,
    ConfigurationError,
    EntriesRejected,
    Entry,
    Mark,
    OwmOutboxError,
    SinkUnavailable,
)
from owm_outbox.plugins import open_sink
from owm_outbox.sink import pausing_with
from owm_outbox_backends.postgresql.patience import Patience

from support.commands import run
from support.ordeal import CITIES, Ordeal, check_once
from support.postgres import PostgresServer
from support.postgres_table import Table, batch, table_on
from support.proxy import Fault, FaultProxy, chunks
from support.servers import free_port
from support.weather import serving

ONE = batch(b'{"n":1}')
TWO = batch(b'{"n":2}', first=2, after=ONE.mark)


# -- tables


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("DROP TABLE {t}", "there is no table public.{t}: make both tables with what owm-outbox schema"),
        ("DROP TABLE {t}_marks", "there is no table public.{t}_marks: make both tables with what owm-outbox schema"),
        (
            "ALTER TABLE {t} SET UNLOGGED",
            'public.{t} is not logged, so a crash of the server empties it: ALTER TABLE "',
        ),
        ("ALTER TABLE {t}_marks SET UNLOGGED", "{t}_marks is not logged, so a crash of the server empties it"),
        (
            "DROP TRIGGER owm_outbox_forget ON {t}",
            "the trigger owm_outbox_forget is missing or disabled, so a TRUNCATE",
        ),
        ("ALTER TABLE {t} DISABLE TRIGGER ALL", "the trigger owm_outbox_forget is missing or disabled, so a"),
        ("ALTER TABLE {t} DROP COLUMN headers", "has no column headers: make both tables with what owm-outbox schema"),
        (
            "ALTER TABLE {t} ADD shop int NOT NULL DEFAULT 1; ALTER TABLE {t} ALTER shop DROP DEFAULT",
            "the column shop needs a value that no task has: give it a default",
        ),
        (
            "DROP TABLE {t}; CREATE VIEW {t} AS SELECT 1",
            "public.{t} is not a table: make both tables with what owm-outbox",
        ),
    ],
)
@pytest.mark.parametrize("when", ["at first", "between two batches"])
def test_a_table_that_cannot_keep_a_mark_is_refused(table: Table, change: str, says: str, when: str) -> None:
    """What was made otherwise, or changed since, is refused with what to do; nothing is added, or taken for held."""
    with table.open() as sink:
        if when == "between two batches":
            sink.send(ONE)
        table.rows(change)
        with pytest.raises(ConfigurationError) as refused:
            sink.send(ONE if when == "at first" else TWO)
        assert says.replace("{t}", table.name) in str(refused.value)
        assert str(refused.value).startswith(f"public.{table.name} on 127.0.0.1:{table.server.port}/postgres")
    if "VIEW" in change:
        table.rows("DROP VIEW {t}")


def test_tables_that_were_dropped_and_made_again_hold_nothing(table: Table) -> None:
    """The marks go with the tasks; a table that was made again without them is refused, as it has no trigger."""
    with table.open() as sink:
        sink.send(ONE)
        table.rows("DROP TABLE {t}, {t}_marks; DROP FUNCTION {t}_forget()")
        table.make()
        assert sink.mark("box") == ""
        sink.send(ONE)
        table.rows("CREATE TABLE other (LIKE {t} INCLUDING ALL); DROP TABLE {t}; ALTER TABLE other RENAME TO {t}")
        for call in (lambda: sink.send(TWO), lambda: sink.mark("box")):
            with pytest.raises(ConfigurationError, match="the trigger owm_outbox_forget is missing"):
                call()


def test_what_workers_took_out_stays_delivered(table: Table) -> None:
    """A DELETE, whether of one row or of all, is not a loss; a TRUNCATE is."""
    with table.open() as sink:
        sink.send(ONE)
        table.rows("DELETE FROM {t}")
        assert sink.mark("box") == ONE.mark
        table.rows("VACUUM FULL {t}")
        sink.send(TWO)
        table.rows("TRUNCATE {t}")
        assert sink.mark("box") == ""


def test_a_truncate_in_the_middle_of_a_batch_waits_for_it(table: Table) -> None:
    """Neither ends the other as a deadlock, and afterwards tasks and marks agree."""
    with table.server.client() as other, table.open(retries=0) as sink:
        with other.transaction():
            other.execute(SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(Identifier(table.name)))
            thread = threading.Thread(target=sink.send, args=(ONE,))
            thread.start()
            while not table.rows("SELECT 1 FROM pg_locks WHERE NOT granted"):
                assert thread.is_alive()
            other.execute(SQL("TRUNCATE {}").format(Identifier(table.name)))
        thread.join()
        assert (sink.mark("box"), table.payloads()) == (ONE.mark, [b'{"n":1}'])


def test_a_batch_is_on_disk_whatever_the_user_s_default_is(table: Table) -> None:
    """With ``synchronous_commit = off``, a server that fails would lose what the relay has cleared by then."""
    table.rows("ALTER TABLE {t} ADD durability text DEFAULT current_setting('synchronous_commit')")
    with open_sink(table.url(options=quote("-c synchronous_commit=off"))) as sink:
        sink.send(ONE)
    assert table.rows("SELECT durability FROM {t}") == [("on",)]


# -- rows


def test_headers_are_a_column(table: Table) -> None:
    """An entry's headers are there as an object, with any text in them."""
    headers = {"traceparent": "00-abc-def-01", "content-type": "application/json", "name": 'Zürich "市" \\ \n'}
    entries = [Entry(1, "a", b"{}", headers=headers), Entry(2, "b", b"{}")]
    with table.open() as sink:
        sink.send(Batch("box", Mark(""), entries, Mark("2 lease b")))
    assert table.rows("SELECT task_id, headers FROM {t} ORDER BY id") == [("a", headers), ("b", {})]


def test_rows_that_a_constraint_refuses_are_named(table: Table) -> None:
    """A constraint of the team's own sets single tasks aside, each with what the server says."""
    table.rows(
        """
        ALTER TABLE {t} ADD CONSTRAINT small CHECK ((payload->>'n')::int < 100);
        CREATE UNIQUE INDEX ON {t} (task_id);
        """
    )
    payloads = [b'{"n":1}', b'{"n":100}', b'{"n":"x"}', b'{"n":2}', b"{", b"\xff", b'{"n":3}']
    entries = [Entry(n, f"task-{min(n, 6)}", payload) for n, payload in enumerate(payloads, 1)]
    entries.append(Entry(8, "task-1", b'{"n":4}'))
    with table.open() as sink:
        with pytest.raises(EntriesRejected) as rejected:
            sink.send(Batch("box", Mark(""), entries, Mark("8 lease x")))
        assert (sink.mark("box"), table.payloads()) == ("", [])
    reasons = rejected.value.reasons
    assert sorted(reasons) == [2, 3, 5, 6, 8]
    assert 'violates check constraint "small"' in reasons[2]
    assert 'invalid input syntax for type integer: "x"' in reasons[3]
    assert "invalid input syntax for type json" in reasons[5]
    assert "its payload is not UTF-8" in reasons[6]
    assert "duplicate key value violates unique constraint" in reasons[8]


def test_a_constraint_that_is_looked_at_in_the_end_is_not_a_tasks_fault(table: Table) -> None:
    """Which entry breaks a deferred constraint is not known: no task is set aside for it."""
    table.rows("ALTER TABLE {t} ADD CONSTRAINT once UNIQUE (task_id) DEFERRABLE INITIALLY DEFERRED")
    same = [Entry(1, "a", b"{}"), Entry(2, "a", b"{}")]
    with table.open() as sink, pytest.raises(ConfigurationError, match='violates unique constraint "once"'):
        sink.send(Batch("box", Mark(""), same, Mark("2 lease a")))
    assert table.payloads() == []


# -- bad input


@pytest.mark.parametrize(
    ("kind", "says", "change"),
    [
        (ConfigurationError, "needs table=NAME, such as postgresql://host/database?table=tasks", ("table=", "dbname=")),
        (ConfigurationError, "table='' in", ("{t}", "")),
        (ConfigurationError, "is no name for a table: use 1 to 56 bytes", ("{t}", "x" * 57)),
        (ConfigurationError, "there is no table nowhere.", ("?", "?schema=nowhere&")),
        (ConfigurationError, "did you mean 'retries'?", ("?", "?retry=3&")),
        (ConfigurationError, "option retries='-1'", ("?", "?retries=-1&")),
        (ConfigurationError, "password authentication failed", (":s3cret-of-postgres@", ":s3cret@")),
        (ConfigurationError, 'database "nothing" does not exist', ("/postgres?", "/nothing?")),
        (ConfigurationError, "does not support SSL, but SSL was required", ("?", "?sslmode=require&")),
        (
            ConfigurationError,
            "is not an address that PostgreSQL's client understands",
            (":s3cret-of-postgres@", ":s3cret%zz@"),
        ),
    ],
)
def test_a_wrong_address(table: Table, kind: type[OwmOutboxError], says: str, change: tuple[str, str]) -> None:
    """One line, which says what is wrong, and no secret."""
    old, new = (part.replace("{t}", table.name) for part in change)
    with pytest.raises(kind) as refused, open_sink(table.url(retries=0).replace(old, new, 1)) as sink:
        sink.send(ONE)
    assert says in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_what_the_user_may_not_do_is_granted_as_the_message_says(table: Table) -> None:
    """A user with no rights is told which; with just those, everything works."""
    role = f"r{table.name}"
    table.rows(f"CREATE ROLE {role} LOGIN PASSWORD 's3cret'")
    url = table.url(retries=0).replace("postgres:s3cret-of-postgres@", f"{role}:s3cret@", 1)
    try:
        with open_sink(url) as sink:
            for rest in (": GRANT INSERT ON ", ": GRANT SELECT, INSERT, UPDATE ON "):
                with pytest.raises(ConfigurationError) as refused:
                    sink.send(ONE)
                grant = str(refused.value).rpartition(": ")[2]
                assert rest in str(refused.value)
                table.rows(grant)
            sink.send(ONE)
            sink.send(TWO)
            assert sink.mark("box") == TWO.mark
    finally:
        table.rows(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_server_that_is_down_is_an_outage(table: Table) -> None:
    """It is tried as often as the URL says, with the pauses of whoever calls."""
    pauses: list[float] = []

    def wait(seconds: float) -> bool:
        pauses.append(seconds)
        return True

    url = f"postgresql://u:s3cret@127.0.0.1:{free_port()}/db?table=t&retries=3"
    with open_sink(url) as sink, pausing_with(wait), pytest.raises(SinkUnavailable, match="cannot be reached"):
        sink.send(ONE)
    assert len(pauses) == 3
    assert all(0.5 * 2**n <= seconds <= 2**n for n, seconds in enumerate(pauses))


def test_a_standby_takes_nothing(table: Table) -> None:
    """What cannot be written now is an outage."""
    url = table.url(retries=0, options=quote("-c default_transaction_read_only=on"))
    with open_sink(url) as sink, pytest.raises(SinkUnavailable, match="takes no writes now"):
        sink.send(ONE)


# -- failures


@pytest.fixture
def own_table(own_postgres: PostgresServer) -> Iterator[Table]:
    """Give a table on a server of the test's own."""
    with table_on(own_postgres) as table:
        yield table


def _relayed(folder: Path, url: str) -> None:
    """Deliver as many cities as the ordeal has, in this process."""
    with serving(CITIES) as api:
        args = ("--outbox", f"sqlite:///{folder}/tasks.db", "--sink", url, "--api-url", api.url)
        done = run("owm-producer", *args, timeout=110)
    assert done.code == 0, done.err


@pytest.mark.slow
@pytest.mark.parametrize(("every", "containing"), [(7, b"COMMIT"), (43, b"")], ids=["commits", "replies"])
def test_lost_replies_add_nothing_twice(table: Table, tmp_path: Path, every: int, containing: bytes) -> None:
    """The reply to each 7th commit, or each 43rd of any kind, is lost with its connection."""
    with FaultProxy("127.0.0.1", table.server.port, framing=chunks) as proxy:
        fault = proxy._add(Fault("reply", "cut", range(every, 10**9, every), containing=containing))
        _relayed(tmp_path, table.url(retries=20).replace(f":{table.server.port}", f":{proxy.port}"))
    assert fault.count >= len(CITIES) // 500 // 7
    check_once(table.payloads())


@pytest.mark.slow
def test_producer_and_server_are_killed(own_table: Table, tmp_path: Path) -> None:
    """The producer ten times, the server twice while it goes on: each city is there once."""

    def kill() -> None:
        own_table.server.kill()
        own_table.server.start()

    def count() -> int:
        return int(own_table.rows("SELECT count(*) FROM {t}")[0][0])

    Ordeal(tmp_path / "tasks.db", own_table.url(), count).pass_through(10, {3: kill, 7: kill})
    check_once(own_table.payloads())


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_given_up(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose machine is paused is an outage, not a wait without end; the commit that it made counts."""
    monkeypatch.setattr(Patience, "longest", 0.5)
    with FaultProxy("127.0.0.1", table.server.port, framing=chunks) as proxy:
        url = table.url(retries=0).replace(f":{table.server.port}", f":{proxy.port}")
        with open_sink(url) as sink:
            assert sink.mark("box") == ""
            hangs = proxy._add(Fault("reply", "hang", containing=b"COMMIT"))
            with pytest.raises(SinkUnavailable, match="was lost during a commit"):
                sink.send(ONE)
            assert hangs.count == 1
            assert sink.mark("box") == ONE.mark
