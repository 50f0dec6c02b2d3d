"""Reading back what a sink holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from support.servers import Server


def entries(server: Server, stream: str) -> Iterator[dict[bytes, bytes]]:
    """Yield the fields of every entry of a stream, oldest first."""
    with server.client() as client:
        after = "-"
        while page := client.xrange(stream, after, "+", count=5000):
            for entry_id, fields in page:
                yield fields
                after = "(" + entry_id.decode()


def tasks(server: Server, stream: str) -> list[dict[str, Any]]:
    """Return every task of a stream; fails if an entry is not one field ``data`` with a JSON object."""
    found = []
    for fields in entries(server, stream):
        assert list(fields) == [b"data"]
        found.append(json.loads(fields[b"data"]))
    return found


def city_ids(server: Server, stream: str) -> list[int]:
    """Return the city of every task of a stream, in order."""
    return [task["city_id"] for task in tasks(server, stream)]
