"""Live streams: resumed with no hole and no repeat, and given up when it is time."""

import json
from contextlib import aclosing, closing
from itertools import islice

import pytest

from crucible_client import AsyncCrucible, Crucible, Notice, UnreachableError
from crucible_client.subscription import Subscription
from crucible_core.errors import CrucibleError, InvalidError, UnavailableError
from tests.client.playing import Played, trouble


def fill(played: Played, count: int) -> None:
    for number in range(count):
        played.append({"type": "Custom.Counted", "payload": {"number": number}})


def test_stream_from_the_start(crucible: Crucible, played: Played) -> None:
    fill(played, 3)
    with closing(crucible.events.stream("Custom.*", filter={"number": {"gte": 0}}, start="start")) as stream:
        assert [event.sequence for event in islice(stream, 3)] == [1, 2, 3]
    assert "type=Custom.%2A&filter=%7B" in played.requests[0][1] or played.requests[0][1] == "/api/v1/events/stream"
    assert played.requests[0][2]["accept"] == "text/event-stream"


def test_a_stream_that_ends_is_resumed_after_the_last_event(crucible: Crucible, played: Played) -> None:
    fill(played, 6)
    played.stream_limit = 2
    with closing(crucible.events.stream(start="start")) as stream:
        assert [event.sequence for event in islice(stream, 6)] == [1, 2, 3, 4, 5, 6]
    assert [headers.get("last-event-id") for _, _, headers, _ in played.requests] == [None, "2", "4"]


def test_a_stream_survives_that_the_gateway_is_away(crucible: Crucible, played: Played) -> None:
    fill(played, 3)
    played.stream_limit = 1
    with closing(crucible.events.stream(start="start")) as stream:
        assert next(stream).sequence == 1
        played.troubles = [trouble(503, "unavailable", "0"), trouble(429, "limited", "0")]
        assert next(stream).sequence == 2


async def test_async_stream(async_crucible: AsyncCrucible, played: Played) -> None:
    fill(played, 5)
    played.stream_limit = 2
    found = []
    async for event in async_crucible.events.stream(start=1):
        found.append(event.sequence)
        if len(found) == 4:
            break
    assert found == [2, 3, 4, 5]


def test_a_refused_stream_raises(crucible: Crucible, played: Played) -> None:
    played.troubles = [trouble(422, "invalid")]
    with pytest.raises(InvalidError):
        next(crucible.events.stream("Nothing"))


def test_an_error_in_the_stream_raises(crucible: Crucible, played: Played) -> None:
    played.frames = ['event: error\ndata: {"type": "https://x/invalid", "detail": "no such filter"}\n\n']
    with pytest.raises(InvalidError, match="no such filter"):
        next(crucible.events.stream())


def test_a_gateway_that_never_was_there_raises_at_once() -> None:
    with Crucible("http://127.0.0.1:9", environ={}) as crucible, pytest.raises(UnreachableError):
        next(crucible.events.stream())


def frame(sequence: int) -> str:
    metadata = (
        '{"id": "evt_1", "timestamp": "", "source": {"kind": "user", "id": "a"}, "actor": "a", "correlation_id": "c"}'
    )
    event = f'{{"type": "Custom", "data": {{"event": "X", "payload": {{}}}}, "metadata": {metadata}}}'
    return f'{{"type": "event", "sequence": {sequence}, "event": {event}}}'


def test_repeats_are_dropped_and_a_gap_is_told() -> None:
    told: list[Notice] = []
    subscription = Subscription((), None, "now", None, on_notice=told.append)
    subscription.opened()
    assert subscription.take("caught_up", '{"type": "caught_up", "sequence": 4}') is None
    assert dict(subscription.call().params)["from"] == "4"
    event = subscription.take("message", frame(5))
    assert event is not None
    assert event.sequence == 5
    assert subscription.take("message", frame(5)) is None
    assert subscription.take("gap", '{"dropped": 3}') is None
    subscription.failed(UnavailableError("gone"), 0.0)
    assert told == [Notice("caught_up", sequence=4), Notice("gap", dropped=3), Notice("away", detail="gone")]
    assert subscription.call().headers["last-event-id"] == "5"


def test_a_warning_is_told_once() -> None:
    told: list[Notice] = []
    subscription = Subscription((), None, "now", None, on_notice=told.append)
    for _ in range(2):
        subscription.take("", '{"type": "subscribed", "sequence": 7, "warnings": ["nobody emits it"]}')
    subscription.take("subscribed", '{"type": "subscribed"}')
    assert told == [Notice("warned", detail="nobody emits it")]


def test_a_bare_event_is_taken_too() -> None:
    subscription = Subscription((), None, "now", None)
    bare = '{"type": "Custom", "data"' + frame(7).split('"data"', 1)[1][:-1]
    event = subscription.take("event", f'{bare[:-1]}, "sequence": 7}}')
    assert event is not None
    assert (event.dotted, event.sequence) == ("Custom.X", 7)


def test_patience_ends() -> None:
    subscription = Subscription((), None, "now", 10.0)
    subscription.opened()
    away = UnavailableError("away")
    assert [subscription.failed(away, float(at)) for at in (0, 1, 2)] == [0.2, 0.4, 0.8]
    with pytest.raises(UnavailableError):
        subscription.failed(away, 11.0)
    subscription.opened()
    assert subscription.failed(away, 12.0) == 0.2


def test_the_place_of_a_subscription_is_known_before_its_first_event() -> None:
    subscription = Subscription(("Custom.*",), {"n": 1}, "now", None, world_id="mars")
    assert subscription.take("", '{"type": "subscribed", "subscription": "sub_1", "sequence": 7}') is None
    assert json.loads(subscription.message()) == {
        "action": "subscribe",
        "filters": [{"event_type": "Custom.*", "filter": {"n": 1}}],
        "from": 7,
        "world_id": "mars",
    }


def test_a_broken_subscription_goes_on_after_the_last_event(crucible: Crucible, played: Played) -> None:
    fill(played, 5)
    played.stream_limit = 2
    told: list[Notice] = []
    with closing(crucible.events.subscribe("Custom.*", from_="start", on_notice=told.append)) as events:
        assert [event.sequence for event in islice(events, 5)] == [1, 2, 3, 4, 5]
    assert [wish["from"] for wish in played.wishes] == ["start", 2, 4]
    assert {notice.kind for notice in told} == {"away"}


async def test_async_subscription(async_crucible: AsyncCrucible, played: Played) -> None:
    fill(played, 3)
    played.stream_limit = 1
    found = []
    async with aclosing(async_crucible.events.subscribe(from_=1)) as events:
        async for event in events:
            found.append(event.sequence)
            if len(found) == 2:
                break
    assert found == [2, 3]


def test_a_subscription_with_a_wrong_key_raises(played: Played) -> None:
    with Crucible(played.url, "wrong", environ={}) as crucible, pytest.raises(CrucibleError):
        next(crucible.events.subscribe())


def test_a_refused_subscription_raises(crucible: Crucible, played: Played) -> None:
    played.frames = ['{"type": "error", "error": {"type": "https://x/invalid", "detail": "no such type"}}']
    with pytest.raises(InvalidError, match="no such type"):
        next(crucible.events.subscribe("Nothing"))
