"""``owm-outbox runs``: the runs that an outbox knows."""

from __future__ import annotations

import json
from typing import Any

import click

from owm_outbox.cli.job_scope import OutboxCommand
from owm_outbox.cli.streams import write_data
from owm_outbox.cli.tables import table
from owm_outbox.operations.figures import RunFigures, duration

__all__ = ["runs"]

_HEADER = (
    *("started (UTC)", "took", "job", "state", "expected", "extracted", "duplicates"),
    *("delivered", "rejected", "missing", "run"),
)


@click.command("runs", cls=OutboxCommand)
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    default=20,
    show_default=True,
    allow_from_autoenv=False,
    help="How many, at most.",
)
@click.option("--json", "as_json", is_flag=True, allow_from_autoenv=False, help="One JSON object per line.")
def runs(*, limit: int, as_json: bool, outbox: str, **_: Any) -> None:
    """Show the runs that an outbox knows, newest first: how long each took, and what became of it.

    delivered and missing are of the last call that worked on a run; missing are pages of the source that it could not
    fetch. An open run took the time until its last progress.
    """
    from owm_outbox.plugins import look_at_outbox

    with look_at_outbox(outbox) as opened:
        found = [RunFigures.of(run) for run in opened.runs(limit)]
    if as_json:
        for run in found:
            write_data(_as_json(run))
    else:
        write_data("\n".join(table(_HEADER, [_row(run) for run in found])) if found else "no runs yet")


def _row(run: RunFigures) -> tuple[str, ...]:
    return (
        f"{run.started_at:%Y-%m-%d %H:%M:%S}",
        duration(run.seconds),
        run.job,
        run.state,
        "-" if run.expected is None else str(run.expected),
        str(run.extracted),
        str(run.duplicates),
        "-" if run.delivered is None else str(run.delivered),
        str(run.rejected),
        str(len(run.missing)),
        run.id,
    )


def _as_json(run: RunFigures) -> bytes:
    return json.dumps(
        {
            "run_id": run.id,
            "job": run.job,
            "state": run.state,
            "started_at": run.started_at.isoformat(timespec="seconds"),
            "finished_at": None if run.finished_at is None else run.finished_at.isoformat(timespec="seconds"),
            "seconds": round(run.seconds, 3),
            "expected": run.expected,
            "extracted": run.extracted,
            "duplicates": run.duplicates,
            "delivered": run.delivered,
            "rejected": run.rejected,
            "missing": list(run.missing),
        }
    ).encode()
