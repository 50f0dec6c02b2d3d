"""Wherever a run is killed, the next call completes it: no task is lost, none is there twice, the file is sound."""

from __future__ import annotations

import os
import random
import sqlite3
import statistics
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from owm_outbox import RunReport

from support.crash import Ending, Forge, SweepJob, looking_at, newest_run
from support.servers import Server, binaries, running
from support.streams import tasks
from support.weather import CountingService, made_up, serving

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("CRASH_SEED") or random.SystemRandom().randrange(2**32))
TRIALS = -(-int(os.environ.get("CRASH_TRIALS") or 100) // len(binaries()))  # on each kind of server
COUNT = 2_500


@pytest.fixture
def forge(tmp_path: Path) -> Iterator[Forge]:
    """Give a process that forks others."""
    with Forge(tmp_path) as forge:
        yield forge


# -- at every boundary


@pytest.fixture
def strict_server(server: Server) -> Iterator[Server]:
    """Give a server that takes no entry of a megabyte, so that the sweep's run has one refused for good."""
    with server.client() as client:
        before = client.config_get("proto-max-bulk-len")["proto-max-bulk-len"]
        client.config_set("proto-max-bulk-len", 2**20)
        yield server
        client.config_set("proto-max-bulk-len", before)


class Sweep:
    """Kills the sweep's run at one boundary after another, each time with a new outbox and a new stream."""

    def __init__(self, forge: Forge, server: Server, stream: str, folder: Path, level: str) -> None:
        self._forge, self._server, self._stream, self._folder, self._level = forge, server, stream, folder, level
        whole = self._run("whole")
        assert whole.code == 0, whole.said
        self.check("whole")
        self.boundaries = whole.passed

    def _path(self, name: object) -> Path:
        return self._folder / f"{name}.db"

    def _run(self, name: object, die_at: int | None = None) -> Ending:
        url = self._server.url(f"{self._stream}-{name}")
        return self._forge.sweep(self._path(name), url, level=self._level, die_at=die_at)

    def die(self, at: int, *, times: int = 1) -> None:
        """Kill a run at this boundary, complete it with a new process, and check what came of it.

        :param times: how often, in one process after another, before it may complete.
        """
        run_ids = set()
        for attempt in range(times + 1):
            ending = self._run(at, die_at=at if attempt < times else None)
            assert ending.killed or ending.code == 0, ending
            assert ending.killed or attempt or not self._same_each_time, ending
            found = newest_run(self._path(at))
            if found is not None:
                run_ids.add(found.id)
                if found.state == "complete":
                    break
        assert len(run_ids) == 1, "the run was not resumed, but another one was begun"
        self.check(at)

    @property
    def _same_each_time(self) -> bool:
        return self._level != "ticks"  # how many of those a statement takes depends on where in its file it writes

    def check(self, name: object) -> None:
        """Check that everything of the complete run is where it belongs, and nothing twice."""
        cities = set(range(1, SweepJob.pages_in_all * SweepJob.page_size + 1)) - {SweepJob.huge}
        with looking_at(self._path(name)) as outbox:
            assert outbox is not None
            (run,) = outbox.stats().runs
            report = msgspec.json.decode(run.report or b"", type=RunReport)
            assert (run.state, report.complete, report.pending, report.redelivered) == ("complete", True, 0, 0)
            assert (report.extracted, report.duplicates, report.rejected) == (len(cities) + 1, 1, 2)
            ids = {city: str(uuid.uuid5(uuid.UUID(run.id), str(city))) for city in {*cities, SweepJob.huge}}
            assert {letter.task_id for letter in outbox.dead_letters()} == {None, ids.pop(SweepJob.huge)}
            assert (outbox.stats().dead, list(outbox.read(0, 1))) == (2, [])
        assert ids == {task["city_id"]: task["task_id"] for task in tasks(self._server, f"{self._stream}-{name}")}
        with self._server.client() as client:
            assert client.xlen(f"{self._stream}-{name}") == len(cities), "a task is there twice"
            client.delete(f"{self._stream}-{name}")
        for file in self._folder.glob(f"{name}.*"):
            file.unlink()


def test_killed_at_every_call(
    forge: Forge, strict_server: Server, stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kill before or after any call of the outbox or the sink, from its creation on, and one more, costs nothing."""
    sweep = Sweep(forge, strict_server, stream, tmp_path, "calls")
    reached = {boundary.split()[1] for boundary in sweep.boundaries}
    assert reached == {
        *("__init__", "start_run", "store", "acknowledge", "reject", "finish_run"),
        *("mark", "send"),
    }
    for number in range(1, len(sweep.boundaries) + 1):
        sweep.die(number, times=2)
    with capsys.disabled():
        print(f"\nkilled at each of {len(sweep.boundaries)} calls' boundaries")


@pytest.mark.timeout(400)  # two hundred kills, each followed by a whole run
@pytest.mark.parametrize("level", ["statements", "ticks"])
def test_killed_within_transactions(
    forge: Forge, stream: str, tmp_path: Path, level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kill before or after any SQL statement, or within one, from the first that makes the file on, costs nothing."""
    with running(binaries()["valkey"], tmp_path / "server", "--proto-max-bulk-len", str(2**20)) as server:
        sweep = Sweep(forge, server, stream, tmp_path, level)
        if level == "statements":
            for word in ("BEGIN IMMEDIATE", "COMMIT", "CREATE", "INSERT", "UPDATE", "DELETE", "PRAGMA application_id"):
                assert any(word in boundary for boundary in sweep.boundaries), word
        for number in range(1, len(sweep.boundaries) + 1):
            sweep.die(number)
    with capsys.disabled():
        print(f"\nkilled at each of {len(sweep.boundaries)} boundaries of {level}")


# -- at any moment


class Trial:
    """One run of the real command that is killed several times, and then left to complete."""

    def __init__(self, forge: Forge, server: Server, service: CountingService, name: str, folder: Path) -> None:
        self._forge, self._server, self._name = forge, server, name
        self._path = folder / f"{name}.db"
        self._args = [
            *("--api-url", service.url, "--batch-size", "100", "--json"),
            *("--outbox", f"sqlite:///{self._path}", "--sink", server.url(name)),
        ]
        self._seen: set[str] = set()
        self.complete = False

    def run(self, kill_after: float | None = None) -> Ending:
        """Run the command."""
        return self._forge.produce(*self._args, kill_after=kill_after)

    def kill(self, after: float) -> str:
        """Kill a run after so many seconds, and return what it was at."""
        ending = self.run(after)
        found = newest_run(self._path)
        self.complete = found is not None and found.state == "complete"
        if not ending.killed:
            assert (ending.code, self.complete) == (0, True), ending
            return "it had ended"
        if found is None:
            return "before the run began"
        self._seen.add(found.id)
        if self.complete:
            return "it was complete"
        if found.extracted == self.held == 0:
            return "mid-run: nothing stored yet"
        stored, sent = ("part" if count < COUNT else "all" for count in (found.extracted, self.held))
        return f"mid-run: {stored} stored, {sent} sent"

    @property
    def held(self) -> int:
        """How many tasks are in the stream."""
        with self._server.client() as client:
            return int(client.xlen(self._name))

    def check(self) -> None:
        """Check that every task is there exactly once, of one and the same run, and that the outbox is clear."""
        with looking_at(self._path) as outbox:
            assert outbox is not None
            (run,) = outbox.stats().runs
            assert (outbox.stats().dead, list(outbox.read(0, 1))) == (0, [])
        report = msgspec.json.decode(run.report or b"", type=RunReport)
        assert (report.complete, report.extracted, report.redelivered) == (True, COUNT, 0)
        assert self._seen <= {run.id}
        found = tasks(self._server, self._name)
        assert len(found) == COUNT, f"{len(found)} tasks instead of {COUNT}"
        assert {task["city_id"]: task["task_id"] for task in found} == {
            city: str(uuid.uuid5(uuid.UUID(run.id), str(city))) for city in range(1, COUNT + 1)
        }

    def clear(self) -> None:
        """Leave nothing behind."""
        with self._server.client() as client:
            client.delete(self._name, f"{{{self._name}}}:positions")
        for file in self._path.parent.glob(f"{self._path.stem}.*"):
            file.unlink()


@pytest.mark.timeout(120 + 6 * TRIALS)
def test_killed_at_random_moments(
    forge: Forge, server: Server, stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is killed several times at any moment loses nothing, repeats nothing, and stays the same run."""
    moments: Counter[str] = Counter()
    with serving(made_up(COUNT)) as service:
        # A client that is killed resets its connections; that is no news here.
        service.handle_error = lambda *_: None  # type: ignore[method-assign]  # of this one object
        durations = []
        for number in range(5):
            trial = Trial(forge, server, service, f"{stream}-whole-{number}", tmp_path)
            ending = trial.run()
            assert ending.code == 0, ending.said
            trial.check()
            trial.clear()
            durations.append(ending.seconds)
        duration = statistics.median(durations)
        for number in range(TRIALS):
            rng = random.Random(f"{SEED}-{number}")  # noqa: S311 - to be repeated, not to be secret
            trial = Trial(forge, server, service, f"{stream}-{number}", tmp_path)
            said = ""
            try:
                for _ in range(rng.randint(2, 5)):
                    # Starting takes about a third of a whole run; of the rest only what is still to be done.
                    left = duration * (1 / 3 + 2 / 3 * (1 - trial.held / COUNT))
                    moments[trial.kill(rng.uniform(0, left))] += 1
                    if trial.complete:
                        break
                else:
                    ending = trial.run()
                    said = ending.said
                    assert ending.code == 0
                trial.check()
            except (AssertionError, sqlite3.Error) as error:
                error.add_note(f"trial {number} of CRASH_SEED={SEED} CRASH_TRIALS={TRIALS * len(binaries())}: {said}")
                raise
            trial.clear()
    mid_run = sum(count for moment, count in moments.items() if moment.startswith("mid-run"))
    with capsys.disabled():
        print(
            f"\nCRASH_SEED={SEED}: {TRIALS} trials of {COUNT} tasks, 0 lost, 0 twice; "
            f"{moments.total()} kills, {mid_run} mid-run; a whole run takes {duration:.3f} s\n"
            + "\n".join(f"  {count:6} {moment}" for moment, count in moments.most_common())
        )
    assert mid_run >= TRIALS // 2, moments
