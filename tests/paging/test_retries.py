"""How long a request waits for its next attempt."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from uuid import uuid4

import pytest

from owm_outbox import Run
from owm_outbox.paging import ApiPage, PagedApi, PagedApiOptions

from support.misbehaving import Misbehaving, status


def _read(content: bytes) -> ApiPage[int]:
    page = json.loads(content)
    return ApiPage([city["city_id"] for city in page["cities"]], total=page["total_count"])


def _run() -> Run:
    return Run(str(uuid4()), "cities", datetime.now(UTC))


def _waits(service: Misbehaving, retry_wait: float = 1.0) -> list[float]:
    """Return the waits between the first five attempts for page 1, which always fails."""
    waits: list[float] = []
    options = PagedApiOptions(api_url=service.url, retry_wait=retry_wait, concurrency=1)
    with PagedApi(options, "/cities/", parse=_read, task=lambda record: record, sleep=waits.append) as api:
        *_, last = api.pages(_run())
        assert last.missing == [1]
    assert service.pages.count(1) == 10
    assert len(waits) == 8
    return waits[:4]


@pytest.mark.parametrize(("header", "wait"), [("7", 7.0), ("1", 1.0), ("60", 60.0), ("61", 60.0), ("86400", 60.0)])
@pytest.mark.parametrize("code", [429, 503, 403])
def test_retry_after_is_waited_up_to_a_minute(code: int, header: str, wait: float, service: Misbehaving) -> None:
    """The API gets the time that it asks for, and no more than a minute."""
    service.misbehave(status(code, Retry_After=header), 1)
    assert _waits(service) == [wait] * 4


@pytest.mark.parametrize(("seconds", "most"), [(20, 20), (3600, 60)])
def test_retry_after_may_name_a_moment(seconds: int, most: int, service: Misbehaving) -> None:
    """A date is waited for, up to a minute from now."""
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    service.misbehave(status(503, Retry_After=format_datetime(moment, usegmt=True)), 1)
    assert all(0 < wait <= most for wait in _waits(service))


@pytest.mark.parametrize("header", [None, "0", "-1", "soon", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_without_a_retry_after_the_waits_grow(header: str | None, service: Misbehaving) -> None:
    """Without a Retry-After that makes sense, each wait is twice the one before, with jitter."""
    service.misbehave(status(503) if header is None else status(503, Retry_After=header), 1)
    for wait, least in zip(_waits(service), (1, 2, 4, 8), strict=True):
        assert least <= wait <= least + 1


def test_no_wait_is_longer_than_half_a_minute(service: Misbehaving) -> None:
    """However long the first wait, none is longer than 30 s, and none is missing."""
    service.misbehave(status(500), 1)
    waits = _waits(service, retry_wait=10.0)
    assert 10 <= waits[0] <= 20
    assert waits[2:] == [30.0, 30.0]


def test_the_waits_of_two_clients_differ(service: Misbehaving) -> None:
    """There is jitter: clients that failed together do not come back together."""
    service.misbehave(status(500), 1)
    first = _waits(service)
    service.requests.clear()
    assert _waits(service) != first
