"""Options of another team's job: lists of values, and names that are taken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import pytest
from msgspec import Meta, defstruct

from owm_outbox import ConfigurationError, Job, JobOptions, Page, Run, Secret
from owm_outbox.cli.config_file import Key, load_toml
from owm_outbox.cli.options import job_params, make_options, prefix
from owm_outbox.cli.settings import keys, run_params

from support.commands import run
from support.plugins import install_jobs

LISTS = """
    from typing import Annotated
    from msgspec import Meta, Struct
    from owm_outbox import Job, JobOptions, Page

    class Task(Struct):
        task_id: str
        depots: tuple[str, ...]
        days: tuple[int, ...]

    class Fleet(Job):
        name = "fleet"

        class Options(JobOptions, frozen=True):
            depots: Annotated[tuple[str, ...], Meta(description="Which depots")] = ("north",)
            days: tuple[Annotated[int, Meta(ge=1, le=31)], ...] = ()

        def pages(self, run):
            yield Page([Task("1", self.options.depots, self.options.days)])
    """


class Fleet(Job[Any]):
    """Has a list of each kind."""

    name = "fleet"

    class Options(JobOptions, frozen=True):
        """One of each kind."""

        depots: tuple[str, ...] = ("north", "far north")
        days: tuple[Annotated[int, Meta(ge=1, le=31)], ...] = ()
        moods: frozenset[Literal["brisk", "calm"]] = frozenset()
        speeds: list[float] | None = None
        routes: list[Annotated[str, Meta(pattern="^[A-Z]+$", description="Capital letters")]] | None = None

    def pages(self, run: Run) -> Iterator[Page[Any]]:
        """Yield nothing."""
        yield Page([])


def _options(*args: str, default_map: dict[str, Any] | None = None) -> Any:
    command = click.Command("fleet", params=[*job_params(Fleet)])
    with command.make_context("fleet", list(args), auto_envvar_prefix="FLEET", default_map=default_map) as ctx:
        return make_options(Fleet, ctx)


def test_a_list_has_its_default() -> None:
    """Where nothing is given, each list is what the class says, also ``None``."""
    assert _options() == Fleet.Options()


def test_a_flag_is_repeated_for_a_list() -> None:
    """Each repetition is an item, of its type; a comma is part of it."""
    args = ("--depots", "a, b", "--depots", "c", "--days", "3", "--days", "31", "--moods", "calm", "--speeds", "1.5")
    assert _options(*args) == Fleet.Options(depots=("a, b", "c"), days=(3, 31), moods=frozenset({"calm"}), speeds=[1.5])


def test_a_variable_has_commas_between_the_items_of_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks next to a comma do not count; an empty variable counts as not set."""
    monkeypatch.setenv("FLEET_DEPOTS", "far north, south,")
    monkeypatch.setenv("FLEET_DAYS", "3")
    monkeypatch.setenv("FLEET_SPEEDS", "")
    assert _options() == Fleet.Options(depots=("far north", "south"), days=(3,))


def test_a_file_has_an_array_for_a_list(tmp_path: Path) -> None:
    """An empty array is an empty list, not the default."""
    (tmp_path / "fleet.toml").write_text('depots = []\n[fleet]\ndays = [3, 31]\nspeeds = [1.5]\nmoods = ["calm"]\n')
    given = load_toml(tmp_path / "fleet.toml", "fleet", keys(Fleet))
    assert _options(default_map=dict(given)) == Fleet.Options(
        depots=(), days=(3, 31), moods=frozenset({"calm"}), speeds=[1.5]
    )


@pytest.mark.parametrize("value", ['"north"', "3", "[[1]]", "[{a = 1}]"])
def test_a_list_in_a_file_is_an_array_of_values(value: str, tmp_path: Path) -> None:
    """A single value, or an array of something else, is refused with how to write it."""
    (tmp_path / "fleet.toml").write_text(f"depots = {value}\n")
    with pytest.raises(ConfigurationError, match=r"'depots' takes a list such as \[\"a\", \"b\"\], not "):
        load_toml(tmp_path / "fleet.toml", "fleet", {"depots": Key.LIST})


