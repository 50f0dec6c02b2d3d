"""One call's way from outbox to sink: agree on a mark, send, acknowledge, reject."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

from owm_outbox.agreement import Agreement
from owm_outbox.entry import Batch, Mark
from owm_outbox.errors import (
    ConfigurationError,
    EntriesRejected,
    MarkConflict,
    OwmOutboxError,
    SinkFull,
    SinkUnavailable,
    one_line,
)
from owm_outbox.outbox import Outbox
from owm_outbox.rest import Rest
from owm_outbox.sink import Sink, pausing_with
from owm_outbox.stop import Stop

__all__ = ["Delivery"]

log = logging.getLogger("owm_outbox.delivery")

A = TypeVar("A")
T = TypeVar("T")

_ACKNOWLEDGE_EVERY = 16  # batches; more often is needless where the sink holds a mark
_MAX_CONFLICTS = 3  # in a row, without a batch that was taken: the sink contradicts itself


class Delivery:
    """Delivers what is in an outbox to a sink, for the length of one call of a relay, which holds the lock.

    :param tell: calls a method of the observers, by its name.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        outbox: Outbox,
        sink: Sink,
        *,
        batch_size: int,
        wait_for_room: float,
        stop: Stop,
        tell: Callable[..., None],
        clock: Callable[[], float],
    ) -> None:
        self._outbox = outbox
        self._sink = sink
        self._batch_size = batch_size
        self._wait_for_room = wait_for_room
        self._stop = stop
        self._tell = tell
        self._clock = clock

        stats = outbox.stats()
        self._agreement = Agreement(outbox, stats, type(sink).__name__)
        self._in_step = False  # whether the sink was asked what it holds
        self._marks = True  # whether the sink can tell what it holds
        self._conflicts = 0
        self._trimmed_before = self._trimmed_told = sink.trimmed
        self._rest = Rest(clock)
        self.run_id = next((run.id for run in stats.runs if run.state == "open"), "")

    @property
    def delivered(self) -> int:
        """Entries that the sink came to hold."""
        return self._agreement.delivered

    @property
    def redelivered(self) -> int:
        """Entries sent again because the sink had lost them."""
        return self._agreement.redelivered

    @property
    def forked(self) -> bool:
        """Whether the outbox took a new id, because the sink's mark was of another history."""
        return self._agreement.forked

    @property
    def trimmed(self) -> int:
        """Entries that the sink dropped to make room, and that nobody is known to have read."""
        return self._sink.trimmed - self._trimmed_before

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do: the sink is known to hold everything that is in the outbox."""
        return self._in_step and not self._outbox.read(self._agreement.cursor, 1)

    # -- what a relay calls

    def send_ready(self, *, full_batches_only: bool = False) -> None:
        """Deliver as long as the sink takes entries at once; if it does not, leave it alone for a while."""
        if not self._rest.is_over():
            return
        began = self._clock()
        try:
            self._resync(_no_time)
            self._send_batches(_no_time, full_batches_only=full_batches_only)
        except (SinkUnavailable, SinkFull) as error:
            if self._rest.begin(self._clock() - began):
                log.warning("continuing without the sink for now: %s", error)
        else:
            self._rest.end()

    def send_all(self) -> None:
        """Deliver everything, with all the patience that the sink and ``wait_for_room`` allow, until both sides agree.

        :raises SinkUnavailable: the sink is down, or loses what it takes.
        :raises SinkFull: there was no room for longer than ``wait_for_room``.
        """
        self._rest.end()
        gives_up = self._clock() + self._wait_for_room
        delay, said = 0.05, False
        try:
            while True:
                try:
                    self._resync(self._pause)
                    if self._send_batches(self._pause):
                        gives_up, delay = self._clock() + self._wait_for_room, 0.05
                    # The sink may have lost something since its last answer; only now is its word final, and only then
                    # may the outbox clear anything.
                    if not self._marks or self._ask(self._pause) == self._agreement.held:
                        return
                    self._in_step = False
                except SinkFull as error:
                    left = gives_up - self._clock()
                    if left <= 0:
                        raise
                    if not said:  # once: a reader that is only slow makes room many times a second
                        log.info("waiting up to %.0f s for room: %s", left, error)
                    said = True
                    self._tell("alive")
                    self._stop.wait(min(delay, left))
                    self._stop.check()
                    delay = min(2 * delay, 2.0)
        finally:
            self.acknowledge()

    def acknowledge(self) -> None:
        """Note in the outbox what the sink is known to hold."""
        if self._in_step:
            self._agreement.acknowledge()

    # -- sending

    def _send_batches(self, wait: Callable[[float], bool], *, full_batches_only: bool = False) -> int:
        """Send batch after batch, and return how many the sink took."""
        taken = unacknowledged = 0
        limit = self._batch_size
        known = self._agreement
        while entries := self._outbox.read(known.cursor, limit):
            if full_batches_only and len(entries) < limit:
                break
            mark = Mark.of(entries[-1], known.take_lease())
            batch = Batch(known.outbox_id, known.held, entries, mark, self.run_id)
            try:
                self._send(wait, batch)
            except EntriesRejected as error:
                self._reject(error.reasons, batch)
                continue
            except MarkConflict as error:
                held = self._valid(error.held)
                if held != batch.mark:
                    self._conflict(held, batch)
                    continue
                # The batch was taken: only the reply was lost.
            except SinkFull as error:
                self.acknowledge()
                if not 0 < error.room < len(entries):
                    raise
                limit = error.room  # rather some now than all later
                continue
            limit = self._batch_size
            self._conflicts = 0
            known_again = known.redelivered
            known.taken(batch)
            taken += 1
            unacknowledged += 1
            if not self._marks or unacknowledged >= _ACKNOWLEDGE_EVERY:
                self.acknowledge()
                unacknowledged = 0
            self._tell_taken(batch, known.redelivered - known_again)
            self._stop.check()
        return taken

    def _send(self, wait: Callable[[float], bool], batch: Batch) -> None:
        began, problem = self._clock(), None
        try:
            self._call(wait, self._sink.send, batch)
        except OwmOutboxError as error:
            problem = error
            raise
        finally:
            self._tell("batch_sent", batch, self._clock() - began, problem)

    def _tell_taken(self, batch: Batch, again: int) -> None:
        self._tell("batch_delivered", batch)
        if again:
            self._tell("entries_redelivered", again)
        if trimmed := self._sink.trimmed - self._trimmed_told:
            self._trimmed_told += trimmed
            self._tell("entries_trimmed", trimmed)

    def _reject(self, reasons: Mapping[int, str], batch: Batch) -> None:
        known = {entry.position for entry in batch.entries}
        if not known.intersection(reasons):
            raise OwmOutboxError(
                f"{type(self._sink).__name__} rejected positions {sorted(reasons)} that are not in its batch "
                f"({batch.entries[0].position} to {batch.entries[-1].position}): a mistake in the sink"
            )
        self._outbox.reject(reasons)
        for position, reason in reasons.items():
            fields = {"position": position, "reason": one_line(reason)}
            log.error("entry %d became a dead letter: %s", position, fields["reason"], extra=fields)
        self._tell("entries_rejected", reasons)

    # -- agreeing with the sink on a mark

    def _resync(self, wait: Callable[[float], bool]) -> None:
        """Ask the sink what it holds, unless that is known."""
        if self._in_step:
            return
        held = self._ask(wait)
        self._marks = held is not None
        if held is not None:
            self._agreement.agree(held)
        self._in_step = True

    def _ask(self, wait: Callable[[float], bool]) -> Mark | None:
        held = self._call(wait, self._sink.mark, self._agreement.outbox_id)
        return None if held is None else self._valid(held)

    def _valid(self, held: str) -> Mark:
        mark = Mark(held)
        try:
            _ = mark.position
        except ValueError as error:
            raise ConfigurationError(
                f"{type(self._sink).__name__} holds {held!r} for this outbox, which is not a mark: "
                "another program writes to the same place; name another one"
            ) from error
        return mark

    def _conflict(self, held: Mark, batch: Batch) -> None:
        self._conflicts += 1
        if held == batch.after or self._conflicts > _MAX_CONFLICTS:
            self._conflicts = 0
            self._in_step = False
            raise SinkUnavailable(
                f"{type(self._sink).__name__} contradicts itself: it refused a batch that follows the mark "
                f"{str(batch.after)!r}, and says that it holds {str(held)!r}"
            )
        self._agreement.agree(held)

    # -- calling the sink

    def _call(self, wait: Callable[[float], bool], method: Callable[[A], T], argument: A) -> T:
        """Call the sink. A stop that was asked for meanwhile counts more than whatever the sink raised."""
        self._stop.check()
        self._tell("alive")
        try:
            with pausing_with(wait):
                result = method(argument)
        except (SinkUnavailable, SinkFull) as error:
            self._tell("sink_answered", error)
            self._stop.check()
            raise
        self._tell("sink_answered", None)
        return result

    def _pause(self, seconds: float) -> bool:
        self._tell("alive")
        return not self._stop.wait(seconds)


def _no_time(seconds: float) -> bool:
    return False
