"""A record that is not a city is kept with its reason; the rest of its page is stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from owm_outbox import DeadLetterStore, Outbox
from owm_outbox_backends.memory import MemoryOutbox

from support.commands import run
from support.misbehaving import Misbehaving, delivered, ids_in, produce, record

ALL = list(range(1, 251))

GOOD = [record(city_id) for city_id in (1, 2, 3)]

BAD_RECORDS = {
    "latitude 91": record(7, latitude=91),
    "latitude -90.0001": record(7, latitude=-90.0001),
    "longitude 180.5": record(7, longitude=180.5),
    "longitude -181": record(7, longitude=-181),
    "latitude 1e999": record(7, latitude="1e999"),
    "longitude -1e999": record(7, longitude="-1e999"),
    "latitude of 400 digits": record(7, latitude="1" + "0" * 400),
    "latitude as string": record(7, latitude='"12.5"'),
    "latitude NaN as string": record(7, latitude='"NaN"'),
    "latitude null": record(7, latitude="null"),
    "latitude true": record(7, latitude="true"),
    "latitude in an array": record(7, latitude="[12.5]"),
    "city_id true": record("true"),
    "city_id as string": record('"7"'),
    "city_id 7.0": record("7.0"),
    "city_id null": record("null"),
    "city_id 2**63": record(2**63),
    "city_id -2**63 - 1": record(-(2**63) - 1),
    "city_id 2**64": record(2**64),
    "city_id of 30 digits": record(10**30),
    "city_id of 5,000 digits": record("9" * 5000),
    "city_id 0, latitude 91": record(0, latitude=91),
    "no latitude": b'{"city_id":7,"longitude_deg":1}',
    "no city_id": b'{"latitude_deg":1,"longitude_deg":1}',
    "an empty object": b"{}",
    "null": b"null",
    "a number": b"7",
    "a string": '"市"'.encode(),
    "an array": b"[7,1.5,1.5]",
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_record_that_is_no_city_becomes_a_dead_letter(
    name: str, outbox: Outbox, service: Misbehaving, out: Path
) -> None:
    """A bad record is kept with its raw JSON and a reason, the rest of its page is stored; complete, with 65."""
    bad = BAD_RECORDS[name]
    service.records = [GOOD[0], bad, *GOOD[1:]]
    ending = produce(service, outbox, out)
    report = ending.report
    assert (ending.code, report.complete, report.missing) == (65, True, [])
    assert (report.expected, report.extracted, report.rejected, report.delivered) == (4, 3, 1, 3)
    assert ids_in(out) == [1, 2, 3]
    assert isinstance(outbox, DeadLetterStore)
    [letter] = outbox.dead_letters()
    assert (letter.payload, letter.task_id) == (bad, None)
    assert letter.reason
    assert letter.reason.isprintable()


@pytest.mark.parametrize(
    ("latitude", "longitude"),
    [(90, 180), (-90, -180), (0, 0), ("-0.0", "1e-300"), ("90.0", "1.80e2"), ("12.345678901234567", "-0.1")],
)
def test_a_record_at_the_edge_is_a_city(latitude: object, longitude: object, service: Misbehaving, out: Path) -> None:
    """The bounds themselves are allowed, whole numbers too, and every digit arrives."""
    service.records = [record(2**63 - 1, latitude, longitude), record(-(2**63), latitude, longitude)]
    assert produce(service, MemoryOutbox(), out).code == 0
    for task in delivered(out):
        assert (task["latitude_deg"], task["longitude_deg"]) == (float(str(latitude)), float(str(longitude)))
    assert ids_in(out) == [-(2**63), 2**63 - 1]


def test_all_bad_records_at_once_keep_no_good_one_back(outbox: Outbox, service: Misbehaving, out: Path) -> None:
    """However many bad records are spread over the pages, each is a dead letter and each good one is delivered."""
    bad = list(BAD_RECORDS.values())
    with_city_7 = sum(payload.startswith(b'{"city_id":7,') for payload in bad)  # all of these are one
    service.records = [record(1000 + n) if n % 5 else bad[n // 5] for n in range(5 * len(bad))]
    ending = produce(service, outbox, out)
    report = ending.report
    assert ids_in(out) == [1000 + n for n in range(5 * len(bad)) if n % 5]
    assert report.rejected == len(bad) - with_city_7 + 1
    assert (ending.code, report.complete) == (65, True)
    assert report.expected == len(service.records) - with_city_7 + 1, "the total counts city 7 each time"


def test_a_page_with_nan_is_set_aside(outbox: Outbox, service: Misbehaving, out: Path) -> None:
    """NaN is not JSON, so nothing else on that page can be trusted: it is named, and the other pages are stored."""
    service.records[150] = record(151, latitude="NaN")
    ending = produce(service, outbox, out)
    assert (ending.code, ending.report.missing) == (75, [1])
    assert ids_in(out) == [*ALL[:100], *ALL[200:]]


@pytest.mark.parametrize("city_id", [0, 777, 10**30, "null"])
def test_a_bad_record_is_counted_once(city_id: object, outbox: Outbox, service: Misbehaving, out: Path) -> None:
    """A bad record that is there again, on another page or in another pass, is the same dead letter."""
    service.records[10] = service.records[130] = record(city_id, latitude=91)
    service.total = 260  # more than there are, so that all pages are read again
    ending = produce(service, outbox, out)
    assert service.pages.count(0) > 1
    report = ending.report
    assert (ending.code, report.extracted, report.rejected) == (75, 248, 1)
    assert "expected 260 distinct tasks, got 249" in ending.line
    service.total = 249
    assert produce(service, outbox, out).report.rejected == 1
    assert outbox.stats().dead == 1


def test_two_identical_bad_records_are_one(
    outbox: Outbox, service: Misbehaving, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A bad record that is listed twice, and that the total counts twice, keeps no run incomplete."""
    service.records[10] = service.records[130] = record(777, latitude=91)
    ending = produce(service, outbox, out)
    report = ending.report
    assert (ending.code, report.complete, report.missing) == (65, True, [])
    assert (report.expected, report.extracted, report.rejected) == (249, 248, 1)
    assert "total of 250 counts records twice: all pages, read twice, hold 249 distinct ones" in caplog.text