def test_a_bad_item_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """An item that does not fit is named with where the list came from."""
    with pytest.raises(click.UsageError) as caught:
        _options("--days", "3", "--days", "32")
    assert caught.value.format_message() == "Invalid value for '--days': 32 is not in the range 1<=x<=31."
    with pytest.raises(ConfigurationError, match=r"^--routes is not valid: "):
        _options("--routes", "A", "--routes", "b")
    monkeypatch.setenv("FLEET_ROUTES", "A,b")
    with pytest.raises(ConfigurationError, match=r"^FLEET_ROUTES is not valid: "):
        _options()


@pytest.mark.slow
def test_a_job_gets_its_lists_from_the_command_line(tmp_path: Path) -> None:
    """Flag, variable and file reach a job that is run, and its help says how to give them."""
    env = install_jobs(tmp_path, LISTS, fleet="Fleet")
    (tmp_path / "fleet.toml").write_text("[fleet]\ndepots = ['a', 'b']\ndays = [3]\n")
    args = ("--config", "fleet.toml", "--outbox", "memory:", "--sink", "jsonl:-")
    outcome = run("owm-outbox", "run", "fleet", *args, "--days", "4", "--days", "5", cwd=tmp_path, env=env)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.report == {"task_id": "1", "depots": ["a", "b"], "days": [4, 5]}
    text = " ".join(run("owm-outbox", "run", "fleet", "--help", env=env).out.split())
    assert (
        "Which depots (repeat the flag for several; in the variable, put commas between them) "
        "[env var: FLEET_DEPOTS; default: north]" in text
    )


# -- names that are taken


@pytest.mark.parametrize(
    "field",
    [
        *("sink", "outbox", "json", "as_json", "fresh", "config", "job", "version", "help"),
        *("batch_size", "wait_for_room", "resume_within", "log_level", "log_format"),
    ],
)
@pytest.mark.parametrize("kind", [str, bool, Secret], ids=["text", "flag", "secret"])
def test_an_option_of_every_job_cannot_be_a_job_s_own(field: str, kind: Any) -> None:
    """One clear error when the job is loaded, instead of one option that hides the other."""

    class Taken(Fleet):
        Options = defstruct("Options", [(field, kind | None, None)])  # type: ignore[assignment]  # made for the test

    with pytest.raises(
        ConfigurationError,
        match=rf"^job 'fleet' has an option '{field}', which is an option of every job: rename the field of .*Taken",
    ):
        run_params(Taken)


def test_two_fields_cannot_have_one_flag() -> None:
    """A flag ``--no-night`` is already there if there is one ``--night``."""

    class Twice(Fleet):
        class Options(JobOptions, frozen=True):
            night: bool = False
            no_night: bool = False

    with pytest.raises(ConfigurationError, match="'no_night'"):
        run_params(Twice)


@pytest.mark.slow
def test_a_job_with_a_taken_name_ends_with_78(tmp_path: Path) -> None:
    """Wherever the job is named, the line is the same, and the other jobs are not harmed."""
    source = """
        from owm_outbox import Job, JobOptions, Page

        class Fleet(Job):
            name = "fleet"

            class Options(JobOptions, frozen=True):
                sink: str = "north"

            def pages(self, run):
                yield Page([])
        """
    env = install_jobs(tmp_path, source, fleet="Fleet")
    for args in (("run", "fleet"), ("run", "fleet", "--help"), ("status", "--job", "fleet")):
        outcome = run("owm-outbox", *args, env=env)
        assert (outcome.code, outcome.out) == (78, "")
        assert outcome.line == (
            "owm-outbox: job 'fleet' has an option 'sink', which is an option of every job: "
            "rename the field of other_peoples_jobs.Fleet.Options"
        )
    assert run("owm-outbox", "run", "owm", "--help", env=env).code == 0


def test_prefixes_are_those_of_the_job() -> None:
    """The tests above set the variables that a command would read."""
    assert prefix(Fleet.name) == "FLEET"
