"""A failure in the middle of what is written to PostgreSQL, for the contract kit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg.sql import SQL, Identifier, Literal

from .connection import Row

__all__ = ["refusing"]

_WRITTEN = 7  # rows that are written before the failure


@contextmanager
def refusing(conn: psycopg.Connection[Row], schema: str, prefix: str, tables: Iterable[str]) -> Iterator[None]:
    """Have the server refuse what anybody writes to these tables after some rows, as where its disk is full.

    :param prefix: what the names of what is made for it begin with.
    """
    counter, function = (Identifier(schema, f"{prefix}_{what}") for what in ("written", "refuse"))
    conn.execute(SQL("CREATE SEQUENCE {}").format(counter))
    conn.execute(
        SQL(
            "CREATE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF nextval(TG_ARGV[0]::regclass) > {} THEN "
            "RAISE 'could not extend file: no space left on device' USING ERRCODE = 'disk_full'; END IF; "
            "RETURN coalesce(NEW, OLD); END $$"
        ).format(function, Literal(_WRITTEN))
    )
    for table in tables:
        conn.execute(
            SQL(
                "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON {} FOR EACH ROW EXECUTE FUNCTION {}({})"
            ).format(Identifier(schema, table), function, Literal(counter.as_string(conn)))
        )
    try:
        yield
    finally:
        conn.execute(SQL("DROP FUNCTION {} CASCADE").format(function))
        conn.execute(SQL("DROP SEQUENCE {}").format(counter))
