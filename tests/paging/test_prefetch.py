"""Steps are fetched ahead within bounds, on daemon threads, and handed over in order."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager

import pytest

from owm_outbox import SourceUnavailable, Stop, Stopped
from owm_outbox.paging.prefetch import Prefetch

from support.misbehaving import PATIENCE


def _same(number: int) -> int:
    return number


def _prefetch(concurrency: int, fetch: Callable[[int], int] = _same) -> closing[Prefetch[int, int]]:
    return closing(Prefetch(fetch, concurrency=concurrency))


def _outcomes(ahead: Prefetch[int, int], numbers: Iterable[int | None]) -> list[tuple[int, int | BaseException]]:
    return [_outcome(*done) for done in ahead.outcomes(numbers, Stop())]


def _outcome(number: int, call: Future[int]) -> tuple[int, int | BaseException]:
    assert call.done()
    return number, call.exception() or call.result()


class Held:
    """Fetches, but holds pages 2 to 99 until it is told to let go; notes who fetched what."""

    def __init__(self) -> None:
        self.threads: dict[int, threading.Thread] = {}
        self._lets_go, self._busy = threading.Event(), threading.Semaphore(0)

    def fetch(self, number: int) -> int:
        """Fetch a page."""
        self.threads[number] = threading.current_thread()
        if 1 < number < 100:
            self._busy.release()
            assert self._lets_go.wait(PATIENCE)
        return number

    def wait_for(self, count: int) -> None:
        """Wait until this many more are held."""
        for _ in range(count):
            assert self._busy.acquire(timeout=PATIENCE)

    def let_go(self) -> None:
        """Let them all return."""
        self._lets_go.set()


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    """Check that each test's threads end, once it has closed what it opened."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE)
        assert not thread.is_alive(), f"{thread.name} is still alive"


@pytest.mark.parametrize("concurrency", [1, 2, 4, 16])
def test_outcomes_are_in_order_each_once(concurrency: int) -> None:
    """Whatever the number of threads, every step is handed over once, in order, with what was fetched for it."""
    with _prefetch(concurrency) as ahead:
        assert _outcomes(ahead, range(300)) == [(number, number) for number in range(300)]


def test_a_late_outcome_holds_up_the_later_ones() -> None:
    """A step that is fetched before an earlier one waits for it: they are handed over in order all the same."""
    last_is_there = threading.Event()
    fetched: list[int] = []

    def fetch(number: int) -> int:
        if number == 1:
            assert last_is_there.wait(PATIENCE)
        fetched.append(number)
        if number == 8:
            last_is_there.set()
        return number

    with _prefetch(4, fetch) as ahead:
        assert [number for number, _ in _outcomes(ahead, range(9))] == list(range(9))
    assert fetched.index(8) < fetched.index(1)


@pytest.mark.parametrize("concurrency", [1, 2, 4, 8, 16])
def test_as_many_as_allowed_and_no_more_are_fetched_at_once(concurrency: int) -> None:
    """There are as many calls at once as allowed, and never one more."""
    lock, everybody = threading.Lock(), threading.Barrier(concurrency)
    under_way, most = 0, 0

    def fetch(number: int) -> int:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        everybody.wait(PATIENCE)  # breaks unless this many are here at once
        with lock:
            under_way -= 1
        return number

    with _prefetch(concurrency, fetch) as ahead:
        assert len(_outcomes(ahead, range(5 * concurrency))) == 5 * concurrency
    assert most == concurrency


@pytest.mark.parametrize("concurrency", [1, 2, 4, 8])
def test_no_more_than_twice_the_concurrency_is_taken_ahead(concurrency: int) -> None:
    """What was taken and not yet handed over stays within twice the concurrency, however slow the caller is."""
    taken = 0

    def numbers() -> Iterator[int]:
        nonlocal taken
        while taken < 200:
            taken += 1
            yield taken

    with _prefetch(concurrency) as ahead:
        furthest = 0
        for handed, _ in enumerate(ahead.outcomes(numbers(), Stop())):
            furthest = max(furthest, taken - handed)
    assert furthest == 2 * concurrency


@pytest.mark.parametrize("concurrency", [1, 4])
def test_an_error_is_an_outcome(concurrency: int) -> None:
    """What fetch raises is handed over in its place, and so are the steps after it."""

    def fetch(number: int) -> int:
        if number % 7 == 0:
            raise LookupError(f"no page {number}")
        return number

    with _prefetch(concurrency, fetch) as ahead:
        outcomes = dict(_outcomes(ahead, range(100)))
    assert list(outcomes) == list(range(100))
    for number, outcome in outcomes.items():
        assert outcome == number if number % 7 else repr(outcome) == f"LookupError('no page {number}')"


@pytest.mark.parametrize(("concurrency", "count"), [(1, 50), (4, 50), (16, 3)])
def test_no_more_threads_than_needed_are_started(concurrency: int, count: int) -> None:
    """Calls are made on daemon threads, not on the caller's, and on no more of them than there is work for."""
    threads: set[threading.Thread] = set()

    def fetch(number: int) -> int:
        threads.add(threading.current_thread())
        return number

    with _prefetch(concurrency, fetch) as ahead:
        for _ in range(3):
            _outcomes(ahead, range(count))
    assert threading.current_thread() not in threads
    assert all(thread.daemon for thread in threads)
    assert 1 <= len(threads) <= min(concurrency, count)


@contextmanager
def no_more_threads() -> Iterator[None]:
    """Let the system refuse each further thread, for want of room for its stack."""
    size = threading.stack_size(2**46)
    try:
        yield
    finally:
        threading.stack_size(size)


