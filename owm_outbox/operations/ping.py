"""Pings a monitor of cron jobs (healthchecks.io and those that work alike) when a call begins, and how it ended."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import requests
import tenacity

from owm_outbox.errors import ConfigurationError, one_line, printable

__all__ = ["Ping"]

log = logging.getLogger("owm_outbox.ping")

_TIMEOUT = 5.0  # seconds for each attempt
_ATTEMPTS = 3
_AT_MOST = 15.0  # seconds that a call waits at its end: an answer that trickles has no timeout
_AT_MOST_STOPPED = 4.0  # for one that was asked to stop


class Ping:
    """Tells a monitor of one call: ``URL/start`` when it begins, and ``URL/CODE`` with its exit code when it has ended.

    What becomes of a ping is logged, and never changes how the call ends. The URL is a secret: only its host is shown.

    :raises ConfigurationError: this is not an address of http or https.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            valid = False
        if not valid or any(map(str.isspace, url)):
            raise ConfigurationError("the ping's URL is not an address: write it as https://host/its-path")
        self._base, mark, query = url.partition("?")
        self._query = mark + query
        self._host = parts.hostname
        self._first: threading.Thread | None = None

    def start(self) -> None:
        """Send ``/start``; the call does not wait for that."""
        self._first = self._begin("start", b"")

    def end(self, code: int, body: bytes) -> None:
        """Send the exit code, and wait until that was taken or given up.

        :param body: what the monitor shows: the report, or the line that says why there is none.
        """
        longest = _AT_MOST_STOPPED if code > 128 else _AT_MOST
        until = time.monotonic() + longest
        if self._first is not None:
            self._first.join(longest / 2)  # in their order
        last = self._begin(str(int(code)), body)
        if last is not None:
            last.join(max(until - time.monotonic(), 0))
            if last.is_alive():
                log.warning("the monitor at %s did not answer in time", self._host)

    def _begin(self, what: str, body: bytes) -> threading.Thread | None:
        thread = threading.Thread(target=self._send, args=(what, body), name=f"ping {what}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # a limit of processes, which counts threads as well
            log.warning("the monitor at %s was not told of %r: %s", self._host, what, error)
            return None
        return thread

    def _send(self, what: str, body: bytes) -> None:
        attempts = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            wait=tenacity.wait_exponential_jitter(multiplier=0.5, max=2, jitter=0.5),
            retry=tenacity.retry_if_exception_type(requests.RequestException),
            reraise=True,
        )
        try:
            attempts(self._post, f"{self._base.rstrip('/')}/{what}{self._query}", body)
        except (requests.RequestException, ValueError) as error:
            why = type(error).__name__
            if isinstance(error, requests.HTTPError) and error.response is not None:
                why = f"{error.response.status_code} {error.response.reason}"
            log.warning("the monitor at %s was not told of %r: %s", self._host, what, printable(one_line(why)))

    def _post(self, url: str, body: bytes) -> Any:
        with requests.Session() as session:
            session.trust_env = True  # a proxy, as other tools on this machine use it
            with session.post(url, data=body, timeout=_TIMEOUT, stream=True) as answer:
                answer.raise_for_status()
