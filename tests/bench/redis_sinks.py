"""Entries per second into a stream: one server, a cluster, behind Sentinels; next to a pipeline of the same client.

``python tests/bench/redis_sinks.py``: real servers, 34,006 tasks in batches of 500, the median of several rounds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from redis.sentinel import Sentinel

from owm_outbox import Batch, Entry, Mark
from owm_outbox.plugins import open_sink

from support.redis_cluster import SERVICE, guarded, running_cluster
from support.servers import binaries, running

COUNT, BATCH, ROUNDS = 34_006, 500, 9
ENTRIES = [
    Entry(number, str(task_id := uuid.uuid4()), b'{"task_id":"%s","city_id":%d}' % (str(task_id).encode(), number))
    for number in range(1, COUNT + 1)
]


def _through(url: str) -> Callable[[str], float]:
    def measure(stream: str) -> float:
        with open_sink(url.replace("STREAM", stream)) as sink:
            mark = Mark(sink.mark("bench") or "")
            began = time.perf_counter()
            for first in range(0, COUNT, BATCH):
                part = ENTRIES[first : first + BATCH]
                sink.send(Batch("bench", mark, part, mark := Mark.of(part[-1], "lease")))
            return COUNT / (time.perf_counter() - began)

    return measure


def _plain(client: Any) -> Callable[[str], float]:
    def measure(stream: str) -> float:
        began = time.perf_counter()
        for first in range(0, COUNT, BATCH):
            with client.pipeline(transaction=False) as pipe:
                for entry in ENTRIES[first : first + BATCH]:
                    pipe.xadd(stream, {"data": entry.payload})
                pipe.execute()
        return COUNT / (time.perf_counter() - began)

    return measure


def _compare(name: str, ways: dict[str, Callable[[str], float]]) -> None:
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, measure in ways.items():
            rates[way].append(measure(str(uuid.uuid4())))
    found = {way: round(statistics.median(each)) for way, each in rates.items()}
    print(f"{name:10}" + "".join(f"  {way}: {rate:,}/s" for way, rate in found.items()))


def main() -> None:
    """Measure all three."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        with running(binaries()["valkey"], folder / "one") as server:
            url = server.url("STREAM", maxlen=0)
            _compare("one server", {"sink": _through(url), "XADDs": _plain(server.client())})
        with running_cluster(folder / "cluster") as cluster:
            url = cluster.url("STREAM", maxlen=0)
            client: Any = redis.RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port, protocol=2)
            copied = _through(f"{url}&wait_replicas=1")
            _compare("cluster", {"sink": _through(url), "wait_replicas=1": copied, "XADDs": _plain(client)})
        with guarded(folder / "sentinel") as servers:
            url = servers.url("STREAM", maxlen=0)
            sentinel: Any = Sentinel([("127.0.0.1", servers.sentinels[0].port)])  # type: ignore[no-untyped-call]  # redis-py's
            copied = _through(f"{url}&wait_replicas=1")
            plain = _plain(sentinel.master_for(SERVICE, protocol=2))
            _compare("Sentinels", {"sink": _through(url), "wait_replicas=1": copied, "XADDs": plain})


if __name__ == "__main__":
    main()
