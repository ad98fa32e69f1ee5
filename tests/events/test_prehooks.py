import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette

from crucible_core.envelope import decode
from crucible_core.errors import DeniedError, NotFoundError
from crucible_core.protocol.hooks import HookRecord, InterceptReply, InterceptRequest
from crucible_core.types.catalogue import CATALOGUE
from crucible_events.append.prehooks import PreHooks
from crucible_events.append.stamp import Defaults, stamp
from crucible_events.append.validation import Payloads
from crucible_kit.buckets import Bucket, open_bucket
from crucible_kit.nats.bus import Bus
from crucible_kit.principals import open_principals
from crucible_kit.rpc import Context, Endpoint, serve
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import open_telemetry
from crucible_kit.types import open_types

from .conftest import Asker, Running, eventually, new

Decide = Callable[[InterceptRequest], Awaitable[InterceptReply]]


def definition(type: str = "Custom.*", timing: str = "Pre", policy: str = "deny", **more: Any) -> dict[str, Any]:
    return {
        "trigger": {"events": [{"type": type, **more}], "timing": timing},
        "action": {"type": "Script", "script": "None"},
        "options": {"failure_policy": policy, "timeout_ms": 300},
    }


@pytest.fixture
async def bucket(bus: Bus) -> Bucket:
    return await open_bucket(bus, "hooks")


@pytest.fixture
def put(bucket: Bucket, ask: Asker) -> Callable[..., Awaitable[None]]:
    async def put(name: str, definition: dict[str, Any] | None, enabled: bool = True) -> None:
        await bucket.put(name, msgspec.json.encode(HookRecord(name=name, definition=definition, enabled=enabled)))

    return put


@contextlib.asynccontextmanager
async def hooks(bus: Bus, decide: Decide) -> AsyncIterator[list[InterceptRequest]]:
    """A hooks service of one function, and what it was asked."""
    asked: list[InterceptRequest] = []

    async def intercept(request: InterceptRequest, context: Context) -> InterceptReply:
        asked.append(request)
        return await decide(request)

    async with serve(bus, "hooks", {"intercept": Endpoint(InterceptRequest, intercept)}, open_telemetry("t", {})):
        yield asked


async def allow(request: InterceptRequest) -> InterceptReply:
    return InterceptReply()


async def deny(request: InterceptRequest) -> InterceptReply:
    raise DeniedError("no", hook="gate", reason="no")


def change(payload: Any) -> Decide:
    async def changed(request: InterceptRequest) -> InterceptReply:
        return InterceptReply(payload=msgspec.Raw(msgspec.json.encode(payload)))

    return changed


async def test_an_event_that_no_hook_watches_is_not_asked_about(running: Running, ask: Asker, put: Any) -> None:
    await put("other", definition("Memory"))
    await put("filtered", definition(filter={"n": {"gt": 5}}))
    await put("post", definition(timing="Post"))
    await put("disabled", definition(), enabled=False)
    await put("inert", None)
    async with running(), hooks(ask.bus, deny) as asked:
        assert (await ask.one(new(payload={"n": 5}))).sequence == 1
        assert not asked


async def test_an_allowed_event_is_committed_as_it_was(running: Running, ask: Asker, put: Any) -> None:
    await put("gate", definition())
    async with running(), hooks(ask.bus, allow) as asked:
        done = await ask.one(new(payload={"n": 5}))
        assert (await ask.get(done.id or "")).data.payload == {"n": 5}
        assert asked[0].hooks == ["gate"]
        assert asked[0].revision == 1
        assert decode(bytes(asked[0].event)).metadata.id == done.id


async def test_a_denied_event_is_not_committed(running: Running, ask: Asker, put: Any) -> None:
    await put("gate", definition(filter={"n": 5}))
    async with running(), hooks(ask.bus, deny):
        denied, passed = await ask.append(new(payload={"n": 5}), new(payload={"n": 6}))
        assert denied.error is not None
        assert (denied.error.code, denied.error.extra) == ("denied", {"hook": "gate", "reason": "no"})
        assert passed.sequence == 1
        with pytest.raises(DeniedError) as error:
            await ask.append(new(payload={"n": 6}), new(payload={"n": 5}), atomic=True)
        assert error.value.extra == {"hook": "gate", "reason": "no"}
        assert [field.path for field in error.value.errors] == ["events.1"]
        assert await ask.last() == 1


