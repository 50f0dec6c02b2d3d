"""Other processes: one that holds a lock, and one that is killed at a random moment."""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from owm_outbox.outbox import Outbox

__all__ = ["holding_the_lock", "killed_at_random"]

_PATIENCE = 30.0  # seconds in which another process must have done something


def _fork(work: Callable[[Callable[[], None]], None]) -> tuple[int, int]:
    """Run ``work`` in another process; return its id, and a pipe with one byte for each call of work's argument."""
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        # A fork next to threads is deprecated, but a function that opens a backend cannot be sent to a process that
        # starts otherwise.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(ours)
            work(lambda: (os.write(theirs, b"."), None)[1])
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)  # whatever happened: the rest of the tests is the parent's
    os.close(theirs)
    return pid, ours


def _kill(pid: int) -> int:
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def holding_the_lock(open_outbox: Callable[[], Outbox]) -> Iterator[Callable[[], None]]:
    """Have another process hold the lock; yield what kills it."""

    def hold(ready: Callable[[], None]) -> None:
        with open_outbox() as outbox, outbox.lock():
            ready()
            while True:
                signal.pause()

    pid, pipe = _fork(hold)
    alive = [pid]

    def kill() -> None:
        _kill(alive.pop())

    try:
        assert os.read(pipe, 1), "the other process could not take the lock"
        yield kill
    finally:
        os.close(pipe)
        if alive:
            kill()


def killed_at_random(work: Callable[[Callable[[], None]], None], chance: random.Random) -> int:
    """Run ``work`` in another process, kill it with SIGKILL in the middle of a step, and return how many it finished.

    ``work`` calls its argument after each step, and may return. It must not use what the calling process has open.
    The moment is a random one within one of the first steps, which are taken to last as long as the one before.
    """
    pid, pipe = _fork(work)
    code, finished = None, 0
    try:
        took, began = 0.0, time.monotonic()
        for _ in range(2 + chance.randrange(4)):
            if not (select.select([pipe], [], [], _PATIENCE)[0] and os.read(pipe, 1)):
                break  # it ended, or hangs
            finished += 1
            took, began = time.monotonic() - began, time.monotonic()
        time.sleep(chance.random() * min(took, 1.0))
    finally:
        code = _kill(pid)
        finished += sum(len(more) for more in iter(lambda: os.read(pipe, 100), b""))
        os.close(pipe)
    assert code in (0, -signal.SIGKILL), f"the other process failed with {code}: what it raised is on stderr"
    return finished
