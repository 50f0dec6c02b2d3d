"""The contract of an outbox as tests."""

from __future__ import annotations

from owm_outbox.testing.outbox_dead_letters import OutboxDeadLetters
from owm_outbox.testing.outbox_entries import OutboxEntries
from owm_outbox.testing.outbox_failures import OutboxFailures
from owm_outbox.testing.outbox_keys import OutboxKeys
from owm_outbox.testing.outbox_marks import OutboxMarks
from owm_outbox.testing.outbox_runs import OutboxRuns
from owm_outbox.testing.outbox_sharing import OutboxSharing
from owm_outbox.testing.outbox_size import OutboxSize

__all__ = ["OutboxContract"]


class OutboxContract(
    OutboxEntries,
    OutboxKeys,
    OutboxRuns,
    OutboxMarks,
    OutboxDeadLetters,
    OutboxSize,
    OutboxSharing,
    OutboxFailures,
):
    """What `owm_outbox.Outbox` promises. Give it a fixture ``storage``, which is new and empty for each test."""
