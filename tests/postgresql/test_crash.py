"""Wherever a run on PostgreSQL is killed, the next call completes it: no task is lost, none is there twice."""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from owm_outbox import RunReport

from support.crash import Ending, Forge, SweepJob
from support.postgres import PostgresServer
from support.postgres_outbox import Place, place_on
from support.servers import Server, binaries, running
from support.streams import tasks

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("CRASH_SEED") or random.SystemRandom().randrange(2**32))
TRIALS = -(-int(os.environ.get("CRASH_TRIALS") or 100) // 4)


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Give a server that takes no entry of a megabyte, so that the run has one refused for good."""
    folder = tmp_path_factory.mktemp("redis")
    with running(binaries()["valkey"], folder, "--proto-max-bulk-len", str(2**20)) as server:
        yield server


class Trial:
    """A run on tables of its own, which is killed, and then left to complete."""

    def __init__(self, forge: Forge, url: str, server: Server, level: str) -> None:
        self._forge, self._url, self._server, self._level = forge, url, server, level
        self._stream = f"s{uuid.uuid4().hex}"

    def run(self, die_at: int | None = None) -> Ending:
        """Run it, up to a boundary or to its end; one that was killed a moment ago may still have the lock."""
        for _ in range(100):
            ending = self._forge.sweep(self._url, self._server.url(self._stream), level=self._level, die_at=die_at)
            if ending.code != 75:
                break
        return ending

    def found(self) -> dict[int, str]:
        """Return the task ids in the stream, by their keys, each of which is there once."""
        found = [(int(str(task["city_id"])), str(task["task_id"])) for task in tasks(self._server, self._stream)]
        assert len(found) == len(dict(found)), "a task is there twice"
        return dict(found)


def _is_complete(place: Place) -> bool:
    tables = place.rows(f"SELECT to_regclass('{place.table}_runs')")  # killed before they were made
    return tables != [(None,)] and place.rows("SELECT count(*) FROM {t}_runs WHERE state = 'complete'") == [(1,)]


@pytest.mark.parametrize("level", ["calls", "statements"])
@pytest.mark.timeout(300)
def test_killed_at_boundaries(
    postgres: PostgresServer, redis_server: Server, tmp_path: Path, level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kill before or after any call of the outbox, or any statement, from the first table on, costs nothing."""
    chance = random.Random(SEED)  # noqa: S311 - to be repeated, not to be secret
    cities = set(range(1, SweepJob.pages_in_all * SweepJob.page_size + 1))
    with Forge(tmp_path) as forge:
        with place_on(postgres) as place:
            whole = Trial(forge, place.url, redis_server, level).run()
        assert whole.code == 0, whole.said
        boundaries = len(whole.passed)
        assert boundaries > (15 if level == "calls" else 150)
        for die_at in sorted(chance.sample(range(1, boundaries + 1), min(TRIALS, boundaries))):
            with place_on(postgres) as place:
                trial = Trial(forge, place.url, redis_server, level)
                assert trial.run(die_at).killed, f"CRASH_SEED={SEED}: not killed at {die_at}"
                if _is_complete(place):  # the last boundaries are behind its end: another run would be a new one
                    assert set(trial.found()) == cities - {SweepJob.huge}
                    continue
                ending = trial.run()
                assert ending.code == 0, f"CRASH_SEED={SEED}, killed at {die_at}: {ending.said}"
                with place.open() as outbox:
                    (run,) = [run for run in outbox.stats().runs if run.extracted]
                    report = msgspec.json.decode(run.report or b"", type=RunReport)
                    assert (run.state, report.complete, report.pending, report.redelivered) == ("complete", True, 0, 0)
                    assert (report.extracted, report.duplicates, report.rejected) == (len(cities), 1, 2)
                    assert (outbox.stats().dead, list(outbox.read(0, 1))) == (2, [])
                ids = {city: str(uuid.uuid5(uuid.UUID(run.id), str(city))) for city in cities - {SweepJob.huge}}
                assert trial.found() == ids, f"CRASH_SEED={SEED}, killed at {die_at} of {boundaries}"
    with capsys.disabled():
        print(f"\nCRASH_SEED={SEED}: killed at {min(TRIALS, boundaries)} of {boundaries} boundaries of {level}")
