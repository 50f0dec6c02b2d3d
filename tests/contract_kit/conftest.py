"""Runs the contract kits of all broken and honest backends once, in a pytest of its own."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from support.contract_kit import kits
from support.contract_kit.registry import CAUGHT_BY

Outcome = tuple[str, str]
"""passed, failed, error or skipped, and why."""

Outcomes = dict[str, dict[str, Outcome]]
"""The outcome of each test, by kit and name."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes long, in place of the kit, which knows nothing of our markers."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.name.partition("[")[0].endswith("_after_a_kill"):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Outcomes:
    """Run the honest kits whole, and of each broken one the test that must catch it; once, whoever asks first."""
    folder = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        folder = folder.parent  # which all workers of a session share
    with (folder / "kits.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = folder / "kits.xml"
        if not found.exists():
            _run(tmp_path_factory.mktemp("kits")).rename(found)
    return _read(found)


def _run(folder: Path) -> Path:
    wanted = [
        *kits.WHOLE,
        "KitOfNoTrouble::test_a_store_that_fails_stores_nothing",
        *(f"Kit{backend.__name__}::{test}" for backend, test in CAUGHT_BY.items()),
    ]
    tests = Path(__file__).parent.parent
    (folder / "pytest.ini").write_text(f"[pytest]\npython_classes = Kit\npythonpath = {tests}\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-n", "2", "--tb=line", "-p", "no:cacheprovider", "--noconftest"),
            *("-c", str(folder / "pytest.ini"), "--rootdir", str(folder), "--basetemp", str(folder / "tmp")),
            *("--import-mode", "importlib", "--junitxml", str(folder / "outcomes.xml")),
            *(f"{kits.__file__}::{one}" for one in wanted),
        ],
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout[-2000:] + done.stderr
    return folder / "outcomes.xml"


def _read(path: Path) -> Outcomes:
    found: Outcomes = {kit: {} for kit in (*kits.WHOLE, "KitOfNoTrouble", *kits.BROKEN)}
    for case in ET.parse(path).iter("testcase"):  # noqa: S314 - written by our own pytest
        kit = case.attrib["classname"].rpartition(".")[2]
        verdict: Outcome = ("passed", "")
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                verdict = (child.tag.replace("failure", "failed"), child.attrib["message"])
        found[kit][case.attrib["name"]] = verdict
    return found
