"""Readers of command-line arguments: JSON, files, stdin, `key=value` pairs and times; and the options of a selection of
events."""

import inspect
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from crucible_cli.files import read_text
from crucible_cli.session import Session
from crucible_client.calls.events import Wanted
from crucible_core.decode import check_keys, decode
from crucible_core.errors import CrucibleError, InvalidError
from crucible_core.limits import GIVEN_BYTES
from crucible_core.text import decode_text
from crucible_core.times import format_time

T = TypeVar("T")

_AGO = re.compile(r"(\d{1,9})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_PAIR = re.compile(r"([A-Za-z_][\w.-]*)(!=|>=|<=|=|~|>|<)(.*)", re.DOTALL)
_OPERATORS = {"!=": "not_equals", ">=": "gte", "<=": "lte", "~": "matches", ">": "gt", "<": "lt"}
_PANEL = "Which events"


def text_of(argument: str, what: str) -> str:
    """The text itself, the content of `@FILE`, or stdin for `-`. A usage error where it cannot be read."""
    if argument == "-":
        return stdin_text(what)
    if not argument.startswith("@"):
        return argument
    try:
        return read_text(Path(argument[1:]).expanduser(), GIVEN_BYTES)
    except RuntimeError as error:
        raise typer.BadParameter(f"{what}: {argument[1:80]} has no home directory") from error
    except InvalidError as error:
        raise typer.BadParameter(f"{what}: {error.detail}") from error


def stdin_text(what: str) -> str:
    """All of stdin. A usage error where it is closed, too long, or no text."""
    if sys.stdin is None:
        raise typer.BadParameter(f"{what}: cannot read stdin: it is closed")
    try:
        data = sys.stdin.buffer.read(GIVEN_BYTES + 1)
        if len(data) > GIVEN_BYTES:
            raise InvalidError(f"stdin is larger than {GIVEN_BYTES // 1024} KiB")
        return decode_text(data)
    except OSError as error:
        raise typer.BadParameter(f"{what}: cannot read stdin: {error.strerror}") from error
    except CrucibleError as error:
        raise typer.BadParameter(f"{what}: {error.detail}") from error


def payload_of(argument: str, what: str) -> dict[str, Any]:
    """A JSON object."""
    return json_of(text_of(argument, what), dict[str, Any], what)


def json_of(text: str, kind: type[T], what: str) -> T:
    """JSON as a `kind`. A usage error where it is none, and where an object in it has a key twice."""
    try:
        return decode(text.encode(errors="surrogateescape"), kind, what=what)
    except CrucibleError as error:
        raise typer.BadParameter(error.detail) from error


def json_object(argument: str | None, what: str) -> dict[str, Any] | None:
    return None if argument is None else payload_of(argument, what)


def fields_of(arguments: Sequence[str], what: str) -> dict[str, Any]:
    """One JSON object (or @FILE, or - for stdin), or `key=value` pairs: a value is JSON where it reads as JSON, else
    text, and a dot in a key goes down."""
    if len(arguments) == 1 and (arguments[0][:1] in ("{", "@", "[") or arguments[0] == "-"):
        return payload_of(arguments[0], what)
    made: dict[str, Any] = {}
    for text in arguments:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{what}: {text[:80]} is neither a JSON object nor key=value")
        *above, last = key.split(".")
        target = made
        for name in above:
            target = target.setdefault(name, {})
            if not isinstance(target, dict):
                raise typer.BadParameter(f"{what}: {key[:80]}: {name} is a value already")
        if last in target:
            raise typer.BadParameter(f"{what}: {key[:80]} is given twice")
        target[last] = _value(value, f"{what}: {key[:80]}")
    return made


def filter_of(arguments: Sequence[str] | None, what: str) -> dict[str, Any] | None:
    """The filter in JSON objects (or @FILE, -) and in pairs such as `n>=3`; all of them must hold."""
    filters = [_one_filter(text, what) for text in arguments or ()]
    return {"$and": filters} if len(filters) > 1 else (filters[0] if filters else None)


def time_of(argument: str | None, now_us: int) -> str | None:
    """`10m`, `2h`, `3d` ago as RFC 3339; anything else as it is. `now_us` is in microseconds."""
    found = _AGO.fullmatch(argument) if argument else None
    if found is None:
        return argument
    return format_time(max(0, now_us - int(found[1]) * _SECONDS[found[2]] * 1_000_000))


def _one_filter(text: str, what: str) -> dict[str, Any]:
    pair = _PAIR.fullmatch(text)
    if pair is None:
        return payload_of(text, what)
    key, operator, value = pair.groups()
    if operator == "=":
        return {key: _value(value, what)}
    return {key: {_OPERATORS[operator]: value if operator == "~" else _value(value, what)}}


def _value(text: str, what: str) -> Any:
    """JSON, else the text itself."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text
    try:
        check_keys(text.encode(), what, value=value)
    except CrucibleError as error:
        raise typer.BadParameter(error.detail) from error
    return value


def _option(*names: str, help: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_PANEL)


Types = Annotated[list[str] | None, _option("--type", "-t", help="A type, alias or wildcard; repeat for more.")]
Filters = Annotated[
    list[str] | None,
    _option("--filter", "-f", help="key=value, key~regex, key>=3 …, or a filter as a JSON object, @FILE or - (stdin)."),
]
World = Annotated[str | None, _option("--world", help="The world.")]
Room = Annotated[str | None, _option("--room", help="The room.")]


class Selection(msgspec.Struct, frozen=True):
    """A selection of events, as the client takes it."""

    types: list[str]
    fields: Wanted


def with_selection(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `_read_selection` in place of its parameter `selection`."""
    options = inspect.signature(_read_selection).parameters

    def run(session: Session, **arguments: Any) -> None:
        selection = _read_selection(**{name: arguments.pop(name) for name in options})
        function(session, selection=selection, **arguments)

    own = [each for each in inspect.signature(function).parameters.values() if each.name != "selection"]
    parameters = [own[0], *own[1:], *options.values()]
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    )
    return run


def _read_selection(
    type: Types = None,
    filter: Filters = None,
    actor: Annotated[str | None, _option("--actor", help="Who, such as user:alice.")] = None,
    source: Annotated[
        str | None, _option("--source", help="user, agent, system or external, or with an id: agent:alice.")
    ] = None,
    entity: Annotated[
        str | None, _option("--entity", help="The entity that it is about, such as a memory's id or a path.")
    ] = None,
    correlation: Annotated[str | None, _option("--correlation", help="The correlation id.")] = None,
    causation: Annotated[str | None, _option("--causation", help="The id of the event that caused it.")] = None,
    world: World = None,
    room: Room = None,
    since: Annotated[str | None, _option("--since", help="From this time on: RFC 3339, or 10m, 2h, 3d ago.")] = None,
    until: Annotated[str | None, _option("--until", help="Up to this time: RFC 3339, or 10m, 2h, 3d ago.")] = None,
    after: Annotated[int | None, _option("--after", help="Only after this sequence.")] = None,
) -> Selection:
    now = time.time_ns() // 1000
    fields = Wanted(
        actor=actor,
        source=source,
        entity=entity,
        correlation_id=correlation,
        causation_id=causation,
        world_id=world,
        room_id=room,
        from_time=time_of(since, now),
        to_time=time_of(until, now),
        after=after,
        filter=filter_of(filter, "--filter"),
    )
    return Selection(type or [], fields)
