"""What an error of PostgreSQL means for the caller of a PostgresqlOutbox: one table, by SQLSTATE."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from owm_outbox import ConfigurationError, OutboxInvalid, OutboxUnavailable, OwmOutboxError

__all__ = ["meaning", "meaning_of_state", "refusal", "said", "translated"]

_Meaning = tuple[type[OwmOutboxError], str]

# By SQLSTATE, or by its class: what is wrong, and what to do.
_MEANINGS: dict[str, _Meaning] = {
    "08": (OutboxUnavailable, "the connection to {at} was lost ({said}): run again"),
    "0A": (OutboxInvalid, "{at} cannot do what an outbox needs ({said}): use PostgreSQL 13 or later"),
    "25006": (
        OutboxUnavailable,
        "{at} takes no writes now ({said}): is it a standby? Run again after the failover, "
        "or add target_session_attrs=read-write to the URL",
    ),
    "25P02": (OutboxInvalid, "the connection is in a transaction that failed ({said}): roll it back first"),
    "25P03": (OutboxUnavailable, "{at} ended a transaction of ours that stood still ({said}): run again"),
    "28": (ConfigurationError, "{at} refuses this user ({said}): check user and password"),
    "3D000": (ConfigurationError, "{at}: {said}: create the database, or name another one"),
    "3F000": (OutboxInvalid, "{at}: {said}: create the schema, or name another one with schema="),
    "40": (OutboxUnavailable, "another transaction on {at} was in the way ({said}): run again"),
    "42501": (OutboxInvalid, "a right is missing on {at} ({said})"),
    "42": (OutboxInvalid, "{at} has other tables than this version of owm_outbox needs ({said}): name another table="),
    "53100": (OutboxUnavailable, "the disk of {at} is full ({said}): nothing of this call was kept; free some space"),
    "53200": (OutboxUnavailable, "{at} is out of memory ({said}): run again"),
    "53300": (OutboxUnavailable, "{at} takes no more connections ({said}): run again, or raise max_connections"),
    "53": (OutboxUnavailable, "{at} is short of something ({said}): run again"),
    "54": (OutboxInvalid, "{at} cannot store something as large ({said}): make the task smaller"),
    "55P03": (OutboxUnavailable, "another session holds a lock on {at} ({said}): run again"),
    "57014": (
        OutboxUnavailable,
        "{at} cancelled a statement ({said}): run again; if it was statement_timeout, raise it for this user",
    ),
    "57": (OutboxUnavailable, "{at} ended the connection ({said}): run again"),
    "58": (OutboxUnavailable, "{at} cannot read or write its files ({said}): look at its disk, then run again"),
    "XX001": (OutboxInvalid, "{at} is damaged ({said}): restore it from a backup"),
    "XX002": (OutboxInvalid, "{at} has a damaged index ({said}): REINDEX it"),
    "XX": (OutboxUnavailable, "{at} failed ({said}): look at the server's log, then run again"),
}

# While connecting, libpq has only a text. What waiting cannot fix:
_MISTAKES = re.compile(
    r"authentication failed|no password supplied|pg_hba\.conf|not permitted to log in|not permitted for|"
    r"(?:database|role|user) \".*\" does not exist|permission denied for database|"
    r"invalid .* (?:value|number)|invalid \w+ value|invalid connection option|bad value for|definition of service|"
    r"service file|syntax error|certificate|private key|does not support SSL|SSL was required|tlsv1 alert|"
    r"channel binding|authentication method|require_auth|could not open|SSL error: (?:wrong|unsupported)|"
    r"not currently accepting connections|unsupported startup parameter",
    re.IGNORECASE,
)


@contextmanager
def translated(at: str) -> Iterator[None]:
    """Raise our errors instead of psycopg's.

    :param at: the outbox, as messages name it.
    """
    try:
        yield
    except psycopg.Error as error:
        raise meaning(error, at) from error


def meaning(error: psycopg.Error, at: str) -> OwmOutboxError:
    """Say what an error of psycopg means, other than one while connecting."""
    text = said(error)
    if isinstance(error, psycopg.OperationalError) and not error.sqlstate:
        return OutboxUnavailable(f"the connection to {at} was lost ({text}): run again")
    return meaning_of_state(error.sqlstate or "", text, at)


def meaning_of_state(state: str, text: str, at: str) -> OwmOutboxError:
    """Say what an SQLSTATE means.

    :param text: what the server said.
    """
    for length in (5, 2):
        if known := _MEANINGS.get(state[:length]):
            kind, form = known
            return kind(form.format(at=at, said=text))
    return OutboxInvalid(f"{at} cannot be used ({text})")


def refusal(error: psycopg.Error, at: str) -> OwmOutboxError:
    """Say what it means that no connection could be made."""
    text = said(error)
    if isinstance(error, psycopg.OperationalError) and not _MISTAKES.search(text):
        return OutboxUnavailable(f"{at} cannot be reached ({text}): check the server and the address, then run again")
    return ConfigurationError(f"{at} refuses the connection ({text}): correct the URL, the user or the certificates")


def said(error: psycopg.Error) -> str:
    """Return what the server, or libpq, said: the primary message without its frame."""
    text = error.diag.message_primary or str(error).partition("\nMultiple connection attempts failed")[0]
    text = re.sub(r"^connection (?:failed|is bad): ", "", text.strip())
    text = re.sub(r"\s*Is the server running .*", "", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", text).strip().rstrip(".") or type(error).__name__
