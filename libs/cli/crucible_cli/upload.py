"""Uploads of event files: sent in batches, each outcome counted, refusals named by their lines; missing worlds and
rooms are made first, and missing types found."""

import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import msgspec
from rich.text import Text

from crucible_cli.display import clean
from crucible_cli.errors import explain
from crucible_cli.ndjson import Line, lines, open_input
from crucible_cli.progress import BYTES, progress
from crucible_cli.session import Session
from crucible_client import BatchItem, Crucible
from crucible_client.calls.events import append_lines, line_of
from crucible_core.envelope import DEFAULT_ROOM, DEFAULT_WORLD
from crucible_core.errors import CrucibleError, FieldError, InvalidError, LimitedError, UnavailableError
from crucible_core.limits import ATOMIC_EVENTS
from crucible_core.types.catalogue import CATALOGUE

SHOWN = 10
"""Refusals that are printed."""
_SHOWN_TYPES = 20
"""Missing types that are named."""


class Refusal(msgspec.Struct, frozen=True):
    line: int
    error: dict[str, Any]


class UploadResult(msgspec.Struct):
    """`committed` are new in the log, `duplicates` were there already. `refusals` are the first ones."""

    committed: int = 0
    duplicates: int = 0
    refused: int = 0
    seconds: float = 0.0
    last_line: int = 0
    refusals: list[Refusal] = []

    def count(self, line: Line, item: BatchItem) -> Refusal | None:
        """Counts one outcome; the refusal, if it is one of the first."""
        self.last_line = line.number
        if item.error is None:
            self.duplicates += item.duplicate
            self.committed += not item.duplicate
            return None
        self.refused += 1
        if self.refused > SHOWN:
            return None
        refusal = Refusal(line.number, item.error)
        self.refusals.append(refusal)
        return refusal


def upload_file(
    session: Session,
    name: str,
    what: str,
    *,
    react: bool = True,
    stop_on_error: bool = False,
    make_places: bool = False,
    check_types: bool = False,
) -> UploadResult:
    """Sends the lines of a file (`-`: stdin). Refusals are printed and passed over, or with `stop_on_error` ends it:
    no batch is sent after the one it was in. With `make_places` missing worlds and rooms are made. With `check_types`
    InvalidError is raised for types that are not registered: before anything is sent, or of what cannot be read twice,
    before the batch with the first such event; UnavailableError and LimitedError for a service that stays
    away. An error after events were sent comes with a note of how many are in the log."""
    result = UploadResult()
    began = time.monotonic()
    with (
        open_input(name) as (file, size),
        session.connect() as crucible,
        progress(session.err, what, size, BYTES) as bar,
    ):
        types = TypeCheck(crucible) if check_types else None
        if types is not None and size is not None:
            types.check(lines(file))
            file.seek(0)
            types = None
        try:
            for line, item in _outcomes(crucible, file, react, Places(crucible) if make_places else None, types):
                if isinstance(away := item.exception, UnavailableError | LimitedError):
                    raise away  # what comes after it would be out of order; the same file sent again goes on from here
                refusal = result.count(line, item)
                bar.advance(line.size)
                if refusal is not None:
                    session.err.print(_refusal_line(refusal, item), soft_wrap=True)
                if stop_on_error and result.refused:
                    break
        except (UnavailableError, LimitedError, InvalidError):
            if result.last_line:
                session.note(
                    f"{result.committed + result.duplicates} events, up to line {result.last_line}, are in the log"
                )
            raise
    result.seconds = round(time.monotonic() - began, 3)
    return result


def upload_atomically(session: Session, name: str) -> UploadResult:
    """Sends all lines or none. Raises what they are refused for, by line."""
    began = time.monotonic()
    with open_input(name) as (file, _):
        found: list[Line] = []
        for line in lines(file):
            found.append(line)
            if len(found) > ATOMIC_EVENTS:
                raise InvalidError(f"--atomic takes at most {ATOMIC_EVENTS} events; send them without it, or in parts")
    if not found:
        return UploadResult()
    with session.connect() as crucible:
        try:
            answer = crucible.send(append_lines([line_of(line.raw) for line in found], atomic=True))
        except CrucibleError as error:
            raise _by_line(error, found) from error
    result = UploadResult(seconds=round(time.monotonic() - began, 3))
    for line, item in zip(found, answer.results, strict=True):
        result.count(line, item)
    return result


def upload_view(result: UploadResult) -> Text:
    answered = result.committed + result.duplicates + result.refused
    rate = f"  {result.seconds:.1f} s" + (f"  {answered / result.seconds:,.0f}/s" if result.seconds else "")
    text = Text.assemble((f"{result.committed:,} committed", "bold green" if result.committed else "dim"), "  ")
    text.append(f"{result.duplicates:,} duplicates", "yellow" if result.duplicates else "dim").append("  ")
    return text.append(f"{result.refused:,} refused", "bold red" if result.refused else "dim").append(rate, "dim")


