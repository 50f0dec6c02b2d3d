"""Pages are fetched ahead within bounds, and handed over in order."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from owm_outbox.prefetch import Prefetch

from support.misbehaving import PATIENCE


class Pace:
    """A clock that shows what the test wants a page to take, and notes which thread fetched it.

    :param alone: seconds for a page that is fetched while nothing else is.
    :param busy: whether these seconds are spent computing, not waiting.
    """

    def __init__(self, alone: float, *, busy: bool = False) -> None:
        self.now = 0.0
        self.threads: dict[int, threading.Thread] = {}
        self._alone, self._busy = alone, busy

    def fetch(self, number: int) -> int:
        """Fetch a page: its own number."""
        self.threads[number] = threading.current_thread()
        if self.is_alone(number):
            self.now += self._alone
        return number

    def is_alone(self, number: int) -> bool:
        """Say whether a page was fetched by the thread that works alone."""
        return self.threads[number].name.endswith("-of-1")

    def clock(self) -> float:
        """Return the time."""
        return self.now

    def cpu_clock(self) -> float:
        """Return the time that was computed."""
        return self.now if self._busy else 0.0

    def prefetch(self, concurrency: int, fetch: Callable[[int], int] | None = None, *, spare: int = 0) -> Prefetch[int]:
        """Return a prefetch with this clock."""
        return Prefetch(
            fetch or self.fetch, concurrency=concurrency, spare=spare, clock=self.clock, cpu_clock=self.cpu_clock
        )


class Held:
    """Fetches as ``pace`` does, but holds pages 2 to 99 until it is told to let go."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._lets_go, self._busy = threading.Event(), threading.Semaphore(0)

    def fetch(self, number: int) -> int:
        """Fetch a page."""
        self._pace.fetch(number)
        if 1 < number < 100:
            self._busy.release()
            assert self._lets_go.wait(PATIENCE)
        return number

    def wait_for(self, count: int) -> None:
        """Wait until so many more are held."""
        for _ in range(count):
            assert self._busy.acquire(timeout=PATIENCE)

    def let_go(self) -> None:
        """Let them all come."""
        self._lets_go.set()


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    """Check that each test's threads end, once it has closed what it opened."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE)
        assert not thread.is_alive(), f"{thread.name} goes on"


@pytest.mark.parametrize("concurrency", [1, 2, 4, 16])
def test_pages_come_in_order_each_once(concurrency: int) -> None:
    """Whatever the number of threads, every number is handed over once, in order, with what was fetched for it."""
    pace = Pace(alone=1.0)
    with closing(pace.prefetch(concurrency)) as ahead:
        assert list(ahead.outcomes(range(300))) == [(number, number) for number in range(300)]


def test_a_page_that_comes_late_holds_up_the_later_ones() -> None:
    """A page that is fetched before an earlier one waits for it: they are handed over in order all the same."""
    pace, last_is_there = Pace(alone=1.0), threading.Event()
    fetched: list[int] = []

    def fetch(number: int) -> int:
        if number == 1:
            assert last_is_there.wait(PATIENCE)
        fetched.append(number)
        if number == 8:
            last_is_there.set()
        return pace.fetch(number)

    with closing(pace.prefetch(4, fetch)) as ahead:
        assert [number for number, _ in ahead.outcomes(range(9))] == list(range(9))
        assert fetched.index(8) < fetched.index(1)


@pytest.mark.parametrize("spare", [0, 2])
@pytest.mark.parametrize("concurrency", [2, 4, 8, 16])
def test_as_many_as_allowed_and_no_more_are_fetched_at_once(concurrency: int, spare: int) -> None:
    """There are as many calls at once as allowed, with the spare ones, and never one more."""
    pace, lock, everybody = Pace(alone=1.0), threading.Lock(), threading.Barrier(concurrency + spare)
    under_way, most = 0, 0

    def fetch(number: int) -> int:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        pace.fetch(number)
        if not pace.is_alone(number):
            everybody.wait(PATIENCE)  # breaks unless so many are here at once
        with lock:
            under_way -= 1
        return number

    with closing(pace.prefetch(concurrency, fetch, spare=spare)) as ahead:
        count = 1 + 5 * (concurrency + spare)
        assert len(list(ahead.outcomes(range(count)))) == count
        assert most == concurrency + spare


@pytest.mark.parametrize("spare", [0, 2])
@pytest.mark.parametrize("concurrency", [1, 2, 4, 8])
def test_no_more_than_twice_the_concurrency_is_taken_ahead(concurrency: int, spare: int) -> None:
    """What was taken and not yet handed over stays within twice the concurrency, however slow the caller is."""
    pace, taken = Pace(alone=1.0), 0

    def numbers() -> Iterator[int]:
        nonlocal taken
        while taken < 200:
            taken += 1
            yield taken

    with closing(pace.prefetch(concurrency, spare=spare)) as ahead:
        furthest = 0
        for handed, _ in enumerate(ahead.outcomes(numbers()), start=1):
            furthest = max(furthest, taken - handed)
        assert furthest <= 2 * concurrency
        assert furthest >= concurrency or concurrency == 1


@pytest.mark.parametrize("concurrency", [1, 4])
def test_an_error_is_an_outcome(concurrency: int) -> None:
    """What fetch raises is handed over in its place, and the pages after it come all the same."""
    pace = Pace(alone=1.0)

    def fetch(number: int) -> int:
        pace.fetch(number)
        if number % 7 == 0:
            raise LookupError(f"no page {number}")
        return number

    with closing(pace.prefetch(concurrency, fetch)) as ahead:
        outcomes = dict(ahead.outcomes(range(100)))
        assert list(outcomes) == list(range(100))
        for number, outcome in outcomes.items():
            assert outcome == number if number % 7 else repr(outcome) == f"LookupError('no page {number}')"


@pytest.mark.parametrize(
    ("concurrency", "alone", "busy"),
    [(8, 0.0, False), (8, 0.001, False), (8, 1.0, True), (1, 1.0, False)],
    ids=["at once", "quick", "busy", "one allowed"],
)
def test_pages_not_worth_waiting_for_are_fetched_one_by_one(concurrency: int, alone: float, busy: bool) -> None:
    """Where answers come at once, or the time goes into computing, or one is allowed, no thread is started."""
    pace = Pace(alone, busy=busy)
    with closing(pace.prefetch(concurrency)) as ahead:
        assert len(list(ahead.outcomes(range(1000)))) == 1000
        assert all(pace.is_alone(number) for number in range(1000))


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("alone", [0.0, 1.0])
def test_the_caller_does_nothing_but_wait(concurrency: int, alone: float) -> None:
    """No call is made on the caller's thread, where a signal handler may raise: not even if there is one at a time."""
    pace = Pace(alone)
    with closing(pace.prefetch(concurrency)) as ahead:
        assert len(list(ahead.outcomes(range(100)))) == 100
    assert threading.main_thread() not in pace.threads.values()


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_first_has_nothing_beside_it(concurrency: int) -> None:
    """The second number is not taken before the first outcome was handed over: it may show that nothing follows."""
    pace, taken = Pace(alone=1.0), 0

    def numbers() -> Iterator[int]:
        nonlocal taken
        while taken < 99:
            taken += 1
            yield taken

    with closing(pace.prefetch(concurrency)) as ahead:
        outcomes = ahead.outcomes(numbers())
        assert next(outcomes) == (1, 1)
        assert taken == 1
        assert [number for number, _ in outcomes] == list(range(2, 100))


