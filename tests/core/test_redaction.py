import msgspec
import pytest

from crucible_core.envelope import Data, Event, Metadata, Redaction, Source, decode, encode
from crucible_core.errors import InvalidError
from crucible_core.redaction import StoredEvent, checked_empty, left_of, mark, redacted_event, tombstone, type_of
from crucible_core.subjects import REDACTS, RUN, Names
from crucible_core.types.catalogue import CATALOGUE


def event(id: str, type: str = "Memory", name: str = "Created", payload: object = None) -> Event:
    source = Source("user", "alice")
    about = Metadata(
        id=id,
        timestamp="2026-11-21T10:00:00.000000Z",
        source=source,
        actor="user:alice",
        correlation_id="c",
        entity="m",
    )
    return Event(type, Data(name, payload or {}), about, 7)


def test_a_tombstone_holds_all_that_is_left() -> None:
    redacted = event("evt_a", payload={"id": "m", "content": "secret"})
    payload = msgspec.to_builtins(tombstone(redacted, "why"))
    CATALOGUE.validate("Memory.Redacted", msgspec.json.encode(payload))
    stored = encode(event("evt_t", "Memory", "Redacted", payload))
    assert b"secret" not in stored
    left = left_of(stored)
    assert left.redacted == Redaction("evt_t", "2026-11-21T10:00:00.000000Z", "user:alice", "why")
    assert left == msgspec.structs.replace(redacted, data=Data("Created", {}), redacted=left.redacted)
    assert decode(encode(left), 7) == left


def test_an_event_that_is_not_redacted_does_not_speak_of_it() -> None:
    assert b"redacted" not in encode(event("evt_a"))
    assert not event("evt_a").redacted


@pytest.mark.parametrize(
    ("category", "expected"),
    [("Memory", "Memory.Redacted"), ("Graph", "Graph.Redacted"), ("File", "System.Redacted"), ("X", "System.Redacted")],
)
def test_versions_stay_with_their_category(category: str, expected: str) -> None:
    assert type_of(category) == expected
    assert Names().events_of(*expected.split(".")) in Names().tombstones


@pytest.mark.parametrize(
    "place", [StoredEvent(1, 0, ""), StoredEvent(2**63 - 1, 1763719200123, "evt_a"), StoredEvent(3, 4, "key:ab 12")]
)
def test_the_mark_can_be_read(place: StoredEvent) -> None:
    assert redacted_event(mark(place)) == place


@pytest.mark.parametrize("headers", [{}, {REDACTS: ""}, {REDACTS: "x"}, {REDACTS: "1 x y"}, {REDACTS: "-1 2 y"}])
def test_what_is_no_mark(headers: dict[str, str]) -> None:
    assert redacted_event(headers) is None


def test_a_redacted_event_has_no_payload() -> None:
    checked_empty(b" {} ")
    with pytest.raises(InvalidError):
        checked_empty(b'{"id": "m"}')


def test_whose_work_a_message_is() -> None:
    for names in (Names(), Names("t1")):
        for subject in (
            names.work(RUN, "hok_1"),
            names.schedule(RUN, "hok_1", "run_1"),
            names.held(RUN, "hok_1"),
            names.attempt(RUN, "hok_1", "run_1"),
        ):
            assert names.handler_of(subject) == "hok_1"
