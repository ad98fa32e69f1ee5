"""The filter language: each operator, paths, the mistakes that are refused, and all of it against a re-statement."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.envelope import Data, Event, Metadata, Source
from crucible_core.errors import FieldError, InvalidError
from crucible_core.filters.filter import anchors, compile_document_filter, compile_filter

ABSENT = object()


def an_event(payload: Any, sequence: int | None = None) -> Event:
    source = Source("user", "alice")
    metadata = Metadata(id="evt_1", timestamp="t", source=source, actor="user:alice", correlation_id="cor_1", hop=2)
    return Event("Memory", Data("Created", payload), metadata, sequence)


def holds(spec: Any, payload: Any) -> bool:
    by_event = compile_filter(spec)(an_event(payload))
    assert compile_document_filter(spec)(payload) == by_event
    return by_event


def refusals(spec: Any, **options: Any) -> list[tuple[str, str | None]]:
    with pytest.raises(InvalidError) as caught:
        compile_filter(spec, **options)
    assert all(error.message for error in caught.value.errors)
    return [(error.path, error.suggestion) for error in caught.value.errors]


# ---- a plain re-statement of the contract ----------------------------------------------------------------------------


def equal(left: Any, right: Any) -> bool:
    if type(left) is list and type(right) is list:
        return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))
    if type(left) is dict and type(right) is dict:
        return set(left) == set(right) and all(equal(left[key], right[key]) for key in left)
    numbers = type(left) in (int, float) and type(right) in (int, float)
    return (numbers or type(left) is type(right)) and left == right


def comparable(left: Any, right: Any) -> bool:
    return (type(left) is str and type(right) is str) or (type(left) in (int, float) and type(right) in (int, float))


def contains(value: Any, operand: Any) -> bool:
    if type(value) is list:
        return any(equal(item, operand) for item in value)
    return type(value) in (str, dict) and type(operand) is str and operand in value


MEANING = {
    "equals": equal,
    "not_equals": lambda value, operand: not equal(value, operand),
    "in": lambda value, operand: any(equal(value, item) for item in operand),
    "not_in": lambda value, operand: not any(equal(value, item) for item in operand),
    "exists": lambda value, operand: operand == (value is not ABSENT),
    "contains": contains,
    "starts_with": lambda value, operand: type(value) is str and value[: len(operand)] == operand,
    "ends_with": lambda value, operand: type(value) is str and operand in [value[i:] for i in range(len(value) + 1)],
    "matches": lambda value, operand: type(value) is str and re.search(operand, value) is not None,
    "gt": lambda value, operand: comparable(value, operand) and value > operand,
    "gte": lambda value, operand: comparable(value, operand) and value >= operand,
    "lt": lambda value, operand: comparable(value, operand) and value < operand,
    "lte": lambda value, operand: comparable(value, operand) and value <= operand,
}
DOLLARS = {
    "$eq": "equals",
    "$ne": "not_equals",
    "$in": "in",
    "$nin": "not_in",
    "$exists": "exists",
    "$contains": "contains",
    "$regex": "matches",
    "$gt": "gt",
    "$gte": "gte",
    "$lt": "lt",
    "$lte": "lte",
}


def look(value: Any, path: str) -> Any:
    for name in path.split("."):
        if type(value) is dict:
            value = value.get(name, ABSENT)
        elif type(value) is list and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        else:
            return ABSENT
    return value


def means(spec: dict[str, Any], payload: Any) -> bool:
    for key, wanted in spec.items():
        if key == "$and":
            held = all(means(part, payload) for part in wanted)
        elif key == "$or":
            held = any(means(part, payload) for part in wanted)
        elif key == "$not":
            held = not means(wanted, payload)
        else:
            operators = wanted if type(wanted) is dict else {"equals": wanted}
            value = look(payload, key)
            held = all(MEANING[DOLLARS.get(name, name)](value, operand) for name, operand in operators.items())
        if not held:
            return False
    return True


# ---- properties ------------------------------------------------------------------------------------------------------

scalars = st.sampled_from([None, True, False, 0, 1, 1.0, 2, -1.5, "", "a", "ab", "b", "0", "é"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab0"), inner, max_size=3)
)
payloads = st.dictionaries(st.sampled_from("abc0"), values, max_size=4)
paths = st.sampled_from(["a", "b", "c", "a.b", "a.0", "b.a.0", "0", "a.b.a"])
patterns = st.sampled_from(["a", "^a", "b$", "^$", "a|b", "[^a]", "é", "a{2,}"])
texts = st.sampled_from(["", "a", "b", "ab"])
operand_of = {
    "in": st.lists(values, max_size=4),
    "not_in": st.lists(values, max_size=4),
    "exists": st.booleans(),
    "starts_with": texts,
    "ends_with": texts,
    "matches": patterns,
    **dict.fromkeys(("gt", "gte", "lt", "lte"), st.sampled_from([0, 1, 1.5, "", "a", "b"])),
}
operators = st.sampled_from([*MEANING, *DOLLARS]).flatmap(
    lambda name: st.tuples(st.just(name), operand_of.get(DOLLARS.get(name, name), values))
)
conditions = st.lists(operators, min_size=1, max_size=2).map(dict) | values.filter(
    lambda value: type(value) is not dict
)
filters = st.recursive(
    st.dictionaries(paths, conditions, max_size=3),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "$and": st.lists(inner, min_size=1, max_size=3),
            "$or": st.lists(inner, min_size=1, max_size=3),
            "$not": inner,
            "a": conditions,
        },
    ),
    max_leaves=6,
)


@given(filters, payloads)
def test_a_compiled_filter_means_what_the_contract_says(spec: Any, payload: Any) -> None:
    assert holds(spec, payload) == means(spec, payload)


@given(filters, payloads)
def test_a_filter_that_holds_has_the_value_of_each_of_its_anchors(spec: Any, payload: Any) -> None:
    event = an_event(payload)
    for anchor in anchors(spec):
        value = anchor.get(event)
        key = ("bool", value) if type(value) is bool else value
        if means(spec, payload):
            assert key in anchor.values


# ---- operators -------------------------------------------------------------------------------------------------------

TABLE = [
    ({"equals": "a"}, ["a"], ["b", "", None, ["a"], 1]),
    ({"equals": True}, [True], [1, 1.0, "true", False]),
    ({"equals": 1}, [1, 1.0], [True, "1", 2]),
    ({"equals": 0}, [0, 0.0], [False, None, ""]),
    ({"equals": None}, [None], [False, 0, ""]),
    ({"equals": [1, {"x": True}]}, [[1.0, {"x": True}]], [[True, {"x": True}], [1, {"x": 1}], [1], 1]),
    ({"equals": {"x": 1}}, [{"x": 1.0}], [{"x": True}, {"x": 1, "y": 2}, {}]),
    ({"not_equals": 1}, [True, "1", None], [1, 1.0]),
    ({"in": [1, "a", None]}, [1, 1.0, "a", None], [True, "b", [1]]),
    ({"in": [True, [1]]}, [True, [1.0]], [1, [True], [[1]]]),
    ({"in": []}, [], [1, None, []]),
    ({"not_in": [1, [2]]}, [True, [True], None], [1, [2]]),
    ({"exists": True}, [None, 0, ""], []),
    ({"exists": False}, [], [None, 0, ""]),
    ({"contains": "#a"}, [["#a", 1], "x#ab", {"#a": None}], [["#ab"], "a", {"a": "#a"}, 1, None]),
    ({"contains": 1}, [[1.0], [0, 1]], [[True], "1", {"1": 1}, 1]),
    ({"contains": None}, [[None]], [None, [0], "None"]),
    ({"starts_with": "no"}, ["no", "note"], ["ano", "n", ["no"], None]),
    ({"ends_with": ".md"}, [".md", "a.md"], ["a.mdx", [".md"], 1]),
    ({"matches": "b.d"}, ["abide", "bxd"], ["b\nd", "B.D", 1, ["bad"]]),
    ({"matches": r"^é\pL{2}$"}, ["étü"], ["ét", "etüü"]),
    ({"gt": 1}, [2, 1.5], [1, True, "2", None]),
    ({"gte": 1}, [1, 1.0], [0.5, True, "1"]),
    ({"lt": "b"}, ["a", "B", ""], ["b", 1, None]),
    ({"lte": 1}, [1, 0, -1.5], [False, "0", 2]),
    ({"gt": 0, "lt": 10, "not_equals": 5}, [1, 9.5], [0, 5, 10]),
]


@pytest.mark.parametrize(("operators", "match", "miss"), TABLE, ids=[str(row[0]) for row in TABLE])
def test_operator(operators: Any, match: list[Any], miss: list[Any]) -> None:
    assert [value for value in match if not holds({"x": operators}, {"x": value})] == []
    assert [value for value in miss if holds({"x": operators}, {"x": value})] == []


@pytest.mark.parametrize(("dollar", "name"), DOLLARS.items())
def test_both_spellings_are_one_operator(dollar: str, name: str) -> None:
    operand = {"in": ["a"], "not_in": ["a"], "exists": True}.get(name, "a")
    for value in ("a", "b", "", 1, None, ["a"]):
        assert holds({"x": {dollar: operand}}, {"x": value}) == holds({"x": {name: operand}}, {"x": value})


@pytest.mark.parametrize("name", MEANING)
def test_a_missing_field_satisfies_only_three_operators(name: str) -> None:
    operand = {"in": [None], "not_in": [None], "exists": False, "matches": "", "starts_with": "", "ends_with": ""}
    expected = name in ("exists", "not_equals", "not_in")
    assert holds({"x": {name: operand.get(name, 0)}}, {}) == expected
    assert holds({"x.y": {name: operand.get(name, 0)}}, {"x": "text"}) == expected


def test_a_plain_value_means_equals_and_null_is_not_missing() -> None:
    assert holds({"x": None}, {"x": None})
    assert not holds({"x": None}, {})
    assert holds({"x": ["a"], "y": 1}, {"x": ["a"], "y": 1.0})
    assert not holds({"x": ["a"], "y": 1}, {"x": ["a"], "y": 2})


def test_and_or_not_and_the_empty_filter() -> None:
    assert holds({}, {})
    assert holds({"$or": [{"x": 1}, {"y": 2}]}, {"y": 2})
    assert not holds({"$or": [{"x": 1}, {"y": 2}], "z": 3}, {"y": 2})
    assert holds({"$and": [{"x": 1}, {"$not": {"y": 2}}]}, {"x": 1})
    assert not holds({"$not": {}}, {})
    assert holds({"$or": [{"x": 1}, {}]}, {})
    assert holds({"$or": [{"x": 1}, {"x": 2}, {"x": 3}], "$not": {"$and": [{"y": 1}, {"y": 2}, {"y": 3}]}}, {"x": 3})


# ---- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        {"a.b": 1},
        {"event.payload.a.b": 1},
        {"event.data.payload.a.b": 1},
        {"event.payload": {"contains": "a"}},
        {"links.1.target": "m2"},
        {"event": "a field of the payload"},
        {"event.type": "Memory", "event.data.event": "Created"},
        {"event.metadata.actor": {"starts_with": "user:"}},
        {"event.metadata.source.kind": "user"},
        {"event.metadata.hop": {"gte": 2}, "event.metadata.entity": None, "event.metadata.world_id": "default"},
        {"event.sequence": {"gt": 41}},
    ],
    ids=str,
)
def test_path_reaches_its_value(spec: Any) -> None:
    payload = {"a": {"b": 1}, "links": [{"target": "m1"}, {"target": "m2"}], "event": "a field of the payload"}
    assert compile_filter(spec)(an_event(payload, 42))
    assert not compile_filter({"$not": spec})(an_event(payload, 42))


def test_an_uncommitted_event_has_no_sequence() -> None:
    assert compile_filter({"event.sequence": {"exists": False}})(an_event({}))


def test_a_payload_that_is_no_object_has_no_fields() -> None:
    assert compile_filter({"a": {"exists": False}, "a.b": {"exists": False}})(an_event("text"))


def test_list_elements_are_only_found_at_their_number() -> None:
    payload = {"x": ["a"]}
    for segment in ("1", "-1", "x", "\u0660", "9" * 30):
        assert holds({f"x.{segment}": {"exists": False}}, payload), segment


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "path", "suggestion"),
    [
        ({"tags": {"contians": "x"}}, "filter.tags.contians", "contains"),
        ({"tags": {"$reqex": "x"}}, "filter.tags.$reqex", "$regex"),
        ({"a": {"colour": "red"}}, "filter.a.colour", None),
        ({"a": {}}, "filter.a", None),
        ({"a": {"$not": {"equals": 1}}}, "filter.a.$not", None),
        ({"$eq": 1}, "filter.$eq", None),
        ({"$nto": {}}, "filter.$nto", "$not"),
        ({"$or": []}, "filter.$or", None),
        ({"$and": {}}, "filter.$and", None),
        ({"$and": [{"x": 1}, {"x": {"eq": 1}}]}, "filter.$and.1.x.eq", "equals"),
        ({"$not": [{}]}, "filter.$not", None),
        ({"x": {"in": "abc"}}, "filter.x.in", None),
        ({"x": {"exists": "yes"}}, "filter.x.exists", None),
        ({"x": {"gt": True}}, "filter.x.gt", None),
        ({"x": {"lte": None}}, "filter.x.lte", None),
        ({"x": {"starts_with": 1}}, "filter.x.starts_with", None),
        ({"x": {"matches": "("}}, "filter.x.matches", None),
        ({"x": {"$regex": "(?=a)"}}, "filter.x.$regex", None),
        ({"x": {"matches": "\ud800"}}, "filter.x.matches", None),
        ({"x": {"matches": "a" * 1001}}, "filter.x.matches", None),
        ({"x": {"matches": r"\pL{1000}"}}, "filter.x.matches", None),
        ({"x": {"in": list(range(1001))}}, "filter.x.in", None),
        ({"x": {"equals": float("nan")}}, "filter.x.equals", None),
        ({"x": {1, 2}}, "filter.x", None),
        ({"x": {"equals": {1: 2}}}, "filter.x.equals", None),
        ({"a..b": 1}, "filter.a..b", None),
        ({"": 1}, "filter.", None),
        ({1: 1}, "filter.1", None),
        ({"event.metadata.actr": 1}, "filter.event.metadata.actr", "event.metadata.actor"),
        ({"event.metadata.source": 1}, "filter.event.metadata.source", "event.metadata.source.id"),
        ({"event.data.paylod.x": 1}, "filter.event.data.paylod.x", "event.data.payload"),
        ("tags", "filter", None),
        (None, "filter", None),
    ],
    ids=lambda part: str(part)[:40].encode("ascii", "replace").decode() if isinstance(part, dict) else "",
)
def test_mistake_is_refused_with_its_path_and_a_suggestion(spec: Any, path: str, suggestion: str | None) -> None:
    assert refusals(spec) == [(path, suggestion)]


def test_every_mistake_is_told_at_once_and_the_sentence_names_the_first() -> None:
    spec = {"tags": {"contians": "x", "gt": None}, "event.typ": 1}
    found = [("f.tags.contians", "contains"), ("f.tags.gt", None), ("f.event.typ", "event.type")]
    assert refusals(spec, at="f") == found
    with pytest.raises(InvalidError, match=r'^filter\.tags\.contians: .* \(did you mean "contains"\?\)$'):
        compile_filter(spec)


def test_limits_of_depth_conditions_and_patterns() -> None:
    deep: Any = {"x": 1}
    for _ in range(15):
        deep = {"$not": deep}
    compile_filter(deep)
    assert refusals({"$not": deep})[0][0] == "filter" + ".$not" * 16
    compile_filter({"$or": [{"x": i} for i in range(200)]})
    assert refusals({"$or": [{"x": i} for i in range(201)]}) == [("filter.$or.200.x", None)]
    assert refusals({"$or": [{}] * 201}) == [("filter.$or.200", None)]
    assert refusals({"$or": [{"x": {"matches": f"a{i}"}} for i in range(21)]}) == [("filter.$or.20.x.matches", None)]
    assert len(refusals({f"x{i}": {"no": 1} for i in range(1000)})) == 20


def test_an_operand_that_holds_itself_many_times_is_refused() -> None:
    laughs: Any = ["ha"]
    for _ in range(12):
        laughs = [laughs] * 100
    assert refusals({"x": {"equals": laughs}}) == [("filter.x.equals", None)]
    laughs.append(laughs)
    assert refusals({"x": laughs}) == [("filter.x", None)]


def test_a_compiled_filter_is_independent_of_the_object_it_came_from() -> None:
    spec = {"x": {"equals": [1]}}
    predicate = compile_filter(spec)
    spec["x"]["equals"].append(2)
    assert predicate(an_event({"x": [1]}))


def test_payload_paths_are_checked_by_the_caller() -> None:
    asked = []

    def check(path: str) -> None:
        asked.append(path)
        if path == "tgas":
            raise InvalidError("no", errors=[FieldError("payload.tgas", "no such field", "tags")])

    spec = {"tgas": 1, "event.payload.a.b": 1, "event.metadata.actor": "x", "$not": {"tags": 1}}
    assert refusals(spec, check=check) == [("filter.tgas", "tags")]
    assert asked == ["tgas", "a.b", "tags"]


# ---- documents -------------------------------------------------------------------------------------------------------


def test_a_document_filter_knows_the_documents_fields() -> None:
    fields = ("id", "content", "tags", "metadata")
    predicate = compile_document_filter({"tags": {"contains": "#a"}, "metadata.year": {"gte": 2020}}, fields)
    assert predicate({"tags": ["#a"], "metadata": {"year": 2026}})
    assert not predicate({"tags": ["#a"], "metadata": {}})
    with pytest.raises(InvalidError) as caught:
        compile_document_filter({"metadta.year": 1, "event.type": 1}, fields, at="query.filter")
    assert [(error.path, error.suggestion) for error in caught.value.errors] == [
        ("query.filter.metadta.year", "metadata"),
        ("query.filter.event.type", None),
    ]


@pytest.mark.parametrize(
    ("spelling", "meant"),
    [
        ("eq", "equals"),
        ("==", "equals"),
        ("$equals", "equals"),
        ("neq", "not_equals"),
        ("!=", "not_equals"),
        ("$not_in", "not_in"),
        ("nin", "not_in"),
        ("isIn", "in"),
        ("$startsWith", "starts_with"),
        ("startswith", "starts_with"),
        ("prefix", "starts_with"),
        ("$ends_with", "ends_with"),
        ("regex", "matches"),
        ("$match", "matches"),
        ("regexp", "matches"),
        ("like", "contains"),
        ("includes", "contains"),
        (">=", "gte"),
        ("greater_than", "gt"),
        ("lessThanOrEqual", "lte"),
        ("$exist", "exists"),
        ("contain", "contains"),
        ("$regx", "$regex"),
        ("matchs", "matches"),
    ],
)
def test_operator_of_another_language_is_told_ours(spelling: str, meant: str) -> None:
    with pytest.raises(InvalidError) as refused:
        compile_filter({"n": {spelling: 1}})
    assert [(error.path, error.suggestion) for error in refused.value.errors] == [(f"filter.n.{spelling}", meant)]


@pytest.mark.parametrize("key", ["and", "or", "OR"])
def test_combiner_without_its_sign_is_told_of_it(key: str) -> None:
    with pytest.raises(InvalidError, match=rf"did you mean \"\${key.lower()}\""):
        compile_filter({key: [{"a": 1}, {"b": 2}]})
