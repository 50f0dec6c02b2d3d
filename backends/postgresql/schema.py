"""The tables of a PostgresqlOutbox, by versioned migrations: the files ``001.sql`` and so on."""

from __future__ import annotations

import uuid
from importlib import resources
from typing import Any, LiteralString, cast

import psycopg

from owm_outbox import ConfigurationError, OutboxInvalid

from .address import LANE_BITS, Tables
from .connection import Row, Session

__all__ = ["VERSION", "check", "missing_rights", "prepare", "schema_sql"]

VERSION = 1
"""The newest version of the tables."""

_VERSIONS: LiteralString = """
    CREATE TABLE {version} (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())
"""
_NOTE: LiteralString = "INSERT INTO {version} (version) VALUES (%s)"

# What a relay needs; an application that only appends needs less.
_RIGHTS = {
    "entries": "INSERT, SELECT, UPDATE, DELETE",
    "incoming": "INSERT, SELECT, DELETE",
    "positions": "INSERT, SELECT, UPDATE, DELETE",
    "runs": "INSERT, SELECT, UPDATE, DELETE",
    "lanes": "INSERT, SELECT, UPDATE",
    "state": "INSERT, SELECT, UPDATE",
    "version": "SELECT",
}


def schema_sql(tables: Tables) -> str:
    """Return what makes the tables, as plain SQL, for those who make them with a tool of their own."""
    statements = ["BEGIN;", f"{tables.sql(_VERSIONS).decode().strip()};"]
    for number in range(1, VERSION + 1):
        statements += [_migration(tables, number).decode().strip()]
        statements += [tables.sql(_NOTE).decode().replace("%s", str(number)) + ";"]
    return "\n\n".join([*statements, "COMMIT;"]) + "\n"


def prepare(session: Session, tables: Tables, *, create: bool) -> None:
    """Bring the tables to the newest version, or check that they have it.

    :raises OutboxInvalid: there are none and ``create`` is false, they are not ours, or of a newer version.
    """
    with session.connected() as conn:
        if _version(conn, tables, session.at) == VERSION and _has_lane(conn, tables):
            _check_lanes(conn, tables, session.at)
            return
    with session.transaction() as conn:
        # Two that start at once: the second waits here, and finds the tables made.
        conn.execute("SELECT pg_advisory_xact_lock(%s)", [tables.schema_key])
        found = _version(conn, tables, session.at)
        if found == 0 and not create:
            raise _missing(session.at)
        if found == 0:
            _refuse_others(conn, tables, session.at)
            conn.execute(tables.sql(_VERSIONS))
        for number in range(found + 1, VERSION + 1):
            conn.execute(_migration(tables, number))
            conn.execute(tables.sql(_NOTE), [number])
        if not _has_lane(conn, tables):
            conn.execute(
                tables.sql("INSERT INTO {lanes} (lane, last_position) VALUES (%s, %s)"),
                [tables.lane, tables.lane << LANE_BITS],
            )
            conn.execute(
                tables.sql("INSERT INTO {state} (lane, name, value) VALUES (%s, 'id', %s) ON CONFLICT DO NOTHING"),
                [tables.lane, str(uuid.uuid4()).encode()],
            )
        conn.execute(
            tables.sql("INSERT INTO {state} (lane, name, value) VALUES (0, 'lanes', %s) ON CONFLICT DO NOTHING"),
            [str(tables.lanes).encode()],
        )
        _check_lanes(conn, tables, session.at)


def check(session: Session, tables: Tables) -> None:
    """Check that there are tables of the newest version. This only reads.

    :raises OutboxInvalid: there are none, they are not ours, or of another version.
    """
    with session.connected() as conn:
        found = _version(conn, tables, session.at)
        if found == 0:
            raise _missing(session.at)
        if found < VERSION:
            raise OutboxInvalid(f"{session.at} was made by an older owm_outbox: the next run or relay upgrades it")
        _check_lanes(conn, tables, session.at)


def missing_rights(conn: psycopg.Connection[Row], tables: Tables) -> str:
    """Return what a user lacks to work with the tables, as the statements that grant it."""
    grants = []
    row = conn.execute(
        "SELECT quote_ident(%s), quote_ident(current_user), has_schema_privilege(n.oid, 'USAGE'), "
        "has_schema_privilege(n.oid, 'CREATE') FROM (SELECT) AS one LEFT JOIN pg_namespace AS n ON n.nspname = %s",
        [tables.schema, tables.schema],
    ).fetchone()
    assert row is not None  # noqa: S101 - one row, whether there is such a schema or not
    schema, user, uses, creates = row
    if uses is False:
        grants.append(f"GRANT USAGE ON SCHEMA {schema} TO {user}")
    found = 0
    for what, rights in _RIGHTS.items():
        lacking = conn.execute(
            "SELECT string_agg(r, ', ' ORDER BY r) FILTER (WHERE NOT has_table_privilege(c.oid, r)), count(*) "
            "FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace, "
            "unnest(string_to_array(%s, ', ')) AS r WHERE n.nspname = %s AND c.relname = %s",
            [rights, tables.schema, tables.names[what]],
        ).fetchone()
        if lacking is not None:
            found += lacking[1]
            grants += [f"GRANT {lacking[0]} ON {schema}.{tables.names[what]} TO {user}"] if lacking[0] else []
    if not found and creates is False:
        grants.append(f"GRANT CREATE ON SCHEMA {schema} TO {user}")
    return "; ".join(grants) or f"the tables belong to another role than {user}, and only their owner can change them"


