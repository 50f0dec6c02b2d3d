"""A real Chromium, told what to do through its DevTools protocol over two pipes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Browser", "chromium", "running_browser"]


def chromium() -> str | None:
    """Return the program, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """One tab. Commands wait for their answer; events that come meanwhile are kept.

    :param to: the descriptor to write to.
    :param from_: the descriptor to read from.
    """

    def __init__(self, to: int, from_: int) -> None:
        self._to = to
        self._from = os.fdopen(from_, "rb")
        self._number = 0
        self._session: str | None = None
        self._rest = b""
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime", "Accessibility"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def show(self, html: Path, *, width: int, dark: bool = False) -> None:
        """Load a file as a screen of this width shows it, and forget earlier events."""
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.do("Page.navigate", url=html.as_uri())
        while not any(name == "Page.loadEventFired" for name, _ in self.events):
            self._next()

    def evaluate(self, script: str) -> Any:
        """Return what a script finds on the page."""
        result = self.do("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            found = os.read(self._from.fileno(), 1 << 16)
            assert found, "the browser is gone"
            self._rest += found
        first, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        if "method" in message:
            self.events.append((message["method"], message["params"]))
        return message

    def close(self) -> None:
        """End it."""
        self._session = None
        self.do("Browser.close")
        self._from.close()
        os.close(self._to)


@contextmanager
def running_browser(program: str) -> Iterator[Browser]:
    """Start a browser that has nothing but this tab, and no network."""
    its_in, ours_out = os.pipe()
    ours_in, its_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # It reads from descriptor 3 and writes to descriptor 4.
        script = f'exec 3<&{its_in} 4>&{its_out} && exec "$@"'
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        options += ["--disable-background-networking", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", program, *options],
            pass_fds=(its_in, its_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(its_in)
        os.close(its_out)
        try:
            browser = Browser(ours_out, ours_in)
            yield browser
            browser.close()
            process.wait(20)
        finally:
            process.kill()
            process.wait()
