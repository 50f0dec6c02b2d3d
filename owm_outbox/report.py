"""How a call ended: its report, and the error of one that is not complete."""

from __future__ import annotations

import msgspec

from owm_outbox.errors import ExitCode, OwmOutboxError

__all__ = ["RunIncomplete", "RunReport"]


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a call did, and how its run stands.

    ``expected, extracted, duplicates, rejected, missing`` are of the whole run, over all calls that worked on it;
    ``delivered, redelivered, trimmed, forked, seconds`` of this call; ``pending`` of the whole outbox.

    :param complete: every page was fetched, nothing follows the last one, every distinct key is stored, and the sink
        holds all.
    :param expected: the source's newest total, which is a claim; ``None`` if it gave none.
    :param extracted: distinct tasks stored.
    :param delivered: entries that the sink came to hold, of this run or left by an earlier one.
    :param redelivered: entries sent again because the sink had lost them.
    :param trimmed: entries that the sink dropped to make room, and that nobody is known to have read.
    :param forked: the sink's mark belonged to another history of this outbox (a restored backup, a copy at work):
        the outbox took a new id and sent again everything that it had not acknowledged.
    :param rejected: dead letters of this run.
    :param pending: entries in the outbox that the sink does not hold.
    :param missing: pages that could not be fetched, sorted.
    """

    run_id: str
    job: str
    resumed: bool
    complete: bool
    expected: int | None
    extracted: int
    duplicates: int
    delivered: int
    redelivered: int
    rejected: int
    pending: int
    missing: list[int]
    seconds: float
    trimmed: int = 0
    forked: bool = False


class RunIncomplete(OwmOutboxError):
    """A run was started and is not complete. ``__cause__`` is the error that ended it, if it was one.

    :param report: how the run stands; the outbox has it, too, unless the outbox itself failed.
    :param exit_code: that of the cause; 75 where pages or tasks are missing.
    """

    def __init__(self, message: str, report: RunReport, *, exit_code: int = ExitCode.TRY_AGAIN_LATER) -> None:
        super().__init__(message)
        self.report = report
        self.exit_code = exit_code
