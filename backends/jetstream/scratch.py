"""Where the contract kit may write on a server of NATS: a stream of its own, which is removed afterwards."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from owm_outbox import URL, ConfigurationError
from owm_outbox.testing import Destination, cut_requests

from .address import Address
from .connection import NatsConnection, Session
from .errors import JetStreamError
from .sink import OPTIONS, JetStreamSink
from .stream import proposal

__all__ = ["scratch"]

_ROOM = 10_500
_MAX_BYTES = 64 * 2**20
_LEFT = 20
_AT_ONCE = 1000
_SECONDS = 10.0


@contextmanager
def scratch(url: URL) -> Iterator[Destination]:
    """Give a stream on the same server as the one that ``nats://…/STREAM`` names, with subjects of its own."""
    with JetStreamSink.from_url(url) as sink:
        sink.mark("check")  # refuses what is wrong with the URL, the server, the stream and the rights
    given = url.options(**OPTIONS)
    name = f"owm-outbox-check-{uuid.uuid4().hex}"
    options = given | {"subject": f"{name}.tasks", "retries": 1, "backoff_base": 0.1}
    connecting = {option: value for option, value in given.items() if option in Address.OPTIONS}
    text = url.without_options(*OPTIONS)
    address = text.removesuffix(url.path) + f"/{name}"
    elsewhere = f"{url.scheme}://127.0.0.1:1/{name}"

    def ask(call: str, question: Mapping[str, Any] | None = None) -> dict[str, Any]:
        payload = b"" if question is None else json.dumps(question).encode()
        return connection.run(lambda session: session.ask(f"$JS.API.{call}.{name}", payload))

    async def fill(session: Session) -> None:
        for _ in range(_ROOM - _LEFT - 1):
            await session.client.publish(options["subject"], b"{}")
        await session.ask(options["subject"], b"{}")

    with contextlib.closing(NatsConnection(Address.of(url, connecting))) as connection:
        config = json.loads(proposal(name, options["subject"]))
        try:
            ask("STREAM.CREATE", {**config, "max_msgs": _ROOM, "max_bytes": _MAX_BYTES, "allow_direct": True})
        except (ConfigurationError, JetStreamError) as error:
            raise ConfigurationError(
                f"{url}: check works on a stream of its own, and cannot make it ({error}): let the user publish to "
                "owm-outbox-check-*.>, $JS.API.STREAM.*.owm-outbox-check-* and $JS.API.*.*.owm-outbox-check-*"
            ) from error
        try:
            yield Destination(
                open=lambda: JetStreamSink(address, **options),
                payloads=lambda: connection.run(lambda session: _payloads(session, name, options["subject"])),
                fill=lambda: connection.run(fill),
                poison=b'{"task_id": "' + b"x" * connection.run(_max_payload) + b'"}',
                unreachable=lambda: JetStreamSink(elsewhere, subject="tasks", retries=0),
                lose=lambda: ask("STREAM.PURGE"),
                interrupt=cut_requests if url.scheme == "nats" else None,
            )
        finally:
            ask("STREAM.DELETE")


async def _max_payload(session: Session) -> int:
    return session.max_payload


async def _payloads(session: Session, stream: str, subject: str) -> list[bytes]:
    """Return the payloads of all messages on a subject, in order, without taking them.

    The stream needs ``allow_direct``.
    """
    found: list[bytes] = []
    box = session.client.new_inbox()
    subscription = await session.client.subscribe(box, pending_msgs_limit=-1, pending_bytes_limit=-1)
    sequence, got = 1, _AT_ONCE
    while got == _AT_ONCE:
        got = 0
        question = {"seq": sequence, "next_by_subj": subject, "batch": _AT_ONCE}
        await session.client.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(question).encode(), reply=box)
        while True:
            message = await subscription.next_msg(_SECONDS)
            headers = message.headers or {}
            if "Status" in headers:
                break
            sequence, got = int(headers["Nats-Sequence"]) + 1, got + 1
            found.append(message.data)
    await subscription.unsubscribe()
    return found
