"""How the headers of entries travel to the script, and which cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from owm_outbox import EntriesRejected, Entry

__all__ = ["with_headers"]

_MOST = 1000  # Lua puts them on its stack, which has room for 8,000 values


def with_headers(entries: Sequence[Entry], limit: int) -> list[bytes]:
    """Return each payload, and behind it the headers as a JSON array of names and values; empty for none.

    :param limit: bytes that the server takes at once.
    :raises EntriesRejected: headers that cannot be fields of an entry of a stream.
    """
    found: list[bytes] = []
    reasons: dict[int, str] = {}
    for entry in entries:
        try:
            packed = _packed(entry.headers, limit)
        except ValueError as error:
            reasons[entry.position] = f"its headers cannot be fields of a stream's entry: {error}"
        else:
            found += (entry.payload, packed)
    if reasons:
        raise EntriesRejected(reasons)
    return found


def _packed(headers: Mapping[str, str], limit: int) -> bytes:
    if not headers:
        return b""
    if "data" in headers:
        raise ValueError("one is called 'data', as the field with the task is")
    if len(headers) > _MOST:
        raise ValueError(f"there are {len(headers)} of them, and at most {_MOST} may be")
    try:
        packed = msgspec.json.encode([part for header in headers.items() for part in header])
    except UnicodeEncodeError:
        raise ValueError("one has a character that UTF-8 does not have") from None
    if len(packed) > limit:
        raise ValueError(f"they have {len(packed)} bytes; the server's limit is {limit}")
    return packed
