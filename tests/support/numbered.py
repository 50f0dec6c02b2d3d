"""A job of many numbered tasks, for tests of what happens around its run."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from owm_outbox import Job, Outbox, OutboxRelay, Page, Run, RunReport, Stop
from owm_outbox_backends.jsonl import JsonLinesSink

__all__ = ["COUNT", "lines", "run_notes"]

COUNT = 30_000


@dataclass
class Note:
    """A task."""

    task_id: uuid.UUID
    number: int


class Notes(Job[Note]):
    """Makes so many tasks."""

    name = "notes"

    def pages(self, run: Run) -> Iterator[Page[Note]]:
        """Yield those that are missing, on pages of 10,000."""
        for first in range(int(run.checkpoint or b"0"), COUNT, 10_000):
            tasks = [Note(run.task_id(number), number) for number in range(first, first + 10_000)]
            yield Page(tasks, checkpoint=b"%d" % (first + 10_000))

    def key(self, task: Note) -> int:
        """Return its number."""
        return task.number


def run_notes(outbox: Outbox, out: Path, stop: Stop | None = None) -> RunReport:
    """Run the job."""
    with JsonLinesSink(out) as sink:
        return OutboxRelay(outbox, sink, stop=stop).run(Notes())


def lines(out: Path) -> int:
    """Count what was delivered."""
    return out.read_bytes().count(b"\n")
