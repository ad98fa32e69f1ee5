from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.envelope import Redaction, Source, decode
from crucible_core.errors import InvalidError, MalformedError, TooLargeError
from crucible_core.ids import make_id
from crucible_core.limits import EVENT_BYTES, MEMORY_PATHS
from crucible_core.protocol.events import NewEvent
from crucible_core.times import parse_time
from crucible_core.types.catalogue import CATALOGUE
from crucible_events.append.stamp import Defaults, Stamped, stamp
from crucible_events.append.validation import Payloads

DEFAULTS = Defaults("evt_1", "2026-11-21T10:00:00.000000Z", "cor_1", "00-" + "1" * 32 + "-" + "2" * 16 + "-01")
PAYLOADS = Payloads(lambda: CATALOGUE)


def stamped(type: str = "Custom.note", payload: object = None, **fields: object) -> Stamped:
    return stamp(
        NewEvent(type=type, payload=msgspec.Raw(msgspec.json.encode(payload or {})), **fields), DEFAULTS, PAYLOADS
    )


def refused(**fields: object) -> list[str]:
    with pytest.raises(InvalidError) as error:
        stamped(**fields)
    return [field.path for field in error.value.errors]


def test_everything_that_is_missing_is_filled_in() -> None:
    about = stamped().event.metadata
    assert (about.id, about.timestamp, about.correlation_id) == ("evt_1", DEFAULTS.timestamp, "cor_1")
    assert about.actor == "system:crucible"
    assert about.source == Source("system", "crucible")
    assert (about.world_id, about.room_id, about.hop, about.version) == ("default", "main", 0, "1.0.0")
    assert about.traceparent == DEFAULTS.traceparent


def test_the_stored_form_reads_back_as_the_event() -> None:
    found = stamped("memory:created", {"id": "mem_1", "content": "x"}, actor="user:alice")
    event = decode(found.raw)
    assert event.dotted == "Memory.Created"
    assert event.data.payload == {"id": "mem_1", "content": "x"}
    assert event.metadata == found.event.metadata


@pytest.mark.parametrize(
    ("source", "actor", "expected"),
    [
        (None, "user:alice", (Source("user", "alice"), "user:alice")),
        (None, "cron", (Source("external", "cron"), "cron")),
        (Source("agent", "a1"), None, (Source("agent", "a1"), "agent:a1")),
        (Source("agent", "a1"), "user:bob", (Source("agent", "a1"), "user:bob")),
    ],
)
def test_source_and_actor_follow_from_each_other(source: object, actor: object, expected: object) -> None:
    about = stamped(source=source, actor=actor).event.metadata
    assert (about.source, about.actor) == expected


@pytest.mark.parametrize(
    ("type", "payload", "entity"),
    [
        ("Memory.Created", {"id": "mem_1", "content": "x"}, "mem_1"),
        ("Memory.Linked", {"source": "mem_2", "target": "mem_3"}, "mem_2"),
        ("Memory.Consolidated", {"original_ids": ["mem_2"], "summary_id": "mem_4"}, "mem_4"),
        ("File.Renamed", {"path": "b.md", "old_path": "a.md"}, "b.md"),
        ("Flow.Started", {"run_id": "run_1", "flow": "f"}, "run_1"),
        ("File.Modified", {"path": "a/b c.md"}, "a/b c.md"),
        ("Hook.Executed", {"hook": "h", "run_id": "run_1"}, "h"),
        ("Custom.note", {"id": 7}, None),
        ("Custom.note", {"id": "n1"}, "n1"),
        ("System.Started", {"id": "x"}, None),
    ],
)
def test_the_entity_is_what_the_payload_is_about(type: str, payload: object, entity: str | None) -> None:
    assert stamped(type, payload).event.metadata.entity == entity
    if not type.startswith("Memory."):
        assert stamped(type, payload, entity="mine").event.metadata.entity == "mine"


