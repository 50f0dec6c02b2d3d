"""An outbox on PostgreSQL that has lanes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from owm_outbox import Attendance, ConfigurationError, LaneRelay, Outbox, OutboxLocked, OutboxUnavailable, lane_of
from owm_outbox.plugins import open_outbox
from owm_outbox_backends.jsonl import JsonLinesSink
from owm_outbox_backends.postgresql import PostgresqlLanes, PostgresqlOutbox

from support.commands import run
from support.postgres_outbox import Note, Place, note
from support.weather import made_up, serving

LANES = 4
SHARED = "FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'"
TEXTS = [f"text {number}" for number in range(40)]


@pytest.fixture
def outbox(place: Place) -> Iterator[PostgresqlLanes]:
    """Open an outbox with four lanes."""
    with place.open_lanes(LANES) as outbox:
        yield outbox


def _key(task: Note) -> str:
    return task.text


def _append(outbox: Outbox, *texts: str) -> None:
    outbox.append([note(text) for text in texts], key=_key)


def _until(true: Callable[[], bool]) -> None:
    """Wait for what the server does in its own time: it notices that a connection was closed."""
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _relays(attendance: Callable[[], Attendance]) -> int:
    try:
        return attendance().relays
    except OutboxUnavailable:  # it was asked at the very moment
        return 0


def _texts(lane: Outbox) -> list[str]:
    return [json.loads(entry.payload)["text"] for entry in lane.read(0, 100)]


def test_each_key_is_in_its_lane(outbox: PostgresqlLanes) -> None:
    """A lane has the keys that lane_of says, in order; a task without a key is in that of its task_id."""
    _append(outbox, *TEXTS)
    _append(outbox, *TEXTS)
    for number in range(LANES):
        expected = [text for text in TEXTS if lane_of(text, LANES) == number]
        with outbox.lane(number) as lane:
            assert _texts(lane) == expected * 2
    keyless = note("keyless")
    outbox.append([keyless])
    with outbox.lane(lane_of(str(keyless.task_id), LANES)) as lane:
        assert _texts(lane)[-1] == "keyless"


def test_the_whole_is_the_sum_of_its_lanes(outbox: PostgresqlLanes) -> None:
    """What status shows: pending tasks, dead letters and their ages of all lanes; no two have a position in common."""
    _append(outbox, *TEXTS)
    stats = outbox.stats()
    assert (stats.pending, stats.dead, stats.runs) == (40, 0, ())
    assert stats.oldest is not None
    positions = []
    for number in range(LANES):
        with outbox.lane(number) as lane:
            positions += [entry.position for entry in lane.read(0, 100)]
    assert len(set(positions)) == 40


def test_dead_letters_are_those_of_all_lanes(outbox: PostgresqlLanes) -> None:
    """Listed by position, retried and dropped, each in its lane; unknown positions are ignored."""
    _append(outbox, *TEXTS)
    for number in range(LANES):
        with outbox.lane(number) as lane:
            lane.reject({lane.read(0, 1)[0].position: "poison"})
    positions = [letter.position for letter in outbox.dead_letters()]
    assert len(positions) == LANES
    assert positions == sorted(positions)
    assert outbox.retry([positions[0], positions[3], 7, -1, 2**62]) == 2
    assert outbox.drop([positions[1], 7]) == 1
    assert (outbox.stats().pending, outbox.stats().dead) == (38, 1)


def test_another_number_of_lanes_is_refused(outbox: PostgresqlLanes, place: Place) -> None:
    """A key would be in two lanes; also where nothing says lanes=."""
    for other in (1, 2, 8):
        with pytest.raises(ConfigurationError, match=rf"has 4 lanes, not {other}: open it with lanes=4"):
            open_outbox(f"{place.url}&lanes={other}")
    with open_outbox(f"{place.url}&lanes=4") as lanes, open_outbox(place.server.url(table=f"{place.table}x")) as plain:
        assert (type(lanes), type(plain)) == (PostgresqlLanes, PostgresqlOutbox)
    for wrong in ("0", "-1", "x", "1025"):
        with pytest.raises(ConfigurationError, match="lanes"):
            open_outbox(f"{place.url}&lanes={wrong}")
    for what in ("entries", "incoming", "positions", "runs", "lanes", "state", "version"):
        place.rows(f"DROP TABLE {{t}}x_{what}")


def test_who_attends_and_what_is_free_is_known(outbox: PostgresqlLanes, place: Place) -> None:
    """Relays count each other; a lane that one holds is not free."""
    with place.open_lanes(LANES) as other, outbox.attend() as mine:
        assert mine() == (1, [0, 1, 2, 3])
        with other.attend() as theirs, other.lane(2) as lane, lane.lock():
            assert mine() == theirs() == (2, [0, 1, 3])
            before = place.rows(f"SELECT pid, pg_terminate_backend(pid) {SHARED}")
            _until(lambda: _relays(mine) == _relays(theirs) == 2)  # one that lost its connection attends again
            after = place.rows(f"SELECT pid, true {SHARED}")
            assert (len(before), len(after), set(before) & set(after)) == (2, 2, set())
        _until(lambda: mine() == (1, [0, 1, 2, 3]))


def test_what_needs_one_order_is_refused(outbox: PostgresqlLanes, place: Place, tmp_path: Path) -> None:
    """A job's run is an error that says what to do (78), before anything is extracted."""
    for call in (lambda: outbox.read(0, 1), lambda: outbox.start_run("job"), lambda: outbox.reject({1: "no"})):
        with pytest.raises(ConfigurationError, match="has 4 lanes: deliver from it with owm-outbox relay"):
            call()
    with serving(made_up(3)) as api:
        url = f"{place.url}&lanes=4"
        done = run("owm-producer", "--outbox", url, "--sink", f"jsonl:{tmp_path}/out", "--api-url", api.url)
        assert (done.code, api.requests) == (78, [])
    assert "a job's run needs an outbox with one" in done.err


