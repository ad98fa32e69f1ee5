"""What `events` accepts of memories, `memory` can read: every field of every type, and what people put into them."""

import sqlite3
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from crucible_core.envelope import Data, Event, Metadata, Source, encode
from crucible_core.errors import CrucibleError
from crucible_core.protocol.events import NewEvent
from crucible_core.types.catalogue import CATALOGUE
from crucible_core.types.payloads import CATEGORIES
from crucible_events.append.stamp import Defaults, stamp
from crucible_events.append.validation import Payloads
from crucible_memory import store
from crucible_memory.projection import fold, read_recorded
from crucible_memory.state import Memory

DEFAULTS = Defaults("evt_1", "2026-11-21T10:00:00.000000Z", "cor_1")
PAYLOADS = Payloads(lambda: CATALOGUE)
TYPES = [name for name in CATEGORIES["Memory"] if name != "Redacted"]

texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["m", "/", ".", "..", "a/b", "\x00", "a\nb", "#", " ", "#x", "./", "é", "e\u0301", "😀", "a" * 200]
    ),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def of_type(node: inspect.Type) -> st.SearchStrategy[Any]:
    match node:
        case inspect.Metadata():
            return of_type(node.type)
        case inspect.UnionType():
            return st.one_of([of_type(member) for member in node.types])
        case inspect.StructType():
            required = {field.encode_name: of_type(field.type) for field in node.fields if field.required}
            optional = {field.encode_name: of_type(field.type) for field in node.fields if not field.required}
            return st.fixed_dictionaries(required, optional=optional)
        case inspect.CollectionType():
            return st.lists(of_type(node.item_type), max_size=3)
        case inspect.DictType():
            return st.dictionaries(texts | st.just("aliases"), anything, max_size=3)
        case inspect.FloatType():
            return st.floats()
        case inspect.NoneType():
            return st.none()
        case inspect.AnyType():
            return anything
    return texts


sent = st.sampled_from(TYPES).flatmap(
    lambda name: st.tuples(st.just(name), of_type(inspect.type_info(CATEGORIES["Memory"][name])), st.none() | texts)
)


def committed(name: str, payload: Any, entity: str | None = None) -> Event | None:
    """The event, where it is accepted."""
    try:
        new = NewEvent(type=f"Memory.{name}", payload=msgspec.Raw(msgspec.json.encode(payload)), entity=entity)
        return stamp(new, DEFAULTS, PAYLOADS).event
    except (CrucibleError, ValueError):
        return None


def put(memory: Memory) -> None:
    with sqlite3.connect(":memory:") as connection:
        connection.executescript(store.SCHEMA)
        store.put(connection, [], [memory])
        store.put(connection, [memory], [memory])
        [(state, content)] = connection.execute("SELECT state, content FROM memories").fetchall()
        found = store._memory(state, content)
        assert found == memory
        msgspec.json.decode(msgspec.json.encode(store._view(found, {})))


@settings(max_examples=500)
@given(st.lists(sent, min_size=1, max_size=3))
def test_what_is_accepted_can_be_read(events: list[tuple[str, Any, str | None]]) -> None:
    memory: Memory | None = None
    for sequence, (name, payload, entity) in enumerate(events, 1):
        event = committed(name, payload, entity)
        if event is None:
            continue
        recorded = read_recorded(encode(event), sequence)
        assert recorded.memory_id == event.metadata.entity
        memory = fold(memory, recorded)
        if memory is not None:
            put(memory)


def folded(*events: tuple[str, dict[str, Any]]) -> Memory:
    memory: Memory | None = None
    for sequence, (name, payload) in enumerate(events, 1):
        event = committed(name, payload)
        assert event is not None, payload
        memory = fold(memory, read_recorded(encode(event), sequence))
    assert memory is not None
    return memory


@pytest.mark.parametrize("path", ["/", ".", "..", "./", "//", "a/..", "é/", "x" * 4096])
def test_a_path_of_any_form_stops_nothing(path: str) -> None:
    put(folded(("Created", {"id": "m", "content": "x", "path": path})))


@pytest.mark.parametrize("id", ["m", " m ", "a\\b", "ключ", "😀", "a?b#c%20", "\u2028", "x" * 200, "..."[:1] + "a"])
def test_ids_of_any_form_are_read(id: str) -> None:
    assert folded(("Created", {"id": id, "content": "x"})).id == id


def test_content_may_be_empty_or_the_title() -> None:
    assert folded(("Created", {"id": "m", "content": ""})).content == ""
    entry = folded(("Created", {"id": "m", "kb": "k", "type": "note", "title": "Only a title"}))
    assert (entry.content, entry.title) == ("Only a title", "Only a title")


def test_links_come_in_every_form() -> None:
    memory = folded(
        ("Created", {"id": "m", "content": "x", "links": ["a", {"to": "b", "strength": 0.5}, {"target": "c"}]}),
        ("Linked", {"from": "m", "to": "d", "link_type": "cites", "strength": 1}),
        ("Linked", {"source": "m", "target": "e", "type": "cites"}),
        ("Unlinked", {"id": "m", "target": "a"}),
    )
    assert [(link.target, link.type, link.weight) for link in memory.links] == [
        ("b", "related", 0.5),
        ("c", "related", None),
        ("d", "cites", 1.0),
        ("e", "cites", None),
    ]


def test_changes_that_hold_new_values_are_made() -> None:
    created = ("Created", {"id": "m", "content": "old", "tags": ["#a"]})
    assert folded(created, ("Updated", {"id": "m", "changes": {"content": "new"}})).content == "new"
    for described in ({"content": {"from": "old", "to": "new"}}, ["content"], "the first line"):
        assert folded(created, ("Updated", {"id": "m", "changes": described})).content == "old"
    both = folded(created, ("Updated", {"id": "m", "content": "told", "changes": {"content": "new", "tags": ["#b"]}}))
    assert (both.content, both.tags) == ("told", ["#b"])


def test_a_consolidation_is_about_its_summary() -> None:
    memory = folded(
        ("Created", {"id": "s", "content": "sum"}),
        ("Consolidated", {"original_ids": ["a", "b"], "summary_id": "s", "tags": ["#sum"]}),
    )
    assert (memory.id, memory.content, memory.tags) == ("s", "sum", ["#sum"])


def test_links_that_were_stored_before_are_read() -> None:
    def stored(name: str, payload: dict[str, Any]) -> bytes:
        about = Metadata(
            id="evt_0", timestamp="t", source=Source("user", "a"), actor="user:a", correlation_id="c", entity="m"
        )
        return encode(Event("Memory", Data(name, payload), about))

    memory = fold(None, read_recorded(stored("Created", {"id": "m", "content": "", "links": [{"target": "a"}]}), 1))
    for payload in ({"id": "m", "target": "b", "weight": 0.5}, {"source": "m", "target": "c", "type": "cites"}):
        memory = fold(memory, read_recorded(stored("Linked", payload), 2))
    memory = fold(memory, read_recorded(stored("Consolidated", {"id": "m", "merged": ["x"], "title": "T"}), 3))
    assert memory is not None
    assert [(link.target, link.type, link.weight) for link in memory.links] == [
        ("a", "related", None),
        ("b", "related", 0.5),
        ("c", "cites", None),
    ]
    assert memory.title == "T"
