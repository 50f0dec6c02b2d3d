"""The sink for a cluster keeps the contract of a sink, whole."""

from __future__ import annotations

import pytest

from owm_outbox.testing import Capabilities, Destination, SinkContract, cut_requests, lose_replies
from owm_outbox_backends.redis_stream import RedisClusterSink, sink

from support.redis_cluster import Cluster
from support.streams import entries

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class TestRedisClusterSink(SinkContract):
    """RedisClusterSink does all that the contract asks."""

    capabilities = Capabilities(bounded=True, rejects=True, interruptible=True, remote=True, notices_loss=True)

    @pytest.fixture
    def destination(self, cluster: Cluster, stream: str) -> Destination:
        """Deliver to a stream that holds 10,000 entries, with a consumer group that reads nothing."""
        owner = cluster.owner(stream)
        with owner.client() as client:
            client.xgroup_create(stream, "workers", id="0", mkstream=True)
            client.config_set("proto-max-bulk-len", 1024 * 1024)
        url = cluster.url("unused").partition("?")[0]

        def fill() -> None:
            with owner.client() as client, client.pipeline(transaction=False) as pipe:
                for _ in range(9_980):
                    pipe.xadd(stream, {"data": "{}"})
                pipe.execute()

        def lose() -> None:
            with owner.client() as client:
                client.delete(stream)

        return Destination(
            open=lambda: RedisClusterSink(url, stream=stream, maxlen=10_000, retries=0),
            payloads=lambda: [fields[b"data"] for fields in entries(owner, stream)],
            fill=fill,
            poison=b'{"task_id": "' + b"x" * 2 * 1024 * 1024 + b'"}',
            interrupt=cut_requests,
            unreachable=lambda: RedisClusterSink("redis+cluster://127.0.0.1:1,127.0.0.1:2", stream=stream, retries=0),
            lose=lose,
        )


class TestRedisClusterSinkWithReplicas(SinkContract):
    """With a replica that has to have each batch, and with replies that are lost, the promises are the same."""

    capabilities = Capabilities(interruptible=True)

    @pytest.fixture
    def destination(self, cluster: Cluster, stream: str, monkeypatch: pytest.MonkeyPatch) -> Destination:
        """Deliver to a stream that nobody reads."""
        monkeypatch.setattr(sink, "_WAIT_MS", 4000)  # the machine may be busy, and there is no second attempt
        owner = cluster.owner(stream)
        url = cluster.url("unused", nodes=cluster.nodes[-1:]).partition("?")[0]
        return Destination(
            open=lambda: RedisClusterSink(url, stream=stream, maxlen=0, retries=0, wait_replicas=1),
            payloads=lambda: [fields[b"data"] for fields in entries(owner, stream)],
            interrupt=lose_replies,
        )
