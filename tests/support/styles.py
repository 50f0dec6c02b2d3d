"""The cities of a Weather Service in other styles of paging, and a job that reads them."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from owm_outbox import Job, Page, Run
from owm_outbox.paging import ApiOptions, ApiPage, Cursors, LinkHeader, Offsets, PagedApi, PageNumbers
from owm_outbox.paging.styles import Style

from support.misbehaving import Exchange, Misbehaving, Reply

STYLES: dict[str, Style] = {
    "numbers": PageNumbers("p", "size"),
    "offsets": Offsets("skip", "take"),
    "cursors": Cursors("after", "take"),
    "cursor links": Cursors("after", "take"),
    "link header": LinkHeader("take"),
}
NUMBERED = ("numbers", "offsets")
CHAINED = ("cursors", "cursor links", "link header")


class Styled:
    """Replies to a request with a page in one of the styles, or as it was told for the page that begins there.

    :ivar asked: where each page that was asked for begins: the number of records before it.
    """

    def __init__(self, service: Misbehaving, kind: str) -> None:
        self.kind = kind
        self.cap = 10**9  # records per page, whatever is asked for
        self.total: int | None = -1  # what it says; -1: the truth
        self.asked: list[int] = []
        self.replies: dict[int, list[Reply]] = {}
        self.links = service.url  # the host of its links
        self.following: Callable[[Any], Any] = lambda following: following  # changes what names the next page
        service.misbehave(self)

    def fail(self, begins: int, reply: Reply, times: int = 1000) -> None:
        """Reply so to the next requests for the page that begins there."""
        self.replies[begins] = [reply] * times

    def __call__(self, exchange: Exchange) -> None:
        """Reply."""
        _, begins, _ = self._asked_for(exchange)
        self.asked.append(begins)
        (self.replies[begins].pop() if self.replies.get(begins) else self.give)(exchange)

    def _asked_for(self, exchange: Exchange) -> tuple[dict[str, str], int, int]:
        query = {name: values[0] for name, values in parse_qs(urlsplit(exchange.request.path).query).items()}
        limit = min(int(query.get("take") or query["size"]), self.cap)
        after = urlsafe_b64decode(query["after"]).decode() if "after" in query else None
        begins = int(query["p"]) * limit if "p" in query else int(query.get("skip") or after or 0)
        return query, begins, limit

    def give(self, exchange: Exchange) -> None:
        """Reply with a page."""
        query, begins, limit = self._asked_for(exchange)
        records = exchange.service.records
        body = {"items": list(map(json.loads, records[begins : begins + limit]))}
        if self.total is not None:
            body["total"] = len(records) if self.total == -1 else self.total  # type: ignore[assignment]
        ends = begins + limit
        cursor = urlsafe_b64encode(str(ends).encode()).decode() if ends < len(records) else None
        target = cursor and f"{self.links}/cities/?after={cursor.replace('=', '%3D')}&take={query.get('take')}"
        headers = {}
        if self.kind == "link header":
            target = self.following(target)
            headers = {"Link": f'<{self.links}/>; rel="first", <{target}>; rel="next"'} if target else {}
        elif self.kind in CHAINED:
            body["next"] = self.following(cursor if self.kind == "cursors" else target)
        exchange.send(200, json.dumps(body).encode(), **headers)


class Place(msgspec.Struct):
    """A record."""

    city_id: int
    latitude_deg: float


class Places(msgspec.Struct):
    """A page."""

    items: list[Place]
    total: int | None = None
    next: str | None = None


class Visit(msgspec.Struct):
    """A task."""

    task_id: str
    city_id: int


class StyledJob(Job[Visit]):
    """Reads the cities in a style."""

    name = "styled"

    class Options(ApiOptions, frozen=True):
        """The address."""

    def __init__(self, options: Any, style: Style, **limits: Any) -> None:
        super().__init__(options)
        self._style, self._limits = style, limits

    def key(self, task: Visit) -> int:
        """Return the city."""
        return task.city_id

    def pages(self, run: Run) -> Iterator[Page[Visit]]:
        """Yield the cities that are still to come."""

        def task(place: Place) -> Visit:
            return Visit(str(run.task_id(place.city_id)), place.city_id)

        limits = {"parse": _parse, "task": task, "style": self._style, **self._limits}
        with PagedApi(self.options, "/cities/", **limits) as api:
            yield from api.pages(run)


def _parse(body: bytes) -> ApiPage[Place]:
    places = msgspec.json.decode(body, type=Places)
    return ApiPage(places.items, total=places.total, next=places.next)