@pytest.mark.parametrize(
    ("type", "payload"),
    [
        ("Memory.Created", {"id": "mem_1", "content": "x"}),
        ("Memory.Updated", {"id": "mem_1", "content": "x"}),
        ("Memory.Deleted", {"id": "mem_1"}),
        ("Memory.Tagged", {"id": "mem_1", "tag": "#x"}),
        ("Memory.Linked", {"from": "mem_1", "to": "mem_2"}),
        ("Memory.Linked", {"source": "mem_1", "target": "mem_2"}),
        ("Memory.Consolidated", {"original_ids": ["mem_2"], "summary_id": "mem_1"}),
        ("Graph.NodeAdded", {"id": "mem_1"}),
    ],
)
def test_a_versioned_entity_is_what_the_payload_names(type: str, payload: dict[str, str]) -> None:
    """Or its versions would not be checked, and nobody could read it."""
    assert stamped(type, payload, entity="mem_1").event.metadata.entity == "mem_1"
    assert refused(type=type, payload=payload, entity="mem_3") == ["entity"]
    field = next(name for name, value in payload.items() if value == "mem_1")
    for odd in ("a\nb", "\x7f", ".", ".."):
        [path] = refused(type=type, payload={**payload, field: odd})
        assert path in (f"payload.{field}", "payload.from")
    for name in ("a/b", *MEMORY_PATHS):
        if type.startswith("Memory."):
            assert refused(type=type, payload={**payload, field: name})
        else:
            assert stamped(type, {**payload, field: name}).event.metadata.entity == name


def test_a_payload_is_stored_under_canonical_names() -> None:
    found = stamped("Memory.Linked", {"id": "mem_1", "target": "mem_2", "weight": 0.5})
    assert b'"payload":{"from":"mem_1","to":"mem_2","strength":0.5}' in found.raw


def test_every_mistake_of_the_envelope_is_named() -> None:
    assert refused(id="nope", actor="", world_id="a\nb", version="one", hop=-1) == [
        "id",
        "actor",
        "world_id",
        "version",
        "hop",
    ]
    assert refused(timestamp="2026-11-21") == ["timestamp"]
    assert refused(type="Memory.Create", payload={"id": "m"}) == ["type"]
    assert refused(type="Memory.Created", payload={"id": "m", "content": "x", "tag": 3}) == ["payload.tag"]


def test_timestamps_are_normalised() -> None:
    about = stamped(timestamp="2026-11-21T12:00:00.5+02:00").event.metadata
    assert about.timestamp == "2026-11-21T10:00:00.500000Z"


