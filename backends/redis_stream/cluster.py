"""RedisClusterSink: the same sink where the stream is on one node of a cluster, and may move to another."""

from __future__ import annotations

from collections.abc import Callable
from itertools import starmap
from typing import Any, TypeVar

import redis
from redis.cluster import ClusterNode, NodesManager
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    RedisClusterException,
    RedisError,
    SlotNotCoveredError,
    TryAgainError,
)

from owm_outbox import URL

from .connection import PASSING, OwnRetry, Server, refused_unread, settings_of
from .sink import RedisStreamSink

__all__ = ["RedisClusterSink"]

T = TypeVar("T")

_REDIRECTIONS = 5  # followed by one attempt: nodes that name each other are not agreed yet


class RedisClusterSink(RedisStreamSink):
    """Adds each task to a Redis Stream that is in a Redis or Valkey Cluster, on the node that has its slot.

    ``redis+cluster://user:password@host:6379,host:6379?stream=s``, or ``rediss+cluster://`` for TLS. The hosts are
    nodes of the cluster, any of them; the others are learned from the first that answers. Options are those of
    `RedisStreamSink`. When the slot moves to another node, or a replica takes over, the sink follows.

    A failover loses what the replica did not have yet. With ``wait_replicas=1`` a batch counts only once a replica has
    it. Without, the mark is lost together with the entries, and what the outbox still has is sent again.
    """

    def _connected(self, url: URL, retry: OwnRetry) -> Server:
        return _Cluster(url, self._stream, retry)


class _Cluster(Server):
    """Finds the node that has the stream, and looks again after each failure.

    redis-py's `NodesManager`, which its cluster client goes by, knows the nodes, and has a client for each, which do
    not retry. The commands go straight to such a client, because WAIT has to follow a script on the same connection. So
    all retries are made here. `RedisCluster` itself begins with COMMAND, a large reply that nothing here needs, from a
    node that may be down although the stream's is not.
    """

    rights = (("+asking", ("ASKING",)),)  # it is for the next command only, and harmless there

    def __init__(self, url: URL, stream: str, retry: OwnRetry) -> None:
        self._settings, tls = settings_of(url)
        self._settings.pop("db")
        self._hosts = [(host, port or 6379) for host, port in url.hosts]
        self.user = self._settings.get("username", "default")
        self._slot = key_slot(stream.encode())
        self._nodes: Any = None  # a NodesManager, which has few types
        self._importing: Any = None  # a node that a slot is on its way to, and that has none yet
        self._known = False
        self._retry = retry
        retry.identify = lambda error: next(
            filter(None, (refused_unread(*address, tls, error) for address in self._hosts)), None
        )
        retry.update_supported_errors([*PASSING, ClusterDownError, TryAgainError])

    def call(self, do: Callable[[redis.Redis, bool], T]) -> T:
        """Return what ``do`` returns, given a client of the node that has the stream."""
        return self._retry.call_with_retry(lambda: self._attempt(do), self._forget)

    def _forget(self, error: Exception) -> None:
        self._known = False

    def _attempt(self, do: Callable[[redis.Redis, bool], T]) -> T:
        try:
            self._look()
            node, asking = self._nodes.get_node_from_slot(self._slot), False
            for _ in range(_REDIRECTIONS):
                try:
                    return do(self._client_of(node), asking)
                except AskError as error:
                    node, asking = self._other_node(error), True
                except MovedError as error:
                    self._nodes.move_slot(error)
                    node, asking = self._nodes.get_node_from_slot(self._slot), False
        except SlotNotCoveredError as error:
            raise ClusterDownError(str(error)) from error
        raise ClusterDownError(f"the nodes do not agree which of them has the stream ({node.name} did not)")

    def _look(self) -> None:
        """Ask the nodes which of them has which slot, if that is not known."""
        if self._known:
            return
        try:
            self._ask_nodes()
        except RedisClusterException as error:
            found = _cause(error)
        except IndexError:  # redis-py's, where no node has a slot
            found = ClusterDownError("no node of the cluster has any slot")
        else:
            self._known = True
            return
        raise found  # not within a handler: it would be the cause of its own cause

    def _ask_nodes(self) -> None:
        if self._nodes is None:
            self._nodes = NodesManager(
                startup_nodes=list(starmap(_node, self._hosts)),
                require_full_coverage=False,
                dynamic_startup_nodes=False,  # the URL's hosts stay an entry when all addresses have changed
                **self._settings,
            )
        else:
            known = [(node.host, node.port) for node in self._nodes.nodes_cache.values()]
            self._nodes.initialize(additional_startup_nodes_info=known)

    def _client_of(self, node: Any) -> redis.Redis:
        if node.redis_connection is None:
            self._nodes.create_redis_connections([node])
        client: redis.Redis = node.redis_connection
        return client

    def _other_node(self, error: AskError) -> Any:
        found = self._nodes.get_node(error.host, error.port)
        if found is None and (self._importing is None or self._importing.name != f"{error.host}:{error.port}"):
            self._importing = _node(error.host, error.port)
        return found or self._importing

    def disconnect(self) -> None:
        """Close the connections to all nodes; the next call makes new ones."""
        known = [] if self._nodes is None else [*self._nodes.nodes_cache.values(), self._importing]
        for node in known:
            if node is not None and node.redis_connection is not None:
                node.redis_connection.connection_pool.disconnect()

    def close(self) -> None:
        """Close the connections for good."""
        self.disconnect()
        if self._nodes is not None:
            self._nodes.close()


def _node(host: str, port: int) -> ClusterNode:
    return ClusterNode(host, port)  # type: ignore[no-untyped-call]  # redis-py leaves it untyped


def _cause(error: BaseException) -> RedisError:
    """Return what a node answered, or why it could not be asked; redis-py raises something else instead."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, RedisError):
        found = found.__cause__ or found.__context__
    return found or ClusterDownError(str(error))
