"""Looking at an outbox in PostgreSQL: with the right to read alone, and without a trace."""

from __future__ import annotations

import pytest
from psycopg.sql import SQL, Identifier

from owm_outbox import InvalidRecord, OutboxInvalid
from owm_outbox.plugins import look_at_outbox
from owm_outbox_backends.postgresql import PostgresqlOutbox

from support.commands import run
from support.postgres_outbox import Place, note

pytestmark = pytest.mark.slow

# Rows that a look might write, and what the server counts of them.
_WRITTEN = """
    SELECT count(*) FROM {t}_incoming UNION ALL SELECT count(*) FROM {t}_positions UNION ALL
    SELECT count(*) FROM {t}_lanes UNION ALL SELECT sum(last_position) FROM {t}_lanes
"""


def _reader(place: Place) -> str:
    """Make a role that may read the tables, and return the outbox's URL for it."""
    role = f"{place.table}_reader"
    with place.server.client() as admin:
        admin.execute(SQL("CREATE ROLE {} LOGIN PASSWORD 's3cret'").format(Identifier(role)))
        for name in ("entries", "incoming", "positions", "runs", "lanes", "state", "version"):
            admin.execute(SQL("GRANT SELECT ON {} TO {}").format(Identifier(f"{place.table}_{name}"), Identifier(role)))
    return place.url.replace("postgres:s3cret-of-postgres", f"{role}:s3cret")


def test_a_role_that_may_read_sees_all(own_place: Place) -> None:
    """Tasks without a position yet, runs and dead letters; nothing gets a position by being looked at."""
    with own_place.open() as outbox:
        record = outbox.start_run("notes")
        bad = InvalidRecord(b"x", "not a note", key="x")
        outbox.append([note("a")], key=lambda task: task.text, headers={"trace": "ab"}, run=record.id, invalid=[bad])
        outbox.reject({outbox.read(0, 10)[0].position: "no"})
        outbox.append([note("waits"), note("waits")])
        url = _reader(own_place)
        before = own_place.rows(_WRITTEN)
        status = run("owm-outbox", "status", "--json", "--outbox", url)
        assert (status.code, status.err) == (0, "")
        assert (status.report["pending"], status.report["dead"], len(status.report["runs"])) == (2, 2, 1)
        for command in (("runs",), ("dead", "list"), ("status", "--max-pending", "2"), ("status", "--html", "-")):
            done = run("owm-outbox", *command, "--outbox", url)
            assert (done.code, done.err) == (0, ""), command
            assert "s3cret" not in done.out
        assert own_place.rows(_WRITTEN) == before
    with look_at_outbox(url) as opened:
        assert isinstance(opened, PostgresqlOutbox)
        letters = {letter.key: letter for letter in opened.dead_letters()}
        assert {key: (letter.run, dict(letter.headers)) for key, letter in letters.items()} == {
            "a": (record.id, {"trace": "ab"}),
            "x": (record.id, {}),
        }


def test_runs_knows_more_than_the_stats(own_place: Place) -> None:
    """The stats have ten; the outbox keeps more."""
    with own_place.open() as outbox:
        for number in range(12):
            outbox.start_run(f"job-{number}")
        assert [record.job for record in outbox.runs(11)] == [f"job-{number}" for number in range(11, 0, -1)]
        assert len(outbox.stats().runs) == 10


def test_a_look_at_lanes_makes_none(own_place: Place) -> None:
    """Each lane is shown, those that no relay ever opened, too, and holders are as they were."""
    with own_place.open_lanes(4) as outbox:
        outbox.append([note("a"), note("b"), note("c")], key=lambda task: task.text)
    url = f"{_reader(own_place)}&lanes=4"
    before = own_place.rows(_WRITTEN)
    status = run("owm-outbox", "status", "--json", "--outbox", url)
    assert (status.code, status.err) == (0, "")
    assert [lane["lane"] for lane in status.report["lanes"]] == [0, 1, 2, 3]
    assert sum(lane["pending"] for lane in status.report["lanes"]) == status.report["pending"] == 3
    text = run("owm-outbox", "status", "--outbox", url).out.splitlines()
    assert text[3:5] == ["lanes", "  lane  pending  oldest  dead"]
    assert len(text) == 5 + 4
    assert own_place.rows(_WRITTEN) == before


def test_where_there_is_nothing_a_look_makes_nothing(own_place: Place) -> None:
    """It says so with 73; the tables are not made."""
    with pytest.raises(OutboxInvalid, match="there is no outbox"):
        look_at_outbox(own_place.url)
    assert own_place.rows("SELECT count(*) FROM pg_class WHERE relname LIKE '{t}%%'") == [(0,)]
