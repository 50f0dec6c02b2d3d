"""How an API pages: what is asked for to get a page, and where the next one is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from owm_outbox.paging.step import Step

__all__ = ["Cursors", "LinkHeader", "Offsets", "PageNumbers", "Style"]


@dataclass(frozen=True, slots=True)
class PageNumbers:
    """``?page=3&limit=100``. Any page can be asked for, so several are fetched at once.

    :param page: the parameter that takes the number of a page.
    :param limit: the parameter that takes the number of records per page.
    """

    page: str = "page"
    limit: str = "limit"

    def query(self, step: Step, limit: int) -> Mapping[str, Any]:
        """Return the parameters that ask for a page."""
        return {self.page: step.number, self.limit: limit}


@dataclass(frozen=True, slots=True)
class Offsets:
    """``?offset=300&limit=100``. Any page can be asked for, so several are fetched at once.

    Where the first page has fewer records than asked for, each next offset is that much further: the API may give no
    more per page, and whatever lies between would be lost.

    :param offset: the parameter that takes the number of records to skip.
    :param limit: the parameter that takes the number of records per page.
    """

    offset: str = "offset"
    limit: str = "limit"

    def query(self, step: Step, limit: int) -> Mapping[str, Any]:
        """Return the parameters that ask for a page."""
        return {self.offset: step.number * step.size, self.limit: limit}


@dataclass(frozen=True, slots=True)
class Cursors:
    """``?cursor=eyJpZCI6…&limit=100``. The body of a page names the next one, so they are fetched one by one.

    ``parse`` gives it as ``ApiPage.next``: a value for the parameter, or a link, which may be relative.

    :param cursor: the parameter that takes the value; the first page is asked for without it.
    :param limit: the parameter that takes the number of records per page.
    """

    cursor: str = "cursor"
    limit: str = "limit"

    def query(self, step: Step, limit: int) -> Mapping[str, Any]:
        """Return the parameters that ask for a page."""
        return {self.limit: limit} if step.after is None else {self.cursor: step.after, self.limit: limit}


@dataclass(frozen=True, slots=True)
class LinkHeader:
    """``Link: <…>; rel="next"`` (RFC 8288). The header of a page names the next one, so they are fetched one by one.

    :param limit: the parameter that takes the number of records per page.
    """

    limit: str = "limit"

    def query(self, step: Step, limit: int) -> Mapping[str, Any]:
        """Return the parameters that ask for the first page; all others are links."""
        return {self.limit: limit}


Style = PageNumbers | Offsets | Cursors | LinkHeader
