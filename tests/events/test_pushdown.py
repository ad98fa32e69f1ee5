"""Filters in SQL: what SQLite lets through is at least what the filter matches."""

import sqlite3
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_core.access import Grant, Scope
from crucible_core.envelope import Data, Event, Metadata, Source, encode
from crucible_core.errors import InvalidError
from crucible_core.filters.filter import compile_filter
from crucible_events.query.query import Condition, filter_conditions, scope_conditions
from tests.core import test_access

names = st.sampled_from(["a", "b", "tags", "x y", "ä", "to", "target", "links"])
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**53 + 1, -(2**70), 1.5, 1e300, 0.1]),
    st.sampled_from(["", "a", "ab", "#x", "A", "ä", 'q"', "\\", "\x00", "1"]),
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))
paths = st.sampled_from(
    [
        "a",
        "b",
        "tags",
        "a.b",
        "a.tags",
        "to",
        "target",
        "links.to",
        "event.payload.b",
        "event.metadata.actor",
        "a.0",
        "x y",
    ]
)
operators = st.one_of(
    values,
    st.fixed_dictionaries({"in": st.lists(scalars, max_size=3)}),
    st.fixed_dictionaries({"contains": scalars}),
    st.fixed_dictionaries({"starts_with": st.sampled_from(["", "a", "#"])}),
    st.fixed_dictionaries({"gte": st.sampled_from([0, 1.5, "a"])}),
    st.fixed_dictionaries({"lt": st.sampled_from([2, "b"]), "exists": st.just(True)}),
    st.fixed_dictionaries({"not_equals": scalars}),
).filter(lambda wanted: not isinstance(wanted, dict) or bool(wanted))
filters = st.dictionaries(paths, operators, min_size=1, max_size=2)


def event(payload: bytes, category: str = "Custom", name: str = "x") -> Event:
    metadata = Metadata(
        id="evt_1", timestamp="2026-01-01T00:00:00.000000Z", source=Source("user", "a"), actor="a", correlation_id="c"
    )
    return Event(category, Data(name, msgspec.Raw(payload)), metadata)


def let_through(spec: dict[str, Any], stored: bytes) -> bool:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE events (raw BLOB, actor TEXT)")
        connection.execute("INSERT INTO events VALUES (?, 'a')", (stored,))
        found = filter_conditions(spec)
        sql = " AND ".join(condition.sql for condition in found) or "1"
        bound = [value for condition in found for value in condition.values]
        return bool(connection.execute(f"SELECT 1 FROM events WHERE {sql}", bound).fetchall())


def compiled(spec: dict[str, Any]) -> Any:
    try:
        return compile_filter(spec)
    except InvalidError:
        return None


@settings(max_examples=600)
@given(
    st.dictionaries(names, values, max_size=4),
    filters,
    st.sampled_from([("Custom", "x"), ("Memory", "Linked"), ("Memory", "Created")]),
)
def test_no_match_is_lost(payload: dict[str, Any], spec: dict[str, Any], kind: tuple[str, str]) -> None:
    predicate = compiled(spec)
    stored = encode(event(msgspec.json.encode(payload), *kind))
    if predicate is not None and predicate(msgspec.json.decode(stored, type=Event)):
        assert let_through(spec, stored)


def test_last_of_two_members_counts() -> None:
    stored = encode(event(b'{"a": 1, "a": {"b": 1, "b": 2}}'))
    assert let_through({"a.b": 2}, stored)
    assert not let_through({"a.b": 3}, stored)


def test_most_are_kept_out() -> None:
    stored = encode(event(b'{"n": 5, "tags": ["#a", "#b"], "deep": {"text": "hello"}}'))
    for spec in (
        {"n": 6},
        {"n": {"gt": 5}},
        {"tags": {"contains": "#c"}},
        {"deep.text": {"starts_with": "help"}},
        {"$and": [{"n": 5}, {"missing": {"in": [1, 2]}}]},
        {"event.metadata.actor": "b"},
    ):
        assert not let_through(spec, stored), spec
    for spec in (
        {"n": 5},
        {"tags": {"contains": "#a"}},
        {"deep.text": {"contains": "ell"}},
        {"deep": {"contains": "text"}},
    ):
        assert let_through(spec, stored), spec


def test_either_name_of_a_field_finds_either() -> None:
    for payload in (b'{"from": "m", "to": "n"}', b'{"id": "m", "target": "n"}'):
        stored = encode(event(payload, "Memory", "Linked"))
        for name in ("to", "target"):
            assert compile_filter({name: "n"})(msgspec.json.decode(stored, type=Event))
            assert let_through({name: "n"}, stored)
            assert not let_through({name: "o"}, stored)


@settings(max_examples=400)
@given(st.lists(test_access.grants, max_size=3), test_access.events)
def test_what_a_scope_sees_is_let_through(grants: list[Grant], one: Event) -> None:
    scope, about = Scope(grants), one.metadata
    row = (one.type, one.dotted, about.world_id, about.room_id, about.entity, about.actor, encode(one))
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE events (category, type, world_id, room_id, entity, actor, raw)")
        connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        [where] = scope_conditions(scope) or [Condition("1", ())]
        found = bool(connection.execute(f"SELECT 1 FROM events WHERE {where.sql}", where.values).fetchall())
    if scope.sees(one) or not any(grant.where for grant in grants):
        assert found == scope.sees(one)