async def test_a_changed_payload_is_committed_in_its_place(running: Running, ask: Asker, put: Any) -> None:
    await put("gate", definition("Memory", event="Created"))
    async with running(), hooks(ask.bus, change({"id": "mem_2", "content": "y"})):
        done = await ask.one(new("Memory.Created", {"id": "mem_1", "content": "x"}))
        event = await ask.get(done.id or "")
        assert event.data.payload == {"id": "mem_2", "content": "y"}
        assert event.metadata.entity == "mem_2"


async def test_a_changed_payload_is_validated(running: Running, ask: Asker, put: Any) -> None:
    await put("gate", definition("Memory"))
    async with running(), hooks(ask.bus, change({"content": "y"})):
        done = await ask.one(new("Memory.Created", {"id": "mem_1", "content": "x"}))
        assert done.error is not None
        assert (done.error.code, done.error.errors[0].path) == ("invalid", "payload.id")
        assert "hook" in done.error.detail
        assert await ask.last() == 0


async def test_without_hooks_a_gate_keeps_its_events_out(running: Running, ask: Asker, put: Any) -> None:
    await put("gate", definition(filter={"n": {"gt": 5}}))
    await put("advice", definition(policy="allow"))
    async with running():
        passed, kept = await ask.append(new(payload={"n": 5}), new(payload={"n": 6}))
        assert passed.error is None
        assert kept.error is not None
        assert kept.error.code == "unavailable"


async def test_what_comes_after_an_event_that_waits_for_its_decision_waits_too(
    running: Running, ask: Asker, put: Any
) -> None:
    """Otherwise it would be before it once the request comes again."""
    await put("gate", definition("Custom.gated"))
    async with running():
        before, gated, after, other, without = await ask.append(
            new(entity="e"), new("Custom.gated", entity="e"), new(entity="e"), new(entity="o"), new()
        )
        assert [one.error is None for one in (before, other, without)] == [True] * 3
        assert [one.error and one.error.code for one in (gated, after)] == ["unavailable"] * 2


async def test_hooks_that_are_too_slow_are_as_good_as_away(running: Running, ask: Asker, put: Any) -> None:
    async def sleep(request: InterceptRequest) -> InterceptReply:
        await asyncio.sleep(4)
        return InterceptReply()

    await put("gate", definition())
    async with running(), hooks(ask.bus, sleep):
        done = await ask.one(new())
        assert done.error is not None
        assert done.error.code == "unavailable"


async def test_an_error_of_hooks_is_no_permission(running: Running, ask: Asker, put: Any) -> None:
    async def fail(request: InterceptRequest) -> InterceptReply:
        raise NotFoundError("what hook?")

    await put("gate", definition())
    async with running(), hooks(ask.bus, fail):
        done = await ask.one(new())
        assert done.error is not None
        assert done.error.code == "unavailable"


async def test_a_hook_is_watched_as_soon_as_it_is_registered(
    service: Starlette, ask: Asker, put: Any, bucket: Bucket
) -> None:
    async def outcome() -> str | None:
        done = await ask.one(new())
        return done.error.code if done.error else None

    async def becomes(expected: str | None) -> None:
        async def has_become() -> bool:
            return await outcome() == expected

        await eventually(has_become)

    assert await outcome() is None
    await put("gate", definition())
    await becomes("unavailable")
    await put("gate", definition(), enabled=False)
    await becomes(None)
    await put("gate", definition())
    await becomes("unavailable")
    await bucket.delete("gate")
    await becomes(None)


async def test_a_hook_that_cannot_be_read_denies(running: Running, ask: Asker, bucket: Bucket) -> None:
    await bucket.put("newer", msgspec.json.encode(HookRecord(name="newer", definition=definition("Memory.Invented"))))
    async with running():
        tagged = new("Memory.Tagged", {"id": "mem_1", "tag": "#x"})
        done, other, record = await ask.append(tagged, new(), new("Hook.Executed", {"hook": "h", "run_id": "run_1"}))
        assert done.error is not None
        assert (done.error.code, done.error.extra["hook"]) == ("denied", "newer")
        assert (other.error, record.error) == (None, None)  # what it cannot have meant


