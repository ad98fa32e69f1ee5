"""The event types that an import needs and this system does not know, found before anything is sent."""

from collections import Counter
from collections.abc import Iterable

import msgspec

from crucible_client import Crucible
from crucible_core.catalogue import CATALOGUE
from crucible_core.errors import FieldError, InvalidError

from .ndjson import Line

_SHOWN = 20


class _Data(msgspec.Struct):
    event: str


class _Metadata(msgspec.Struct):
    version: str | None = None


class _Event(msgspec.Struct):
    """An event as exports write it; one in the short form does not decode."""

    type: str
    data: _Data
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


_decoder = msgspec.json.Decoder(_Event)


class Lexicon:
    """The registered types, asked for once, and only where a line is of a type that is not built in."""

    def __init__(self, crucible: Crucible) -> None:
        self._crucible = crucible
        self._known: dict[str, list[str] | None] | None = None
        """The versions of a type by each of its names; None where any will do."""

    def check(self, lines: Iterable[Line]) -> None:
        """Raises InvalidError that names each type or version that is missing."""
        missing: Counter[str] = Counter()
        first: dict[str, int] = {}
        for line in lines:
            if (lack := self._lack(line.raw)) is not None:
                missing[lack] += 1
                first.setdefault(lack, line.number)
        if not missing:
            return
        errors = [FieldError(lack, _told(missing[lack], number)) for lack, number in first.items()]
        raise InvalidError(
            "event types of the file are not registered here, and without them the events would not come back in their "
            "order. First, where the file is from: `crucible events types export types.json`; then here: `crucible "
            "events types add types.json`; then import again. Or pass their events over: --skip-unknown",
            errors=errors[:_SHOWN],
        )

    def _lack(self, raw: bytes) -> str | None:
        """The type, or the version of it, that an event would be refused for."""
        try:
            event = _decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeError):
            return None
        name, version = f"{event.type}.{event.data.event}", event.metadata.version
        custom = event.type == "Custom"
        if CATALOGUE.has(name) and not custom:
            return None
        known = self._registered()
        key = name if name in known else name.casefold()
        if key not in known:
            return None if custom else name
        versions = known[key]
        return None if version is None or versions is None or version in versions else f"{name} {version}"

    def _registered(self) -> dict[str, list[str] | None]:
        if self._known is None:
            self._known = {
                name: kind.versions if kind.registered else None
                for kind in self._crucible.events.types()
                for name in (kind.type, *map(str.casefold, kind.aliases))
            }
        return self._known


def _told(count: int, line: int) -> str:
    return f"one event, in line {line}" if count == 1 else f"{count:,} events, the first in line {line}"
