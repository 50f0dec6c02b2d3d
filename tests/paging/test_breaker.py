"""After 20 failed requests in a row, however many processes made them, the API is left alone for 600 s."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from owm_outbox import ApiUnavailable, Outbox, OutboxRelay, Stopped
from owm_outbox.breaker import Breaker, NotesStorage
from owm_outbox.jobs.owm import OwmIngestionTask, OwmJob
from owm_outbox.stop import Stop
from owm_outbox_backends.jsonl import JsonLinesSink
from owm_outbox_backends.memory import MemoryOutbox
from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import run
from support.misbehaving import (
    PATIENCE,
    Misbehaving,
    Reply,
    delivered,
    good,
    hang,
    ids_in,
    misbehaving,
    produce,
    record,
    reset,
    slow,
    status,
    together,
)
from support.weather import made_up

NAME = "http://api/cities/"
FAIL_MAX, OPEN_FOR = 20, 600.0


@pytest.fixture(params=["memory", "sqlite"])
def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outbox]:
    """Give an outbox of each kind, whose notes keep the breaker's state."""
    with MemoryOutbox() if request.param == "memory" else SqliteOutbox(tmp_path / "tasks.db") as outbox:
        yield outbox


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Outbox]:
    """Give an outbox as a run has it."""
    with SqliteOutbox(tmp_path / "tasks.db") as outbox:
        yield outbox


@pytest.fixture
def service() -> Iterator[Misbehaving]:
    """Serve 250 cities."""
    with misbehaving(made_up(250)) as service:
        yield service


def _breaker(outbox: Outbox) -> Breaker:
    return Breaker(outbox.notes, NAME, fail_max=FAIL_MAX, open_for=OPEN_FOR)


def _count(outbox: Outbox, *outcomes: bool) -> None:
    """Count these outcomes (``True`` is a failure), each as if in a process of its own."""
    for failed in outcomes:
        _breaker(outbox).count(failed=failed)


def _is_open(outbox: Outbox) -> bool:
    try:
        _breaker(outbox).check()
    except ApiUnavailable:
        return True
    return False


def _age(outbox: Outbox, seconds: float, name: str = NAME) -> None:
    """Let the stored state be so much older."""
    saved = outbox.notes.get(f"breaker:{name}")
    assert saved is not None
    state: dict[str, Any] = json.loads(saved)
    for field, value in state.items():
        if isinstance(value, float) and value:
            state[field] = value - seconds
        elif isinstance(value, list):
            state[field] = [moment - seconds for moment in value]
    outbox.notes.set(f"breaker:{name}", json.dumps(state).encode())


# -- counting