PRE = '"definition": {"trigger": {"timing": "Pre", "events": [%s]}}'


@pytest.mark.parametrize(
    ("record", "denied"),
    [
        ("{", {"Custom.note", "Task.Completed"}),
        ("[]", {"Custom.note", "Task.Completed"}),
        ('{"name": "gate", "enabled": "perhaps"}', {"Custom.note", "Task.Completed"}),
        ('{"enabled": "perhaps", ' + PRE % '{"type": "Task.Completed", "filter": 7}' + "}", {"Task.Completed"}),
        ('{"enabled": "perhaps", ' + PRE % '{"type": "Task", "event": "Invented"}' + "}", {"Task.Completed"}),
        ('{"enabled": "perhaps", ' + PRE % '{"type": 7}' + "}", {"Custom.note", "Task.Completed"}),
        ('{"enabled": "perhaps", "world_id": "acme", ' + PRE % '{"type": "*"}' + "}", set()),
        ('{"enabled": "perhaps", "definition": {"trigger": {"timing": "Post"}}}', set()),
        ('{"enabled": false, "definition": 7}', set()),
    ],
)
async def test_a_record_that_cannot_be_read_denies_what_it_may_watch_and_is_told(
    running: Running, ask: Asker, bucket: Bucket, record: str, denied: set[str]
) -> None:
    await bucket.put("gate", record.encode())
    async with running() as app:
        events = {"Custom.note": new(), "Task.Completed": new("Task.Completed", {"id": "t"})}
        outcomes = dict(zip(events, await ask.append(*events.values()), strict=True))
        assert {type for type, outcome in outcomes.items() if outcome.error is not None} == denied
        for outcome in outcomes.values():
            assert outcome.error is None or "its record cannot be read" in outcome.error.detail
        troubles = [trouble for trouble in app.state.troubles() if trouble.code == "hooks"]
        assert [("crucible hooks delete gate" in trouble.message) for trouble in troubles] == [True] * bool(
            denied or "acme" in record
        )
        await bucket.delete("gate")
        await eventually(lambda: nobody(app))
        assert (await ask.one(new())).error is None


async def nobody(app: Starlette) -> bool:
    return not app.state.troubles()


async def test_run_records_are_seen_only_by_hooks_that_name_them(running: Running, ask: Asker, put: Any) -> None:
    await put("all", definition("*"))
    async with running(), hooks(ask.bus, deny):
        record = new("Hook.Executed", {"hook": "h", "run_id": "run_1"})
        assert (await ask.one(record)).error is None
        assert (await ask.one(new())).error is not None
    await put("audit", definition("Hook"))
    async with running(), hooks(ask.bus, deny) as asked:
        assert (await ask.one(record)).error is not None
        assert asked[0].hooks == ["audit"]


async def test_gates_hold_at_any_depth(running: Running, ask: Asker, put: Any) -> None:
    await put("gate", definition())
    async with running(), hooks(ask.bus, deny):
        assert (await ask.one(new(hop=8))).error is not None


async def test_nothing_passes_before_the_hooks_are_known(bus: Bus, bucket: Bucket, put: Any) -> None:
    await put("gate", definition())
    principals = await open_principals(bus, 1)
    prehooks = PreHooks(bus, bucket, await open_types(bus, 1), principals, Metrics("events"))
    waiting = asyncio.create_task(prehooks.ready())
    await asyncio.sleep(0)
    assert not waiting.done()
    followed = [asyncio.create_task(view.follow()) for view in (prehooks.view, principals.view)]
    await waiting
    stamped = stamp(new(), Defaults("evt_1", "2026-11-21T10:00:00.000000Z", "cor_1"), Payloads(lambda: CATALOGUE))
    assert [hook.name for hook in prehooks.match(stamped.event)] == ["gate"]
    for following in followed:
        following.cancel()
