"""What waiting does not fix ends with 78 and one line that says what to write."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from owm_outbox import URL, ConfigurationError, SinkUnavailable
from owm_outbox.plugins import open_sink
from owm_outbox_backends.redis_stream import RedisClusterSink

from support.commands import run
from support.producer import BATCH, COUNT, Each, Producer
from support.redis_cluster import Cluster, Node, ask, running_cluster, until
from support.servers import binaries, running
from support.tls import Authority, tls_before

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PAGE = (Path(__file__).parents[2] / "docs" / "redis.md").read_text("utf-8")
(RULE,) = re.findall(r"^ACL SETUSER owm on >PASSWORD (.+\+asking.*)$", PAGE, re.MULTILINE)
COMMANDS = re.findall(r"\+\S+", RULE)
KINDS = pytest.mark.parametrize("binary", [pytest.param(path, id=name) for name, path in sorted(binaries().items())])


def _says(url: str) -> str:
    with open_sink(url) as sink, pytest.raises(ConfigurationError) as caught:
        sink.mark("box")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+cluster://h1:1,h2:2", "needs stream=NAME, such as redis+cluster://"),
        ("redis+cluster://?stream=s", "has no host; write redis+cluster://host:6379,host:6379?stream=name"),
        ("redis+cluster://h1:1,,h2:2?stream=s", "one of its hosts has no name"),
        ("redis+cluster://h1:1,h2:0?stream=s", "no server listens on port 0"),
        ("redis+cluster://h1:1,h2:x?stream=s", "a port that is not valid"),
        ("redis+cluster://h1:1,h 2:2?stream=s", "'h 2' has a blank in it"),
        ("redis+cluster://h1:1/1?stream=s", "a cluster has only database 0"),
        ("redis+cluster://h1:1?stream=s&db=2", "a cluster has only database 0"),
        ("redis+cluster://h1:1/x?stream=s", "the path is the number of a database"),
        ("redis+cluster://h1:1?stream=s&ssl_ca_certs=x", r"write rediss\+cluster://"),
        ("redis+cluster://h1:1?stream=s&straem=s", "did you mean 'stream'"),
        ("redis+cluster://h1:1?stream=s&service=x", "unknown option 'service'"),
        ("redis://h1:1,h2:2/0?stream=s", r"has several hosts: write redis\+cluster:// or redis\+sentinel://"),
    ],
)
def test_a_wrong_url_is_refused_without_connecting(url: str, says: str) -> None:
    """A mistake in the URL is named, with what to write instead."""
    with pytest.raises(ConfigurationError, match=re.escape(says) if "\\" not in says else says):
        open_sink(url)


def test_database_0_may_be_named(cluster: Cluster, stream: str) -> None:
    """``/0`` is what a cluster has."""
    with open_sink(cluster.url(stream).replace("?", "/0?")) as sink:
        assert sink.mark("box") == ""


@KINDS
def test_a_server_that_is_no_node_of_a_cluster(binary: str, tmp_path: Path, stream: str) -> None:
    """A plain server given as a cluster is refused at once."""
    with running(binary, tmp_path / "plain") as server:
        line = _says(f"redis+cluster://{server.address}?stream={stream}")
    assert line.endswith(": remove +cluster from the URL")
    assert "cluster support disabled" in line


def test_a_node_given_as_a_plain_server(cluster: Cluster, stream: str) -> None:
    """The node that does not have the stream says which does; the one that has it works."""
    owner = cluster.owner(stream)
    other = cluster.others(owner)[0]
    assert f"{owner.address}): write its address in the URL" in _says(other.url(stream))


def test_a_node_without_slots(tmp_path: Path, stream: str) -> None:
    """A cluster that was not made yet is down, not wrong."""
    node = Node(tmp_path / "new")
    node.start()
    try:
        with open_sink(f"redis+cluster://{node.address}?stream={stream}&retries=0") as sink:
            with pytest.raises(SinkUnavailable, match="no node of the cluster has any slot"):
                sink.mark("box")
            ask(node, "CLUSTER", "ADDSLOTSRANGE", 0, 10)
            with pytest.raises(SinkUnavailable, match="not covered"):
                sink.mark("box")
    finally:
        node.kill()


def test_a_key_of_another_type(cluster: Cluster, stream: str) -> None:
    """The same words as for a plain server."""
    ask(cluster.owner(stream), "SET", stream, "x")
    assert "holds another type" in _says(cluster.url(stream))


# -- TLS


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Give an authority that signs certificates."""
    return Authority(tmp_path)


