"""Runs the benchmarks: all of them, or the parts that are named, such as ``tox -e bench -- persist delivery``."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

PARTS = (
    "extraction",
    "styles",
    "persist",
    "delivery",
    "whole",
    "growth",
    "large",
    "sinks",
    "redis_sinks",
    "postgresql",
    "rivals",
    "stops",
    "startup",
)

if __name__ == "__main__":
    wanted = sys.argv[1:] or list(PARTS)
    unknown = [part for part in wanted if part not in PARTS]
    if unknown:
        sys.exit(f"no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    versions = ", ".join(f"{name} {version(name)}" for name in ("owm_outbox", "redis", "psycopg", "nats-py"))
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.platform()}, {versions}")
    for part in wanted:
        print(f"\n# {part}", flush=True)
        subprocess.run([sys.executable, Path(__file__).with_name(f"{part}.py")], check=True)
