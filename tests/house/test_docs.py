"""What docs/ says is so: the worked example of another team's job, and the page of the public API."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.api_page import page
from support.commands import run, start
from support.servers import Server
from support.streams import tasks

DOCS = Path(__file__).parent.parent.parent / "docs"


def test_the_api_page_is_that_of_the_code() -> None:
    """docs/api.md has every public name with its signature as it is now; its head says how to write it again."""
    assert (DOCS / "api.md").read_text("utf-8") == page()


def test_every_public_name_is_explained() -> None:
    """No name stands in the API page without a word, but for members of an enumeration, which have values."""
    assert re.findall(r"^ *- `[^`]*`$", page(), re.MULTILINE) == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build and install the package that docs/job.md shows."""
    folder, target = tmp_path_factory.mktemp("fleet"), tmp_path_factory.mktemp("site")
    text = (DOCS / "job.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n# fleet\.py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (setup,) = re.findall(r"^```ini\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (folder / "fleet.py").write_text(code)
    (folder / "setup.cfg").write_text(setup)
    (folder / "pyproject.toml").write_text('[build-system]\nrequires = ["setuptools"]\n')
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-build-isolation", "--no-deps"]
    subprocess.run([*pip, "--target", str(target), str(folder)], check=True, capture_output=True)
    return target


@pytest.mark.slow
def test_the_example_job_shows_its_own_options(site: Path) -> None:
    """``run fleet --help`` has the job's description and its options with their environment variables."""
    outcome = run("owm-outbox", "run", "fleet", "--help", env={"PYTHONPATH": str(site)})
    assert outcome.code == 0, outcome.err
    text = " ".join(outcome.out.split())
    for words in ("Send every truck", "--depot", "FLEET_DEPOT", "default: north", "FLEET_TRUCKS", "1<=x<=10000"):
        assert words in text


@pytest.mark.slow
def test_the_example_job_runs_twice_interrupted_once(site: Path, server: Server, stream: str, tmp_path: Path) -> None:
    """A run that SIGTERM ended is resumed under the same id; a further call is a new run; each truck once per run."""
    env = {"PYTHONPATH": str(site), "FLEET_DEPOT": "south"}
    stores = (
        "--outbox",
        f"sqlite:///{tmp_path}/fleet.db",
        "--sink",
        server.url(stream),
        "--json",
        "--batch-size",
        "100",
    )
    first = start("owm-outbox", "run", "fleet", "--pause", "60", *stores, env=env)
    with server.client() as client:  # wait for the first page to arrive: then the job is in its pause
        client.xread({stream: "0"}, block=30_000) or pytest.fail("nothing was delivered")
    first.send_signal(signal.SIGTERM)
    out, _ = first.communicate(timeout=30)
    assert first.returncode == 143
    resumed = run("owm-outbox", "run", "fleet", *stores, env=env)
    again = run("owm-outbox", "run", "fleet", *stores, env=env)
    assert (resumed.code, again.code) == (0, 0)
    assert resumed.report["resumed"] is True
    assert resumed.report["run_id"] == json.loads(out)["run_id"] != again.report["run_id"]
    trips = tasks(server, stream)
    assert sorted(trip["truck"] for trip in trips) == sorted([*range(300)] * 2)
    assert {trip["depot"] for trip in trips} == {"south"}
    assert len({trip["task_id"] for trip in trips}) == 600
