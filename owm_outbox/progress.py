"""A progress bar for people at a terminal."""

from __future__ import annotations

from typing import Any, Self

from tqdm import tqdm

from owm_outbox.job import Page, Run
from owm_outbox.report import Observer, RunReport
from owm_outbox.task import Batch

__all__ = ["ProgressBar"]


class ProgressBar(Observer):
    """Shows on stderr how many tasks of a run are stored, of how many, how fast, and how many are delivered."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._delivered = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def run_started(self, run: Run) -> None:
        """Open the bar where the run stands."""
        self._bar = tqdm(
            desc=run.job,
            initial=run.extracted,
            total=run.expected,
            unit=" tasks",
            dynamic_ncols=True,
            leave=False,
        )

    def page_stored(self, run: Run, page: Page[Any], new: int) -> None:
        """Move on."""
        if self._bar is not None:
            self._bar.total = run.expected
            self._bar.update(new)

    def batch_delivered(self, batch: Batch) -> None:
        """Count what the sink holds."""
        self._delivered += len(batch.entries)
        if self._bar is not None:
            self._bar.set_postfix(delivered=self._delivered, refresh=False)

    def run_finished(self, report: RunReport) -> None:
        """Take the bar away, so that the last line stands alone."""
        if self._bar is not None:
            self._bar.close()
