"""The contract of a sink. What these docstrings promise, `owm_outbox.testing.SinkContract` checks."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Self

from owm_outbox.errors import ConfigurationError
from owm_outbox.task import Batch
from owm_outbox.url import URL

__all__ = ["Place", "Sink"]


@dataclass(frozen=True)
class Place:
    """Where a sink delivers to, as its contract test needs it.

    :param open: makes a sink that delivers there; called again, another one to the same place.
    :param held: returns the payloads that are there now, in the order in which a worker would get them.
    :param fill: for a bounded sink: makes it full, whatever it holds.
    :param poison: for a sink that rejects: a payload it will never take.
    """

    open: Callable[[], Sink]
    held: Callable[[], Sequence[bytes]]
    fill: Callable[[], None] | None = None
    poison: bytes | None = None


class Sink(ABC):
    """Takes batches to where the workers read. It says what happened; the relay alone decides what follows."""

    pause: Callable[[float], None] = staticmethod(time.sleep)
    """How a sink waits between its own attempts: call ``self.pause(seconds)`` and let what it raises pass.

    The relay replaces it, so that a stop ends the wait, and so that an extraction does not wait at all for a sink
    that is down. A sink without retries of its own has no use for it.
    """

    @classmethod
    def from_url(cls, url: URL) -> Self:
        """Make the sink that ``url`` names. This default takes no options, and calls the class without arguments.

        It need not connect: a sink that is down is not a configuration error.

        :raises ConfigurationError: an option is unknown or its value makes no sense.
        """
        url.options()
        return cls()

    @classmethod
    def scratch(cls, url: URL) -> AbstractContextManager[Place]:
        """Give a new, empty place beside the one that ``url`` names, for ``owm-outbox check``; on exit it is gone.

        :raises ConfigurationError: this default: the sink cannot be checked without touching the real place.
        """
        raise ConfigurationError(
            f"{cls.__name__} has no scratch(), so a live {url.scheme}: cannot be checked safely; "
            "run its contract test, see owm_outbox.testing"
        )

    @abstractmethod
    def position(self, outbox_id: str) -> int | None:
        """Return the position the sink durably holds for this outbox: 0 for nothing yet, ``None`` if it cannot tell.

        A sink that can tell stores the position in one step with each batch; with it, delivery is effectively once.
        For one that cannot, it is at least once.

        :raises SinkUnavailable: it cannot be asked now.
        """

    @abstractmethod
    def send(self, batch: Batch) -> None:
        """Take the whole batch or nothing of it, and with it ``batch.position``; return once it is held.

        :raises SinkUnavailable: try later; no entry is to blame. Only here may the batch have been taken all the same.
        :raises SinkFull: no room now.
        :raises EntriesRejected: these entries will never be taken; nothing was.
        :raises PositionConflict: the sink tracks positions and holds another than ``batch.after``; nothing was taken.
        :raises ConfigurationError: what the URL names can never work, such as a key of another type or a password.
        """

    def close(self) -> None:  # noqa: B027 - not abstract: most have nothing to let go of
        """Let go of files and connections. The object is of no use afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
