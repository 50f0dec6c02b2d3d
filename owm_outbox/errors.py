"""One root error, and what each of its kinds means for the caller.

No exception of a third-party package crosses a seam: an outbox, a sink or the paged API raises one of these, and
the message says what happened, to what, and what to do next. ``exit_code`` is what a command ends with.
"""

from __future__ import annotations

import enum
import re
import signal
from collections.abc import Mapping

__all__ = [
    "ConfigurationError",
    "EntriesRejected",
    "ExitCode",
    "JobError",
    "MarkConflict",
    "OutboxInvalid",
    "OutboxLocked",
    "OutboxUnavailable",
    "OwmOutboxError",
    "SinkFull",
    "SinkUnavailable",
    "SourceUnavailable",
    "Stopped",
    "TaskError",
    "TryAgainLater",
    "one_line",
    "printable",
]


class ExitCode(enum.IntEnum):
    """What a command ends with; the numbers are those of sysexits.h, and 128 plus the signal."""

    COMPLETE = 0
    USAGE = 64
    DEAD_LETTERS = 65
    UNTESTED = DEAD_LETTERS  # of check: all that was tested holds, but nothing was made to fail
    BUG = 70
    OUTBOX_INVALID = 73
    TRY_AGAIN_LATER = 75
    CONFIGURATION = 78
    SIGINT = 128 + signal.SIGINT
    SIGTERM = 128 + signal.SIGTERM


def one_line(text: str) -> str:
    """Return a text without its line breaks: what a driver, a validator or a person wrote may have several lines."""
    return " ".join(filter(None, map(str.strip, text.splitlines())))


# Control characters of both sets (a terminal obeys them), marks that turn the direction of what follows, those that
# nobody sees, and halves of characters, which no encoding has.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def printable(line: str) -> str:
    """Return a line with escapes for what a terminal would obey, or show as something else than it is."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), line)


class OwmOutboxError(Exception):
    """The root of all errors raised by this package. As text it is one line, whatever it repeats of another's."""

    exit_code: int = ExitCode.BUG

    def __str__(self) -> str:
        return one_line(super().__str__())


class ConfigurationError(OwmOutboxError):
    """An unknown plugin, a bad URL, option, environment variable or file: waiting does not fix it."""

    exit_code = ExitCode.CONFIGURATION


class OutboxInvalid(OwmOutboxError):
    """The outbox cannot be created, is not ours, or is damaged: a person has to look at it."""

    exit_code = ExitCode.OUTBOX_INVALID


class TaskError(OwmOutboxError):
    """A task has no ``task_id``, no usable key, or cannot be encoded: a mistake in the code that made it."""


class JobError(OwmOutboxError):
    """A job broke its contract or raised an error of its own: a mistake in the job's code."""


class TryAgainLater(OwmOutboxError):
    """Nothing is wrong with the tasks: what is in the outbox stays there, and the next run continues."""

    exit_code = ExitCode.TRY_AGAIN_LATER


class OutboxLocked(TryAgainLater):
    """Another relay holds the outbox."""


class OutboxUnavailable(TryAgainLater):
    """The outbox takes no writes now (disk full, locked by another program); nothing uncommitted is reported."""


class SourceUnavailable(TryAgainLater):
    """The source a job reads from gives no usable answer, or its circuit breaker is open."""


class SinkUnavailable(TryAgainLater):
    """The sink cannot be reached or takes no writes; no entry is to blame, and the outcome of a send is unknown."""


class SinkFull(TryAgainLater):
    """The sink has no room for the batch, and holds nothing of it.

    :param room: how many entries it would take now; 0 when none.
    """

    def __init__(self, message: str, *, room: int = 0) -> None:
        super().__init__(message)
        self.room = room


class EntriesRejected(OwmOutboxError):
    """The sink will never take these entries, and holds nothing of the batch.

    :param reasons: the reason by position; never empty.
    """

    def __init__(self, reasons: Mapping[int, str]) -> None:
        count = len(reasons)
        super().__init__(
            f"the sink rejected {count} {'entry' if count == 1 else 'entries'} for good: "
            f"{next(iter(reasons.values()), 'none was named')}"
        )
        self.reasons = dict(reasons)


class MarkConflict(OwmOutboxError):
    """The sink holds another mark than the one the batch starts from, and took nothing of it.

    :param held: the mark that the sink holds for this outbox, as text; ``""`` for none.
    """

    def __init__(self, held: str) -> None:
        super().__init__(f"the sink holds the mark {held!r}" if held else "the sink holds no mark")
        self.held = held


class Stopped(OwmOutboxError):
    """The process was asked to stop; everything committed stays, and the next run continues.

    :param signum: the signal that asked.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum
