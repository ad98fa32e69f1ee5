"""Both clients against a real HTTP server that plays the gateway."""

import inspect
import json
import time
from itertools import islice

import pytest
from starlette.responses import PlainTextResponse

from crucible_client import AsyncCrucible, Crucible, UnreachableError, aio, sync
from crucible_client.response import raise_for
from crucible_core.errors import (
    ConflictError,
    CrucibleError,
    DeniedError,
    InvalidError,
    LimitedError,
    NotFoundError,
    UnauthenticatedError,
    UnavailableError,
)
from tests.client.playing import BROKEN, KEY, Played, trouble


def test_append_and_read_back(crucible: Crucible) -> None:
    appended = crucible.events.append("Memory.Created", {"id": "mem_1"}, entity="mem_1", correlation_id="cor_x")
    assert (appended.sequence, appended.correlation_id) == (1, "cor_x")
    event = crucible.events.get(appended.id or "")
    assert (event.dotted, event.data.payload, event.metadata.entity) == ("Memory.Created", {"id": "mem_1"}, "mem_1")
    assert crucible.events.trace("cor_x").count == 1
    assert [kind.type for kind in crucible.events.types()] == ["Memory.Created"]


def test_types_are_registered_shown_and_deleted(crucible: Crucible, played: Played) -> None:
    made = crucible.events.register_type("Order.Placed", {"required": ["id"]}, aliases=["new_order"])
    assert (made.type, made.version, made.registered, made.aliases) == ("Order.Placed", "1.0.0", True, ["new_order"])
    assert json.loads(played.requests[-1][3]) == {
        "type": "Order.Placed",
        "schema": {"required": ["id"]},
        "version": "1.0.0",
        "aliases": ["new_order"],
    }
    assert crucible.events.get_type("Order.Placed").schemas == {"1.0.0": {"required": ["id"]}}
    crucible.events.delete_type("Order.Placed")
    with pytest.raises(NotFoundError):
        crucible.events.get_type("Order.Placed")


def test_redact_returns_what_is_left(crucible: Crucible) -> None:
    appended = crucible.events.append("Memory.Created", {"id": "mem_1"})
    left = crucible.events.redact(appended.id or "", reason="asked for")
    assert left == crucible.events.get(appended.id or "")
    assert left.data.payload == {}
    assert left.redacted
    assert (left.redacted.by, left.redacted.reason) == ("user:alice", "asked for")
    with pytest.raises(NotFoundError):
        crucible.events.redact("evt_nobody")


def test_list_goes_through_all_pages(crucible: Crucible, played: Played) -> None:
    for number in range(7):
        crucible.events.append("Custom.Counted", {"number": number})
    crucible.events.append("Custom.Other")
    found = crucible.events.list("Custom.Counted", page_size=3)
    assert [event.data.payload["number"] for event in found] == list(range(7))
    page = crucible.events.page(page_size=5)
    assert (len(page.items), page.next_cursor) == (5, "5")


def test_a_page_is_asked_for_when_it_is_reached(crucible: Crucible, played: Played) -> None:
    for _ in range(4):
        played.append({"type": "Custom.Counted"})
    assert len(list(islice(crucible.events.list(page_size=2), 2))) == 2
    assert len(played.requests) == 1


def test_batch_tells_which_events_were_refused(crucible: Crucible, played: Played) -> None:
    batch = crucible.events.append_batch([{"type": "Custom.A"}, {"type": "Memory.Denied"}, {"type": "Custom.B"}])
    assert batch.committed == 2
    assert [item.sequence for item in batch.results] == [1, None, 2]
    refused = batch.results[1].exception
    assert isinstance(refused, DeniedError)
    assert refused.extra == {"hook": "guard", "reason": "no title"}


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "not_found", NotFoundError),
        (409, "conflict", ConflictError),
        (422, "invalid", InvalidError),
        (500, "brand_new", CrucibleError),
    ],
)
def test_problem_becomes_its_error(
    crucible: Crucible, played: Played, status: int, code: str, kind: type[CrucibleError]
) -> None:
    played.troubles = [trouble(status, code)]
    with pytest.raises(kind) as caught:
        crucible.hooks.list()
    assert type(caught.value) is kind


def test_refused_fields_come_with_the_error(crucible: Crucible) -> None:
    with pytest.raises(InvalidError) as caught:
        crucible.events.append("Memori.Created")
    assert [(error.path, error.suggestion) for error in caught.value.errors] == [("type", "Memory.Created")]


def test_wrong_key_is_refused(played: Played) -> None:
    with Crucible(played.url, "ck_wrong", environ={}) as crucible, pytest.raises(UnauthenticatedError):
        crucible.hooks.list()


def test_settings_come_from_the_environment(played: Played) -> None:
    with Crucible(environ={"CRUCIBLE_URL": f"{played.url}/", "CRUCIBLE_API_KEY": KEY}) as crucible:
        assert crucible.hooks.list() == []


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidError, match="not an http"):
        Crucible("localhost:8080", environ={})


@pytest.mark.parametrize("url", ["http://[::1", "http://h:99999", "http://h:x", "http://a\x00b", "https://:8"])
def test_a_url_that_does_not_read_is_refused(url: str) -> None:
    with pytest.raises(InvalidError, match="is no URL"):
        Crucible(url, environ={})


@pytest.mark.parametrize("id", ["", ".", ".."])
def test_an_id_that_would_name_another_path_is_refused(crucible: Crucible, played: Played, id: str) -> None:
    for call in (crucible.events.get, crucible.hooks.delete, crucible.webhooks.get, crucible.worlds.delete):
        with pytest.raises(InvalidError, match="is no id"):
            call(id)
    assert played.requests == []


def test_an_answer_that_is_not_ours_is_said_so(crucible: Crucible, played: Played) -> None:
    played.troubles = [PlainTextResponse("hello", 200), PlainTextResponse("nginx", 418)]
    with pytest.raises(CrucibleError, match="not what this version"):
        crucible.hooks.list()
    with pytest.raises(CrucibleError, match="HTTP 418 without a problem"):
        crucible.hooks.list()


def test_nothing_listening_is_unreachable() -> None:
    with Crucible("http://127.0.0.1:9", environ={}) as crucible, pytest.raises(UnreachableError) as caught:
        crucible.hooks.list()
    assert not caught.value.sent


@pytest.mark.parametrize(
    "failure", [trouble(503, "unavailable", "0"), trouble(429, "limited", "0"), BROKEN], ids=["503", "429", "broken"]
)
def test_append_is_sent_again_with_the_same_key(crucible: Crucible, played: Played, failure: PlainTextResponse) -> None:
    played.after_commit = [failure]
    appended = crucible.events.append("Custom.Once")
    keys = {headers["idempotency-key"] for _, _, headers, _ in played.requests}
    assert (appended.sequence, appended.duplicate) == (1, True)
    assert (len(played.requests), len(keys), len(played.log)) == (2, 1, 1)


def test_batch_is_sent_again_with_the_same_ids(crucible: Crucible, played: Played) -> None:
    played.after_commit = [BROKEN]
    batch = crucible.events.append_batch([{"type": "Custom.A"}, {"type": "Custom.B", "id": "evt_mine"}])
    assert [item.duplicate for item in batch.results] == [True, True]
    assert len(played.log) == 2


def test_what_may_not_arrive_twice_is_not_sent_again(crucible: Crucible, played: Played) -> None:
    played.after_commit = [trouble(503, "unavailable", "0")]
    with pytest.raises(UnavailableError):
        crucible.webhooks.create("ci", "https://example.com", ["*"])
    assert len(played.requests) == 1


def test_retries_end(crucible: Crucible, played: Played) -> None:
    played.troubles = [trouble(503, "unavailable", "0")] * 5
    with pytest.raises(UnavailableError) as caught:
        crucible.hooks.list()
    assert (len(played.requests), caught.value.extra["retry_after"]) == (3, 0.0)


def test_a_long_retry_after_is_the_callers_to_wait(crucible: Crucible, played: Played) -> None:
    played.troubles = [trouble(429, "limited", "3600")]
    with pytest.raises(LimitedError) as caught:
        crucible.hooks.list()
    assert caught.value.extra["retry_after"] == 3600.0


