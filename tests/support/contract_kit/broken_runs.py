"""Outboxes that are wrong about runs."""
# ruff: noqa: D102 - what the methods of a broken backend do is in the docstring of its class

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from owm_outbox import RESUME_WITHIN, NewEntry, OutboxStats, RunRecord, RunReport, Stored
from owm_outbox_backends.memory import MemoryOutbox

from support.contract_kit.outboxes import HastySqliteOutbox
from support.contract_kit.registry import caught_by


@caught_by("test_an_unfinished_run_is_resumed")
class NeverResumes(MemoryOutbox):
    """Starts a new run each time."""

    def start_run(self, job: str, *, resume_within: timedelta = RESUME_WITHIN) -> RunRecord:
        return super().start_run(job, resume_within=timedelta(0))


@caught_by("test_an_unfinished_run_is_resumed")
class ForgetsTheCheckpoint(HastySqliteOutbox):
    """Stores no checkpoint."""

    def store(self, entries: Sequence[NewEntry], *, checkpoint: bytes | None = None, **rest: Any) -> Stored:
        return super().store(entries, **rest)


@caught_by("test_an_unfinished_run_is_resumed")
class ResumesUnderAnotherId(MemoryOutbox):
    """Continues the run, but its task ids are others."""

    def start_run(self, job: str, *, resume_within: timedelta = RESUME_WITHIN) -> RunRecord:
        run = super().start_run(job, resume_within=resume_within)
        return replace(run, id="00000000-0000-0000-0000-000000000000") if run.resumed else run


@caught_by("test_an_unfinished_run_is_resumed")
class DoesNotSayThatItResumed(MemoryOutbox):
    """Returns a run that it found as if it were new."""

    def start_run(self, job: str, *, resume_within: timedelta = RESUME_WITHIN) -> RunRecord:
        return replace(super().start_run(job, resume_within=resume_within), resumed=False)


@caught_by("test_a_checkpoint_left_out_stays")
class DropsACheckpointThatIsNotRepeated(MemoryOutbox):
    """Takes no checkpoint for the start."""

    def store(self, entries: Sequence[NewEntry], *, run: str | None = None, **rest: Any) -> Stored:
        stored = super().store(entries, run=run, **rest)
        if run is not None:
            self._runs[run] = replace(self._runs[run], checkpoint=rest.get("checkpoint"))
        return stored


@caught_by("test_a_checkpoint_left_out_stays")
class TakesAnEmptyCheckpointForNone(MemoryOutbox):
    """Asks whether a checkpoint is true, not whether there is one."""

    def store(self, entries: Sequence[NewEntry], *, checkpoint: bytes | None = None, **rest: Any) -> Stored:
        return super().store(entries, checkpoint=checkpoint or None, **rest)


@caught_by("test_an_old_run_is_not_resumed_and_its_tasks_stay")
class ResumesHoweverOld(MemoryOutbox):
    """Pays no heed to the age of a run."""

    def start_run(self, job: str, *, resume_within: timedelta = RESUME_WITHIN) -> RunRecord:
        return super().start_run(job)


@caught_by("test_an_old_run_is_not_resumed_and_its_tasks_stay")
class ClearsWhatAnOldRunLeft(MemoryOutbox):
    """Deletes the tasks of a run that it closes."""

    def start_run(self, job: str, *, resume_within: timedelta = RESUME_WITHIN) -> RunRecord:
        run = super().start_run(job, resume_within=resume_within)
        closed = {known.id for known in self._runs.values() if known.state == "incomplete"}
        self._delete([at for at, row in self._rows.items() if row.run in closed and row.reason is None])
        return run


@caught_by("test_a_closed_run_is_never_resumed")
class ReopensClosedRuns(MemoryOutbox):
    """Knows only runs that are complete, and others."""

    def start_run(self, job: str, *, resume_within: timedelta = RESUME_WITHIN) -> RunRecord:
        if resume_within > RESUME_WITHIN:
            for known in self._runs.values():
                self._runs[known.id] = replace(known, state=known.state.replace("incomplete", "open"))
        return super().start_run(job, resume_within=resume_within)


class ClosesOnlyItsOwn(MemoryOutbox):
    """Pays heed to the runs of the job that starts, and of no other."""

    def start_run(self, job: str, *, resume_within: timedelta = RESUME_WITHIN) -> RunRecord:
        others = {id_: run for id_, run in self._runs.items() if run.job != job}
        run = super().start_run(job, resume_within=resume_within)
        self._runs.update(others)
        return run


@caught_by("test_a_stale_run_of_another_job_is_closed")
class LeavesAbandonedRunsOpen(ClosesOnlyItsOwn):
    """Keeps the run of a job that is never started again open for ever."""


@caught_by("test_a_stale_run_of_another_job_is_closed")
class ClosesAllOtherRuns(MemoryOutbox):
    """Closes every run of another job, however young."""

    def start_run(self, job: str, *, resume_within: timedelta = RESUME_WITHIN) -> RunRecord:
        for id_, run in self._runs.items():
            if run.job != job:
                self._resume_within[id_] = timedelta(0)
        return super().start_run(job, resume_within=resume_within)


@caught_by("test_a_complete_run_is_never_resumed")
class ResumesACompleteRun(MemoryOutbox):
    """Clears a complete run, and forgets to close it."""

    def finish_run(self, run: str, report: RunReport) -> None:
        super().finish_run(run, report)
        self._runs[run] = replace(self._runs[run], state="open")


@caught_by("test_an_incomplete_report_leaves_the_run_open")
class ClosesIncompleteRuns(MemoryOutbox):
    """Closes a run with any report."""

    def finish_run(self, run: str, report: RunReport) -> None:
        super().finish_run(run, report)
        if not report.complete:
            self._runs[run] = replace(self._runs[run], state="incomplete")


