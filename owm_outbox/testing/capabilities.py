"""What a backend can do, and what of it a test needs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

__all__ = ["Capabilities"]

_UNTESTED = {
    "durable": "that anything outlives the object or its process",
    "holds_mark": "that a batch is never added twice",
    "bounded": "what happens when there is no room",
    "rejects": "what happens to an entry that will never be taken",
    "interruptible": "what a failure in the middle of a write leaves",
    "remote": "what happens when it cannot be reached",
    "notices_loss": "that entries which were lost are noticed",
    "settable_clock": "when a run is too old to be resumed",
    "transactions": "that nothing appears behind a reader where transactions end in another order than they began",
    "dead_letters": "that dead letters can be listed, retried and dropped",
}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do. What it cannot do is not tested, and the reason of the skip says so.

    The defaults are all that a contract can ask without help. The others need something from you: a field of the
    `Destination`, or a fixture.

    :param durable: what it holds survives the object, and the process, that wrote it.
    :param holds_mark: a sink stores the mark with each batch, so that delivery is effectively once.
    :param dead_letters: an outbox is a `DeadLetterStore`, too.
    :param bounded: a sink says `SinkFull` at some point; ``Destination.fill`` brings it there.
    :param rejects: a sink refuses some payloads for good; ``Destination.poison`` is one.
    :param interruptible: a write can be made to fail midway; the fixture ``interrupt`` does so.
    :param remote: it may be out of reach; ``Destination.unreachable`` opens a sink that is.
    :param notices_loss: a sink notices that its entries were lost; ``Destination.lose`` loses them.
    :param settable_clock: an outbox takes the time from the fixture ``turn_clock``.
    :param transactions: an application may append in transactions of its own; ``Storage.transaction`` is one.
    """

    durable: bool = True
    holds_mark: bool = True
    dead_letters: bool = True
    bounded: bool = False
    rejects: bool = False
    interruptible: bool = False
    remote: bool = False
    notices_loss: bool = False
    settable_clock: bool = False
    transactions: bool = False

    def need(self, what: str) -> None:
        """Skip the running test unless the backend can do ``what``, and say what therefore was not tested."""
        if not getattr(self, what):
            pytest.skip(f"Capabilities({what}=False): not tested {_UNTESTED[what]}")
