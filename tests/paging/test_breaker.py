"""After 20 failed requests in a row, however many processes made them, the API is left alone for 600 s."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from owm_outbox import (
    MemoryState,
    Outbox,
    SourceUnavailable,
    StateStore,
)
from owm_outbox.paging.breaker import Breaker, state_name
from owm_outbox_backends.sqlite import SqliteOutbox

from support.misbehaving import (
    PATIENCE,
)

NAME = "http://api/cities/"
FAIL_MAX, OPEN_FOR = 20, 600.0


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
