"""The commands of owm-outbox that know an outbox by its URL or its kind, on a real server."""

from __future__ import annotations

import pytest
from psycopg.sql import SQL, Identifier

from support.commands import run
from support.postgres_outbox import Place, note

pytestmark = pytest.mark.slow

_RELATIONS = """
    SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') UNION ALL
    SELECT n.nspname, p.proname FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2
"""


# check


def test_our_outbox_passes_next_to_the_real_one(own_place: Place) -> None:
    """An outbox is checked in tables of its own, its failures included; the real ones are as they were."""
    with own_place.open() as outbox:
        outbox.append([note("waits")])
        before = own_place.rows(_RELATIONS)
        done = run("owm-outbox", "check", "outbox", own_place.url, timeout=110)
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
        done = run("owm-outbox", "check", "outbox", url, timeout=110)
        assert (done.code, done.err) == (0, ""), done.out
        admin.execute(SQL("DROP SCHEMA {}").format(Identifier(schema)))  # fails if anything was left in it
        admin.execute(SQL("DROP OWNED BY {}; DROP ROLE {}").format(Identifier(role), Identifier(role)))
