"""A source in memory, and jobs that read it and keep every promise, one step after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from owm_outbox import InvalidRecord, Job, Key, Page, Run, SourceUnavailable

__all__ = ["KEYS", "Catalogue", "CatalogueJob", "NamelessJob", "Record", "Ware"]

Record = dict[str, object]

KEYS = [*range(1, 10), *range(11, 20), *range(21, 24), 3]  # 10 and 20 are not wares; 3 is listed twice


@dataclass(frozen=True)
class Ware:
    """A task."""

    task_id: UUID
    number: int
    name: str


@dataclass
class Catalogue:
    """Wares, of which two are wrong and one is listed twice, on pages of five; it can be made to fail."""

    records: list[Record] = field(
        default_factory=lambda: [{"number": n, "name": f"ware {n}" if n % 10 else None} for n in [*range(1, 24), 3]]
    )
    reads: int = 0
    fails_at: int | None = None

    def read(self, at: int) -> list[Record]:
        """Return the records from here on."""
        self.reads += 1
        if self.fails_at is not None and self.reads >= self.fails_at:
            raise ConnectionResetError("the catalogue was closed")
        return self.records[at : at + 5]

    @contextmanager
    def failing(self, number: int) -> Iterator[None]:
        """Fail at this read, and at all after it."""
        self.reads, self.fails_at = 0, number
        yield
        self.fails_at = None


class CatalogueJob(Job[Ware]):
    """Does all that the contract asks."""

    name = "wares"

    def __init__(self, catalogue: Catalogue) -> None:
        super().__init__()
        self.catalogue = catalogue

    def key(self, task: Ware) -> Key:
        """Return the number."""
        return task.number

    def pages(self, run: Run) -> Iterator[Page[Ware]]:
        """Yield page after page, and an empty one at the end."""
        at = self.start(run)
        while True:
            records = self.read(run, at)
            yield self.page(run, records, at + len(records))
            if not records:
                return
            at += len(records)

    def start(self, run: Run) -> int:
        """Return where to begin."""
        return int(run.checkpoint or 0)

    def read(self, run: Run, at: int) -> list[Record]:
        """Read one page of the source."""
        try:
            return self.catalogue.read(at)
        except OSError as error:
            raise SourceUnavailable(f"the catalogue cannot be read ({error})") from error

    def page(self, run: Run, records: Sequence[Record], after: int) -> Page[Ware]:
        """Make a page of what was read; ``after`` is where the next one begins."""
        tasks = [self.task(run, record) for record in records if self.is_ware(record)]
        invalid = [self.invalid(record) for record in records if not self.is_ware(record)]
        expected = len({record["number"] for record in self.catalogue.records})
        return Page(tasks, str(after).encode(), invalid, expected)

    def is_ware(self, record: Record) -> bool:
        """Tell whether it can be a task."""
        return isinstance(record["name"], str)

    def task(self, run: Run, record: Record) -> Ware:
        """Make a task."""
        number = int(str(record["number"]))
        return Ware(run.task_id(number), number, str(record["name"]))

    def invalid(self, record: Record) -> InvalidRecord:
        """Say what is wrong."""
        return InvalidRecord(json.dumps(record).encode(), "it has no name", int(str(record["number"])))


class NamelessJob(CatalogueJob):
    """Has no key of its own, no key for bad records, and no total."""

    key = Job.key  # as if it defined none

    def page(self, run: Run, records: Sequence[Record], after: int) -> Page[Ware]:
        """Make a page without a total."""
        page = super().page(run, records, after)
        return Page(page.tasks, page.checkpoint, [InvalidRecord(bad.payload, bad.reason) for bad in page.invalid])
