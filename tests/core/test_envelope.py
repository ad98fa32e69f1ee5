"""The envelope: its JSON, with and without a sequence, and the errors that travel beside it."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core import errors
from crucible_core.envelope import Data, Event, Metadata, Source, decode, encode, with_sequence
from crucible_core.errors import BY_CODE, CrucibleError, DeniedError, FieldError, InvalidError, Problem, from_problem
from crucible_core.suggest import did_you_mean, nearest

texts = st.text()
sources = st.builds(Source, kind=st.sampled_from(["user", "agent", "system", "external"]), id=texts)
metadata = st.builds(
    Metadata,
    id=texts,
    timestamp=texts,
    source=sources,
    actor=texts,
    correlation_id=texts,
    causation_id=st.none() | texts,
    hop=st.integers(0, 8),
    entity=st.none() | texts,
    traceparent=st.none() | texts,
)
numbers = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | texts | numbers, lambda inner: st.lists(inner) | st.dictionaries(texts, inner)
)
payloads = st.dictionaries(texts, values)
events = st.builds(Event, type=texts, data=st.builds(Data, event=texts, payload=payloads), metadata=metadata)


def event(payload: Any = None) -> Event:
    source = Source("user", "alice")
    known = Metadata(id="evt_1", timestamp="t", source=source, actor="user:alice", correlation_id="cor_1")
    return Event("Memory", Data("Created", payload or {}), known)


@given(events)
def test_event_survives_its_stored_form(original: Event) -> None:
    assert decode(encode(original)) == original


@given(events, st.integers(1, 2**63))
def test_sequence_is_added_without_touching_the_bytes(original: Event, sequence: int) -> None:
    stored = encode(original)
    public = with_sequence(stored, sequence)
    assert public.startswith(stored[:-1])
    assert decode(public) == decode(stored, sequence)
    assert decode(public).sequence == sequence


def test_sequence_is_not_stored() -> None:
    stored = json.loads(encode(msgspec.structs.replace(event(), sequence=7)))
    assert list(stored) == ["type", "data", "metadata"]


def test_raw_payload_passes_through() -> None:
    raw = b'{"b" : 1,"a":[ 2 ]}'
    assert raw in encode(event(msgspec.Raw(raw)))


def test_public_metadata_is_the_contracts() -> None:
    stored = json.loads(encode(event()))
    assert stored["metadata"] == {
        "id": "evt_1",
        "timestamp": "t",
        "version": "1.0.0",
        "source": {"kind": "user", "id": "alice"},
        "actor": "user:alice",
        "correlation_id": "cor_1",
        "causation_id": None,
        "hop": 0,
        "world_id": "default",
        "room_id": "main",
        "entity": None,
        "traceparent": None,
    }
    assert event().dotted == "Memory.Created"


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"type": "Memory"}', b"\x00"])
def test_what_is_no_event_is_refused(raw: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(raw)


# ---- errors and suggestions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BY_CODE.values())
def test_error_survives_the_wire(kind: type[CrucibleError]) -> None:
    error = kind("no", errors=[FieldError("payload.id", "bad", "good")], hook="gate", reason="because")
    wire = msgspec.json.encode(error.problem())
    back = from_problem(msgspec.json.decode(wire, type=Problem))
    assert type(back) is kind
    assert (back.detail, back.errors, back.extra) == (error.detail, error.errors, error.extra)


def test_every_error_has_its_own_code() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, CrucibleError)]
    assert set(BY_CODE.values()) == set(classes)
    assert BY_CODE["denied"] is DeniedError
    assert not issubclass(DeniedError, InvalidError)


def test_unknown_code_is_the_root() -> None:
    assert type(from_problem(Problem("from-the-future", "?"))) is CrucibleError


def test_nearest_ignores_case_and_gives_up_on_the_far() -> None:
    known = ["Created", "Updated"]
    assert nearest("CREATD", known) == "Created"
    assert nearest("zzz", known) is None
    assert did_you_mean("updatd", known) == ' (did you mean "Updated"?)'
    assert did_you_mean("zzz", known) == ""
