"""JetStreamSink: a batch and its mark in one atomic batch of NATS JetStream."""

from .sink import JetStreamSink

__all__ = ["JetStreamSink"]
