"""What a job promises of its process: it can be stopped, and leaves everything else alone."""

from __future__ import annotations

import locale
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any
from unittest import mock

from owm_outbox.errors import OwmOutboxError
from owm_outbox.job import Page
from owm_outbox.plugins import open_outbox
from owm_outbox.stop import Stop
from owm_outbox.testing.job_fixtures import Failing, JobFixtures, read
from owm_outbox.testing.processes import PATIENCE, Child, Work
from owm_outbox.testing.source import Source

__all__ = ["JobSurroundings"]


class JobSurroundings(JobFixtures):
    """A job ends when it is asked to, and only its options decide what it does."""

    def stop(self, source: Source, pages: int) -> None:
        """Stop a job in another process after this many pages."""

        def work(finish_step: Callable[[], None]) -> None:
            def look(page: Page[Any], stored: bool) -> None:
                if stored:
                    finish_step()

            stop = Stop()
            with stop.on_signals(signal.SIGTERM), open_outbox("memory:") as outbox, suppress(OwmOutboxError):
                finish_step()
                read(source.open(), outbox, stop=stop, look=look)

        child = Child(work)
        for _ in range(1 + pages):
            child.finishes_a_step()
        child.signal(signal.SIGTERM)
        in_time = child.ends(self.patience)
        child.end()
        assert in_time, (
            f"stopped after {pages} pages, the job did not end within {self.patience:g} s: wait with "
            "run.stop.wait(seconds) instead of time.sleep, and give whatever else may wait a timeout"
        )

    def test_a_stop_ends_it_in_time(self, source: Source) -> None:
        """SIGTERM before the first page or after it ends the job within seconds, whatever it waits for."""
        for pages in (0, 1):
            self.stop(source, pages)

    def test_a_stop_ends_it_in_time_while_its_source_is_away(self, source: Source, failing: Failing) -> None:
        """SIGTERM ends the job within seconds also where it tries to read a source that fails."""
        with failing(1):
            self.stop(source, 0)

    def test_it_can_be_closed_after_any_page(self, source: Source) -> None:
        """A relay that cannot store a page closes the job, which then releases what it holds, and ends its threads."""

        def work(finish_step: Callable[[], None]) -> None:
            with open_outbox("memory:") as outbox:
                try:
                    read(source.open(), outbox, most=1)
                except RuntimeError as error:
                    raise AssertionError(
                        f"the job does not end when it is closed ({error}): yield nothing then"
                    ) from error
            for thread in set(threading.enumerate()) - {threading.current_thread()}:
                thread.join(self.patience)
                assert not thread.is_alive(), f"the job was closed, but its thread {thread.name!r} is still at work"

        _do_alone(work)

    def test_only_its_options_decide(self, source: Source) -> None:
        """A job does not read the environment, and changes nothing that belongs to the whole process."""
        job = source.open()
        package = type(job).__module__.partition(".")[0]
        reads: list[str] = []
        look_up = type(os.environ).__getitem__

        def spy(environ: Any, name: str) -> str:
            frame: FrameType | None = sys._getframe(1)
            while frame is not None and frame.f_globals["__name__"] in ("os", "collections.abc"):
                frame = frame.f_back
            if frame is not None and frame.f_globals["__name__"].partition(".")[0] == package:
                reads.append(f"{frame.f_code.co_filename}:{frame.f_lineno} reads {name}")
            return look_up(environ, name)

        def work(finish_step: Callable[[], None]) -> None:
            before = _surroundings()
            with mock.patch.object(type(os.environ), "__getitem__", spy), open_outbox("memory:") as outbox:
                read(job, outbox)
            assert not reads, f"{reads[0]} from the environment: make it an option of the job"
            changed = [what for what, value in _surroundings().items() if value != before[what]]
            assert not changed, f"the job changes {', '.join(changed)}, which others in its process rely on"

        _do_alone(work)


def _do_alone(work: Work) -> None:
    """Do the work in another process, which has no threads yet, and keeps what the work changes."""
    child = Child(work)
    in_time = child.ends(PATIENCE)
    child.end(failed="")
    assert in_time, f"the job had not ended after {PATIENCE:.0f} s"


def _surroundings() -> dict[str, object]:
    signums = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD, signal.SIGPIPE)
    return {
        "os.environ": dict(os.environ),
        "the current directory": os.getcwd(),
        "signal handlers": [signal.getsignal(signum) for signum in signums],
        "the default timeout of sockets": socket.getdefaulttimeout(),
        "the locale": locale.setlocale(locale.LC_ALL),
        "the root logger": (logging.root.level, list(logging.root.handlers)),
    }
