"""A circuit breaker whose state outlives the process: a cron job is gone long before it may close again."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec
import pybreaker

from owm_outbox.errors import ApiUnavailable
from owm_outbox.job import Notes

__all__ = ["Breaker", "NotesStorage"]


class _State(msgspec.Struct, omit_defaults=True):
    state: str = pybreaker.STATE_CLOSED
    failures: list[float] = []  # when, in seconds since the epoch
    successes: int = 0
    opened_at: float | None = None
    reason: str = ""


class NotesStorage(pybreaker.CircuitBreakerStorage):
    """pybreaker's state as a note in the outbox.

    :param forget: seconds after which failures count no more: those of last night say nothing about now.
    :param now: seconds since the epoch.
    """

    def __init__(self, notes: Notes, name: str, *, forget: float, now: Callable[[], float] = time.time) -> None:
        super().__init__(name)
        self._notes = notes
        self._forget = forget
        self._now = now
        saved = notes.get(name)
        try:
            self._saved = msgspec.json.decode(saved, type=_State) if saved else _State()
        except msgspec.MsgspecError:  # of another version: the count begins anew
            self._saved = _State()

    def _save(self) -> None:
        self._notes.set(self.name, msgspec.json.encode(self._saved))

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half-open``."""
        return self._saved.state

    @state.setter
    def state(self, state: str) -> None:
        if state != self._saved.state:
            self._saved.state = state
            self._save()

    @property
    def reason(self) -> str:
        """What the last failure said; saved with its count."""
        return self._saved.reason

    @reason.setter
    def reason(self, reason: str) -> None:
        self._saved.reason = reason

    @property
    def counter(self) -> int:
        """Failures in a row that are not too old to count."""
        return len(self._recent())

    def _recent(self) -> list[float]:
        oldest = self._now() - self._forget
        return [at for at in self._saved.failures if at >= oldest]

    def increment_counter(self) -> None:
        """Count one more failure."""
        self._saved.failures = [*self._recent(), self._now()]
        self._save()

    def reset_counter(self) -> None:
        """Forget the failures; writes only if there are any, since each success calls this."""
        if self._saved.failures:
            self._saved.failures = []
            self._save()

    @property
    def success_counter(self) -> int:
        """Successes in a row while half open."""
        return self._saved.successes

    def increment_success_counter(self) -> None:
        """Count one more success."""
        self._saved.successes += 1

    def reset_success_counter(self) -> None:
        """Forget the successes."""
        self._saved.successes = 0

    @property
    def opened_at(self) -> datetime | None:
        """When the breaker opened last."""
        at = self._saved.opened_at
        return None if at is None else datetime.fromtimestamp(at, UTC)

    @opened_at.setter
    def opened_at(self, moment: datetime) -> None:
        self._saved.opened_at = moment.timestamp()


class Breaker:
    """Keeps requests back from an API that has failed too often in a row.

    :param fail_max: failed requests in a row that open it.
    :param open_for: seconds until one request is let through as a trial; failures older than that count no more.
    """

    def __init__(self, notes: Notes, name: str, *, fail_max: int, open_for: float) -> None:
        self._name = name
        self._fail_max = fail_max
        self._open_for = open_for
        self._lock = threading.Lock()
        self._closed = False
        self._storage = NotesStorage(notes, f"breaker:{name}", forget=open_for)
        self._breaker = pybreaker.CircuitBreaker(
            fail_max=fail_max,
            reset_timeout=open_for,
            state_storage=self._storage,
            throw_new_error_on_trip=False,
        )

    def check(self) -> None:
        """Raise unless a request may be sent.

        :raises ApiUnavailable: the breaker is open; the message says until when.
        """
        is_open = self._storage.state == pybreaker.STATE_OPEN  # first: it is set last
        opened_at = self._storage.opened_at
        if not is_open or opened_at is None:
            return
        reason = f" ({self._storage.reason})" if self._storage.reason else ""
        closes = opened_at + timedelta(seconds=self._open_for)
        if datetime.now(UTC) < closes:
            raise ApiUnavailable(
                f"{self._name} failed {self._fail_max} requests in a row{reason}: the circuit breaker "
                f"is open, and nothing is sent until {closes:%Y-%m-%d %H:%M:%S} UTC; call again then"
            )

    def count(self, *, failed: bool, reason: str = "") -> None:
        """Count the outcome of one request, which was made outside of pybreaker's lock. Safe from any thread.

        :param reason: of a failure, for the message of an open breaker.
        """

        def outcome() -> None:
            if failed:
                self._storage.reason = reason
                raise _RequestFailed

        with self._lock, contextlib.suppress(_RequestFailed, pybreaker.CircuitBreakerError):
            if not self._closed:
                self._breaker.call(outcome)

    def close(self) -> None:
        """Count no more: the outbox may soon be somebody else's, and what is still under way is of no use to it."""
        with self._lock:
            self._closed = True


class _RequestFailed(Exception):
    """What pybreaker is shown."""
