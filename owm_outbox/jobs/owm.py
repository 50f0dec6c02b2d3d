"""The OWM ingestion producer: one task for every city that the Weather Service knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Generic, TypeVar
from uuid import UUID

import msgspec
from msgspec import Meta

from owm_outbox.job import Job, Page, Run
from owm_outbox.paging_types import Answer, ApiUrl, PagedApiOptions
from owm_outbox.task import Rejected

if TYPE_CHECKING:
    from owm_outbox.paging import PagedApi

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


class _Keyed(msgspec.Struct):
    city_id: int


_read_page = msgspec.json.Decoder(_Cities[_City] | list[_City]).decode
_read_raw_page = msgspec.json.Decoder(_Cities[msgspec.Raw] | list[msgspec.Raw]).decode


class OwmJob(Job[OwmIngestionTask]):
    """Page the Weather Service for all its cities and make one ingestion task a city."""

    name = "owm"

    class Options(PagedApiOptions, frozen=True):
        """The Weather Service's address."""

        api_url: ApiUrl = "http://outpost-api-weather:8000"

    def key(self, task: OwmIngestionTask) -> int:
        """Two tasks of one run for the same city are one."""
        return task.city_id

    def pages(self, run: Run) -> Iterator[Page[OwmIngestionTask]]:
        """Yield the cities that come after the run's checkpoint."""
        # It imports requests, which --help and --version do without; and now, not with the first page, where a signal
        # could end it half-way.
        from owm_outbox.paging import PagedApi

        return self._pages(PagedApi, run)

    def _pages(self, api_class: type[PagedApi[_City, OwmIngestionTask]], run: Run) -> Iterator[Page[OwmIngestionTask]]:
        def task(city: _City) -> OwmIngestionTask:
            return OwmIngestionTask(run.task_id(city.city_id), city.latitude_deg, city.longitude_deg, city.city_id)

        with api_class(self.options, "/cities/", parse=_parse, task=task) as api:
            yield from api.pages(run)


def _parse(body: bytes) -> Answer[_City]:
    """Read a page: the object with cities and total, or a bare array; cities that are none are set apart."""
    rejected: list[Rejected] = []
    try:
        page = _read_page(body)  # all at once: this is the hot path
        cities = page if isinstance(page, list) else page.cities
    except msgspec.ValidationError:
        page = _read_raw_page(body)
        cities = []
        for raw in page if isinstance(page, list) else page.cities:
            try:
                cities.append(msgspec.json.decode(raw, type=_City))
            except msgspec.ValidationError as error:
                rejected.append(Rejected(bytes(raw), str(error), _key(raw)))
    if isinstance(page, list):
        return Answer(cities, rejected)
    return Answer(cities, rejected, page.total_count, page.limit)


def _key(raw: msgspec.Raw) -> int | None:
    try:
        return msgspec.json.decode(raw, type=_Keyed).city_id
    except msgspec.ValidationError:
        return None
