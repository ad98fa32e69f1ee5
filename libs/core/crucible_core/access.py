"""Who asks, and what he may see and change: principals, their grants, and the scope that these come to. Pure.

A principal is not told of anything that it may not see. Whoever shows an event asks `Scope.sees`; who shows the
record of a handler, a replay or a world asks `Principal.may_see`, and who changes it `Principal.check_owns`.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from crucible_core.envelope import DEFAULT_WORLD, Event, Source, SourceKind
from crucible_core.errors import ForbiddenError, InvalidError
from crucible_core.filters.filter import Predicate, compile_filter
from crucible_core.protocol.parts import Message, Owned
from crucible_core.subjects import token

OPERATOR_ID = "user:admin"
"""To whom belongs what has no owner: files, and the records of versions before there were owners."""
ADMIN = "admin"
"""The right to all."""
_ANY = "*"
_MOST_PLACES = 20
ABOUT_WORLDS = frozenset(f"System.{what}{event}" for what in ("World", "Room") for event in ("Created", "Deleted"))
"""They are in the default world, and their entity is the world that they are about."""
OF_ALL_WORLDS = ABOUT_WORLDS | {
    f"System.{event}" for event in ("Started", "Shutdown", "Error", "ConfigChanged", "AccessDenied")
}
"""Events that the installation tells of itself in the default world: for nobody who sees but some of the worlds."""
_SOURCES: dict[str, SourceKind] = {"user": "user", "agent": "agent", "external": "external"}


class Grant(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Events of some worlds, rooms and types (canonical names, or `Memory.*`) that `where`, a filter over the whole
    event, accepts. `*` is any."""

    worlds: tuple[str, ...] = (_ANY,)
    rooms: tuple[str, ...] = (_ANY,)
    types: tuple[str, ...] = (_ANY,)
    where: dict[str, Any] = {}


class View(msgspec.Struct, frozen=True):
    """One grant, compiled; None is any. `accepts` is None where the place and the type say all."""

    worlds: frozenset[str] | None
    rooms: frozenset[str] | None
    types: frozenset[str] | None
    where: dict[str, Any]
    accepts: Predicate | None

    @property
    def whole(self) -> bool:
        """True if it has all of its worlds."""
        return self.rooms is None and self.types is None and self.accepts is None

    def has_place(self, world: str | None, room: str | None) -> bool:
        """None is any one of them."""
        return (self.worlds is None or world is None or world in self.worlds) and (
            self.rooms is None or room is None or room in self.rooms
        )

    def has_type(self, dotted: str) -> bool:
        return self.types is None or dotted in self.types or f"{dotted.partition('.')[0]}.*" in self.types

    def may_show(self, world: str, room: str, dotted: str, entity: str | None) -> bool:
        """True if it shows an event, `where` apart."""
        if not self.has_place(world, room) or not self.has_type(dotted):
            return False
        if self.worlds is None or dotted not in OF_ALL_WORLDS:
            return True
        return dotted in ABOUT_WORLDS and entity in self.worlds


def _meeting(names: frozenset[str] | None, wanted: str | None) -> list[str]:
    if wanted is not None:
        return [_token(wanted)] if names is None or wanted in names else []
    return [_ANY] if names is None else [*map(_token, names)]


def _token(name: str | None) -> str:
    return _ANY if name is None else token(name)


def _compiled(grant: Grant) -> View | None:
    """None for one that this version does not understand: it gives nothing."""
    try:
        accepts = compile_filter(grant.where) if grant.where else None
    except InvalidError:
        return None
    return View(_names(grant.worlds), _names(grant.rooms), _names(grant.types), grant.where, accepts)


def _names(given: tuple[str, ...]) -> frozenset[str] | None:
    return None if _ANY in given else frozenset(given)


