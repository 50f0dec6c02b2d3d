"""What ``owm-outbox new`` writes: a package that is installed, tested and used as it stands."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import owm_outbox
from owm_outbox.cli.new import new

from support.commands import SCRIPTS, Outcome, environment, refused, run, start
from support.weather import made_up, serving

NAMES = {"sink": "carrier-pigeon", "outbox": "drop-box", "job": "night-fleet"}


@dataclass(frozen=True)
class Package:
    """A generated package: its folder, and a folder where it is installed."""

    kind: str
    folder: Path
    site: Path

    @property
    def name(self) -> str:
        """What it was called."""
        return NAMES[self.kind]

    @property
    def module(self) -> str:
        """The stem of its module's name."""
        return self.name.replace("-", "_")

    @property
    def sources(self) -> list[str]:
        """Its Python files, but for the tests' conftest."""
        return [f"{self.module}.py", f"tests/test_{self.module}.py"] + (
            [] if self.kind == "job" else [f"{self.module}_scratch.py"]
        )

    @property
    def env(self) -> dict[str, str]:
        """What makes Python find it."""
        before = environment().get("PYTHONPATH")
        return {"PYTHONPATH": f"{self.site}:{before}" if before else str(self.site)}

    def run(self, command: str, *args: str, cwd: Path, **env: str) -> Outcome:
        """Run a command where it is installed."""
        return run(command, *args, cwd=cwd, env={**self.env, **env})


