"""``owm-outbox dead``: look at dead letters, send them again or delete them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import click

from owm_outbox.cli.job_scope import OutboxCommand
from owm_outbox.cli.outcome import Outcome, count
from owm_outbox.cli.streams import write_bytes, write_data, write_report
from owm_outbox.errors import ConfigurationError, ExitCode, one_line, printable
from owm_outbox.operations.figures import age, seconds_since
from owm_outbox.outbox import DeadLetterStore, Outbox
from owm_outbox.task import DeadLetter
from owm_outbox.url import URL

__all__ = ["dead"]


@click.group("dead")
def dead() -> None:
    """Look at dead letters, retry or drop them."""


@dead.command("list", cls=OutboxCommand)
@click.option("--json", "as_json", is_flag=True, allow_from_autoenv=False, help="One JSON object per line.")
def dead_list(*, as_json: bool, outbox: str, **_: Any) -> None:
    """Show each dead letter: its position, when, why, and its payload."""
    from owm_outbox.plugins import look_at_outbox

    with look_at_outbox(outbox) as opened:
        for letter in _letters(opened, outbox).dead_letters():
            if as_json:
                write_data(json.dumps(_fields(letter), ensure_ascii=False).encode(errors="replace"))
            else:
                payload = letter.payload.decode(errors="replace")
                shown = payload if len(payload) <= 500 else f"{payload[:500]}… ({len(letter.payload)} bytes)"
                kind = letter.task_id or "not a task"
                when = f"{letter.rejected_at:%Y-%m-%d %H:%M:%S} UTC"
                again = (
                    f"  ({letter.times} times since {letter.first_rejected_at:%Y-%m-%d})" if letter.times > 1 else ""
                )
                write_data(printable(f"{letter.position}  {when}  {kind}  {one_line(letter.reason)}{again}"))
                write_data(printable(f"    {shown}"))


@dead.command("show", cls=OutboxCommand)
@click.argument("position", type=int)
@click.option("--raw", is_flag=True, allow_from_autoenv=False, help="Write the payload's bytes, and nothing else.")
@click.option("--json", "as_json", is_flag=True, allow_from_autoenv=False, help="One JSON object.")
def dead_show(*, position: int, raw: bool, as_json: bool, outbox: str, **_: Any) -> Outcome:
    """Show one dead letter whole: why and when it was rejected, its run, key, headers and payload.

    POSITION is what dead list shows.
    """
    from owm_outbox.plugins import look_at_outbox

    if raw and as_json:
        raise click.UsageError("--raw does not go with --json.", click.get_current_context())
    with look_at_outbox(outbox) as opened:
        found = next((one for one in _letters(opened, outbox).dead_letters() if one.position == position), None)
    if found is None:
        return Outcome(ExitCode.DEAD_LETTERS, f"{position} is not a dead letter: see owm-outbox dead list")
    if raw:
        write_bytes(found.payload)
    elif as_json:
        fields = {**_fields(found), "run_id": found.run, "key": found.key, "headers": dict(found.headers)}
        write_data(json.dumps(fields, ensure_ascii=False).encode(errors="replace"))
    else:
        for line in _whole(found, datetime.now(UTC)):
            write_data(printable(line))
    return Outcome()


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


def _fields(letter: DeadLetter) -> dict[str, Any]:
    return {
        "position": letter.position,
        "task_id": letter.task_id,
        "rejected_at": letter.rejected_at.isoformat(timespec="seconds"),
        "first_rejected_at": letter.first_rejected_at.isoformat(timespec="seconds"),
        "times": letter.times,
        "reason": letter.reason,
        "payload": letter.payload.decode(errors="replace"),
    }


def _whole(letter: DeadLetter, now: datetime) -> Iterator[str]:
    """Yield the lines that show a dead letter."""
    reason, *more = letter.reason.splitlines() or [""]
    yield f"position  {letter.position}"
    yield f"task      {letter.task_id or 'none: this record never became one, so it can be dropped, not retried'}"
    yield f"reason    {reason}"
    yield from (f"          {line}" for line in more)
    yield f"rejected  {_when(letter.rejected_at, now)}"
    if letter.times > 1:
        yield f"first     {_when(letter.first_rejected_at, now)}"
    yield f"times     {letter.times}"
    yield f"run       {letter.run or 'none'}"
    yield f"key       {'none' if letter.key is None else json.dumps(letter.key, ensure_ascii=False)}"
    yield f"headers   {'' if letter.headers else 'none'}".rstrip()
    yield from (f"          {name}: {value}" for name, value in letter.headers.items())
    yield f"payload   {count(len(letter.payload), 'byte')}"
    yield from letter.payload.decode(errors="backslashreplace").split("\n")


def _when(moment: datetime, now: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC, {age(seconds_since(moment, now))} ago"


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
