"""Plugins of other people: built, installed and used as they would do it; a broken one does not harm the others."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

from support.commands import Outcome, environment, run
from support.weather import made_up, serving

pytestmark = pytest.mark.slow  # packages are built and installed

PYPROJECT = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
PIGEON = {
    "setup.cfg": """
        [metadata]
        name = carrier-pigeon
        version = 1.2

        [options]
        py_modules =
            carrier_pigeon
            carrier_torn
            carrier_needy

        [options.entry_points]
        owm_outbox.sinks =
            carrier-pigeon = carrier_pigeon:CarrierPigeonSink
            echo = carrier_pigeon:CarrierPigeonSink
            torn = carrier_torn:TornSink
            needy = carrier_needy:NeedySink
            ghost = carrier_ghost:GhostSink
            nameless = carrier_pigeon:NoSuchSink
            stone = carrier_pigeon:Stone
            value = carrier_pigeon:LOFT
            half = carrier_pigeon:HalfSink
        owm_outbox.jobs =
            fleet = carrier_pigeon:FleetJob
            wreck = carrier_torn:WreckJob
            crash = carrier_pigeon:CrashJob
            alias = carrier_pigeon:FleetJob
            bare = carrier_pigeon:BareJob
        """,
    "carrier_pigeon.py": """
        from pathlib import Path
        from typing import Annotated, Literal
        from uuid import UUID

        from msgspec import Meta, Struct

        from owm_outbox import URL, Job, JobOptions, Page, Secret, Sink


        class CarrierPigeonSink(Sink):
            '''Writes each batch to a loft, one file per pigeon.

            What follows is for people who read more than one line.
            '''

            def __init__(self, loft, size):
                self.loft = loft
                self.size = size

            @classmethod
            def from_url(cls, url: URL):
                options = url.options(size=Annotated[int, Meta(ge=1)])
                return cls(Path(url.path), options.get("size", 1000))

            def mark(self, outbox_id):
                return None

            def send(self, batch):
                assert len(batch.entries) <= self.size
                pigeon = self.loft / f"{batch.mark.position:09}.pigeon"
                pigeon.write_bytes(b"".join(entry.payload + b"\\n" for entry in batch.entries))


        class HalfSink(Sink):
            '''Lacks send.'''

            def mark(self, outbox_id):
                return None


        class Stone:
            '''No sink.'''


        LOFT = "a value"


        class Trip(Struct):
            task_id: UUID
            truck: int
            options: dict


        class FleetJob(Job[Trip]):
            '''Send every truck on a trip.'''

            name = "fleet"
            default_outbox = "sqlite:///fleet.db"
            default_sink = "jsonl:fleet.jsonl"

            class Options(JobOptions, frozen=True):
                depot: Annotated[str, Meta(description="Which depot")] = "north"
                trucks: Annotated[int, Meta(ge=1, le=50, description="How many trucks")] = 3
                mood: Annotated[Literal["brisk", "calm"], Meta(description="How to drive")] = "calm"
                by_night: Annotated[bool, Meta(description="Whether to drive by night")] = False
                toll_key: Annotated[Secret | None, Meta(description="Pays the toll")] = None

            def key(self, task):
                return task.truck

            def pages(self, run):
                given = self.options
                options = {"depot": given.depot, "mood": given.mood, "by_night": given.by_night}
                options["toll"] = None if given.toll_key is None else len(given.toll_key)
                yield Page([Trip(run.task_id(truck), truck, options) for truck in range(given.trucks)])


        class CrashJob(FleetJob):
            '''Stop short.'''

            name = "crash"
            default_outbox = "sqlite:///crash.db"

            def pages(self, run):
                yield from super().pages(run)
                raise ZeroDivisionError("no road left")


        class BareJob(FleetJob):
            '''Name neither outbox nor sink.'''

            name = "bare"
            default_outbox = default_sink = None
        """,
    "carrier_torn.py": """
        raise RuntimeError("torn in transit")
        """,
    "carrier_needy.py": """
        import no_such_driver
        """,
}
COPYCAT = {
    "setup.cfg": """
        [metadata]
        name = copycat
        version = 0.3

        [options]
        py_modules = copycat

        [options.entry_points]
        owm_outbox.sinks =
            echo = copycat:EchoSink
        """,
    "copycat.py": """
        from owm_outbox import Sink


        class EchoSink(Sink):
            '''Says it again.'''

            def mark(self, outbox_id):
                return None

            def send(self, batch):
                pass
        """,
}


@dataclass(frozen=True)
class Installed:
    """A folder with packages, as on the PYTHONPATH of the person who installed them there."""

    site: Path

    def run(self, *args: str, cwd: Path, **env: str) -> Outcome:
        """Run ``owm-outbox`` where these packages are."""
        return run("owm-outbox", *args, cwd=cwd, env={"PYTHONPATH": self._path(), **env})

    def _path(self) -> str:
        before = environment().get("PYTHONPATH")
        return f"{self.site}:{before}" if before else str(self.site)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build and install two packages of other people, one of them with all sorts of broken plugins."""
    folder = tmp_path_factory.mktemp("packages")
    for name, files in (("pigeon", PIGEON), ("copycat", COPYCAT)):
        (folder / name).mkdir()
        for file, text in {"pyproject.toml": PYPROJECT, **files}.items():
            (folder / name / file).write_text(dedent(text))
    site = folder / "site"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-index", "--no-build-isolation", "--no-deps"),
            *("--target", str(site), str(folder / "pigeon"), str(folder / "copycat")),
        ],
        env=environment(),
        check=True,
        stdout=sys.stderr,
    )
    return Installed(site)


