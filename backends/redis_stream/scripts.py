"""The scripts, and how one is called: with what has to go over the same connection before it and after it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import redis
from redis.exceptions import NoScriptError

__all__ = ["MARK_SCRIPT", "SEND_SCRIPT", "Script"]


def _text(*names: str) -> str:
    return "\n".join(files(__package__).joinpath(name).read_text("utf-8") for name in names)


MARK_SCRIPT = _text("held.lua", "mark.lua")
SEND_SCRIPT = _text("held.lua", "send.lua")

_DIGESTS = {
    script: hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest() for script in (MARK_SCRIPT, SEND_SCRIPT)
}


@dataclass(frozen=True, slots=True)
class Script:
    """One call of a script; it may be repeated, as the scripts look at the mark first."""

    text: str
    keys: tuple[str, ...]
    args: Sequence[str | bytes | int]

    def run(self, client: redis.Redis, asking: bool, *, waits: Sequence[tuple[str | int, ...]]) -> list[Any]:
        """Return the script's reply, and those to the commands that wait for copies of what it wrote.

        :param asking: whether the slot is on its way to this server.
        :param waits: such commands, with their arguments.
        """
        for _ in range(2):  # between the two commands, another server may have become the primary
            try:
                return self._run(client, asking, waits)
            except NoScriptError:
                client.script_load(self.text)
        return self._run(client, asking, waits)

    def _run(self, client: redis.Redis, asking: bool, waits: Sequence[tuple[str | int, ...]]) -> list[Any]:
        call = ("EVALSHA", _DIGESTS[self.text], len(self.keys), *self.keys, *self.args)
        if not asking and not waits:
            return [client.execute_command(*call)]  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        # ASKING is for the next command of its connection, and WAIT speaks of the writes of its own.
        with client.pipeline(transaction=False) as pipe:
            for command in ([("ASKING",)] if asking else []) + [call, *waits]:
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]  # so is this
            replies: list[Any] = pipe.execute()
        return replies[1:] if asking else replies
