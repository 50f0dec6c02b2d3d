"""Whatever happens to the file, the stream, the clock or the process: no task is lost without a word."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from support.crash import Forge
from support.model import History, Violation
from support.servers import Server, binaries

SEED = os.environ.get("MODEL_SEED") or str(random.SystemRandom().randrange(2**32))
HISTORIES = -(-int(os.environ.get("MODEL_HISTORIES") or 120) // len(binaries()))  # on each kind of server


@pytest.mark.slow
@pytest.mark.timeout(60 + HISTORIES)
def test_no_history_loses_a_task(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After any history of runs, kills, restores, clones, losses, clocks and groups, every promise holds."""
    done: Counter[str] = Counter()
    began = time.monotonic()
    with Forge(tmp_path) as forge:
        for number in range(HISTORIES):
            seed = f"{SEED}-{number}"
            folder = tmp_path / str(number)
            folder.mkdir()
            try:
                done += History(seed, server, folder, forge, bounded=number % 3 == 0).run(12)
            except Violation as violation:
                violation.add_note(f"history {number} of MODEL_SEED={SEED}, MODEL_HISTORIES={HISTORIES}")
                raise
            for file in folder.iterdir():
                file.unlink()
    with capsys.disabled():
        kinds = ", ".join(f"{count} {name}" for name, count in done.most_common())
        print(f"\nMODEL_SEED={SEED}: {HISTORIES} histories in {time.monotonic() - began:.0f} s: {kinds}")
