"""Which rights of a Redis user the sink needs, asked for before there is anything to send."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
from redis.exceptions import NoPermissionError

__all__ = ["missing_rights"]

_NO_SCRIPT = "0" * 40  # no script has this digest


Form = tuple[str, tuple[str | int, ...]]
"""A rule, and a command that tells whether the user has it."""


def missing_rights(
    client: redis.Redis, stream: str, marks: str, *, bounded: bool, waits: Sequence[str], more: Sequence[Form] = ()
) -> list[str]:
    """Return the rules, such as ``+xadd``, that the user of this connection needs and does not have.

    A server looks at rights before it looks at anything else. So each command is sent in a form that changes nothing:
    one that reads, or one whose arguments the server does not accept. That works for users without the right to ask
    about rights, and before Redis 7, too, which has no ``ACL DRYRUN``.

    :param bounded: whether the stream has a maxlen.
    :param waits: the commands that wait for copies.
    :param more: what is needed here beyond that.
    """
    forms: list[Form] = [
        *more,
        ("+script|load", ("SCRIPT", "LOAD", "return 0")),
        ("+evalsha", ("EVALSHA", _NO_SCRIPT, 0)),
        ("+hget", ("HGET", marks, "")),
        ("+hset", ("HSET", marks, "field without value", "", "odd")),
        ("+xinfo|stream", ("XINFO", "STREAM", stream)),
        ("+xrange", ("XRANGE", stream, "+", "-", "COUNT", 1)),
        ("+xadd", ("XADD", stream, "0-0", "data", "")),  # an id that no entry can have
    ]
    if bounded:
        forms += [
            ("+xinfo|groups", ("XINFO", "GROUPS", stream)),
            ("+xpending", ("XPENDING", stream, "")),
            ("+xtrim", ("XTRIM", stream, "MAXLEN", "=", 2**62)),
        ]
    forms += [(f"+{name.lower()}", (name, *(0,) * (3 if name == "WAITAOF" else 2))) for name in waits]
    with client.pipeline(transaction=False) as pipe:
        for _, form in forms:
            pipe.execute_command(*form)  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        replies: list[Any] = pipe.execute(raise_on_error=False)
    commands, keys = [], set()
    for (rule, form), reply in zip(forms, replies, strict=True):
        if isinstance(reply, NoPermissionError):
            if "permissions to access" in str(reply):
                keys.add(f"~{form[2] if form[0] == 'XINFO' else form[1]}")
            else:
                commands.append(rule)
    return commands + sorted(keys)