# -- within


def _missing(at: str) -> OutboxInvalid:
    return OutboxInvalid(f"there is no outbox {at}: check schema= and table=, or run the job once")


def _migration(tables: Tables, number: int) -> bytes:
    text = resources.files(__package__).joinpath(f"{number:03}.sql").read_text("utf-8")
    return tables.sql(cast(Any, text))  # of a file of ours


def _version(conn: psycopg.Connection[Row], tables: Tables, at: str) -> int:
    """Return the version of the tables, 0 if there are none."""
    columns = {
        row[0]
        for row in conn.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(format('%%I.%%I', %s::text, %s::text)) "
            "AND attnum > 0",
            [tables.schema, tables.names["version"]],
        )
    }
    if not columns:
        return 0
    if columns != {"version", "applied_at"}:
        raise OutboxInvalid(
            f"{at} is not an outbox: the table {tables.schema}.{tables.names['version']} belongs to another program; "
            "name another table="
        )
    row = conn.execute(tables.sql("SELECT max(version) FROM {version}")).fetchone()
    found = int((row and row[0]) or 0)
    if found > VERSION:
        raise OutboxInvalid(
            f"{at} was made by a newer owm_outbox (its tables have version {found}, this one knows {VERSION}): "
            "upgrade, or name another table="
        )
    if found:
        _check_tables(conn, tables, at)
    return found


def _check_tables(conn: psycopg.Connection[Row], tables: Tables, at: str) -> None:
    """Refuse tables that are missing, are views, or lose their rows in a crash of the server."""
    kinds = dict(_kinds(conn, tables))
    for name in tables.names.values():
        kind = kinds.get(name)
        if kind is None:
            raise OutboxInvalid(f"{at} lacks the table {tables.schema}.{name}: restore it, or name another table=")
        if kind != "rp":
            what = "UNLOGGED, so a crash of the server empties it" if kind == "ru" else "not an ordinary table"
            raise OutboxInvalid(f"{at}: {tables.schema}.{name} is {what}: make it an ordinary table")


def _refuse_others(conn: psycopg.Connection[Row], tables: Tables, at: str) -> None:
    taken = [name for name, _ in _kinds(conn, tables)]
    if taken:
        raise OutboxInvalid(
            f"{at} cannot be made: there is a table {tables.schema}.{taken[0]} that is not ours; name another table="
        )


def _kinds(conn: psycopg.Connection[Row], tables: Tables) -> list[tuple[str, str]]:
    rows = conn.execute(
        "SELECT c.relname, c.relkind::text || c.relpersistence::text FROM pg_class AS c "
        "JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = ANY(%s)",
        [tables.schema, list(tables.names.values())],
    )
    return [(name, kind) for name, kind in rows]


def _check_lanes(conn: psycopg.Connection[Row], tables: Tables, at: str) -> None:
    """Refuse another number of lanes than the tables were made with: a key would be in two of them, in no order."""
    if not _may_select(conn, tables, "state"):  # an application that may only append
        return
    row = conn.execute(tables.sql("SELECT value FROM {state} WHERE lane = 0 AND name = 'lanes'")).fetchone()
    lanes = int(row[0]) if row else 1
    if lanes != tables.lanes:
        raise ConfigurationError(
            f"{at} has {lanes} {'lane' if lanes == 1 else 'lanes'}, not {tables.lanes}: open it with lanes={lanes}; "
            "docs/postgresql.md says how to change it"
        )


def _has_lane(conn: psycopg.Connection[Row], tables: Tables) -> bool:
    # An application that may only append does not see the lanes; whoever made the tables made this one.
    if not _may_select(conn, tables, "lanes"):
        return True
    return conn.execute(tables.sql("SELECT FROM {lanes} WHERE lane = %s"), [tables.lane]).fetchone() is not None


def _may_select(conn: psycopg.Connection[Row], tables: Tables, what: str) -> bool:
    row = conn.execute(
        "SELECT has_table_privilege(to_regclass(format('%%I.%%I', %s::text, %s::text)), 'SELECT')",
        [tables.schema, tables.names[what]],
    ).fetchone()
    return row is None or bool(row[0])
