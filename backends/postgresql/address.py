"""Where a PostgresqlOutbox is: what libpq needs to get there, and what its tables are called."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, LiteralString

import msgspec
import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Composable, Identifier

from owm_outbox import URL, ConfigurationError

__all__ = ["LANE_BITS", "MOST_LANES", "OUTBOX_OPTIONS", "Tables", "conninfo_of", "own_options", "place_of"]

# Noticed within half a minute, from either side: a machine that was cut off, or a server that is not there any more.
_DEFAULTS: Mapping[str, str | int] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
MOST_LANES = 1024
LANE_BITS = 40
"""Positions of lane n begin beyond ``n << 40``, so that no two lanes have one in common."""

OUTBOX_OPTIONS: Mapping[str, Any] = {
    "schema": str,
    "table": str,
    "lanes": Annotated[int, msgspec.Meta(ge=1, le=MOST_LANES)],
}
"""The options of an outbox's URL that are not libpq's, with their types."""

_NAME = re.compile(r"[a-z_][a-z0-9_]*\Z")
_LONGEST_TABLE = 45  # characters: with what we add to it, a name has 63 at most
_LONGEST_SCHEMA = 63


def own_options(url: URL, ours: Mapping[str, Any] = OUTBOX_OPTIONS) -> dict[str, Any]:
    """Return the options of a URL that are not libpq's."""
    given = url.options(**ours, **dict.fromkeys(_libpq_options(), str))
    return {name: given[name] for name in ours if name in given}


def conninfo_of(where: str | URL, ours: Mapping[str, Any] = OUTBOX_OPTIONS) -> dict[str, str | int]:
    """Return what to connect with, as `psycopg.connect` takes it.

    :param where: a URL, or a connection string of libpq.
    :param ours: the options of the URL that are not libpq's.
    :raises ConfigurationError: libpq does not understand it.
    """
    options: dict[str, str] = {}
    text = where
    if isinstance(where, URL):
        # libpq reads a query otherwise than a browser does: a + in it is a +.
        given = where.options(**ours, **dict.fromkeys(_libpq_options(), str))
        options = {name: value for name, value in given.items() if name not in ours}
        text = where.text.partition("?")[0]
    try:
        found = conninfo_to_dict(str(text), **options)
    except psycopg.Error:  # whose message may hold a password
        shown = where if isinstance(where, URL) else "the connection string"
        raise ConfigurationError(
            f"{shown} is not an address that PostgreSQL's client understands: "
            "write postgresql://user:password@host:5432/database (in a password, / ? # @ % are %2F %3F %23 %40 %25)"
        ) from None
    name = {"application_name": f"owm_outbox on {socket.gethostname()[:40]} ({os.getpid()})"[:63]}
    return {**_DEFAULTS, **name, **{key: value for key, value in found.items() if value is not None}} | {
        "client_encoding": "UTF8"
    }


def place_of(conninfo: Mapping[str, Any], tables: object) -> str:
    """Return what messages call some tables: their name and their server, and no secret."""
    if service := conninfo.get("service"):
        where = f"service {service}"
    else:
        where = str(conninfo.get("host") or conninfo.get("hostaddr") or "the local server")
        if port := conninfo.get("port"):
            where += f":{port}"
    database = conninfo.get("dbname")
    return f"{tables} on {where}" + (f"/{database}" if database else "")


def _libpq_options() -> list[str]:
    """Return the names of all options of the libpq that is installed."""
    return [option.keyword.decode() for option in pq.Conninfo.get_defaults()]


@dataclass(frozen=True)
class Tables:
    """The tables of one outbox, and one lane of them.

    :param schema: must exist.
    :param table: what the names of all tables begin with.
    :param lane: this lane.
    :param lanes: how many there are.
    :raises ConfigurationError: this is not a plain name.
    """

    schema: str = "public"
    table: str = "outbox"
    lane: int = 0
    lanes: int = 1

    def __post_init__(self) -> None:
        for what, name, longest in (
            ("schema", self.schema, _LONGEST_SCHEMA),
            ("table", self.table, _LONGEST_TABLE),
        ):
            if not _NAME.match(name) or len(name) > longest:
                raise ConfigurationError(
                    f"{what}={name!r} is not a name for a PostgreSQL outbox: "
                    f"use up to {longest} small letters, digits and _, and no digit first"
                )

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}"

    @functools.cached_property
    def lock_key(self) -> int:
        """The key of the advisory lock: 64 bits of a digest of schema, table and lane."""
        return self.lock_key_of(self.lane)

    def lock_key_of(self, lane: int) -> int:
        """Return the key of another lane's advisory lock."""
        return self._key(f"lane {lane}")

    @functools.cached_property
    def attendance_key(self) -> int:
        """The key of the advisory lock that all relays share."""
        return self._key("attendance")

    def asleep_key_of(self, lane: int) -> int:
        """Return the key of the advisory lock that a lane's relay has while it waits to be notified."""
        return self._key(f"lane {lane} asleep")

    @functools.cached_property
    def schema_key(self) -> int:
        """The key of the advisory lock under which the tables are made and changed."""
        return self._key("schema")

    @functools.cached_property
    def channel(self) -> str:
        """The channel on which an append notifies."""
        return f"{self.table}_{self._key('channel') % 2**32:08x}"

    def sql(self, template: LiteralString) -> bytes:
        """Return a statement with the names of our tables in place of ``{entries}``, ``{incoming}`` and so on."""
        found = self._statements.get(template)
        if found is None:
            found = self._statements[template] = SQL(template).format(**self._identifiers).as_bytes()
        return found

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """The tables' names, by what they hold."""
        return {
            what: f"{self.table}_{what}"
            for what in ("entries", "incoming", "positions", "runs", "lanes", "state", "version")
        }

    @functools.cached_property
    def _identifiers(self) -> dict[str, Composable]:
        found: dict[str, Composable] = {what: Identifier(self.schema, name) for what, name in self.names.items()}
        for index in ("keys", "dead", "letters"):
            found[f"entries_{index}"] = Identifier(f"{self.table}_entries_{index}")
        return found | {"channel": Identifier(self.channel)}

    @functools.cached_property
    def _statements(self) -> dict[str, bytes]:
        return {}

    def _key(self, what: str) -> int:
        digest = hashlib.sha256(f"owm_outbox {self.schema}.{self.table} {what}".encode()).digest()
        return int.from_bytes(digest[:8], signed=True)
