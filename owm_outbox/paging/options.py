"""The options of a job that pages an HTTP API, and one page of it as the job hands it over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Annotated, Generic, TypeVar
from urllib.parse import urlsplit

from msgspec import Meta

from owm_outbox.job import JobOptions, Secret
from owm_outbox.task import InvalidRecord

__all__ = ["ApiOptions", "ApiPage", "ApiUrl", "PagedApiOptions"]

Token = Annotated[Secret, Meta(pattern=r"^[\x20-\x7e]+\Z")]  # what an HTTP header can carry

R = TypeVar("R")

ApiUrl = Annotated[
    str,
    Meta(
        pattern=r"^https?://[^\s/?#]+(/[^\s?#]*)?\Z",
        description="Address of the API: http or https, without blanks or a query",
    ),
]
"""The type of ``api_url``: a text such as ``http://host:8000/v2``, which may name a user and a password."""


class ApiOptions(JobOptions, frozen=True):
    """Where the API is and how to read it. A job gives ``api_url`` its default, and may add options of its own."""

    api_url: ApiUrl
    api_limit: Annotated[int, Meta(ge=1, le=100_000, description="Records per page to ask for")] = 100
    api_token: Annotated[Token | None, Meta(description="Sent as bearer token")] = None
    ca_file: Annotated[
        str | None, Meta(description="PEM file of the certificate authorities to trust, instead of the usual ones")
    ] = None
    client_cert: Annotated[str | None, Meta(description="PEM file of the certificate to show to the API")] = None
    client_key: Annotated[str | None, Meta(description="PEM file of its key, if it is not in the same file")] = None
    concurrency: Annotated[int, Meta(ge=1, le=64, description="Requests at once, at most")] = 4
    second_pass: Annotated[
        bool,
        Meta(description="Read all pages twice, to find a record that moved to another page during the first pass"),
    ] = False
    retry_wait: Annotated[
        float, Meta(gt=0, le=30, description="Seconds before a request's second attempt; doubles up to 30")
    ] = 1.0
    request_timeout: Annotated[
        float, Meta(gt=0, le=3600, description="Seconds for one request, from start to last byte")
    ] = 30.0

    def __post_init__(self) -> None:
        try:
            host, _ = urlsplit(self.api_url).hostname, urlsplit(self.api_url).port
            (host or "").removesuffix(".").encode("idna")  # as the request will: each label has 1 to 63 characters
        except ValueError:
            host = None
        if not host:
            raise ValueError("api_url is not an address: write it as http://host:port")


class PagedApiOptions(ApiOptions, frozen=True):
    """The options of an API whose pages have numbers."""

    first_page: Annotated[int, Meta(ge=0, description="Number of the API's first page")] = 0


@dataclass(frozen=True, slots=True)
class ApiPage(Generic[R]):
    """One page of an API, read and checked.

    :param records: those that become tasks, in the order of the page.
    :param invalid: records that are not valid tasks.
    :param total: how many records the API says it has on all pages; ``None`` if it does not say.
    :param limit: how many records per page the API really gives, if it says so.
    :param next: what the body gives to name the next page, for `Cursors`: a value or a link; ``None`` or an empty text
        on the last page. The other styles ignore it.
    """

    records: Sequence[R]
    invalid: Sequence[InvalidRecord] = ()
    total: int | None = None
    limit: int | None = None
    next: str | int | EllipsisType | None = ...
