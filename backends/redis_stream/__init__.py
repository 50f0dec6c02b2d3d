"""Sinks that add a batch, its mark and the trimming in one script call: one server, a cluster, or behind Sentinels."""

from .cluster import RedisClusterSink
from .sentinel import RedisSentinelSink
from .sink import RedisStreamSink

__all__ = ["RedisClusterSink", "RedisSentinelSink", "RedisStreamSink"]
