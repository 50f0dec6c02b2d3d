"""The commands of owm-outbox that know an outbox by its URL or its kind, on a real server."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from owm_outbox.plugins import open_outbox

from support.commands import run
from support.postgres import PostgresServer
from support.postgres_outbox import Place, note

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_RELATIONS = """
    SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') UNION ALL
    SELECT n.nspname, p.proname FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2
"""


@pytest.fixture
def database(own_postgres: PostgresServer) -> str:
    """Give the URL of an empty database."""
    with own_postgres.client() as admin:
        admin.execute("CREATE DATABASE shop")
    return own_postgres.url().removesuffix("postgres") + "shop"


# check


def test_our_outbox_passes_next_to_the_real_one(own_place: Place) -> None:
    """An outbox is checked in tables of its own, its failures included; the real ones are as they were."""
    with own_place.open() as outbox:
        outbox.append([note("waits")])
        before = own_place.rows(_RELATIONS)
        done = run("owm-outbox", "check", "outbox", own_place.url, timeout=580)
        assert (done.code, done.err) == (0, ""), done.out
        for promise in ("positions are never reused", "a store that fails stores nothing"):
            assert f"  ok    {promise}\n" in done.out
        skipped = [line for line in done.out.splitlines() if "skipped" in line]
        assert len(skipped) == 1
        assert "Capabilities(settable_clock=False): not tested" in skipped[0]
        assert own_place.server.password not in done.out
        assert own_place.rows(_RELATIONS) == before
        assert outbox.stats().pending == 1


def test_a_check_where_no_tables_can_be_made_ends_with_one_line(own_place: Place) -> None:
    """A schema that is missing, or a right in it, is said before any promise is tested, with what grants it."""
    schema, role = "order", f"{own_place.table}-user"  # names that a statement must quote
    url = own_place.server.url(schema=schema).replace("postgres:s3cret-of-postgres", f"{role}:s3cret")
    with own_place.server.client() as admin:
        admin.execute(SQL("CREATE ROLE {} LOGIN PASSWORD 's3cret'").format(Identifier(role)))
        done = run("owm-outbox", "check", "outbox", url)
        assert (done.code, done.out) == (73, "")
        assert "create the schema, or name another one with schema=" in done.line
        admin.execute(SQL("CREATE SCHEMA {}").format(Identifier(schema)))
        done = run("owm-outbox", "check", "outbox", url)
        assert (done.code, done.out) == (73, "")
        grants = f'GRANT USAGE ON SCHEMA "order" TO "{role}"; GRANT CREATE ON SCHEMA "order" TO "{role}"'
        assert done.line.endswith(f": {grants}")
        admin.execute(grants.encode())
        done = run("owm-outbox", "check", "outbox", url, timeout=580)
        assert (done.code, done.err) == (0, ""), done.out
        admin.execute(SQL("DROP SCHEMA {}").format(Identifier(schema)))  # fails if anything was left in it
        admin.execute(SQL("DROP OWNED BY {}; DROP ROLE {}").format(Identifier(role), Identifier(role)))


# schema


def test_the_printed_sql_makes_an_outbox(database: str, tmp_path: Path) -> None:
    """Run by another tool, it makes an outbox that opens without making anything, and delivers."""
    printed = run("owm-outbox", "schema", "postgresql", "--schema", "order", "--table", "shop")
    assert (printed.code, printed.err) == (0, "")
    url = f"{database}?schema=order&table=shop"
    with psycopg.connect(database, autocommit=True) as client:
        client.execute('CREATE SCHEMA "order"')
        client.execute(printed.out.encode())
        made = client.execute(_RELATIONS).fetchall()
        with open_outbox(url, create=False) as outbox:
            outbox.append([note("first"), note("second")])
        done = run("owm-outbox", "drain", "--outbox", url, "--sink", f"jsonl:{tmp_path}/out")
        assert (done.code, done.err) == (0, "")
        assert ["first" in line for line in (tmp_path / "out").read_text().splitlines()] == [True, False]
        assert client.execute(_RELATIONS).fetchall() == made
        assert {schema for schema, _ in made} == {"order"}
        assert all(name.startswith("shop_") for _, name in made)
        assert run("owm-outbox", "status", "--outbox", database).code == 73


def test_the_printed_sql_makes_a_sink(database: str) -> None:
    """Run by another tool, it makes the tables that a sink delivers to, and that check finds nothing wrong with."""
    printed = run("owm-outbox", "schema", "--sink", "postgresql", "--table", "jobs to do")
    assert (printed.code, printed.err) == (0, "")
    url = f"{database}?table=jobs+to+do"
    refused = run("owm-outbox", "check", "sink", url)
    assert (refused.code, refused.out) == (78, "")
    assert "there is no table public.jobs to do: make both tables with what owm-outbox schema" in refused.line
    with psycopg.connect(database, autocommit=True) as client:
        client.execute(printed.out.encode())
        made = client.execute(_RELATIONS).fetchall()
        done = run("owm-outbox", "check", "sink", url, timeout=580)
        assert (done.code, done.err) == (0, ""), done.out
        assert client.execute(_RELATIONS).fetchall() == made


def test_the_printed_sql_is_one_transaction(database: str) -> None:
    """Where one table cannot be made, none is."""
    printed = run("owm-outbox", "schema", "postgresql")
    with psycopg.connect(database, autocommit=True) as client:
        client.execute("CREATE TABLE outbox_state (name text)")
        before = client.execute(_RELATIONS).fetchall()
        with pytest.raises(psycopg.errors.DuplicateTable, match='"outbox_state" already exists'):
            client.execute(printed.out.encode())
        client.execute("ROLLBACK")
        assert client.execute(_RELATIONS).fetchall() == before


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("sqlite",), "sqlite: this kind of outbox has no tables, or makes them itself: nothing to print"),
        (("--sink", "redis"), "redis: this kind of sink has no tables, or makes them itself: nothing to print"),
        (("--sink", "postgresql", "--table", "x" * 57), "is no name for a table: use 1 to 56 bytes"),
        (("postgresql", "--table", "Out box"), "table='Out box' is not a name for a PostgreSQL outbox"),
        (("postgresql", "--schema", 'x"; DROP'), "schema='x\"; DROP' is not a name for a PostgreSQL outbox"),
        (("postgres",), "did you mean 'postgresql'?"),
    ],
)
def test_what_has_no_sql_is_refused(args: tuple[str, ...], says: str) -> None:
    """A kind of outbox without tables, or a name that needs quotes, is 78 with a line, and prints nothing."""
    done = run("owm-outbox", "schema", *args)
    assert (done.code, done.out) == (78, "")
    assert says in done.line
