"""What systemd wants to know of a service: that it is ready, what it does, and that it is alive (``Type=notify``)."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress

from owm_outbox.operations.health import Health

__all__ = ["Watchdog", "notify"]

_EVERY = 5.0  # seconds between two lines of STATUS
_STARTS_WITHIN = "60000000"  # microseconds until the next of these lines, at the latest


def notify(address: str, **values: str) -> None:
    """Send values to the socket that ``NOTIFY_SOCKET`` names; see sd_notify(3). Nobody there is nobody's error."""
    text = "\n".join(f"{name}={value}" for name, value in values.items())
    name = "\0" + address[1:] if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(text.encode(errors="replace"), name)


class Watchdog:
    """Tells systemd what the process does, and that it is alive, as long as no loop hangs.

    :param address: what ``NOTIFY_SOCKET`` says.
    :param usec: what ``WATCHDOG_USEC`` says, microseconds: a loop that was not alive for so long hangs.
    """

    def __init__(self, health: Health, address: str, usec: str | None) -> None:
        self._health = health
        self._address = address
        self._within = int(usec) / 1_000_000 if usec and usec.isdecimal() and int(usec) else None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin; as long as the service is not ready, systemd is asked to wait for it."""
        self._tell()
        self._thread.start()

    def ready(self) -> None:
        """Say that the service is ready."""
        notify(self._address, READY="1", STATUS=self._health.line(), MAINPID=str(os.getpid()))

    def stop(self) -> None:
        """Say that the service ends."""
        self._end.set()
        notify(self._address, STOPPING="1", STATUS="stopping between two commits")

    def _work(self) -> None:
        every = min(_EVERY, self._within / 3) if self._within else _EVERY
        while not self._end.wait(every):
            self._tell()

    def _tell(self) -> None:
        values = {"STATUS": self._health.line()}
        if not self._health.is_open:
            values["EXTEND_TIMEOUT_USEC"] = _STARTS_WITHIN
        if self._within and not self._health.hanging(self._within):
            values["WATCHDOG"] = "1"
        notify(self._address, **values)
