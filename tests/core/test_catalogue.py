"""The catalogue: names, wildcards, payloads and filter paths."""

import gc
import json
import sys
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.errors import CrucibleError, FieldError, InvalidError, MalformedError
from crucible_core.protocol.hooks import RunRecord
from crucible_core.protocol.webhooks import AttemptRecord
from crucible_core.types.catalogue import ANY_CUSTOM, CATALOGUE, Catalogue, Kind
from crucible_core.types.payloads import RESERVED, Closed

CONTRACT = {
    "Memory": "Created Updated Deleted Linked Unlinked Tagged Untagged Accessed Consolidated Pruned Restored "
    "Superseded Redacted",
    "Graph": "NodeAdded NodeRemoved EdgeCreated EdgeRemoved PathDiscovered CommunityDetected MetricsComputed Redacted",
    "File": "Created Modified Deleted Renamed DirectoryCreated DirectoryDeleted Processed",
    "Agent": "Registered Unregistered JoinedRoom LeftRoom ActionExecuted MessageSent MessageReceived ToolCreated "
    "ToolUsed",
    "Flow": "Registered Unregistered Started StepCompleted Paused Resumed Completed Failed Cancelled",
    "System": "Started Shutdown RoomCreated RoomDeleted WorldCreated WorldDeleted Error ConfigChanged "
    "ScheduleFired AccessDenied Redacted",
    "Hook": "Registered Triggered Executed Failed Unregistered",
    "Webhook": "Registered Unregistered Failing Exhausted Disabled Recovered",
    "Approval": "Requested Granted Denied Expired",
    "Artifact": "Created Updated Deleted Invoked InvokeFailed",
}
NAMED = ["Command.New", "Tool.BeforeCall", "Qa.ValidationFailed", "Task.Claimed", "Task.Completed", "Kb.Indexed"]
TYPES = [kind.type for kind in CATALOGUE.types()]
CLOSED = {"Memory", "Graph", "File", "Flow", "System", "Hook", "Webhook", "Approval", "Artifact"}


def refusal(dotted: str, payload: Any) -> FieldError:
    with pytest.raises(InvalidError) as caught:
        CATALOGUE.validate(dotted, json.dumps(payload).encode())
    return caught.value.errors[0]


# ---- names -----------------------------------------------------------------------------------------------------------


def test_contract_types_exist() -> None:
    wanted = {f"{category}.{event}" for category, events in CONTRACT.items() for event in events.split()}
    found = {name for name in TYPES if name.split(".")[0] in CONTRACT}
    assert wanted <= found
    assert {name.split(".")[0] for name in found - wanted} <= {"Agent"}  # what a runtime's hooks are called besides
    assert {*NAMED, "Schema.Changed", ANY_CUSTOM} <= set(TYPES)


# The names of the plugin hooks and internal hooks of OpenClaw and its forerunners, as their documents list them.
OPENCLAW = """
    before_model_resolve agent_turn_prepare before_prompt_build before_agent_start before_agent_run before_agent_reply
    before_agent_finalize agent_end agent_error heartbeat_prompt_contribution model_call_started model_call_ended
    llm_input llm_output before_recall after_recall before_tool_call after_tool_call tool_error tool_result_persist
    before_message_write inbound_claim message_received message_sending message_sent before_dispatch reply_dispatch
    reply_payload_sending session_start session_end before_compaction after_compaction before_reset subagent_spawning
    subagent_delivery_target subagent_spawned subagent_ended gateway_start gateway_stop gateway_pre_start
    gateway_pre_stop deactivate cron_changed before_install
    command:new command:reset command:stop session:start session:end session:patch session:compact:before
    session:compact:after agent:bootstrap gateway:startup gateway:shutdown message:received message:transcribed
    message:preprocessed message:sent
"""


