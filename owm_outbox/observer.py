"""What a relay tells while it works."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from owm_outbox.entry import Batch
from owm_outbox.job import Page
from owm_outbox.report import RunReport
from owm_outbox.run import Run

__all__ = ["Observer"]


class Observer:
    """Called after each step of a relay. Subclass it and override what you need.

    It runs on the relay's thread, between two commits. What it raises is logged, and changes nothing.
    """

    def run_started(self, run: Run) -> None:
        """Called after a run was started or resumed."""

    def page_stored(self, run: Run, page: Page[Any], new: int) -> None:
        """Called after a page and its checkpoint became durable; ``new`` of its tasks were not there before."""

    def batch_delivered(self, batch: Batch) -> None:
        """Called after the sink came to hold a batch."""

    def entries_rejected(self, reasons: Mapping[int, str]) -> None:
        """Called after the entries at these positions became dead letters, with the reasons."""

    def run_finished(self, report: RunReport) -> None:
        """Called after the outbox took the report."""
