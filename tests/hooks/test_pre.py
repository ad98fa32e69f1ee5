"""Pre hooks: allow, deny and change, their order, and what happens when one fails."""

import asyncio
from typing import Any

import msgspec
import pytest

from crucible_core.envelope import Data, Event, Metadata, Source, encode
from crucible_core.errors import DeniedError, UnavailableError
from crucible_core.protocol.hooks import HookList, HookView, InterceptReply, InterceptRequest
from crucible_core.protocol.parts import EnableHook
from crucible_kit.buckets import open_bucket
from crucible_kit.clock import fresh_id, timestamp

from .conftest import System, until


async def intercepted(system: System, *hooks: str, payload: object = None, type: str = "Custom.note") -> object:
    """What the named hooks make of an event, as events asks for it. Raises DeniedError."""
    category, _, name = type.partition(".")
    metadata = Metadata(
        id=fresh_id("evt"),
        timestamp=timestamp(),
        source=Source("user", "alice"),
        actor="user:alice",
        correlation_id=fresh_id("cor"),
    )
    raw = encode(Event(category, Data(name, payload if payload is not None else {}), metadata))
    request = InterceptRequest(event=msgspec.Raw(raw), hooks=list(hooks))
    reply: InterceptReply = await system.ask("intercept", request, InterceptReply)
    return msgspec.json.decode(reply.payload) if reply.payload else None


async def test_allowed_event_is_committed_unchanged(system: System) -> None:
    await system.register("gate", "None", pre=True)
    assert await intercepted(system, "gate", payload={"n": 1}) is None


async def test_denied_event_is_not_committed_and_the_run_is_told(system: System) -> None:
    await system.register("gate", '{"deny": "no: " + event["payload"]["text"]}', pre=True)
    with pytest.raises(DeniedError) as denied:
        await system.append(payload={"text": "bad"})
    assert denied.value.extra == {"hook": "gate", "reason": "no: bad"}
    assert not await system.log("Custom.note")
    run = await system.run_of("gate", "denied")
    await until(lambda: told(system))
    [event] = await system.log("Hook.Executed")
    assert (event.data.payload["outcome"], event.data.payload["event_id"]) == ("denied", run.event_id)
    assert event.metadata.causation_id is None  # as the denied event's own: that one is not in the log


async def test_gate_that_this_replica_cannot_load_denies(system: System) -> None:
    await system.register("gate", "None", pre=True)
    bucket = await open_bucket(system.bus, "hooks")
    stored = await bucket.get("gate")
    assert stored is not None
    record = msgspec.json.decode(stored.value)
    record["definition"]["options"]["of_a_newer_version"] = True
    await bucket.put("gate", msgspec.json.encode(record))
    await until(lambda: is_inert(system, "gate"))
    with pytest.raises(DeniedError, match="cannot be loaded"):
        await system.append()


async def test_record_that_cannot_be_read_is_inert_and_not_deleted(system: System) -> None:
    await system.register("note", "1")
    bucket = await open_bucket(system.bus, "hooks")
    await bucket.put("note", b"of another version")
    await until(lambda: is_inert(system, "note"))


async def is_inert(system: System, hook: str) -> bool:
    return (await system.state(hook) or "").startswith("inert")


async def test_changed_payload_is_what_is_committed(system: System) -> None:
    await system.register("shout", '{"payload": {"text": event["payload"]["text"].upper()}}', pre=True)
    appended = await system.append(payload={"text": "quiet"})
    assert (await system.event(appended.id or "")).data.payload == {"text": "QUIET"}


async def test_modifiers_run_in_order_of_priority_then_name(system: System) -> None:
    append = '{"payload": {"seen": event["payload"].get("seen", []) + ["%s"]}}'
    for name, priority in (("c", 1), ("b", 5), ("a", 5)):
        await system.register(name, append % name, pre=True, priority=priority)
    assert await intercepted(system, "a", "b", "c") == {"seen": ["c", "a", "b"]}
    listed: HookList = await system.ask("list", EnableHook(name="", enabled=True), HookList)
    assert [(hook.name, hook.order) for hook in listed.hooks] == [("c", 1), ("a", 2), ("b", 3)]


async def test_gate_before_a_modifier_judges_the_result(system: System) -> None:
    await system.register("gate", '{"deny": "too loud"} if event["payload"]["text"].isupper() else None', pre=True)
    await system.register("shout", '{"payload": {"text": event["payload"]["text"].upper()}}', pre=True)
    with pytest.raises(DeniedError, match="too loud"):
        await intercepted(system, "gate", "shout", payload={"text": "quiet"})


async def test_hook_that_only_the_changed_event_matches_judges_it_too(system: System) -> None:
    await system.register("gate", '{"deny": "marked"}', pre=True, priority=1, filter={"mark": True})
    await system.register("mark", '{"payload": {"mark": True}}', pre=True, priority=2)
    with pytest.raises(DeniedError, match="marked"):
        await intercepted(system, "mark")


