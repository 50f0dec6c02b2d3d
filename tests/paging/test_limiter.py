"""There are never more turns at once than allowed; each is begun once, in order, and no time is lost between two."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random

import pytest

from owm_outbox import ApiUnavailable
from owm_outbox.turns import Turn, Turns

from support.misbehaving import PATIENCE, until


class Queue:
    """Threads that take turns one after another, and what was sent by whom."""

    def __init__(self, most: int, threads: ThreadPoolExecutor) -> None:
        self.turns = Turns(most)
        self.sent: list[str] = []
        self.senders: dict[str, str] = {}
        self.begin: Callable[[], None] = lambda: None
        self._threads = threads
        self._may_end: dict[str, threading.Event] = {}

    def ask(self, name: str, send: Callable[[], None] | None = None) -> Future[str]:
        """Let a thread take a turn, and wait until it sent or stands in the queue."""
        self._may_end[name] = threading.Event()
        before = len(self.sent) + self.waiting
        taker = self._threads.submit(self._take, name, send or (lambda: None))
        until(lambda: len(self.sent) + self.waiting > before or taker.done())
        return taker

    def _take(self, name: str, send: Callable[[], None]) -> str:
        def noted() -> None:
            self.sent.append(name)
            self.senders[name] = threading.current_thread().name
            send()

        with self.turns.turn(self.begin) as turn:
            turn.take(noted)
            assert self._may_end[name].wait(PATIENCE)
            return threading.current_thread().name

    @property
    def waiting(self) -> int:
        """How many stand in the queue."""
        return len(self.turns._waiting)

    def end(self, *names: str) -> None:
        """Let these requests be over."""
        for name in names:
            self._may_end[name].set()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Give threads, all over at the end."""
    with ThreadPoolExecutor(16) as threads:
        yield threads


def test_turns_are_given_in_order(threads: ThreadPoolExecutor) -> None:
    """As many as allowed go at once, the others one by one as those end, first come, first served."""
    queue = Queue(2, threads)
    takers = [queue.ask(name) for name in "abcde"]
    assert queue.sent == ["a", "b"]
    for over, expected in (("b", "abc"), ("a", "abcd"), ("c", "abcde")):
        queue.end(over)
        until(lambda expected=expected: "".join(queue.sent) == expected)  # type: ignore[misc]  # bound now
    queue.end("d", "e")
    for taker in takers:
        taker.result(PATIENCE)


def test_who_ends_sends_the_next(threads: ThreadPoolExecutor) -> None:
    """The thread that gives its turn back sends what another one has ready; that one need not be woken first."""
    queue = Queue(1, threads)
    first, second = queue.ask("a"), queue.ask("b")
    queue.end("a", "b")
    assert queue.senders == {"a": first.result(PATIENCE), "b": first.result(PATIENCE)}
    assert second.result(PATIENCE) != first.result(PATIENCE)


@pytest.mark.parametrize("where", ["begin", "send"])
def test_an_error_is_raised_where_it_belongs(where: str, threads: ThreadPoolExecutor) -> None:
    """What beginning or sending raises reaches the one whose request it is, whoever sent it, and takes no turn away."""
    queue = Queue(1, threads)
    first = queue.ask("a")

    def fail() -> None:
        raise ConnectionResetError(where)

    if where == "begin":
        queue.begin = fail
    second = queue.ask("b", fail if where == "send" else None)
    queue.begin = lambda: None
    third = queue.ask("c")
    queue.end("a", "c")
    assert repr(second.exception(PATIENCE)) == f"ConnectionResetError('{where}')"
    assert first.exception(PATIENCE) is third.exception(PATIENCE) is None
    assert queue.sent == (["a", "b", "c"] if where == "send" else ["a", "c"])


def test_an_interrupt_is_raised_where_it_came(threads: ThreadPoolExecutor) -> None:
    """A Ctrl-C that comes while another one's request is sent ends who was interrupted; the other is told."""
    queue = Queue(1, threads)
    first = queue.ask("a")

    def interrupted() -> None:
        raise KeyboardInterrupt

    second = queue.ask("b", interrupted)
    queue.end("a")
    assert isinstance(first.exception(PATIENCE), KeyboardInterrupt)
    assert isinstance(second.exception(PATIENCE), ApiUnavailable)
    third = queue.ask("c")
    queue.end("c")
    third.result(PATIENCE)


