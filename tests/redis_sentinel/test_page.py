"""docs/redis.md does what it says: the worker behind Sentinels."""

from __future__ import annotations

import pytest

from owm_outbox.plugins import open_sink
from owm_outbox.testing import parcel_batch

from support.redis_cluster import SERVICE, Guarded, ask, copied, until
from support.redis_worker import worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_worker_reads_on_after_a_failover(servers: Guarded) -> None:
    """The page's worker does each task, those that came after a failover as well, and acknowledges it."""
    url = servers.url("orders", retries=100, backoff_base=0.05, backoff_cap=0.2)
    env = {"SENTINELS": ",".join(one.address for one in servers.sentinels), "SERVICE": SERVICE}
    with worker("sentinel_worker", env) as found, open_sink(url) as sink:
        sink.send(parcel_batch("box", 0, 5))
        until(lambda: len(found.shipped) == 5)
        dead, other = servers.primary, servers.replica
        until(lambda: copied(other, "orders") == 5)
        servers.suspect_after(1000)
        dead.kill()
        sink.send(parcel_batch("box", 5, 5))
        until(lambda: len(set(found.shipped)) == 10)
        until(lambda: ask(other, "XPENDING", "orders", "shipping")[0] == 0)
        servers.fail_over(dead)
        dead.start("--replicaof", "127.0.0.1", str(other.port))
        servers.settle()
    assert sorted(set(found.shipped)) == list(range(1, 11)), found.lines
