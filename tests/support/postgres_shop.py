"""An application on PostgreSQL: takes orders in its own transactions, some long, some rolled back.

Run as ``python postgres_shop.py DATABASE TABLE LANES COUNT SEED``; it ends once it has committed so many orders. Each
has a number within its key, in the order of the commits, as the row that counts them is locked until then.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass
from uuid import UUID, uuid4

import psycopg
from psycopg.sql import SQL, Identifier

from owm_outbox import OutboxInvalid, OutboxUnavailable
from owm_outbox.plugins import open_outbox
from owm_outbox_backends.postgresql import PostgresqlOutbox

KEYS = 40


@dataclass
class ShipOrder:
    """The task."""

    task_id: UUID
    key: str
    number: int


class RefusedError(Exception):
    """The card was refused."""


def make_tables(connection: psycopg.Connection[tuple[int]], table: str) -> None:
    """Make the application's own tables."""
    connection.execute(
        SQL("CREATE TABLE {} (task_id uuid PRIMARY KEY, key text, number int)").format(Identifier(f"{table}_orders"))
    )
    connection.execute(
        SQL("CREATE TABLE {} (key text PRIMARY KEY, count int NOT NULL)").format(Identifier(f"{table}_counts"))
    )
    for key in range(KEYS):
        connection.execute(SQL("INSERT INTO {} VALUES (%s, 0)").format(Identifier(f"{table}_counts")), [f"key {key}"])


def main(database: str, table: str, lanes: str, count: str, seed: str) -> None:
    """Take orders."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    taken = 0
    url = f"{database}?table={table}&lanes={lanes}"
    while taken < int(count):
        try:
            with open_outbox(url) as outbox, psycopg.connect(database) as connection:
                assert isinstance(outbox, PostgresqlOutbox)
                while taken < int(count):
                    taken += _order(chance, outbox, connection, table)
        except (psycopg.OperationalError, OutboxUnavailable, OutboxInvalid):  # it was killed; or starts again
            time.sleep(0.05)


def _order(
    chance: random.Random, outbox: PostgresqlOutbox, connection: psycopg.Connection[tuple[int]], table: str
) -> int:
    """Make one transaction; return how many orders were committed."""
    many = chance.choice((1, 2, 5, 20, 60))
    keys = sorted({f"key {chance.randrange(KEYS)}" for _ in range(3)})  # in one order, so that none waits for another
    try:
        with connection.transaction():
            for key in keys:
                row = connection.execute(
                    SQL("UPDATE {} SET count = count + %s WHERE key = %s RETURNING count").format(
                        Identifier(f"{table}_counts")
                    ),
                    [many, key],
                ).fetchone()
                assert row is not None
                tasks = [ShipOrder(uuid4(), key, row[0] - many + 1 + n) for n in range(many)]
                with connection.cursor() as cursor:
                    cursor.executemany(
                        SQL("INSERT INTO {} VALUES (%s, %s, %s)").format(Identifier(f"{table}_orders")),
                        [(task.task_id, task.key, task.number) for task in tasks],
                    )
                outbox.append(tasks, connection=connection, key=lambda task: str(task.key))
            if chance.random() < 0.05:
                time.sleep(chance.uniform(0, 0.1))  # a long one: others commit meanwhile
            if chance.random() < 0.2:
                raise RefusedError
    except RefusedError:
        return 0
    return many * len(keys)


if __name__ == "__main__":
    main(*sys.argv[1:])
