"""What a job that pages an HTTP API is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from owm_outbox.paging.options import ApiPage, ApiUrl, PagedApiOptions

if TYPE_CHECKING:
    from owm_outbox.paging.api import PagedApi

__all__ = ["ApiPage", "ApiUrl", "PagedApi", "PagedApiOptions"]


def __getattr__(name: str) -> Any:
    """Import `PagedApi` when it is first asked for: it takes requests along, which ``--help`` can do without."""
    if name != "PagedApi":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from owm_outbox.paging.api import PagedApi

    globals()[name] = PagedApi
    return PagedApi
