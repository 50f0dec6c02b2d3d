"""A source of pages for the tests of plans, and a run that reads it as the engine does, without a socket."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from owm_outbox.paging import ApiPage
from owm_outbox.paging.plan import Plan
from owm_outbox.paging.step import Failure

URL = "http://api/cities/"


NOT_FOUND = Failure("it failed", no_such_page=True)
BROKEN = Failure("it failed")
AWAY = Failure("it failed", unreachable=True)
REFUSED = Failure("it answered 401", fix="the API token")

Source = Callable[[int, int], ApiPage[int] | Failure]
"""Answers a page, asked for the n-th time."""


@dataclass
class Reading:
    """One run, over as many calls as it takes: one page under way at a time, each stored at once."""

    source: Source
    limit: int = 3
    first_page: int = 0
    second_pass: bool = False
    asked: list[int] = field(default_factory=list)
    beyond: list[int] = field(default_factory=list)
    found: set[object] = field(default_factory=set)
    checkpoint: bytes | None = None
    expected: int | None = None
    missing: Sequence[int] = ()

    def call(self) -> Reading:
        """Make one call; as a relay does, without a checkpoint if the one before ended short."""
        if self.short and not self.missing:
            self.checkpoint = None
        plan = Plan(URL, self.limit, self.first_page, second_pass=self.second_pass, checkpoint=self.checkpoint)
        try:
            self._read(plan)
        finally:
            self.checkpoint, self.missing = plan.checkpoint(), plan.missing
            self.expected = self.expected if plan.expected is None else plan.expected
        return self

    def _read(self, plan: Plan) -> None:
        while plan.next_round(len(self.found)):
            for step in plan.steps():
                assert step is not None, "nothing else is under way"
                self.asked.append(step.number)
                self.beyond += [step.number] if step.beyond else []
                assert len(self.asked) < 200, "it does not end"
                answer = self.source(step.number, self.asked.count(step.number))
                if isinstance(answer, Failure):
                    plan.failed(step.number, answer)
                elif plan.fetched(step.number, answer, len(self.found)):
                    self.found.update(answer.records)
                    self.found.update(record.payload for record in answer.invalid)
                if not plan.going:
                    break

    @property
    def complete(self) -> bool:
        """Whether a relay would say so."""
        return not self.missing and not self.short

    @property
    def short(self) -> bool:
        """Whether fewer records were found than there are."""
        return self.expected is not None and len(self.found) < self.expected


def pages(
    records: Iterable[int],
    total: int | Callable[[int], int | None] | None = -1,
    *,
    size: int = 3,
    first: int = 0,
    limit: int | None = None,
    bad: dict[int, Failure | Sequence[Failure]] | None = None,
    beyond: Failure | None = None,
    clamped: bool = False,
) -> Source:
    """Return a source of these records.

    :param total: what it says; -1 for the truth, or a function of the number of records on the page.
    :param bad: pages that fail, always or the first times.
    :param beyond: how a page beyond the last one fails; it is empty by default.
    :param clamped: whether it repeats the last one instead.
    """
    every = list(records)

    def answer(number: int, attempt: int) -> ApiPage[int] | Failure:
        failures = (bad or {}).get(number, ())
        if isinstance(failures, Failure):
            return failures
        if attempt <= len(failures):
            return failures[attempt - 1]
        last = max(-(-len(every) // size) - 1, 0)
        at = min(number - first, last) if clamped else number - first
        if at > last and beyond is not None:
            return beyond
        found = every[at * size : (at + 1) * size]
        said = total(len(found)) if callable(total) else len(every) if total == -1 else total
        return ApiPage(found, (), said, limit)

    return answer
