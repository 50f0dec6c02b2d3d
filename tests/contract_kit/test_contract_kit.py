"""The contracts are tested themselves: each broken backend fails the test that says what is wrong with it.

One pytest of its own runs that test on each of them, and all tests on the honest backends that they are made of; the
tests here read the outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from owm_outbox.testing import JobContract, OutboxContract, SinkContract

from support.contract_kit.kits import HONEST, kit_of
from support.contract_kit.registry import CAUGHT_BY, SAYS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Outcome = tuple[str, str]
Outcomes = dict[str, dict[str, Outcome]]

SLIPS = (AttributeError, ImportError, KeyError, NameError, RecursionError, SyntaxError, TypeError)
"""What a broken backend does not raise by design: a test that fails with one of these proves nothing."""

CHOKES = {"ChokesOnUnknownPositions"}
"""Except these, whose flaw it is to raise one."""


def _names(outcomes: Mapping[str, Outcome], *verdicts: str) -> set[str]:
    return {name for name, (verdict, _) in outcomes.items() if verdict in verdicts}


def _tests(contract: type) -> set[str]:
    return {name for name in dir(contract) if name.startswith("test_")}


@pytest.mark.parametrize("backend", CAUGHT_BY, ids=lambda backend: backend.__name__)
def test_a_broken_backend_fails_the_test_that_says_so(backend: type, outcomes: Outcomes) -> None:
    """For each flaw, the test that is named for it fails, says what it is, and not by a slip of the broken code."""
    ((test, (verdict, why)),) = outcomes[f"Kit{backend.__name__}"].items()
    assert (test, verdict) == (CAUGHT_BY[backend], "failed"), why
    assert SAYS[backend] in why
    if backend.__name__ not in CHOKES:
        assert not why.startswith(tuple(slip.__name__ for slip in SLIPS)), why


@pytest.mark.parametrize("kit", HONEST, ids=lambda kit: kit.__name__)
def test_an_honest_backend_passes(kit: Any, outcomes: Outcomes) -> None:
    """What the broken ones are made of passes every test, and skips only what its capabilities say."""
    found = outcomes[kit.__name__]
    assert {name: why for name, (verdict, why) in found.items() if verdict in ("failed", "error")} == {}
    skipped = _names(found, "skipped")
    assert _names(found, "passed") | skipped == _tests(kit)
    for name in skipped:
        field = found[name][1].removeprefix("Capabilities(").partition("=False)")[0]
        assert getattr(kit.capabilities, field) is False


@pytest.mark.parametrize("contract", [SinkContract, OutboxContract, JobContract])
def test_each_test_of_a_contract_is_passed_by_an_honest_backend(contract: type, outcomes: Outcomes) -> None:
    """Between them, the honest backends skip nothing."""
    passed = [_names(outcomes[kit.__name__], "passed") for kit in HONEST if issubclass(kit, contract)]
    assert set().union(*passed) == _tests(contract)


@pytest.mark.parametrize("contract", [SinkContract, OutboxContract, JobContract])
def test_each_test_of_a_contract_catches_something(contract: type) -> None:
    """No test is there for nothing: for each there is a broken backend whose flaw it is the one to name."""
    named = {test for backend, test in CAUGHT_BY.items() if issubclass(kit_of(backend), contract)}
    assert named == _tests(contract)


@pytest.mark.parametrize("contract", [SinkContract, OutboxContract, JobContract])
def test_each_test_of_a_contract_says_what_it_promises(contract: type) -> None:
    """Names and docstrings are the specification: each is there, no two are the same, and each is a sentence."""
    promises = [getattr(contract, name).__doc__ or "" for name in _tests(contract)]
    assert len(set(promises)) == len(promises)
    for promise in promises:
        assert promise[:1].isupper() or promise.startswith("``resume_within``")
        assert promise.endswith(".")


def test_what_a_backend_cannot_do_is_skipped_with_the_reason(outcomes: Outcomes) -> None:
    """A skip names the field of Capabilities that led to it, and what therefore was not tested."""
    found = outcomes["KitOfLittle"]
    reasons = {found[name][1] for name in _names(found, "skipped")}
    assert {reason.partition(": not tested ")[0] for reason in reasons} == {
        f"Capabilities({what}=False)"
        for what in ("bounded", "durable", "holds_mark", "interruptible", "rejects", "remote")
    }
    assert all(reason.partition(": not tested ")[2] for reason in reasons)
    assert "test_a_batch_is_held_whole_and_in_order" in _names(found, "passed")


def test_what_a_source_cannot_do_is_skipped_with_the_reason(outcomes: Outcomes) -> None:
    """A skip of a job's test names the field of Source that is not given, or says that there is one page."""
    found = outcomes["KitOfALittleSource"]
    assert _names(found, "failed", "error") == set()
    reasons = {found[name][1] for name in _names(found, "skipped")}
    assert {reason.partition(": not tested ")[0] for reason in reasons} == {
        "Source(failing=None)",
        "Source(invalid=0)",
        "the source has one page",
    }
    assert all(reason.partition(": not tested ")[2] for reason in reasons)


@pytest.mark.parametrize(
    ("kit", "fixture"),
    [("KitWithoutDestination", "destination"), ("KitWithoutStorage", "storage"), ("KitWithoutSource", "source")],
)
def test_a_forgotten_fixture_is_named(kit: str, fixture: str, outcomes: Outcomes) -> None:
    """An author who gave no fixture is told which, and where to read about it."""
    verdicts = {outcome for outcome in outcomes[kit].values() if outcome[0] != "skipped"}
    (verdict,) = {(verdict, message.partition(": ")[2]) for verdict, message in verdicts}
    assert verdict[0] == "error"
    assert f"give your subclass a fixture named {fixture}, see owm_outbox.testing" in verdict[1]


def test_a_promise_without_the_means_to_test_it_is_an_error(outcomes: Outcomes) -> None:
    """A capability that needs a field of the destination names it, and the test does not pass without it."""
    found = outcomes["KitOfEmptyPromises"]
    messages = {why for verdict, why in found.values() if verdict in ("error", "failed")}
    for capability, field in (("bounded", "fill"), ("rejects", "poison"), ("interruptible", "interrupt")):
        assert any(f"Capabilities({capability}=True) needs Destination.{field}" in message for message in messages)
    (verdict,) = set(outcomes["KitOfNoTrouble"].values())
    assert verdict[0] == "error"
    assert "Capabilities(interruptible=True) needs Storage.interrupt" in verdict[1]
