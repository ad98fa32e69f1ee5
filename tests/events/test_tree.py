from typing import Any

import pytest
from starlette.applications import Starlette

from crucible_core.access import OPERATOR
from crucible_core.envelope import Data, Event, Metadata, Source, decode, encode
from crucible_core.errors import NotFoundError
from crucible_core.limits import TREE_LEVELS
from crucible_core.protocol.events import TraceNode, TraceReply, TraceRequest
from crucible_events.query.tree import build, select_shown
from crucible_events.store import Sized
from crucible_kit.rpc import call

from .conftest import Asker, new


def event(n: int, cause: int | None, id: int | None = None) -> tuple[int, bytes]:
    metadata = Metadata(
        id=f"evt_{n if id is None else id}",
        timestamp=f"2026-11-21T10:00:00.{n:06}Z",
        source=Source("system", "t"),
        actor="t",
        correlation_id="cor_1",
        causation_id=None if cause is None else f"evt_{cause}",
    )
    return n, encode(Event("Custom", Data("x", {}), metadata))


def shape(nodes: list[TraceNode]) -> list[Any]:
    return [(decode(bytes(node.event)).sequence, shape(node.effects)) for node in nodes]


def test_effects_hang_under_their_cause() -> None:
    roots = build([event(1, None), event(2, 1), event(3, 1), event(4, 2), event(5, None)])
    assert shape(roots) == [(1, [(2, [(4, [])]), (3, [])]), (5, [])]
    assert roots[0].effects[1].elapsed_ms == pytest.approx(0.002)


def test_orphans_and_circles_are_roots() -> None:
    assert shape(build([event(1, 9), event(2, 3), event(3, 2), event(4, 4)])) == [(1, []), (2, [(3, [])]), (4, [])]


def test_an_id_that_comes_twice_is_shown_twice() -> None:
    assert shape(build([event(1, None), event(2, None, id=1), event(3, 1)])) == [(1, [(3, [])]), (2, [])]


def test_depth_is_bounded_and_nothing_is_lost() -> None:
    def walk(nodes: list[TraceNode], level: int) -> list[int]:
        return [depth for node in nodes for depth in (level, *walk(node.effects, level + 1))]

    levels = walk(build([event(n, n - 1) for n in range(1, 900)]), 1)
    assert (len(levels), max(levels)) == (899, TREE_LEVELS)


def test_what_fits_is_shown() -> None:
    assert select_shown([Sized(n, 1000) for n in range(1, 2000)], 10_000_000) == list(range(1, 1001))
    assert select_shown([Sized(n, 1000) for n in range(1, 10)], 3500) == [1, 2, 3]
    assert select_shown([Sized(1, 1000)], 10) == [1]


async def test_a_trace_is_read_from_the_log(service: Starlette, ask: Asker) -> None:
    cause = await ask.one(new(correlation_id="cor_a"))
    await ask.append(
        new(correlation_id="cor_a", causation_id=cause.id, hop=1), new(), new(correlation_id="cor_a", causation_id="x")
    )
    asked = TraceRequest(correlation_id="cor_a", min_sequence=4)
    reply = await call(ask.bus, OPERATOR, "events", "trace", asked, TraceReply)
    assert (reply.count, reply.truncated) == (3, False)
    assert shape(reply.roots) == [(1, [(2, [])]), (4, [])]
    with pytest.raises(NotFoundError):
        await call(ask.bus, OPERATOR, "events", "trace", TraceRequest(correlation_id="cor_b"), TraceReply)
