"""Chains: an event that names its cause is one effect deeper than that, in its chain, and ends where chains end."""

import pytest
from starlette.applications import Starlette

from crucible_core.protocol.events import Appended, NewEvent

from .conftest import Asker, Replicas, new


def sent(**fields: object) -> NewEvent:
    """An event as a client sends it."""
    return new(outside=True, **fields)


async def place(ask: Asker, appended: Appended) -> tuple[int, str]:
    assert appended.error is None, appended.error
    about = (await ask.get(appended.id or "")).metadata
    assert about.correlation_id == appended.correlation_id
    return about.hop, about.correlation_id


async def test_event_that_names_its_cause_continues_its_chain(service: Starlette, ask: Asker) -> None:
    first = await ask.one(sent(correlation_id="cor_mine"))
    second = await ask.one(sent(causation_id=first.id))
    third = await ask.one(sent(causation_id=second.id))
    other = await ask.one(sent(causation_id=second.id, correlation_id="cor_other"))
    assert [await place(ask, event) for event in (first, second, third, other)] == [
        (0, "cor_mine"),
        (1, "cor_mine"),
        (2, "cor_mine"),
        (2, "cor_other"),
    ]


@pytest.mark.parametrize("cause", ["evt_of_another_system", "evt_01kaj3x5vae8jv6jq0f1d8c2hm", "urn:order:7"])
async def test_cause_that_the_log_does_not_have_is_kept_and_changes_nothing(
    service: Starlette, ask: Asker, cause: str
) -> None:
    appended = await ask.one(sent(causation_id=cause))
    about = (await ask.get(appended.id or "")).metadata
    assert (about.causation_id, about.hop) == (cause, 0)
    assert about.correlation_id == appended.correlation_id == f"cor_{about.id[4:]}"


async def test_chain_of_a_client_ends_where_chains_end(service: Starlette, ask: Asker) -> None:
    last = await ask.one(sent())
    for hop in range(1, 9):
        last = await ask.one(sent(causation_id=last.id))
        assert (await place(ask, last))[0] == hop
    refused = await ask.one(sent(causation_id=last.id))
    assert refused.error is not None
    assert (refused.error.code, refused.error.errors[0].path) == ("invalid", "hop")
    assert "chains end at 8" in refused.error.detail


async def test_cause_may_stand_before_it_in_the_same_request(service: Starlette, ask: Asker) -> None:
    first = await ask.one(sent(correlation_id="cor_1"))
    events = [sent(id="evt_b", causation_id=first.id), sent(id="evt_c", causation_id="evt_b"), sent(id="evt_d")]
    for atomic in (False, True):
        batch = [*events, sent(causation_id="evt_d")] if not atomic else [sent(id="evt_e", causation_id="evt_c")]
        results = await ask.append(*batch, atomic=atomic)
        found = [await place(ask, result) for result in results]
        if atomic:
            assert found == [(3, "cor_1")]
        else:
            assert found[:2] == [(1, "cor_1"), (2, "cor_1")]
            assert found[2][0] == 0
            assert found[3] == (1, found[2][1])


async def test_what_says_itself_how_deep_it_is_keeps_that(service: Starlette, ask: Asker) -> None:
    first = await ask.one(sent())
    for event, hop in (
        (sent(causation_id=first.id, hop=5), 5),
        (sent(causation_id=first.id, react=False), 0),
        (new(causation_id=first.id), 0),  # a service's own
    ):
        assert (await place(ask, await ask.one(event)))[0] == hop


async def test_cause_is_known_on_every_replica_at_once(replicas: Replicas, ask: Asker) -> None:
    async with replicas(2):
        last = await ask.one(sent(correlation_id="cor_1"))
        for hop in range(1, 9):
            last = await ask.one(sent(causation_id=last.id))
            assert (await place(ask, last))[0] == hop