def test_every_hook_of_an_agent_runtime_is_an_event_of_its_own() -> None:
    names = OPENCLAW.split()
    found = {name: CATALOGUE.resolve(name) for name in names}
    twice = {dotted for dotted in found.values() if list(found.values()).count(dotted) > 1}
    # Both systems of hooks tell of these.
    assert twice <= {"Gateway.Started", "Gateway.Stopped", "Session.Started", "Session.Ended", "Session.Compacting",
                     "Session.Compacted", "Message.Received", "Message.Sent"}  # fmt: skip
    assert {dotted.split(".")[0] for dotted in found.values()} == {
        *("Agent", "Command", "Session", "Gateway", "Message", "Tool")
    }
    for listener in ("command", "session", "agent", "gateway", "message"):
        assert len(CATALOGUE.expand(listener) or ()) > 1
    CATALOGUE.validate("before_agent_start", b'{"prompt": "hi", "sessionKey": "agent:main", "messages": [{}]}')


@pytest.mark.parametrize(
    ("alias", "dotted"),
    [
        ("memory.created", "Memory.Created"),
        ("memory:created", "Memory.Created"),
        ("memory_created", "Memory.Created"),
        ("MEMORY.CREATED", "Memory.Created"),
        ("entry.created", "Memory.Created"),
        ("entry_created", "Memory.Created"),
        ("Entry.Created", "Memory.Created"),
        ("command:new", "Command.New"),
        ("before_tool_call", "Tool.BeforeCall"),
        ("after_tool_call", "Tool.AfterCall"),
        ("PreToolUse", "Tool.BeforeCall"),
        ("node.added", "Graph.NodeAdded"),
        ("edge_created", "Graph.EdgeCreated"),
        ("graph.node_added", "Graph.NodeAdded"),
        ("Graph:NodeAdded", "Graph.NodeAdded"),
        ("agent.joined_room", "Agent.JoinedRoom"),
        ("qa.validation_failed", "Qa.ValidationFailed"),
        ("gateway:startup", "Gateway.Started"),
        ("Custom.order.paid", "Custom.order.paid"),
        ("custom:Größe", "Custom.Größe"),
    ],
)
def test_alias_resolves(alias: str, dotted: str) -> None:
    assert CATALOGUE.resolve(alias) == dotted
    assert CATALOGUE.expand(alias) == {dotted}


def test_every_listed_alias_resolves_in_any_case() -> None:
    for kind in CATALOGUE.types()[:-1]:
        for alias in (kind.type, *kind.aliases):
            assert {CATALOGUE.resolve(spelling) for spelling in (alias, alias.upper(), alias.title())} == {kind.type}


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("Memory.Creatd", "Memory.Created"),
        ("memroy:created", "Memory.Created"),
        ("before_tool_cal", "Tool.BeforeCall"),
        ("Graph.NodeAded", "Graph.NodeAdded"),
        ("Zork", None),
        ("", None),
        ("x" * 100_000, None),
    ],
)
def test_unknown_type_names_the_nearest(wrong: str, nearest: str | None) -> None:
    with pytest.raises(InvalidError) as caught:
        CATALOGUE.resolve(wrong, "event_filters.0.event_type")
    (error,) = caught.value.errors
    assert (error.path, error.suggestion) == ("event_filters.0.event_type", nearest)
    assert len(caught.value.detail) < 300


@pytest.mark.parametrize("resolve", [CATALOGUE.resolve, CATALOGUE.expand])
def test_type_of_ones_own_is_told_how_it_is_called_and_registered(resolve: Any) -> None:
    for name in ("Foo.Bar", "foo:bar", "order_placed"):
        with pytest.raises(InvalidError, match=f"Custom.{name}, or register it first .crucible events types add"):
            resolve(name)
    with pytest.raises(InvalidError) as refused:
        resolve("Memory.Bar")
    assert "Custom" not in refused.value.detail
    with pytest.raises(InvalidError, match=r"Custom\.Foo\.\*"):
        CATALOGUE.expand("Foo.*")


@pytest.mark.parametrize("name", ["", "a b", "a\n", "a\x00", "a\ud800", "*", "a*", "x" * 129, "\u2028"])
def test_bad_custom_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidError, match="custom event"):
        CATALOGUE.resolve(f"Custom.{name}")