def test_all_lanes_are_drained(outbox: PostgresqlLanes, place: Place, tmp_path: Path) -> None:
    """One after the other, each to its own place; not while another relay holds one."""
    _append(outbox, *TEXTS)
    sink = f"jsonl:{tmp_path}/out.{{lane}}"
    args = ("--outbox", f"{place.url}&lanes={LANES}", "--sink", sink, "--log-level", "error")
    with outbox.lane(1) as lane, lane.lock():
        done = run("owm-outbox", "drain", *args)
        assert done.code == 75
        assert "is in use by another relay" in done.line
    assert run("owm-outbox", "drain", *args).code == 0
    assert outbox.stats().pending == 0
    for number in range(LANES):
        lines = (tmp_path / f"out.{number}").read_text().splitlines()
        assert [json.loads(line)["text"] for line in lines] == [t for t in TEXTS if lane_of(t, LANES) == number]


def test_a_lane_that_another_relay_holds_is_not_drained(outbox: PostgresqlLanes, tmp_path: Path) -> None:
    """As a library: OutboxLocked, and what is in the lanes before it was delivered."""
    _append(outbox, *TEXTS)
    relay = LaneRelay(outbox, lambda lane: JsonLinesSink(tmp_path / str(lane)))
    with outbox.lane(1) as lane, lane.lock(), pytest.raises(OutboxLocked):
        relay.drain()
    assert (tmp_path / "0").exists()
    assert not (tmp_path / "2").exists()


def test_a_plain_outbox_does_not_know_lanes(place: Place) -> None:
    """With one lane, the class for lanes and the plain one are the same outbox."""
    with place.open() as plain:
        plain.append([note("a")])
    with place.open_lanes(1) as lanes, lanes.lane(0) as lane:
        assert (lanes.lanes, lane.stats().pending) == (1, 1)
        assert isinstance(lane, PostgresqlOutbox)
