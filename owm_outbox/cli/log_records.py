"""What each log record carries besides its text, and how often the same one is written."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable

from owm_outbox.observer import Observer
from owm_outbox.run import Run

__all__ = ["Context", "RateLimit", "RunInLogs"]

_LANE = re.compile(r"lane (\d+)\Z")  # the name of the thread that delivers it


class Context(logging.Filter):
    """Gives each record ``run_id``, once a run was started, and ``lane``, if a lane's thread wrote it."""

    run_id: str | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Add them; every record is written."""
        if self.run_id is not None:
            record.run_id = self.run_id
        if lane := _LANE.match(record.threadName or ""):
            record.lane = int(lane[1])
        return True


class RunInLogs(Observer):
    """Tells the logs which run it is: a process works on one."""

    def run_started(self, run: Run) -> None:
        """Note its id."""
        for handler in logging.getLogger().handlers:
            for one in handler.filters:
                if isinstance(one, Context):
                    one.run_id = run.id


class RateLimit(logging.Filter):
    """Writes records of one kind so often in a window, and then one line that says how many more there were.

    A kind is what a record's text was made from: ``entry %d became a dead letter: %s``, whatever the entry. What was
    left out is told with the next record of the kind in a later window, and at the end by `left_out`.

    :param most: records of a kind in a window.
    :param seconds: of a window.
    :param clock: monotonic seconds.
    """

    def __init__(self, most: int = 50, seconds: float = 60.0, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._kinds: dict[tuple[str, int, str], _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether it is written."""
        now = self._clock()
        kind = self._kinds.setdefault((record.name, record.levelno, str(record.msg)), _Kind(now))
        if now - kind.since >= self._seconds:
            if kind.left_out:
                record.msg, record.args = f"{record.getMessage()} ({_more(kind.left_out)})", ()
            kind.since, kind.written, kind.left_out = now, 0, 0
        kind.written += 1
        kind.left_out += kind.written > self._most
        return kind.written <= self._most

    def left_out(self) -> list[tuple[str, int, str]]:
        """Return logger, level and text of a line for each kind of which some were left out, and begin anew."""
        found = [
            (name, level, f"{text}: {_more(kind.left_out)}")
            for (name, level, text), kind in self._kinds.items()
            if kind.left_out
        ]
        self._kinds.clear()
        return found


class _Kind:
    __slots__ = ("left_out", "since", "written")

    def __init__(self, now: float) -> None:
        self.since = now
        self.written = self.left_out = 0


def _more(count: int) -> str:
    return f"{count} more of this kind were left out"
