"""The options of a job that pages an HTTP API; apart from `PagedApi`, because ``--help`` need not import requests."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from owm_outbox.job import JobOptions, Secret

__all__ = ["PagedApiOptions"]


class PagedApiOptions(JobOptions, frozen=True):
    """Where the API is and how to read it. A job gives ``api_url`` its default, and may add options of its own."""

    api_url: Annotated[str, Meta(pattern="^https?://[^/?#]+", description="Address of the API, http or https")]
    api_limit: Annotated[int, Meta(ge=1, le=100_000, description="Records a page to ask for")] = 100
    api_token: Annotated[Secret | None, Meta(description="Sent as bearer token")] = None
    first_page: Annotated[int, Meta(ge=0, description="Number of the API's first page")] = 0
    retry_wait: Annotated[
        float, Meta(gt=0, le=30, description="Seconds before a request's second attempt; doubles up to 30")
    ] = 1.0
    request_timeout: Annotated[
        float, Meta(gt=0, le=3600, description="Seconds for one request, from start to last byte")
    ] = 30.0
