"""A task of any common kind becomes one JSON object with its id; what cannot is refused with a reason."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from owm_outbox import TaskError, encode
from owm_outbox_backends.memory import MemoryOutbox

ID = UUID("0b1e7c0e-6d6b-4a52-8f0e-5d1c6a7b8c9d")


class Mood(enum.Enum):
    """As tasks have them."""

    CALM = "calm"


@dataclass(frozen=True)
class DataStop:
    """Nested in a dataclass."""

    place: str
    at: datetime


@dataclass(frozen=True)
class DataTask:
    """A task as a dataclass."""

    task_id: UUID
    day: date
    mood: Mood
    price: Decimal
    stops: list[DataStop]
    note: str | None = None


@attrs.frozen
class AttrsStop:
    """Nested in an attrs class."""

    place: str
    at: datetime


@attrs.frozen
class AttrsTask:
    """A task as an attrs class."""

    task_id: UUID
    day: date
    mood: Mood
    price: Decimal
    stops: list[AttrsStop]
    note: str | None = None


class StructStop(msgspec.Struct):
    """Nested in a Struct."""

    place: str
    at: datetime


class StructTask(msgspec.Struct):
    """A task as a msgspec Struct."""

    task_id: UUID
    day: date
    mood: Mood
    price: Decimal
    stops: list[StructStop]
    note: str | None = None


class ModelStop(pydantic.BaseModel):
    """Nested in a model."""

    place: str
    at: datetime


class ModelTask(pydantic.BaseModel):
    """A task as a pydantic model."""

    task_id: UUID
    day: date
    mood: Mood
    price: Decimal
    stops: list[ModelStop]
    note: str | None = None


@pytest.mark.parametrize(
    ("task", "stop"),
    [(DataTask, DataStop), (AttrsTask, AttrsStop), (StructTask, StructStop), (ModelTask, ModelStop)],
    ids=["dataclass", "attrs", "msgspec", "pydantic"],
)
def test_every_kind_of_task_gives_the_same_json(task: Any, stop: Any) -> None:
    """Nested fields, dates, enums, decimals and any script come out the same, whatever kind the class is."""
    at = datetime(2026, 2, 28, 23, 59, 30, tzinfo=UTC)
    task_id, payload = encode(
        task(
            task_id=ID,
            day=date(2026, 3, 1),
            mood=Mood.CALM,
            price=Decimal("12.50"),
            stops=[stop(place="Zürich, 東京, القاهرة 🌦", at=at)],
        )
    )
    assert task_id == "0b1e7c0e-6d6b-4a52-8f0e-5d1c6a7b8c9d"
    assert json.loads(payload) == {
        "task_id": "0b1e7c0e-6d6b-4a52-8f0e-5d1c6a7b8c9d",
        "day": "2026-03-01",
        "mood": "calm",
        "price": "12.50",
        "stops": [{"place": "Zürich, 東京, القاهرة 🌦", "at": "2026-02-28T23:59:30Z"}],
        "note": None,
    }
    assert b"\n" not in payload
    assert "東京".encode() in payload


def test_fields_keep_their_order() -> None:
    """The JSON has the fields in the order in which the class has them."""
    _, payload = encode(DataStopWithId("x", 1, 2.5))
    assert payload == b'{"task_id":"x","second":1,"a":2.5}'


@dataclass
class DataStopWithId:
    """Fields that are not in alphabetical order."""

    task_id: str
    second: int
    a: float


@dataclass
class Anything:
    """A task that can hold anything."""

    task_id: Any
    value: Any = None
    more: list[Any] = field(default_factory=list)


class AnyModel(pydantic.BaseModel):
    """A model that can hold anything."""

    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)

    task_id: Any
    value: Any = None


def test_a_task_may_hold_other_kinds() -> None:
    """A pydantic model within a dataclass, and so on, is encoded like one of its own."""
    task = Anything("x", StructStop("here", datetime(2026, 1, 1, tzinfo=UTC)), [AnyModel(task_id=1), ID])
    assert json.loads(encode(task)[1]) == {
        "task_id": "x",
        "value": {"place": "here", "at": "2026-01-01T00:00:00Z"},
        "more": [{"task_id": 1, "value": None}, str(ID)],
    }


@pytest.mark.parametrize(("task_id", "text"), [(ID, str(ID)), ("any text", "any text"), (17, "17")])
def test_an_id_becomes_text(task_id: Any, text: str) -> None:
    """An id need not be a UUID; what is stored beside the payload is its text."""
    assert encode(Anything(task_id))[0] == text


@pytest.mark.parametrize("task", [DataStop("x", datetime.now(UTC)), {"task_id": ID}, "text", None, Anything(None)])
def test_a_task_without_an_id_is_refused(task: Any) -> None:
    """What has no task_id is refused, and the message names its class and how to make an id."""
    with pytest.raises(TaskError, match=rf"{type(task).__name__} has no task_id.*run\.task_id\(key\)"):
        encode(task)


class Unknown:
    """Nothing that JSON has."""


@pytest.mark.parametrize("kind", [Anything, AnyModel])
@pytest.mark.parametrize(
    ("value", "word"),
    [(Unknown(), "Unknown"), ("\ud800", "surrogates"), ([[Unknown()]], "Unknown")],
    ids=["object", "surrogate", "nested"],
)
def test_what_json_cannot_carry_is_refused_by_name(kind: Any, value: Any, word: str) -> None:
    """A task that holds what has no JSON form is refused with its class, its id, and what it was."""
    with pytest.raises(TaskError, match=rf"{kind.__name__} {ID}.*{word}"):
        encode(kind(task_id=ID, value=value))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")]], ids=["nan", "inf", "nested"])
def test_a_number_that_json_does_not_know_is_refused(value: Any) -> None:
    """NaN and the infinities have no JSON form; they do not silently become null."""
    with pytest.raises(TaskError, match=f"Anything {ID}"):
        encode(Anything(ID, value))


def test_a_task_that_holds_itself_is_refused() -> None:
    """A circle in a task is the task's mistake and says so."""
    task = Anything(ID)
    task.value = task
    with pytest.raises(TaskError, match=f"Anything {ID}"):
        encode(task)


class ArrayTask(msgspec.Struct, array_like=True):
    """A Struct that encodes as an array."""

    task_id: UUID


def test_a_task_that_is_no_object_is_refused() -> None:
    """A task must be one JSON object, or its fields would have no names."""
    with pytest.raises(TaskError, match=f"ArrayTask {ID}.*JSON object"):
        encode(ArrayTask(ID))


@pytest.mark.parametrize("key", [ID, 1.5, None, (1, 2), b"x", date(2031, 5, 4)], ids=lambda key: type(key).__name__)
def test_a_key_that_cannot_be_stored_is_named(key: Any) -> None:
    """A key is an int or a str; anything else is the job's mistake, said with its kind and what to return instead."""
    with pytest.raises(TaskError, match=rf"key of Anything {ID} is a {type(key).__name__}.*such as str\(key\)"):
        MemoryOutbox().append([Anything(ID)], key=lambda _: key)
