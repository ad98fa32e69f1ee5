"""Appends of several requests in one: nobody waits for what another's event needs."""

from typing import Any

from crucible_core.access import OPERATOR
from crucible_core.protocol.events import Appended, AppendReply, AppendRequest, NewEvent
from crucible_kit.rpc import call

from .conftest import Asker, Running, new
from .test_prehooks import bucket, definition, deny, hooks, put

__all__ = ["bucket", "put"]


async def apart(ask: Asker, *events: NewEvent) -> list[Appended]:
    request = AppendRequest(events=list(events), apart=True)
    return (await call(ask.bus, OPERATOR, "events", "append", request, AppendReply)).results


async def test_events_that_need_nothing_more_are_committed_in_order(running: Running, ask: Asker) -> None:
    async with running():
        results = await apart(ask, *(new(payload={"n": n}) for n in range(40)))
        assert [result.sequence for result in results] == [*range(1, 41)]
        assert [event.data.payload for event in await ask.found(limit=100, min_sequence=40)] == [
            {"n": n} for n in range(40)
        ]


async def test_an_event_of_a_pre_hook_is_left(running: Running, ask: Asker, put: Any) -> None:
    await put("gate", definition(filter={"n": 5}))
    async with running(), hooks(ask.bus, deny) as asked:
        one, hooked, other = await apart(ask, *(new(payload={"n": n}) for n in (4, 5, 6)))
        assert (one.sequence, hooked, other.sequence) == (1, Appended(alone=True), 2)
        assert not asked
        denied = await ask.one(new(payload={"n": 5}))
        assert denied.error is not None
        assert denied.error.code == "denied"


async def test_an_event_whose_type_or_world_is_news_is_left(running: Running, ask: Asker) -> None:
    async with running():
        results = await apart(ask, new("Memory.Creatd"), new(world_id="nowhere"), new(), new(actor=""))
        assert [result.alone for result in results] == [True, True, False, False]
        assert results[2].sequence == await ask.last() == 1
        assert results[3].error is not None


async def test_an_event_that_the_log_has_is_answered_with_it(running: Running, ask: Asker) -> None:
    async with running():
        first = await ask.one(new(idempotency_key="k"))
        again, other, twice = await apart(
            ask, new(idempotency_key="k"), new(idempotency_key="o"), new(idempotency_key="o")
        )
        assert (again.id, again.sequence, again.duplicate) == (first.id, first.sequence, True)
        assert (other.sequence, other.duplicate) == (2, False)
        assert (twice.sequence, twice.duplicate) == (2, True)
