"""Writes a page to a file, whole or not at all."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path

from owm_outbox.cli.streams import write_bytes
from owm_outbox.errors import ConfigurationError, TryAgainLater

__all__ = ["write_page"]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def write_page(path: Path, text: str) -> None:
    """Write a document to a file in one step: whoever reads it finds the old one or the new one.

    :param path: ``-`` is stdout. A symbolic link is followed.
    :raises ConfigurationError: it cannot be written there.
    :raises TryAgainLater: there is no room.
    """
    data = text.encode(errors="backslashreplace")
    if str(path) == "-":
        write_bytes(data)
        return
    try:
        target = path.resolve()
        if target.exists() and not target.is_file():  # a rename would take the place of a device, such as /dev/null
            raise ConfigurationError(f"--html {path} is not a regular file: name another one, or - for stdout")
        _replace(target, data)
    except OSError as error:
        line = f"--html {path} cannot be written ({error.strerror})"
        if error.errno in _NO_ROOM:
            raise TryAgainLater(f"{line}: free some space, then run again") from error
        raise ConfigurationError(f"{line}: name another file") from error


def _replace(target: Path, data: bytes) -> None:
    new = target.with_name(f".{uuid.uuid4().hex}.new")  # not with the name in it, which may be as long as a name can be
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)
