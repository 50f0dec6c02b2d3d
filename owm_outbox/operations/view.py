"""What a page shows of an outbox: plain values, and what of them is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import NamedTuple

from owm_outbox import __version__
from owm_outbox.lanes import LanedOutbox
from owm_outbox.operations.figures import RunFigures, age, seconds_since
from owm_outbox.outbox import DeadLetterStore, Outbox, OutboxStats
from owm_outbox.url import URL

__all__ = ["Finding", "LaneView", "LetterView", "View", "findings", "lane_stats", "view_of"]

_LETTERS = 20
_MAX_AGE = 600.0  # seconds


@dataclass(frozen=True, slots=True)
class LaneView:
    """One lane.

    :param oldest: seconds since its oldest pending task was stored; ``None`` if there is none.
    :param holder: the relay that delivers from it, for a person to read; empty if that is not known.
    """

    number: int
    pending: int
    oldest: float | None
    dead: int
    holder: str = ""


@dataclass(frozen=True, slots=True)
class LetterView:
    """One dead letter, without its payload.

    :param rejected: seconds since it was rejected last.
    :param is_task: whether it can be retried.
    """

    position: int
    reason: str
    times: int
    rejected: float
    is_task: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is known of an outbox at one moment.

    :param outbox: its URL, without secrets.
    :param sink: the URL of the sink, without secrets; empty if that is not known.
    :param now: the time of the look, timezone-aware.
    :param oldest: seconds since the oldest pending task was stored; ``None`` if there is none.
    :param max_age: seconds beyond which that is too old.
    :param runs: the newest ones, newest first.
    :param letters: the first dead letters.
    :param throughput: tasks delivered in each of the last 60 minutes, the newest last; ``None`` where nobody measured;
        empty if nobody measures.
    :param problem: what keeps the relay from delivering now, in words; empty if nothing does.
    """

    outbox: str
    now: datetime
    pending: int
    dead: int
    oldest: float | None = None
    sink: str = ""
    max_age: float = _MAX_AGE
    lanes: Sequence[LaneView] = ()
    runs: Sequence[RunFigures] = ()
    letters: Sequence[LetterView] = ()
    throughput: Sequence[int | None] = ()
    problem: str = ""
    version: str = __version__


def view_of(
    outbox: Outbox,
    *,
    url: str,
    sink_url: str | None = None,
    throughput: Sequence[int | None] | None = None,
    problem: str | None = None,
    now: datetime,
    holders: Mapping[int, str] | None = None,
    max_age: float = _MAX_AGE,
) -> View:
    """Look at an outbox that is open.

    :param url: that of the outbox; secrets in it are hidden.
    :param sink_url: that of the sink, likewise.
    :param throughput: see `View`; so are ``problem`` and ``max_age``.
    :param now: timezone-aware.
    :param holders: which relay holds a lane, by the lane's number.
    :raises OutboxUnavailable: it cannot be reached; so does OutboxInvalid.
    """
    stats = outbox.stats()
    letters = outbox.dead_letters() if stats.dead and isinstance(outbox, DeadLetterStore) else iter(())
    return View(
        outbox=str(URL(url)),
        sink="" if sink_url is None else str(URL(sink_url)),
        now=now,
        pending=stats.pending,
        oldest=_oldest(stats, now),
        dead=stats.dead,
        max_age=max_age,
        lanes=tuple(
            LaneView(number, lane.pending, _oldest(lane, now), lane.dead, (holders or {}).get(number, ""))
            for number, lane in enumerate(lane_stats(outbox))
        ),
        runs=tuple(map(RunFigures.of, stats.runs)),
        letters=tuple(
            LetterView(
                letter.position,
                letter.reason,
                letter.times,
                seconds_since(letter.rejected_at, now),
                letter.task_id is not None,
            )
            for letter in islice(letters, _LETTERS)
        ),
        throughput=tuple(throughput or ()),
        problem=problem or "",
    )


def lane_stats(outbox: Outbox) -> list[OutboxStats]:
    """Return what each lane holds; nothing for an outbox without lanes."""
    if not isinstance(outbox, LanedOutbox) or outbox.lanes == 1:
        return []
    found = []
    for number in range(outbox.lanes):
        with outbox.lane(number) as lane:
            found.append(lane.stats())
    return found


def _oldest(stats: OutboxStats, now: datetime) -> float | None:
    return None if stats.oldest is None else seconds_since(stats.oldest, now)


class Finding(NamedTuple):
    """One thing that is wrong.

    :param what: in a sentence or two.
    :param commands: what to type next, each as its words, which a shell may need quoted.
    """

    what: str
    commands: Sequence[Sequence[str]]


def findings(view: View) -> list[Finding]:
    """Return what is wrong, the most urgent first."""
    return [*_delivery(view), *_runs(view), *_dead(view)]


def _delivery(view: View) -> Iterator[Finding]:
    late = view.oldest is not None and view.oldest > view.max_age
    waits = f"The oldest task has been pending for {age(view.oldest or 0)}." if late else ""
    if view.problem:
        what = f"Nothing is delivered now: {view.problem.rstrip('.')}. {waits}"
        yield Finding(what.rstrip(), [("owm-outbox", "check", "sink", view.sink or "URL")])
    elif late:
        yield Finding(
            f"{waits} Look whether a relay is at work; if none is, deliver what waits.",
            [("owm-outbox", "drain", "--outbox", view.outbox, "--sink", view.sink or "URL")],
        )


def _runs(view: View) -> Iterator[Finding]:
    seen = set()
    for run in view.runs:
        if run.job in seen:  # a newer one counts
            continue
        seen.add(run.job)
        idle = seconds_since(run.started_at, view.now) - run.seconds
        again = ("owm-outbox", "run", run.job, "--outbox", view.outbox, *(("--sink", view.sink) if view.sink else ()))
        if run.state == "incomplete":
            what = f"The last run of {run.job} was closed before it was complete. Run the job again."
            yield Finding(what, [again])
        elif run.state == "open" and (run.delivered is not None or idle > view.max_age):
            why = f": {run.missing_pages}" if run.missing else ""
            what = (
                f"The last run of {run.job} is unfinished{why}. Its last progress was {age(idle)} ago. "
                "Run the job again, soon enough to resume it."
            )
            yield Finding(what, [again])


def _dead(view: View) -> Iterator[Finding]:
    if not view.dead:
        return
    what = "There is 1 dead letter. Read why, then retry or drop it."
    if view.dead > 1:
        what = f"There are {view.dead:,} dead letters. Read why, then retry or drop them."
    first = str(view.letters[0].position) if view.letters else "POSITION"
    at = ("--outbox", view.outbox)
    yield Finding(
        what,
        [("owm-outbox", "dead", "show", first, *at), ("owm-outbox", "dead", "retry", first, *at)],
    )
