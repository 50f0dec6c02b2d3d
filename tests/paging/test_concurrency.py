"""As many requests at once as allowed, pages in their order, and a stop that ends each wait."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from owm_outbox import Page, Run, Stopped
from owm_outbox.jobs.owm import OwmJob
from owm_outbox_backends.memory import MemoryOutbox

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
    slow,
    status,
    together,
    trickling_body,
)
from support.weather import made_up


@pytest.mark.parametrize("concurrency", [1, 4, 8, 16])
def test_never_more_requests_at_once_than_allowed(concurrency: int, out: Path) -> None:
    """Seen from a slow server, there are as many requests at once as allowed and never one more; all cities come."""
    with misbehaving(made_up(6000)) as service:
        service.misbehave(slow(0.03), 0)
        service.misbehave(together(concurrency), *range(1, 1 + concurrency))
        service.misbehave(slow(0.005))
        ending = produce(service, MemoryOutbox(), out, concurrency=concurrency)
        assert service.most_at_once == concurrency
        assert len(service.requests) == 61
    assert ending.code == 0
    assert ids_in(out) == list(range(1, 6001))


def test_pages_are_stored_in_their_order(out: Path) -> None:
    """However the answers overtake each other, tasks are stored and delivered in the order of the pages."""
    with misbehaving(made_up(3000)) as service:
        service.misbehave(slow(0.03), 0)
        service.misbehave(together(8), *range(1, 9))
        service.misbehave(slow(0.02), *range(9, 30, 3))
        assert produce(service, MemoryOutbox(), out, concurrency=8).code == 0
    assert [task["city_id"] for task in delivered(out)] == list(range(1, 3001))


@pytest.mark.slow
@pytest.mark.parametrize("code", [429, 503])
def test_an_overloaded_server_gets_fewer_requests_at_once(code: int, out: Path) -> None:
    """After a 429 or 503 half as many requests are made at once; after enough good answers as many as before."""
    with misbehaving(made_up(30_000)) as service:
        most: list[int] = []

        def noted(exchange: Exchange) -> None:
            most.append(service.most_at_once)
            service.most_at_once = 0
            good(exchange)

        service.misbehave(slow(0.03), 0)
        service.misbehave(together(8), *range(1, 8))
        service.misbehave(together(8, status(code)), 8, times=1)
        service.misbehave(noted, 16, 26, 200, 299)
        service.misbehave(together(8), *range(240, 248))
        service.misbehave(slow(0.005))
        ending = produce(service, MemoryOutbox(), out, concurrency=8)
    assert ending.code == 0
    assert most[0] == most[3] == 8
    assert most[1] <= 5, "half as many, and one more per 20 good answers"


def test_other_failures_do_not_slow_down(out: Path) -> None:
    """A 500 says nothing about load: as many requests are made at once as before."""
    with misbehaving(made_up(2000)) as service:
        service.misbehave(slow(0.03), 0)
        service.misbehave(status(500), 1, times=3)
        service.misbehave(together(8), *range(10, 18))
        service.misbehave(slow(0.005))
        assert produce(service, MemoryOutbox(), out, concurrency=8).code == 0
    assert service.most_at_once == 8


# -- stop


def _stopped(service: Misbehaving, ask_after: int, **options: Any) -> tuple[Run, list[Page[Any]], float]:
    """Ask for a stop after this many requests; return the run, its pages, and the seconds until it ended."""
    job = OwmJob(OwmJob.Options(api_url=service.url, **options))
    run = Run(str(uuid4()), "owm", datetime.now(UTC))
    asked_at = 0.0

    def ask() -> None:
        nonlocal asked_at
        service.wait_for(lambda service: len(service.requests) >= ask_after)
        threading.Event().wait(0.1)  # by then the caller waits
        asked_at = time.monotonic()
        run.stop.set()

    asking = threading.Thread(target=ask)
    asking.start()
    pages: list[Page[Any]] = []
    with pytest.raises(Stopped):
        pages.extend(job.pages(run))
    seconds = time.monotonic() - asked_at
    asking.join(PATIENCE)
    return run, pages, seconds


@pytest.fixture
def threads_end() -> Iterator[None]:
    """Check that no thread of an API stays."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("prefetch"):
            thread.join(PATIENCE)
            assert not thread.is_alive(), thread.name


@pytest.mark.usefixtures("threads_end")
@pytest.mark.parametrize(
    ("reply", "failures"),
    [(hang, 0), (trickling_body, 0), (status(500), 2), (status(503, Retry_After="60"), 2)],
    ids=["no answer", "trickle", "backoff", "Retry-After"],
)
def test_a_stop_ends_each_wait(reply: Reply, failures: int, service: Misbehaving) -> None:
    """Whatever is waited for, a stop ends it within 5 s; nothing under way is counted, and no thread stays."""
    service.misbehave(reply, *range(1, 10))
    run, pages, seconds = _stopped(service, 3, retry_wait=30.0, concurrency=2)
    assert seconds < 5
    assert [len(page.tasks) for page in pages] == [100], "what was fetched is handed over"
    assert len(service.requests) == 3
    state = json.loads(run.state.get(f"breaker:{service.url}/cities/") or b"{}")
    assert len(state.get("failures", ())) == failures


@pytest.mark.usefixtures("threads_end")
def test_a_stop_ends_the_wait_for_a_slot(service: Misbehaving) -> None:
    """Requests that wait because the server was overloaded are never sent."""
    service.records *= 10
    service.misbehave(status(503), 1, 2, 3, times=1)
    service.misbehave(hang, *range(4, 100))
    _, _, seconds = _stopped(service, 5, retry_wait=30.0, concurrency=8)
    assert seconds < 5
    assert len(service.requests) <= 9
