"""Kills processes one after the other, each at another call: between any two things that a backend makes durable."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType, ModuleType
from typing import Any, NamedTuple

from owm_outbox.testing.processes import PATIENCE, Child, Work

__all__ = ["Kill", "killed_at_each_call"]

# Of the standard library, only these can change what another process sees; of other packages, any may.
_OUTWARD = {"_io", "_socket", "_sqlite3", "_ssl", "fcntl", "io", "mmap", "posix", "socket", "sqlite3", "ssl"}
_INWARD = sys.stdlib_module_names - _OUTWARD

# After these, all is as it was before them.
_READING = frozenset(
    "encode fetchall fetchmany fetchone fspath geteuid getpid listdir lstat stat urandom".split()  # noqa: SIM905 - short
)

_STDLIB, _SITE = (sysconfig.get_path(name) for name in ("stdlib", "purelib"))


class Kill(NamedTuple):
    """A process that was killed.

    :param finished: how many steps of its work it finished.
    :param where: the call that it did not get to, for a person to read.
    """

    finished: int
    where: str


class _Call(NamedTuple):
    """A call of a function that is written in C: how often it was made before from there, within one step."""

    step: int
    function: str
    file: str
    line: int
    before: int = 0


def killed_at_each_call(work: Work, most: int) -> Iterator[Kill]:
    """Have the work done once; then again and again, each time killed with SIGKILL at another of the calls it made.

    It is killed before calls of functions in C that may reach something outside the process, at each place from which
    they are made. Of those that one place makes within one step: before the first, one in the middle, and the last.

    :param most: kills per step, spread over all places.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "calls"
        yield Kill(_end(Child(partial(_watch, work, path=path))), "at its end")
        calls = [(_Call(*call), where) for call, where in json.loads(path.read_text())]
    for _, of_step in itertools.groupby(calls, lambda one: one[0].step):
        found = list(of_step)
        for call, where in found[:: -(-len(found) // most)]:
            yield Kill(_end(Child(partial(_watch, work, die_at=call))), f"before {where}")


def _end(child: Child) -> int:
    in_time = child.ends(PATIENCE)
    finished = child.end()
    assert in_time, f"not done after {PATIENCE:.0f} s: does it wait for what a process that was killed left behind?"
    return finished


def _watch(
    work: Work, finish_step: Callable[[], None], *, path: Path | None = None, die_at: _Call | None = None
) -> None:
    """Do the work; write down its calls, or die at one of them."""
    made: Counter[_Call] = Counter()
    shown: dict[_Call, str] = {}
    step = 0

    def look(frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and _is_outward(function):
            call = _Call(step, function.__qualname__, frame.f_code.co_filename, frame.f_lineno)
            if call._replace(before=made[call]) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if not made[call]:
                shown[call] = f"{function.__qualname__} at {_where(frame)}"
            made[call] += 1

    def finish() -> None:
        nonlocal step
        sys.setprofile(None)  # this is not the work's
        finish_step()
        step += 1
        sys.setprofile(look)

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        work(finish)
    finally:
        sys.setprofile(None)
    if path is not None:
        calls = [
            (call._replace(before=before), shown[call])
            for call, count in made.items()
            for before in sorted({0, count // 2, count - 1})
        ]
        path.write_text(json.dumps(calls))


def _is_outward(function: Any) -> bool:
    if function.__name__ in _READING:
        return False
    owner = getattr(function, "__self__", None)
    home = owner.__name__ if isinstance(owner, ModuleType) else type(owner).__module__
    return home.partition(".")[0] not in _INWARD


def _where(frame: FrameType) -> str:
    """Name the line that a call comes from, the innermost of those that are not a library's."""
    at: FrameType | None = frame
    while at is not None and at.f_code.co_filename.startswith((_STDLIB, _SITE)):
        at = at.f_back
    at = at or frame
    return f"{Path(at.f_code.co_filename).name}:{at.f_lineno}"
