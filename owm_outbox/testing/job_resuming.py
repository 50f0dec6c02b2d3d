"""What a job promises when its run is interrupted, or its source fails."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import pytest

from owm_outbox.errors import JobError, OwmOutboxError, TaskError, TryAgainLater
from owm_outbox.job import Page
from owm_outbox.outbox import Outbox
from owm_outbox.plugins import open_outbox
from owm_outbox.run import MemoryState, Run
from owm_outbox.stop import Stop
from owm_outbox.testing.job_fixtures import Failing, JobFixtures, failures, keys_in, read
from owm_outbox.testing.processes import PATIENCE, Child
from owm_outbox.testing.source import Source

__all__ = ["JobResuming"]

_MOST = 50  # pages after which a run is interrupted


class JobResuming(JobFixtures):
    """Wherever a run is interrupted, another object or process makes the rest of it."""

    def pages(self, source: Source) -> list[bytes | None]:
        """Read the source whole, and return the checkpoint of each page; skip a source of one page."""
        found: list[bytes | None] = []

        def look(page: Page[Any], stored: bool) -> None:
            if stored:
                found.append(page.checkpoint)

        with open_outbox("memory:") as outbox:
            read(source.open(), outbox, look=look)
        if len(found) < 2:
            pytest.skip("the source has one page: not tested how a run that is interrupted continues")
        return found[:_MOST]

    def test_another_object_continues_after_each_page(self, source: Source) -> None:
        """Whichever page was the last that was stored, another object makes all that comes after it."""
        for stored, checkpoint in enumerate(self.pages(source), start=1):
            with open_outbox("memory:") as outbox:
                read(source.open(), outbox, most=stored)
                job = source.open()
                where = f"page {stored} was the last one stored, its checkpoint is {checkpoint!r}"
                try:
                    extraction = read(job, outbox)
                except OwmOutboxError as error:
                    pytest.fail(f"{where}, and the run cannot continue there: {error}")
                wrong = keys_in(outbox, job, extraction.run, source)
                assert not wrong, (
                    f"{where}; when another object continued, {wrong}: a checkpoint stands for its page and those "
                    "before it, and nothing of the run is kept elsewhere"
                )
                problem = extraction.problem()
                assert problem is None, f"{where}; when another object continued, the run was incomplete: {problem}"

    def test_a_page_that_was_not_stored_is_made_again(self, source: Source) -> None:
        """A page counts once it is stored: if the process dies before that, the next one makes it again."""

        class Died(BaseException):
            pass

        for lost in range(1, len(self.pages(source)) + 1):
            yielded = count(1)

            def look(page: Page[Any], stored: bool, yielded: Any = yielded, lost: int = lost) -> None:
                if not stored and next(yielded) == lost:
                    raise Died

            with open_outbox("memory:") as outbox:
                with pytest.raises(Died):
                    read(source.open(), outbox, look=look)
                job = source.open()
                wrong = keys_in(outbox, job, read(job, outbox).run, source)
                assert not wrong, (
                    f"page {lost} was made, but not stored, and when another object continued, {wrong}: how far a run "
                    "is, only its checkpoint tells, not run.state"
                )

    def test_another_process_continues_after_each_kill(self, source: Source, open_file: Callable[[], Outbox]) -> None:
        """Killed with SIGKILL before and after each page is stored, one process after another completes the run."""
        self.pages(source)

        def extract(finish_step: Callable[[], None], die_at: int) -> None:
            looks = count(1)

            def look(page: Page[Any], stored: bool) -> None:
                if next(looks) == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)

            with open_file() as outbox:
                read(source.open(), outbox, look=look)
            finish_step()

        done, killed = 0, 0
        while not done:
            die_at = 2 + killed % 2 if killed < _MOST else 0  # its first page is stored; its second was made, or not
            child = Child(partial(extract, die_at=die_at))
            assert child.ends(PATIENCE), f"a process that continued had not ended after {PATIENCE:.0f} s"
            done = child.end()
            killed += not done
        with open_file() as outbox:
            job = source.open()
            # Not read once more: a relay would begin again with a run that is short of what the source said.
            wrong = keys_in(outbox, job, Run.of(outbox.start_run(job.name), outbox.state, Stop()), source)
        assert not wrong, (
            f"{killed} processes were killed, each after a page, and when the last one had ended, {wrong}: what the "
            "next one needs must not be kept in memory"
        )

    # a source that fails

    def test_a_source_that_fails_does_not_look_complete(self, source: Source, failing: Failing) -> None:
        """If the source cannot be read, the job raises SourceUnavailable, or names what is missing."""
        for number, outbox, outcome in failures(source, failing):
            if isinstance(outcome, JobError | TaskError):
                pytest.fail(f"read {number} of the source failed: raise SourceUnavailable instead ({outcome})")
            if not isinstance(outcome, OwmOutboxError) and outcome.problem() is None:
                wrong = keys_in(outbox, source.open(), outcome.run, source)
                assert not wrong, (
                    f"read {number} of the source failed, and the job ended as if that were all, but {wrong}: raise "
                    "SourceUnavailable"
                )

    def test_a_run_continues_once_its_source_is_back(self, source: Source, failing: Failing) -> None:
        """Whichever read failed, nothing of it was skipped: the next call makes all that is missing."""
        for number, outbox, _ in failures(source, failing):
            job = source.open()
            try:
                extraction = read(job, outbox)
            except TryAgainLater:  # of a circuit breaker, which is in the state: its time will be over
                extraction = read(job, outbox, state=MemoryState())
            wrong = keys_in(outbox, job, extraction.run, source)
            assert not wrong, (
                f"read {number} of the source failed, and when it was back, {wrong}: a checkpoint must not go past "
                "what could not be read"
            )
            problem = extraction.problem()
            assert problem is None, f"read {number} of the source failed; it is back, but the run incomplete: {problem}"
