"""An application with an outbox: takes orders in its own transactions, some of which it rolls back.

Run as ``python shop.py DATABASE SINK_URL SEED``; it goes on until it is killed.
"""

from __future__ import annotations

import random
import sys
import threading
from dataclasses import dataclass
from uuid import UUID, uuid4

from owm_outbox import OutboxRelay
from owm_outbox.plugins import open_sink
from owm_outbox_backends.sqlite import SqliteOutbox


@dataclass
class ShipOrder:
    """The task."""

    task_id: UUID
    order: str


class RefusedError(Exception):
    """The card was refused."""


def main(database: str, sink_url: str, seed: str) -> None:
    """Take orders for ever."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    outbox = SqliteOutbox(database)
    relay = OutboxRelay(outbox, open_sink(sink_url), batch_size=7)
    threading.Thread(target=relay.run_forever, args=[threading.Event()], kwargs={"poll": 0.001}, daemon=True).start()
    connection = outbox.connect()
    connection.execute("CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY)")
    connection.execute("CREATE TABLE IF NOT EXISTS refused (id TEXT PRIMARY KEY)")
    print("ready", flush=True)
    while True:
        ids = [str(uuid4()) for _ in range(chance.randint(1, 5))]
        refuse = chance.random() < 0.3
        try:
            with connection:
                for order in ids:
                    connection.execute("INSERT INTO orders VALUES (?)", [order])
                    outbox.append([ShipOrder(uuid4(), order)], connection=connection)
                if refuse:
                    raise RefusedError
        except RefusedError:
            with connection:
                connection.executemany("INSERT INTO refused VALUES (?)", [[order] for order in ids])


if __name__ == "__main__":
    main(*sys.argv[1:])
