"""The contract of a sink as tests."""

from __future__ import annotations

from owm_outbox.testing.sink_batches import SinkBatches
from owm_outbox.testing.sink_marks import SinkMarks
from owm_outbox.testing.sink_refusals import SinkRefusals
from owm_outbox.testing.sink_sharing import SinkSharing

__all__ = ["SinkContract"]


class SinkContract(SinkBatches, SinkMarks, SinkSharing, SinkRefusals):
    """What `owm_outbox.Sink` promises. Give it a fixture ``destination``, which is new and empty for each test."""
