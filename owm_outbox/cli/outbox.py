"""``owm-outbox status``, ``drain`` and ``schema``: what an outbox holds, sending it, and making its tables."""

from __future__ import annotations

import json
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import click

from owm_outbox.cli.job_scope import DeliveringCommand, OutboxCommand
from owm_outbox.cli.outcome import count
from owm_outbox.cli.relaying import LANE, make_lane_relay, make_relay
from owm_outbox.cli.settings import Settings
from owm_outbox.cli.streams import write_data, write_report
from owm_outbox.errors import ConfigurationError, printable
from owm_outbox.lanes import LanedOutbox
from owm_outbox.outbox import OutboxStats
from owm_outbox.stop import Stop
from owm_outbox.url import URL

__all__ = ["drain", "schema", "status"]


@click.command("status", cls=OutboxCommand)
@click.option("--json", "as_json", is_flag=True, allow_from_autoenv=False, help="One JSON object.")
def status(*, as_json: bool, outbox: str, **_: Any) -> None:
    """Show what an outbox holds: pending tasks, the oldest one's age, dead letters, the last runs."""
    from owm_outbox.plugins import open_outbox

    with open_outbox(outbox, create=False) as opened:
        stats = opened.stats()
    write_data(_status_json(stats) if as_json else _status_text(outbox, stats))


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


def _age(since: datetime | None) -> float | None:
    return None if since is None else round((datetime.now(UTC) - since).total_seconds(), 1)


def _status_json(stats: OutboxStats) -> bytes:
    return json.dumps(
        {
            "pending": stats.pending,
            "oldest_seconds": _age(stats.oldest),
            "dead": stats.dead,
            "acknowledged": stats.acknowledged.position,
            "last_position": stats.last_position,
            "runs": [
                {
                    "run_id": run.id,
                    "job": run.job,
                    "state": run.state,
                    "started_at": run.started_at.isoformat(timespec="seconds"),
                    "finished_at": None if run.finished_at is None else run.finished_at.isoformat(timespec="seconds"),
                    "extracted": run.extracted,
                    "rejected": run.rejected,
                    "report": None if run.report is None else json.loads(run.report),
                }
                for run in stats.runs
            ],
        }
    ).encode()


def _status_text(url: str, stats: OutboxStats) -> str:
    age = _age(stats.oldest)
    lines = [
        f"outbox   {URL(url)}",
        f"pending  {stats.pending}" + ("" if age is None else f", the oldest for {age:.0f} s"),
        f"dead     {stats.dead}",
        "runs" if stats.runs else "runs     none yet",
    ]
    lines += [
        f"  {run.started_at:%Y-%m-%d %H:%M:%S} UTC  {run.job}  {run.id}  {run.state:10}  "
        f"{count(run.extracted, 'task')}, {run.rejected} rejected"
        for run in stats.runs
    ]
    return "\n".join(map(printable, lines))
