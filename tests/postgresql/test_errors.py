"""What goes wrong with a server, and what is said of it: one line, the right exit code, and no secret."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from psycopg.sql import SQL, Identifier

from owm_outbox import ConfigurationError, Mark, OutboxInvalid, OutboxLocked, OutboxUnavailable, OwmOutboxError, Stop
from owm_outbox.plugins import open_outbox
from owm_outbox_backends.postgresql import PostgresqlOutbox
from owm_outbox_backends.postgresql.patience import Patience

from support.postgres import PostgresServer
from support.postgres_outbox import Place, note
from support.proxy import FaultProxy, chunks
from support.servers import free_port


def refused(kind: type[OwmOutboxError], says: str, work: Callable[[], object], secret: str = "s3cret") -> None:  # noqa: S107 - of tests
    """Check that this raises this very error, with one line that says so and gives no secret away."""
    with pytest.raises(OwmOutboxError) as raised:
        work()
    said = str(raised.value)
    assert type(raised.value) is kind, said
    assert says in said
    assert "\n" not in said
    assert secret not in said


# at the start


@pytest.mark.parametrize(
    ("kind", "says", "change"),
    [
        (ConfigurationError, "password authentication failed", (":s3cret-of-postgres@", ":s3cret@")),
        (ConfigurationError, 'password authentication failed for user "nobody"', ("//postgres:", "//nobody:")),
        (ConfigurationError, 'database "nothing" does not exist', ("/postgres?", "/nothing?")),
        (ConfigurationError, "does not support SSL, but SSL was required", ("?", "?sslmode=require&")),
        (ConfigurationError, "did you mean 'sslmode'?", ("?", "?ssl_mode=require&")),
        (ConfigurationError, 'invalid sslmode value: "maybe"', ("?", "?sslmode=maybe&")),
        (ConfigurationError, 'definition of service "nothing" not found', ("?", "?service=nothing&")),
        (
            ConfigurationError,
            'invalid target_session_attrs value: "any-thing"',
            ("?", "?target_session_attrs=any-thing&"),
        ),
        (ConfigurationError, "bad value for connect_timeout", ("?", "?connect_timeout=soon&")),
        (ConfigurationError, "table='Out box' is not a name", ("table=", "table=Out%20box&schema=")),
        (ConfigurationError, "schema='pg\"x' is not a name", ("?", "?schema=pg%22x&")),
        (OutboxUnavailable, "cannot be reached", ("@127.0.0.1", "@nothing.invalid")),
        (OutboxInvalid, "create the schema", ("?", "?schema=nothing&")),
    ],
)
def test_a_wrong_address(place: Place, kind: type[OwmOutboxError], says: str, change: tuple[str, str]) -> None:
    """What is wrong with a URL, or with the user that it names, ends with 78, or 73 for what is not there."""
    refused(kind, says, lambda: open_outbox(place.url.replace(*change, 1)))


def test_a_server_that_is_not_there(place: Place) -> None:
    """A server that is down is tried again later: 75."""
    url = place.url.replace(f":{place.server.port}", f":{free_port()}")
    refused(OutboxUnavailable, "Connection refused", lambda: open_outbox(url))


def test_the_first_host_that_answers_is_taken(place: Place) -> None:
    """The URL may list several hosts, as libpq has it: a standby for when the first one is down."""
    own = f"127.0.0.1:{place.server.port}"
    with open_outbox(place.url.replace(own, f"127.0.0.1:{free_port()},{own}")) as outbox:
        assert outbox.append([note("yes")]).new == 1


def test_a_server_without_a_free_connection(place: Place) -> None:
    """Too many connections are an outage: 75."""
    role = f"{place.table}_few"
    with place.server.client() as admin:
        admin.execute(SQL("CREATE ROLE {} LOGIN CONNECTION LIMIT 0 PASSWORD 's3cret'").format(Identifier(role)))
        url = place.url.replace("postgres:s3cret-of-postgres", f"{role}:s3cret")
        refused(OutboxUnavailable, "too many connections for role", lambda: open_outbox(url))
        admin.execute(SQL("DROP ROLE {}").format(Identifier(role)))


def test_missing_rights_are_named_with_what_grants_them(place: Place) -> None:
    """A user that lacks a right is told the statement that grants it; with these, everything works."""
    place.open().close()
    role = f"{place.table}-user"
    url = place.url.replace("postgres:s3cret-of-postgres", f"{role}:s3cret")
    with place.server.client() as admin:
        admin.execute(SQL("CREATE ROLE {} LOGIN PASSWORD 's3cret'").format(Identifier(role)))
        version = f"{place.table}_version"
        refused(OutboxInvalid, f'GRANT SELECT ON public.{version} TO "{role}"', lambda: open_outbox(url))
        admin.execute(SQL("GRANT SELECT ON {} TO {}").format(Identifier(version), Identifier(role)))
        with open_outbox(url) as outbox:
            with pytest.raises(OutboxInvalid, match="permission denied for table") as raised:
                outbox.append([note("no")])
            grants = str(raised.value).rpartition(": ")[2]
            assert f'GRANT INSERT, SELECT, UPDATE ON public.{place.table}_state TO "{role}"' in grants
            for grant in grants.split("; "):
                admin.execute(grant.encode())
            outbox.append([note("yes")])
            with outbox.lock():
                assert outbox.stats().pending == 1
                outbox.start_run("job")
        admin.execute(SQL("DROP OWNED BY {}; DROP ROLE {}").format(Identifier(role), Identifier(role)))


def test_an_application_may_have_the_right_to_append_and_no_other(place: Place) -> None:
    """To append, a role needs INSERT, and SELECT of the sequence that the server gives."""
    place.open().close()
    role, tables = (
        f"{place.table}_app",
        [Identifier(f"{place.table}_{what}") for what in ("entries", "incoming", "version")],
    )
    with place.server.client() as admin:
        admin.execute(SQL("CREATE ROLE {} LOGIN PASSWORD 's3cret'").format(Identifier(role)))
        admin.execute(SQL("GRANT INSERT, SELECT (lane, sequence) ON {} TO {}").format(tables[0], Identifier(role)))
        admin.execute(SQL("GRANT INSERT ON {} TO {}").format(tables[1], Identifier(role)))
        admin.execute(SQL("GRANT SELECT ON {} TO {}").format(tables[2], Identifier(role)))
        with open_outbox(place.url.replace("postgres:s3cret-of-postgres", f"{role}:s3cret")) as outbox:
            assert outbox.append([note("yes")]).new == 1
        admin.execute(SQL("DROP OWNED BY {}; DROP ROLE {}").format(Identifier(role), Identifier(role)))


# tables


def test_tables_that_are_not_ours_are_untouched(place: Place) -> None:
    """A table of another program, or of a newer version, is refused with 73; a command that looks makes none."""
    refused(OutboxInvalid, "there is no outbox", lambda: place.open(create=False))
    place.rows("CREATE TABLE {t}_entries (id integer)")
    refused(OutboxInvalid, f"there is a table public.{place.table}_entries that is not ours", place.open)
    assert place.rows("SELECT to_regclass('{t}_version')") == [(None,)]
    place.rows("DROP TABLE {t}_entries; CREATE TABLE {t}_version (name text)")
    refused(OutboxInvalid, "belongs to another program", place.open)
    place.rows("DROP TABLE {t}_version")
    place.open().close()
    place.rows("INSERT INTO {t}_version VALUES (99)")
    refused(OutboxInvalid, "was made by a newer owm_outbox (its tables have version 99", place.open)


def test_tables_that_lose_their_rows_are_refused(place: Place) -> None:
    """A table that is UNLOGGED is empty after a crash of the server; one that is missing is named."""
    place.open().close()
    place.rows("ALTER TABLE {t}_entries SET UNLOGGED")
    refused(OutboxInvalid, f"{place.table}_entries is UNLOGGED", place.open)
    place.rows("DROP TABLE {t}_entries")
    refused(OutboxInvalid, f"lacks the table public.{place.table}_entries", place.open)


def test_two_that_start_at_once_make_the_tables_once(place: Place) -> None:
    """However many processes find no tables, each can use them."""
    opened: list[PostgresqlOutbox] = []
    threads = [threading.Thread(target=lambda: opened.append(place.open())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({outbox.id for outbox in opened}) == 1
    for outbox in opened:
        outbox.close()
    assert len(opened) == 6


def test_plain_sql_makes_the_same_tables(place: Place) -> None:
    """What schema_sql prints is what create makes: a tool for migrations may run it instead."""
    columns = (
        "SELECT replace(table_name, '{t}', ''), column_name, data_type, is_nullable FROM information_schema.columns "
        "WHERE table_name LIKE '{t}\\_%' ORDER BY 1, 2"
    )
    indexes = "SELECT replace(indexdef, '{t}', '') FROM pg_indexes WHERE tablename LIKE '{t}\\_%' ORDER BY 1"
    place.open().close()
    made = [place.rows(columns), place.rows(indexes)]
    other = Place(place.server)
    with place.server.client() as client:
        client.execute(PostgresqlOutbox.schema_sql(table=other.table).encode())
    assert [other.rows(columns), other.rows(indexes)] == made
    with other.open(create=True) as outbox:
        assert outbox.append([note("yes")]).new == 1
    for what in ("entries", "incoming", "positions", "runs", "lanes", "state", "version"):
        other.rows(f"DROP TABLE {{t}}_{what}")


# in the middle


def _with_setting(place: Place, setting: str) -> PostgresqlOutbox:
    return PostgresqlOutbox(place.server.url(options=f"-c%20{setting}"), table=place.table)


def test_a_statement_that_takes_too_long(place: Place) -> None:
    """statement_timeout cancels one statement: 75, nothing is stored, and the next one works."""
    place.open().close()
    with _with_setting(place, "statement_timeout%3D200") as outbox:
        with place.server.client() as locks, locks.transaction():
            locks.execute(SQL("LOCK TABLE {}").format(Identifier(f"{place.table}_entries")))
            refused(OutboxUnavailable, "due to statement timeout", lambda: outbox.append([note("no")]))
        assert outbox.append([note("yes")]).new == 1
        assert outbox.stats().pending == 1


@pytest.mark.slow
def test_a_lock_of_somebody_else_is_not_waited_for_long(place: Place) -> None:
    """Where another session locks a table, a write gives up after 4 s, with 75: a stop must not wait for it."""
    with place.open() as outbox, place.server.client() as locks, locks.transaction():
        locks.execute(SQL("LOCK TABLE {}").format(Identifier(f"{place.table}_entries")))
        began = time.monotonic()
        refused(OutboxUnavailable, "another session holds a lock", lambda: outbox.append([note("no")]))
        assert time.monotonic() - began < 20  # 4 s, on a machine that does nothing else


def test_a_server_that_takes_no_writes(place: Place) -> None:
    """A standby, or a database set to read-only, is waited for: 75."""
    place.open().close()
    with _with_setting(place, "default_transaction_read_only%3Don") as outbox:
        refused(OutboxUnavailable, "takes no writes now", lambda: outbox.append([note("no")]))
        refused(OutboxUnavailable, "takes no writes now", lambda: outbox.start_run("job"))
        assert outbox.stats().pending == 0


def test_a_transaction_that_stood_still(place: Place) -> None:
    """What the server ended because it stood still is 75, and the next call works on a new connection."""
    with place.open() as outbox:

        def stand_still() -> None:
            with outbox._db.lane() as lane:
                lane.conn.execute("SET LOCAL idle_in_transaction_session_timeout = '50ms'")
                time.sleep(0.3)
                lane.conn.execute("SELECT 1")

        refused(OutboxUnavailable, "public.", stand_still)
        assert outbox.append([note("yes")]).new == 1


def test_a_connection_that_was_ended_while_it_was_idle(place: Place) -> None:
    """An operator ends our connections, or the server is restarted: the next call connects again, and tells nobody."""
    with place.open() as outbox:
        for call in (lambda: outbox.append([note("yes")]), outbox.stats, lambda: outbox.state.set("a", b"b")):
            with outbox._db.writer.connected() as conn:
                pid = conn.info.backend_pid
            place.rows(f"SELECT pg_terminate_backend({pid})")
            while (pid,) in place.rows("SELECT pid FROM pg_stat_activity"):  # it returns before that has ended
                time.sleep(0.01)
            call()
        assert outbox.stats().pending == 1


@pytest.mark.slow
def test_a_server_that_is_killed_and_comes_back(own_place: Place) -> None:
    """Killed under an outbox: what was stored is there, calls meanwhile are 75, and the same object works again."""
    with own_place.open() as outbox:
        outbox.append([note("before")])
        own_place.server.kill()
        for call in (lambda: outbox.append([note("no")]), outbox.stats, lambda: outbox.start_run("job")):
            refused(OutboxUnavailable, "run again", call)
        own_place.server.start()
        outbox.append([note("after")])
        assert [b"before" in entry.payload for entry in outbox.read(0, 10)] == [True, False]


@pytest.mark.slow
def test_killed_under_many_appends(own_postgres: PostgresServer) -> None:
    """The server is killed again and again: each append that returned is there, and each that raised at most once."""
    place = Place(own_postgres)
    place.open().close()
    returned: set[str] = set()
    raised: set[str] = set()
    stop = threading.Event()

    def work(number: int) -> None:
        with place.open() as outbox:
            count = 0
            while not stop.is_set():
                count += 1
                text = f"{number} {count}"
                try:
                    outbox.append([note(text)], key=lambda task: task.text)
                    returned.add(text)
                except OutboxUnavailable:
                    raised.add(text)
                    stop.wait(0.02)

    threads: list[Any] = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(0.5)
        own_postgres.kill()
        own_postgres.start()
    stop.set()
    for thread in threads:
        thread.join(30)
    with place.open() as outbox:
        found = [entry.key for entry in outbox.read(0, 10**6)]
    assert len(found) == len(set(found))
    assert returned <= set(found) <= returned | raised
    assert len(returned) > 100


def test_a_password_is_in_no_text(place: Place) -> None:
    """Neither the object nor what it says of itself has the password."""
    with place.open() as outbox:
        assert place.server.password not in f"{outbox!r} {vars(outbox)!r} {outbox._db.at}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda outbox: outbox.append([note("x")]), OutboxUnavailable, "was lost during a commit, and whether that"),
        (lambda outbox: outbox.read(0, 10), OutboxLocked, "that held the lock was lost"),
        (lambda outbox: outbox.acknowledge(Mark("1 lease x")), OutboxLocked, "that held the lock was lost"),
        (lambda outbox: outbox.stats(), OutboxLocked, "that held the lock was lost"),
        (lambda outbox: outbox.wait(30, Stop()), OutboxUnavailable, "the connection to"),
    ],
    ids=["append", "read", "acknowledge", "stats", "wait"],
)
def test_a_server_that_does_not_answer_is_given_up(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[[PostgresqlOutbox], object],
    kind: type[OwmOutboxError],
    says: str,
) -> None:
    """One whose machine is paused keeps its connections open, and answers nothing: the wait ends all the same."""
    monkeypatch.setattr(Patience, "longest", 0.5)
    with FaultProxy("127.0.0.1", place.server.port, framing=chunks) as proxy:
        url = place.server.url().replace(f":{place.server.port}", f":{proxy.port}")
        with PostgresqlOutbox(url, table=place.table) as outbox, outbox.lock():
            hangs = proxy.lose_reply(then="hang")
            refused(kind, says, lambda: call(outbox))
            assert hangs.count == 1
