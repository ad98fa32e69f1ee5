"""Principals and what they may see: pure matching."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.access import (
    EVERYTHING,
    OPERATOR,
    Grant,
    KeyRecord,
    Principal,
    Scope,
    is_operators,
    read_principal,
    service_principal,
)
from crucible_core.envelope import Data, Event, Metadata, Source
from crucible_core.errors import ForbiddenError
from crucible_core.protocol.parts import Owned
from crucible_core.subjects import Names

WORLDS, ROOMS = ("default", "acme", "wörld"), ("main", "lab")
TYPES = ("Memory.Created", "Memory.Deleted", "File.Created", "Custom.Note", "System.WorldCreated", "System.Error")


def event(world: str = "acme", room: str = "main", dotted: str = "Custom.Note", entity: str | None = None) -> Event:
    about = Metadata(
        id="evt_1",
        timestamp="2026-01-01T00:00:00.000000Z",
        source=Source("user", "a"),
        actor="user:a",
        correlation_id="c",
        world_id=world,
        room_id=room,
        entity=entity,
    )
    category, _, name = dotted.partition(".")
    return Event(category, Data(name, {"n": 1}), about)


def some(names: tuple[str, ...], *more: str) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from((*names, *more)), min_size=1, max_size=2, unique=True).map(tuple)


grants = st.builds(
    Grant,
    worlds=some(WORLDS, "*"),
    rooms=some(ROOMS, "*"),
    types=some(TYPES, "*", "Memory.*", "System.*"),
    where=st.sampled_from([{}, {}, {"n": 1}, {"n": 2}, {"event.metadata.actor": "user:a"}]),
)
scopes = st.lists(grants, max_size=3).map(Scope)
events = st.builds(
    event, st.sampled_from(WORLDS), st.sampled_from(ROOMS), st.sampled_from(TYPES), st.sampled_from([None, *WORLDS])
)


def seen(grant: Grant, one: Event) -> bool:
    """The same in plain words."""
    about, category = one.metadata, f"{one.type}.*"
    wheres: dict[str, Any] = {"n": one.data.payload["n"], "event.metadata.actor": about.actor}
    if not all(wheres[name] == value for name, value in grant.where.items()):
        return False
    if one.type == "System" and "*" not in grant.worlds and one.data.event == "Error":
        return False
    if one.dotted == "System.WorldCreated" and not {"*", about.entity} & {*grant.worlds}:
        return False
    return bool(
        {about.world_id, "*"} & {*grant.worlds}
        and {about.room_id, "*"} & {*grant.rooms}
        and {one.dotted, category, "*"} & {*grant.types}
    )


@given(st.lists(grants, max_size=3), events)
def test_any_grant_that_holds_is_enough(given: list[Grant], one: Event) -> None:
    assert Scope(given).sees(one) == any(seen(grant, one) for grant in given)
    assert EVERYTHING.sees(one)


@given(scopes, events, st.sampled_from([None, *WORLDS]), st.sampled_from([None, *ROOMS]))
def test_subjects_hold_all_that_is_seen_and_do_not_overlap(
    scope: Scope, one: Event, world: str | None, room: str | None
) -> None:
    names, about = Names("p"), one.metadata
    patterns = [names.events_of(world=world, room=room) for world, room in scope.tokens(world, room)]
    subject = names.event(about.world_id, about.room_id, one.type, one.data.event, about.entity)
    matching = [one for one in patterns if re.fullmatch(one.replace(".", r"\.").replace("*", r"[^.]+"), subject)]
    assert len(matching) <= 1
    if world in (None, about.world_id) and room in (None, about.room_id) and scope.sees(one):
        assert matching


@given(scopes, events)
def test_what_is_seen_is_somewhere(scope: Scope, one: Event) -> None:
    about = one.metadata
    if scope.sees(one):
        assert scope.has_place(about.world_id, about.room_id)
        assert scope.has_place(about.world_id)
        assert scope.has_place(None, about.room_id)
        assert scope.worlds is None or about.world_id in scope.worlds
    if scope.has_whole(about.world_id) and one.dotted not in ("System.WorldCreated", "System.Error"):
        assert scope.sees(one)


def test_no_grant_shows_nothing_and_one_that_is_not_understood_gives_none() -> None:
    for scope in (Scope([]), Scope([Grant(where={"n": {"of a newer version": 1}})])):
        assert (scope.everything, scope.sees(event()), scope.has_place(None), scope.worlds) == (
            False,
            False,
            False,
            frozenset(),
        )
    assert Scope([Grant()]).everything
    assert Scope(None).everything


@given(st.text(min_size=1), st.none() | st.lists(grants, max_size=2))
def test_a_principal_goes_with_a_request_and_is_the_same_each_time(id: str, given: list[Grant] | None) -> None:
    sent = Principal(id, given)
    received = read_principal(sent.header)
    assert (received.id, received.grants, received.admin) == (sent.id, sent.grants, given is None)
    assert read_principal(sent.header) is received


@pytest.mark.parametrize("header", ["", "{}", "user:admin", '{"id": 1}', "[]", '{"id": "x", "grants": 1}'])
def test_who_does_not_say_who_he_is_is_refused(header: str) -> None:
    with pytest.raises(ForbiddenError):
        read_principal(header)


def test_a_record_belongs_to_its_owner_and_is_seen_by_its_world() -> None:
    bea = Principal("agent:bea", [Grant(worlds=("acme",)), Grant(worlds=("other",), rooms=("lab",))])
    mine, acmes, others = Owned(owner="agent:bea"), Owned(world_id="acme"), Owned(world_id="other", owner="user:x")
    nobodys = Owned()
    assert [bea.owns(one) for one in (mine, acmes, others, nobodys)] == [True, False, False, False]
    assert [bea.may_see(one) for one in (mine, acmes, others, nobodys)] == [True, True, False, False]
    assert all(OPERATOR.owns(one) for one in (mine, acmes, others, nobodys))
    limited = Principal(OPERATOR.id, [])
    assert [limited.owns(one) for one in (mine, nobodys)] == [False, True]
    assert [is_operators(one) for one in (nobodys, Owned(owner=OPERATOR.id), mine)] == [True, True, False]
    bea.check_owns(mine, "it")
    with pytest.raises(ForbiddenError) as refused:
        bea.check_owns(acmes, "it")
    assert refused.value.extra == {"required": "admin"}
    with pytest.raises(ForbiddenError):
        bea.check_admin("it")


def test_a_key_is_its_principals() -> None:
    before = KeyRecord(id="key_1", name="ci", created_at="")
    assert (before.holder().id, before.holder().admin) == ("user:ci", True)
    since = KeyRecord(id="key_1", name="ci", created_at="", principal="agent:ci", grants=[])
    assert (since.holder().id, since.holder().admin) == ("agent:ci", False)


def test_who_acts_and_where_it_is_told() -> None:
    assert service_principal("hooks").source == Source("system", "hooks")
    assert Principal("agent:x:y").source == Source("agent", "x:y")
    homes = [Principal("a", [Grant(worlds=worlds)]).home for worlds in (("b", "a"), ("b", "default"), ("*",))]
    assert [*homes, Principal("a", []).home] == ["a", "default", "default", "default"]