def _python(*args: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m`` with these arguments."""
    env = {name: value for name, value in environment(**extra).items() if not name.startswith("PYTEST_")}
    return subprocess.run([sys.executable, "-m", *args], cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    """Write a package of each kind with ``owm-outbox new``, and install them with pip."""
    folder = tmp_path_factory.mktemp("packages")
    for kind, name in NAMES.items():
        outcome = run("owm-outbox", "new", kind, name, cwd=folder)
        assert (outcome.code, outcome.err) == (0, ""), outcome.err
        assert name in outcome.out
    done = _python(
        *("pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-build-isolation"),
        *("--no-deps", "--target", "site", *(f"./{name}" for name in NAMES.values())),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return {kind: Package(kind, folder / name, folder / "site") for kind, name in NAMES.items()}


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.slow) for kind in NAMES])
def package(request: pytest.FixtureRequest, packages: dict[str, Package]) -> Package:
    """Give a package of each kind."""
    return packages[request.param]


@pytest.fixture
def sink(packages: dict[str, Package]) -> Package:
    """Give the package with a sink."""
    return packages["sink"]


@pytest.fixture
def outbox(packages: dict[str, Package]) -> Package:
    """Give the package with an outbox."""
    return packages["outbox"]


@pytest.fixture
def job(packages: dict[str, Package]) -> Package:
    """Give the package with a job."""
    return packages["job"]


# -- all kinds


def test_it_is_complete(package: Package) -> None:
    """Nothing is left to fill in, and what belongs to a package is there."""
    files = {str(path.relative_to(package.folder)) for path in package.folder.rglob("*") if path.is_file()}
    written = {
        *(".gitignore", "README.md", "pyproject.toml", "setup.cfg", "tox.ini", "tests/conftest.py"),
        *package.sources,
    }
    assert written <= files
    for name in written:
        assert "$" not in (package.folder / name).read_text("utf-8")
    assert package.name in (package.folder / "README.md").read_text("utf-8")


def test_its_own_tests_pass(package: Package) -> None:
    """Installed, it passes its tests at once, and skips only what its capabilities say it cannot do."""
    done = _python("pytest", "-q", "-rs", "-p", "no:cacheprovider", cwd=package.folder, **package.env)
    assert done.returncode == 0, done.stdout[-3000:]
    missing = set(re.findall(r"(?:Capabilities|Source)\((\w+)=\w+\)", done.stdout))
    assert (
        missing
        == {
            "sink": {"holds_mark", "bounded"},
            "outbox": {"dead_letters", "settable_clock", "transactions"},
            "job": {"failing", "invalid"},
        }[package.kind]
    )
    assert done.stdout.count("SKIPPED") == len(re.findall(r"=(?:False|None|0)\): not tested", done.stdout))


PRICES = '''
"""Reads the prices of a list."""

from collections.abc import Iterator
from decimal import Decimal

from msgspec import Struct
from owm_outbox import Job, JobOptions, Page, Run

LIST = {f"sku-{number}": Decimal(number) / 4 for number in range(9)}


class Price(Struct, frozen=True):
    task_id: str
    sku: str
    price: Decimal


class NightFleetJob(Job[Price]):
    name = "night-fleet"

    class Options(JobOptions, frozen=True):
        currency: str = "EUR"

    def key(self, task: Price) -> str:
        return task.sku

    def pages(self, run: Run) -> Iterator[Page[Price]]:
        skus = list(LIST)
        for at in range(int(run.checkpoint or 0), len(skus), 4):
            prices = [Price(str(run.task_id(sku)), sku, LIST[sku]) for sku in skus[at : at + 4]]
            yield Page(prices, checkpoint=str(at + 4).encode())
'''


@pytest.mark.slow
def test_the_tests_of_a_job_outlive_its_first_source(job: Package, tmp_path: Path) -> None:
    """A job that reads something else into other fields needs another fixture; then the tests hold what it promises."""
    folder = tmp_path / "edited"
    shutil.copytree(job.folder, folder)
    test = folder / "tests" / "test_night_fleet.py"
    before, after = test.read_text("utf-8"), "NightFleetJob.Options(currency='CHF')"
    test.write_text(
        before.replace("NightFleetJob.Options(count=25)", after).replace(
            "keys=range(25)", "keys=[f'sku-{number}' for number in range(9)]"
        )
    )
    changed = sum(line not in before.splitlines() for line in test.read_text("utf-8").splitlines())
    assert changed == 2

    def check(code: str) -> subprocess.CompletedProcess[str]:
        (folder / "night_fleet.py").write_text(code)
        path = f"{folder}:{job.env['PYTHONPATH']}"
        return _python("pytest", "-q", "-p", "no:cacheprovider", cwd=folder, PYTHONPATH=path)

    right = check(PRICES)
    assert right.returncode == 0, right.stdout[-3000:]
    ahead = check(PRICES.replace("checkpoint=str(at + 4)", "checkpoint=str(at + 5)"))
    assert ahead.returncode == 1
    assert "1 ('sku-4') of the source's 9 keys were never made: a checkpoint stands for its page" in ahead.stdout


@pytest.mark.slow
def test_it_is_small(outbox: Package, sink: Package) -> None:
    """An outbox takes at most 200 lines, a sink 60."""
    assert len((outbox.folder / f"{outbox.module}.py").read_text().splitlines()) <= 200
    assert len((sink.folder / f"{sink.module}.py").read_text().splitlines()) <= 60


def test_it_is_tidy(package: Package) -> None:
    """Ruff, as its tox.ini runs it, has nothing to say."""
    for args in (("check",), ("format", "--check")):
        done = _python("ruff", *args, "--no-cache", ".", cwd=package.folder)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_it_is_typed(packages: dict[str, Package], tmp_path: Path) -> None:
    """``mypy --strict``, as its tox.ini runs it, has nothing to say."""
    root = Path(owm_outbox.__file__).parents[1]  # a checkout that is installed as editable is not found by mypy itself
    path = {} if root.name == "site-packages" else {"MYPYPATH": str(root)}
    done = _python(
        *("mypy", "--strict", "--cache-dir", "cache"),
        *(str(package.folder / name) for package in packages.values() for name in package.sources),
        cwd=tmp_path,
        **path,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_is_listed(package: Package, tmp_path: Path) -> None:
    """``owm-outbox plugins`` shows it with what it does, and finds nothing wrong with it."""
    outcome = package.run("owm-outbox", "plugins", "--json", cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    (plugin,) = (found for found in map(json.loads, outcome.out.splitlines()) if found["name"] == package.name)
    assert plugin.pop("summary").endswith(".")
    origin = f"{package.name} 0.1.0"
    assert plugin == {"kind": package.kind, "name": package.name, "distribution": origin, "problem": None}


@pytest.mark.parametrize("kind", ["sink", "outbox"])
@pytest.mark.slow
def test_a_live_one_can_be_checked(kind: str, packages: dict[str, Package], tmp_path: Path) -> None:
    """``owm-outbox check`` runs the contract next to the file that a URL names, and leaves nothing there."""
    outcome = packages[kind].run("owm-outbox", "check", kind, f"{NAMES[kind]}:{tmp_path}/tasks", cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, ""), outcome.out
    assert "  ok    it can be closed twice\n" in outcome.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "way"), [("sink", "interrupt"), ("sink", "unreachable"), ("outbox", "interrupt")])
@pytest.mark.slow
def test_a_check_without_failures_says_so(kind: str, way: str, packages: dict[str, Package], tmp_path: Path) -> None:
    """A scratch destination that cannot be made to fail: 65, and what its author can give."""
    package, folder = packages[kind], tmp_path / "edited"
    folder.mkdir()
    scratch = (package.folder / f"{package.module}_scratch.py").read_text("utf-8")
    without = re.sub(rf"\b{way}=(lambda: full_disk\(path\)|unreachable)", f"{way}=None", scratch)
    assert without != scratch
    (folder / f"{package.module}_scratch.py").write_text(without)
    path = {"PYTHONPATH": f"{folder}:{package.env['PYTHONPATH']}"}
    outcome = run("owm-outbox", "check", kind, f"{package.name}:{tmp_path}/tasks", cwd=tmp_path, env=path)
    assert outcome.code == 65, outcome.out
    assert "FAIL" not in outcome.out
    ways = "interrupt and unreachable" if kind == "sink" else "interrupt"
    assert outcome.line == (
        f"owm-outbox: this {kind} keeps what was tested, but how it fails was not: {package.name}:{tmp_path}/tasks. "
        f"Its author can give the scratch {kind} {ways}, see owm_outbox.testing"
    )


@pytest.mark.slow
def test_a_broken_promise_is_named_by_a_check(sink: Package, tmp_path: Path) -> None:
    """A sink that lost a promise ends the check with 70, whatever else was not tested."""
    folder = tmp_path / "edited"
    folder.mkdir()
    code = (sink.folder / f"{sink.module}.py").read_text("utf-8")
    code = code.replace("for entry in batch.entries)", "for entry in batch.entries[:20])")
    (folder / f"{sink.module}.py").write_text(code)
    path = {"PYTHONPATH": f"{folder}:{sink.env['PYTHONPATH']}"}
    outcome = run("owm-outbox", "check", "sink", f"{sink.name}:{tmp_path}/tasks", cwd=tmp_path, env=path)
    assert (outcome.code, outcome.line) == (
        70,
        f"owm-outbox: this sink does not keep its contract: {sink.name}:{tmp_path}/tasks",
    )
    assert "  FAIL  batches of the usual size are held\n" in outcome.out
    assert "two batches of 500 entries were sent, but 40 entries are held" in outcome.out


# -- a sink


def _producer(folder: Path, url: str, *args: str) -> tuple[str, ...]:
    return ("owm-producer", "--api-url", url, "--outbox", f"sqlite:///{folder}/tasks.db", *args)


def _cities(path: Path) -> list[int]:
    return [json.loads(line)["city_id"] for line in path.read_bytes().splitlines()]


@pytest.mark.slow
def test_the_producer_uses_the_sink(sink: Package, tmp_path: Path) -> None:
    """``owm-producer --sink carrier-pigeon:…`` puts every city there, and says that it did."""
    with serving(made_up(250)) as api:
        outcome = sink.run(
            *_producer(tmp_path, api.url, "--sink", f"{sink.name}:{tmp_path}/lines", "--json"), cwd=tmp_path
        )
    assert (outcome.code, outcome.err) == (0, "")
    assert (outcome.report["complete"], outcome.report["delivered"]) == (True, 250)
    assert _cities(tmp_path / "lines") == list(range(1, 251))


# -- an outbox


@pytest.mark.slow
def test_the_producer_uses_the_outbox(outbox: Package, tmp_path: Path) -> None:
    """What a sink that is down did not take is in ``--outbox drop-box:…``, and drained from there later."""
    url = f"{outbox.name}:{tmp_path}/tasks.db"
    with serving(made_up(250)) as api:
        outcome = outbox.run(
            *("owm-producer", "--api-url", api.url, "--outbox", url, "--json"),
            *("--sink", "redis://127.0.0.1:1/0?stream=s&retries=0"),
            cwd=tmp_path,
        )
    assert outcome.code == 75
    assert (outcome.report["extracted"], outcome.report["pending"]) == (250, 250)
    status = outbox.run("owm-outbox", "status", "--outbox", url, "--json", cwd=tmp_path)
    assert json.loads(status.out)["pending"] == 250
    drained = outbox.run("owm-outbox", "drain", "--outbox", url, "--sink", "jsonl:lines", cwd=tmp_path)
    assert (drained.code, drained.err) == (0, "")
    assert _cities(tmp_path / "lines") == list(range(1, 251))
    status = outbox.run("owm-outbox", "status", "--outbox", url, "--json", cwd=tmp_path)
    assert json.loads(status.out)["pending"] == 0


@pytest.mark.slow
def test_a_whole_run_leaves_the_outbox_empty(outbox: Package, tmp_path: Path) -> None:
    """A complete run over it is reported as with any other outbox, and its records are cleared."""
    with serving(made_up(250)) as api:
        outcome = outbox.run(
            *("owm-producer", "--api-url", api.url, "--outbox", f"{outbox.name}:tasks.db", "--sink", "jsonl:lines"),
            cwd=tmp_path,
        )
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert _cities(tmp_path / "lines") == list(range(1, 251))
    with closing(sqlite3.connect(tmp_path / "tasks.db")) as db:
        assert db.execute("SELECT count(*) FROM entries").fetchone() == (0,)


# -- a job


@pytest.mark.slow
def test_the_job_has_its_options_in_the_help(job: Package, tmp_path: Path) -> None:
    """``owm-outbox run night-fleet --help`` shows its options with meaning, variable, default and bounds."""
    outcome = job.run("owm-outbox", "run", job.name, "--help", cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    text = " ".join(outcome.out.split())
    for words in (
        "--count INTEGER RANGE How many tasks to make. [env var: NIGHT_FLEET_COUNT; default: 25; 0<=x<=1000000]",
        "--message TEXT What each of them says. [env var: NIGHT_FLEET_MESSAGE; default: hello]",
        "[env var: NIGHT_FLEET_OUTBOX]",
    ):
        assert words in text


@pytest.mark.slow
def test_the_job_runs_twice(job: Package, tmp_path: Path) -> None:
    """Each call is a run of its own, with the options of its flags and its environment."""
    args = ("run", job.name, "--outbox", "sqlite:///tasks.db", "--sink", "jsonl:lines")
    first = job.run("owm-outbox", *args, "--count", "12", "--json", cwd=tmp_path)
    second = job.run("owm-outbox", *args, "--json", cwd=tmp_path, NIGHT_FLEET_COUNT="3", NIGHT_FLEET_MESSAGE="hi")
    assert [(done.code, done.err) for done in (first, second)] == [(0, ""), (0, "")]
    assert first.report["run_id"] != second.report["run_id"]
    tasks = [json.loads(line) for line in (tmp_path / "lines").read_bytes().splitlines()]
    assert [(task["number"], task["message"]) for task in tasks] == [
        *((number, "hello") for number in range(12)),
        *((number, "hi") for number in range(3)),
    ]


@pytest.mark.slow
def test_the_job_is_resumed_after_an_interruption(job: Package, tmp_path: Path) -> None:
    """Stopped with SIGTERM while its output is stuck, the next call resumes the run, and all its tasks have come."""
    args = ("run", job.name, "--count", "3000", "--outbox", "sqlite:///tasks.db", "--batch-size", "1000")
    process = start("owm-outbox", *args, "--sink", "jsonl:-", cwd=tmp_path, env=job.env)
    assert process.stdout is not None
    first = process.stdout.readline()  # from here on nobody reads, and a pipe holds less than 1000 tasks
    process.send_signal(signal.SIGTERM)
    came = [json.loads(line) for line in [first, *process.stdout] if line.endswith(b"}\n")]
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    outcome = job.run("owm-outbox", *args, "--sink", "jsonl:lines", "--json", cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert (outcome.report["resumed"], outcome.report["complete"], outcome.report["extracted"]) == (True, True, 3000)
    came += [json.loads(line) for line in (tmp_path / "lines").read_bytes().splitlines()]
    assert {task["number"] for task in came} == set(range(3000))
    assert len({task["task_id"] for task in came}) == 3000, "a task that came twice kept its id"


# -- names, and what is refused


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Give a function that calls the command in a folder of its own, without a process: that would take its time."""
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(new, args, standalone_mode=False)


LETTERS = (
    "{name!r} cannot be the name of a plugin: use up to 30 lowercase letters, digits and single hyphens, "
    "starting with a letter, as in carrier-pigeon."
)
IN_PYTHON = "{name!r} is a keyword or a standard module of Python: choose another name."
INSTALLED = "is already installed: choose another name, or uninstall it."


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Carrier-Pigeon", LETTERS),
        ("carrier_pigeon", LETTERS),
        ("carrier--pigeon", LETTERS),
        ("carrier pigeon", LETTERS),
        ("pigeon-", LETTERS),
        ("3-pigeons", LETTERS),
        ("täubchen", LETTERS),
        ("../pigeon", LETTERS),
        ("/pigeon", LETTERS),
        ("", LETTERS),
        ("pigeon\n", LETTERS),
        ("pigeon" * 6, LETTERS),
        ("class", IN_PYTHON),
        ("json", IN_PYTHON),
        ("requests", f"a package 'requests' {INSTALLED}"),
        ("jsonl", "sink 'jsonl' is already installed (see owm-outbox plugins): choose another name, or uninstall it."),
        ("owm-outbox", f"a package 'owm-outbox' {INSTALLED}"),
        ("python-json-logger", f"a package 'python-json-logger' {INSTALLED}"),
    ],
)
def test_a_name_that_would_not_work_is_refused(
    name: str, problem: str, invoke: Callable[..., Result], tmp_path: Path
) -> None:
    """What no URL, module or package can be called, or what is taken, is wrong usage that says why."""
    result = invoke("sink", name)
    assert isinstance(result.exception, click.BadParameter)
    assert result.exception.message == problem.format(name=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("sink", "No-Name"), f"Invalid value for NAME: {LETTERS.format(name='No-Name')}"),
        (
            ("source", "pigeon"),
            "Invalid value for '{sink|outbox|job}': 'source' is not one of 'sink', 'outbox', 'job'.",
        ),
        (("sink",), "Missing argument 'NAME'."),
        (
            ("job", "owm"),
            "Invalid value for NAME: job 'owm' is already installed (see owm-outbox plugins): "
            "choose another name, or uninstall it.",
        ),
    ],
)
def test_wrong_usage_is_one_line(args: tuple[str, ...], line: str, tmp_path: Path) -> None:
    """An unknown kind, a bad or missing name: the command ends with 64 and a line that says what to do."""
    refused(tmp_path, 64, f"{line} Try owm-outbox new --help.", "owm-outbox", "new", *args)


