"""A run that was killed, stopped or left incomplete continues where it was, and fetches nothing twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from owm_outbox import Outbox
from owm_outbox_backends.memory import MemoryOutbox
from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import Outcome, environment, run, start
from support.misbehaving import (
    Misbehaving,
    Reply,
    delivered,
    hang,
    ids_in,
    misbehaving,
    produce,
    slow,
    status,
    together,
)
from support.servers import Server
from support.streams import city_ids
from support.weather import made_up

pytestmark = pytest.mark.slow

COUNT = 3000
ALL = list(range(1, COUNT + 1))


@pytest.fixture
def service() -> Iterator[Misbehaving]:
    """Serve 3,000 cities on 30 pages."""
    with misbehaving(made_up(COUNT)) as service:
        yield service


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Name the file that the tasks go to."""
    return tmp_path / "out"


class Command:
    """``owm-producer`` against one service, with one outbox and one file."""

    def __init__(self, service: Misbehaving, folder: Path) -> None:
        self.file = folder / "tasks.db"
        store = ("--outbox", f"sqlite:///{self.file}", "--sink", f"jsonl:{folder}/out")
        self._args = ("--api-url", service.url, *store, "--json")

    def start(self, *args: str) -> subprocess.Popen[bytes]:
        """Start it and return at once."""
        return start("owm-producer", *self._args, *args)

    def run(self, *args: str) -> Outcome:
        """Run it to its end."""
        return run("owm-producer", *self._args, "--retry-wait", "0.001", *args)

    def next_page(self) -> int:
        """Return the page at which the unfinished run continues."""
        with SqliteOutbox(self.file) as outbox:
            checkpoint = outbox.start_run("owm").checkpoint
        assert checkpoint is not None
        number: int = json.loads(checkpoint)["next_page"]
        return number


@pytest.fixture
def command(service: Misbehaving, tmp_path: Path) -> Command:
    """Give the command."""
    return Command(service, tmp_path)


# -- killed


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_killed_run_goes_on_at_its_checkpoint(
    concurrency: int, server: Server, stream: str, command: Command, service: Misbehaving
) -> None:
    """After SIGKILL in the middle the next call fetches what is not in the outbox and nothing else, as the same run."""
    service.misbehave(slow(0.03), 0)
    service.misbehave(hang, *range(22, 30))
    sink = ("--sink", server.url(stream))
    process = command.start("--concurrency", str(concurrency), *sink)
    service.wait_for(lambda service: 21 + concurrency in service.pages)
    process.kill()
    process.communicate(timeout=20)
    done = command.next_page()
    assert 10 <= done <= 22
    service.heal()
    service.requests.clear()
    outcome = command.run(*sink)
    assert (outcome.code, outcome.err) == (0, "")
    assert sorted(page for page in service.pages if page is not None) == list(range(done, 31))
    assert (outcome.report["resumed"], outcome.report["extracted"]) == (True, COUNT)
    assert outcome.report["duplicates"] == 0
    assert sorted(city_ids(server, stream)) == ALL


# -- stopped


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("reply", [hang, status(500)], ids=["in a request", "in a backoff"])
def test_a_signal_ends_every_wait(
    reply: Reply, concurrency: int, signum: signal.Signals, command: Command, service: Misbehaving, out: Path
) -> None:
    """SIGTERM and SIGINT end a call at once that waits for an answer or for an attempt; the next one continues."""
    service.misbehave(slow(0.03), 0)
    service.misbehave(together(concurrency), *range(1, 1 + concurrency))
    service.misbehave(reply, *range(22, 30))
    process = command.start("--concurrency", str(concurrency), "--retry-wait", "30", "--request-timeout", "300")
    service.wait_for(lambda service: 21 + concurrency in service.pages)
    process.send_signal(signum)
    stdout, stderr = process.communicate(timeout=20)  # of waits of 30 s and more
    assert process.returncode == 128 + signum
    [line] = stderr.decode().splitlines()
    assert line.startswith(f"owm-producer: stopped by {signum.name}")
    assert max(Counter(service.pages).values()) == 1, "a stop is no reason to try again"
    report = json.loads(stdout)
    assert not report["complete"]
    done = command.next_page()
    assert report["extracted"] == 100 * done >= 1000
    assert report["pending"] == report["extracted"] - len(delivered(out))
    service.heal()
    service.requests.clear()
    with SqliteOutbox(command.file) as outbox:
        ending = produce(service, outbox, out)
    assert (ending.code, ending.line, ending.report.run_id) == (0, "", report["run_id"])
    assert sorted(page for page in service.pages if page is not None) == list(range(done, 31))
    assert ids_in(out) == ALL


# Interrupted at so many moments, from the first request on: within Python's own locks, too.
_MOMENTS = """
import random, signal, sys
from pathlib import Path
from owm_outbox import OutboxRelay, RunIncomplete, Stopped
from owm_outbox.jobs.owm import OwmJob
from owm_outbox.stop import Stop
from owm_outbox_backends.jsonl import JsonLinesSink
from owm_outbox_backends.memory import MemoryOutbox

url, concurrency, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
moments = random.Random(seed)
job = OwmJob(OwmJob.Options(api_url=url, api_limit=1, concurrency=concurrency, retry_wait=0.001))
for number in range(150):
    print(number, flush=True)
    stop = Stop()
    with stop.on_signals(signal.SIGALRM):
        signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.001, 0.02))
        try:
            OutboxRelay(MemoryOutbox(), JsonLinesSink(Path("/dev/null")), stop=stop).run(job)
        except Stopped:
            continue
        except RunIncomplete as error:
            assert isinstance(error.__cause__, Stopped), error
            continue
    sys.exit("it was not stopped")
print("done", flush=True)
"""


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_signal_at_any_moment_ends_a_run(concurrency: int, seed: int, service: Misbehaving) -> None:
    """Whatever the process does when a signal comes, the run ends: no lock stays held that its end waits for."""
    service.misbehave(status(503), 3, 40)
    done = subprocess.run(
        [sys.executable, "-c", _MOMENTS, service.url, str(concurrency), str(seed)],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "done"), done.stderr


