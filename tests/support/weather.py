"""Weather Services: the demo's stand-in in this process, with real or made-up cities."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

from owm_outbox.cli.weather import City, WeatherService


def made_up(count: int, *, first: int = 1) -> list[City]:
    """Return cities with the ids ``first``, ``first + 1`` and so on."""
    return [City(first + n, -90 + n % 180 + 0.25, -180 + n % 360 + 0.5, f"Ort {n}, 市") for n in range(count)]


class CountingService(WeatherService):
    """A Weather Service that remembers which paths it was asked for."""

    def __init__(self, cities: Sequence[City]) -> None:
        super().__init__(cities)
        self.requests: list[str] = []

    def answer(self, path: str) -> bytes | None:
        """Note the path, then answer."""
        self.requests.append(path)
        return super().answer(path)


@contextlib.contextmanager
def serving(cities: Sequence[City]) -> Iterator[CountingService]:
    """Serve these cities for the length of a block."""
    service = CountingService(cities)
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.shutdown()
        service.server_close()
