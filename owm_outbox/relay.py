"""The relay: moves tasks from a job to the outbox, and from the outbox to the sink.

It alone decides what follows when a sink says no. The way of the data has one direction: ``Job.pages`` →
``Outbox.append`` → ``Outbox.read`` → ``Sink.send`` → ``Outbox.acknowledge``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from owm_outbox.errors import (
    ConfigurationError,
    EntriesRejected,
    JobError,
    OutboxError,
    PositionConflict,
    RunIncomplete,
    SinkFull,
    SinkUnavailable,
    Stopped,
    TryAgainLater,
)
from owm_outbox.job import Job, Page, Run
from owm_outbox.outbox import RESUME_WITHIN, Outbox
from owm_outbox.report import Observer, RunReport
from owm_outbox.sink import Sink
from owm_outbox.stop import Following, Stop
from owm_outbox.task import Batch, Entry

__all__ = ["OutboxRelay"]

log = logging.getLogger("owm_outbox.relay")

_ACKNOWLEDGE_EVERY = 16  # batches; a sink that holds the position makes each more often needless
_PARTIAL_AFTER = 1.0  # seconds; where pages come slowly, a batch need not be full
_BATCH_BYTES = 8 * 2**20  # of payload; keeps a batch of large tasks within memory and what a sink takes at once


class OutboxRelay:
    """Delivers what is in an outbox to a sink, and runs jobs that fill it.

    :param batch_size: entries a batch, at most.
    :param hold_for: seconds to wait for room in a full sink before giving up until the next call.
    :param stop: ends the relay between two commits once it is set, with `Stopped`.
    :param observers: told about each step, in this order.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        outbox: Outbox,
        sink: Sink,
        *,
        batch_size: int = 500,
        hold_for: float = 60.0,
        stop: Stop | None = None,
        observers: Sequence[Observer] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if batch_size < 1:
            raise ConfigurationError(f"batch_size is {batch_size}; give at least 1")
        self._outbox = outbox
        self._sink = sink
        self._batch_size = batch_size
        self._hold_for = hold_for
        self._stop = stop or Stop()
        self._observers = tuple(observers)
        self._clock = clock

        self._aligned = False  # whether _cursor is known to be the sink's position
        self._tracks = True  # whether the sink can tell its position
        self._cursor = 0  # all up to here is held by the sink
        self._acknowledged = 0  # all up to here is noted as held in the outbox
        self._furthest = 0  # the highest position the sink is known to have held: what is below it is sent again
        self._delivered = 0
        self._redelivered = 0
        self._missing: Sequence[int] = ()
        self._patient = True  # whether the sink may wait between its attempts
        self._next_try = 0.0
        self._trouble: TryAgainLater | None = None  # why the sink is left alone until _next_try
        sink.pause = self._pause

    # -- what callers use

    def run(self, job: Job[Any], *, resume_within: timedelta = RESUME_WITHIN) -> RunReport:
        """Run a job: deliver what an earlier call left, store and deliver its pages, and finish.

        An unfinished run is resumed, see `Outbox.start_run`. What keeps a run from completing is raised, with the
        report as its ``report``, after all that could be stored and delivered was.

        :raises OutboxLocked: another relay holds the outbox; nothing was done.
        :raises TryAgainLater: the run is incomplete; the next call goes on with it.
        :raises Stopped: a stop was asked for.
        :raises OutboxError: any other kind ends the call where it stands, with nothing lost.
        """
        started = self._clock()
        with self._outbox.lock():
            self._reset()
            self._deliver_what_fits()
            run = self._outbox.start_run(job, resume_within=resume_within)
            self._tell("run_started", run)
            trouble: TryAgainLater | Stopped | None = None
            try:
                self._extract(job, run)
                self._deliver_all()
            except (SinkUnavailable, SinkFull) as error:
                trouble = error
            except Stopped as error:
                # Its traceback would keep alive whatever the signal ended, and what that has open.
                trouble = error.with_traceback(None)
            except TryAgainLater as error:
                trouble = self._deliver_all_despite(error)
            trouble = trouble or _lacking(run, self._missing)
            report = self._report(run, complete=trouble is None, seconds=self._clock() - started)
            self._outbox.finish_run(run, report)
            self._tell("run_finished", report)
        if trouble is not None:
            trouble.report = report
            raise trouble
        return report

    def drain(self) -> int:
        """Deliver everything that is in the outbox, extract nothing, and return how many entries the sink came to hold.

        :raises OutboxLocked: another relay holds the outbox; nothing was done.
        :raises TryAgainLater: the sink is down or full; the rest stays in the outbox.
        :raises Stopped: a stop was asked for.
        """
        with self._outbox.lock():
            self._reset()
            self._deliver_all()
            return self._delivered

    def run_forever(self, stop: threading.Event, *, poll: float = 0.2) -> None:
        """Deliver what anybody appends, until ``stop`` is set; then return between two commits.

        A sink that is down or full, and an outbox that takes no writes, are waited for: 1 s at first, up to 30 s.

        :param poll: seconds between two looks at an outbox that had nothing new.
        :raises OutboxLocked: another relay holds the outbox.
        :raises OutboxError: what no waiting mends (a wrong password, a damaged file); nothing is lost.
        """
        own, self._stop = self._stop, stop if isinstance(stop, Stop) else Following(stop)
        wait = 1.0
        try:
            with self._outbox.lock():
                self._reset()
                while not self._stop.is_set():
                    try:
                        if not self._aligned or self._outbox.read(self._cursor, 1):
                            self._deliver_all()
                        wait = 1.0
                        self._stop.wait(poll)
                    except TryAgainLater as error:
                        log.warning("trying again in %.0f s: %s", wait, error)
                        self._stop.wait(wait)
                        wait = min(2 * wait, 30.0)
        except Stopped:
            log.info("stopped; what is left stays in the outbox")
        finally:
            self._stop = own

    # -- extraction

    def _extract(self, job: Job[Any], run: Run) -> None:
        """Store all pages of the run, and deliver on the way while the sink is up."""
        unsent, sent_at = 0, self._clock()
        pages = job.pages(run)
        try:
            while True:
                with self._stop.interruptible():
                    page = next(pages, None)
                if page is None:
                    return
                if not isinstance(page, Page):
                    raise JobError(f"job {run.job!r} yielded a {type(page).__name__}, not a Page")
                new = self._outbox.append(
                    page.tasks,
                    run=run,
                    checkpoint=page.checkpoint,
                    rejected=page.rejected,
                    expected=page.expected,
                )
                self._missing = page.missing
                self._tell("page_stored", run, page, new)
                unsent += new
                slow = self._clock() - sent_at >= _PARTIAL_AFTER
                if unsent >= self._batch_size or slow:
                    self._deliver_what_fits(only_full_batches=not slow)
                    unsent, sent_at = unsent % self._batch_size, self._clock()
        finally:
            close = getattr(pages, "close", None)  # an iterator need not be a generator
            if close is not None:
                close()

    # -- delivery

    def _deliver_what_fits(self, *, only_full_batches: bool = False) -> None:
        """Deliver as long as the sink takes entries at once; if it does not, leave it alone for a while."""
        if self._trouble is not None and self._clock() < self._next_try:
            return
        began = self._clock()
        self._patient = False
        try:
            self._align()
            for _ in self._send_batches(only_full_batches=only_full_batches):
                pass
        except (SinkUnavailable, SinkFull) as error:
            if self._trouble is None:
                log.warning("going on without the sink for now: %s", error)
            # A sink that takes long to fail is asked less often, so that it costs a tenth of the time at most.
            self._next_try = self._clock() + max(1.0, 10 * (self._clock() - began))
            self._trouble = error
        else:
            self._trouble = None
        finally:
            self._patient = True

    def _deliver_all(self) -> None:
        """Deliver everything, with all the patience the sink and ``hold_for`` allow, until both sides agree."""
        self._trouble = None
        gives_up = self._clock() + self._hold_for
        wait = 0.05
        while True:
            try:
                self._align()
                for _ in self._send_batches():
                    gives_up, wait = self._clock() + self._hold_for, 0.05
                self._acknowledge()
                # The server may have gone back in time since its last answer; only now is its word final.
                if not self._tracks or self._position() == self._cursor:
                    return
                self._aligned = False
            except SinkFull as error:
                self._acknowledge()
                left = gives_up - self._clock()
                if left <= 0:
                    raise
                log.info("waiting up to %.0f s for room: %s", left, error)
                self._stop.sleep(min(wait, left))
                wait = min(2 * wait, 2.0)
            except BaseException:
                self._acknowledge()
                raise

    def _deliver_all_despite(self, error: TryAgainLater) -> TryAgainLater | Stopped:
        """Deliver what is stored although the extraction failed; the extraction's error stays the one to report."""
        try:
            self._deliver_all()
        except (SinkUnavailable, SinkFull) as second:
            log.warning("and the sink: %s", second)
        except Stopped as second:
            return second
        return error

    def _send_batches(self, *, only_full_batches: bool = False) -> Iterator[int]:
        """Send batch after batch, and yield the size of each that the sink took."""
        unnoted = 0
        limit = self._batch_size
        while entries := _within(self._outbox.read(self._cursor, limit), _BATCH_BYTES):
            if only_full_batches and len(entries) < limit:
                break
            batch = Batch(self._outbox.id, self._cursor, entries)
            try:
                with self._stop.interruptible():
                    self._sink.send(batch)
            except EntriesRejected as error:
                self._reject(error.reasons, batch)
                continue
            except PositionConflict as error:
                self._realign(error.held)
                continue
            except SinkFull as error:
                if not 0 < error.room < len(entries):
                    raise
                limit = error.room  # rather some now than all later
                continue
            limit = self._batch_size
            self._count(batch)
            self._cursor = batch.position
            unnoted += 1
            if not self._tracks or unnoted >= _ACKNOWLEDGE_EVERY:
                self._acknowledge()
                unnoted = 0
            self._tell("batch_delivered", batch)
            yield len(entries)
            self._stop.check()
        if not only_full_batches:
            self._acknowledge()

    def _count(self, batch: Batch) -> None:
        again = sum(entry.position <= self._furthest for entry in batch.entries)
        self._redelivered += again
        self._delivered += len(batch.entries) - again
        self._furthest = max(self._furthest, batch.position)

    def _reject(self, reasons: dict[int, str], batch: Batch) -> None:
        known = {entry.position for entry in batch.entries}
        if not known.intersection(reasons):
            raise OutboxError(
                f"{type(self._sink).__name__} rejected positions {sorted(reasons)} that are not in its batch "
                f"({batch.entries[0].position} to {batch.position}): a mistake in the sink"
            )
        self._outbox.reject(reasons)
        for position, reason in reasons.items():
            log.error("entry %d became a dead letter: %s", position, reason)
        self._tell("entries_rejected", reasons)

    # -- agreeing with the sink on a position

    def _position(self) -> int | None:
        with self._stop.interruptible():
            return self._sink.position(self._outbox.id)

    def _align(self) -> None:
        """Ask the sink what it holds, unless that is known."""
        if self._aligned:
            return
        held = self._position()
        self._tracks = held is not None
        if held is None:
            self._aligned = True
        else:
            self._realign(held)

    def _realign(self, held: int) -> None:
        """Make the outbox agree with the position that the sink holds."""
        self._acknowledge()  # so that what was counted already is not counted again
        stats = self._outbox.stats()
        if held > stats.last_position:
            log.warning(
                "the sink holds position %d of this outbox, which has given no more than %d: the outbox was "
                "restored from a copy; new entries are stored beyond the sink's position",
                held,
                stats.last_position,
            )
        if held != stats.acknowledged:
            self._outbox.acknowledge(held)
            change = stats.pending - self._outbox.stats().pending
            if held > stats.acknowledged:
                # Only the news of it was lost: a reply, or an acknowledge before a crash.
                self._delivered += change
                log.info("the sink already holds entries up to position %d", held)
            else:
                log.warning(
                    "the sink holds position %d, but had held %d: it lost writes or is another one; "
                    "sending %d entries again, all that are still in the outbox",
                    held,
                    stats.acknowledged,
                    -change,
                )
        self._furthest = max(self._furthest, stats.acknowledged, held)
        self._cursor = self._acknowledged = held
        self._aligned = True

    def _acknowledge(self) -> None:
        if self._aligned and self._cursor != self._acknowledged:
            self._outbox.acknowledge(self._cursor)
            self._acknowledged = self._cursor

    # -- the rest

    def _pause(self, seconds: float) -> None:
        if not self._patient:
            raise SinkUnavailable("no time to wait for the sink now")
        self._stop.sleep(seconds)

    def _reset(self) -> None:
        self._aligned, self._tracks, self._patient, self._trouble = False, True, True, None
        stats = self._outbox.stats()
        self._cursor = self._acknowledged = self._furthest = stats.acknowledged
        self._delivered = self._redelivered = 0
        self._missing = ()

    def _report(self, run: Run, *, complete: bool, seconds: float) -> RunReport:
        self._acknowledge()  # a stop came before the next one was due
        stats = self._outbox.stats()
        rejected = next((known.rejected for known in stats.runs if known.id == run.id), run.rejected)
        return RunReport(
            run_id=run.id,
            job=run.job,
            resumed=run.resumed,
            complete=complete,
            expected=run.expected,
            extracted=run.extracted,
            duplicates=run.duplicates,
            delivered=self._delivered,
            redelivered=self._redelivered,
            rejected=rejected,
            pending=stats.pending,
            missing=sorted(self._missing),
            seconds=round(seconds, 3),
        )

    def _tell(self, event: str, *args: Any) -> None:
        for observer in self._observers:
            getattr(observer, event)(*args)


def _within(entries: Sequence[Entry], size: int) -> Sequence[Entry]:
    """Return as many of the first entries as fit into ``size`` bytes of payload, and at least one."""
    total = 0
    for count, entry in enumerate(entries):
        total += len(entry.payload)
        if total > size and count:
            return entries[:count]
    return entries


def _lacking(run: Run, missing: Sequence[int]) -> RunIncomplete | None:
    """Say what a run lacks whose pages all were tried."""
    if missing:
        shown = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
        return RunIncomplete(
            f"{len(missing)} page{'s' if len(missing) > 1 else ''} of {run.job} never came ({shown}); "
            "the next call fetches just that"
        )
    if run.expected is not None and run.accounted < run.expected:
        return RunIncomplete(
            f"{run.job} promised {run.expected} distinct tasks, {run.accounted} came; the next call tries again"
        )
    return None
