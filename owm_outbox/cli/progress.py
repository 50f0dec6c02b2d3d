"""How far a run has got: a bar at a terminal, lines in the log everywhere else."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import msgspec

from owm_outbox.cli.outcome import count
from owm_outbox.entry import Batch
from owm_outbox.job import Page
from owm_outbox.observer import Observer
from owm_outbox.report import RunReport
from owm_outbox.run import Run

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["ProgressBar", "ProgressLog"]

log = logging.getLogger("owm_outbox.progress")


class ProgressBar(Observer):
    """Shows on stderr how many tasks of a run are stored, of how many, at what rate, and the time left.

    And how many pages this call fetched, and how many tasks it delivered.
    """

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._pages = 0
        self._delivered = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def run_started(self, run: Run) -> None:
        """Open the bar at what the run has already stored."""
        from tqdm import tqdm  # only where there is a terminal

        class Bar(tqdm):  # type: ignore[type-arg]  # at run time it has none
            monitor_interval = 0  # no thread of its own: there may be no more of them

        self._bar = Bar(
            desc=run.job, initial=run.extracted, total=run.expected, unit=" tasks", dynamic_ncols=True, leave=False
        )

    def page_stored(self, run: Run, page: Page[Any], new: int) -> None:
        """Advance the bar."""
        self._pages += page.pages
        if self._bar is not None:
            self._bar.total = run.expected
            self._bar.set_postfix(pages=self._pages, delivered=self._delivered, refresh=False)
            self._bar.update(new)

    def batch_delivered(self, batch: Batch) -> None:
        """Count what the sink holds, and show it even while nothing more is stored."""
        self._delivered += len(batch.entries)
        if self._bar is not None:
            due = time.time() - self._bar.last_print_t >= self._bar.mininterval
            self._bar.set_postfix(pages=self._pages, delivered=self._delivered, refresh=due)

    def run_finished(self, report: RunReport) -> None:
        """Remove the bar, so that the last line stands alone."""
        if self._bar is not None:
            self._bar.close()


class ProgressLog(Observer):
    """Logs a line at the start, at the end, and at intervals in between.

    :param every: seconds between two lines, at least.
    :param clock: monotonic seconds.
    """

    def __init__(self, every: float = 10.0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._every = every
        self._clock = clock
        self._began = self._last = clock()
        self._pages = self._stored = self._delivered = 0

    def run_started(self, run: Run) -> None:
        """Log which run it is."""
        log.info("run %s of job %s %s", run.id, run.job, "is resumed" if run.resumed else "starts")
        self._began = self._last = self._clock()

    def page_stored(self, run: Run, page: Page[Any], new: int) -> None:
        """Log how far it has got, if enough time has passed."""
        self._pages += page.pages
        self._stored += new
        now = self._clock()
        if now - self._last < self._every:
            return
        self._last = now
        rate = self._stored / (now - self._began)
        left = "" if not run.expected or not rate else f", {(run.expected - run.accounted) / rate:.0f} s left"
        log.info(
            "%d pages fetched, %d of %s tasks stored, %d delivered, %.0f per second%s",
            self._pages,
            run.extracted,
            run.expected if run.expected is not None else "?",
            self._delivered,
            rate,
            left,
            extra={
                "pages": self._pages,
                "extracted": run.extracted,
                "expected": run.expected,
                "delivered": self._delivered,
            },
        )

    def batch_delivered(self, batch: Batch) -> None:
        """Count what the sink holds."""
        self._delivered += len(batch.entries)

    def run_finished(self, report: RunReport) -> None:
        """Log how the run ended."""
        log.info(
            "run %s is %s: %s, %d delivered, %d rejected, %d waiting, %.1f s",
            report.run_id,
            "complete" if report.complete else "incomplete",
            count(report.extracted, "task"),
            report.delivered,
            report.rejected,
            report.pending,
            report.seconds,
            extra=msgspec.structs.asdict(report),
        )
