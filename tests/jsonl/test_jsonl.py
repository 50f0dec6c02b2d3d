"""JsonLinesSink: whole lines on stdout or in a file, whatever the reader and the disk do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from owm_outbox import URL, Batch, ConfigurationError, Entry, Mark, SinkFull, SinkUnavailable
from owm_outbox.sink import pausing_with
from owm_outbox_backends import jsonl
from owm_outbox_backends.jsonl import JsonLinesSink

from support.descriptors import many_open_files


def batch(count: int, size: int = 20) -> Batch:
    """Make a batch of lines, each with its number."""
    entries = [Entry(n, f"task-{n}", b'{"n":%d,"pad":"%s"}' % (n, b"x" * size)) for n in range(1, count + 1)]
    return Batch("box", Mark(""), entries, Mark.of(entries[-1], "lease"))


def lines(of: Batch) -> list[bytes]:
    """Return what the batch is as lines."""
    return [entry.payload for entry in of.entries]


@contextmanager
def stdout_as(fd: int) -> Iterator[None]:
    """Let descriptor 1 be another one for a while."""
    before = os.dup(1)
    os.dup2(fd, 1)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Give a pipe; what the test closes of it stays closed."""
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


def test_a_process_with_many_open_files(pipe: tuple[int, int]) -> None:
    """Our own descriptor of stdout may be one that ``select`` does not take."""
    read, write = pipe
    with stdout_as(write), many_open_files(), JsonLinesSink("-") as sink:
        sink.send(batch(2))
    assert os.read(read, 1000).splitlines() == lines(batch(2))


def test_stdout_gets_whole_lines(tmp_path: Path) -> None:
    """Every batch is there when send returns, and ``sys.stdout`` is what it was."""
    path, kept = tmp_path / "out", sys.stdout
    with path.open("wb") as file, stdout_as(file.fileno()), JsonLinesSink("-") as sink:
        for _ in range(2):
            sink.send(batch(3))
        assert path.read_bytes().splitlines() == lines(batch(3)) * 2
    assert sys.stdout is kept


def test_a_reader_that_left_is_said_so(pipe: tuple[int, int]) -> None:
    """A closed pipe is SinkUnavailable each time, and neither ``sys.stdout`` nor descriptor 1 is touched."""
    read, write = pipe
    kept = sys.stdout
    with stdout_as(write), JsonLinesSink("-") as sink:
        os.close(read)
        for _ in range(2):
            with pytest.raises(SinkUnavailable, match="stdout was closed by the reader"):
                sink.send(batch(1))
        assert os.fstat(1).st_ino == os.fstat(write).st_ino
    assert sys.stdout is kept


def test_nothing_is_complained_about_at_exit() -> None:
    """A program whose reader left ends in its own way: nothing on stderr but what it says itself."""
    program = (
        "from owm_outbox import *; from owm_outbox_backends.jsonl import JsonLinesSink\n"
        "entry = Entry(1, 'a', b'{}' * 100_000); sink = JsonLinesSink('-')\n"
        "try:\n"
        "    while True: sink.send(Batch('box', Mark(''), [entry], Mark('1 l a')))\n"
        "except SinkUnavailable: raise SystemExit(75)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10) == b"{}" * 5
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 75


def test_a_slow_reader_gets_everything(pipe: tuple[int, int]) -> None:
    """A batch that is larger than the pipe waits for its reader."""
    read, write = pipe
    large = batch(300, 1000)
    with stdout_as(write), JsonLinesSink("-") as sink:
        sending = threading.Thread(target=sink.send, args=(large,))
        sending.start()
        found = b""
        while found.count(b"\n") < 300:
            found += os.read(read, 4096)
        sending.join()
    assert found.splitlines() == lines(large)


def test_a_reader_that_rests_does_not_delay_a_stop(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that takes nothing is given up when a stop is asked for; the line that was cut is completed later."""
    monkeypatch.setattr(jsonl, "_PATIENCE", 0.05)
    read, write = pipe
    large = batch(300, 1000)
    with stdout_as(write), JsonLinesSink("-") as sink:
        with pausing_with(lambda seconds: False), pytest.raises(SinkUnavailable, match="took nothing"):
            sink.send(large)
        found = os.read(read, 2**20)
        assert not found.endswith(b"\n"), "this test needs a line that was cut"
        sink.send(batch(3))
        found += os.read(read, 2**20)
    whole = lines(large)
    cut = len(found.splitlines()) - 3
    assert found.splitlines() == whole[:cut] + lines(batch(3))


def test_a_closed_stdout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a stdout, descriptor 1 may be any file of the process: nothing is ever written to it."""
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(ConfigurationError, match="stdout is closed"):
        JsonLinesSink("-")


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    """What cannot be written whole to a file is taken back."""
    import resource

    path = tmp_path / "out"
    with JsonLinesSink(path) as sink:
        sink.send(batch(3))
        whole = path.read_bytes()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, before[1]))
        try:
            with pytest.raises(SinkFull, match="took only 10 of"):
                sink.send(batch(3))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert path.read_bytes() == whole
        sink.send(batch(3))
        assert path.read_bytes() == whole * 2


@pytest.mark.parametrize("url", ["jsonl:", "jsonl://host/path", "jsonl:-?x=1", "jsonl:/no/such/folder/out", "jsonl:/"])
def test_a_wrong_url_is_refused(url: str) -> None:
    """A URL without a file, with a host, an option, or a folder that does not exist."""
    with pytest.raises(ConfigurationError):
        JsonLinesSink.from_url(URL(url))


def test_half_a_line_spoils_no_task(tmp_path: Path) -> None:
    """A line that a killed process left unfinished is ended first, so that the next task is a line of its own."""
    path, sent = tmp_path / "tasks.jsonl", batch(2)
    path.write_bytes(b'{"n":0}\n{"n":')
    with JsonLinesSink(path) as sink:
        sink.send(sent)
        sink.send(sent)
    assert path.read_bytes().splitlines() == [b'{"n":0}', b'{"n":', *lines(sent), *lines(sent)]
