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
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from owm_outbox import (
    MemoryState,
    Outbox,
    OutboxRelay,
    Run,
    RunIncomplete,
    SourceUnavailable,
    StateStore,
    Stop,
    Stopped,
)
from owm_outbox.jobs.owm import OwmIngestionTask, OwmJob
from owm_outbox.paging.breaker import Breaker, state_name
from owm_outbox_backends.jsonl import JsonLinesSink
from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import run
from support.misbehaving import (
    PATIENCE,
    Exchange,
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


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Outbox]:
    """Give an outbox as a run has it."""
    with SqliteOutbox(tmp_path / "tasks.db") as outbox:
        yield outbox


@pytest.fixture
def store() -> StateStore:
    """Give a place for the state."""
    return MemoryState()


class Clock:
    """Seconds since the epoch, as the test wants them."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        """Return them."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Give a clock that stands still."""
    return Clock()


def _breaker(store: StateStore, clock: Callable[[], float] = time.time, *, token: str | None = None) -> Breaker:
    return Breaker(store, NAME, token, fail_max=FAIL_MAX, open_for=OPEN_FOR, now=clock)


def _count(store: StateStore, clock: Callable[[], float], *outcomes: bool) -> None:
    """Count these outcomes (``True`` is a failure), each as if in a process of its own."""
    for failed in outcomes:
        _breaker(store, clock).count(failed=failed)


def _is_open(store: StateStore, clock: Callable[[], float], *, token: str | None = None) -> bool:
    try:
        _breaker(store, clock, token=token).check()
    except SourceUnavailable:
        return True
    return False


def _age(outbox: Outbox, seconds: float, service: Misbehaving) -> None:
    """Let the stored state be this much older."""
    name = f"breaker:{service.url}/cities/"
    state: dict[str, Any] = json.loads(outbox.state.get(name) or b"")
    state["opened_at"] -= seconds
    state["failures"] = [moment - seconds for moment in state["failures"]]
    outbox.state.set(name, json.dumps(state).encode())


def _state(outbox: Outbox, service: Misbehaving) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(outbox.state.get(f"breaker:{service.url}/cities/") or b"{}")
    return {"state": "closed", "failures": []} | found


# -- counting


def test_the_20th_failure_in_a_row_opens_it(store: StateStore, clock: Clock) -> None:
    """19 failures are let pass; the 20th opens it, and the error says until when and what to do."""
    _count(store, clock, *[True] * 19)
    assert not _is_open(store, clock)
    breaker = _breaker(store, clock)
    breaker.count(failed=True, reason="it answered 500")
    with pytest.raises(SourceUnavailable) as caught:
        breaker.check()
    assert str(caught.value) == (
        f"{NAME} failed 20 requests in a row (it answered 500): the circuit breaker is open, and nothing is sent until "
        "2027-01-15 08:10:00 UTC; run again then"
    )
    assert caught.value.exit_code == 75


def test_a_success_in_between_starts_the_count_from_zero(store: StateStore, clock: Clock) -> None:
    """Only failures in a row count."""
    _count(store, clock, *[True] * 19, False, *[True] * 19)
    assert not _is_open(store, clock)
    _count(store, clock, True)
    assert _is_open(store, clock)


def test_the_state_outlives_the_process(tmp_path: Path, clock: Clock) -> None:
    """Failures, and an open breaker, are found again when the outbox is opened again."""
    for _ in range(4):
        with SqliteOutbox(tmp_path / "tasks.db") as outbox:
            assert not _is_open(outbox.state, clock)
            breaker = _breaker(outbox.state, clock)
            for _ in range(5):
                breaker.count(failed=True)
    with SqliteOutbox(tmp_path / "tasks.db") as outbox:
        assert _is_open(outbox.state, clock)


def test_it_counts_right_from_many_threads(outbox: Outbox) -> None:
    """19 failures from as many threads at once are 19; one more opens it."""
    breaker, start = _breaker(outbox.state), threading.Barrier(19)

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
    with pytest.raises(SourceUnavailable):
        breaker.check()


@pytest.mark.parametrize(
    "saved", [b"", b"nonsense", b"[]", b'{"state":7}', b'{"state":"ajar"}', b'{"failures":19,"state":"closed"}']
)
def test_a_state_that_cannot_be_read_counts_from_zero(saved: bytes, store: StateStore, clock: Clock) -> None:
    """A state of another version, or a damaged one, does not keep a run from starting."""
    store.set(f"breaker:{NAME}", saved)
    assert not _is_open(store, clock)
    _count(store, clock, *[True] * 20)
    assert _is_open(store, clock)