@pytest.mark.slow
def test_an_installed_name_is_not_given_twice(sink: Package, tmp_path: Path) -> None:
    """Once it is installed, its name is taken, for its own kind and for others."""
    for kind in NAMES:
        outcome = sink.run("owm-outbox", "new", kind, sink.name, cwd=tmp_path)
        assert (outcome.code, outcome.out) == (64, "")
        assert f"{sink.name!r} is already installed" in outcome.line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("what", ["folder", "file", "dangling link"])
def test_what_exists_is_left_alone(what: str, tmp_path: Path) -> None:
    """Nothing is written over or into what has that name already, be it a file, a folder or a link."""
    target = tmp_path / "pigeon-post"
    if what == "folder":
        target.mkdir()
        (target / "mine").write_text("mine")
    elif what == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "nowhere")

    def snapshot() -> Iterator[tuple[str, str]]:
        for path in sorted(tmp_path.rglob("*")):
            yield str(path), path.read_text() if path.is_file() else str(path.is_symlink())

    before = list(snapshot())
    outcome = run("owm-outbox", "new", "job", "pigeon-post", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (78, "")
    assert outcome.line == (
        "owm-outbox: pigeon-post already exists here and was not changed: choose another name or folder"
    )
    assert list(snapshot()) == before


@pytest.mark.slow
def test_a_full_disk_leaves_no_half_package(tmp_path: Path) -> None:
    """If not all of it can be written, none of it stays, and one line says why."""
    script = f"ulimit -f 8; exec {SCRIPTS / 'owm-outbox'} new outbox pigeon-post"
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.count("\n") == 1
    assert os.strerror(errno.EFBIG) in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "name", "cls"),
    [
        ("sink", "x", "XSink"),
        ("sink", "pigeon-sink", "PigeonSink"),
        ("sink", "sink", "SinkSink"),
        ("job", "s3", "S3Job"),
    ],
)
def test_a_class_is_called_after_its_package(
    kind: str, name: str, cls: str, invoke: Callable[..., Result], tmp_path: Path
) -> None:
    """Whatever the name, the class has one that reads well and does not collide."""
    assert invoke(kind, name).exception is None
    module = name.replace("-", "_")
    assert f"{name} = {module}:{cls}\n" in (tmp_path / name / "setup.cfg").read_text("utf-8")
    code = (tmp_path / name / f"{module}.py").read_text("utf-8")
    compile(code, f"{module}.py", "exec")
    assert f'__all__ = ["{cls}"' in code
