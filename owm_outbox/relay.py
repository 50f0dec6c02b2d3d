"""The relay: moves tasks from a job to the outbox, and from the outbox to the sink.

It alone decides what follows when a sink says no. The data goes one way: ``Job.pages`` → ``Outbox.append`` →
``Outbox.read`` → ``Sink.send`` → ``Outbox.acknowledge``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import timedelta
from typing import Any

from owm_outbox.again import Again
from owm_outbox.delivery import Delivery
from owm_outbox.errors import (
    ConfigurationError,
    ExitCode,
    OutboxLocked,
    OwmOutboxError,
    Stopped,
    TryAgainLater,
)
from owm_outbox.extraction import Extraction
from owm_outbox.finishing import was_closed
from owm_outbox.job import Job
from owm_outbox.observer import Observer
from owm_outbox.outbox import RESUME_WITHIN, Outbox
from owm_outbox.report import RunIncomplete, RunReport
from owm_outbox.run import Run
from owm_outbox.sink import Sink, pausing_with
from owm_outbox.stop import Stop

__all__ = ["OutboxRelay"]

log = logging.getLogger("owm_outbox.relay")

_PARTIAL_AFTER = 1.0  # seconds; where pages come slowly, a batch need not be full


class OutboxRelay:
    """Delivers what is in an outbox to a sink, and runs jobs that fill it.

    :param batch_size: entries per batch, at most.
    :param wait_for_room: seconds to wait for room in a full sink before giving up until the next run.
    :param stop: ends the relay between two commits once it is set, with `Stopped`.
    :param observers: called after each step, in this order.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        outbox: Outbox,
        sink: Sink,
        *,
        batch_size: int = 500,
        wait_for_room: float = 60.0,
        stop: Stop | None = None,
        observers: Sequence[Observer] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if batch_size < 1:
            raise ConfigurationError(f"batch_size is {batch_size}; give at least 1")
        self._outbox = outbox
        self._sink = sink
        self._batch_size = batch_size
        self._wait_for_room = wait_for_room
        self._stop = stop or Stop()
        self._observers = tuple(observers)
        self._clock = clock

    def run(self, job: Job[Any], *, resume_within: timedelta = RESUME_WITHIN) -> RunReport:
        """Run a job: deliver what an earlier call left, store and deliver its pages, and finish.

        An unfinished run is resumed, see `Outbox.start_run`; ``timedelta(0)`` always starts a new one.

        :raises OutboxLocked: another relay holds the outbox; nothing was done.
        :raises Stopped: a stop was asked for before the run began.
        :raises RunIncomplete: the run is not complete. Its cause says why, its report how the run stands; all that
            could be stored and delivered was. The next call continues with it.
        :raises OwmOutboxError: the outbox or the sink cannot be used at all; nothing is lost.
        """
        started = self._clock()
        with self._outbox.lock():
            delivery = self._delivery(self._stop)
            delivery.send_ready()
            record = self._outbox.start_run(job.name, resume_within=resume_within)
            run = Run.of(record, self._outbox.state, self._stop, self._notify)
            delivery.run_id = run.id
            self._notify("run_started", run)
            extraction = Extraction(job, run)
            try:
                self._extract(extraction, delivery)
                cause = self._deliver(delivery, None)
            except OwmOutboxError as error:
                cause = self._deliver(delivery, error)
            problem = cause or extraction.problem()
            report = self._report(extraction, delivery, complete=problem is None, started=started)
            failure = self._finish(report)
        if failure is not None and not was_closed(self._outbox, run.id, failure, self._stop):
            raise failure
        self._notify("run_finished", report)
        if problem is not None:
            code = problem.exit_code if cause else ExitCode.TRY_AGAIN_LATER
            raise RunIncomplete(str(problem), report, exit_code=code) from cause
        return report

    def drain(self) -> int:
        """Deliver everything that is in the outbox, extract nothing, and return how many entries the sink came to hold.

        :raises OutboxLocked: another relay holds the outbox; nothing was done.
        :raises TryAgainLater: the sink is down or full; the rest stays in the outbox.
        :raises Stopped: a stop was asked for.
        """
        with self._outbox.lock():
            delivery = self._delivery(self._stop)
            delivery.send_all()
            return delivery.delivered

    def run_forever(self, stop: Stop | threading.Event, *, poll: float = 0.2, stand_by: bool = False) -> None:
        """Deliver what anybody appends, until ``stop`` is set; then return between two commits.

        A sink that is down or full, and an outbox that takes no writes, are waited for: 1 s at first, up to 30 s.

        :param poll: seconds between two looks at an outbox that had nothing new.
        :param stand_by: waits while another relay holds the outbox, and takes over when it ends. The sink is asked
            once meanwhile, so that what is wrong with its settings is raised now, and not when it is needed.
        :raises OutboxLocked: another relay holds the outbox, unless ``stand_by``.
        :raises OwmOutboxError: what waiting does not fix (a wrong password, a damaged file); nothing is lost.
        """
        asked = stop if isinstance(stop, Stop) else Stop(stop)
        waiting = held = False
        again = Again(asked, log)
        while not asked.is_set():
            self._notify("alive")
            try:
                with self._outbox.lock():
                    if waiting:
                        log.info("taking over: the outbox is free")
                    waiting, held = False, True
                    again.reset()
                    self._notify("lock_changed", True)
                    try:
                        self._serve(asked, poll)
                    finally:
                        self._notify("lock_changed", False)
            except Stopped:
                break
            except OutboxLocked as error:
                if held:  # it was lost on the way: whether another relay has it shows when we ask for it again
                    log.warning("asking for the lock again: %s", error)
                elif not stand_by:
                    raise
                elif not waiting:
                    log.info("standing by: %s", error)
                    self._ask_sink()
                waiting, held = not held, False
                asked.wait(poll)
            except TryAgainLater as error:
                held = False
                again.wait(error)
        log.info("stopped; what is left stays in the outbox")

    def _serve(self, stop: Stop, poll: float) -> None:
        """Deliver under the lock until a stop is asked for."""
        delivery: Delivery | None = None
        again = Again(stop, log)
        failing_since: float | None = None
        while not stop.is_set():
            try:
                delivery = delivery or self._delivery(stop)
                if not delivery.idle:
                    delivery.send_all()
                if failing_since is not None:
                    log.info("delivering again, after %.0f s of failures", self._clock() - failing_since)
                again.reset()
                failing_since = None
                self._notify("alive")
                self._outbox.wait(poll, stop)
            except OutboxLocked:
                raise
            except TryAgainLater as error:
                delivery = None  # what it knew of the outbox may have changed
                failing_since = self._clock() if failing_since is None else failing_since
                self._notify("alive")
                again.wait(error)

    # -- within

    def _ask_sink(self) -> None:
        """Ask the sink for this outbox's mark, without the patience that a delivery has.

        :raises ConfigurationError: it can never work.
        """
        try:
            known = self._outbox.state.get("id")
            if known is not None:  # only the relay that holds the outbox may give it one
                with pausing_with(lambda _: False):
                    self._sink.mark(known.decode())
        except TryAgainLater as error:
            log.warning("this relay could not take over now: %s", error)

    def _delivery(self, stop: Stop) -> Delivery:
        stop.check()
        return Delivery(
            self._outbox,
            self._sink,
            batch_size=self._batch_size,
            wait_for_room=self._wait_for_room,
            stop=stop,
            tell=self._notify,
            clock=self._clock,
        )

    def _extract(self, extraction: Extraction, delivery: Delivery) -> None:
        """Store all pages of the run, and deliver on the way while the sink is up."""
        unsent, sent_at = 0, self._clock()
        with closing(extraction.pages()) as pages:  # also where a commit fails: the job has to release what it holds
            for page in pages:
                new = extraction.store(page, self._outbox)
                self._notify("page_stored", extraction.run, page, new)
                unsent += new
                slow = self._clock() - sent_at >= _PARTIAL_AFTER
                if unsent >= self._batch_size or slow:
                    delivery.send_ready(full_batches_only=not slow)
                    unsent, sent_at = unsent % self._batch_size, self._clock()

    def _deliver(self, delivery: Delivery, cause: OwmOutboxError | None) -> OwmOutboxError | None:
        """Deliver what is stored, also where the extraction failed; return the error to report, the first of them."""
        if isinstance(cause, Stopped):
            return cause
        try:
            delivery.send_all()
        except Stopped as error:
            return error
        except OwmOutboxError as error:
            if cause is None:
                return error
            if str(error) != str(cause):
                log.warning("%s", error)
        return cause

    def _report(self, extraction: Extraction, delivery: Delivery, *, complete: bool, started: float) -> RunReport:
        run = extraction.run
        try:
            delivery.acknowledge()
            stats = self._outbox.stats()
            pending = stats.pending
            rejected = next((known.rejected for known in stats.runs if known.id == run.id), run.rejected)
        except OwmOutboxError as error:
            if complete:
                raise
            log.info("the report is an estimate: %s", error)
            pending, rejected = max(run.extracted - delivery.delivered, 0), run.rejected
        return RunReport(
            run_id=run.id,
            job=run.job,
            resumed=run.resumed,
            complete=complete,
            expected=run.expected,
            extracted=run.extracted,
            duplicates=run.duplicates,
            delivered=delivery.delivered,
            redelivered=delivery.redelivered,
            trimmed=delivery.trimmed,
            forked=delivery.forked,
            rejected=rejected,
            pending=pending,
            missing=sorted(extraction.missing),
            seconds=round(self._clock() - started, 3),
        )

    def _finish(self, report: RunReport) -> TryAgainLater | None:
        """Have the outbox keep the report; return what it raised if the run was to be closed, and may be."""
        try:
            self._outbox.finish_run(report.run_id, report)
        except OwmOutboxError as error:
            if not report.complete:
                log.info("the report could not be stored: %s", error)
            elif isinstance(error, TryAgainLater):
                log.info("closing the run: %s", error)
                return error
            else:
                raise
        return None

    def _notify(self, event: str, *args: Any) -> None:
        for observer in self._observers:
            try:
                getattr(observer, event)(*args)
            except Exception:
                log.exception("%s.%s failed; the relay continues", type(observer).__name__, event)
