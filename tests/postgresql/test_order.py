"""Positions follow commits: whoever commits late is read late, and nothing appears behind a reader."""

from __future__ import annotations

import random
import threading

import psycopg
import pytest

from owm_outbox import Entry
from owm_outbox_backends.postgresql import PostgresqlOutbox

from support.postgres_outbox import Place, note


def _texts(entries: list[Entry]) -> list[str]:
    return [str(entry.key) for entry in entries]


def _append(outbox: PostgresqlOutbox, text: str, connection: psycopg.Connection[tuple[object, ...]]) -> None:
    outbox.append([note(text)], key=lambda task: task.text, connection=connection)


def test_what_commits_late_is_read_late(place: Place) -> None:
    """A task that was inserted first and committed last is beyond all that a reader has passed."""
    url = place.server.url()
    with place.open() as outbox, psycopg.connect(url) as late, psycopg.connect(url) as early:
        _append(outbox, "inserted first", late)
        _append(outbox, "inserted second", early)
        early.commit()
        first = list(outbox.read(0, 10))
        assert _texts(first) == ["inserted second"]
        late.commit()
        assert _texts(list(outbox.read(first[-1].position, 10))) == ["inserted first"]


def test_a_reader_does_not_wait_for_a_transaction_that_is_open(place: Place) -> None:
    """While one application's transaction takes long, all that others committed is delivered."""
    with place.open() as outbox, psycopg.connect(place.server.url()) as slow:
        _append(outbox, "slow", slow)
        outbox.append([note("quick")], key=lambda task: task.text)
        assert _texts(list(outbox.read(0, 10))) == ["quick"]
        assert outbox.stats().pending == 1
        slow.rollback()
        assert _texts(list(outbox.read(0, 10))) == ["quick"]


@pytest.mark.slow
def test_many_writers_that_commit_out_of_order(place: Place) -> None:
    """Eight writers with long, short and rolled-back transactions: a reader meets each committed task once."""
    committed: set[str] = set()
    writing = [True] * 8
    meet = threading.Barrier(9)

    def write(number: int) -> None:
        chance = random.Random(number)  # noqa: S311 - chooses moments
        pause = threading.Event()
        with place.open() as outbox, psycopg.connect(place.server.url()) as connection:
            meet.wait()
            for step in range(60):
                texts = [f"{number} {step} {part}" for part in range(chance.randint(1, 4))]
                for text in texts:
                    _append(outbox, text, connection)
                    pause.wait(chance.choice([0, 0, 0.001, 0.01]))
                if chance.random() < 0.2:
                    connection.rollback()
                else:
                    connection.commit()
                    committed.update(texts)
        writing[number] = False

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    seen: list[Entry] = []
    with place.open() as outbox:
        meet.wait()
        more = True
        while more:
            more = any(writing)  # asked before reading: then one more look finds what was last
            found = outbox.read(seen[-1].position if seen else 0, 7)
            seen.extend(found)
            more = more or bool(found)
        for thread in threads:
            thread.join(30)
        texts = _texts(seen)
        assert len(texts) == len(set(texts))
        assert set(texts) == committed
        assert seen == list(outbox.read(0, 10_000))
    for number in range(8):
        steps = [tuple(map(int, text.split())) for text in texts if text.startswith(f"{number} ")]
        assert steps == sorted(steps), "one writer's tasks are in another order than it appended them"
