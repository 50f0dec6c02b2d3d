"""What an outbox promises of runs: which is resumed, which is closed, and what is remembered."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta

from owm_outbox.outbox import Outbox
from owm_outbox.testing.outbox_fixtures import JOB, OutboxFixtures, bad_records, mark_at, report, run_of, store
from owm_outbox.testing.parcels import numbers

__all__ = ["OutboxRuns"]

_NEVER = timedelta(0)
_MINUTES = timedelta(minutes=1)


class OutboxRuns(OutboxFixtures):
    """An unfinished run is resumed with all that it had, a closed one never."""

    def test_an_unfinished_run_is_resumed(self, outbox: Outbox) -> None:
        """The unfinished run is returned with its id, checkpoint and figures, so that its task ids are the same."""
        run = outbox.start_run(JOB)
        assert (run.job, run.state, run.resumed) == (JOB, "open", False)
        assert (run.checkpoint, run.expected, run.extracted, run.report) == (None, None, 0, None)
        store(outbox, run.id, 1, 1, checkpoint=b"here", expected=7, invalid=bad_records(5))
        again = outbox.start_run(JOB)
        assert again.resumed
        assert (again.id, again.checkpoint, again.expected) == (run.id, b"here", 7)
        assert (again.extracted, again.duplicates, again.rejected, again.unusable) == (1, 1, 1, 1)
        assert again.started_at == run.started_at

    def test_a_checkpoint_left_out_stays(self, outbox: Outbox) -> None:
        """A page without checkpoint or total leaves those of the page before; an empty checkpoint is one."""
        run = outbox.start_run(JOB)
        store(outbox, run.id, checkpoint=b"here", expected=7)
        store(outbox, run.id, 1)
        again = outbox.start_run(JOB)
        assert (again.checkpoint, again.expected) == (b"here", 7)
        store(outbox, run.id, checkpoint=b"", expected=0)
        again = outbox.start_run(JOB)
        assert (again.checkpoint, again.expected) == (b"", 0)

    def test_an_old_run_is_not_resumed_and_its_tasks_stay(self, outbox: Outbox) -> None:
        """A run that may not be resumed is closed as incomplete; what it left pending is still delivered."""
        old = outbox.start_run(JOB)
        store(outbox, old.id, 1, 2)
        run = outbox.start_run(JOB, resume_within=_NEVER)
        assert not run.resumed
        assert run.id != old.id
        assert numbers(outbox.read(0, 10)) == [1, 2]
        assert (run_of(outbox, old.id).state, run_of(outbox, run.id).state) == ("incomplete", "open")
        assert run_of(outbox, old.id).finished_at is not None

    def test_a_closed_run_is_never_resumed(self, outbox: Outbox) -> None:
        """A run that was closed as incomplete stays closed, also when the one after it is complete."""
        old = outbox.start_run(JOB)
        store(outbox, old.id, 1)
        run = outbox.start_run(JOB, resume_within=_NEVER)
        outbox.finish_run(run.id, report(run, complete=True))
        following = outbox.start_run(JOB, resume_within=timedelta(days=1))
        assert not following.resumed
        assert following.id not in (old.id, run.id)

    def test_a_stale_run_of_another_job_is_closed(self, outbox: Outbox, later: Callable[[timedelta], None]) -> None:
        """A run that is older than its own resume_within is closed when any job starts; what is pending stays."""
        stale = outbox.start_run("abandoned", resume_within=timedelta(seconds=1))
        store(outbox, stale.id, 1, 2)
        later(_MINUTES)
        young = outbox.start_run("others")
        assert run_of(outbox, stale.id).state == "incomplete"
        assert run_of(outbox, stale.id).finished_at is not None
        assert numbers(outbox.read(0, 10)) == [1, 2]
        outbox.acknowledge(mark_at(outbox, outbox.stats().last_position))
        outbox.start_run(JOB)
        assert run_of(outbox, young.id).state == "open"
        assert list(outbox.read(0, 10)) == [], "entries of a closed run are cleared once they are delivered"

    def test_a_complete_run_is_never_resumed(self, outbox: Outbox) -> None:
        """After a complete run, the next call gets a new one."""
        run = outbox.start_run(JOB)
        store(outbox, run.id, 1, checkpoint=b"end")
        outbox.acknowledge(mark_at(outbox, outbox.stats().last_position))
        outbox.finish_run(run.id, report(run, complete=True))
        following = outbox.start_run(JOB)
        assert not following.resumed
        assert following.id != run.id
        assert following.checkpoint is None

    def test_an_incomplete_report_leaves_the_run_open(self, outbox: Outbox) -> None:
        """A run that is finished with an incomplete report is resumed by the next call, with all it had."""
        run = outbox.start_run(JOB)
        store(outbox, run.id, 1, 2)
        outbox.finish_run(run.id, report(run, complete=False))
        again = outbox.start_run(JOB)
        assert (again.resumed, again.id, again.state) == (True, run.id, "open")
        assert outbox.stats().pending == 2
        kept = run_of(outbox, run.id).report
        assert kept is not None
        assert json.loads(kept)["run_id"] == run.id

    def test_a_complete_run_leaves_no_task_behind(self, outbox: Outbox) -> None:
        """Finishing a run completely clears its delivered entries."""
        run = outbox.start_run(JOB)
        store(outbox, run.id, 1, 2)
        outbox.acknowledge(mark_at(outbox, outbox.stats().last_position))
        outbox.finish_run(run.id, report(run, complete=True))
        assert list(outbox.read(0, 10)) == []
        assert outbox.stats().pending == 0

    def test_a_complete_run_loses_nothing_undelivered(self, outbox: Outbox) -> None:
        """Finishing a run clears what is acknowledged, and nothing else of it."""
        run = outbox.start_run(JOB)
        store(outbox, run.id, 1, 2, 3)
        outbox.acknowledge(mark_at(outbox, outbox.read(0, 1)[0].position))
        outbox.finish_run(run.id, report(run, complete=True))
        assert numbers(outbox.read(outbox.stats().acknowledged.position, 10)) == [2, 3]
        assert outbox.stats().pending == 2

    def test_jobs_have_their_own_runs(self, outbox: Outbox) -> None:
        """One job's unfinished run is not another's, and keeps all it had when the other's is complete."""
        mine, other = outbox.start_run(JOB), outbox.start_run("others")
        store(outbox, mine.id, 1)
        store(outbox, other.id, 1, 2)
        assert mine.id != other.id
        outbox.acknowledge(mark_at(outbox, outbox.stats().last_position))
        outbox.finish_run(other.id, report(other, complete=True))
        assert numbers(outbox.read(0, 10)) == [1]
        again = outbox.start_run(JOB)
        assert (again.resumed, again.id) == (True, mine.id)

    def test_runs_are_remembered_newest_first(self, outbox: Outbox) -> None:
        """Stats tell of each run its job, its state, its figures and, timezone-aware, when it began and ended."""
        first = outbox.start_run(JOB)
        store(outbox, first.id, 1, 2)
        outbox.acknowledge(mark_at(outbox, outbox.stats().last_position))
        outbox.finish_run(first.id, report(first, complete=True))
        second = outbox.start_run(JOB)
        store(outbox, second.id, 1, invalid=bad_records(5))
        runs = outbox.stats().runs
        assert [(known.id, known.job, known.state, known.extracted, known.rejected) for known in runs] == [
            (second.id, JOB, "open", 1, 1),
            (first.id, JOB, "complete", 2, 0),
        ]
        assert all(known.started_at.tzinfo is not None for known in runs)
        assert runs[0].finished_at is None
        assert runs[1].finished_at is not None
        assert runs[1].finished_at >= runs[1].started_at
        assert all(known.progressed_at >= known.started_at for known in runs)

    def test_ten_runs_are_told_at_most(self, outbox: Outbox) -> None:
        """However many runs there were, stats tell of the ten newest."""
        ids = []
        for _ in range(12):
            run = outbox.start_run(JOB)
            outbox.finish_run(run.id, report(run, complete=True))
            ids.append(run.id)
        assert [known.id for known in outbox.stats().runs] == ids[:1:-1]

    def test_as_many_runs_are_given_as_are_asked_for(self, outbox: Outbox) -> None:
        """The newest first, none twice; fewer where there are fewer."""
        ids = [outbox.start_run(f"job-{number}").id for number in range(3)]
        assert [known.id for known in outbox.runs(2)] == [ids[2], ids[1]]
        assert [known.id for known in outbox.runs(99)] == ids[::-1]

    # by the clock

    def test_a_run_is_resumed_while_it_makes_progress(self, outbox: Outbox, later: Callable[[timedelta], None]) -> None:
        """``resume_within`` counts from the last page, so that a long run can be resumed for as long as it works."""
        run = outbox.start_run(JOB, resume_within=60 * _MINUTES)
        for number in range(3):
            later(50 * _MINUTES)
            store(outbox, run.id, number)
        later(50 * _MINUTES)
        again = outbox.start_run(JOB, resume_within=60 * _MINUTES)
        assert (again.id, again.resumed) == (run.id, True)
        assert again.progressed_at - again.started_at == 150 * _MINUTES
        later(20 * _MINUTES)
        assert outbox.start_run(JOB, resume_within=60 * _MINUTES).id != run.id, "no page was stored for 70 minutes"

    def test_a_run_from_the_future_is_not_resumed_for_ever(
        self, outbox: Outbox, later: Callable[[timedelta], None]
    ) -> None:
        """A clock that was a day ahead when a run began, and is right again, makes that run too old, not too young."""
        later(timedelta(days=1))
        run = outbox.start_run(JOB)
        later(-30 * _MINUTES)
        assert outbox.start_run(JOB).id == run.id, "half an hour is less than resume_within, either way"
        later(-timedelta(days=1))
        following = outbox.start_run(JOB)
        assert not following.resumed
        assert run_of(outbox, run.id).state == "incomplete"

    def test_each_run_is_stale_by_its_own_measure(self, outbox: Outbox, later: Callable[[timedelta], None]) -> None:
        """Whether another job's run is too old is decided by the resume_within with which that run was started."""
        patient = outbox.start_run("patient", resume_within=120 * _MINUTES)
        hasty = outbox.start_run("hasty", resume_within=10 * _MINUTES)
        later(20 * _MINUTES)
        outbox.start_run(JOB, resume_within=60 * _MINUTES)
        assert [run_of(outbox, run.id).state for run in (patient, hasty)] == ["open", "incomplete"]
        later(101 * _MINUTES)
        outbox.start_run(JOB, resume_within=600 * _MINUTES)
        assert run_of(outbox, patient.id).state == "incomplete"