def test_installed_plugins_are_listed_with_their_origin(installed: Installed, tmp_path: Path) -> None:
    """``plugins`` shows kind, name, distribution, version and first line of each, also of other people's."""
    outcome = installed.run("plugins", cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    lines = {tuple(line.split()[:2]): line for line in outcome.out.splitlines()}
    assert {("outbox", "sqlite"), ("sink", "redis"), ("sink", "jsonl"), ("job", "owm")} <= set(lines)
    assert "carrier-pigeon 1.2 " in lines["sink", "carrier-pigeon"]
    assert lines["sink", "carrier-pigeon"].endswith(" Writes each batch to a loft, one file per pigeon.")
    assert lines["job", "fleet"].endswith(" Send every truck on a trip.")
    assert "people who read" not in outcome.out


def test_broken_plugins_are_listed_with_what_is_wrong(installed: Installed, tmp_path: Path) -> None:
    """``plugins`` shows the broken ones, too, and why; as JSON, one object per line."""
    outcome = installed.run("plugins", "--json", cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    plugins = [json.loads(line) for line in outcome.out.splitlines()]
    assert all(list(plugin) == ["kind", "name", "distribution", "summary", "problem"] for plugin in plugins)
    assert sum(plugin["name"] == "echo" for plugin in plugins) == 2
    broken = {plugin["name"]: plugin["problem"] for plugin in plugins if plugin["problem"] is not None}
    assert set(broken) == {"torn", "needy", "ghost", "nameless", "stone", "value", "half", "wreck", "alias"}
    assert "torn in transit" in broken["wreck"]
    text = installed.run("plugins", cwd=tmp_path).out
    assert all(problem in text for problem in broken.values())


def test_a_sink_of_other_people_gets_every_city(installed: Installed, tmp_path: Path) -> None:
    """A sink that was only installed is used by its name in the URL, options and all."""
    loft = tmp_path / "loft"
    loft.mkdir()
    with serving(made_up(250)) as api:
        outcome = installed.run(
            *("run", "owm", "--sink", f"carrier-pigeon:{loft}?size=70", "--batch-size", "70"),
            *("--outbox", "sqlite:///tasks.db", "--api-url", api.url),
            cwd=tmp_path,
        )
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    lines = [line for pigeon in sorted(loft.iterdir()) for line in pigeon.read_bytes().splitlines()]
    assert [json.loads(line)["city_id"] for line in lines] == list(range(1, 251))


def test_an_option_of_a_sink_of_other_people_is_checked(installed: Installed, tmp_path: Path) -> None:
    """A misspelt option of an installed sink is an error that names the one probably meant."""
    outcome = installed.run("run", "owm", "--sink", "carrier-pigeon:/loft?sise=7", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (78, "")
    assert outcome.line == ("owm-outbox: unknown option 'sise' in carrier-pigeon:/loft?sise=7: did you mean 'size'?")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (
            "torn",
            "'torn' of carrier-pigeon 1.2 cannot be imported (RuntimeError: torn in transit): reinstall or upgrade it",
        ),
        (
            "needy",
            "'needy' of carrier-pigeon 1.2 cannot be imported (ModuleNotFoundError: No module named 'no_such_driver'): "
            "install 'no_such_driver', or the extra of carrier-pigeon that includes it",
        ),
        (
            "ghost",
            "'ghost' of carrier-pigeon 1.2 cannot be imported (ModuleNotFoundError: No module named 'carrier_ghost'): "
            "reinstall or upgrade it",
        ),
        (
            "nameless",
            "'nameless' of carrier-pigeon 1.2 cannot be imported (AttributeError: module 'carrier_pigeon' has no "
            "attribute 'NoSuchSink'): reinstall or upgrade it",
        ),
        (
            "stone",
            "'stone' of carrier-pigeon 1.2 (carrier_pigeon:Stone) is not a subclass of owm_outbox.Sink: "
            "fix the entry point in group owm_outbox.sinks",
        ),
        (
            "value",
            "'value' of carrier-pigeon 1.2 (carrier_pigeon:LOFT) is not a subclass of owm_outbox.Sink: "
            "fix the entry point in group owm_outbox.sinks",
        ),
        ("half", "'half' of carrier-pigeon 1.2 (carrier_pigeon:HalfSink) does not define send"),
        ("echo", "sink 'echo' is installed by carrier-pigeon 1.2 and copycat 0.3: uninstall all but one"),
    ],
)
def test_a_broken_sink_is_named_with_its_fix(name: str, problem: str, installed: Installed, tmp_path: Path) -> None:
    """A plugin that cannot be used ends with 78 and a line that names its distribution and what to do."""
    outcome = installed.run("run", "fleet", "--sink", f"{name}:", cwd=tmp_path)
    assert (outcome.code, outcome.out, outcome.line) == (78, "", f"owm-outbox: {problem}")
    assert list(tmp_path.iterdir()) == []


def test_a_job_has_one_name(installed: Installed, tmp_path: Path) -> None:
    """A job under another name than its class has is refused: its variables and its runs would carry the wrong one."""
    outcome = installed.run("run", "alias", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (78, "")
    assert outcome.line == (
        "owm-outbox: 'alias' of carrier-pigeon 1.2 (carrier_pigeon:FleetJob) has the name 'fleet': "
        "write name = 'alias' in its class"
    )


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("run bare", "job 'bare' has no default outbox: give --outbox or set BARE_OUTBOX"),
        ("run bare --outbox memory:", "job 'bare' has no default sink: give --sink or set BARE_SINK"),
        ("status --job bare", "job 'bare' has no default outbox: give --outbox or set BARE_OUTBOX"),
        ("drain --job bare --outbox memory:", "job 'bare' has no default sink: give --sink or set BARE_SINK"),
        ("check sink carrier-pigeon:.", "carrier-pigeon: this kind of sink cannot be checked without touching the real "
         "one: run its contract test instead"),
    ],
)  # fmt: skip
def test_what_a_plugin_does_not_give_must_be_given(
    command: str, line: str, installed: Installed, tmp_path: Path
) -> None:
    """A job without a default outbox or sink, and a sink without a scratch destination, say what to do instead."""
    outcome = installed.run(*command.split(), cwd=tmp_path)
    assert (outcome.code, outcome.out, outcome.line) == (78, "", f"owm-outbox: {line}")
    assert list(tmp_path.iterdir()) == []


