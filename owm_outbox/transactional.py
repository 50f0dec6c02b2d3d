"""An outbox that can be part of an application's own transaction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from owm_outbox.entry import Key, NewEntry
from owm_outbox.outbox import Outbox, Stored
from owm_outbox.task import InvalidRecord, new_entries

__all__ = ["TransactionalOutbox"]


class TransactionalOutbox(Outbox):
    """An outbox in the database that an application has its own data in.

    An author writes `store_within`, and `store_within_async` where there are drivers for asyncio.
    `owm_outbox.driver_connection` finds the driver's connection under what SQLAlchemy and Django hand out.
    """

    @abstractmethod
    def store_within(self, connection: object, entries: Sequence[NewEntry]) -> Stored:
        """Store entries in the transaction that ``connection`` is in, or begins with its first write; never end it.

        :raises TypeError: it is an object of another kind; the message says what is taken.
        :raises OutboxInvalid: it is to another database, closed, or commits each statement by itself.
        """

    async def store_within_async(self, connection: object, entries: Sequence[NewEntry]) -> Stored:
        """Do the same with a connection that has to be awaited. This default takes none."""
        raise TypeError(f"{type(self).__name__} takes no connection of asyncio: use append in a thread")

    def append(
        self,
        tasks: Iterable[Any],
        *,
        key: Callable[[Any], Key] | None = None,
        headers: Mapping[str, str] | None = None,
        run: str | None = None,
        checkpoint: bytes | None = None,
        invalid: Sequence[InvalidRecord] = (),
        expected: int | None = None,
        connection: object | None = None,
    ) -> Stored:
        """Encode tasks and store them; see `Outbox.append`.

        :param connection: the application's own: the driver's, SQLAlchemy's or Django's. The tasks become part of the
            transaction that it is in, and are committed or rolled back with it, not by this call. Without a run.
        :raises TypeError: it is something else; the message says what is taken.
        """
        if connection is None:
            return super().append(
                tasks, key=key, headers=headers, run=run, checkpoint=checkpoint, invalid=invalid, expected=expected
            )
        if run is not None or invalid:
            raise ValueError("append(connection=…) is for tasks without a run")
        return self.store_within(connection, new_entries(tasks, key, headers))

    async def append_async(
        self,
        tasks: Iterable[Any],
        *,
        connection: object,
        key: Callable[[Any], Key] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Stored:
        """Encode tasks and store them in the transaction of an asyncio application, which ends it.

        :param connection: that of an asyncio driver, or an ``AsyncSession`` or ``AsyncConnection`` of SQLAlchemy.
        :raises TypeError: it is something else; the message says what is taken.
        """
        return await self.store_within_async(connection, new_entries(tasks, key, headers))