AHEAD = "2026-11-22T10:00:01Z"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"timestamp": AHEAD}, "timestamp"),
        ({"timestamp": "9999-12-31T23:59:59Z"}, "timestamp"),
        ({"id": make_id("evt", parse_time(AHEAD, "") // 1000, b"x" * 10)}, "id"),
        ({"payload": {}, "redacted": Redaction("evt_t", AHEAD, "user:a")}, "redacted.at"),
        ({"type": "Memory.Created", "payload": {"id": "m", "content": "", "at": AHEAD}}, "payload.at"),
        ({"type": "entry.created", "payload": {"id": "m", "title": "T", "timestamp": AHEAD}}, "payload.at"),
        ({"type": "Memory.Updated", "payload": {"id": "m", "at": parse_time(AHEAD, "") / 1e6}}, "payload.at"),
        ({"type": "Task.Claimed", "payload": {"at": AHEAD}}, "payload.at"),
        ({"type": "Flow.Started", "payload": {"name": "f", "started_at": AHEAD}}, "payload.started_at"),
        (
            {
                "type": "Memory.Created",
                "payload": {"id": make_id("mem", parse_time(AHEAD, "") // 1000, b"x" * 10), "content": ""},
            },
            "payload.id",
        ),
    ],
)
def test_a_time_more_than_a_day_ahead_is_refused(fields: dict[str, Any], path: str) -> None:
    assert refused(**fields) == [path]


def test_a_time_of_the_next_hours_or_of_long_ago_is_taken() -> None:
    for time in ("2026-11-22T09:59:59Z", "1969-07-20T20:17:40Z"):
        stamped(timestamp=time)
        stamped("Memory.Created", {"id": "m", "content": "", "at": time})
    stamped(id="evt_" + "z" * 26)  # no UUID of version 7, so it says nothing of a time
    stamped("Custom.Plan", {"at": AHEAD})
    stamped("Approval.Requested", {"id": "apr_1", "expires_at": AHEAD})
    stamped("File.Created", {"path": "a.md", "mtime": AHEAD})  # by a clock that nobody here has set


def test_expectations_need_an_entity() -> None:
    assert refused(type="Custom.Ping", payload={}, expected_sequence=1) == ["expected_sequence"]
    assert refused(type="Graph.EdgeCreated", payload={"source": "a", "target": "b"}, expected_sequence=1) == [
        "expected_sequence"
    ]
    assert stamped("Memory.Deleted", {"id": "m"}, expected_sequence=0).expected_sequence == 0


def test_chains_end() -> None:
    assert stamped(hop=8).event.metadata.hop == 8
    assert refused(hop=9) == ["hop"]


def test_size_is_limited() -> None:
    stamped(payload={"x": "y" * (EVENT_BYTES - 1000)})
    with pytest.raises(TooLargeError):
        stamped(payload={"x": "y" * EVENT_BYTES})
    with pytest.raises(TooLargeError):
        stamped(payload={"x": "y" * (EVENT_BYTES - 20)})


def test_a_payload_is_an_object_on_one_line() -> None:
    found = stamp(
        NewEvent(type="Custom.x", payload=msgspec.Raw(b'{\n "a": 1.50,\r\n "b": "\\n" }')), DEFAULTS, PAYLOADS
    )
    assert b'{"a":1.50,"b":"\\n"}' in found.raw
    with pytest.raises(InvalidError):
        stamp(NewEvent(type="Custom.x", payload=msgspec.Raw(b"[1]")), DEFAULTS, PAYLOADS)
    with pytest.raises(MalformedError):
        stamp(NewEvent(type="Custom.x", payload=msgspec.Raw(b'{"a": "\xff"}')), DEFAULTS, PAYLOADS)


@pytest.mark.parametrize(
    ("type", "payload", "path"),
    [
        ("Custom.x", '{"secret": "bad", "secret": "good"}', "payload.secret"),
        ("Custom.x", '{"a": [{"s\\u0065cret": "bad", "secret": "good"}]}', "payload.a.0.secret"),
        ("Memory.Created", '{"id": "m", "content": "bad", "content": "good"}', "payload.content"),
        ("Memory.Created", '{"id": "m", "content": "c", "metadata": {"a": {"b": 1, "b": 2}}}', "payload.metadata.a.b"),
        ("memory.linked", '{"from": "a", "from": "b", "to": "c"}', "payload.from"),
        ("File.Renamed", '{"from": "a", "from": "b", "to": "c"}', "payload.from"),
    ],
)
def test_a_key_that_stands_twice_is_refused_whoever_sends_it(type: str, payload: str, path: str) -> None:
    with pytest.raises(MalformedError) as error:
        stamp(NewEvent(type=type, payload=msgspec.Raw(payload.encode())), DEFAULTS, PAYLOADS)
    assert [field.path for field in error.value.errors] == [path]


def test_a_broken_traceparent_is_as_good_as_none() -> None:
    assert stamped(traceparent="junk").event.metadata.traceparent == DEFAULTS.traceparent


def test_idempotency_keys_are_scoped_to_who_used_them_where() -> None:
    ids = {
        stamped(idempotency_key="k", actor=actor, world_id=world).message_id for actor in "ab" for world in ("w", "v")
    }
    assert len(ids) == 4
    one = NewEvent(type="Custom.x", idempotency_key="k")
    assert stamp(one, DEFAULTS, PAYLOADS).message_id == stamp(one, DEFAULTS, PAYLOADS).message_id


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "id": st.text(),
            "actor": st.text(),
            "world_id": st.text(),
            "entity": st.text(),
            "version": st.text(),
            "timestamp": st.text(),
            "hop": st.integers(-5, 20),
            "expected_sequence": st.integers(),
        },
    ),
    st.sampled_from(["Custom.x", "Memory.Deleted"]),
)
def test_whatever_is_sent_is_stamped_or_refused(fields: dict[str, object], type: str) -> None:
    try:
        found = stamped(type, {"id": "m"}, **fields)
    except InvalidError as error:
        paths = [field.path for field in error.errors]
    else:
        paths = ["none"]
        assert decode(found.raw).metadata == found.event.metadata
    assert paths