# -- under other circumstances


@pytest.fixture(params=["memory", "sqlite"])
def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outbox]:
    """Give an outbox of each kind."""
    with MemoryOutbox() if request.param == "memory" else SqliteOutbox(tmp_path / "tasks.db") as outbox:
        yield outbox


def test_another_limit_starts_over_within_the_run(outbox: Outbox, service: Misbehaving, out: Path) -> None:
    """Page numbers mean something else under another limit: all pages are read again, nothing is delivered twice."""
    service.misbehave(status(500), 7)
    first = produce(service, outbox, out)
    assert (first.code, first.report.missing) == (75, [7])
    service.heal()
    service.requests.clear()
    second = produce(service, outbox, out, api_limit=250)
    assert (second.code, second.report.run_id, second.report.resumed) == (0, first.report.run_id, True)
    assert sorted(page for page in service.pages if page is not None) == list(range(13))
    assert second.report.duplicates == COUNT - 100
    assert ids_in(out) == ALL


def test_another_address_starts_over_within_the_run(outbox: Outbox, service: Misbehaving, out: Path) -> None:
    """Another API may have other pages: all of its are read, and nothing is delivered twice."""
    service.misbehave(status(500), 7)
    first = produce(service, outbox, out)
    assert first.code == 75
    with misbehaving(made_up(COUNT + 50)) as other:
        second = produce(other, outbox, out)
        assert len(other.requests) == 32
    assert (second.code, second.report.run_id, second.report.expected) == (0, first.report.run_id, COUNT + 50)
    assert ids_in(out) == [*ALL, *range(COUNT + 1, COUNT + 51)]


def test_a_checkpoint_of_another_kind_starts_over(outbox: Outbox, service: Misbehaving, out: Path) -> None:
    """A checkpoint that this version cannot read is as good as none: nothing is lost, nothing comes twice."""
    service.misbehave(status(500), 7)
    first = produce(service, outbox, out)
    with outbox.lock():
        outbox.append([], run=outbox.start_run("owm").id, checkpoint=b"\x80 page 12")
    service.heal()
    second = produce(service, outbox, out)
    assert (second.code, second.report.run_id) == (0, first.report.run_id)
    assert ids_in(out) == ALL


class _Clock:
    now = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)

    def aware(self) -> datetime:
        return self.now

    def seconds(self) -> float:
        return self.now.timestamp()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize(("minutes", "resumed"), [(59, True), (61, False)])
def test_a_run_is_resumed_within_an_hour(
    minutes: int, resumed: bool, kind: str, service: Misbehaving, tmp_path: Path, out: Path
) -> None:
    """An incomplete run is gone on with for an hour; after that it is closed, and a new one enqueues every city."""
    clock = _Clock()
    service.misbehave(status(500), 7)
    with (
        MemoryOutbox(now=clock.aware)
        if kind == "memory"
        else SqliteOutbox(tmp_path / "tasks.db", now=clock.seconds) as outbox
    ):
        first = produce(service, outbox, out)
        clock.now += timedelta(minutes=minutes)
        service.heal()
        service.requests.clear()
        second = produce(service, outbox, out)
        states = [(known.id, known.state) for known in outbox.stats().runs]
    assert (first.code, second.code) == (75, 0)
    assert second.report.resumed is resumed
    if resumed:
        assert service.pages == [7]
        assert states == [(first.report.run_id, "complete")]
        assert ids_in(out) == ALL
    else:
        assert len(service.pages) == 31
        assert states == [(second.report.run_id, "complete"), (first.report.run_id, "incomplete")]
        assert ids_in(out) == sorted([*ALL, *ALL[:700], *ALL[800:]])
        assert len({task["task_id"] for task in delivered(out)}) == 2 * COUNT - 100


@pytest.mark.parametrize("args", [("--fresh",), ("--resume-within", "0")])
def test_a_run_can_be_given_up(args: tuple[str, ...], command: Command, service: Misbehaving, out: Path) -> None:
    """--fresh closes the unfinished run, however young, and starts a new one that enqueues every city."""
    service.misbehave(status(500), 7)
    with SqliteOutbox(command.file) as outbox:
        first = produce(service, outbox, out)
    service.heal()
    outcome = command.run(*args)
    assert outcome.code == 0
    assert (outcome.report["resumed"], outcome.report["delivered"]) == (False, COUNT)
    assert outcome.report["run_id"] != first.report.run_id
    assert ids_in(out) == sorted([*ALL, *ALL[:700], *ALL[800:]])


def test_a_run_may_take_many_calls(outbox: Outbox, service: Misbehaving, out: Path) -> None:
    """Whichever pages fail in whichever call, no page that came is fetched again; the last one completes the run."""
    run_ids = set()
    bad = set(range(1, 30, 6))
    while bad:
        service.heal()
        service.misbehave(status(500), *bad)
        service.requests.clear()
        ending = produce(service, outbox, out, concurrency=1)
        assert (ending.code, ending.report.missing) == (75, sorted(bad))
        run_ids.add(ending.report.run_id)
        bad -= set(sorted(bad)[:2])
        outbox.state.set(f"breaker:{service.url}/cities/", b"{}")  # as if time had passed
    service.heal()
    ending = produce(service, outbox, out)
    assert ending.code == 0
    assert run_ids == {ending.report.run_id}
    assert ending.report.duplicates == 0
    assert ids_in(out) == ALL
