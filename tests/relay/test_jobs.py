"""What a job may do wrong, and what of a run is stored all the same."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from owm_outbox import (
    ExitCode,
    Job,
    JobError,
    Observer,
    OutboxRelay,
    Page,
    Run,
    RunIncomplete,
    RunReport,
    Sink,
    SinkUnavailable,
    SourceUnavailable,
    Stop,
    Stopped,
    TaskError,
    pause,
)
from owm_outbox.testing import ParcelJob
from owm_outbox_backends.jsonl import JsonLinesSink
from owm_outbox_backends.memory import MemoryOutbox


@dataclass
class Task:
    """A task."""

    task_id: uuid.UUID
    number: int


class Failing(Job[Task]):
    """Yields three pages of two tasks, and then does what a test wants."""

    name = "failing"

    def __init__(self, then: Any = None, key: Any = None) -> None:
        super().__init__()
        self._then = then
        self._key = key
        self.closed = False

    def key(self, task: Task) -> Any:
        """Return the number, or what the test wants."""
        return task.number if self._key is None else self._key(task)

    def pages(self, run: Run) -> Iterator[Page[Task]]:
        """Yield them."""
        try:
            for first in (0, 2, 4):
                yield Page([Task(run.task_id(n), n) for n in (first, first + 1)], str(first).encode())
            if self._then is not None:
                yield self._then(run)
        finally:
            self.closed = True


@pytest.fixture
def sink(tmp_path: Path) -> Sink:
    """Write to a file."""
    return JsonLinesSink(tmp_path / "lines")


def _fail(error: BaseException) -> Any:
    def then(run: Run) -> None:
        raise error

    return then


@pytest.mark.parametrize(
    ("error", "cause", "code"),
    [
        (KeyError("city"), JobError, ExitCode.BUG),
        (ValueError("two\nlines"), JobError, ExitCode.BUG),
        (SourceUnavailable("the table is locked"), SourceUnavailable, ExitCode.TRY_AGAIN_LATER),
        (JobError("a mistake"), JobError, ExitCode.BUG),
    ],
    ids=["KeyError", "ValueError", "SourceUnavailable", "JobError"],
)
def test_what_a_failing_job_yielded_is_delivered_and_reported(
    error: Exception, cause: type[Exception], code: ExitCode, sink: Sink, tmp_path: Path
) -> None:
    """However a job fails, what it yielded is stored and delivered, and the outbox has the report of its run."""
    outbox, job = MemoryOutbox(), Failing(_fail(error))
    with pytest.raises(RunIncomplete) as ended:
        OutboxRelay(outbox, sink).run(job)
    report = ended.value.report
    assert (type(ended.value.__cause__), ended.value.exit_code) == (cause, code)
    assert (report.complete, report.extracted, report.delivered, report.pending) == (False, 6, 6, 0)
    assert len((tmp_path / "lines").read_bytes().splitlines()) == 6
    assert msgspec.json.decode(outbox.stats().runs[0].report or b"", type=RunReport) == report
    assert job.closed


def test_a_foreign_error_names_the_job_and_its_line(sink: Sink) -> None:
    """An error of the job's own code is one line: which job, where, and what."""
    with pytest.raises(RunIncomplete, match=r"^job 'failing' failed at .*test_jobs\.py:\d+: ValueError: two lines$"):
        OutboxRelay(MemoryOutbox(), sink).run(Failing(_fail(ValueError("two\n lines"))))


def test_an_error_in_key_names_the_job_and_its_line(sink: Sink) -> None:
    """So is an error that the job's key raises while a page is stored; nothing of the page is."""
    outbox = MemoryOutbox()
    with pytest.raises(
        RunIncomplete, match=r"^job 'failing' failed at .*test_jobs\.py:\d+: ZeroDivisionError"
    ) as ended:
        OutboxRelay(outbox, sink).run(Failing(key=lambda task: 1 // task.number))
    assert ended.value.report.extracted == 0
    assert list(outbox.read(0, 10)) == []


def test_a_key_of_a_wrong_kind_is_a_task_error(sink: Sink) -> None:
    """A key that is neither int nor str ends the run with what to return instead."""
    with pytest.raises(RunIncomplete, match=r"a float: return an int or a str") as ended:
        OutboxRelay(MemoryOutbox(), sink).run(Failing(key=lambda task: task.number / 2))
    assert isinstance(ended.value.__cause__, TaskError)


def test_what_is_not_a_page_is_named(sink: Sink) -> None:
    """A job that yields something else breaks its contract."""
    with pytest.raises(RunIncomplete, match="job 'failing' yielded a list, not a Page"):
        OutboxRelay(MemoryOutbox(), sink).run(Failing(lambda run: [1, 2]))


def test_a_job_cannot_swallow_a_stop(sink: Sink) -> None:
    """A job that catches everything is stopped all the same, and its run is resumed by the next call."""
    stop, outbox = Stop(), MemoryOutbox()

    class Swallowing(Failing):
        def pages(self, run: Run) -> Iterator[Page[Task]]:
            try:
                yield from super().pages(run)
                stop.set()
                run.stop.check()
            except Exception:  # noqa: S110 - as careless code does
                pass

    with pytest.raises(RunIncomplete) as ended:
        OutboxRelay(outbox, sink, stop=stop).run(Swallowing())
    assert isinstance(ended.value.__cause__, Stopped)
    assert ended.value.exit_code == ExitCode.SIGTERM
    assert OutboxRelay(outbox, sink).run(Failing()).run_id == ended.value.report.run_id


def test_a_sink_cannot_swallow_a_stop() -> None:
    """A sink that turns every exception into SinkUnavailable is stopped all the same."""
    stop = Stop()

    class Careless(Sink):
        def mark(self, outbox_id: str) -> str:
            return ""

        def send(self, batch: object) -> None:
            try:
                stop.set()
                if not pause(60):
                    raise TimeoutError
            except Exception as error:
                raise SinkUnavailable("something happened") from error

    with pytest.raises(RunIncomplete) as ended:
        OutboxRelay(MemoryOutbox(), Careless(), stop=stop).run(ParcelJob(5, 5))
    assert isinstance(ended.value.__cause__, Stopped)


class Raising(Observer):
    """Fails at everything."""

    def run_started(self, run: Run) -> None:
        """Fail."""
        raise RuntimeError("no disk for the log")

    def run_finished(self, report: RunReport) -> None:
        """Fail."""
        raise RuntimeError("no network for the ping")


def test_an_observer_that_raises_changes_nothing(sink: Sink, caplog: pytest.LogCaptureFixture) -> None:
    """What an observer raises is logged; the run is as complete as it is, and other observers are called."""
    finished: list[RunReport] = []

    class Listening(Observer):
        def run_finished(self, report: RunReport) -> None:
            finished.append(report)

    report = OutboxRelay(MemoryOutbox(), sink, observers=[Raising(), Listening()]).run(ParcelJob(5, 5))
    assert report.complete
    assert finished == [report]
    assert [record.getMessage() for record in caplog.records] == [
        "Raising.run_started failed; the relay continues",
        "Raising.run_finished failed; the relay continues",
    ]


def test_two_relays_on_one_sink_keep_their_own_waits(sink: Sink) -> None:
    """Building a relay changes nothing about its sink."""
    before = dict(vars(sink))
    OutboxRelay(MemoryOutbox(), sink)
    OutboxRelay(MemoryOutbox(), sink)
    assert vars(sink) == before
