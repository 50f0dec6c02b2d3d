"""Streams as their workers see them."""

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


def length(server: Server, stream: str) -> int:
    """Return the length of a stream."""
    with server.client() as client:
        return int(client.xlen(stream))


class Worker:
    """Reads a stream as a member of a consumer group, which it creates."""

    def __init__(self, server: Server, stream: str, group: str, start: str = "0") -> None:
        self._client = server.client()
        self._stream, self._group = stream, group
        self._client.xgroup_create(stream, group, start, mkstream=True)
        self.read: list[bytes] = []

    def take(self, count: int, *, block: int | None = None) -> list[bytes]:
        """Read up to ``count`` entries and return their ids; they stay unacknowledged."""
        answer: Any = self._client.xreadgroup(self._group, "w", {self._stream: ">"}, count=count, block=block)
        found = [entry for _, some in answer for entry in some]
        self.read += [fields[b"data"] for _, fields in found]
        return [entry_id for entry_id, _ in found]

    def acknowledge(self, ids: list[bytes]) -> None:
        """Acknowledge entries."""
        if ids:
            self._client.xack(self._stream, self._group, *ids)

    def work(self, count: int) -> None:
        """Read up to ``count`` entries and acknowledge them."""
        if count:
            self.acknowledge(self.take(count))