async def test_gate_that_would_change_the_result_denies(system: System) -> None:
    undo = '{"payload": {"text": "quiet"}} if event["payload"]["text"] == "LOUD" else None'
    await system.register("undo", undo, pre=True, priority=1)
    await system.register("shout", '{"payload": {"text": "LOUD"}}', pre=True, priority=2)
    with pytest.raises(DeniedError, match="change the event again"):
        await intercepted(system, "undo", "shout", payload={"text": "quiet"})


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("while True: pass", "took longer than 1500 ms"),
        ("raise ValueError('oops')", "oops"),
        ("'yes'", "a Pre hook answers"),
        ("{'denied': 'typo'}", "a Pre hook answers"),
        ("{'payload': 3}", "must be an object"),
    ],
)
async def test_failing_gate_denies_unless_its_policy_allows(system: System, script: str, reason: str) -> None:
    await system.register("strict", script, pre=True, options={"timeout_ms": 1500})
    await system.register("lenient", script, pre=True, options={"timeout_ms": 1500, "failure_policy": "allow"})
    with pytest.raises(DeniedError, match=reason):
        await intercepted(system, "strict", payload={"n": 1})
    assert await intercepted(system, "lenient", payload={"n": 1}) is None
    assert reason in ((await system.run_of("lenient", "failed")).error or "")


async def test_writer_reads_no_traceback(system: System) -> None:
    await system.register("broken", "x = 1\nraise ValueError('oops')", pre=True)
    with pytest.raises(DeniedError) as denied:
        await intercepted(system, "broken")
    assert denied.value.extra["reason"] == "the hook failed: line 2: ValueError: oops"
    assert "Traceback" in ((await system.run_of("broken", "failed")).error or "")


async def test_change_to_an_invalid_payload_denies(system: System) -> None:
    await system.register("spoiler", '{"payload": {"id": "mem_1", "nonsense": 1}}', pre=True, on="Memory.Created")
    with pytest.raises(DeniedError, match="nonsense"):
        await intercepted(system, "spoiler", type="Memory.Created", payload={"id": "mem_1", "content": "x"})


async def test_condition_that_is_false_lets_pass_and_one_that_fails_denies(system: System) -> None:
    await system.register("gate", '{"deny": "x"}', pre=True, condition={"expr": "event.payload.n > 1"})
    assert await intercepted(system, "gate", payload={"n": 1}) is None
    with pytest.raises(DeniedError):
        await intercepted(system, "gate", payload={"n": 2})
    with pytest.raises(DeniedError, match="there is no n"):
        await intercepted(system, "gate", payload={})


@pytest.mark.parametrize(
    "condition",
    [
        {"expr": "event.payload.n + 'a' == 'b'"},
        {"expr": "event.payload.n"},
        {"expr": "event.payload.absent"},
        {"script": "event.payload.absent"},
        {"script": "event.payload.n"},
        {"script": "1 / 0"},
        {"script": "while True: pass"},
    ],
)
async def test_condition_that_fails_on_a_gate_is_a_failure_and_its_policy_holds(
    system: System, condition: dict[str, str]
) -> None:
    options: dict[str, Any] = {"timeout_ms": 1500}
    await system.register("strict", "None", pre=True, condition=condition, options=options)
    with pytest.raises(DeniedError, match=r"condition|took longer"):
        await intercepted(system, "strict", payload={"n": 1})
    await system.register(
        "lenient", "None", pre=True, condition=condition, options={**options, "failure_policy": "allow"}
    )
    assert await intercepted(system, "lenient", payload={"n": 1}) is None
    assert (await system.run_of("lenient", "failed")).error


async def test_disabled_and_unknown_hooks_are_not_asked(system: System) -> None:
    await system.register("gate", '{"deny": "x"}', pre=True)
    await system.ask("enable", EnableHook(name="gate", enabled=False), HookView)
    assert await intercepted(system, "gate", "never-was") is None


async def test_replica_that_lags_behind_does_not_let_pass(system: System) -> None:
    request = InterceptRequest(event=msgspec.Raw(b"{}"), hooks=["gate"], revision=1_000_000)
    with pytest.raises(UnavailableError):
        await system.ask("intercept", request, InterceptReply)


async def test_slow_post_scripts_do_not_delay_a_pre_hook(system: System) -> None:
    await system.register("gate", "None", pre=True, on="Custom.guarded")
    for n in range(3):
        await system.register(f"slow-{n}", "import time\ntime.sleep(2)", options={"concurrency": 8})
    await asyncio.gather(*(system.append() for _ in range(8)))
    async with asyncio.timeout(1.5):
        assert await intercepted(system, "gate", type="Custom.guarded") is None


async def told(system: System) -> bool:
    return bool(await system.log("Hook.Executed"))