class Scope:
    """The events that somebody may see or change: those of any one of the grants. Without a limit where they are
    None."""

    def __init__(self, grants: Iterable[Grant] | None) -> None:
        compiled = map(_compiled, [Grant()] if grants is None else grants)
        self.views = tuple(view for view in compiled if view is not None)
        self.everything = any(view.worlds is None and view.whole for view in self.views)

    @property
    def worlds(self) -> frozenset[str] | None:
        """The worlds of which it has something; None is any."""
        named = [view.worlds for view in self.views]
        return None if None in named else frozenset[str]().union(*(worlds for worlds in named if worlds is not None))

    def sees(self, event: Event) -> bool:
        """`event` has its payload decoded."""
        if self.everything:
            return True
        about, dotted = event.metadata, event.dotted
        return any(
            view.may_show(about.world_id, about.room_id, dotted, about.entity)
            and (view.accepts is None or view.accepts(event))
            for view in self.views
        )

    def may_show(self, world: str | None, room: str | None, dotted: str) -> bool:
        """True if it has events of a place and type: for records of what was done with one. None is not known."""
        if self.everything:
            return True
        if world is None or room is None:
            return False
        return any(view.may_show(world, room, dotted, None) for view in self.views)

    def has_place(self, world: str | None, room: str | None = None) -> bool:
        """True if there is something to see there; None is any."""
        return any(view.has_place(world, room) for view in self.views)

    def has_whole(self, world: str) -> bool:
        return any(view.whole and view.has_place(world, None) for view in self.views)

    def tokens(self, world: str | None, room: str | None) -> list[tuple[str, str]]:
        """The worlds and rooms, as tokens of subjects, where all is that may be seen of a world and room (None: any).
        Nothing is in two of them, as a consumer's filters demand; not all that is in them may be seen."""
        whole = (_token(world), _token(room))
        if self.everything:
            return [whole]
        found = {
            (one, other)
            for view in self.views
            for one in _meeting(view.worlds, world)
            for other in _meeting(view.rooms, room)
        }
        apart = not any(_ANY in pair for pair in found) or len({one for one, _ in found} - {_ANY}) == len(found)
        return sorted(found) if 0 < len(found) <= _MOST_PLACES and (apart or len(found) == 1) else [whole]


EVERYTHING = Scope(None)
NOTHING = Scope(())
Sight = Callable[[], Scope]
"""The present access of a principal, which may be less than a moment ago."""


class Principal(msgspec.Struct, frozen=True, dict=True, omit_defaults=True):
    """Who asks: `user:…`, `agent:…` or `service:…`. Without `grants` it may do all."""

    id: str
    grants: list[Grant] | None = None

    @property
    def admin(self) -> bool:
        return self.grants is None

    @functools.cached_property
    def scope(self) -> Scope:
        return EVERYTHING if self.grants is None else Scope(self.grants)

    @functools.cached_property
    def header(self) -> str:
        """As it goes with a request; see `read_principal`."""
        return msgspec.json.encode(self).decode()

    @property
    def source(self) -> Source:
        kind, _, name = self.id.partition(":")
        return Source(_SOURCES.get(kind, "system"), name)

    @property
    def home(self) -> str:
        """The world that hears of what it registers."""
        worlds = self.scope.worlds
        return DEFAULT_WORLD if worlds is None or DEFAULT_WORLD in worlds else min(worlds, default=DEFAULT_WORLD)

    def owns(self, record: Owned) -> bool:
        return self.admin or record.owner == self.id or (self.id == OPERATOR_ID and not record.owner)

    def may_see(self, record: Owned) -> bool:
        """One's own, and what is for a world of which one may see all."""
        return self.owns(record) or (record.world_id is not None and self.scope.has_whole(record.world_id))

    def check_owns(self, record: Owned, what: str) -> None:
        """Raises ForbiddenError where it may see the record and not change it."""
        if not self.owns(record):
            raise forbidden(ADMIN, f"{what} belongs to somebody else")

    def check_admin(self, what: str) -> None:
        """Raises ForbiddenError for what concerns all worlds."""
        if not self.admin:
            raise forbidden(ADMIN, f"{what} concerns all worlds")


OPERATOR = Principal(OPERATOR_ID)


def is_operators(record: Owned) -> bool:
    return record.owner in ("", OPERATOR_ID)


def service_principal(name: str) -> Principal:
    """A service, where it acts for nobody else."""
    return Principal(f"service:{name}")


def forbidden(required: str, reason: str) -> ForbiddenError:
    """`required` is the scope that was missing, as `events:write`."""
    return ForbiddenError(f"{reason}: that takes {required}", required=required)


_read = msgspec.json.Decoder(Principal)


@functools.lru_cache(maxsize=1024)
def read_principal(header: str) -> Principal:
    """Who asks, by the header of a request; the same one for the same header. Raises ForbiddenError."""
    try:
        return _read.decode(header)
    except msgspec.DecodeError:
        raise ForbiddenError("the request does not say who asks") from None


class KeyRecord(Message):
    """An API key under the SHA-256 (hex) of its text, which is never stored. It is its `principal`'s, by default the
    user of its name, and has the `grants`; all rights where they are None. `owner` is who made it."""

    id: str
    name: str
    created_at: str
    disabled: bool = False
    principal: str = ""
    grants: list[Grant] | None = None
    owner: str = OPERATOR_ID

    def holder(self) -> Principal:
        return Principal(self.principal or f"user:{self.name}", self.grants)
