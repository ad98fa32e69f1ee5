"""Templates, synthetic events, retries and counters: what is computed without a bus."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.definition import Retry
from crucible_core.errors import InvalidError
from crucible_core.filters.matcher import compile_filters
from crucible_core.protocol.hooks import RunRecord
from crucible_core.protocol.parts import TypeFilter
from crucible_core.types.catalogue import CATALOGUE
from crucible_hooks.errors import RunError
from crucible_hooks.expressions.expression import evaluate_all
from crucible_hooks.expressions.templates import Template, compile_text, compile_value
from crucible_hooks.runs import next_delay_ms
from crucible_hooks.store import count_run
from crucible_hooks.test import synthetic

CONTEXT = {"event": {"payload": {"id": "m1", "n": 3, "tags": ["a", "b"], "none": None}}, "inputs": {"who": "me"}}


def filled(template: Template) -> Any:
    values = evaluate_all([one.source for one in template.expressions], CONTEXT)
    return template.fill(iter(msgspec.json.decode(values)))


@pytest.mark.parametrize("expression", ["double('nan')", "double(event.payload.n) / 0.0", "[{'a': -1.0 / 0.0}]"])
def test_what_json_has_no_number_for_is_no_value(expression: str) -> None:
    with pytest.raises(RunError, match="there is no number"):
        filled(compile_value({"a": "{{" + expression + "}}"}, "inputs"))


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{event.payload.n}}", 3),
        ("{{ event.payload.tags }}", ["a", "b"]),
        ("n={{event.payload.n}}, {{inputs.who}}!", "n=3, me!"),
        ("{{event.payload.tags}}{{event.payload.none}}", '["a","b"]'),
        ({"a": ["{{event.payload.id}}", 1], "b": None}, {"a": ["m1", 1], "b": None}),
        ("no template {here}", "no template {here}"),
        ("{{ '{' }}", "{"),
    ],
)
def test_template(template: Any, value: Any) -> None:
    assert filled(compile_value(template, "x")) == value


def test_only_values_inside_a_text_are_escaped() -> None:
    assert filled(compile_text("a/{{event.payload.id}}", "x", lambda value: value.upper())) == "a/M1"
    assert filled(compile_text("{{event.payload.id}}", "x", lambda value: value.upper())) == "m1"


@given(st.text())
def test_text_without_braces_is_itself(text: str) -> None:
    if "{{" not in text:
        assert filled(compile_value(text, "x")) == text


@pytest.mark.parametrize(
    "text", ["{{" * 30_000, "{{ event.payload.id", "}} {{", "{{a}}" * 1_000, "{{" + "x" * 5_000 + "}}"]
)
def test_template_that_does_not_end_or_has_too_many_parts_is_refused_at_once(text: str) -> None:
    with pytest.raises(InvalidError, match=r"action\.inputs\.a"):
        compile_value({"a": text}, "action.inputs")


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
    assert count_run(record)[:5] == counts
