"""Who we are to a server: passwords, tokens, nkeys, credentials, and what a user may do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import nkeys
import pytest

from owm_outbox import URL, ConfigurationError
from owm_outbox.plugins import open_sink
from owm_outbox.testing import parcel_batch

from support.nats import NatsServer, jwt, key_pair, running

pytestmark = [pytest.mark.slow]

REQUESTS = ("STREAM.INFO.TASKS", "STREAM.MSG.GET.TASKS", "CONSUMER.LIST.TASKS")
ENOUGH = ["tasks", "tasks.mark.*", *(f"$JS.API.{request}" for request in REQUESTS)]
REFUSED = "the server refuses us ('Authorization Violation'): check user, password, token, creds= or nkey="


def _works(url: str, box: str = "box") -> None:
    batch = parcel_batch(box, 0, 3)
    with open_sink(f"{url}&retries=0") as sink:
        sink.send(batch)
        assert sink.mark(box) == batch.mark


def _says(url: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        _works(url, "other")
    return str(caught.value)


def test_a_password(tmp_path: Path) -> None:
    """A user with a password is let in; a wrong one is refused at once, and not shown."""
    with running(tmp_path, "authorization { user: ada, password: hunter2 }\n") as server:
        server.admin = {"user": "ada", "password": "hunter2"}
        server.make("TASKS", "tasks")
        _works(server.url("TASKS", "tasks", "ada:hunter2@"))
        for who in ("ada:hunter3@", "hunter3@", ""):
            said = _says(server.url("TASKS", "tasks", who))
            assert said.endswith(REFUSED)
            assert "hunter" not in said


def test_a_token(tmp_path: Path) -> None:
    """A user without a password is a token: a secret, as well."""
    with running(tmp_path, "authorization { token: hunter2 }\n") as server:
        server.admin = {"token": "hunter2"}
        server.make("TASKS", "tasks")
        _works(server.url("TASKS", "tasks", "hunter2@"))
        said = _says(server.url("TASKS", "tasks", "hunter3@"))
        assert said.endswith(REFUSED)
        assert "hunter" not in said + str(URL(server.url("TASKS", "tasks", "hunter3@")))


def test_an_nkey(tmp_path: Path) -> None:
    """The seed of an nkey is read from a file."""
    (seed, pair), (other, _) = key_pair(nkeys.PREFIX_BYTE_USER), key_pair(nkeys.PREFIX_BYTE_USER)
    (tmp_path / "seed").write_bytes(seed + b"\n")
    (tmp_path / "other").write_bytes(other)
    with running(tmp_path / "nats", f"authorization {{ users: [{{nkey: {pair.public_key.decode()}}}] }}\n") as server:
        server.admin = {"nkeys_seed": str(tmp_path / "seed")}
        server.make("TASKS", "tasks")
        _works(server.url("TASKS", "tasks", nkey=tmp_path / "seed"))
        assert _says(server.url("TASKS", "tasks", nkey=tmp_path / "other")).endswith(REFUSED)


def test_credentials(tmp_path: Path) -> None:
    """A file of credentials has what the account says of the user, and the user's seed."""
    _, operator = key_pair(nkeys.PREFIX_BYTE_OPERATOR)
    _, system = key_pair(nkeys.PREFIX_BYTE_ACCOUNT)
    _, account = key_pair(nkeys.PREFIX_BYTE_ACCOUNT)
    seed, user = key_pair(nkeys.PREFIX_BYTE_USER)
    _, stranger = key_pair(nkeys.PREFIX_BYTE_ACCOUNT)
    every = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
    storage = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
    preload = {
        account.public_key.decode(): jwt(operator, account, "account", limits={**every, **storage, "wildcards": True}),
        system.public_key.decode(): jwt(operator, system, "account", limits={**every, "wildcards": True}),
    }
    config = (
        f"operator: {jwt(operator, operator, 'operator', system_account=system.public_key.decode())}\n"
        f"system_account: {system.public_key.decode()}\nresolver: MEMORY\nresolver_preload: {json.dumps(preload)}\n"
    )
    for name, issuer in (("good", account), ("bad", stranger)):
        (tmp_path / name).write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt(issuer, user, 'user', subs=-1, data=-1, payload=-1)}\n"
            f"------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n"
            "------END USER NKEY SEED------\n"
        )
    with running(tmp_path / "nats", config) as server:
        server.admin = {"user_credentials": str(tmp_path / "good")}
        server.make("TASKS", "tasks")
        _works(server.url("TASKS", "tasks", creds=tmp_path / "good"))
        assert _says(server.url("TASKS", "tasks", creds=tmp_path / "bad")).endswith(REFUSED)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[NatsServer]:
    """Run a server that lets users do less and less."""
    users: list[dict[str, object]] = [{"user": "admin", "password": "p"}]
    for number in range(len(ENOUGH) + 1):
        publish = [subject for place, subject in enumerate(ENOUGH, start=1) if place != number]
        users.append({"user": f"without{number}", "password": "p", "permissions": _may(publish, ["_INBOX.>"])})
    users.append({"user": "deaf", "password": "p", "permissions": _may(ENOUGH, ["other"])})
    with running(tmp_path / "nats", f"authorization {{ users: {json.dumps(users)} }}\n") as server:
        server.admin = {"user": "admin", "password": "p"}
        server.make("TASKS", "tasks")
        yield server


def _may(publish: list[str], subscribe: list[str]) -> object:
    return {"publish": publish, "subscribe": subscribe}


def test_the_rights_that_are_needed(guarded: NatsServer) -> None:
    """With these rights a batch is delivered; without any one of them it is not, and the message lists all."""
    _works(guarded.url("TASKS", "tasks", "without0:p@"))
    listed = f"let it publish to {', '.join(ENOUGH)}, and subscribe to _INBOX.>"
    for number, subject in enumerate(ENOUGH, start=1):
        said = _says(guarded.url("TASKS", "tasks", f"without{number}:p@"))
        assert f'publish to "{subject.lower().replace("*", "other")}"' in said
        assert said.endswith(listed)
    assert _says(guarded.url("TASKS", "tasks", "deaf:p@")).endswith(listed)
