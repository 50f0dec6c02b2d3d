"""Pages of a database table, each from where the one before it ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from owm_outbox.errors import JobError, SourceUnavailable
from owm_outbox.job import Page
from owm_outbox.run import Run
from owm_outbox.task import InvalidRecord

__all__ = ["keyset_pages"]

R = TypeVar("R")
T = TypeVar("T")


def keyset_pages(
    run: Run,
    read: Callable[[Any, int], Sequence[R]],
    *,
    key: Callable[[R], Any],
    task: Callable[[R], T | InvalidRecord],
    limit: int = 500,
    unavailable: type[Exception] | tuple[type[Exception], ...] = (),
) -> Iterator[Page[T]]:
    """Yield the rows that come after the run's checkpoint, which is the key of the last row before them.

    Unlike OFFSET, this costs the same for every page, and rows that come or go meanwhile move no others. A row whose
    key is smaller than those that were read already, such as one of a transaction that took long to commit, is found
    by the next run.

    :param read: takes a key, ``None`` for the first page, and a limit; returns that many rows of greater keys, fewer or
        none at the end, ordered by key: ``SELECT … WHERE id > ? ORDER BY id LIMIT ?``.
    :param key: of a row: what orders it, unique. An ``int``, a ``str``, or a tuple of them.
    :param task: turns a row into a task, or into an `InvalidRecord`, which becomes a dead letter.
    :param limit: rows per page.
    :param unavailable: errors of ``read`` that mean that the database cannot be read now.
    :raises SourceUnavailable: ``read`` raised one of these.
    :raises JobError: the rows are not in the order of their keys, so some would be left out.
    """
    after = msgspec.json.decode(run.checkpoint) if run.checkpoint else None
    while True:
        after = tuple(after) if isinstance(after, list) else after
        try:
            rows = read(after, limit)
        except unavailable as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise SourceUnavailable(
                f"the database of job {run.job!r} cannot be read: {reason}; run again later"
            ) from error
        if not rows:
            return
        for row in rows:
            before, after = after, key(row)
            if before is not None and not before < after:
                raise JobError(
                    f"job {run.job!r} reads a row with key {after!r} after {before!r}: order the rows by their key, "
                    "which has to be unique, and read only greater ones"
                )
        made = list(map(task, rows))
        yield Page(
            [one for one in made if not isinstance(one, InvalidRecord)],
            checkpoint=msgspec.json.encode(after),
            invalid=[one for one in made if isinstance(one, InvalidRecord)],
        )
