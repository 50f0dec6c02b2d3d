"""A circuit breaker whose state outlives the process: a cron job has ended long before it may close again."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

import msgspec

from owm_outbox.errors import SourceUnavailable
from owm_outbox.run import StateStore
from owm_outbox.url import redacted

__all__ = ["Breaker", "state_name"]


class _State(msgspec.Struct, omit_defaults=True):
    state: Literal["closed", "open", "half-open"] = "closed"
    failures: list[float] = []  # when, in seconds since the epoch
    opened_at: float = 0.0
    reason: str = ""


def state_name(url: str, token: str | None) -> str:
    """Return the name of the stored state: one per address and what identifies the client there, which it hides.

    A new token is the way to fix a wrong one, so it starts with a closed breaker.
    """
    shown = redacted(url)
    if token is None and shown == url:
        return f"breaker:{shown}"
    return f"breaker:{shown}#{hashlib.sha256(f'{url} {token}'.encode()).hexdigest()[:8]}"


class Breaker:
    """Keeps requests back from an API that has failed too often in a row. Safe to use from several threads.

    pybreaker decides on each outcome; its state is read and written around that. A time in the future, by a clock
    that was wrong, is ignored.

    :param url: of the API; a password in it is not shown.
    :param fail_max: failed requests in a row that open it.
    :param open_for: seconds until one request is let through as a trial; failures older than that count no more.
    :param now: seconds since the epoch.
    """

    def __init__(
        self,
        store: StateStore,
        url: str,
        token: str | None = None,
        *,
        fail_max: int,
        open_for: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._name, self._url = store, state_name(url, token), redacted(url)
        self._fail_max, self._open_for, self._now = fail_max, open_for, now
        self._lock = threading.Lock()
        self._closed = False
        self._saved = _State()
        with contextlib.suppress(msgspec.MsgspecError):  # of another version: the count starts from zero
            self._saved = msgspec.json.decode(store.get(self._name) or b"{}", type=_State)

    def check(self) -> None:
        """Raise unless a request may be sent.

        :raises SourceUnavailable: the breaker is open; the message says until when.
        """
        saved = self._saved
        if self._is_open(saved):
            reason = f" ({saved.reason})" if saved.reason else ""
            closes = datetime.fromtimestamp(saved.opened_at + self._open_for, UTC)
            raise SourceUnavailable(
                f"{self._url} failed {self._fail_max} requests in a row{reason}: the circuit breaker is open, and "
                f"nothing is sent until {closes:%Y-%m-%d %H:%M:%S} UTC; run again then"
            )

    @property
    def is_open(self) -> bool:
        """Whether requests are kept back now."""
        return self._is_open(self._saved)

    def count(self, *, failed: bool, reason: str = "") -> None:
        """Count the outcome of one request, unless it was sent before the breaker opened.

        :param reason: of a failure, for the message of an open breaker.
        """
        with self._lock:
            saved = self._saved
            if self._closed or self._is_open(saved) or (not failed and saved == _State()):
                return
            now = self._now()
            import pybreaker  # with the first failure: it imports redis, a tenth of a second that a good run is spared

            recent = [at for at in saved.failures if now - self._open_for <= at <= now]
            memory = pybreaker.CircuitMemoryStorage("closed" if saved.state == "closed" else "half-open")
            for _ in recent:
                memory.increment_counter()
            breaker = pybreaker.CircuitBreaker(self._fail_max, state_storage=memory, throw_new_error_on_trip=False)
            with contextlib.suppress(_RequestFailed), breaker.calling():
                if failed:
                    raise _RequestFailed
            if memory.state == "open":
                self._saved = _State("open", [*recent, now], now, reason)
            else:
                self._saved = _State("closed", [*recent, now] if failed else [], reason=reason)
            self._store.set(self._name, msgspec.json.encode(self._saved))

    def close(self) -> None:
        """Count no more: the outbox may soon be another run's, and what is still under way means nothing to it."""
        with self._lock:
            self._closed = True

    def _is_open(self, saved: _State) -> bool:
        return saved.state == "open" and saved.opened_at <= self._now() < saved.opened_at + self._open_for


class _RequestFailed(Exception):
    """What pybreaker is shown."""