def test_logs_of_a_job_follow_its_own_variables(installed: Installed, tmp_path: Path) -> None:
    """``FLEET_LOG_LEVEL`` is for the job fleet; ``OWM_LOG_LEVEL`` is for the job owm and no other."""
    own = installed.run("run", "fleet", cwd=tmp_path, FLEET_LOG_LEVEL="info")
    assert (own.code, len(own.err.splitlines())) == (0, 2)
    other = installed.run("run", "fleet", cwd=tmp_path, OWM_LOG_LEVEL="info", OWM_LOG_FORMAT="json")
    assert (other.code, other.err) == (0, "")
    drained = installed.run("drain", "--job", "fleet", cwd=tmp_path, FLEET_SINK="nowhere:", FLEET_LOG_FORMAT="json")
    assert json.loads(drained.line)["exit_code"] == drained.code == 78


def test_a_broken_job_does_not_hide_the_others(installed: Installed, tmp_path: Path) -> None:
    """``run --help`` lists all jobs with what they do; the broken one says why, and ends with 78 when it is run."""
    listed = installed.run("run", "--help", cwd=tmp_path)
    assert (listed.code, listed.err) == (0, "")
    text = " ".join(listed.out.split())
    for words in (
        "owm Pages the Weather Service for all its cities, and makes one ingestion task per city.",
        "fleet Send every truck on a trip.",
        "wreck 'wreck' of carrier-pigeon 1.2 cannot be imported (RuntimeError: torn in transit): reinstall",
    ):
        assert words in text
    broken = installed.run("run", "wreck", cwd=tmp_path)
    assert (broken.code, broken.out) == (78, "")
    assert broken.line == (
        "owm-outbox: 'wreck' of carrier-pigeon 1.2 cannot be imported (RuntimeError: torn in transit): "
        "reinstall or upgrade it"
    )


