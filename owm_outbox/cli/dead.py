"""``owm-outbox dead``: look at dead letters, send them again or delete them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import click

from owm_outbox.cli.job_scope import OutboxCommand
from owm_outbox.cli.outcome import Outcome
from owm_outbox.cli.streams import write_data, write_report
from owm_outbox.errors import ConfigurationError, ExitCode, one_line, printable
from owm_outbox.outbox import DeadLetterStore, Outbox
from owm_outbox.url import URL

__all__ = ["dead"]


@click.group("dead")
def dead() -> None:
    """Look at dead letters, retry or drop them."""


@dead.command("list", cls=OutboxCommand)
@click.option("--json", "as_json", is_flag=True, allow_from_autoenv=False, help="One JSON object per line.")
def dead_list(*, as_json: bool, outbox: str, **_: Any) -> None:
    """Show each dead letter: its position, when, why, and its payload."""
    from owm_outbox.plugins import open_outbox

    with open_outbox(outbox, create=False) as opened:
        for letter in _letters(opened, outbox).dead_letters():
            payload = letter.payload.decode(errors="replace")
            if as_json:
                fields = {
                    "position": letter.position,
                    "task_id": letter.task_id,
                    "rejected_at": letter.rejected_at.isoformat(timespec="seconds"),
                    "first_rejected_at": letter.first_rejected_at.isoformat(timespec="seconds"),
                    "times": letter.times,
                    "reason": letter.reason,
                    "payload": payload,
                }
                write_data(json.dumps(fields, ensure_ascii=False).encode(errors="replace"))
            else:
                shown = payload if len(payload) <= 500 else f"{payload[:500]}… ({len(letter.payload)} bytes)"
                kind = letter.task_id or "not a task"
                when = f"{letter.rejected_at:%Y-%m-%d %H:%M:%S} UTC"
                again = (
                    f"  ({letter.times} times since {letter.first_rejected_at:%Y-%m-%d})" if letter.times > 1 else ""
                )
                write_data(printable(f"{letter.position}  {when}  {kind}  {one_line(letter.reason)}{again}"))
                write_data(printable(f"    {shown}"))


@dead.command("retry", cls=OutboxCommand)
@click.argument("positions", nargs=-1, type=int)
@click.option("--all", "everything", is_flag=True, allow_from_autoenv=False, help="All of them.")
def dead_retry(*, positions: tuple[int, ...], everything: bool, outbox: str, **_: Any) -> Outcome:
    """Make dead letters pending again; the relay at work sends them, or the next run or drain."""
    return _on_letters(
        outbox, positions, everything, lambda letters, wanted: letters.retry(wanted), "will be sent again"
    )


@dead.command("drop", cls=OutboxCommand)
@click.argument("positions", nargs=-1, type=int)
@click.option("--all", "everything", is_flag=True, allow_from_autoenv=False, help="All of them.")
def dead_drop(*, positions: tuple[int, ...], everything: bool, outbox: str, **_: Any) -> Outcome:
    """Delete dead letters for good."""
    return _on_letters(outbox, positions, everything, lambda letters, wanted: letters.drop(wanted), "dropped")


def _on_letters(
    url: str,
    positions: tuple[int, ...],
    everything: bool,
    action: Callable[[DeadLetterStore, Iterable[int]], int],
    effect: str,
) -> Outcome:
    if bool(positions) == everything:
        raise click.UsageError(
            "Give positions as owm-outbox dead list shows them, or --all.", click.get_current_context()
        )
    from owm_outbox.plugins import open_outbox

    with open_outbox(url, create=False) as opened:
        letters = _letters(opened, url)
        wanted = {letter.position for letter in letters.dead_letters()} if everything else set(positions)
        done = action(letters, sorted(wanted))
    write_report(f"{done} {effect}")
    left = len(wanted) - done
    if left:
        which = "1 of them is not a dead letter" if left == 1 else f"{left} of them are not dead letters"
        return Outcome(ExitCode.DEAD_LETTERS, f"{which}, or never became a task: see owm-outbox dead list")
    return Outcome()


def _letters(outbox: Outbox, url: str) -> DeadLetterStore:
    if not isinstance(outbox, DeadLetterStore):
        raise ConfigurationError(f"{URL(url)}: this kind of outbox does not list its dead letters")
    return outbox
