"""The OWM ingestion producer: one task for every city that the Weather Service knows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

import msgspec
from msgspec import Meta

from owm_outbox.job import Job, Page
from owm_outbox.paging import ApiPage, ApiUrl, PagedApiOptions, valid_records
from owm_outbox.run import Run
from owm_outbox.task import InvalidRecord

__all__ = ["OwmIngestionTask", "OwmJob"]

C = TypeVar("C")


class OwmIngestionTask(msgspec.Struct, frozen=True):
    """What a weather worker gets, as JSON in the field ``data`` of a stream entry."""

    task_id: UUID
    latitude_deg: float
    longitude_deg: float
    city_id: int


class _City(msgspec.Struct):
    city_id: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
    latitude_deg: Annotated[float, Meta(ge=-90, le=90)]
    longitude_deg: Annotated[float, Meta(ge=-180, le=180)]


class _Cities(msgspec.Struct, Generic[C]):
    cities: list[C]
    total_count: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    limit: int | None = None


_read_page = msgspec.json.Decoder(_Cities[_City] | list[_City]).decode
_read_raw_page = msgspec.json.Decoder(_Cities[msgspec.Raw] | list[msgspec.Raw]).decode


class OwmJob(Job[OwmIngestionTask]):
    """Pages the Weather Service for all its cities, and makes one ingestion task per city.

    :param limits: of attempts, bodies and the circuit breaker, see `PagedApi`.
    """

    name = "owm"
    default_outbox = "sqlite:////tmp/owm_producer_tasks.db"
    default_sink = "redis://localhost:6379/0?stream=owm-ingestion-stream"

    class Options(PagedApiOptions, frozen=True):
        """The Weather Service's address."""

        api_url: ApiUrl = "http://outpost-api-weather:8000"

    def __init__(self, options: Any = None, **limits: Any) -> None:
        super().__init__(options)
        self._limits = limits

    def key(self, task: OwmIngestionTask) -> int:
        """Two tasks of one run for the same city are one."""
        return task.city_id

    def pages(self, run: Run) -> Iterator[Page[OwmIngestionTask]]:
        """Yield the cities that come after the run's checkpoint."""
        from owm_outbox.paging import PagedApi  # which imports requests; --help and --version can do without

        def task(city: _City) -> OwmIngestionTask:
            return OwmIngestionTask(run.task_id(city.city_id), city.latitude_deg, city.longitude_deg, city.city_id)

        with PagedApi(self.options, "/cities/", parse=_parse, task=task, **self._limits) as api:
            yield from api.pages(run)


def _parse(body: bytes) -> ApiPage[_City]:
    """Read a page: the object with cities and total, or a bare array; cities that are not valid are set apart."""
    try:
        return _read(body)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError as error:
        # Half a surrogate pair, as of a name that was cut off, is valid by the grammar of JSON, but not to msgspec. It
        # must not cost the other cities of its page: no task holds a text, so it may become a question mark.
        try:
            text = json.dumps(json.loads(body), ensure_ascii=False)
        except ValueError:
            raise error from None
        return _read(text.encode(errors="replace"))


def _read(body: bytes) -> ApiPage[_City]:
    cities: Sequence[_City]
    invalid: Sequence[InvalidRecord] = ()
    try:
        page = _read_page(body)  # all at once: this is the hot path
        cities = page if isinstance(page, list) else page.cities
    except msgspec.ValidationError:
        page = _read_raw_page(body)
        cities, invalid = valid_records(page if isinstance(page, list) else page.cities, _City, key="city_id")
    if isinstance(page, list):
        return ApiPage(cities, invalid)
    return ApiPage(cities, invalid, page.total_count, page.limit)
