"""Commands on an outbox: what it holds, and what to do with that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any

import click

from owm_outbox.cli.exits import DATA
from owm_outbox.cli.stores import DeliveringCommand, StoreCommand, make_relay
from owm_outbox.errors import ConfigurationError
from owm_outbox.outbox import DeadLetterStore, Outbox, OutboxStats
from owm_outbox.url import URL

__all__ = ["dead", "drain", "status"]


@click.command("status", cls=StoreCommand)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(*, as_json: bool, outbox: str, **_: Any) -> None:
    """Show what an outbox holds: pending tasks, the oldest one's age, dead letters, the last runs."""
    with _opened(outbox) as box:
        stats = box.stats()
    click.echo(_status_json(stats) if as_json else _status_text(outbox, stats))


@click.command("drain", cls=DeliveringCommand)
@click.option("--json", "as_json", is_flag=True, help="Write what was delivered to stdout.")
def drain(*, as_json: bool, outbox: str, sink: str, **values: Any) -> None:
    """Deliver what is in the outbox; extract nothing."""
    from owm_outbox.plugins import open_sink

    with ExitStack() as stack:
        target = stack.enter_context(open_sink(sink))
        box = stack.enter_context(_opened(outbox))
        delivered = make_relay(stack, box, target, values).drain()
        pending = box.stats().pending
    if as_json:
        click.echo(json.dumps({"delivered": delivered, "pending": pending}))


@click.group("dead")
def dead() -> None:
    """Look at dead letters, retry or drop them."""


@dead.command("list", cls=StoreCommand)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def dead_list(*, as_json: bool, outbox: str, **_: Any) -> None:
    """Show each dead letter: its position, when, why, and its payload."""
    with _opened(outbox) as box:
        for letter in _letters(box, outbox).dead_letters():
            payload = letter.payload.decode(errors="replace")
            if as_json:
                fields = {
                    "position": letter.position,
                    "task_id": letter.task_id,
                    "rejected_at": letter.rejected_at.isoformat(timespec="seconds"),
                    "reason": letter.reason,
                    "payload": payload,
                }
                click.echo(json.dumps(fields, ensure_ascii=False))
            else:
                shown = payload if len(payload) <= 500 else f"{payload[:500]}… ({len(letter.payload)} bytes)"
                kind = letter.task_id or "no task"
                click.echo(f"{letter.position}  {letter.rejected_at:%Y-%m-%d %H:%M:%S} UTC  {kind}  {letter.reason}")
                click.echo(f"    {shown}")


@dead.command("retry", cls=StoreCommand)
@click.argument("positions", nargs=-1, type=int)
@click.option("--all", "everything", is_flag=True, help="All of them.")
def dead_retry(*, positions: tuple[int, ...], everything: bool, outbox: str, **_: Any) -> tuple[int, str]:
    """Make dead letters pending again; the next run or drain sends them."""
    return _on_letters(outbox, positions, everything, lambda box, wanted: box.retry(wanted), "will be sent again")


@dead.command("drop", cls=StoreCommand)
@click.argument("positions", nargs=-1, type=int)
@click.option("--all", "everything", is_flag=True, help="All of them.")
def dead_drop(*, positions: tuple[int, ...], everything: bool, outbox: str, **_: Any) -> tuple[int, str]:
    """Delete dead letters for good."""
    return _on_letters(outbox, positions, everything, lambda box, wanted: box.drop(wanted), "dropped")


def _on_letters(
    url: str,
    positions: tuple[int, ...],
    everything: bool,
    action: Callable[[DeadLetterStore, Iterable[int]], int],
    done: str,
) -> tuple[int, str]:
    if bool(positions) == everything:
        raise click.UsageError("Give positions as dead list shows them, or --all.", click.get_current_context())
    with _opened(url) as box, box.lock():
        letters = _letters(box, url)
        wanted = [letter.position for letter in letters.dead_letters()] if everything else list(positions)
        count = action(letters, wanted)
    click.echo(f"{count} {done}")
    if count < len(set(wanted)):
        return (
            DATA,
            f"{len(set(wanted)) - count} of them are no dead letters, or never became a task: see dead list",
        )
    return 0, ""


@contextmanager
def _opened(url: str) -> Iterator[Outbox]:
    from owm_outbox.plugins import open_outbox

    with open_outbox(url, create=False) as box:
        yield box


def _letters(box: Outbox, url: str) -> DeadLetterStore:
    if not isinstance(box, DeadLetterStore):
        raise ConfigurationError(f"{URL(url)}: this kind of outbox keeps no list of dead letters")
    return box


def _age(since: datetime | None) -> float | None:
    return None if since is None else round((datetime.now(UTC) - since).total_seconds(), 1)


def _status_json(stats: OutboxStats) -> str:
    return json.dumps(
        {
            "pending": stats.pending,
            "oldest_seconds": _age(stats.oldest),
            "dead": stats.dead,
            "acknowledged": stats.acknowledged,
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
    )


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
        f"{run.extracted} tasks, {run.rejected} rejected"
        for run in stats.runs
    ]
    return "\n".join(lines)