def test_a_state_of_version_0_1_is_read(store: StateStore, clock: Clock) -> None:
    """An API that an older version left alone is left alone."""
    saved = {"state": "open", "failures": [clock.now - 9] * 20, "opened_at": clock.now - 9, "reason": "down"}
    store.set(f"breaker:{NAME}", json.dumps(saved).encode())
    assert _is_open(store, clock)


# -- whose it is


@pytest.mark.parametrize(
    ("url", "token"),
    [
        ("http://other/cities/", None),
        (NAME, "hush-4f1e"),
        (NAME, ""),
        ("http://ada:hush-4f1e@api/cities/", None),
        ("http://api:81/cities/", None),
    ],
    ids=["address", "token", "empty token", "password", "port"],
)
def test_each_address_and_token_has_its_own(url: str, token: str | None, store: StateStore, clock: Clock) -> None:
    """Another address or another token starts with a closed breaker; neither token nor password is stored."""
    _count(store, clock, *[True] * 20)
    other = Breaker(store, url, token, fail_max=FAIL_MAX, open_for=OPEN_FOR, now=clock)
    other.check()
    for _ in range(20):
        other.count(failed=True)
    with pytest.raises(SourceUnavailable) as caught:
        Breaker(store, url, token, fail_max=FAIL_MAX, open_for=OPEN_FOR, now=clock).check()
    assert "hush" not in state_name(url, token) + str(caught.value)
    assert state_name(url, token) != state_name(url, "another")


def test_a_new_token_is_tried_at_once(file: Outbox, service: Misbehaving, tmp_path: Path) -> None:
    """20 refusals of a wrong token keep back no request with the right one, and the outbox names neither."""

    def guarded(exchange: Exchange) -> None:
        (good if exchange.request.headers.get("Authorization") == "Bearer right-4f1e" else status(401))(exchange)

    service.misbehave(guarded)
    while "circuit breaker is open" not in produce(service, file, tmp_path / "out", api_token="wrong-4f1e").line:  # noqa: S106
        pass
    assert produce(service, file, tmp_path / "out", api_token="right-4f1e").code == 0  # noqa: S106
    assert all(b"-4f1e" not in path.read_bytes() for path in tmp_path.iterdir())


# -- the clock


@pytest.mark.parametrize(("seconds", "opens"), [(0, True), (599, True), (601, False), (86_400, False)])
def test_failures_are_forgotten_after_600_s(seconds: float, opens: bool, store: StateStore, clock: Clock) -> None:
    """Failures of the last 600 s count, those of last night do not."""
    _count(store, clock, *[True] * 19)
    clock.now += seconds
    _count(store, clock, True)
    assert _is_open(store, clock) == opens


def test_each_failure_is_forgotten_by_its_own_age(store: StateStore, clock: Clock) -> None:
    """Failures older than 600 s do not count, however recent the last one is."""
    _count(store, clock, *[True] * 10)
    clock.now += 500
    _count(store, clock, *[True] * 9)
    clock.now += 200
    _count(store, clock, *[True] * 10)
    assert not _is_open(store, clock)
    _count(store, clock, True)
    assert _is_open(store, clock)


def test_a_few_failures_now_and_then_never_open_it(store: StateStore, clock: Clock) -> None:
    """Five failed requests every nine minutes, hour after hour, are never 20 within 600 s."""
    for _ in range(30):
        assert not _is_open(store, clock)
        _count(store, clock, *[True] * 5)
        clock.now += 540


@pytest.mark.parametrize("ahead", [1.0, 86_400.0, 74 * 365 * 86_400.0], ids=["a second", "a day", "74 years"])
def test_a_clock_that_was_ahead_does_not_keep_it_open(ahead: float, store: StateStore, clock: Clock) -> None:
    """A breaker that opened in what is now the future lets a request through; that one closes it, or opens it now."""
    clock.now += ahead
    _count(store, clock, *[True] * 20)
    assert _is_open(store, clock)
    clock.now -= ahead
    assert not _is_open(store, clock)
    _count(store, clock, True)
    assert _is_open(store, clock)
    clock.now += OPEN_FOR
    assert not _is_open(store, clock)
    _count(store, clock, False, *[True] * 19)
    assert not _is_open(store, clock)


def test_failures_in_the_future_do_not_count(store: StateStore, clock: Clock) -> None:
    """19 failures under a clock that was a day ahead, and one now, are one."""
    clock.now += 86_400
    _count(store, clock, *[True] * 19)
    clock.now -= 86_400
    _count(store, clock, *[True] * 19)
    assert not _is_open(store, clock)
    _count(store, clock, True)
    assert _is_open(store, clock)


