"""Where the contract kit may write: a file next to the one that a URL names, removed afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from owm_outbox import URL, OutboxInvalid
from owm_outbox.testing import Storage, full_disk

from .file import absolute
from .outbox import SqliteOutbox

__all__ = ["scratch"]


@contextmanager
def scratch(url: URL) -> Iterator[Storage]:
    """Give a file in a folder of its own, next to the one that ``sqlite:///PATH`` names."""
    parent = absolute(url.path.removeprefix("/")).parent
    if not parent.is_dir():
        raise OutboxInvalid(f"cannot create an outbox in {parent}, which is not a folder: name another path")
    with TemporaryDirectory(prefix="check-", dir=parent) as folder:
        path = Path(folder) / "tasks.db"

        @contextmanager
        def transaction() -> Iterator[Callable[[Sequence[Any]], object]]:
            with SqliteOutbox(path, timeout=0.1) as outbox, contextlib.closing(outbox.connect()) as connection:
                yield lambda tasks: outbox.append(tasks, connection=connection)
                connection.commit()

        yield Storage(
            open=lambda: SqliteOutbox(path),
            interrupt=lambda: full_disk(Path(f"{path}-wal")),
            transaction=transaction,
        )