@pytest.mark.parametrize("form", ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"])
def test_retry_after_may_be_a_date(form: str) -> None:
    at = time.time() + 30
    for body in (b"", b'{"type": "limited"}'):
        with pytest.raises(LimitedError) as caught:
            raise_for(429, {"retry-after": time.strftime(form, time.gmtime(at))}, body)
        assert 25 < caught.value.extra["retry_after"] <= 30


def test_hooks(crucible: Crucible, played: Played) -> None:
    assert crucible.hooks.add({"name": "a hook"}).name == "a hook"
    assert crucible.hooks.add(markdown="---\nname: x\n---\nü").definition == {
        "name": "from-file",
        "text": "---\nname: x\n---\nü",
    }
    assert crucible.hooks.disable("a hook").state == "disabled"
    assert crucible.hooks.enable("a hook").state == "active"
    assert [run.run_id for run in crucible.hooks.runs("a hook", page_size=2)] == ["run_0", "run_1", "run_2"]
    assert crucible.hooks.test("a hook", payload={"id": "x"}).verdict == "live"
    assert json.loads(played.requests[-1][3]) == {"dry_run": True, "payload": {"id": "x"}}
    crucible.hooks.delete("a hook")
    assert [hook.name for hook in crucible.hooks.list()] == ["from-file"]


def test_names_stay_in_their_segment(crucible: Crucible, played: Played) -> None:
    with pytest.raises(CrucibleError):
        crucible.hooks.get("../events/stream?x")
    assert played.requests[0][1] == "/api/v1/hooks/..%2Fevents%2Fstream%3Fx"


def test_webhooks(crucible: Crucible) -> None:
    made = crucible.webhooks.create("ci", "https://example.com", ["Memory.*", {"event_type": "File.Created"}])
    assert made.secret == "whsec_c2VjcmV0"
    assert [entry.event_type for entry in made.event_filters] == ["Memory.*", "File.Created"]
    assert [attempt.status for attempt in crucible.webhooks.attempts(made.id, page_size=1)] == [200, 200, 200]
    assert crucible.webhooks.test(made.id).steps[0].detail == "dry_run=False"
    assert crucible.webhooks.test(made.id, dry_run=True).steps[0].detail == "dry_run=True"
    assert crucible.webhooks.get("ci").id == made.id
    assert crucible.webhooks.update(made.id, {"name": "cd", "paused": True}).name == "cd"
    assert crucible.webhooks.disable(made.id).state == "disabled"
    assert crucible.webhooks.enable(made.id, missed="skip").state == "active"
    assert crucible.webhooks.rotate_secret(made.id, grace_s=60).secret == "whsec_bmV3"
    assert crucible.events.resend("evt_1", made.id).delivery_id == "dlv_9"
    crucible.webhooks.delete(made.id)
    assert crucible.webhooks.list() == []


def test_memory(crucible: Crucible) -> None:
    written = crucible.memory.create("Clocks tick", tags=["#time"], links=[{"target": "Lamport"}])
    memory = crucible.memory.get(written.id)
    assert (memory.content, memory.tags, memory.links[0].target) == ("Clocks tick", ["#time"], "Lamport")
    assert crucible.memory.update(written.id, tags=["#t"], expected_sequence=memory.sequence).sequence == 2
    with pytest.raises(ConflictError):
        crucible.memory.update(written.id, tags=[], expected_sequence=memory.sequence)
    assert [found.score for found in crucible.memory.query("tick", limit=5)] == [0.5]
    crucible.memory.delete(written.id, expected_sequence=2)
    with pytest.raises(NotFoundError):
        crucible.memory.get(written.id)


def test_worlds_and_rooms(crucible: Crucible, played: Played) -> None:
    assert crucible.worlds.create("acme", description="Ours").description == "Ours"
    assert [world.id for world in crucible.worlds.list(page_size=1)] == ["acme", "default"]
    crucible.rooms.create("acme", "lab")
    assert [room.id for room in crucible.rooms.list("acme")] == ["main", "lab"]
    crucible.rooms.delete("acme", "lab")
    assert [room.id for room in crucible.worlds.get("acme").rooms] == ["main"]
    crucible.worlds.delete("acme", purge=True)
    assert played.requests[-1][:2] == ("DELETE", "/api/v1/worlds/acme")
    with pytest.raises(NotFoundError):
        crucible.worlds.get("acme")


def test_retention(crucible: Crucible) -> None:
    before = crucible.retention.get()
    assert (before.rules, before.default) == ([], "30d")
    after = crucible.retention.put([{"type": "Task.*", "keep": "12h"}], expected_revision=before.revision)
    assert crucible.retention.get() == after
    with pytest.raises(ConflictError):
        crucible.retention.put(after.rules, expected_revision=before.revision)
    assert crucible.retention.put(after.rules).rules == after.rules


async def test_async_client_does_the_same(async_crucible: AsyncCrucible, played: Played) -> None:
    for number in range(3):
        await async_crucible.events.append("Custom.Counted", {"number": number})
    found = [event.data.payload["number"] async for event in async_crucible.events.list(page_size=2)]
    assert found == [0, 1, 2]
    played.troubles = [trouble(503, "unavailable", "0"), trouble(404, "not_found")]
    with pytest.raises(NotFoundError):
        await async_crucible.memory.get("mem_x")
    written = await async_crucible.memory.create("x")
    assert (await async_crucible.memory.get(written.id)).content == "x"


async def test_async_client_is_unreachable_too() -> None:
    async with AsyncCrucible("http://127.0.0.1:9", environ={}) as crucible:
        with pytest.raises(UnreachableError):
            await crucible.hooks.list()


@pytest.mark.parametrize(
    "name", ["Events", "Replays", "Hooks", "Webhooks", "Memory", "Worlds", "Rooms", "Retention", "Losses"]
)
def test_both_clients_offer_the_same(name: str) -> None:
    one, other = getattr(sync, name), getattr(aio, f"Async{name}")
    public = [member for member in vars(one) if not member.startswith("_")]
    assert public == [member for member in vars(other) if not member.startswith("_")]
    for member in public:
        mine, theirs = inspect.signature(getattr(one, member)), inspect.signature(getattr(other, member))
        assert list(mine.parameters) == list(theirs.parameters)
        assert getattr(one, member).__doc__
