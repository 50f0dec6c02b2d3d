"""Runs a relay as the settings say, and turns what it raises into how the command ends."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import msgspec

from owm_outbox.cli.log_records import RunInLogs
from owm_outbox.cli.logs import are_json
from owm_outbox.cli.outcome import Outcome, count
from owm_outbox.cli.settings import Settings
from owm_outbox.cli.streams import write_report
from owm_outbox.errors import ExitCode
from owm_outbox.job import Job
from owm_outbox.lane_relay import LaneRelay
from owm_outbox.lanes import LanedOutbox
from owm_outbox.observer import Observer
from owm_outbox.outbox import Outbox
from owm_outbox.relay import OutboxRelay
from owm_outbox.report import RunIncomplete
from owm_outbox.sink import Sink
from owm_outbox.stop import Stop

__all__ = ["LANE", "make_lane_relay", "make_relay", "run_job"]

LANE = "{lane}"
"""Stands for the number of a lane in the URL of a sink."""

log = logging.getLogger("owm_outbox")


def make_relay(
    stack: ExitStack, outbox: Outbox, sink: Sink, settings: Settings, stop: Stop, observers: Iterable[Observer] = ()
) -> OutboxRelay:
    """Return a relay that ends when ``stop`` is set, and that shows its progress as long as ``stack`` is open."""
    progress: Observer
    if sys.stderr is not None and sys.stderr.isatty() and not are_json():  # None: it was closed from the start
        from owm_outbox.cli.progress import ProgressBar

        progress = stack.enter_context(ProgressBar())
    else:
        from owm_outbox.cli.progress import ProgressLog

        progress = ProgressLog()
    return OutboxRelay(
        outbox,
        sink,
        batch_size=settings.batch_size,
        wait_for_room=settings.wait_for_room,
        stop=stop,
        observers=[RunInLogs(), progress, *observers],
    )


def make_lane_relay(
    outbox: LanedOutbox,
    settings: Settings,
    stop: Stop,
    observers: Callable[[int], Iterable[Observer]] = lambda lane: (),
    alive: Callable[[], object] = lambda: None,
) -> LaneRelay:
    """Return a relay for an outbox with lanes; in the sink's URL, ``{lane}`` is the number of one."""
    from owm_outbox.cli.progress import ProgressLog
    from owm_outbox.plugins import open_sink

    return LaneRelay(
        outbox,
        lambda lane: open_sink(settings.sink.replace(LANE, str(lane))),
        batch_size=settings.batch_size,
        wait_for_room=settings.wait_for_room,
        stop=stop,
        observers=lambda lane: [ProgressLog(), *observers(lane)],
        alive=alive,
    )


def run_job(job: Job[Any], settings: Settings, stop: Stop, observers: Iterable[Observer] = ()) -> Outcome:
    """Run a job as the settings say, and write its report to stdout if they ask for it.

    :raises OwmOutboxError: no run was started.
    """
    from owm_outbox.plugins import open_outbox, open_sink

    stop.check()
    with ExitStack() as stack:
        sink = stack.enter_context(open_sink(settings.sink))  # first: it may be misspelt, and creates nothing
        outbox = stack.enter_context(open_outbox(settings.outbox))
        relay = make_relay(stack, outbox, sink, settings, stop, observers)
        try:
            report = relay.run(job, resume_within=settings.resume_within)
        except RunIncomplete as error:
            if error.exit_code == ExitCode.BUG:
                log.debug("the traceback of what failed", exc_info=error)
            report = error.report
            waiting = f"{count(report.extracted, 'task')} extracted, {report.pending} waiting in the outbox"
            outcome = Outcome(error.exit_code, f"{error} [{waiting}]", report)
        else:
            outcome = Outcome(ExitCode.COMPLETE, "", report)
            if report.rejected:
                letters = "1 task became a dead letter"
                if report.rejected > 1:
                    letters = f"{report.rejected} tasks became dead letters"
                outcome = Outcome(ExitCode.DEAD_LETTERS, f"complete, but {letters}: see owm-outbox dead list", report)
    if settings.as_json:
        write_report(msgspec.json.encode(report), instead="owm-outbox status --json has it")
    return outcome