def test_tls_to_every_node(authority: Authority, producer: Producer, tmp_path: Path, stream: str) -> None:
    """``rediss+cluster://`` speaks TLS with each node; a plain port, or TLS where none is spoken, is named."""
    with (
        running_cluster(tmp_path / "nodes", 1, 0) as cluster,
        tls_before(cluster.nodes[0].port, authority.certificate("server")) as tunnel,
    ):
        (node,) = cluster.nodes
        options = f"stream={stream}&ssl_ca_certs={authority.file}"
        assert _says(f"redis+cluster://{tunnel.address}?stream={stream}").endswith(
            "this port speaks TLS: write rediss+cluster://, or another port"
        )
        assert _says(f"rediss+cluster://{node.address}?{options}&socket_timeout=0.5").endswith(
            "this port does not speak TLS: write redis+cluster://, or another port"
        )
        assert "is not accepted" in _says(f"rediss+cluster://{tunnel.address}?stream={stream}")
        ask(node, "CONFIG", "SET", "cluster-announce-port", tunnel.port)
        producer.check_complete(node, producer.run(f"rediss+cluster://{tunnel.address}?{options}"))


# -- rights


@pytest.fixture
def guarded(cluster: Cluster) -> Iterator[Cluster]:
    """Give a cluster that a user may be made in; the user is removed."""
    yield cluster
    for node in cluster.nodes:
        ask(node, "ACL", "DELUSER", "worker")


def _grant(cluster: Cluster, rules: str) -> None:
    for node in cluster.nodes:
        ask(node, "ACL", "SETUSER", "worker", "reset", "on", ">pw", *rules.split())


def _minimal(stream: str, *, without: str = "") -> str:
    rules = RULE.replace("owm-ingestion-stream", stream).split()
    return " ".join(rule for rule in rules if rule != without)


def _url(cluster: Cluster, stream: str, **options: Any) -> str:
    return cluster.url(stream, **options).replace("://", "://worker:pw@")


def test_the_rights_in_the_page_are_enough(producer: Producer, guarded: Cluster, stream: str) -> None:
    """A user with exactly these rights delivers, while the slot moves, and may trim."""
    _grant(guarded, _minimal(stream))
    target = guarded.others(guarded.owner(stream))[0]
    url = _url(guarded, stream, maxlen=COUNT - BATCH, overflow="trim")
    assert producer.run(url, Each(guarded.moving(stream, target))).complete
    guarded.settle()


@pytest.mark.parametrize("rule", COMMANDS)
def test_each_right_in_the_page_is_needed_and_asked_for(
    producer: Producer, guarded: Cluster, stream: str, rule: str
) -> None:
    """Without one of them the run is refused before anything is fetched, and the line names what is missing."""
    _grant(guarded, _minimal(stream, without=rule))
    error = producer.refuses(_url(guarded, stream), because=ConfigurationError)
    assert producer.fetched == []
    if rule == "+cluster|slots":
        assert f"'{rule[1:]}'" in str(error)
        assert "their rights" in str(error)
    else:
        assert str(error).endswith(f"the user lacks rights: grant them with ACL SETUSER worker {rule}")


def test_a_wrong_password(guarded: Cluster, stream: str) -> None:
    """It is refused at once, and not shown."""
    _grant(guarded, _minimal(stream))
    line = _says(_url(guarded, stream).replace(":pw@", ":hunter2@"))
    assert "check user and password" in line
    assert "hunter2" not in line


# -- owm-outbox check


def test_check_runs_the_contract(cluster: Cluster, stream: str, tmp_path: Path) -> None:
    """``check sink`` keeps every promise in a cluster, and leaves nothing there."""
    outcome = run("owm-outbox", "check", "sink", cluster.url(stream), cwd=tmp_path, timeout=100)
    assert (outcome.code, outcome.err) == (0, ""), outcome.out
    assert "FAIL" not in outcome.out
    until(lambda: all(ask(node, "DBSIZE") == 0 for node in cluster.nodes))


def test_an_option_of_the_client(cluster: Cluster) -> None:
    """redis-py's options are those of each node's client."""
    url = URL(cluster.url("s", client_name="owm", socket_timeout=3, protocol=3))
    with RedisClusterSink.from_url(url) as sink:
        assert sink.mark("box") == ""
        names: Any = sink.server.call(lambda client, _: (client.client_getname(), client.connection_pool))
    assert names[0] in ("owm", b"owm")
    assert names[1].connection_kwargs["socket_timeout"] == 3
