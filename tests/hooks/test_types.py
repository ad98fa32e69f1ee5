"""Hooks on event types that users register while they run."""

import asyncio
from typing import Any

import pytest

from crucible_core.access import OPERATOR
from crucible_core.errors import DeniedError, InvalidError
from crucible_core.protocol import parts
from crucible_core.protocol.events import DescribedType, RegisteredType, RegisterType
from crucible_core.protocol.parts import Check, GetRequest
from crucible_kit.rpc import call

from .conftest import System, until

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "amount": {"type": "number", "minimum": 1}},
    "required": ["id"],
    "additionalProperties": False,
}


async def register(system: System, name: str = "Order.Placed", **fields: Any) -> None:
    request = RegisterType(type=name, schema=SCHEMA, **fields)
    await call(system.bus, OPERATOR, "events", "register_type", request, RegisteredType)


async def delete(system: System, name: str = "Order.Placed") -> None:
    await call(system.bus, OPERATOR, "events", "delete_type", GetRequest(id=name), DescribedType)


async def test_hook_on_a_registered_type_fires(system: System) -> None:
    await register(system, aliases=["new_order"])
    for number, name in enumerate(("Order.Placed", "order_placed", "new_order", "Order.*")):
        registered = await system.register(f"h{number}", "log('fired')", on=name, filter={"amount": {"gt": 5}})
        assert registered.state == "active"
    await system.append("Order.Placed", {"id": "o_1", "amount": 7})
    await system.append("Order.Placed", {"id": "o_2", "amount": 3})
    for number in range(4):
        await system.run_of(f"h{number}", "ok")
        assert len(await system.runs(f"h{number}")) == 1


async def test_unknown_types_and_fields_are_refused(system: System) -> None:
    await register(system)
    for on, filter, near in (("Order.Placd", {}, "Order.Placed"), ("Order.Placed", {"amont": 1}, "amount")):
        with pytest.raises(InvalidError) as caught:
            await system.register("h", "log('x')", on=on, filter=filter)
        assert caught.value.errors[0].suggestion == near


async def test_wildcard_hears_of_types_that_come_later(system: System) -> None:
    await register(system)
    await system.register("h", "log('fired')", on="Order.*")
    await register(system, "Order.Sent")
    await system.append("Order.Sent", {"id": "o_1"})
    await system.run_of("h", "ok")


async def test_hook_is_inert_without_its_type_and_wakes_with_it(system: System) -> None:
    await register(system)
    await system.register("h", "log('fired')", on="Order.Placed")
    await delete(system)
    assert (await system.view("h")).state.startswith("inert: trigger.events.0.type: there is no event type")
    await register(system)
    assert (await system.view("h")).state == "active"
    await system.append("Order.Placed", {"id": "o_1"})
    await system.run_of("h", "ok")


async def test_hooks_find_their_types_at_a_start(stopped: System) -> None:
    async with stopped.running():
        await register(stopped)
        await stopped.register("h", "log('fired')", on="Order.Placed")
    await stopped.append("Order.Placed", {"id": "o_1"})
    async with stopped.running():
        assert (await stopped.view("h")).state == "active"
        await stopped.run_of("h", "ok")


async def test_hook_file_that_came_before_its_type(system: System) -> None:
    text = """
        ---
        name: early
        trigger:
          events: [{type: Order.Placed}]
        action: {type: Script, script: "log('fired')"}
        ---
    """
    system.write("early.md", text)

    async def inert() -> bool:
        return (await system.state("early") or "").startswith("inert")

    async def active() -> bool:
        return await system.state("early") == "active"

    await until(inert)
    await register(system)
    await until(active)
    await system.append("Order.Placed", {"id": "o_1"})
    await system.run_of("early", "ok")


async def test_pre_hook_judges_a_registered_type(system: System) -> None:
    await register(system)
    script = "{'deny': 'too much'} if event['payload'].get('amount', 0) > 5 else {'payload': {'id': 'changed'}}"
    await system.register("gate", script, on="Order.Placed", pre=True)
    done = await system.append("Order.Placed", {"id": "o_1", "amount": 2})
    assert (await system.event(done.id or "")).data.payload == {"id": "changed"}
    with pytest.raises(DeniedError, match="too much"):
        await system.append("Order.Placed", {"id": "o_1", "amount": 7})


async def test_payload_that_a_hook_makes_is_validated_too(system: System) -> None:
    await register(system)
    await system.register("gate", "{'payload': {'id': 5}}", on="Order.Placed", pre=True)
    with pytest.raises(InvalidError, match="as a hook changed it") as caught:
        await system.append("Order.Placed", {"id": "o_1"})
    assert caught.value.errors[0].path == "payload.id"


async def test_hook_on_registered_types_is_tried_out(system: System) -> None:
    await register(system)
    for on in ("Order.Placed", "Order.*"):
        await system.register("h", "log(event['payload']['id'])", on=on, filter={"amount": 7})
        check: Check = await system.ask("test", parts.TestRequest(id="h"), Check)
        assert check.verdict == "live"
        assert check.steps[1].detail == "Order.Placed"


async def test_hook_on_what_nobody_emits_is_active_and_says_so(system: System) -> None:
    view = await system.register("waits", "1", on="Flow.Completed")
    assert (view.state, view.warnings) == (
        "active",
        ["nobody emits Flow.Completed yet: reserved, unless a client sends it"],
    )
    assert (await system.register("hears", "1", on="Custom.x")).warnings == []


async def test_a_hook_that_is_changed_while_its_type_is_away_gets_nothing_from_before(system: System) -> None:
    await register(system)
    await system.register("h", "log('fired')", on="Order.Placed")
    await delete(system)
    await system.append("Custom.note")
    await system.register("h", "log('fired')", on="Custom.note")
    last = await system.append("Custom.note")
    await system.run_of("h", "ok")
    await asyncio.sleep(0.3)
    assert [run.event_id for run in await system.runs("h")] == [last.id]