def test_who_leaves_the_queue_takes_no_turn_along(threads: ThreadPoolExecutor) -> None:
    """A turn that is given up while it waits is not given any more, and keeps nobody else waiting."""
    queue = Queue(1, threads)
    first = queue.ask("a")
    with queue.turns.turn(lambda: None) as given_up:
        assert not queue.turns.enter(given_up)  # as take() does before it waits, and a signal ends the wait
        third = queue.ask("c")
    queue.end("a", "c")
    first.result(PATIENCE)
    third.result(PATIENCE)
    assert queue.sent == ["a", "c"]
    assert not given_up.taken


def test_a_turn_that_was_never_asked_for_gives_none_back() -> None:
    """A request that fails before it is its turn does not make room for one too many."""
    turns = Turns(1)
    with turns.turn(lambda: None):
        pass
    with turns.turn(lambda: None) as first, turns.turn(lambda: None) as second:
        first.take()
        assert not turns.enter(second)


def test_a_turn_that_was_taken_sends_again(threads: ThreadPoolExecutor) -> None:
    """Within one turn several requests may be sent, one after another; it begins once."""
    events: list[str] = []
    with Turns(1).turn(lambda: events.append("begin")) as turn:
        turn.take()
        turn.take(lambda: events.append("first"))
        turn.take(lambda: events.append("second"))
    assert events == ["begin", "first", "second"]


def test_half_as_many_and_then_one_more_after_20_answers(threads: ThreadPoolExecutor) -> None:
    """Halving waits for turns that are out; each 20 good answers allow one more, at once, and never beyond the most."""
    queue = Queue(4, threads)
    takers = [queue.ask(name) for name in "abcdefgh"]
    queue.turns.halve()
    queue.end("a", "b")
    takers[0].result(PATIENCE)
    takers[1].result(PATIENCE)
    assert queue.sent == list("abcd"), "c and d are as many as allowed now"
    queue.end("c")
    takers[2].result(PATIENCE)
    assert queue.sent == list("abcde")
    for answers in range(1, 101):
        queue.turns.raise_again()
        assert len(queue.sent) == 5 + min(answers // 20, 2)
    queue.end("d", "e", "f", "g", "h")
    for taker in takers:
        taker.result(PATIENCE)


def test_close_ends_the_waiting(threads: ThreadPoolExecutor) -> None:
    """Those who wait are told that it was closed, and so are those who come later; those who were sent go on."""
    queue = Queue(1, threads)
    first, second = queue.ask("a"), queue.ask("b")
    queue.turns.close()
    assert isinstance(second.exception(PATIENCE), ApiUnavailable)
    assert isinstance(queue.ask("c").exception(PATIENCE), ApiUnavailable)
    queue.end("a")
    first.result(PATIENCE)
    assert queue.sent == ["a"]


@pytest.mark.parametrize("seed", range(3))
def test_many_threads_at_random(seed: int) -> None:
    """Whatever happens at once, halving, failing and giving up, there are never too many, and none is stuck or lost."""
    most, turns, lock, random = 5, Turns(5), threading.Lock(), Random(seed)  # noqa: S311 - no secret
    at_once = highest = sent = failed = 0

    def send() -> None:
        nonlocal at_once, highest, sent
        with lock:
            at_once += 1
            sent += 1
            highest = max(highest, at_once)

    def refused() -> None:
        raise ConnectionRefusedError

    def one(turn: Turn, chance: float) -> None:
        nonlocal at_once, failed
        if chance < 0.1:
            return
        try:
            turn.take(refused if chance < 0.2 else send)
        except ConnectionRefusedError:
            failed += chance < 0.2
            return
        if chance > 0.98:
            turns.halve()
        turns.raise_again()
        with lock:
            at_once -= 1

    def work(chances: list[float]) -> None:
        for chance in chances:
            with turns.turn(lambda: None) as turn:
                one(turn, chance)

    lots = [[random.random() for _ in range(400)] for _ in range(12)]
    with ThreadPoolExecutor(12) as pool:
        for done in [pool.submit(work, lot) for lot in lots]:
            done.result(PATIENCE)
    assert highest <= most
    assert sent == sum(chance >= 0.2 for lot in lots for chance in lot)
    assert failed == sum(0.1 <= chance < 0.2 for lot in lots for chance in lot)
    assert (at_once, turns._taken, len(turns._waiting)) == (0, 0, 0)
