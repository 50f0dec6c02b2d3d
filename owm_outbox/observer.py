"""What a relay tells while it works."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from owm_outbox.entry import Batch
from owm_outbox.errors import OwmOutboxError
from owm_outbox.job import Page
from owm_outbox.report import RunReport
from owm_outbox.run import Run

__all__ = ["Observer"]


class Observer:
    """Called after each step of a relay. Subclass it and override what you need.

    It runs on the relay's thread, between two commits, except where a method says otherwise. What it raises is logged,
    and changes nothing.
    """

    def alive(self) -> None:
        """Called before each wait, and before the sink is asked: a relay that hangs no longer calls it."""

    def lock_changed(self, held: bool) -> None:
        """Called after `run_forever` took the outbox's lock, and after it gave that up or lost it."""

    def run_started(self, run: Run) -> None:
        """Called after a run was started or resumed."""

    def page_stored(self, run: Run, page: Page[Any], new: int) -> None:
        """Called after a page and its checkpoint became durable; ``new`` of its tasks were not there before."""

    def batch_delivered(self, batch: Batch) -> None:
        """Called after the sink came to hold a batch."""

    def sink_answered(self, error: OwmOutboxError | None) -> None:
        """Called after the sink was asked for its mark or sent a batch, with the error if it is unavailable or full."""

    def batch_sent(self, batch: Batch, seconds: float, error: OwmOutboxError | None) -> None:
        """Called after each attempt to send a batch, with what it took, and why the sink did not take it."""

    def entries_redelivered(self, entries: int) -> None:
        """Called after so many entries were sent again, because the sink had lost them."""

    def entries_trimmed(self, entries: int) -> None:
        """Called after the sink dropped so many, which nobody is known to have read, to make room."""

    def entries_rejected(self, reasons: Mapping[int, str]) -> None:
        """Called after the entries at these positions became dead letters, with the reasons."""

    def request_finished(self, seconds: float, status: int | None, failed: bool) -> None:
        """Called after each request of a `PagedApi`, on the thread that made it.

        :param status: of the answer; ``None`` if there was none.
        :param failed: whether it brought no page.
        """

    def breaker_changed(self, is_open: bool) -> None:
        """Called with the state of a `PagedApi`'s circuit breaker, at the start and at the end of a run."""

    def run_finished(self, report: RunReport) -> None:
        """Called after the outbox took the report."""
