"""Events in two roles: `append` needs no index of its own, `query` has it, and each replica may be killed."""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
from starlette.applications import Starlette

from crucible_core.access import OPERATOR
from crucible_core.errors import ConflictError, UnavailableError, UnknownOutcomeError
from crucible_core.protocol.events import RedactRequest
from crucible_core.protocol.worlds import ChangeWorld, WorldMade
from crucible_events.app import create_app
from crucible_events.settings import Settings
from crucible_kit.rpc import call

from .conftest import Asker, eventually, new, until

Role = Callable[..., contextlib.AbstractAsyncContextManager[Starlette]]


@pytest.fixture
def role(settings: Settings, tmp_path: Path) -> Role:
    """Starts a replica of a role, in a directory of its own."""

    @contextlib.asynccontextmanager
    async def start(name: str, number: int = 0) -> AsyncIterator[Starlette]:
        own = {"events_role": name, "data_dir": str(tmp_path / f"{name}{number}"), "duplicate_window_s": 0.2}
        app = create_app(msgspec.structs.replace(settings, **own))
        async with app.router.lifespan_context(app):
            await until(lambda: not app.state.ready())
            yield app

    return start


async def test_append_is_ready_without_an_index(role: Role, ask: Asker, tmp_path: Path) -> None:
    async with role("append"):
        assert (await ask.one(new())).sequence
        assert (await ask.one(new("Memory.Accessed", {"id": "m"}, expected_sequence=0))).error is None
        with pytest.raises(UnavailableError):
            await ask.query()
    assert not (tmp_path / "append0").exists()


async def test_what_comes_again_waits_for_an_index(role: Role, ask: Asker) -> None:
    """Whether an id or a key is new, only an index tells."""
    keyed = new(idempotency_key="k", fingerprint="f")
    async with role("append"):
        assert (await ask.one(new())).sequence
        with pytest.raises(UnavailableError):
            await ask.one(keyed)
        async with role("query"):
            first = await ask.one(keyed)
            await eventually(lambda: _is_known(ask, first.id or ""))
            again = await ask.one(keyed)
    assert (again.id, again.sequence, again.duplicate) == (first.id, first.sequence, True)


async def _is_known(ask: Asker, event_id: str) -> bool:
    return (await ask.get(event_id)).metadata.id == event_id


async def test_an_index_that_goes_away_in_the_middle_leaves_nothing_open(role: Role, ask: Asker) -> None:
    """Whoever took the look-up says nothing more: nothing is done by looking, so it may come again."""
    async with role("append"):
        leave = await ask.bus.listen(ask.bus.names.rpc("events", "known"), lambda message: None, "events")
        with pytest.raises(UnavailableError) as caught:
            await ask.one(new(idempotency_key="k"))
        assert not isinstance(caught.value, UnknownOutcomeError)
        await leave()


async def test_query_replicas_answer_without_one_that_appends(role: Role, ask: Asker) -> None:
    async with role("query"):
        async with role("append"):
            first = await ask.one(new())
        assert (await ask.get(first.id or "")).sequence == first.sequence
        with pytest.raises(UnavailableError):
            await ask.one(new())


async def test_two_replicas_of_each_role_do_what_one_process_does(role: Role, ask: Asker) -> None:
    async with role("append"), role("append", 1), role("query"), role("query", 1):
        cause = await ask.one(new(entity="n", id="evt_cause", expected_sequence=0))
        with pytest.raises(ConflictError):
            await ask.append(new(entity="n", expected_sequence=0), atomic=True)
        effect = await ask.one(
            new(entity="n", causation_id="evt_cause", outside=True, expected_sequence=cause.sequence)
        )
        assert (await ask.get(effect.id or "")).metadata.hop == 1
        assert (await ask.one(new(entity="n", id="evt_cause"))).duplicate
        made = await call(ask.bus, OPERATOR, "events", "create_world", ChangeWorld(id="w"), WorldMade)
        assert made.created
        inside = await ask.one(new(world_id="w"))
        await call(ask.bus, OPERATOR, "events", "delete_world", ChangeWorld(id="w", purge=True), bytes)
        for _ in range(6):
            assert inside.id not in [event.metadata.id for event in await ask.found(type=["Custom.*"])]
        await call(ask.bus, OPERATOR, "events", "redact", RedactRequest(id="evt_cause"), bytes)
        for _ in range(6):
            assert (await ask.get("evt_cause")).redacted
