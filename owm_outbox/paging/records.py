"""Records of a page, read one by one, so that one that is not valid holds up no other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from owm_outbox.entry import Key
from owm_outbox.task import InvalidRecord

__all__ = ["valid_records"]

R = TypeVar("R")


def valid_records(
    raws: Iterable[msgspec.Raw], kind: type[R], *, key: str | None = None
) -> tuple[list[R], list[InvalidRecord]]:
    """Return the records that are of a type, and those that are not with what is wrong with them.

    :param raws: each as raw JSON: declare the list in the page's type as ``list[msgspec.Raw]``.
    :param kind: anything msgspec can decode to.
    :param key: the field that holds a record's key, so that a good record of the same key replaces the dead letter.
    """
    decode = msgspec.json.Decoder(kind).decode
    valid: list[R] = []
    invalid: list[InvalidRecord] = []
    for raw in raws:
        try:
            valid.append(decode(raw))
        except msgspec.ValidationError as error:
            invalid.append(InvalidRecord(bytes(raw), str(error), _key(raw, key) if key else None))
    return valid, invalid


def _key(raw: msgspec.Raw, name: str) -> Key | None:
    try:
        value = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])[name]  # the other fields may be what is wrong
        return msgspec.json.decode(value, type=int | str)
    except (msgspec.ValidationError, KeyError):
        return None