class _NamedPlace(msgspec.Struct):
    world_id: str | None = None
    room_id: str | None = None


class _PlaceLine(_NamedPlace):
    """An event in the short form, which names its place itself, or in the long one."""

    metadata: _NamedPlace | None = None


_place_decoder = msgspec.json.Decoder(_PlaceLine)


class Places:
    """The worlds and rooms that there are by now, asked for once."""

    def __init__(self, crucible: Crucible) -> None:
        self._crucible = crucible
        self._rooms: dict[str, set[str]] = {}

    def prepare(self, line: bytes) -> None:
        """Makes an event's world and room. What is no event, or names what cannot be made, is left to its refusal."""
        try:
            found = _place_decoder.decode(line)
        except (msgspec.DecodeError, UnicodeError):
            return
        named = found.metadata or found
        with contextlib.suppress(InvalidError):
            self._make(named.world_id or DEFAULT_WORLD, named.room_id or DEFAULT_ROOM)

    def _make(self, world: str, room: str) -> None:
        if (world, room) == (DEFAULT_WORLD, DEFAULT_ROOM):
            return
        if not self._rooms:
            self._rooms = {there.id: {one.id for one in there.rooms} for there in self._crucible.worlds.list()}
        if world not in self._rooms:
            made = self._crucible.worlds.create(world)
            self._rooms[world] = {one.id for one in made.rooms}
        if room not in self._rooms[world]:
            self._crucible.rooms.create(world, room)
            self._rooms[world].add(room)


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


class TypeCheck:
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
            if (name := self._missing_type(line.raw)) is not None:
                missing[name] += 1
                first.setdefault(name, line.number)
        if not missing:
            return
        errors = [FieldError(name, _lines_text(missing[name], number)) for name, number in first.items()]
        raise InvalidError(
            "event types of the file are not registered here, and without them the events would not come back in their "
            "order. First, where the file is from: `crucible events types export types.json`; then here: `crucible "
            "events types add types.json`; then import again. Or pass their events over: --skip-unknown",
            errors=errors[:_SHOWN_TYPES],
        )

    def _missing_type(self, raw: bytes) -> str | None:
        """The type, or the version of it, that an event would be refused for."""
        try:
            event = _decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeError):
            return None
        name, version = f"{event.type}.{event.data.event}", event.metadata.version
        custom = event.type == "Custom"
        if CATALOGUE.has(name) and not custom:
            return None
        known = self._registered_versions()
        key = name if name in known else name.casefold()
        if key not in known:
            return None if custom else name
        versions = known[key]
        return None if version is None or versions is None or version in versions else f"{name} {version}"

    def _registered_versions(self) -> dict[str, list[str] | None]:
        if self._known is None:
            self._known = {
                name: kind.versions if kind.registered else None
                for kind in self._crucible.events.types()
                for name in (kind.type, *map(str.casefold, kind.aliases))
            }
        return self._known


def _lines_text(count: int, line: int) -> str:
    return f"one event, in line {line}" if count == 1 else f"{count:,} events, the first in line {line}"


def _outcomes(
    crucible: Crucible, file: BinaryIO, react: bool, places: Places | None, types: TypeCheck | None
) -> Iterator[tuple[Line, BatchItem]]:
    waiting: deque[Line] = deque()

    def raws() -> Iterator[bytes]:
        for line in lines(file):
            if types is not None:
                types.check([line])
            waiting.append(line)
            if places is not None:
                places.prepare(line.raw)
            yield line.raw

    for item in crucible.events.append_many(raws(), react=react):
        yield waiting.popleft(), item


def _by_line(error: CrucibleError, found: Sequence[Line]) -> CrucibleError:
    """The same, whose fields name lines in place of positions."""
    if not error.errors:
        return error
    errors = [msgspec.structs.replace(field, path=_line_path(field, found)) for field in error.errors]
    return type(error)("nothing was committed", errors=errors, **error.extra)


def _line_path(field: FieldError, found: Sequence[Line]) -> str:
    position, _, rest = field.path.partition(".")
    if not position.isdecimal() or int(position) >= len(found):
        return field.path
    return f"line {found[int(position)].number}" + (f": {rest}" if rest else "")


def _refusal_line(refusal: Refusal, item: BatchItem) -> Text:
    error = item.exception
    reason = explain(error).plain.removeprefix("error: ") if error is not None else ""
    return Text.assemble((f"line {refusal.line}: ", "bold red"), clean(reason, 400))
