"""There are never more requests at once than allowed, and fewer for a while after the server was overloaded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from random import Random

import pytest

from owm_outbox import SourceUnavailable
from owm_outbox.paging.limiter import Limiter

from support.misbehaving import PATIENCE, until


class Requests:
    """Threads that hold a slot each until they are told to end."""

    def __init__(self, most: int, threads: ThreadPoolExecutor) -> None:
        self.limiter = Limiter(most)
        self.under_way: set[int] = set()
        self._threads = threads
        self._may_end: list[threading.Event] = []

    def ask(self, count: int = 1) -> list[Future[None]]:
        """Let this many threads ask for a slot."""
        first = len(self._may_end)
        self._may_end += [threading.Event() for _ in range(count)]
        return [self._threads.submit(self._hold, number) for number in range(first, first + count)]

    def _hold(self, number: int) -> None:
        with self.limiter.slot():
            self.under_way.add(number)
            assert self._may_end[number].wait(PATIENCE)
            self.under_way.discard(number)

    def end(self, count: int) -> None:
        """Let this many of those under way end."""
        for number in sorted(self.under_way)[:count]:
            self._may_end[number].set()
            until(partial(self._is_over, number))

    def _is_over(self, number: int) -> bool:
        return number not in self.under_way

    def settle(self, count: int) -> None:
        """Wait until this many are under way, and see that there are no more."""
        until(lambda: len(self.under_way) >= count)
        threading.Event().wait(0.02)
        assert len(self.under_way) == count

    def finish(self) -> None:
        """Let all end."""
        for may_end in self._may_end:
            may_end.set()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Give threads, all over at the end."""
    with ThreadPoolExecutor(16) as threads:
        yield threads


@pytest.mark.parametrize("most", [1, 3])
def test_as_many_as_allowed_are_made_at_once(most: int, threads: ThreadPoolExecutor) -> None:
    """As many as allowed are under way, the others one by one as those end."""
    requests = Requests(most, threads)
    calls = requests.ask(most + 2)
    requests.settle(most)
    requests.end(1)
    requests.settle(most)
    requests.finish()
    for call in calls:
        call.result(PATIENCE)


def test_an_error_gives_the_slot_back() -> None:
    """What is raised within a slot is raised, and the slot is free again."""
    limiter = Limiter(1)
    for _ in range(2):
        with pytest.raises(LookupError), limiter.slot():
            raise LookupError


def test_half_as_many_and_then_one_more_per_20_good_answers(threads: ThreadPoolExecutor) -> None:
    """Halving interrupts nothing; each 20 good answers allow one more, at once, and never beyond the most."""
    requests = Requests(4, threads)
    calls = requests.ask(4)
    requests.settle(4)
    requests.limiter.halve()
    requests.settle(4)
    requests.end(2)
    calls += requests.ask(6)
    requests.settle(2)
    for answers in range(1, 101):
        requests.limiter.count_good()
        if answers % 20 in (19, 0):
            requests.settle(min(2 + answers // 20, 4))
    requests.finish()
    for call in calls:
        call.result(PATIENCE)


def test_one_at_once_stays_however_often_it_is_halved(threads: ThreadPoolExecutor) -> None:
    """There is always one request allowed."""
    requests = Requests(8, threads)
    for _ in range(10):
        requests.limiter.halve()
    calls = requests.ask(3)
    requests.settle(1)
    requests.finish()
    for call in calls:
        call.result(PATIENCE)


def test_close_ends_the_waiting(threads: ThreadPoolExecutor) -> None:
    """A thread that waits is told that it was closed, and so is one that asks later; one with a slot continues."""
    requests = Requests(1, threads)
    [first] = requests.ask()
    requests.settle(1)
    waiting = requests.ask(3)
    requests.settle(1)
    requests.limiter.close()
    for call in [*waiting, *requests.ask()]:
        assert isinstance(call.exception(PATIENCE), SourceUnavailable)
    requests.finish()
    first.result(PATIENCE)


@pytest.mark.parametrize("seed", range(3))
def test_many_threads_at_random(seed: int) -> None:
    """Whatever happens at once, there are never too many, and none is stuck or lost."""
    most, lock, random = 5, threading.Lock(), Random(seed)  # noqa: S311 - no secret
    limiter = Limiter(most)
    at_once = highest = made = 0

    def make(chance: float) -> None:
        nonlocal at_once, highest, made
        with lock:
            at_once += 1
            made += 1
            highest = max(highest, at_once)
        if chance > 0.98:
            limiter.halve()
        limiter.count_good()
        with lock:
            at_once -= 1
        if chance < 0.1:
            raise ConnectionRefusedError

    def work(chances: list[float]) -> int:
        failed = 0
        for chance in chances:
            try:
                with limiter.slot():
                    make(chance)
            except ConnectionRefusedError:
                failed += 1
        return failed

    lots = [[random.random() for _ in range(400)] for _ in range(12)]
    with ThreadPoolExecutor(12) as pool:
        failed = sum(done.result(PATIENCE) for done in [pool.submit(work, lot) for lot in lots])
    assert highest <= most
    assert made == sum(map(len, lots))
    assert failed == sum(chance < 0.1 for lot in lots for chance in lot)
    assert at_once == 0