def test_a_job_of_other_people_has_its_options_in_the_help(installed: Installed, tmp_path: Path) -> None:
    """``run fleet --help`` shows each option's meaning, bounds, default and FLEET_ variable, and secrets apart."""
    outcome = installed.run("run", "fleet", "--help", cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    text = " ".join(outcome.out.split())
    for words in (
        "Send every truck on a trip.",
        "--depot TEXT Which depot [env var: FLEET_DEPOT; default: north]",
        "--trucks INTEGER RANGE How many trucks [env var: FLEET_TRUCKS; default: 3; 1<=x<=50]",
        "--mood [brisk|calm] How to drive [env var: FLEET_MOOD; default: calm]",
        "--by-night / --no-by-night Whether to drive by night [env var: FLEET_BY_NIGHT; default: no-by-night]",
        "FLEET_TOLL_KEY Pays the toll",
        "[env var: FLEET_OUTBOX; default: sqlite:///fleet.db]",
        "[env var: FLEET_SINK; default: jsonl:fleet.jsonl]",
        "[env var: FLEET_BATCH_SIZE; default: 500;",
    ):
        assert words in text
    assert "--toll-key" not in text
    assert "OWM_OUTBOX" not in text


def _options(folder: Path) -> dict[str, object]:
    lines = (folder / "fleet.jsonl").read_text().splitlines()
    (folder / "fleet.jsonl").unlink()
    options: dict[str, object] = json.loads(lines[0])["options"]
    return options | {"trucks": len(lines)}


def test_a_job_of_other_people_runs_with_its_options(installed: Installed, tmp_path: Path) -> None:
    """``run fleet`` takes default, file, environment and flag, each beating the one before, and FLEET_ secrets."""
    default = {"depot": "north", "trucks": 3, "mood": "calm", "by_night": False, "toll": None}
    assert installed.run("run", "fleet", cwd=tmp_path).code == 0
    assert _options(tmp_path) == default

    (tmp_path / "all.toml").write_text(
        "batch_size = 7\n[owm]\napi_limit = 3\n[fleet]\nby-night = true\ndepot = 'file'\ntrucks = 5\n"
    )
    env = {"FLEET_DEPOT": "variable", "FLEET_MOOD": "brisk", "FLEET_TOLL_KEY": "12345", "FLEET_CONFIG": "all.toml"}
    outcome = installed.run("run", "fleet", "--depot", "flag", cwd=tmp_path, **env)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert _options(tmp_path) == {"depot": "flag", "trucks": 5, "mood": "brisk", "by_night": True, "toll": 5}

    outcome = installed.run("run", "fleet", "--no-by-night", cwd=tmp_path, **env)
    assert outcome.code == 0
    assert _options(tmp_path) == {"depot": "variable", "trucks": 5, "mood": "brisk", "by_night": False, "toll": 5}


@pytest.mark.parametrize(
    ("args", "env", "code", "line"),
    [
        (
            ("--trucks", "51"),
            {},
            64,
            "Invalid value for '--trucks': 51 is not in the range 1<=x<=50. Try owm-outbox run fleet --help.",
        ),
        (
            ("--mood", "grim"),
            {},
            64,
            "Invalid value for '--mood': 'grim' is not one of 'brisk', 'calm'. Try owm-outbox run fleet --help.",
        ),
        (
            (),
            {"FLEET_TRUCKS": "0"},
            78,
            "FLEET_TRUCKS in the environment: Invalid value for '--trucks': 0 is not in the range 1<=x<=50.",
        ),
        (
            (),
            {"FLEET_MOOD": "grim"},
            78,
            "FLEET_MOOD in the environment: Invalid value for '--mood': 'grim' is not one of 'brisk', 'calm'.",
        ),
    ],
)
def test_the_options_of_a_job_of_other_people_are_checked(
    args: tuple[str, ...], env: dict[str, str], code: int, line: str, installed: Installed, tmp_path: Path
) -> None:
    """A flag out of range is wrong usage, a variable out of range bad configuration, as with the job owm."""
    outcome = installed.run("run", "fleet", *args, cwd=tmp_path, **env)
    assert (outcome.code, outcome.out, outcome.line) == (code, "", f"owm-outbox: {line}")
    assert list(tmp_path.iterdir()) == []


def test_commands_find_the_outbox_of_a_job_of_other_people(installed: Installed, tmp_path: Path) -> None:
    """``status --job fleet`` looks at that job's outbox, its default or what its variable says."""
    assert installed.run("run", "fleet", cwd=tmp_path).code == 0
    report = json.loads(installed.run("status", "--job", "fleet", "--json", cwd=tmp_path).out)
    assert [(known["job"], known["state"], known["extracted"]) for known in report["runs"]] == [
        ("fleet", "complete", 3)
    ]
    (tmp_path / "fleet.db").rename(tmp_path / "moved.db")
    assert installed.run("status", "--job", "fleet", cwd=tmp_path).code == 73
    moved = {"FLEET_OUTBOX": "sqlite:///moved.db"}
    assert json.loads(installed.run("status", "--job=fleet", "--json", cwd=tmp_path, **moved).out) == report


def _source(installed: Installed) -> str:
    return (installed.site / "carrier_pigeon.py").read_text()


def test_a_bug_in_a_job_is_named_with_its_line(installed: Installed, tmp_path: Path) -> None:
    """What a job raises ends with 70 and one line; what was stored before is delivered; debug shows the traceback."""
    outcome = installed.run("run", "crash", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (70, "")
    line = 1 + next(n for n, text in enumerate(_source(installed).splitlines()) if "no road left" in text)
    assert outcome.line == (
        f"owm-outbox: job 'crash' failed at {installed.site}/carrier_pigeon.py:{line}: ZeroDivisionError: no road left "
        "[3 tasks extracted, 0 waiting in the outbox]"
    )
    status = json.loads(installed.run("status", "--job", "crash", "--json", cwd=tmp_path).out)
    assert (status["pending"], status["runs"][0]["report"]["complete"]) == (0, False)
    debug = installed.run("run", "crash", "--log-level", "debug", cwd=tmp_path)
    assert debug.code == 70
    assert "Traceback" in debug.err
    assert "carrier_pigeon.py" in debug.err
