"""The contract of a sink. What these docstrings promise, `owm_outbox.testing.SinkContract` checks."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Self, TypeVar

from owm_outbox.entry import Batch
from owm_outbox.errors import SinkUnavailable
from owm_outbox.url import URL

__all__ = ["Sink", "pause", "pausing_with", "retried"]

T = TypeVar("T")


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return True


_wait: ContextVar[Callable[[float], bool]] = ContextVar("owm_outbox_pause", default=_sleep)


def pause(seconds: float) -> bool:
    """Wait between two attempts within ``Sink.send`` or ``Sink.mark``; return whether to make another one.

    ``False`` means that there is no time for another attempt: the process was asked to stop, or an extraction does
    not wait for the sink. Raise what the last attempt raised. Outside of a relay's call this is a plain sleep.
    """
    return _wait.get()(seconds)


def retried(attempt: Callable[[], T], *, retries: int = 8, base: float = 1.0, cap: float = 10.0) -> T:
    """Call ``attempt`` again after `SinkUnavailable`, for a sink whose client does not; return what it returns.

    A send whose reply was lost may have been taken; repeated, it is refused with the batch's own mark, as it should be.

    :param retries: attempts after the first one.
    :param base: seconds before the first repetition; doubled with each, and shortened by up to a half at random.
    :param cap: seconds, at most.
    :raises SinkUnavailable: the last attempt's.
    """
    failures = 0
    while True:
        try:
            return attempt()
        except SinkUnavailable:
            delay = min(base * 2**failures, cap) * random.uniform(0.5, 1)  # noqa: S311 - no secret
            failures += 1
            if failures > retries or not pause(delay):
                raise


@contextmanager
def pausing_with(wait: Callable[[float], bool]) -> Iterator[None]:
    """Let ``pause`` call ``wait`` within the block, on this thread."""
    token = _wait.set(wait)
    try:
        yield
    finally:
        _wait.reset(token)


class Sink(ABC):
    """Takes batches to where the workers read. It says what happened; the relay alone decides what follows.

    A sink that retries by itself waits with `pause`. One without retries of its own needs nothing of the kind. Only one
    thread at a time uses it, but not always the one that made it: a service opens and closes it on another.
    """

    trimmed: int = 0
    """How many entries, which nobody is known to have read, the sends of this object dropped to make room."""

    @classmethod
    def from_url(cls, url: URL) -> Self:
        """Make the sink that ``url`` names. This default takes no options, and calls the class without arguments.

        It need not connect: a sink that is down is not a configuration error.

        :raises ConfigurationError: an option is unknown or its value makes no sense.
        """
        url.options()
        return cls()

    @abstractmethod
    def mark(self, outbox_id: str) -> str | None:
        """Return the mark that the sink durably holds for this outbox: ``""`` for none yet, ``None`` if it cannot tell.

        A mark is opaque text. A sink that can tell stores ``batch.mark`` in one step with each batch; with it,
        delivery is effectively once. For one that cannot, it is at least once. A mark whose entries are gone, although
        nobody took them out one by one (the target was deleted, evicted or made from scratch), is not held any more.

        :raises SinkUnavailable: it cannot be asked now.
        :raises ConfigurationError: what the URL names can never work, such as a key of another type or a password.
        """

    @abstractmethod
    def send(self, batch: Batch) -> None:
        """Take the whole batch or nothing of it, and with it ``batch.mark``; return once it is held.

        :raises SinkUnavailable: try later; no entry is to blame. Only here may the batch have been taken all the same.
        :raises SinkFull: no room now; nothing was taken.
        :raises EntriesRejected: these entries will never be taken; nothing was.
        :raises MarkConflict: the sink holds another mark than ``batch.after``; nothing was taken.
        :raises ConfigurationError: what the URL names can never work, such as a key of another type or a password.
        """

    def close(self) -> None:  # noqa: B027 - not abstract: most have nothing to release
        """Release files and connections. The object must not be used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
