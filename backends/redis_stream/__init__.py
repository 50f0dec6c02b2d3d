"""RedisStreamSink: a batch, its mark and the trimming in one script call."""

from .sink import RedisStreamSink

__all__ = ["RedisStreamSink"]
