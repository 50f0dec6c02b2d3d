"""What a relay tells: the report at the end, and each step to whoever observes it."""

from __future__ import annotations

from typing import Any

import msgspec

from owm_outbox.job import Page, Run
from owm_outbox.task import Batch

__all__ = ["Observer", "RunReport"]


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a call did, and how its run stands.

    ``expected, extracted, duplicates, rejected, missing`` are of the whole run, over all calls that worked on it;
    ``delivered, redelivered, seconds`` of this call; ``pending`` of the whole outbox.

    :param complete: every page came, every distinct key the source promised is stored, and the sink holds all.
    :param expected: the source's newest total; ``None`` if it gave none.
    :param extracted: distinct tasks stored.
    :param delivered: entries that the sink came to hold, of this run or left by an earlier one.
    :param redelivered: entries sent again because the sink had lost them.
    :param rejected: dead letters of this run.
    :param pending: entries in the outbox that the sink does not hold.
    :param missing: pages that never came, sorted.
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


class Observer:
    """Told what a relay does, after it was done. Subclass it and override what you need.

    It runs on the relay's thread, between two commits; what it raises ends the run like a failure of the job.
    """

    def run_started(self, run: Run) -> None:
        """Take note that a run begins or goes on."""

    def page_stored(self, run: Run, page: Page[Any], new: int) -> None:
        """Take note that a page and its checkpoint are durable; ``new`` of its tasks were not there before."""

    def batch_delivered(self, batch: Batch) -> None:
        """Take note that the sink holds this batch."""

    def entries_rejected(self, reasons: dict[int, str]) -> None:
        """Take note that these positions became dead letters, and why."""

    def run_finished(self, report: RunReport) -> None:
        """Take note that the call is over and the outbox has the report."""
