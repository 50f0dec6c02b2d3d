"""What the user said and nobody reads is warned of, with the name that was probably meant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from owm_outbox import Job, Page, Run, Secret
from owm_outbox.cli.misspelt import misspelt_variables
from owm_outbox.job import JobOptions
from owm_outbox.jobs.owm import OwmJob

from support.commands import HARMLESS, Outcome, run
from support.plugins import install_jobs
from support.weather import made_up, serving

STORES = {"OWM_OUTBOX": "sqlite:///tasks.db", "OWM_SINK": "jsonl:tasks.jsonl"}


class Invoices(Job[Any]):
    """A job of another team."""

    name = "invoices"

    class Options(JobOptions, frozen=True):
        """One that can be misspelt, and a secret one."""

        attempts: int = 3
        api_key: Secret | None = None

    def pages(self, run: Run) -> Iterator[Page[Any]]:
        """Yield nothing."""
        yield Page([])


def _warnings(job: type[Job[Any]], *jobs: str, **environ: str) -> list[str]:
    return list(misspelt_variables(job, [job.name, *jobs], environ))


def _logged(outcome: Outcome) -> list[str]:
    """Return the messages on stderr, without their times."""
    return [line.partition(" WARNING ")[2] or line for line in outcome.err.splitlines()]


@pytest.mark.parametrize(
    ("job", "variable", "meant"),
    [
        (OwmJob, "OWM_SNIK", "OWM_SINK"),
        (OwmJob, "OWM_BATCHSIZE", "OWM_BATCH_SIZE"),
        (OwmJob, "OWM_API_TOKN", "OWM_API_TOKEN"),
        (OwmJob, "OWM_CONFG", "OWM_CONFIG"),
        (OwmJob, "OWM_OUTBOX_LOGLEVEL", "OWM_OUTBOX_LOG_LEVEL"),
        (Invoices, "INVOICES_ATEMPTS", "INVOICES_ATTEMPTS"),
        (Invoices, "INVOICES_APIKEY", "INVOICES_API_KEY"),
        (Invoices, "OWM_OUTBOX_LOG_FROMAT", "OWM_OUTBOX_LOG_FORMAT"),
    ],
)
def test_a_misspelt_variable_is_named_with_the_nearest_one(job: type[Job[Any]], variable: str, meant: str) -> None:
    """One warning per variable, which does not show its value."""
    assert _warnings(job, **{variable: "hunter2"}) == [
        f"{variable} in the environment is not read: did you mean {meant}?"
    ]


@pytest.mark.parametrize("variable", ["OWM_FRESH", "OWM_JSON"])
def test_a_flag_of_one_call_has_no_variable(variable: str) -> None:
    """A variable named as a flag of one call is warned of with the flag."""
    flag = "--" + variable.removeprefix("OWM_").lower()
    assert _warnings(OwmJob, **{variable: "1"}) == [f"{variable} in the environment has no effect: give {flag}"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *((f"OWM_{name}", "x") for name in ("SINK", "OUTBOX", "API_TOKEN", "CONFIG", "LOG_LEVEL", "OUTBOX_LOG_LEVEL")),
        ("OWM_HOME", "/opt"),  # nothing like it is ours
        ("PATH", "/bin"),
        ("OWMSINK", "x"),
        ("INVOICES_SNIK", "x"),  # of a job that is not run
        ("OWM_FLEET_API_URL", "http://fleet"),  # of the job owm-fleet
        # what Kubernetes sets for services named owm-api, owm-sink
        ("OWM_API_PORT", "tcp://10.0.0.1:80"),
        ("OWM_API_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("OWM_SINK_SERVICE_HOST", "10.0.0.1"),
        ("OWM_SINK_SERVICE_PORT_REDIS", "6379"),
    ],
)
def test_other_variables_are_not_warned_of(variable: str, value: str) -> None:
    """What is ours, what nothing of ours resembles, and what belongs to others is left alone."""
    assert _warnings(OwmJob, "invoices", "owm-fleet", **{variable: value}) == []


def test_a_variable_of_other_programs_is_left_alone() -> None:
    """A job may have a name with which variables of other programs begin, too."""

    class Http(Invoices):
        name = "http"

    assert _warnings(Http, HTTP_PROXY="http://proxy", HTTP_USER_AGENT="x") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [("run", "owm"), ("status",), ("drain",), ("dead", "list"), ("dead", "retry", "--all"), ("dead", "drop", "--all")],
    ids=" ".join,
)
def test_every_command_on_a_job_or_its_outbox_warns(args: tuple[str, ...], tmp_path: Path) -> None:
    """The warnings come before what the command ends with, once each."""
    (tmp_path / "owm.toml").write_text("[owmm]\nsink = 'jsonl:-'\n")
    env = {"OWM_SNIK": "jsonl:-", "OWM_CONFIG": "owm.toml"}
    outcome = run("owm-outbox", *args, cwd=tmp_path, env=HARMLESS | env)
    assert _logged(outcome)[:2] == [
        "owm.toml: the table [owmm] is not read, as no job of this name is installed: did you mean 'owm'?",
        "OWM_SNIK in the environment is not read: did you mean OWM_SINK?",
    ]
    assert outcome.code in (73, 75)
    assert "did you mean" not in _logged(outcome)[-1]


@pytest.mark.slow
def test_a_misspelt_variable_is_named_before_the_error_that_follows_from_it(tmp_path: Path) -> None:
    """Where the missing value ends the command, the warning says why it is missing."""
    source = """
        from owm_outbox import Job, Page

        class Fleet(Job):
            name = "fleet"

            def pages(self, run):
                yield Page([])
        """
    env = install_jobs(tmp_path, source, fleet="Fleet")
    outcome = run("owm-outbox", "run", "fleet", "--outbox", "memory:", env=env | {"FLEET_SNIK": "jsonl:-"})
    assert outcome.code == 78
    assert _logged(outcome) == [
        "FLEET_SNIK in the environment is not read: did you mean FLEET_SINK?",
        "owm-outbox: job 'fleet' has no default sink: give --sink or set FLEET_SINK",
    ]


@pytest.mark.slow
def test_the_warnings_are_json_where_the_logs_are(tmp_path: Path) -> None:
    """They are written as the options that stand behind them say."""
    (tmp_path / "owm.toml").write_text("log_format = 'json'\noutbox = 'sqlite:///no-such.db'\n[owmm]\n")
    outcome = run("owm-outbox", "status", "--config", "owm.toml", env={"OWM_SNIK": "x"}, cwd=tmp_path)
    levels = [json.loads(line)["levelname"] for line in outcome.err.splitlines()]
    assert levels == ["WARNING", "WARNING", "ERROR"]


@pytest.mark.slow
def test_help_and_version_warn_of_nothing() -> None:
    """Neither reads what is configured."""
    for flag in ("--help", "--version"):
        assert run("owm-producer", flag, env={"OWM_SNIK": "x"}).err == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "meant"),
    [("OWM", "did you mean 'owm'?"), ("onwm", "did you mean 'owm'?"), ("producer", "known: fleet, owm")],
)
def test_a_table_of_no_job_is_warned_of(table: str, meant: str, tmp_path: Path) -> None:
    """A table that no installed job reads is named; one of another job that is installed is not."""
    env = install_jobs(tmp_path, "", fleet="Fleet") | STORES
    (tmp_path / "owm.toml").write_text(f"[fleet]\ntrucks = 3\n[{table}]\napi_limit = 50\n[owm]\napi_limit = 10\n")
    with serving(made_up(1)) as api:
        args = ("--api-url", api.url, "--config", "owm.toml")
        outcome = run("owm-producer", *args, cwd=tmp_path, env=env)
        assert api.requests[0].endswith("limit=10")
    assert (outcome.code, _logged(outcome)) == (
        0,
        [f"owm.toml: the table [{table}] is not read, as no job of this name is installed: {meant}"],
    )