def test_a_bad_record_that_is_good_in_the_second_pass_is_a_task(
    outbox: Outbox, service: Misbehaving, out: Path
) -> None:
    """A record that was not valid at first becomes a task when it is; its dead letter is gone."""
    good, service.records[130] = service.records[130], record(131, latitude=91)

    def correct(_: object) -> None:
        if service.pages.count(0) > 1:
            service.records[130] = good

    service.changing = correct
    ending = produce(service, outbox, out, second_pass=True)
    assert (ending.code, ending.report.extracted, ending.report.rejected) == (0, 250, 0)
    assert outbox.stats().dead == 0
    assert ids_in(out) == ALL


@pytest.mark.parametrize("city_id", [0, 777])
def test_a_bad_record_is_known_by_its_city(city_id: int, outbox: Outbox, service: Misbehaving, out: Path) -> None:
    """A bad record that is there again with other contents is the same one as long as its city is."""
    service.records[10] = record(city_id, latitude=91)
    service.records[130] = record(city_id, latitude=92, name="another")
    service.total = 249
    ending = produce(service, outbox, out)
    assert (ending.code, ending.report.extracted, ending.report.rejected) == (65, 248, 1)


def test_the_command_ends_with_65(service: Misbehaving, tmp_path: Path, out: Path) -> None:
    """The command says how many became dead letters and how to list them; they are kept as they were received."""
    store = ("--outbox", f"sqlite:///{tmp_path}/tasks.db")
    service.records[120] = bad = record(121, latitude=91)
    outcome = run("owm-producer", "--api-url", service.url, *store, "--sink", f"jsonl:{out}", "--json")
    assert outcome.code == 65
    assert outcome.line == "owm-producer: complete, but 1 task became a dead letter: see owm-outbox dead list"
    assert (outcome.report["complete"], outcome.report["extracted"], outcome.report["rejected"]) == (True, 249, 1)
    letter = json.loads(run("owm-outbox", "dead", "list", *store, "--json").out)
    assert (letter["payload"], letter["task_id"]) == (bad.decode(), None)
    assert "latitude_deg" in letter["reason"]


@pytest.mark.parametrize("text", [r"\ud800", r"Z\udc00rich", r"\uD83D half a smile"])
def test_half_a_surrogate_pair_costs_nothing(text: str, outbox: Outbox, service: Misbehaving, out: Path) -> None:
    """A name that was cut off in the middle of a character harms neither its city nor the others of the page."""
    service.records[3] = service.records[3].replace(b"Ort", text.encode())
    service.records[4] = record(5, latitude=91).replace(b"Ort", text.encode())
    ending = produce(service, outbox, out)
    assert (ending.code, ending.report.rejected) == (65, 1)
    assert ids_in(out) == [city for city in ALL if city != 5]
