"""``owm-outbox drain`` and ``schema``: sending what an outbox holds, and making its tables."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

import click

from owm_outbox.cli.job_scope import DeliveringCommand
from owm_outbox.cli.relaying import LANE, make_lane_relay, make_relay
from owm_outbox.cli.settings import Settings
from owm_outbox.cli.streams import write_data, write_report
from owm_outbox.errors import ConfigurationError
from owm_outbox.lanes import LanedOutbox
from owm_outbox.stop import Stop

__all__ = ["drain", "schema"]


@click.command("drain", cls=DeliveringCommand)
@click.option("--json", "as_json", is_flag=True, allow_from_autoenv=False, help="Write what was delivered to stdout.")
@click.pass_obj
def drain(
    stop: Stop, /, *, as_json: bool, outbox: str, sink: str, batch_size: int, wait_for_room: float, **_: Any
) -> None:
    """Deliver what is in the outbox; extract nothing."""
    from owm_outbox.plugins import open_outbox, open_sink

    settings = Settings(outbox=outbox, sink=sink, batch_size=batch_size, wait_for_room=wait_for_room, as_json=as_json)
    stop.check()
    with ExitStack() as stack:
        to = stack.enter_context(open_sink(settings.sink.replace(LANE, "0")))
        opened = stack.enter_context(open_outbox(settings.outbox, create=False))
        if isinstance(opened, LanedOutbox) and opened.lanes > 1:
            delivered = make_lane_relay(opened, settings, stop).drain()
        else:
            delivered = make_relay(stack, opened, to, settings, stop).drain()
        pending = opened.stats().pending
    if settings.as_json:
        write_report(json.dumps({"delivered": delivered, "pending": pending}).encode())


@click.command("schema")
@click.argument("scheme")
@click.option("--sink", "of_sink", is_flag=True, help="Print those of a sink, not of an outbox.")
@click.option("--schema", "in_schema", default="public", show_default=True, help="The schema to make the tables in.")
@click.option("--table", help="What the names of the tables begin with.  [default: outbox, of a sink tasks]")
def schema(*, scheme: str, of_sink: bool, in_schema: str, table: str | None) -> None:
    """Print the SQL that makes the tables of an outbox, for tools that make tables themselves, or those of a sink.

    SCHEME is that of its URL, such as postgresql.
    """
    from owm_outbox.plugins import outbox_class, sink_class

    what = "sink" if of_sink else "outbox"
    make = getattr(sink_class(scheme) if of_sink else outbox_class(scheme), "schema_sql", None)
    if make is None:
        raise ConfigurationError(f"{scheme}: this kind of {what} has no tables, or makes them itself: nothing to print")
    options = {"schema": in_schema} if table is None else {"schema": in_schema, "table": table}
    write_data(make(**options).rstrip())
