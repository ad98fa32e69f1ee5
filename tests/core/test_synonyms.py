"""The words of the mission, and the other names of the same fields: accepted, put under one name, found under any."""

import json
from typing import Any

import pytest

from crucible_core.envelope import Data, Event, Metadata, Source
from crucible_core.errors import InvalidError
from crucible_core.filters.filter import anchors, compile_filter
from crucible_core.filters.matcher import Matcher, compile_filters
from crucible_core.protocol.parts import TypeFilter
from crucible_core.types.catalogue import CATALOGUE
from crucible_core.types.synonyms import other_names, other_paths

MISSION: list[tuple[str, dict[str, Any]]] = [
    (
        "Memory.Created",
        {"id": "m", "content": "x", "entities": ["Ada"], "links": ["n", "On logs"], "tags": ["#a"], "metadata": {}},
    ),
    ("Memory.Updated", {"id": "m", "previous_hash": "a", "new_hash": "b", "changes": {"content": "y"}}),
    ("Memory.Updated", {"id": "m", "previous_hash": "a", "new_hash": "b", "changes": ["content"]}),
    ("Memory.Updated", {"id": "m", "previous_hash": "a", "new_hash": "b", "changes": "the second line"}),
    ("Memory.Deleted", {"id": "m", "reason": "old"}),
    ("Memory.Linked", {"from": "m", "to": "n", "link_type": "cites", "strength": 0.5}),
    ("Memory.Tagged", {"id": "m", "tag": "#a"}),
    ("Memory.Accessed", {"id": "m", "query": "clocks", "relevance": 0.9}),
    ("Memory.Consolidated", {"original_ids": ["m", "n"], "summary_id": "s"}),
    ("Memory.Pruned", {"id": "m", "reason": "unused"}),
    ("File.Renamed", {"from": "a.md", "to": "b.md"}),
    ("Graph.EdgeCreated", {"from": "a", "to": "b"}),
    ("entry.created", {"id": "e", "kb": "project-kb", "type": "backlog_item", "title": "Do it", "tags": ["x"]}),
    ("entry_updated", {"id": "e", "kb": "project-kb", "type": "backlog_item", "title": "Do it"}),
    ("entry:deleted", {"id": "e", "kb": "project-kb", "type": "backlog_item", "title": "Do it"}),
    ("Flow.Started", {"id": "run_1", "name": "research", "trigger": "manual", "inputs": {"q": 1}}),
]
SYNONYMS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("Memory.Linked", {"id": "m", "target": "n"}, {"from": "m", "to": "n"}),
    (
        "Memory.Linked",
        {"source": "m", "target": "n", "type": "cites", "weight": 0.5},
        {"from": "m", "to": "n", "link_type": "cites", "strength": 0.5},
    ),
    ("Memory.Unlinked", {"id": "m", "source": "m", "to": "n"}, {"from": "m", "to": "n"}),
    (
        "Memory.Updated",
        {"id": "m", "links": ["o", {"target": "n", "weight": 1.0}], "changed": ["links"]},
        {"id": "m", "links": ["o", {"to": "n", "strength": 1.0}], "changes": ["links"]},
    ),
    ("Memory.Accessed", {"id": "m", "score": 1.0}, {"id": "m", "relevance": 1.0}),
    ("Memory.Consolidated", {"id": "s", "merged": ["m"]}, {"summary_id": "s", "original_ids": ["m"]}),
    (
        "entry.created",
        {"entry_id": "e", "kb_name": "k", "entry_type": "note", "title": "T"},
        {"id": "e", "kb": "k", "type": "note", "title": "T"},
    ),
    ("File.Renamed", {"path": "b.md", "old_path": "a.md"}, {"to": "b.md", "from": "a.md"}),
    ("File.Renamed", {"path": "a.md", "new_path": "b.md"}, {"to": "b.md", "from": "a.md"}),
    ("File.Renamed", {"path": "b.md", "from": "a.md", "new_path": "b.md"}, {"to": "b.md", "from": "a.md"}),
    ("Graph.EdgeRemoved", {"source": "a", "target": "b"}, {"from": "a", "to": "b"}),
    ("Flow.Started", {"run_id": "r", "flow": "f", "input": 1}, {"id": "r", "name": "f", "inputs": 1}),
    ("Task.Claimed", {"kb_name": "k", "surprise": {"a": 1}}, {"kb": "k", "surprise": {"a": 1}}),
    ("Task.Claimed", {"id": "t", "entry_id": "e"}, {"id": "t", "entry_id": "e"}),
]


def an_event(dotted: str, payload: dict[str, Any]) -> Event:
    category, _, name = CATALOGUE.resolve(dotted).partition(".")
    metadata = Metadata(
        id="evt_1", timestamp="", source=Source("user", "a"), actor="user:a", correlation_id="c", world_id="default"
    )
    return Event(category, Data(name, payload), metadata, 1)


