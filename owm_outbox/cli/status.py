"""``owm-outbox status``: what an outbox holds, for people, for programs and for a monitoring system."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from owm_outbox.cli.job_scope import OutboxCommand
from owm_outbox.cli.outcome import Outcome
from owm_outbox.cli.streams import write_data
from owm_outbox.cli.tables import table
from owm_outbox.cli.write_page import write_page
from owm_outbox.errors import OwmOutboxError, printable
from owm_outbox.operations.figures import RunFigures, age, duration, seconds_since
from owm_outbox.operations.view import lane_stats, view_of
from owm_outbox.outbox import OutboxStats
from owm_outbox.url import URL

__all__ = ["status"]

_CRITICAL, _UNKNOWN = 2, 3  # of the guidelines for Nagios plugins; OK is 0


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd])")


def _seconds(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    """Turn a number and its unit, such as ``10m``, into seconds."""
    if text is None:
        return None
    found = _DURATION.fullmatch(text)
    if found is None:
        raise click.BadParameter(
            f"{text!r} is not a duration: write a number and s, m, h or d, such as 10m.", ctx, param
        )
    return float(found[1]) * _UNITS[found[2]]


def _or_the_job_s_own(ctx: click.Context, _: click.Parameter, url: str | None) -> str | None:
    return url or getattr(ctx.params.get("job"), "default_sink", None)


class _StatusCommand(OutboxCommand):
    """A command on an outbox that knows its sink, to name it."""

    def more_params(self) -> list[click.Option]:
        """Add the sink, which a job need not have."""
        return [
            click.Option(
                ["--sink"],
                show_default="the job's own",
                show_envvar=True,
                metavar="URL",
                callback=_or_the_job_s_own,
                help="Where tasks are delivered to, as the page shows it.",
            )
        ]


@click.command("status", cls=_StatusCommand)
@click.option("--json", "as_json", is_flag=True, allow_from_autoenv=False, help="One JSON object.")
@click.option(
    "--max-age",
    callback=_seconds,
    metavar="DURATION",
    allow_from_autoenv=False,
    help="For monitoring: one line, and exit code 2 if a task is pending for longer, such as 10m (s, m, h, d).",
)
@click.option(
    "--max-pending",
    type=click.IntRange(0),
    metavar="N",
    allow_from_autoenv=False,
    help="For monitoring: one line, and exit code 2 if more tasks are pending.",
)
@click.option(
    "--html",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    allow_from_autoenv=False,
    help="Write a page for a browser to this file, which is replaced in one step; - for stdout.",
)
def status(
    *,
    as_json: bool,
    max_age: float | None,
    max_pending: int | None,
    html: Path | None,
    outbox: str,
    sink: str | None,
    **_: Any,
) -> Outcome | None:
    """Show what an outbox holds: pending tasks, the oldest one's age, dead letters, the last runs.

    It only reads, also an outbox of another user or on a read-only disk, and leaves no trace.

    With --max-age or --max-pending it ends with 0 (OK), 2 (CRITICAL) or 3 (UNKNOWN: it cannot be looked at).
    """
    from owm_outbox.plugins import look_at_outbox

    watch = max_age is not None or max_pending is not None
    if as_json + watch + (html is not None) > 1:
        raise click.UsageError(
            "--json, --html, and --max-age with --max-pending exclude each other.", click.get_current_context()
        )
    if watch:
        return _watch(outbox, max_age, max_pending)
    now = datetime.now(UTC)
    with look_at_outbox(outbox) as opened:
        if html is not None:
            from owm_outbox.operations.page import page

            write_page(html, page(view_of(opened, url=outbox, sink_url=sink, now=now)))
            return None
        stats, lanes = opened.stats(), lane_stats(opened)
    write_data(_as_json(stats, lanes, now) if as_json else _as_text(outbox, stats, lanes, now))
    return None


# -- for people


def _as_text(url: str, stats: OutboxStats, lanes: Sequence[OutboxStats], now: datetime) -> str:
    oldest = "" if stats.oldest is None else f", the oldest for {_oldest(stats, now)}"
    lines = [f"outbox   {URL(url)}", f"pending  {stats.pending}{oldest}", f"dead     {stats.dead}"]
    if lanes:
        rows = [
            (str(number), str(lane.pending), _oldest(lane, now), str(lane.dead)) for number, lane in enumerate(lanes)
        ]
        lines += ["lanes", *table(("lane", "pending", "oldest", "dead"), rows, indent="  ")]
    if stats.runs:
        lines += ["runs", *table(("started", "took", "job", "tasks", "outcome", "run"), _runs(stats, now), indent="  ")]
    elif not lanes:
        lines += ["runs     none yet"]
    return "\n".join(map(printable, lines))


def _oldest(stats: OutboxStats, now: datetime) -> str:
    return "-" if stats.oldest is None else age(seconds_since(stats.oldest, now))


def _runs(stats: OutboxStats, now: datetime) -> list[tuple[str, ...]]:
    return [
        (
            f"{age(seconds_since(run.started_at, now))} ago",
            duration(run.seconds),
            run.job,
            str(run.extracted),
            run.outcome,
            run.id,
        )
        for run in map(RunFigures.of, stats.runs)
    ]


# -- for programs


def _as_json(stats: OutboxStats, lanes: Sequence[OutboxStats], now: datetime) -> bytes:
    found: dict[str, Any] = {
        "pending": stats.pending,
        "oldest_seconds": _oldest_seconds(stats, now),
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
    if lanes:
        found["lanes"] = [
            {
                "lane": number,
                "pending": lane.pending,
                "oldest_seconds": _oldest_seconds(lane, now),
                "dead": lane.dead,
            }
            for number, lane in enumerate(lanes)
        ]
    return json.dumps(found).encode()


def _oldest_seconds(stats: OutboxStats, now: datetime) -> float | None:
    return None if stats.oldest is None else round((now - stats.oldest).total_seconds(), 1)


# -- for a monitoring system


def _watch(url: str, max_age: float | None, max_pending: int | None) -> Outcome:
    """Write the one line of a Nagios plugin; end with its code."""
    from owm_outbox.plugins import look_at_outbox

    try:
        with look_at_outbox(url) as opened:
            stats = opened.stats()
    except OwmOutboxError as error:
        write_data(f"UNKNOWN: {_plain(str(error))}")
        return Outcome(_UNKNOWN)
    seconds = 0.0 if stats.oldest is None else seconds_since(stats.oldest, datetime.now(UTC))
    problems = []
    if max_pending is not None and stats.pending > max_pending:
        problems.append(f"{stats.pending} pending, more than {max_pending}")
    if max_age is not None and seconds > max_age:
        problems.append(f"the oldest task is pending for {age(seconds)}, longer than {age(max_age)}")
    fine = f"{stats.pending} pending" + ("" if stats.oldest is None else f", the oldest for {age(seconds)}")
    age_limit = "" if max_age is None else f"{max_age:.3f}".rstrip("0").rstrip(".")
    figures = (
        f"pending={stats.pending};;{'' if max_pending is None else max_pending} "
        f"oldest={int(seconds)}s;;{age_limit} dead={stats.dead}"
    )
    write_data(f"{'CRITICAL' if problems else 'OK'}: {'; '.join(problems) or fine} | {figures}")
    return Outcome(_CRITICAL if problems else 0)


def _plain(line: str) -> str:
    return printable(line).replace("|", "/")  # what follows a | are figures
