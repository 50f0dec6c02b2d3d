"""``owm-outbox relay``: delivers what anybody appends to an outbox, as a process of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from owm_outbox.again import Again
from owm_outbox.cli.job_scope import DeliveringCommand
from owm_outbox.cli.monitors import traces_param
from owm_outbox.cli.options import FiniteRange
from owm_outbox.cli.outcome import EXIT_CODES
from owm_outbox.cli.relaying import LANE, make_lane_relay, make_relay
from owm_outbox.cli.settings import Settings
from owm_outbox.errors import OutboxInvalid, TryAgainLater
from owm_outbox.lanes import LanedOutbox
from owm_outbox.observer import Observer
from owm_outbox.outbox import Outbox
from owm_outbox.stop import Stop
from owm_outbox.url import URL

if TYPE_CHECKING:
    from owm_outbox.operations.health import Health

__all__ = ["relay"]

log = logging.getLogger("owm_outbox")

_EXAMPLES = """\b
Examples:
  owm-outbox relay --outbox 'sqlite:////var/lib/shop/orders.db?shared=true' \\
      --sink 'redis://redis.internal:6379/0?stream=orders'
  OWM_OUTBOX=… OWM_SINK=… owm-outbox relay --log-format json
"""


class _Relay(DeliveringCommand):
    """A command that works for months: that it began, waits or continues is worth a line."""

    default_level = "info"

    def more_params(self) -> list[click.Option]:
        """Add what asks for spans."""
        return [*super().more_params(), traces_param()]


@click.command("relay", cls=_Relay, epilog=f"{_EXAMPLES}\n{EXIT_CODES}")
@click.option(
    "--poll",
    type=FiniteRange(0.001, 60),
    default=0.2,
    show_default=True,
    allow_from_autoenv=False,
    help="Seconds between two looks at an outbox that had nothing new, or that another relay holds.",
)
@click.option(
    "--http",
    metavar="HOST:PORT",
    show_envvar=True,
    help="Serve a page, /metrics, /healthz and /readyz there, such as 127.0.0.1:9108 (extra: metrics).",
)
@click.option("--http-token", metavar="TOKEN", show_envvar=True, help="Ask for this bearer token, or password, there.")
@click.pass_obj
def relay(
    stop: Stop,
    /,
    *,
    poll: float,
    http: str | None,
    http_token: str | None,
    traces: bool,
    outbox: str,
    sink: str,
    batch_size: int,
    wait_for_room: float,
    **_: Any,
) -> None:
    """Deliver what anybody appends, until SIGTERM or SIGINT.

    While another relay holds the outbox, this one stands by. Of an outbox with lanes, it holds its share; in the URL of
    the sink, {lane} is the number of one, if each is to have a stream of its own. It waits for an outbox that is down,
    and for a sink that is down or full, and ends only for what waiting does not fix. An outbox that does not exist is
    made, with a warning.
    """
    from owm_outbox.operations.extra import telemetry
    from owm_outbox.operations.service import Operations
    from owm_outbox.plugins import open_sink

    settings = Settings(outbox=outbox, sink=sink, batch_size=batch_size, wait_for_room=wait_for_room)
    stop.check()
    with ExitStack() as stack:
        # The sink first: it may be misspelt, and creates nothing.
        to = stack.enter_context(open_sink(settings.sink.replace(LANE, "0")))
        operations = Operations(outbox, sink, http=http, token=http_token, systemd=_systemd())
        shown = stack.enter_context(operations)
        opened = stack.enter_context(_open_once_reachable(settings.outbox, stop, shown.health))
        shown.opened()
        log.info("relaying from %s to %s", URL(settings.outbox), URL(settings.sink))

        def observers(name: str, url: str) -> Sequence[Observer]:
            return [*shown.observers(name), *([telemetry(url)] if traces else [])]

        if isinstance(opened, LanedOutbox) and opened.lanes > 1:
            lanes = make_lane_relay(
                opened,
                settings,
                stop,
                lambda lane: observers(f"lane {lane}", settings.sink.replace(LANE, str(lane))),
                shown.health.pulse("lanes").alive,
            )
            lanes.run_forever(stop, poll=poll)
        else:
            one = make_relay(stack, opened, to, settings, stop, observers("relay", settings.sink))
            one.run_forever(stop, poll=poll, stand_by=True)
    stop.check()


def _systemd() -> tuple[str, str | None] | None:
    """Return what systemd says to a service of its type ``notify``."""
    socket = os.environ.get("NOTIFY_SOCKET")
    return (socket, os.environ.get("WATCHDOG_USEC")) if socket else None


def _open_once_reachable(url: str, stop: Stop, health: Health) -> Outbox:
    """Open an outbox, or make it, once its storage can be reached.

    A machine that starts may have its relay before its database, and a failover takes a while.
    """
    again = Again(stop, log)
    while True:
        try:
            return _open_or_make(url)
        except TryAgainLater as error:
            health.outbox_error = error
            again.wait(error)
            stop.check()


def _open_or_make(url: str) -> Outbox:
    """Open an outbox, or make it: the relay may start before the application that appends.

    To a misspelt path nobody appends, and a relay that waits there would say nothing, so it says that it made one.
    """
    from owm_outbox.plugins import open_outbox

    try:
        return open_outbox(url, create=False)
    except OutboxInvalid:
        made = "there was no outbox %s, so it was made: check --outbox if applications append to another"
        try:
            opened = open_outbox(url)  # raises the same again, unless it was missing
        except TryAgainLater:  # perhaps half-way: the next attempt may find it
            log.warning(made, URL(url))
            raise
        log.warning(made, URL(url))
        return opened