def canonical(dotted: str, payload: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(CATALOGUE.canonical(CATALOGUE.resolve(dotted), json.dumps(payload).encode()))
    return found


@pytest.mark.parametrize(("dotted", "payload"), MISSION)
def test_words_of_the_mission_are_accepted_as_written(dotted: str, payload: dict[str, Any]) -> None:
    raw = json.dumps(payload).encode()
    assert CATALOGUE.canonical(CATALOGUE.resolve(dotted), raw) is raw


@pytest.mark.parametrize(("dotted", "sent", "stored"), SYNONYMS)
def test_synonyms_are_put_under_the_canonical_name(dotted: str, sent: dict[str, Any], stored: dict[str, Any]) -> None:
    assert canonical(dotted, sent) == stored
    assert canonical(dotted, stored) == stored


@pytest.mark.parametrize(
    ("dotted", "payload", "path"),
    [
        ("Memory.Linked", {"from": "a", "to": "b", "target": "c"}, "payload.target"),
        ("Memory.Linked", {"id": "a", "source": "b", "to": "c"}, "payload.id"),
        ("File.Renamed", {"from": "a", "to": "b", "path": "c"}, "payload.path"),
        ("Memory.Created", {"id": "m", "content": "", "links": [{"to": "a", "target": "b"}]}, "payload.links.0.target"),
    ],
)
def test_two_names_of_one_field_must_say_the_same(dotted: str, payload: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidError) as caught:
        canonical(dotted, payload)
    assert [error.path for error in caught.value.errors] == [path]
    assert "another name of" in caught.value.detail


def test_values_pass_through_untouched() -> None:
    raw = b'{"id": "m",  "target": "n", "weight": 1e2, "metadata": {"big": 123456789012345678901234567890.0}}'
    assert b'"metadata":{"big": 123456789012345678901234567890.0}' in CATALOGUE.canonical("Memory.Linked", raw)


def test_mistakes_are_told_by_the_name_that_was_sent() -> None:
    with pytest.raises(InvalidError, match=r"payload\.weight") as caught:
        canonical("Memory.Linked", {"id": "m", "target": "n", "weight": "much"})
    assert caught.value.errors[0].path == "payload.weight"


# ---- filters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dotted", "sent", "stored"), SYNONYMS)
def test_a_filter_finds_either_spelling_in_either(dotted: str, sent: dict[str, Any], stored: dict[str, Any]) -> None:
    """Also in events that were stored before the names were one."""
    values = {path: value for path, value in {**sent, **stored}.items() if isinstance(value, str | float)}
    if dotted == "File.Renamed":
        values.pop("path", None)  # see the next test
    for path, value in values.items():
        holds = compile_filters([TypeFilter(dotted, {path: {"equals": value}})])
        assert holds.matches(an_event(dotted, stored)), path
        assert holds.matches(an_event(dotted, sent)), path


def test_the_path_of_a_renamed_file_is_where_it_is_now() -> None:
    everywhere = compile_filters([TypeFilter("File.*", {"path": {"starts_with": "notes/"}})])
    assert everywhere.matches(an_event("File.Renamed", {"from": "a.md", "to": "notes/a.md"}))
    assert not everywhere.matches(an_event("File.Renamed", {"from": "notes/a.md", "to": "a.md"}))


@pytest.mark.parametrize("path", ["links.0.to", "links.0.target", "event.payload.links.0.target"])
@pytest.mark.parametrize("link", [{"to": "n"}, {"target": "n"}])
def test_names_inside_lists_too(path: str, link: dict[str, Any]) -> None:
    holds = compile_filter({path: "n"}, check=None)
    assert holds(an_event("Memory.Created", {"id": "m", "links": [link]}))
    assert not holds(an_event("Memory.Created", {"id": "m", "links": []}))


def test_other_types_keep_their_own_words() -> None:
    holds = compile_filter({"from": "a"})
    assert not holds(an_event("Custom.Mail", {"source": "a", "id": "a"}))
    assert holds(an_event("Custom.Mail", {"from": "a"}))
    assert compile_filter({"id": {"exists": False}})(an_event("Custom.Mail", {"from": "a"}))


def test_the_matcher_finds_anchored_filters_by_any_name() -> None:
    pairs = [(name, compile_filters([TypeFilter("Memory.Linked", {name: "n"})])) for name in ("to", "target")]
    assert anchors({"target": "n"})[0].path == "event.payload.target"
    matcher = Matcher(pairs)
    for payload in ({"from": "m", "to": "n"}, {"id": "m", "target": "n"}):
        assert matcher.match(an_event("Memory.Linked", payload)) == ["to", "target"]


def test_names_that_no_type_has_are_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidError) as caught:
        compile_filters([TypeFilter("Memory.Linked", {"tagret": "n"})])
    assert caught.value.errors[0].suggestion == "target"


@pytest.mark.parametrize(
    ("dotted", "path", "suggestion"),
    [
        ("Memory.Linked", "target", "to"),
        ("Memory.Linked", "type", "link_type"),
        ("Memory.Created", "links.0.target", "links.0.to"),
        ("Task.Claimed", "kb_name", "kb"),
        ("Memory.Linked", "tagret", "to"),
    ],
)
def test_who_reads_what_is_stored_is_told_the_canonical_name(dotted: str, path: str, suggestion: str) -> None:
    with pytest.raises(InvalidError) as caught:
        CATALOGUE.check_path([dotted], path, stored=True)
    assert caught.value.errors[0].suggestion == suggestion
    if path != "tagret":
        CATALOGUE.check_path([dotted], path)
        CATALOGUE.check_path([dotted], suggestion, stored=True)
    CATALOGUE.check_path([dotted, "Custom.*"], path, stored=True)


def test_where_else_a_value_may_stand() -> None:
    assert other_paths("File.Renamed", ("path",)) == [("to",), ("from",), ("old_path",), ("new_path",)]
    assert other_paths("Memory.Deleted", ("reason",)) == []
    assert other_paths("Custom.x", ("from",)) == []
    assert other_names("target") >= {"to", "target"}
    assert other_names("content") == {"content"}
