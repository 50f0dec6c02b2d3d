"""docs/redis.md does what it says: the worker in a cluster."""

from __future__ import annotations

import pytest

from owm_outbox.plugins import open_sink
from owm_outbox.testing import parcel_batch

from support.redis_cluster import Cluster, ask, copied, until
from support.redis_worker import worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_worker_reads_on_after_a_failover(cluster: Cluster) -> None:
    """The page's worker does each task, those that came after a failover as well, and acknowledges it."""
    url = cluster.url("orders", retries=100, backoff_base=0.05, backoff_cap=0.2)
    nodes = ",".join(node.address for node in cluster.nodes)
    with worker("cluster_worker", {"REDIS_NODES": nodes}) as found, open_sink(url) as sink:
        sink.send(parcel_batch("box", 0, 5))
        until(lambda: len(found.shipped) == 5)
        dead = cluster.owner("orders")
        replica = cluster.replica(dead)
        until(lambda: copied(replica, "orders") == 5)
        cluster.suspect_after(1000)
        dead.kill()
        sink.send(parcel_batch("box", 5, 5))
        until(lambda: len(set(found.shipped)) == 10)
        owner = cluster.fail_over(dead, "orders")
        until(lambda: ask(owner, "XPENDING", "orders", "shipping")[0] == 0)
        dead.start()

    assert sorted(set(found.shipped)) == list(range(1, 11)), found.lines