@pytest.mark.parametrize("concurrency", [1, 4])
def test_none_is_none_for_now(concurrency: int) -> None:
    """A None holds up what follows until something was handed over, and ends nothing."""
    pace, handed = Pace(alone=1.0), 0

    def numbers() -> Iterator[int | None]:
        for number in range(50):
            while number > 10 and handed < number:
                yield None
            yield number

    with closing(pace.prefetch(concurrency)) as ahead:
        for number, _ in ahead.outcomes(numbers()):
            assert number == handed
            handed += 1
    assert handed == 50


def test_what_nobody_wants_any_more_is_not_fetched() -> None:
    """Of a round that was given up only what was under way is still fetched."""
    pace = Pace(alone=1.0)
    held = Held(pace)
    with closing(pace.prefetch(4, held.fetch)) as ahead:
        outcomes = ahead.outcomes(range(100))
        assert [next(outcomes), next(outcomes)] == [(0, 0), (1, 1)]
        held.wait_for(4)
        outcomes.close()  # type: ignore[attr-defined]  # a generator
        held.let_go()
        assert [number for number, _ in ahead.outcomes(range(100, 120))] == list(range(100, 120))
    assert sorted(pace.threads) == [*range(6), *range(100, 120)]


def test_threads_that_are_slower_are_given_up() -> None:
    """If the pages come slower with threads than they did without, they are fetched one by one again."""
    pace = Pace(alone=0.005)
    with closing(pace.prefetch(8)) as ahead:
        for number, _ in ahead.outcomes(range(500)):
            if not pace.is_alone(number):
                pace.now += 0.006
        threaded = [number for number in range(500) if not pace.is_alone(number)]
        assert 0 < len(threaded) < 100
        assert threaded == list(range(threaded[0], threaded[-1] + 1))


