"""Other processes: one that holds a lock, ones that are killed, and one that must end in time."""

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
from contextlib import contextmanager, suppress

from owm_outbox.outbox import Outbox

__all__ = ["PATIENCE", "Child", "Work", "ends_in_time", "holding_the_lock", "killed_at_random"]

Work = Callable[[Callable[[], None]], None]
"""What another process does. It calls its argument after each step, and must not use what the caller has open."""

PATIENCE = 30.0  # seconds in which another process must have done something


class Child:
    """A process that does some work, and tells what came of it."""

    def __init__(self, work: Work) -> None:
        self._pipe, theirs = os.pipe()
        with warnings.catch_warnings():
            # A fork next to threads is deprecated, but a function that opens a backend cannot be sent to a process
            # that starts otherwise.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if self._pid == 0:
            os.close(self._pipe)
            _do(work, theirs)
        os.close(theirs)
        self._said = b""

    def finishes_a_step(self, within: float = PATIENCE) -> bool:
        """Wait for the end of a step, and return whether there was one."""
        if not select.select([self._pipe], [], [], within)[0]:
            return False
        said = os.read(self._pipe, 1)
        self._said += said
        return said == b"."

    def ends(self, within: float) -> bool:
        """Wait for the end of the work, and return whether it came in time."""
        until = time.monotonic() + within
        while select.select([self._pipe], [], [], max(0.0, until - time.monotonic()))[0]:
            said = os.read(self._pipe, 2**16)
            self._said += said
            if not said:
                return True
        return False

    def signal(self, signum: int) -> None:
        """Send it a signal."""
        os.kill(self._pid, signum)

    def end(self, failed: str = "another process that was to continue failed: ") -> int:
        """Kill it, if it has not ended; return how many steps it finished.

        :raises AssertionError: the work raised something; the message begins with ``failed``.
        """
        self.signal(signal.SIGKILL)
        while said := os.read(self._pipe, 2**16):
            self._said += said
        os.close(self._pipe)
        os.waitpid(self._pid, 0)
        steps, _, error = self._said.partition(b"!")
        assert not error, f"{failed}{error.decode()}"
        return steps.count(b".")


def _do(work: Work, pipe: int) -> None:
    """Do the work in the child: a dot per step, what it raised, and nothing of what the tests would do next."""
    try:
        work(lambda: (os.write(pipe, b"."), None)[1])
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        os.write(pipe, f"!{kind}{error}".encode()[:2000])
    finally:
        os._exit(0)


@contextmanager
def holding_the_lock(open_outbox: Callable[[], Outbox]) -> Iterator[Callable[[], None]]:
    """Have another process hold the lock; yield what kills it."""

    def hold(ready: Callable[[], None]) -> None:
        with open_outbox() as outbox, outbox.lock():
            ready()
            while True:
                signal.pause()

    alive = [Child(hold)]

    def kill() -> None:
        alive.pop().end()

    try:
        assert alive[0].finishes_a_step(), "another process could not take the lock"
        yield kill
    finally:
        if alive:
            kill()


def killed_at_random(work: Work, chance: random.Random) -> int:
    """Have the work done, kill it with SIGKILL in the middle of a step, and return how many it finished.

    The moment is a random one within one of the first steps, which are taken to last as long as the one before.
    """
    child = Child(work)
    took, began = 0.0, time.monotonic()
    for _ in range(2 + chance.randrange(4)):
        if not child.finishes_a_step():
            break  # it ended, or hangs
        took, began = time.monotonic() - began, time.monotonic()
    time.sleep(chance.random() * min(took, 1.0))
    return child.end()


def ends_in_time(work: Callable[[], object], seconds: float) -> bool:
    """Return whether this work, done in another process, ends within this time, however it ends."""

    def do(_: Callable[[], None]) -> None:
        with suppress(Exception):  # what it raises is not what is asked here
            work()

    child = Child(do)
    in_time = child.ends(seconds)
    child.end()
    return in_time
