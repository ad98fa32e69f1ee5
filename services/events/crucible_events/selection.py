"""Which events of the log a replay is about: the subjects to read, and what is asked of each message read."""

from collections.abc import Sequence

import msgspec

from crucible_core.access import EVERYTHING, Scope
from crucible_core.catalogue import Catalogue
from crucible_core.envelope import decode
from crucible_core.errors import FieldError, InvalidError
from crucible_core.matcher import CompiledFilters, compile_filters
from crucible_core.protocol.shared import TypeFilter
from crucible_core.subjects import Names, token
from crucible_kit.bus import Message

MAX_FILTERS = 100
_MOST_SUBJECTS = 20
"""Past so many types whole categories are read."""
_WHOLE = "*"


class Selection(msgspec.Struct, frozen=True):
    """`kinds` are (category, event) tokens of subjects, None where all that is read is wanted; `filters` is None where
    the type says everything, so that no event need be decoded. `scope` is what whoever asked for the replay may see."""

    subjects: list[str]
    kinds: frozenset[tuple[str, str]] | None
    filters: CompiledFilters | None
    scope: Scope = EVERYTHING

    def picks(self, message: Message) -> bool:
        """Raises `msgspec.DecodeError` for a message that is no event, where that matters."""
        if self.filters is not None:
            decoded = decode(message.data, message.sequence)
            return self.filters.matches(decoded) and self.scope.sees(decoded)
        if self.kinds is None:
            return True
        category, event = message.subject.split(".")[-3:-1]
        return (category, event) in self.kinds or (category, _WHOLE) in self.kinds


def select(
    filters: Sequence[TypeFilter],
    world_id: str | None,
    room_id: str | None,
    names: Names,
    catalogue: Catalogue,
    scope: Scope = EVERYTHING,
) -> Selection:
    """Raises InvalidError with the path of each mistake (`filters.0.event_type`)."""
    if not 1 <= len(filters) <= MAX_FILTERS:
        message = f"must have 1 to {MAX_FILTERS} filters; without any, every event is replayed"
        raise InvalidError(f"filters: {message}", errors=[FieldError("filters", message)])
    compiled = compile_filters(filters, at="filters", catalogue=catalogue)
    kinds = _kinds(compiled.types)
    read = kinds
    if kinds is not None and len(kinds) > _MOST_SUBJECTS:
        read = frozenset((category, _WHOLE) for category, _ in kinds)
    subjects = [
        names.events_of(*kind, world=world, room=room)
        for world, room in scope.tokens(world_id, room_id)
        for kind in sorted(read or {(_WHOLE, _WHOLE)})
    ]
    decoded = not scope.everything or any(wanted.filter for wanted in filters)
    return Selection(subjects, None if read == kinds else kinds, compiled if decoded else None, scope)


def _kinds(types: frozenset[str] | None) -> frozenset[tuple[str, str]] | None:
    """No two overlap: a consumer's filter subjects must not."""
    if types is None:
        return None
    parts = [name.partition(".") for name in types]
    whole = {category for category, _, event in parts if event == _WHOLE}
    return frozenset((category, _WHOLE if category in whole else token(event)) for category, _, event in parts)
