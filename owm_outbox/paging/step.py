"""What a plan decides, a page to fetch, and what it learns where that failed."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Failure", "Step"]


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


class Failure(NamedTuple):
    """Why a page could not be fetched, after all attempts.

    :param reason: one line.
    :param no_such_page: the API says that the page does not exist.
    :param unreachable: nothing answered at all.
    :param fix: what to check, if the API refuses such requests: it is a matter of configuration unless another page
        fares better.
    """

    reason: str
    no_such_page: bool = False
    unreachable: bool = False
    fix: str | None = None