def test_a_clock_set_back_while_it_is_open_closes_it(store: StateStore, clock: Clock) -> None:
    """Also within one process nothing waits for a time that was in the future when it was written."""
    breaker = _breaker(store, clock)
    for _ in range(20):
        breaker.count(failed=True)
    clock.now -= 3600
    breaker.check()
    breaker.count(failed=False)
    assert not _is_open(store, clock)


def test_a_run_after_a_clock_that_was_ahead_completes(file: Outbox, service: Misbehaving, tmp_path: Path) -> None:
    """An API that was down while the clock was a day ahead is read as soon as it is up, by the right clock."""
    service.misbehave(status(500))
    while len(service.requests) < 20:
        produce(service, file, tmp_path / "out", concurrency=1)
    _age(file, -86_400, service)
    service.heal()
    assert produce(service, file, tmp_path / "out").code == 0
    assert _state(file, service)["state"] == "closed"


# -- the trial


def test_it_stays_open_for_600_s(store: StateStore, clock: Clock) -> None:
    """It is open for 600 s from the last failure on."""
    _count(store, clock, *[True] * 20)
    clock.now += 599
    assert _is_open(store, clock)
    clock.now += 1
    assert not _is_open(store, clock)


def test_after_600_s_a_success_closes_it(store: StateStore, clock: Clock) -> None:
    """Once the time is over a request may be made; its success closes the breaker, and the count starts from zero."""
    _count(store, clock, *[True] * 20)
    clock.now += OPEN_FOR
    _count(store, clock, False, *[True] * 19)
    assert not _is_open(store, clock)


def test_after_600_s_a_failure_opens_it_again(store: StateStore, clock: Clock) -> None:
    """If the trial fails, the breaker is open for another 600 s."""
    _count(store, clock, *[True] * 20)
    clock.now += OPEN_FOR
    assert not _is_open(store, clock)
    _count(store, clock, True)
    assert _is_open(store, clock)
    clock.now += OPEN_FOR - 1
    assert _is_open(store, clock)
    clock.now += 1
    assert not _is_open(store, clock)


def test_requests_sent_before_it_opened_change_nothing(store: StateStore, clock: Clock) -> None:
    """The outcomes of what was under way when it opened are not counted: it is open, and stays so just as long."""
    breaker = _breaker(store, clock)
    for _ in range(20):
        breaker.count(failed=True)
    clock.now += 100
    breaker.count(failed=True)
    breaker.count(failed=False)
    clock.now += 499
    assert _is_open(store, clock)
    clock.now += 1
    assert not _is_open(store, clock)


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
    fetching: list[threading.Thread] = []
    with stop.on_signals(signal.SIGUSR1), ThreadPoolExecutor(1) as pool:

        def interrupt() -> None:
            service.wait_for(lambda service: len(service.requests) == 10)
            fetching.extend(thread for thread in threading.enumerate() if thread.name.startswith("prefetch"))
            os.kill(os.getpid(), signal.SIGUSR1)

        pool.submit(interrupt)
        with pytest.raises(RunIncomplete) as caught:
            relay.run(job)
    assert isinstance(caught.value.__cause__, Stopped)
    assert len(fetching) >= 8
    for thread in fetching:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert _state(file, service) == {"state": "closed", "failures": []}


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
    assert _state(file, service)["state"] == "open"
    _age(file, OPEN_FOR + 1, service)
    service.heal()
    ending = produce(service, file, tmp_path / "out")
    assert (ending.code, ending.report.run_id) == (0, first.report.run_id)
    assert ids_in(tmp_path / "out") == list(range(1, 251))
    assert _state(file, service)["state"] == "closed"


@pytest.mark.parametrize("reply", [status(500), reset, hang], ids=["500", "reset", "hang"])
def test_a_trial_is_one_request(reply: Reply, file: Outbox, service: Misbehaving, tmp_path: Path) -> None:
    """If the API is still down after 600 s, it gets one request, whatever the concurrency, and 600 s more."""
    service.misbehave(status(500))
    while len(service.requests) < 20:
        produce(service, file, tmp_path / "out", concurrency=1)
    _age(file, OPEN_FOR + 1, service)
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
        assert len(service.requests) == 21 + 5 * len(bad) + 20
        _age(file, OPEN_FOR + 1, service)
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

    run_ = Run.of(file.start_run(job.name), file.state, Stop())
    pages = job.pages(run_)
    with closing(pages):  # type: ignore[type-var]  # a generator
        next(pages)
        service.wait_for(lambda _: failed() >= 12)
        threads = {thread for thread in threading.enumerate() if thread.name.startswith("prefetch")} - before
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert 12 <= failed() < 20
    assert len(_state(file, service)["failures"]) <= failed()


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
