"""Whether a run was closed, where the call that was to close it failed."""

from __future__ import annotations

from owm_outbox.errors import OutboxUnavailable, TryAgainLater
from owm_outbox.outbox import Outbox
from owm_outbox.stop import Stop

__all__ = ["was_closed"]

_DELAYS = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0)  # seconds before each attempt


def was_closed(outbox: Outbox, run_id: str, error: TryAgainLater, stop: Stop) -> bool:
    """Ask an outbox whether a run is complete, after its `finish_run` raised.

    It may have been: the reply to its commit was lost, or what followed the commit failed. A run that is open can
    be resumed; to call one incomplete that is closed would have the next call make all its tasks once more.

    :param error: what it raised.
    :raises OutboxUnavailable: the outbox cannot be asked, for half a minute.
    """
    for delay in _DELAYS:
        stop.wait(delay)
        try:
            return any(known.id == run_id and known.state == "complete" for known in outbox.stats().runs)
        except TryAgainLater:
            if stop.is_set():
                break
    raise OutboxUnavailable(
        f"all was delivered, but whether the run {run_id} could be closed is not known: see that owm-outbox runs calls "
        f"it open before the next call, which otherwise makes all its tasks once more ({error})"
    ) from error
