"""Expressions, templates, synthetic events, retries and counters: what is computed without a bus."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.catalogue import CATALOGUE
from crucible_core.errors import InvalidError
from crucible_core.hooks import Retry
from crucible_core.matcher import compile_filters
from crucible_core.protocol.hooks import RunRecord
from crucible_core.protocol.shared import TypeFilter
from crucible_hooks.expressions import compile_expression, evaluate
from crucible_hooks.failures import AbsentError, RunError
from crucible_hooks.retries import next_delay_ms
from crucible_hooks.store import counted
from crucible_hooks.synthesis import synthetic
from crucible_hooks.templates import compile_text, compile_value

CONTEXT = {"event": {"payload": {"id": "m1", "n": 3, "tags": ["a", "b"], "none": None}}, "inputs": {"who": "me"}}


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("event.payload.id", "m1"),
        ('"a" in event.payload.tags', True),
        ("event.payload.n + 1", 4),
        ("has(event.payload.x)", False),
        ("event.payload.tags.map(t, t + '!')", ["a!", "b!"]),
        ("event.payload.id.matches('^m[0-9]$') && inputs.who == 'me'", True),
        ("timestamp('2026-01-01T00:00:00Z')", "2026-01-01T00:00:00Z"),
        ("event.payload.none", None),
    ],
)
def test_expression(source: str, value: Any) -> None:
    assert evaluate(compile_expression(source, "x"), CONTEXT) == value


def test_absent_field_is_told_apart_from_other_mistakes() -> None:
    with pytest.raises(AbsentError, match="there is no x"):
        evaluate(compile_expression("event.payload.x == 1", "x"), CONTEXT)
    with pytest.raises(RunError, match="overload"):
        evaluate(compile_expression("event.payload.n + 'a'", "x"), CONTEXT)


@pytest.mark.parametrize("source", ["", "1 +", "event.", "even.x", "nofunction(1)", "x" * 5000, "(" * 500])
def test_bad_expression_is_refused(source: str) -> None:
    with pytest.raises(InvalidError):
        compile_expression(source, "x")


@pytest.mark.parametrize(
    "source",
    [
        "event.payload.xs.exists(t, t in event.payload.ys)",
        "event.payload.xs.all(t, event.payload.text.contains(t))",
        "event.payload.xs.filter(t, size(event.payload.ys) > t).size() > 0",
    ],
)
def test_loop_that_searches_the_event_is_refused(source: str) -> None:
    with pytest.raises(InvalidError, match="not search in them"):
        compile_expression(source, "condition.expr")


def test_loop_may_compare_with_the_event() -> None:
    compile_expression("event.payload.xs.exists(t, t == event.payload.wanted)", "condition.expr")


def test_loop_in_a_loop_is_refused_and_text_that_looks_like_one_is_not() -> None:
    compile_expression("[1].all(a, a > 0) && [2].all(b, b > 0)", "x")
    compile_expression("[1].all(a, '.map(x, .map(y,' != '')", "x")
    with pytest.raises(InvalidError, match="inside each other"):
        compile_expression("event.payload.tags.all(a, event.payload.tags.exists(b, a == b))", "x")


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{event.payload.n}}", 3),
        ("{{ event.payload.tags }}", ["a", "b"]),
        ("n={{event.payload.n}}, {{inputs.who}}!", "n=3, me!"),
        ("{{event.payload.tags}}{{event.payload.none}}", '["a","b"]'),
        ({"a": ["{{event.payload.id}}", 1], "b": None}, {"a": ["m1", 1], "b": None}),
        ("no template {here}", "no template {here}"),
        ("{{ '{{' }}", "{{"),
    ],
)
def test_template(template: Any, value: Any) -> None:
    assert compile_value(template, "x")(CONTEXT) == value


def test_only_values_inside_a_text_are_escaped() -> None:
    assert compile_text("a/{{event.payload.id}}", "x", lambda value: value.upper())(CONTEXT) == "a/M1"
    assert compile_text("{{event.payload.id}}", "x", lambda value: value.upper())(CONTEXT) == "m1"


@given(st.text())
def test_text_without_braces_is_itself(text: str) -> None:
    if "{{" not in text:
        assert compile_value(text, "x")(CONTEXT) == text


@pytest.mark.parametrize(
    ("type", "filter"),
    [
        ("*", {}),
        ("Memory.*", {}),
        ("Custom.*", {"n": {"gt": 3}}),
        ("Custom.x", {"a.b": {"gte": 3, "lte": 9}, "c": {"in": ["x", "y"]}}),
        ("memory.created", {"tags": {"$contains": "#a"}, "content": {"starts_with": "Hi", "ends_with": "bye"}}),
        ("Memory.Created", {"$and": [{"tags": {"contains": "#a"}}, {"title": {"exists": True}}]}),
        ("Memory.Created", {"$or": [{"title": "x"}, {"title": "y"}], "event.metadata.world_id": "w"}),
        ("File.Modified", {"path": {"ends_with": ".md"}}),
        ("Memory.Created", {"content": {"matches": "(?s).{500,}"}}),
    ],
)
def test_synthetic_event_is_what_the_filter_asks_for(type: str, filter: dict[str, Any]) -> None:
    filters = [TypeFilter(event_type=type, filter=filter)]
    assert compile_filters(filters).matches(synthetic(filters, None, CATALOGUE))


def test_delays_double_and_end() -> None:
    retry = Retry(max_attempts=4, delay_ms=1000)
    assert [next_delay_ms(retry, attempt) for attempt in (1, 2, 3, 4)] == [1000, 2000, 4000, None]
    fixed = Retry(max_attempts=3, backoff="fixed", delay_ms=50)
    assert [next_delay_ms(fixed, attempt) for attempt in (1, 2, 3)] == [50, 50, None]


@pytest.mark.parametrize(
    ("outcome", "attempt", "output", "counts"),
    [
        ("ok", 1, None, (1, 1, 1, 0, 0)),
        ("denied", 1, None, (1, 1, 1, 0, 0)),
        ("retrying", 1, None, (1, 1, 0, 0, 0)),
        ("failed", 3, None, (0, 1, 0, 1, 0)),
        ("stopped", 0, None, (1, 0, 0, 1, 0)),
        ("skipped", 0, {"events": 7}, (7, 0, 0, 0, 7)),
        ("skipped", 1, None, (1, 0, 0, 0, 1)),
    ],
)
def test_what_a_record_counts(outcome: str, attempt: int, output: Any, counts: tuple[int, ...]) -> None:
    record = RunRecord(
        run_id="r",
        hook="h",
        timing="Post",
        event_id="e",
        event_type="t",
        correlation_id="c",
        attempt=attempt,
        outcome=outcome,
        started_at="now",
        duration_ms=1,
        output=output,
    )
    assert counted(record)[:5] == counts
