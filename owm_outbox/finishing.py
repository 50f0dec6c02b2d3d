"""Whether a run was closed, where the call that was to close it failed."""

from __future__ import annotations

import logging
import time

from owm_outbox.errors import OutboxInvalid, TryAgainLater
from owm_outbox.outbox import Outbox
from owm_outbox.stop import Stop

__all__ = ["was_closed"]

log = logging.getLogger("owm_outbox.relay")

_WITHIN = 30.0  # seconds
_PAUSE = 1.0  # seconds between two attempts
_KNOWN = 1000  # runs; more than any outbox keeps


def was_closed(outbox: Outbox, run_id: str, error: TryAgainLater, stop: Stop) -> bool:
    """Ask an outbox whether a run is complete, after its `finish_run` raised.

    It may have been: the reply to its commit was lost, or what followed the commit failed. A run that is open can
    be resumed; to call one incomplete that is closed would have the next call make all its tasks once more.

    :param error: what it raised.
    :raises OutboxInvalid: the outbox does not tell; a person has to find out, before the job runs again.
    """
    gives_up = time.monotonic() + _WITHIN
    reason = "it does not know that run"
    while True:
        try:
            state = next((known.state for known in outbox.runs(_KNOWN) if known.id == run_id), None)
            break
        except TryAgainLater as problem:
            state, reason = None, str(problem)
            if stop.is_set() or time.monotonic() > gives_up:
                break
            stop.wait(_PAUSE)
    if state is None:
        raise OutboxInvalid(
            f"all was delivered, but whether the run {run_id} was closed is not known ({reason}): look with owm-outbox "
            "runs; if it is complete, to run the job again would make all its tasks once more"
        ) from error
    if state == "complete":
        log.info("the run was closed all the same")
    return state == "complete"
