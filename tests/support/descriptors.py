"""A process that has so many files open that the next descriptor is more than ``select`` takes."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["SELECT_TAKES", "many_open_files"]

SELECT_TAKES = 1024
"""FD_SETSIZE: the first descriptor that is too much for ``select``."""


@contextmanager
def many_open_files() -> Iterator[None]:
    """Let every file that is opened within the block have a descriptor that ``select`` refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * SELECT_TAKES)), hard))
    opened: list[int] = []
    try:
        while not opened or opened[-1] < SELECT_TAKES:
            opened.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for fd in opened:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