def test_fewer_threads_do_if_there_are_no_more(caplog: pytest.LogCaptureFixture) -> None:
    """Where the system refuses a thread, those that run fetch everything, and a line says so once."""
    with _prefetch(4) as ahead:
        assert _outcomes(ahead, range(2)) == [(0, 0), (1, 1)]
        with no_more_threads():
            assert _outcomes(ahead, range(50)) == [(number, number) for number in range(50)]
    assert caplog.text.count("can't start new thread: continuing with 2 requests at once") == 1


def test_without_any_thread_the_source_is_unavailable() -> None:
    """Nothing can be fetched now; that may change."""
    with no_more_threads(), _prefetch(4) as ahead, pytest.raises(SourceUnavailable, match="can't start new thread"):
        _outcomes(ahead, range(50))


@pytest.mark.parametrize("concurrency", [1, 4])
def test_none_is_none_for_now(concurrency: int) -> None:
    """A None holds up what follows until something was handed over, and ends nothing."""
    handed = 0

    def numbers() -> Iterator[int | None]:
        for number in range(50):
            while number > 10 and handed < number:
                yield None
            yield number

    with _prefetch(concurrency) as ahead:
        for number, _ in ahead.outcomes(numbers(), Stop()):
            assert number == handed
            handed += 1
    assert handed == 50


def test_steps_may_depend_on_what_was_handed_over() -> None:
    """The end may show only on the way: steps are asked for no sooner than needed."""
    end = 10  # beyond what is taken ahead by then

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            if number >= end:
                return
            yield number

    with _prefetch(4) as ahead:
        handed = []
        for number, _ in ahead.outcomes(numbers(), Stop()):
            handed.append(number)
            if number == 1:
                end = 40
    assert handed == list(range(40))


def test_nothing_to_fetch_is_fine() -> None:
    """No step, no outcome."""
    with _prefetch(4) as ahead:
        assert _outcomes(ahead, []) == []


def test_what_was_given_up_is_not_fetched() -> None:
    """Of a round that was given up only what was under way is still fetched."""
    held = Held()
    with _prefetch(4, held.fetch) as ahead:
        outcomes = ahead.outcomes(range(100), Stop())
        assert [_outcome(*next(outcomes)), _outcome(*next(outcomes))] == [(0, 0), (1, 1)]
        held.wait_for(4)
        outcomes.close()  # type: ignore[attr-defined]  # a generator
        held.let_go()
        assert [number for number, _ in _outcomes(ahead, range(100, 120))] == list(range(100, 120))
    assert sorted(held.threads) == [*range(6), *range(100, 120)]


def test_a_round_that_is_given_up_leaves_nothing_to_the_next() -> None:
    """After a round that was left half-way, each step of the next one is fetched again."""
    round_ = 1

    def fetch(number: int) -> int:
        return round_

    with _prefetch(4, fetch) as ahead:
        for number, call in ahead.outcomes(range(100), Stop()):
            assert call.result() == 1
            if number == 20:
                break
        assert [outcome for _, outcome in _outcomes(ahead, range(200, 230))] == [1] * 30  # let what had begun end
        round_ = 2
        assert [outcome for _, outcome in _outcomes(ahead, range(100))] == [2] * 100


def test_close_ends_the_threads() -> None:
    """After close, each thread ends with the call it is in; what was waiting is not fetched any more."""
    held = Held()
    with _prefetch(4, held.fetch) as ahead:
        outcomes = ahead.outcomes(range(100), Stop())
        assert [_outcome(*next(outcomes)), _outcome(*next(outcomes))] == [(0, 0), (1, 1)]
        held.wait_for(4)
        threads = {thread for number, thread in held.threads.items() if number > 1}
        assert len(threads) == 4
    held.let_go()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert sorted(held.threads) == [0, 1, 2, 3, 4, 5]


# -- stop


def _check_stops(stop: Stop, ask: Callable[[], object]) -> None:
    """Check that ``ask``, made while the next outcome is waited for, ends the wait with `Stopped`."""
    held = Held()

    def ask_once_held() -> None:
        held.wait_for(2)
        threading.Event().wait(0.1)  # by then the caller waits
        ask()

    asker = threading.Thread(target=ask_once_held)
    with _prefetch(2, held.fetch) as ahead:
        outcomes = ahead.outcomes(range(100), stop)
        assert [_outcome(*next(outcomes)), _outcome(*next(outcomes))] == [(0, 0), (1, 1)]
        asker.start()
        with pytest.raises(Stopped):
            next(outcomes)
    asker.join(PATIENCE)
    held.let_go()


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for a stop never: what ends a wait is the wake-up."""
    monkeypatch.setattr("owm_outbox.paging.prefetch._LOOK_AFTER", 3600.0)


@pytest.mark.usefixtures("unasked")
def test_a_stop_wakes_the_caller() -> None:
    """A stop that is asked for while the next outcome is waited for ends the wait; what is under way is abandoned."""
    stop = Stop()
    _check_stops(stop, stop.set)


@pytest.mark.usefixtures("unasked")
def test_a_signal_wakes_the_caller() -> None:
    """A signal handler raises nothing, and ends the wait all the same."""
    stop = Stop()
    with stop.on_signals(signal.SIGUSR1):
        _check_stops(stop, lambda: os.kill(os.getpid(), signal.SIGUSR1))


@pytest.mark.slow
def test_an_event_of_an_application_is_looked_at() -> None:
    """A stop that is an application's own event wakes nothing; it is looked at now and then."""
    event = threading.Event()
    _check_stops(Stop(event), event.set)


def test_a_stop_is_seen_before_the_next_outcome() -> None:
    """Nothing more is handed over once a stop was asked for, though it is there already."""
    stop = Stop()
    with _prefetch(2) as ahead:
        outcomes = ahead.outcomes(range(100), stop)
        next(outcomes)
        stop.set()
        with pytest.raises(Stopped):
            next(outcomes)
