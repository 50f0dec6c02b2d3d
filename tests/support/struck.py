"""A producer with real cities that is killed ten times, while other things happen to where it delivers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from owm_outbox.cli.weather import read_cities

from support.commands import run, start
from support.ordeal import is_complete
from support.redis_cluster import until
from support.servers import Server
from support.streams import city_ids
from support.weather import serving

CITIES = int(os.environ.get("CHAOS_CITIES", "3300"))
KILLS = 10


def produce(
    folder: Path, sink: str, delivered: Callable[[], int], strikes: Mapping[int, Callable[[], object]]
) -> list[int]:
    """Run ``owm-producer`` until it is complete, killing it at ten points of its way; return the ids of the cities.

    :param delivered: how many entries are in the stream.
    :param strikes: what is done, while the n-th process is at work, before that is killed.
    """
    cities = read_cities()[:CITIES]
    with serving(cities) as service:
        args = ["--api-url", service.url, "--outbox", f"sqlite:///{folder}/tasks.db", "--sink", sink]
        args += ["--batch-size", str(max(10, CITIES // 60))]
        for number in range(1, KILLS + 1):
            process = start("owm-producer", *args)
            until(lambda goal=CITIES * number // (KILLS + 2): delivered() >= goal, 60)  # type: ignore[misc]  # bound now
            strikes.get(number, bool)()
            process.kill()
            process.communicate()
            if is_complete(folder / "tasks.db"):
                break
        else:
            outcome = run("owm-producer", *args, "--json")
            assert outcome.code == 0, outcome.err
    return [city.city_id for city in cities]


def check_once(server: Server, stream: str, wanted: list[int]) -> None:
    """Check that each city is there exactly once."""
    found = city_ids(server, stream)
    assert len(found) == len(wanted), f"{len(found)} entries, {len(set(found))} cities, of {len(wanted)}"
    assert sorted(found) == sorted(wanted)
    print(f"{len(found)} cities, each of them once")
