"""What all tests of a job share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, ClassVar

import pytest

from owm_outbox.entry import Key
from owm_outbox.errors import OwmOutboxError
from owm_outbox.extraction import Extraction
from owm_outbox.job import Job, Page
from owm_outbox.outbox import Outbox
from owm_outbox.plugins import open_outbox
from owm_outbox.run import Run, StateStore
from owm_outbox.stop import Stop
from owm_outbox.testing.source import Source

__all__ = ["Failing", "JobFixtures", "failures", "keys_in", "read", "some"]

Failing = Callable[[int], AbstractContextManager[object]]

_ALL = 10**9
_READS = 100  # that a small source may take


class JobFixtures:
    """The fixtures of `JobContract`."""

    patience: ClassVar[float] = 5.0
    """Seconds within which a job must have ended after a stop."""

    @pytest.fixture
    def source(self) -> Source:
        """Give the job and its source; every subclass has its own."""
        raise NotImplementedError("give your subclass a fixture named source, see owm_outbox.testing")

    @pytest.fixture
    def outbox(self) -> Iterator[Outbox]:
        """Open an outbox that lasts for the test."""
        with open_outbox("memory:") as outbox:
            yield outbox

    @pytest.fixture
    def open_file(self, tmp_path: Path) -> Callable[[], Outbox]:
        """Give a function that opens an outbox which outlives its process."""
        return lambda: open_outbox(f"sqlite:///{tmp_path}/tasks.db")

    @pytest.fixture
    def failing(self, source: Source) -> Failing:
        """Give ``Source.failing`` to the tests, if there is one."""
        if source.failing is None:
            pytest.skip("Source(failing=None): not tested what happens when the source cannot be read")
        return source.failing

    @pytest.fixture
    def invalid(self, source: Source) -> int:
        """Give the number of bad records to the tests, if there are any."""
        if not source.invalid:
            pytest.skip("Source(invalid=0): not tested what becomes of records that are not valid tasks")
        return source.invalid


def read(
    job: Job[Any],
    outbox: Outbox,
    *,
    most: int = _ALL,
    afresh: bool = False,
    stop: Stop | None = None,
    state: StateStore | None = None,
    look: Callable[[Page[Any], bool], object] = lambda page, stored: None,
) -> Extraction:
    """Store what a job yields, as a relay does, in its open run or a new one.

    :param most: pages that are stored.
    :param afresh: read from the beginning, not from the checkpoint.
    :param state: instead of the outbox's.
    :param look: called with each page before it is stored, and after.
    """
    run = Run.of(outbox.start_run(job.name), state or outbox.state, stop or Stop())
    run.checkpoint = None if afresh else run.checkpoint
    extraction = Extraction(job, run)
    with closing(extraction.pages()) as pages:
        for number, page in zip(range(most), pages, strict=False):
            look(page, False)
            extraction.store(page, outbox)
            look(page, True)
            if number == most - 1:
                break
    return extraction


def keys_in(outbox: Outbox, job: Job[Any], run: Run, source: Source) -> str:
    """Compare the keys that are stored with those of the source; return what is wrong, empty if nothing is."""
    found = {entry.key for entry in outbox.read(0, _ALL, _ALL)}
    wanted = {_key(job, run, key): key for key in source.keys}
    missing = [key for name, key in wanted.items() if name not in found]
    more = [key for key in found if key not in wanted]
    said = [f"{some(missing)} of the source's {len(wanted)} keys were never made"] if missing else []
    return ", and ".join(said + ([f"{some(more)} are not the source's"] if more else []))


def _key(job: Job[Any], run: Run, key: Key) -> Key:
    return str(run.task_id(key)) if type(job).key is Job.key else key


def some(things: list[Any]) -> str:
    """Return how many there are, and the first ones."""
    return f"{len(things)} ({', '.join(map(repr, things[:3]))}{', …' if len(things) > 3 else ''})"


def failures(source: Source, failing: Failing) -> Iterator[tuple[int, Outbox, Extraction | OwmOutboxError]]:
    """Let the source fail at its first read, its second, and so on until it is read whole; yield what came of each."""
    for number in range(1, _READS):
        with open_outbox("memory:") as outbox:
            outcome: Extraction | OwmOutboxError
            with failing(number):
                try:
                    outcome = read(source.open(), outbox)
                except OwmOutboxError as error:
                    outcome = error
            yield number, outbox, outcome
        if isinstance(outcome, Extraction) and outcome.problem() is None:
            assert number > 1, "Source.failing(1) makes no read fail, or the job does not notice"
            return
    pytest.fail(f"Source.failing({_READS}) still makes a read fail: count the reads, and give a smaller source")