def test_threads_that_are_faster_are_kept() -> None:
    """If the pages come faster with threads than they did without, all the rest is fetched that way."""
    pace = Pace(alone=0.005)
    with closing(pace.prefetch(8)) as ahead:
        for number, _ in ahead.outcomes(range(500)):
            if not pace.is_alone(number):
                pace.now += 0.004
        threaded = [number for number in range(500) if not pace.is_alone(number)]
        assert threaded == list(range(threaded[0], 500))
        assert threaded[0] < 10


@pytest.mark.timeout(20)
def test_nothing_is_an_outcome_too() -> None:
    """If fetch returns None, that is what is handed over."""
    pace, fetched = Pace(alone=1.0), []

    def fetch(number: int) -> None:
        fetched.append(pace.fetch(number))

    with closing(Prefetch(fetch, concurrency=4, clock=pace.clock, cpu_clock=pace.cpu_clock)) as ahead:
        assert list(ahead.outcomes(range(20))) == [(number, None) for number in range(20)]
    assert sorted(fetched) == list(range(20))


def test_the_numbers_may_depend_on_what_came() -> None:
    """The end may show only on the way: numbers are asked for no sooner than needed."""
    pace, end = Pace(alone=1.0), 10  # beyond what is taken ahead by then

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            if number >= end:
                return
            yield number

    with closing(pace.prefetch(4)) as ahead:
        came = []
        for number, _ in ahead.outcomes(numbers()):
            came.append(number)
            if number == 1:
                end = 40
        assert came == list(range(40))


def test_nothing_to_fetch_is_fine() -> None:
    """No number, no outcome."""
    with closing(Pace(alone=1.0).prefetch(4)) as ahead:
        assert list(ahead.outcomes([])) == []


def test_threads_serve_one_round_after_another() -> None:
    """The same threads fetch a second and a third lot of numbers, also the same ones again."""
    pace = Pace(alone=1.0)
    with closing(pace.prefetch(4)) as ahead:
        before = threading.active_count()
        for _ in range(3):
            assert [number for number, _ in ahead.outcomes(range(50))] == list(range(50))
        assert threading.active_count() <= before + 1 + 4


def test_a_round_that_is_given_up_leaves_nothing_to_the_next() -> None:
    """After a round that was left half-way, each number of the next one is fetched anew."""
    pace, round_ = Pace(alone=1.0), 1

    def fetch(number: int) -> int:
        pace.fetch(number)
        return round_

    with closing(pace.prefetch(4, fetch)) as ahead:
        for number, outcome in ahead.outcomes(range(100)):
            assert outcome == 1
            if number == 20:
                break
        # Let the threads finish what they had begun, so that it lies there.
        assert [outcome for _, outcome in ahead.outcomes(range(200, 230))] == [1] * 30
        round_ = 2
        assert [outcome for _, outcome in ahead.outcomes(range(100))] == [2] * 100


def test_close_ends_the_threads() -> None:
    """After close, each thread ends with the call it is in; what was waiting is not fetched any more."""
    pace = Pace(alone=1.0)
    held = Held(pace)
    with closing(pace.prefetch(4, held.fetch)) as ahead:
        outcomes = ahead.outcomes(range(100))
        assert [next(outcomes), next(outcomes)] == [(0, 0), (1, 1)]
        held.wait_for(4)
        threads = {thread for number, thread in pace.threads.items() if number > 1}
        assert len(threads) == 4
    held.let_go()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert sorted(pace.threads) == [0, 1, 2, 3, 4, 5]
