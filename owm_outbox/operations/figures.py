"""What people are told of an outbox: ages and durations in words, and the figures of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from owm_outbox.run import RunRecord

__all__ = ["RunFigures", "age", "duration", "seconds_since"]


def seconds_since(then: datetime, now: datetime) -> float:
    """Return the seconds from then to now, 0 where a clock was set back meanwhile."""
    return max(0.0, (now - then).total_seconds())


def age(seconds: float) -> str:
    """Return a time in one or two units: ``12 s``, ``3 m``, ``2 h 5 m``, ``4 d 1 h``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m"
    if whole < 86_400:
        return f"{whole // 3600} h {whole // 60 % 60} m"
    return f"{whole // 86_400} d {whole // 3600 % 24} h"


def duration(seconds: float) -> str:
    """Return how long something took: as `age`, but ``0.4 s`` and ``3 m 20 s``, too."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if 60 <= seconds < 3600:
        return f"{age(seconds)} {int(seconds) % 60} s"
    return age(seconds)


@dataclass(frozen=True, slots=True)
class RunFigures:
    """One run, as people are told of it.

    :param state: ``open``, ``complete`` or ``incomplete``, as the outbox has it.
    :param seconds: from its start to its end; to its last progress, if it is open.
    :param delivered: by the last call that worked on it, as its report says; ``None`` without one.
    :param missing: the pages that its last call could not fetch.
    """

    id: str
    job: str
    state: str
    started_at: datetime
    finished_at: datetime | None
    seconds: float
    expected: int | None
    extracted: int
    duplicates: int
    delivered: int | None
    rejected: int
    missing: tuple[int, ...] = ()

    @classmethod
    def of(cls, run: RunRecord) -> Self:
        """Take them from what an outbox stores of a run."""
        report: dict[str, Any] = json.loads(run.report) if run.report else {}
        return cls(
            id=run.id,
            job=run.job,
            state=run.state,
            started_at=run.started_at,
            finished_at=run.finished_at,
            seconds=seconds_since(run.started_at, run.finished_at or run.progressed_at),
            expected=run.expected,
            extracted=run.extracted,
            duplicates=run.duplicates,
            delivered=report.get("delivered"),
            rejected=run.rejected,
            missing=tuple(report.get("missing", ())),
        )

    @property
    def missing_pages(self) -> str:
        """Say how many pages are missing: ``2 pages missing``."""
        return f"{len(self.missing)} page{'' if len(self.missing) == 1 else 's'} missing"

    @property
    def outcome(self) -> str:
        """Say how it ended: ``complete``, ``complete, 2 rejected``, ``unfinished, 1 page missing`` and so on."""
        words = ["unfinished" if self.state == "open" else self.state]
        if self.missing and self.state != "complete":
            words.append(self.missing_pages)
        if self.rejected:
            words.append(f"{self.rejected} rejected")
        return ", ".join(words)