def test_the_20th_failure_in_a_row_opens_it(outbox: Outbox) -> None:
    """19 failures are let pass; the 20th opens it, and the error says until when and what to do."""
    _count(outbox, *[True] * 19)
    assert not _is_open(outbox)
    _count(outbox, True)
    with pytest.raises(ApiUnavailable, match="circuit breaker is open") as caught:
        _breaker(outbox).check()
    closes = datetime.strptime(str(caught.value).partition("until ")[2][:19], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    left = closes - datetime.now(UTC)
    assert timedelta(seconds=OPEN_FOR - PATIENCE) < left <= timedelta(seconds=OPEN_FOR)
    assert NAME in str(caught.value)
    assert "call again" in str(caught.value)
    assert caught.value.exit_code == 75


def test_a_success_in_between_starts_the_count_anew(outbox: Outbox) -> None:
    """Only failures in a row count."""
    _count(outbox, *[True] * 19, False, *[True] * 19)
    assert not _is_open(outbox)
    _count(outbox, True)
    assert _is_open(outbox)


def test_apis_are_told_apart(outbox: Outbox) -> None:
    """Each address has a breaker of its own."""
    _count(outbox, *[True] * 20)
    assert _is_open(outbox)
    Breaker(outbox.notes, "http://other/cities/", fail_max=FAIL_MAX, open_for=OPEN_FOR).check()


def test_the_state_outlives_the_process(tmp_path: Path) -> None:
    """Failures, and an open breaker, are found again when the outbox is opened anew."""
    for _ in range(4):
        with SqliteOutbox(tmp_path / "tasks.db") as outbox:
            assert not _is_open(outbox)
            breaker = _breaker(outbox)
            for _ in range(5):
                breaker.count(failed=True)
    with SqliteOutbox(tmp_path / "tasks.db") as outbox:
        assert _is_open(outbox)


def test_it_counts_right_from_many_threads(outbox: Outbox) -> None:
    """19 failures from as many threads at once are 19; one more opens it."""
    breaker, start = _breaker(outbox), threading.Barrier(19)

    def fail() -> None:
        start.wait(PATIENCE)
        breaker.count(failed=True)

    threads = [threading.Thread(target=fail) for _ in range(19)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    breaker.check()
    breaker.count(failed=True)
    with pytest.raises(ApiUnavailable):
        breaker.check()


@pytest.mark.parametrize("note", [b"", b"nonsense", b"[]", b'{"state":7}', b'{"failures":19,"state":"closed"}'])
def test_a_state_that_cannot_be_read_is_as_good_as_none(note: bytes, outbox: Outbox) -> None:
    """A note of another version, or a damaged one, does not keep a run from starting: the count begins anew."""
    outbox.notes.set(f"breaker:{NAME}", note)
    assert not _is_open(outbox)
    _count(outbox, *[True] * 20)
    assert _is_open(outbox)


# -- forgetting


class _Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def _stored(outbox: Outbox, clock: Callable[[], float], name: str = NAME) -> NotesStorage:
    return NotesStorage(outbox.notes, f"breaker:{name}", forget=OPEN_FOR, now=clock)


@pytest.mark.parametrize(("seconds", "counted"), [(0, 19), (599, 19), (601, 0), (86_400, 0)])
def test_failures_are_forgotten_after_600_s(seconds: float, counted: int, outbox: Outbox) -> None:
    """Failures of the last 600 s count, those of last night do not."""
    clock = _Clock()
    for _ in range(19):
        _stored(outbox, clock).increment_counter()
    clock.now += seconds
    assert _stored(outbox, clock).counter == counted


def test_each_failure_is_forgotten_by_its_own_age(outbox: Outbox) -> None:
    """Failures older than 600 s do not count, however recent the last one is."""
    clock = _Clock()
    for _ in range(10):
        _stored(outbox, clock).increment_counter()
    clock.now += 500
    for _ in range(9):
        _stored(outbox, clock).increment_counter()
    clock.now += 200
    assert _stored(outbox, clock).counter == 9


def test_a_few_failures_now_and_then_never_open_it(outbox: Outbox) -> None:
    """Five failed requests every nine minutes, hour after hour, are never 20 within 600 s."""
    for _ in range(30):
        assert not _is_open(outbox)
        _count(outbox, *[True] * 5)
        _age(outbox, 540)


def test_what_is_open_is_not_forgotten(outbox: Outbox) -> None:
    """Opening is for 600 s from the last failure on, whatever becomes of the count."""
    _count(outbox, *[True] * 20)
    _age(outbox, 590)
    assert _is_open(outbox)


# -- the trial


def test_after_600_s_a_success_closes_it(outbox: Outbox) -> None:
    """Once the time is over a request may be made; its success closes the breaker, and the count begins anew."""
    _count(outbox, *[True] * 20)
    _age(outbox, OPEN_FOR + 1)
    assert not _is_open(outbox)
    _count(outbox, False)
    assert _stored(outbox, time.time).state == "closed"
    _count(outbox, *[True] * 19)
    assert not _is_open(outbox)


def test_after_600_s_a_failure_opens_it_again(outbox: Outbox) -> None:
    """If the trial fails, the breaker is open for another 600 s."""
    _count(outbox, *[True] * 20)
    _age(outbox, OPEN_FOR + 1)
    assert not _is_open(outbox)
    _count(outbox, True)
    assert _is_open(outbox)
    _age(outbox, OPEN_FOR - 10)
    assert _is_open(outbox)
    _age(outbox, 11)
    assert not _is_open(outbox)


# -- in a run


@pytest.mark.parametrize("reply", [reset, status(500), status(429)], ids=["reset", "500", "429"])
def test_an_api_that_is_down_gets_20_requests_however_many_runs(
    reply: Reply, file: Outbox, service: Misbehaving, tmp_path: Path
) -> None:
    """An API that is down is left alone after 20 failed requests; a run then sends none and says until when."""
    service.misbehave(reply)
    runs = 0
    while len(service.requests) < 20:
        runs += 1
        assert produce(service, file, tmp_path / "out", concurrency=1).code == 75
    assert runs > 1
    assert len(service.requests) == 20
    for _ in range(2):
        ending = produce(service, file, tmp_path / "out", concurrency=16)
        assert ending.code == 75
        assert "circuit breaker is open" in ending.line
        assert "UTC" in ending.line
        assert not ending.report.complete
    assert len(service.requests) == 20


def test_threads_add_no_more_than_what_is_under_way(file: Outbox, service: Misbehaving, tmp_path: Path) -> None:
    """With 8 requests at once an API that fails in the middle of a run gets 20, and the 7 already on their way."""
    service.records = [service.records[0]] * 10_000
    service.misbehave(slow(0.05), 0)
    service.misbehave(together(8, status(500)), *range(1, 100))
    ending = produce(service, file, tmp_path / "out", concurrency=8)
    assert ending.code == 75
    assert "circuit breaker is open" in ending.line
    assert 20 <= len(service.requests) - 1 <= 20 + 7
    assert service.most_at_once == 8


def test_nobody_counts_once_a_run_is_over(file: Outbox, service: Misbehaving, tmp_path: Path) -> None:
    """Requests that are still under way when a run ends write nothing any more: the outbox may be another one's."""
    service.misbehave(slow(0.05), 0)
    service.misbehave(hang, *range(2, 100))
    service.records = [record(number) for number in range(1, 5001)]
    stop = Stop()
    relay = OutboxRelay(file, JsonLinesSink(tmp_path / "out"), stop=stop)
    job = OwmJob(OwmJob.Options(api_url=service.url, concurrency=8, retry_wait=0.001))
    with stop.on_signals(signal.SIGUSR1), ThreadPoolExecutor(1) as pool:

        def interrupt() -> None:
            service.wait_for(lambda service: len(service.requests) == 10)
            os.kill(os.getpid(), signal.SIGUSR1)

        pool.submit(interrupt)
        with pytest.raises(Stopped):
            relay.run(job)
    name = f"breaker:{service.url}/cities/"
    before = file.notes.get(name)
    fetching = [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    assert fetching
    service.heal()  # lets the clients go that were kept waiting: eight failures
    for thread in fetching:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert file.notes.get(name) == before


def test_a_run_that_may_send_nothing_delivers_what_is_left(file: Outbox, service: Misbehaving, tmp_path: Path) -> None:
    """While the breaker is open, tasks that an earlier run left in the outbox are delivered all the same."""
    service.misbehave(status(500))
    while len(service.requests) < 20:
        produce(service, file, tmp_path / "out", concurrency=1)
    service.heal()
    file.append([OwmIngestionTask(uuid4(), 1.0, 2.0, city_id) for city_id in range(900, 910)])
    ending = produce(service, file, tmp_path / "out")
    assert (ending.code, ending.report.delivered, ending.report.pending) == (75, 10, 0)
    assert ids_in(tmp_path / "out") == list(range(900, 910))
    assert len(service.requests) == 20


def test_when_the_time_is_over_a_run_completes(file: Outbox, service: Misbehaving, tmp_path: Path) -> None:
    """After 600 s a healthy API is read to the end, under the same run id, and the breaker is closed."""
    service.misbehave(status(500))
    while len(service.requests) < 20:
        first = produce(service, file, tmp_path / "out", concurrency=1)
    name = f"{service.url}/cities/"
    assert _stored(file, time.time, name).state == "open"
    _age(file, OPEN_FOR + 1, name)
    service.heal()
    ending = produce(service, file, tmp_path / "out")
    assert (ending.code, ending.report.run_id) == (0, first.report.run_id)
    assert ids_in(tmp_path / "out") == list(range(1, 251))
    assert _stored(file, time.time, name).state == "closed"


@pytest.mark.parametrize("reply", [status(500), reset, hang], ids=["500", "reset", "hang"])
def test_a_trial_is_one_request(reply: Reply, file: Outbox, service: Misbehaving, tmp_path: Path) -> None:
    """If the API is still down after 600 s, it gets one request, whatever the concurrency, and 600 s more."""
    service.misbehave(status(500))
    while len(service.requests) < 20:
        produce(service, file, tmp_path / "out", concurrency=1)
    _age(file, OPEN_FOR + 1, f"{service.url}/cities/")
    service.heal()
    service.misbehave(reply)
    for _ in range(2):
        ending = produce(service, file, tmp_path / "out", concurrency=16, request_timeout=0.2)
        assert (ending.code, len(service.requests)) == (75, 21)
        assert "circuit breaker is open" in ending.line


def test_a_healthy_run_in_between_starts_the_count_anew(file: Outbox, service: Misbehaving, tmp_path: Path) -> None:
    """Three failed runs, a good one and three failed ones are never 20 failures in a row."""
    for _ in range(2):
        service.misbehave(reset)
        for _ in range(3):
            assert "circuit breaker" not in produce(service, file, tmp_path / "out", concurrency=1).line
        service.heal()
        assert produce(service, file, tmp_path / "out", concurrency=1).code == 0
    assert len(delivered(tmp_path / "out")) == 500


def test_an_open_breaker_names_what_is_missing(file: Outbox, service: Misbehaving, tmp_path: Path) -> None:
    """If the breaker opens half-way, the pages that failed and those never asked for are all in the report."""
    service.records = [*service.records * 4][:1000]
    service.misbehave(status(500), *range(3, 10))
    ending = produce(service, file, tmp_path / "out", concurrency=1)
    assert ending.code == 75
    assert ending.report.missing == list(range(3, 10))
    assert len(service.requests) == 3 + 20


def test_pages_that_fail_one_by_one_open_it_at_the_end(file: Outbox, service: Misbehaving, tmp_path: Path) -> None:
    """Pages that fail between good ones open nothing; tried again in a row they do, and all are named."""
    bad = range(0, 30, 3)
    cities = made_up(3000)
    with misbehaving(cities) as service:
        service.misbehave(status(500), *bad)
        ending = produce(service, file, tmp_path / "out", concurrency=1)
        assert ending.code == 75
        assert ending.report.missing == list(bad)
        assert len(service.requests) == 20 + 5 * len(bad) + 20
        _age(file, OPEN_FOR + 1, f"{service.url}/cities/")
        service.heal()
        assert produce(service, file, tmp_path / "out").code == 0
    assert ids_in(tmp_path / "out") == list(range(1, 3001))


def test_requests_that_were_never_sent_are_no_failures(file: Outbox, service: Misbehaving) -> None:
    """Pages that wait for their turn when a run ends are not counted against the API."""
    service.records = [service.records[0]] * 10_000
    service.misbehave(slow(0.05), 0)
    service.misbehave(good, 1, 2, 3, 4)
    service.misbehave(status(503), *range(5, 12), times=1)  # from 8 at once down to 1
    service.misbehave(slow(0.05, status(500)))
    job = OwmJob(OwmJob.Options(api_url=service.url, retry_wait=0.001, concurrency=8))
    before = set(threading.enumerate())

    def failed() -> int:
        return sum(page is not None and page > 4 for page in service.pages)

    pages = job.pages(file.start_run(job))
    with closing(pages):  # type: ignore[type-var]  # a generator
        next(pages)
        service.wait_for(lambda _: failed() >= 12)
        threads = {thread for thread in threading.enumerate() if thread.name.startswith("prefetch")} - before
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert 12 <= failed() < 20
    assert _stored(file, time.time, f"{service.url}/cities/").counter <= failed()


def test_the_command_keeps_it_too(service: Misbehaving, tmp_path: Path) -> None:
    """The call that makes the 20th failed request ends with 75; the next sends none, and says until when."""
    service.misbehave(reset)
    for _ in range(3):
        with SqliteOutbox(tmp_path / "tasks.db") as outbox:
            produce(service, outbox, tmp_path / "out")
    args = ("--outbox", f"sqlite:///{tmp_path}/tasks.db", "--sink", f"jsonl:{tmp_path}/out", "--retry-wait", "0.001")
    assert run("owm-producer", "--api-url", service.url, *args).code == 75
    assert len(service.requests) == 20
    outcome = run("owm-producer", "--api-url", service.url, *args)
    assert (outcome.code, outcome.out, len(service.requests)) == (75, "", 20)
    assert "circuit breaker is open" in outcome.line
    assert "UTC" in outcome.line
