"""The tables of a PostgresqlSink: what makes them, and whether those that are there can keep a mark."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg.sql import SQL, Composed, Identifier, Literal

from owm_outbox import ConfigurationError

from .connection import Row

__all__ = ["SinkTable"]

_LONGEST = 56  # bytes: with what we add to it, a name has 63 at most

_SCHEMA: LiteralString = """
BEGIN;

CREATE TABLE {table} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id text NOT NULL,
    headers json NOT NULL DEFAULT '{{}}',
    payload json NOT NULL,
    delivered_at timestamptz NOT NULL DEFAULT now()
);

-- How far each outbox was delivered. It changes with every batch.
CREATE TABLE {marks} (outbox_id text PRIMARY KEY, mark text NOT NULL) WITH (fillfactor = 50);

-- What is truncated was not taken out by workers: it is delivered again, as far as the outbox still has it.
CREATE FUNCTION {forget}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM {marks};
    RETURN NULL;
END $$;
CREATE TRIGGER owm_outbox_forget AFTER TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {forget}();

COMMIT;
"""

_TABLE: LiteralString = """
    SELECT relkind IN ('r', 'p'), relpersistence = 'p',
    ARRAY(SELECT needed FROM unnest(%s::text[]) AS needed WHERE NOT has_table_privilege(oid, needed))
    FROM pg_class WHERE oid = to_regclass(%s)
"""
_COLUMNS: LiteralString = """
    SELECT attname, attnotnull AND NOT atthasdef AND attidentity = '' AND attgenerated = ''
    FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped
"""
_WRITTEN = ("task_id", "headers", "payload")

# Whether a TRUNCATE of the table would clear the marks, and a crash of the server would empty neither.
_KEPT: LiteralString = """
    EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass({table})
    AND tgname = 'owm_outbox_forget' AND tgenabled <> 'D')
    AND 2 = (SELECT count(*) FROM pg_class WHERE oid IN (to_regclass({table}), to_regclass({marks}))
    AND relpersistence = 'p')
"""


@dataclass(frozen=True)
class SinkTable:
    """The table that workers read, and the one for the marks.

    :raises ConfigurationError: this is no name for a table.
    """

    schema: str
    table: str

    def __post_init__(self) -> None:
        for what, name in (("schema", self.schema), ("table", self.table)):
            if not 0 < len(name.encode()) <= _LONGEST:
                raise ConfigurationError(f"{what}={name!r} is no name for a table: use 1 to {_LONGEST} bytes")

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}"

    @property
    def marks(self) -> str:
        """The name of the table for the marks."""
        return f"{self.table}_marks"

    def sql(self, template: LiteralString) -> Composed:
        """Return a statement with our names in place of ``{table}``, ``{marks}`` and ``{kept}``."""
        return SQL(template).format(
            table=Identifier(self.schema, self.table),
            marks=Identifier(self.schema, self.marks),
            forget=Identifier(self.schema, f"{self.table}_forget"),
            kept=SQL(_KEPT).format(table=Literal(self._quoted(self.table)), marks=Literal(self._quoted(self.marks))),
        )

    def schema_sql(self) -> str:
        """Return what makes both tables."""
        return self.sql(_SCHEMA).as_string().strip() + "\n"

    def check(self, conn: psycopg.Connection[Row], at: str) -> None:
        """Look whether a batch can be added, and whether its mark goes where its rows go.

        :param at: the table, as messages name it.
        :raises ConfigurationError: no; the message says what to change.
        """
        make = (
            f"make both tables with what owm-outbox schema --sink postgresql --table {shlex.quote(self.table)} prints"
        )
        for name, needed in ((self.table, ["INSERT"]), (self.marks, ["SELECT", "INSERT", "UPDATE"])):
            row = conn.execute(_TABLE, [needed, self._quoted(name)]).fetchone()
            if row is None:
                raise ConfigurationError(f"{at}: there is no table {self.schema}.{name}: {make}")
            is_table, is_permanent, missing = row
            if not is_table:
                raise ConfigurationError(f"{at}: {self.schema}.{name} is not a table: {make}")
            if not is_permanent:
                raise ConfigurationError(
                    f"{at}: the table {self.schema}.{name} is not logged, so a crash of the server empties it: "
                    f"ALTER TABLE {self._quoted(name)} SET LOGGED"
                )
            if missing:
                raise ConfigurationError(
                    f"{at}: a right is missing: "
                    f"GRANT {', '.join(missing)} ON {self._quoted(name)} TO {Identifier(conn.info.user).as_string()}"
                )
        columns: dict[str, bool] = dict(conn.execute(_COLUMNS, [self._quoted(self.table)]).fetchall())
        if absent := [name for name in _WRITTEN if name not in columns]:
            raise ConfigurationError(f"{at} has no column {absent[0]}: {make}")
        if extra := [name for name, needed in columns.items() if needed and name not in _WRITTEN]:
            raise ConfigurationError(f"{at}: the column {extra[0]} needs a value that no task has: give it a default")
        if conn.execute(self.sql("SELECT {kept}")).fetchone() != (True,):
            raise ConfigurationError(
                f"{at}: the trigger owm_outbox_forget is missing or disabled, so a TRUNCATE would look as if workers "
                f"had taken everything: drop {self.schema}.{self.marks}, and {make}"
            )

    def _quoted(self, name: str) -> str:
        return Identifier(self.schema, name).as_string()
