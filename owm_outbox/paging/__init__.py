"""What a job that pages an HTTP API or a database is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from owm_outbox.paging.keyset import keyset_pages
from owm_outbox.paging.options import ApiOptions, ApiPage, ApiUrl, PagedApiOptions
from owm_outbox.paging.records import valid_records
from owm_outbox.paging.styles import Cursors, LinkHeader, Offsets, PageNumbers

if TYPE_CHECKING:
    from owm_outbox.paging.api import PagedApi

__all__ = [
    "ApiOptions",
    "ApiPage",
    "ApiUrl",
    "Cursors",
    "LinkHeader",
    "Offsets",
    "PageNumbers",
    "PagedApi",
    "PagedApiOptions",
    "keyset_pages",
    "valid_records",
]


def __getattr__(name: str) -> Any:
    """Import `PagedApi` when it is first asked for: it takes requests along, which ``--help`` can do without."""
    if name != "PagedApi":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from owm_outbox.paging.api import PagedApi

    globals()[name] = PagedApi
    return PagedApi