@given(st.text(min_size=1, max_size=128).filter(lambda name: name.isprintable() and not set(name) & {" ", "*"}))
def test_custom_name_is_kept(name: str) -> None:
    assert CATALOGUE.resolve(f"Custom.{name}") == f"Custom.{name}"


@given(st.text())
def test_any_text_resolves_or_is_refused(text: str) -> None:
    for ask in (CATALOGUE.resolve, CATALOGUE.expand):
        with suppress(InvalidError):
            ask(text)


# ---- wildcards -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["Memory.*", "memory:*", "memory_*", "entry.*", "Memory", "ENTRY.*"])
def test_category_wildcard_is_its_types(pattern: str) -> None:
    assert CATALOGUE.expand(pattern) == {f"Memory.{event}" for event in CONTRACT["Memory"].split()}


def test_star_is_every_type_and_custom_stands_for_itself() -> None:
    assert CATALOGUE.expand("*") is None
    assert CATALOGUE.expand("custom.*") == {ANY_CUSTOM}


@pytest.mark.parametrize(("wrong", "nearest"), [("Memroy.*", "Memory.*"), ("**", "*"), ("Memory.Cr*", "Memory.*")])
def test_unknown_wildcard_is_refused(wrong: str, nearest: str) -> None:
    with pytest.raises(InvalidError) as caught:
        CATALOGUE.expand(wrong)
    assert caught.value.errors[0].suggestion == nearest


def test_one_type_is_no_wildcard() -> None:
    for pattern in ("Memory.*", "*", "Custom.*"):
        with pytest.raises(InvalidError):
            CATALOGUE.resolve(pattern)


# ---- payloads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dotted", [*TYPES[:-1], "Custom.anything"])
def test_example_is_valid(dotted: str) -> None:
    CATALOGUE.validate(dotted, json.dumps(CATALOGUE.example(dotted)).encode())


@pytest.mark.parametrize("dotted", TYPES[:-1])
def test_what_crucible_makes_is_closed_and_the_rest_is_open(dotted: str) -> None:
    payload = {**CATALOGUE.example(dotted), "surprise": 1}
    if dotted.split(".")[0] in CLOSED:
        assert refusal(dotted, payload).path == "payload.surprise"
    else:
        CATALOGUE.validate(dotted, json.dumps(payload).encode())
        CATALOGUE.validate(dotted, b"{}")


@pytest.mark.parametrize(
    ("dotted", "payload", "path", "message", "suggestion"),
    [
        (
            "entry.created",
            {"id": "m", "type": "note"},
            "payload.content",
            "required, but missing, and there is no title in its place",
            None,
        ),
        ("Memory.Created", {"id": "m", "content": 1}, "payload.content", "expected str | null, got int", None),
        ("Memory.Created", {"id": "m", "content": "", "contnt": ""}, "payload.contnt", "unknown field", "content"),
        ("Memory.Created", {"id": "", "content": ""}, "payload.id", "expected str of length >= 1", None),
        ("Memory.Tagged", {"id": "m"}, "payload.tag", "required, but missing", None),
        ("Memory.Linked", {"id": "m"}, "payload.to", "required, but missing", None),
        ("Memory.Linked", {"id": "m", "target": 5}, "payload.target", "expected str, got int", None),
        ("Memory.Linked", {"from": "m", "to": "m"}, "payload.to", "a memory cannot be linked to itself", None),
        ("Memory.Linked", {"from": "m", "to": "n", "tagret": "o"}, "payload.tagret", "unknown field", "target"),
        ("Memory.Deleted", {"id": "m", "weight": 1}, "payload.weight", "unknown field", None),
        ("Memory.Deleted", {"id": "m", "query": "x"}, "payload.query", "unknown field", None),
        ("Memory.Tagged", {"id": "m", "tag": " # "}, "payload.tag", "must hold more than # and spaces", None),
        (
            "Memory.Updated",
            {"id": "m", "links": [{"target": "n", "wieght": 1}]},
            "payload.links.0.wieght",
            "unknown field",
            "weight",
        ),
        ("File.Modified", {}, "payload.path", "required, but missing", None),
        ("Hook.Executed", {"hook": "h"}, "payload.run_id", "required, but missing", None),
        ("Tool.Failed", {"tool": 1}, "payload.tool", "expected str | null, got int", None),
        ("Memory.Created", [], "payload", "expected object, got array", None),
        ("Custom.x", [], "payload", "expected object, got array", None),
    ],
)
def test_wrong_payload_is_refused(dotted: str, payload: Any, path: str, message: str, suggestion: str | None) -> None:
    assert refusal(dotted, payload) == FieldError(path, message, suggestion)