@caught_by("test_an_incomplete_report_leaves_the_run_open")
class KeepsCompleteReportsOnly(MemoryOutbox):
    """Does not keep the report of a run that is to be resumed."""

    def finish_run(self, run: str, report: RunReport) -> None:
        super().finish_run(run, report)
        if not report.complete:
            self._runs[run] = replace(self._runs[run], report=None)


@caught_by("test_a_complete_run_leaves_no_task_behind")
class NeverClears(MemoryOutbox):
    """Keeps what a complete run has delivered."""

    def _clear(self) -> None:
        pass


@caught_by("test_a_complete_run_loses_nothing_undelivered")
class ClearsWhatIsPending(MemoryOutbox):
    """Clears the whole run once it is complete."""

    def finish_run(self, run: str, report: RunReport) -> None:
        super().finish_run(run, report)
        if report.complete:
            self._delete([at for at, row in self._rows.items() if row.run == run and row.reason is None])


@caught_by("test_jobs_have_their_own_runs")
class SharesRunsBetweenJobs(MemoryOutbox):
    """Resumes whichever run is unfinished."""

    def start_run(self, job: str, *, resume_within: timedelta = RESUME_WITHIN) -> RunRecord:
        for id_, run in self._runs.items():
            self._runs[id_] = replace(run, job=job)
        return super().start_run(job, resume_within=resume_within)


@caught_by("test_jobs_have_their_own_runs")
class ClearsOtherRuns(MemoryOutbox):
    """Clears all that is acknowledged once one run is complete."""

    def finish_run(self, run: str, report: RunReport) -> None:
        super().finish_run(run, report)
        if report.complete:
            self._delete([at for at in self._rows if at <= self._acknowledged.position])


@caught_by("test_runs_are_remembered_newest_first")
class ListsTheOldestRunFirst(MemoryOutbox):
    """Lists runs in the order in which they were started."""

    def stats(self) -> OutboxStats:
        stats = super().stats()
        return replace(stats, runs=stats.runs[::-1])


@caught_by("test_runs_are_remembered_newest_first")
class TellsRunsWithoutAZone(MemoryOutbox):
    """Tells times that mean something else on every machine."""

    def stats(self) -> OutboxStats:
        stats = super().stats()
        return replace(stats, runs=[replace(run, started_at=run.started_at.replace(tzinfo=None)) for run in stats.runs])


@caught_by("test_ten_runs_are_told_at_most")
class TellsEveryRun(MemoryOutbox):
    """Lists all runs that ever were."""

    def stats(self) -> OutboxStats:
        return replace(super().stats(), runs=tuple(self._runs.values())[::-1])


@caught_by("test_as_many_runs_are_given_as_are_asked_for")
class GivesTheOldestRuns(MemoryOutbox):
    """Counts from the wrong end."""

    def runs(self, limit: int) -> Sequence[RunRecord]:
        return tuple(self._runs.values())[:limit][::-1]


@caught_by("test_as_many_runs_are_given_as_are_asked_for")
class GivesTenRuns(MemoryOutbox):
    """Gives what the stats have, however few are asked for."""

    def runs(self, limit: int) -> Sequence[RunRecord]:
        return super().runs(10)


# by the clock


@caught_by("test_a_run_is_resumed_while_it_makes_progress")
class CountsFromTheStart(MemoryOutbox):
    """Lets a run grow too old while it works."""

    def store(self, entries: Sequence[NewEntry], *, run: str | None = None, **rest: Any) -> Stored:
        stored = super().store(entries, run=run, **rest)
        if run is not None:
            self._runs[run] = replace(self._runs[run], progressed_at=self._runs[run].started_at)
        return stored


@caught_by("test_a_run_is_resumed_while_it_makes_progress")
class TakesAResumeForProgress(MemoryOutbox):
    """Begins to count again whenever the run is started."""

    def start_run(self, job: str, *, resume_within: timedelta = RESUME_WITHIN) -> RunRecord:
        run = super().start_run(job, resume_within=resume_within)
        self._runs[run.id] = replace(run, progressed_at=self._now(), resumed=False)
        return run


@caught_by("test_a_run_from_the_future_is_not_resumed_for_ever")
class BelievesTheFuture(MemoryOutbox):
    """Takes a run from the future for a very young one."""

    def start_run(self, job: str, *, resume_within: timedelta = RESUME_WITHIN) -> RunRecord:
        now = self._now()
        for id_, run in self._runs.items():
            self._runs[id_] = replace(run, progressed_at=min(run.progressed_at, now))
        return super().start_run(job, resume_within=resume_within)


@caught_by("test_a_run_from_the_future_is_not_resumed_for_ever")
class ClosesWhatIsASecondAhead(MemoryOutbox):
    """Never resumes a run from the future, though a clock is often set back by a little."""

    def start_run(self, job: str, *, resume_within: timedelta = RESUME_WITHIN) -> RunRecord:
        ahead = any(run.progressed_at > self._now() for run in self._runs.values())
        return super().start_run(job, resume_within=timedelta(0) if ahead else resume_within)


@caught_by("test_each_run_is_stale_by_its_own_measure")
class HasOneMeasureForAll(MemoryOutbox):
    """Closes other jobs' runs by the resume_within of the one that starts."""

    def start_run(self, job: str, *, resume_within: timedelta = RESUME_WITHIN) -> RunRecord:
        self._resume_within = dict.fromkeys(self._resume_within, resume_within)
        return super().start_run(job, resume_within=resume_within)
