"""What a Redis user may do: asked for before anything is fetched, and what is missing is named as rules to grant."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from owm_outbox import ConfigurationError, SinkFull

from support.commands import run
from support.producer import BATCH, COUNT, After, Producer
from support.servers import Server
from support.streams import Worker, city_ids

pytestmark = pytest.mark.slow

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
RULE = re.findall(r"^ACL SETUSER owm on >PASSWORD (.+)$", README, re.MULTILINE)[0]
COMMANDS = re.findall(r"\+\S+", RULE)
TO_TRIM = {"+xinfo|groups", "+xpending", "+xtrim"}


@pytest.fixture
def admin(own_server: Server) -> Iterator[Any]:
    """Give a client that may do everything."""
    with own_server.client() as client:
        yield client


def _grant(admin: Any, rules: str) -> None:
    admin.execute_command(f"ACL SETUSER worker reset on >pw {rules}")


def _minimal(stream: str, *, without: str = "") -> str:
    """Return the README's rules for a stream, less one of them."""
    rules = RULE.replace("owm-ingestion-stream", stream).split()
    return " ".join(rule for rule in rules if rule != without)


def _as_worker(url: str) -> str:
    return url.replace("redis://", "redis://worker:pw@")


def test_the_rights_in_the_readme_are_enough(producer: Producer, own_server: Server, admin: Any) -> None:
    """A user with exactly these rights delivers, waits for readers, and trims."""
    _grant(admin, _minimal(producer.stream))
    worker = Worker(own_server, producer.stream, "readers")
    url = _as_worker(producer.url(own_server, maxlen=2 * BATCH))
    producer.fails(url, because=SinkFull)
    for _ in range(COUNT // BATCH):
        worker.acknowledge(worker.take(BATCH))
        if producer.stats().pending > BATCH:
            producer.fails(url, because=SinkFull)
    assert producer.run(url).complete
    worker.acknowledge(worker.take(COUNT))
    assert len(worker.read) == COUNT


@pytest.mark.parametrize("rule", COMMANDS)
def test_each_right_in_the_readme_is_needed_and_asked_for(
    producer: Producer, own_server: Server, admin: Any, rule: str
) -> None:
    """Without one of them the run is refused before anything is fetched, and the line has the rule to grant."""
    _grant(admin, _minimal(producer.stream, without=rule))
    url = _as_worker(producer.url(own_server))
    error = producer.refuses(url, because=ConfigurationError)
    assert str(error).endswith(f"the user lacks rights: grant them with ACL SETUSER worker {rule}")
    assert (producer.fetched, admin.keys()) == ([], [])
    admin.execute_command(f"ACL SETUSER worker {rule}")
    producer.check_complete(own_server, producer.run(url))


def test_all_that_is_missing_is_listed_at_once(producer: Producer, own_server: Server, admin: Any) -> None:
    """Commands and keys that the user lacks stand in one line."""
    _grant(admin, f"~{producer.stream} +@all -hset -xadd -xpending")
    error = producer.refuses(_as_worker(producer.url(own_server)), because=ConfigurationError)
    assert str(error).endswith(f"ACL SETUSER worker +hset +xadd +xpending ~{producer.marks}")


def test_without_a_bound_no_right_to_trim_is_needed(producer: Producer, own_server: Server, admin: Any) -> None:
    """With ``maxlen=0`` a user without the rights to trim delivers everything."""
    rules = [rule for rule in _minimal(producer.stream).split() if rule not in TO_TRIM]
    _grant(admin, " ".join(rules))
    producer.check_complete(own_server, producer.run(_as_worker(producer.url(own_server, maxlen=0))))


def test_rights_to_wait_for_copies(producer: Producer, own_server: Server, admin: Any) -> None:
    """With ``wait_replicas`` the right to WAIT is asked for, too."""
    _grant(admin, _minimal(producer.stream))
    error = producer.refuses(_as_worker(producer.url(own_server, wait_replicas=1)), because=ConfigurationError)
    assert str(error).endswith("ACL SETUSER worker +wait")


def test_asking_changes_nothing(producer: Producer, own_server: Server, admin: Any) -> None:
    """What is asked for rights leaves stream and marks as they are, whatever is in them."""
    producer.run(producer.url(own_server))
    before = [admin.dump(key) for key in (producer.stream, producer.marks)]
    with producer.sink(own_server) as sink:
        sink.check_rights()
    assert [admin.dump(key) for key in (producer.stream, producer.marks)] == before
    assert len(admin.keys()) == 2


def test_a_right_taken_away_in_the_middle(producer: Producer, own_server: Server, admin: Any) -> None:
    """A right that is revoked during a run ends it with 78; no batch is there by halves, and nothing is lost."""
    _grant(admin, "~* +@all")
    revoke = After(lambda: admin.execute_command("ACL SETUSER worker -xadd"), batches=2)
    url = _as_worker(producer.url(own_server))
    producer.fails(url, revoke, because=ConfigurationError, code=78)
    assert (producer.stats().pending, producer.stats().dead) == (BATCH, 0)
    assert city_ids(own_server, producer.stream) == list(range(1, 2 * BATCH + 1))
    admin.execute_command("ACL SETUSER worker +xadd")
    producer.check_complete(own_server, producer.run(url))


# -- what is asked, but not needed


def test_a_setting_that_is_not_told_hides_no_other(
    producer: Producer, own_server: Server, admin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Where CONFIG is refused, as by managed servers, INFO still tells that the server may evict the stream."""
    admin.config_set("maxmemory", "1gb")
    admin.config_set("maxmemory-policy", "allkeys-lru")
    _grant(admin, f"{_minimal(producer.stream)} +info")
    with caplog.at_level(logging.WARNING):
        producer.check_complete(own_server, producer.run(_as_worker(producer.url(own_server))))
    assert [record for record in caplog.messages if "maxmemory-policy is allkeys-lru" in record]


def test_a_limit_is_known_though_memory_is_not(producer: Producer, own_server: Server, admin: Any) -> None:
    """Where INFO is refused, CONFIG still tells how large a payload may be."""
    admin.config_set("proto-max-bulk-len", 2**20)
    _grant(admin, f"{_minimal(producer.stream)} +config|get")
    producer.run(_as_worker(producer.url(own_server)))
    with producer.sink(own_server) as sink:
        assert sink.largest_payload == 2**20


# -- owm-outbox check


def test_check_lists_what_is_missing(own_server: Server, admin: Any, stream: str, tmp_path: Path) -> None:
    """``check sink`` ends with 78 and the rules to grant."""
    _grant(admin, _minimal(stream, without="+xtrim").replace("+hset ", ""))
    outcome = run("owm-outbox", "check", "sink", _as_worker(own_server.url(stream)), cwd=tmp_path)
    assert (outcome.code, outcome.out) == (78, "")
    assert outcome.line.endswith("the user lacks rights: grant them with ACL SETUSER worker +hset +xtrim")


def test_check_says_what_it_needs_beyond_delivery(own_server: Server, admin: Any, stream: str, tmp_path: Path) -> None:
    """A user who may deliver, but not make the scratch stream, is told so; with these rights every promise holds."""
    _grant(admin, _minimal(stream))
    url = _as_worker(own_server.url(stream))
    outcome = run("owm-outbox", "check", "sink", url, cwd=tmp_path)
    assert (outcome.code, outcome.out) == (78, "")
    rules = outcome.line.rpartition("ACL SETUSER worker ")[2]
    assert "has all the rights that delivery needs" in outcome.line
    admin.execute_command(f"ACL SETUSER worker {rules}")
    outcome = run("owm-outbox", "check", "sink", url, cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert "FAIL" not in outcome.out
