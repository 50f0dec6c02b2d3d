"""The OWM ingestion producer: one task for every city that the Weather Service knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta

from owm_outbox.job import Job, Page, Run
from owm_outbox.paging_options import PagedApiOptions
from owm_outbox.task import Rejected

__all__ = ["OwmIngestionTask", "OwmJob"]

_INT64 = 2**63


class OwmIngestionTask(msgspec.Struct, frozen=True):
    """What a weather worker gets, as JSON in the field ``data`` of a stream entry."""

    task_id: UUID
    latitude_deg: float
    longitude_deg: float
    city_id: int


class _City(msgspec.Struct):
    city_id: Annotated[int, Meta(ge=-_INT64, le=_INT64 - 1)]
    latitude_deg: Annotated[float, Meta(ge=-90, le=90)]
    longitude_deg: Annotated[float, Meta(ge=-180, le=180)]


class _Keyed(msgspec.Struct):
    city_id: int


class _Cities(msgspec.Struct):
    cities: list[msgspec.Raw]
    total_count: Annotated[int, Meta(ge=0)]
    limit: int | None = None


_read_answer = msgspec.json.Decoder(_Cities | list[msgspec.Raw]).decode
_read_city = msgspec.json.Decoder(_City).decode
_read_key = msgspec.json.Decoder(_Keyed).decode


class OwmJob(Job[OwmIngestionTask]):
    """Page the Weather Service for all its cities and make one ingestion task a city."""

    name = "owm"

    class Options(PagedApiOptions, frozen=True):
        """The Weather Service's address."""

        api_url: Annotated[
            str, Meta(pattern="^https?://[^/?#]+", description="Address of the Weather Service, http or https")
        ] = "http://outpost-api-weather:8000"

    def key(self, task: OwmIngestionTask) -> int:
        """Two tasks of one run for the same city are one."""
        return task.city_id

    def pages(self, run: Run) -> Iterator[Page[OwmIngestionTask]]:
        """Yield the cities that come after the run's checkpoint."""
        # Imports requests, which --help and --version do without.
        from owm_outbox.paging import Answer, PagedApi

        def task(city: _City) -> OwmIngestionTask:
            return OwmIngestionTask(run.task_id(city.city_id), city.latitude_deg, city.longitude_deg, city.city_id)

        def parse(body: bytes) -> Answer[OwmIngestionTask]:
            answer = _read_answer(body)
            bare = isinstance(answer, list)
            tasks, rejected = [], []
            for raw in answer if bare else answer.cities:
                try:
                    tasks.append(task(_read_city(raw)))
                except msgspec.ValidationError as error:
                    rejected.append(Rejected(bytes(raw), str(error), _key(raw)))
            return Answer(tasks, rejected, *(() if bare else (answer.total_count, answer.limit)))

        with PagedApi(self.options, "/cities/", parse) as api:
            yield from api.pages(run)


def _key(raw: msgspec.Raw) -> int | None:
    try:
        return int(_read_key(raw).city_id)
    except msgspec.ValidationError:
        return None
