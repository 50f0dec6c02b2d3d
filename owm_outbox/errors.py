"""One root error, and what each of its kinds means for the caller.

No exception of a third-party package crosses a seam: an outbox, a sink or the paged API raises one of these, and
the message says what happened, to what, and what to do next. ``exit_code`` is what a command ends with (sysexits).
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from owm_outbox.report import RunReport

__all__ = [
    "ApiUnavailable",
    "ConfigurationError",
    "EntriesRejected",
    "JobError",
    "OutboxError",
    "OutboxLocked",
    "OutboxUnavailable",
    "OutboxUnusable",
    "PositionConflict",
    "RunIncomplete",
    "SinkFull",
    "SinkUnavailable",
    "Stopped",
    "TaskError",
    "TryAgainLater",
]


class OutboxError(Exception):
    """The root of all errors raised by this package."""

    exit_code = 70
    report: RunReport | None = None
    """The report of the run that this ended, where the call got as far as one."""


class ConfigurationError(OutboxError):
    """An unknown plugin, a bad URL, option, environment variable or file: nothing was started."""

    exit_code = 78


class OutboxUnusable(OutboxError):
    """The outbox cannot be created, is not ours, or is damaged: a person has to look at it."""

    exit_code = 73


class TaskError(OutboxError):
    """A task has no ``task_id`` or cannot be encoded: a mistake in the code that made it."""


class JobError(OutboxError):
    """A job broke its contract: a mistake in the job's code."""


class TryAgainLater(OutboxError):
    """Nothing is wrong with the tasks: what is in the outbox stays there, and the next call goes on."""

    exit_code = 75


class OutboxLocked(TryAgainLater):
    """Another relay holds the outbox."""


class OutboxUnavailable(TryAgainLater):
    """The outbox takes no writes now (disk full, locked by another program); nothing uncommitted is reported."""


class ApiUnavailable(TryAgainLater):
    """The API a job reads from gives no usable answer, or its circuit breaker is open."""


class RunIncomplete(TryAgainLater):
    """Pages or tasks of a run are still missing; the next call fetches them."""


class SinkUnavailable(TryAgainLater):
    """The sink cannot be reached or takes no writes; no entry is to blame, and the outcome of a send is unknown."""


class SinkFull(TryAgainLater):
    """The sink has no room for the batch, and holds nothing of it.

    :param room: how many entries it would take now; 0 when none.
    """

    def __init__(self, message: str, *, room: int = 0) -> None:
        super().__init__(message)
        self.room = room


class EntriesRejected(OutboxError):
    """The sink refuses these entries for good, and holds nothing of the batch.

    :param reasons: the reason by position; never empty.
    """

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__(
            f"the sink refuses {len(reasons)} entries for good: {next(iter(reasons.values()), 'no entry was named')}"
        )
        self.reasons = dict(reasons)


class PositionConflict(OutboxError):
    """The sink holds another position than the batch starts from, and took nothing of it.

    :param held: the position that the sink holds for this outbox.
    """

    def __init__(self, held: int) -> None:
        super().__init__(f"the sink holds position {held}")
        self.held = held


class Stopped(OutboxError):
    """The process was asked to stop; everything committed stays, the next call goes on.

    :param signum: the signal that asked.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum
