"""Limits how many requests there are at once, and loses no time between one and the next."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Self

from owm_outbox.errors import ApiUnavailable

__all__ = ["Turn", "Turns"]

_CALM = 20  # good answers after which one more request at once is tried again


class Turns:
    """Gives at most ``most`` turns at once, in the order in which they were asked for.

    There may be more threads than turns, so that the next request is ready by the time it may be sent. Who gives a turn
    back then sends that request itself, although another thread waits for the answer: to wake that one first takes
    longer, as this one keeps the interpreter busy with what it just got.
    """

    def __init__(self, most: int) -> None:
        self._lock = threading.Lock()
        self._most = most
        self._allowed = most
        self._taken = 0
        self._waiting: deque[Turn] = deque()  # empty whenever there is a turn to be had
        self._answers = 0  # since the limit changed last
        self._closed = False

    def turn(self, begin: Callable[[], None]) -> Turn:
        """Return a turn that is yet to be taken. Leaving its context gives it back, or takes it out of the queue.

        :param begin: called once it is taken, right before anything is sent; on any thread, but what it raises is
            raised where the turn is taken.
        """
        return Turn(self, begin)

    def halve(self) -> None:
        """Give half as many turns at once for a while, but at least one."""
        with self._lock:
            self._allowed, self._answers = max(1, self._allowed // 2), 0

    def raise_again(self) -> None:
        """Take note of a good answer: so many of them are worth one more turn at once, up to ``most``."""
        if self._allowed == self._most:
            return
        with self._lock:
            self._answers += 1
            if self._answers < _CALM:
                return
            self._allowed, self._answers = self._allowed + 1, 0
            following = self._following()
        if following is not None:
            following.go()

    def close(self) -> None:
        """Let nobody wait for a turn any more: `ApiUnavailable` for all who do, and who will."""
        with self._lock:
            self._closed = True
            while self._waiting:
                self._waiting.popleft().refuse(_closed())

    def enter(self, turn: Turn) -> bool:
        """Return whether the turn is to be had at once; else it waits in the queue until somebody lets it go.

        :raises ApiUnavailable: after ``close()``.
        """
        with self._lock:
            if self._closed:
                raise _closed()
            self._waiting.append(turn)
            return self._following() is not None  # nobody else: the queue was empty, or there was no turn to be had

    def leave(self, turn: Turn) -> None:
        """Let another one go instead."""
        following = None
        with self._lock:
            if turn.taken:
                self._taken -= 1
                following = self._following()
            elif turn in self._waiting:
                self._waiting.remove(turn)
        if following is not None:
            following.go()

    def _following(self) -> Turn | None:
        if not self._waiting or self._taken >= self._allowed:
            return None
        turn = self._waiting.popleft()
        self._taken += 1
        turn.taken = True
        return turn


class Turn:
    """One request's turn, see `Turns.turn`."""

    def __init__(self, turns: Turns, begin: Callable[[], None]) -> None:
        self.taken = False
        self._turns = turns
        self._begin = begin
        self._send: Callable[[], None] | None = None
        self._error: Exception | None = None
        self._over = threading.Lock()  # held while it waits
        self._over.acquire()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._turns.leave(self)

    def take(self, send: Callable[[], None] | None = None) -> None:
        """Wait until it is this one's turn, begin and send; only send, if it is already.

        :param send: may be called on another thread, so it must not block; what it raises is raised here.
        :raises ApiUnavailable: it was closed meanwhile.
        """
        if self.taken:
            if send is not None:
                send()
            return
        self._send = send
        if self._turns.enter(self):
            self.go()
        else:
            self._over.acquire()
        if self._error is not None:
            raise self._error

    def go(self) -> None:
        """Begin and send, on behalf of whoever waits in ``take()``."""
        try:
            self._begin()
            if self._send is not None:
                self._send()
        except Exception as error:  # raised in take()
            self._error = error
        except BaseException:  # it is meant for this thread; the other one shall not wait for an answer
            self._error = ApiUnavailable("interrupted before the request was sent")
            raise
        finally:
            self._over.release()

    def refuse(self, error: Exception) -> None:
        """Let it wait no more."""
        self._error = error
        self._over.release()


def _closed() -> ApiUnavailable:
    return ApiUnavailable("closed while a request waited for its turn")