@pytest.mark.parametrize("dotted", ["Memory.Updated", "Tool.Failed", "Custom.x"])
@pytest.mark.parametrize(
    "value", [b'"\xff"', b'"\\ud800"', b"[" * 70 + b"]" * 70, b"[" * 9000, b"nope", b'"\x01"', b'"'], ids=repr
)
def test_payload_that_could_not_be_read_again_is_malformed(dotted: str, value: bytes) -> None:
    with pytest.raises(MalformedError):
        CATALOGUE.validate(dotted, b'{"id": "m", "metadata": {"deep": %b}}' % value)


def test_payload_of_an_alias_or_unknown_type() -> None:
    CATALOGUE.validate("memory.deleted", b'{"id": "m"}')
    with pytest.raises(InvalidError):
        CATALOGUE.validate("Memory.Nope", b"{}")


def test_run_and_attempt_records_fit_their_events() -> None:
    place = {"world_id", "room_id"}  # in the event's envelope
    run = set(RunRecord.__struct_fields__) - place
    attempt = set(AttemptRecord.__struct_fields__) - place - {"webhook_id", "webhook"}  # `id` and `name` in the event
    assert run <= set(CATALOGUE.fields("Hook.Executed") or ())
    assert attempt <= set(CATALOGUE.fields("Webhook.Exhausted") or ())


def test_types_carry_schema_and_description() -> None:
    created = next(kind for kind in CATALOGUE.types() if kind.type == "Memory.Created")
    assert created.description == "A memory was made."
    assert created.schema["title"] == "Memory.Created"
    assert created.schema["required"] == ["id"]
    assert created.schema["x-synonyms"]["kb_name"] == ["kb"]
    assert created.schema["$defs"]["Reference"]["x-synonyms"]["target"] == ["to"]
    assert created.schema["additionalProperties"] is False
    assert set(created.schema["$defs"]) == {"Reference"}
    assert all(kind.description.endswith(".") and "\n" not in kind.description for kind in CATALOGUE.types())


# ---- filter paths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("types", "path"),
    [
        ("Memory.Created", "content"),
        ("Memory.Created", "metadata.any.thing"),
        ("Memory.Created", "links.0.target"),
        ("Memory.Created", "tags.0"),
        ("Memory.*", "content"),
        ("Tool.Failed", "whatever.there.is"),
        ("Custom.*", "whatever"),
        ("Custom.order", "whatever"),
        ("Hook.Executed", "output.deep.down"),
        ("*", "whatever"),
    ],
)
def test_path_that_can_exist_is_accepted(types: str, path: str) -> None:
    CATALOGUE.check_path(CATALOGUE.expand(types), path)


def test_path_that_one_of_the_types_has_is_accepted() -> None:
    CATALOGUE.check_path(["Memory.Created", "File.Created"], "mime")
    CATALOGUE.check_path(["Memory.Created", "Tool.Failed"], "anything")


