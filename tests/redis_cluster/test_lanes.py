"""Lanes of an outbox, each with a stream of its own, spread over the nodes of a cluster."""

from __future__ import annotations

import json
import threading
from collections import defaultdict

import pytest

from owm_outbox import LaneRelay
from owm_outbox.plugins import open_sink

from support.laned import LanedMemory
from support.redis_cluster import Cluster, until
from support.streams import entries, length

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LANES = 8
KEYS = [f"key {number}" for number in range(200)]
ROUNDS = 20


def test_lanes_are_spread_over_the_nodes(cluster: Cluster, stream: str) -> None:
    """Eight streams are on all nodes; each key arrives once and in its order, though a slot moves in the middle."""
    outbox = LanedMemory(LANES)
    url = cluster.url(f"{stream}.{{lane}}")
    relay = LaneRelay(outbox, lambda lane: open_sink(url.replace("{lane}", str(lane))), batch_size=50)
    streams = [f"{stream}.{lane}" for lane in range(LANES)]
    stop = threading.Event()
    at_work = threading.Thread(target=relay.run_forever, args=[stop], kwargs={"poll": 0.01})
    at_work.start()
    try:
        moved = streams[3]
        target = cluster.others(cluster.owner(moved))[0]
        steps = cluster.moving(moved, target)
        for number in range(ROUNDS):
            outbox.append(KEYS, number)
            if number % 5 == 4:
                next(steps, None)
        until(lambda: sum(length(cluster.owner(one), one) for one in streams) >= len(KEYS) * ROUNDS)
    finally:
        stop.set()
        at_work.join(20)
    cluster.settle()
    assert cluster.owner(moved) is target
    numbers: dict[str, list[int]] = defaultdict(list)
    per_node: dict[str, int] = defaultdict(int)
    for one in streams:
        node = cluster.owner(one)
        for fields in entries(node, one):
            task = json.loads(fields[b"data"])
            numbers[task["key"]].append(task["number"])
            per_node[node.address] += 1
    assert numbers == {key: list(range(ROUNDS)) for key in KEYS}
    assert len(per_node) >= 2
    print("entries per node:", dict(per_node))
