"""An API that is down is left alone, over all runs of an outbox; what is under way when a run ends counts nothing."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from owm_outbox import (
    Outbox,
    OutboxRelay,
    Run,
    RunIncomplete,
    Stop,
    Stopped,
)
from owm_outbox.jobs.owm import OwmIngestionTask, OwmJob
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

OPEN_FOR = 600.0


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Outbox]:
    """Give an outbox as a run has it."""
    with SqliteOutbox(tmp_path / "tasks.db") as outbox:
        yield outbox


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


@pytest.mark.slow
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


def test_a_new_token_is_tried_at_once(file: Outbox, service: Misbehaving, tmp_path: Path) -> None:
    """20 refusals of a wrong token keep back no request with the right one, and the outbox names neither."""

    def guarded(exchange: Exchange) -> None:
        (good if exchange.request.headers.get("Authorization") == "Bearer right-hush" else status(401))(exchange)

    service.misbehave(guarded)
    while "circuit breaker is open" not in produce(service, file, tmp_path / "out", api_token="wrong-hush").line:  # noqa: S106
        pass
    assert produce(service, file, tmp_path / "out", api_token="right-hush").code == 0  # noqa: S106
    assert all(b"-hush" not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_run_after_a_clock_that_was_ahead_completes(file: Outbox, service: Misbehaving, tmp_path: Path) -> None:
    """An API that was down while the clock was a day ahead is read as soon as it is up, by the right clock."""
    service.misbehave(status(500))
    while len(service.requests) < 20:
        produce(service, file, tmp_path / "out", concurrency=1)
    _age(file, -86_400, service)
    service.heal()
    assert produce(service, file, tmp_path / "out").code == 0
    assert _state(file, service)["state"] == "closed"
