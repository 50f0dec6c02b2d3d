"""What a plan decides: a page to fetch."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Step"]


class Step(NamedTuple):
    """A page to fetch.

    :param beyond: the total says that there is no such page: a 404 is the end, not a failure.
    :param size: records per page, as far as is known.
    :param after: what the page before it gave to name this one; ``None`` for the first page, and where numbers do.
    """

    number: int
    beyond: bool = False
    size: int = 0
    after: str | int | None = None
