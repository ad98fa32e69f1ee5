"""Many filters at once: types and aliases, and the index against asking every filter in turn."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.envelope import Data, Event, Metadata, Source
from crucible_core.errors import InvalidError
from crucible_core.filters.matcher import CompiledFilters, Matcher, compile_filters
from crucible_core.protocol.parts import TypeFilter


def an_event(dotted: str, payload: dict[str, Any] | None = None, entity: str | None = None) -> Event:
    category, event = dotted.split(".", 1)
    source = Source("user", "a")
    metadata = Metadata(id="e", timestamp="t", source=source, actor="user:a", correlation_id="c", entity=entity)
    return Event(category, Data(event, payload or {}), metadata)


def listening(*filters: tuple[str, dict[str, Any]]) -> CompiledFilters:
    return compile_filters([TypeFilter(name, spec) for name, spec in filters])


# ---- one handler's filters -------------------------------------------------------------------------------------------


def test_any_of_the_filters_is_enough() -> None:
    compiled = listening(("memory.created", {"content": {"contains": "x"}}), ("Memory.Deleted", {}))
    assert compiled.types == {"Memory.Created", "Memory.Deleted"}
    assert compiled.matches(an_event("Memory.Created", {"content": "axe"}))
    assert not compiled.matches(an_event("Memory.Created", {"content": "a"}))
    assert compiled.matches(an_event("Memory.Deleted"))
    assert not compiled.matches(an_event("Memory.Updated"))


def test_wildcards_cover_a_category_or_everything() -> None:
    assert listening(("File.*", {})).matches(an_event("File.Renamed"))
    assert not listening(("File.*", {})).matches(an_event("Memory.Created"))
    assert listening(("Custom.*", {"a": 1})).matches(an_event("Custom.never.heard.of", {"a": 1}))
    assert not listening(("Custom.*", {})).matches(an_event("Memory.Created"))
    everything = listening(("Memory.Created", {}), ("*", {"a": 1}))
    assert everything.types is None
    assert everything.matches(an_event("Custom.anything", {"a": 1}))
    assert not everything.matches(an_event("Custom.anything"))


def test_no_filters_match_nothing() -> None:
    assert listening().types == frozenset()
    assert not listening().matches(an_event("Memory.Created"))


def test_a_category_is_named_by_its_types_and_aliases_and_wildcard_but_not_by_a_star() -> None:
    for name in ("Hook.*", "Hook.Executed", "hook_executed", "hook:failed"):
        assert listening(("*", {}), (name, {})).names_category("Hook"), name
    assert listening(("Custom.*", {})).names_category("Custom")
    assert not listening(("*", {}), ("Webhook.*", {})).names_category("Hook")


def test_mistakes_of_all_filters_are_told_with_their_paths() -> None:
    filters = [
        TypeFilter("Memory.Craeted"),
        TypeFilter("Memory.Created", {"tags": {"contians": "#x"}}),
        TypeFilter("Memory.Created", {"contnt": "x", "event.payload.tags.0": "#x"}),
        TypeFilter("Custom.any", {"contnt": "x"}),
        TypeFilter("*", {"contnt": "x"}),
    ]
    with pytest.raises(InvalidError) as caught:
        compile_filters(filters, at="on")
    assert [(error.path, error.suggestion) for error in caught.value.errors] == [
        ("on.0.event_type", "Memory.Created"),
        ("on.1.filter.tags.contians", "contains"),
        ("on.2.filter.contnt", "content"),
    ]


# ---- many handlers ---------------------------------------------------------------------------------------------------


def test_targets_come_in_the_given_order_and_once() -> None:
    matcher = Matcher(
        [
            ("star", listening(("*", {}))),
            ("twice", listening(("Memory.Created", {"content": "x"}), ("Memory.*", {}), ("*", {}))),
            ("other", listening(("File.*", {}))),
            ("equal", listening(("Memory.Created", {"content": "x"}))),
            ("any", listening(("Memory.*", {"content": {"exists": True}}))),
        ]
    )
    assert matcher.match(an_event("Memory.Created", {"content": "x"})) == ["star", "twice", "equal", "any"]
    assert matcher.match(an_event("Custom.x")) == ["star", "twice"]


def test_ten_thousand_filters_on_one_type_ask_only_those_whose_value_is_there() -> None:
    asked: list[int] = []

    def watched(i: int) -> CompiledFilters:
        (one,) = listening(("Custom.tick", {"kind": "tick", "n": i, "x": {"exists": True}})).alternatives

        def predicate(event: Event) -> bool:
            asked.append(i)
            return one.predicate(event)

        return CompiledFilters((type(one)(one.types, predicate, one.anchors),))

    matcher = Matcher((i, watched(i)) for i in range(10_000))
    assert matcher.match(an_event("Custom.tick", {"kind": "tick", "n": 4711, "x": None})) == [4711]
    assert matcher.match(an_event("Custom.tick", {"kind": "tick", "n": 4712})) == []
    assert matcher.match(an_event("Custom.tick", {"kind": "tick"})) == []
    assert set(asked) <= {0, 4711, 4712}, "the first one, which came when no value told more than another"
    matcher.drop(4711)
    matcher.put(4712, watched(4711))
    assert matcher.match(an_event("Custom.tick", {"kind": "tick", "n": 4711, "x": None})) == [4712]


def test_values_are_told_apart_as_json_does() -> None:
    operands = [True, 1, "1", None, False, 0, [1], {"in": [0, "a"]}, {"in": []}, {"not_equals": 1}]
    matcher = Matcher((repr(value), listening(("Custom.x", {"v": value}))) for value in operands)
    assert matcher.match(an_event("Custom.x", {"v": 1.0})) == ["1"]
    assert matcher.match(an_event("Custom.x", {"v": True})) == ["True", "{'not_equals': 1}"]
    assert matcher.match(an_event("Custom.x", {"v": 0})) == ["0", "{'in': [0, 'a']}", "{'not_equals': 1}"]
    assert matcher.match(an_event("Custom.x", {"v": None})) == ["None", "{'not_equals': 1}"]
    assert matcher.match(an_event("Custom.x", {"v": [1.0]})) == ["[1]", "{'not_equals': 1}"]
    assert matcher.match(an_event("Custom.x")) == ["{'not_equals': 1}"]


values = st.sampled_from([None, True, False, 0, 1, 1.0, "a", "b", ["a"]])
conditions = st.one_of(
    values,
    values.map(lambda value: {"equals": value}),
    st.lists(values, max_size=3).map(lambda listed: {"$in": listed, "exists": True}),
    values.map(lambda value: {"not_equals": value}),
)
paths = st.sampled_from(["a", "event.payload.a", "b", "c.a", "event.metadata.entity"])
flat = st.dictionaries(paths, conditions, max_size=2)
specs = st.one_of(
    flat,
    st.lists(flat, min_size=1, max_size=2).map(lambda parts: {"$and": parts}),
    st.lists(flat, min_size=1, max_size=2).map(lambda parts: {"$or": parts, "b": "a"}),
    flat.map(lambda part: {"$not": part}),
)
names = st.sampled_from(["Custom.x", "custom:y", "Custom.*", "*"])
handlers = st.lists(st.lists(st.tuples(names, specs), max_size=3), max_size=8)
payloads = st.dictionaries(st.sampled_from("abc"), values | st.dictionaries(st.just("a"), values), max_size=3)
events = st.builds(
    an_event,
    st.sampled_from(["Custom.x", "Custom.y", "Custom.z", "Memory.Created"]),
    payloads,
    st.sampled_from([None, "a"]),
)


@given(handlers, handlers, st.sets(st.integers(0, 7)), events)
def test_the_matcher_finds_what_asking_every_filter_finds(
    wanted: list[Any], changed: list[Any], dropped: set[int], event: Event
) -> None:
    compiled = dict(enumerate(listening(*filters) for filters in wanted))
    matcher = Matcher(compiled.items())
    assert matcher.match(event) == [i for i, filters in compiled.items() if filters.matches(event)]
    for i, filters in enumerate(changed):
        compiled.pop(i, None)
        compiled[i] = listening(*filters)
        matcher.put(i, compiled[i])
    for i in dropped:
        compiled.pop(i, None)
        matcher.drop(i)
    assert matcher.match(event) == [i for i, filters in compiled.items() if filters.matches(event)]
    assert matcher.may_want(event.type, event.data.event) or not matcher.match(event)
    for i in compiled:
        matcher.drop(i)
    assert not matcher.may_want(event.type, event.data.event), "a type that no filter has takes nothing"


def test_mistakes_of_many_filters_are_told_as_far_as_somebody_reads_them() -> None:
    with pytest.raises(InvalidError) as caught:
        compile_filters([TypeFilter(event_type="Memory.Creatd")] * 900)
    assert len(caught.value.errors) == 20
