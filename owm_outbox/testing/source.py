"""What a job under test reads from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from owm_outbox.entry import Key
from owm_outbox.job import Job

__all__ = ["Source"]


@dataclass(frozen=True, slots=True)
class Source:
    """A small source, of at least three pages, that gives the same each time it is read.

    :param open: makes the job with its options; called again, another object that reads from the same source.
    :param keys: the keys of all tasks, as `Job.key` returns them, and as often as the source lists them. Write them
        down rather than have the job compute them. For a job without a ``key`` of its own, that is what it gives to
        ``run.task_id``.
    :param invalid: how many distinct records of the source are not valid tasks.
    :param failing: takes a number, and makes a block within which the source fails from this read on, counted from 1.
    """

    open: Callable[[], Job[Any]]
    keys: Sequence[Key]
    invalid: int = 0
    failing: Callable[[int], AbstractContextManager[object]] | None = None