@pytest.mark.parametrize(
    ("types", "path", "nearest"),
    [
        ("Memory.Created", "contnt", "content"),
        ("Memory.*", "contnt", "content"),
        ("Memory.Created", "links.target", "links.0.target"),
        ("Memory.Deleted", "weight", None),
        ("Memory.Created", "links.0.targt", "links.0.target"),
        ("Memory.Created", "tags.first", "tags.0"),
        ("Memory.Created", "content.length", None),
        ("File.Modified", "pth", "path"),
        ("Memory.Created", "", None),
    ],
)
def test_path_that_cannot_exist_is_refused(types: str, path: str, nearest: str | None) -> None:
    with pytest.raises(InvalidError) as caught:
        CATALOGUE.check_path(CATALOGUE.expand(types), path)
    assert (caught.value.errors[0].path, caught.value.errors[0].suggestion) == (path, nearest)


# ---- growing ---------------------------------------------------------------------------------------------------------


class Shipped(Closed, kw_only=True):
    """An order left the house."""

    order: str


def test_catalogue_grows_into_a_new_one() -> None:
    grown = CATALOGUE.extended([Kind("Order", "Shipped", Shipped, ("order_gone",))])
    assert grown.resolve("order_gone") == grown.resolve("order.shipped") == "Order.Shipped"
    assert grown.expand("Order.*") == {"Order.Shipped"}
    grown.validate("Order.Shipped", msgspec.json.encode(Shipped(order="o_1")))
    with pytest.raises(InvalidError):
        CATALOGUE.resolve("Order.Shipped")


def test_two_types_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="would name both"):
        Catalogue([Kind("Order", "Shipped", Shipped), Kind("Parcel", "Sent", Shipped, ("order.shipped",))])


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        (
            ["Flow.*"],
            "nobody emits Flow.Cancelled, Flow.Completed, Flow.Failed … yet: reserved, unless a client sends it",
        ),
        (["flow.started"], "nobody emits Flow.Started yet: reserved, unless a client sends it"),
        (
            ["System.AccessDenied", "approval:granted"],
            "nobody emits Approval.Granted, System.AccessDenied yet: reserved",
        ),
        (["Flow.Started", "Memory.Created"], "nobody emits Flow.Started yet: reserved, unless a client sends it"),
        (["Webhook.Failing", "webhook.*"], "nobody emits Webhook.Failing yet: reserved"),
        (["Memory.*"], None),
        (["No.Such", "Flow.Strted"], None),
        (["*"], None),
        (["Custom.*"], None),
        (["System.*"], None),
        ([], None),
    ],
)
def test_handler_of_what_nobody_emits_is_warned(patterns: list[str], told: str | None) -> None:
    assert CATALOGUE.warning(patterns) == told


def test_reserved_types_exist_and_say_so() -> None:
    assert set(TYPES) >= RESERVED
    assert {kind.type for kind in CATALOGUE.types() if kind.reserved} == RESERVED


@pytest.mark.parametrize(
    ("dotted", "payload"),
    [
        ("Memory.Tagged", b'{"id": 1, "tag": "a"}'),
        ("Memory.Linked", b'{"source_id": "a", "target_id": 1}'),
        ("Memory.Tagged", b'{"id": "a", "id": "a", "tag": "a"}'),
        ("Custom.A", b'{"a": [{"b": 1, "b": 2}]}'),
        ("Custom.A", b'{"a": 1e999}'),
        ("Custom.A", b'{"a": 1, "a": 1, "text": "' + 100_000 * b"x" + b'"}'),
        ("Custom.A", b"[]"),
        ("Custom.A", b"{"),
    ],
)
def test_refused_payload_is_let_go(dotted: str, payload: bytes) -> None:
    """Also before the garbage collector comes: no frame that has the payload keeps the error."""
    gc.collect()
    gc.disable()
    try:
        before = sys.getrefcount(payload)
        for _ in range(3):
            with suppress(CrucibleError):
                CATALOGUE.canonical(dotted, payload)
                raise AssertionError("it was accepted")
        assert sys.getrefcount(payload) == before
    finally:
        gc.enable()


def test_refused_filter_path_leaves_nothing_behind() -> None:
    gc.collect()
    for _ in range(3):
        with suppress(InvalidError):
            CATALOGUE.check_path(["Memory.Tagged"], "nothing.of.that.kind")
            raise AssertionError("it was accepted")
    assert gc.collect() == 0
