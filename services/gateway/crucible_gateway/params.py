"""Query parameters: each route's as a Struct, read strictly, so that a misspelt one is never silently ignored."""

import functools
import re
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qsl

import msgspec
from litestar.connection import ASGIConnection
from msgspec import Meta

from crucible_core.decode import decode, refused
from crucible_core.errors import InvalidError, MalformedError
from crucible_core.limits import EVENTS_PAGE, HISTORY_PAGE, PAGE, PARAMETERS
from crucible_core.protocol.events import CountBy
from crucible_core.times import parse_time

T = TypeVar("T", bound=msgspec.Struct)

Sequence = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=4096)]
_WAITS = Meta(description="Waits (bounded) until the index has this sequence")
_LOST_PLUS = re.compile(r"(?<=[0-9]) (?=[0-9]{2}:[0-9]{2}$)")


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A parameter that is a list may be repeated; no other may."""


class NoParams(Params, frozen=True):
    pass


class ReadyParams(Params, frozen=True):
    exclude: Annotated[list[str], Meta(description="Codes of errors that are passed over; repeatable")] = []


class AppendParams(Params, frozen=True):
    atomic: Annotated[bool, Meta(description="Commit all events or none; at most 1,000, with 4 MiB in all")] = False
    react: Annotated[
        bool,
        Meta(description="`false`: Post hooks, webhooks and the reader of notes pass the events over, as in an import"),
    ] = True


class SelectionParams(Params, frozen=True):
    """A selection of the log's events: `selection_fields` reads it."""

    type: Annotated[list[str], Meta(description="Types, aliases or wildcards (`Memory.*`); repeatable")] = []
    actor: Name | None = None
    source: (
        Annotated[str, Meta(description="`user`, `agent`, `system` or `external`, or with an id: `agent:alice`")] | None
    ) = None
    correlation_id: Name | None = None
    causation_id: Name | None = None
    entity: Name | None = None
    world_id: Name | None = None
    room_id: Name | None = None
    from_time: Annotated[str, Meta(description="RFC 3339, inclusive")] | None = None
    to_time: Annotated[str, Meta(description="RFC 3339, exclusive")] | None = None
    after: Annotated[Sequence, Meta(description="Only events after this sequence")] | None = None
    filter: Annotated[str, Meta(description='A filter as JSON: `{"tags": {"contains": "#x"}}`')] | None = None
    min_sequence: Annotated[Sequence, _WAITS] | None = None


class EventParams(SelectionParams, frozen=True):
    order: Literal["asc", "desc"] = "asc"
    limit: Annotated[int, Meta(ge=1, le=PAGE)] = EVENTS_PAGE
    cursor: Annotated[str, Meta(description="`next_cursor` of the page before")] | None = None


class CountParams(SelectionParams, frozen=True):
    by: Annotated[CountBy, Meta(description="Also count by this, the largest group first; days are UTC's")] | None = (
        None
    )


class TraceParams(Params, frozen=True):
    min_sequence: Annotated[Sequence, _WAITS] | None = None


class PageParams(Params, frozen=True):
    limit: Annotated[int, Meta(ge=1, le=PAGE)] = HISTORY_PAGE
    cursor: Annotated[str, Meta(description="`next_cursor` of the page before")] | None = None


class HandlersParams(Params, frozen=True):
    limit: Annotated[int, Meta(ge=1, le=PAGE)] = PAGE
    cursor: Annotated[str, Meta(description="`next_cursor` of the page before")] | None = None


class WorldsParams(Params, frozen=True):
    limit: Annotated[int, Meta(ge=1, le=PAGE)] = EVENTS_PAGE
    cursor: Annotated[str, Meta(description="`next_cursor` of the page before")] | None = None


class DeleteWorldParams(Params, frozen=True):
    purge: Annotated[bool, Meta(description="Also remove the world's events, for good")] = False


class StreamParams(Params, frozen=True, rename={"start": "from"}):
    type: Annotated[list[str], Meta(description="Types, aliases or wildcards; repeatable; all if none")] = []
    filter: Annotated[str, Meta(description="A filter as JSON, for every type asked for")] | None = None
    start: Annotated[str, Meta(description="`now`, `start`, a sequence (exclusive) or an RFC 3339 time")] = "now"
    frames: Annotated[
        Literal["named", "unnamed"],
        Meta(
            description=(
                "`unnamed`: the frame of an event has no `event:` line, so that a browser's `EventSource.onmessage` "
                "gets it; all other frames keep their names"
            )
        ),
    ] = "named"
    world_id: Name | None = None
    room_id: Name | None = None


def read_params(connection: ASGIConnection[Any, Any, Any, Any], kind: type[T]) -> T:
    """The query of a request or handshake as `kind`. Raises InvalidError, whose paths are the parameters' names, with
    the nearest name for an unknown one."""
    query = connection.scope["query_string"]
    if not query:
        return kind()
    found: dict[str, Any] = {}
    lists = _lists(kind)
    try:
        text = query.decode("utf-8")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=PARAMETERS)
    except ValueError:
        raise InvalidError(f"the query is not UTF-8, or has more than {PARAMETERS} parameters") from None
    for name, value in pairs:
        if name in lists:
            found.setdefault(name, []).append(value)
        elif name in found:
            raise InvalidError.field(name, "may be given only once")
        elif value.lower() == "null" and name in _not_text(kind):
            raise InvalidError.field(name, "null is no value")
        else:
            found[name] = value
    try:
        return msgspec.convert(found, kind, strict=False)
    except msgspec.ValidationError as error:
        raise refused(error, kind, "the query") from None


def selection_fields(params: SelectionParams) -> dict[str, Any]:
    """The parameters as the fields of `EventsWanted`. Raises MalformedError or InvalidError."""
    fields = {name: getattr(params, name) for name in SelectionParams.__struct_fields__}
    times = {name: time_param(fields[name], name) for name in ("from_time", "to_time")}
    return fields | times | {"filter": filter_param(params.filter)}


def filter_param(text: str | None) -> dict[str, Any] | None:
    """The filter in a parameter. Raises MalformedError or InvalidError."""
    if text is None:
        return None
    try:
        return decode(text.encode(), dict[str, Any], what="filter")
    except InvalidError as error:
        raise InvalidError.field("filter", error.errors[0].message) from None
    except MalformedError as error:
        inside = [msgspec.structs.replace(each, path=f"filter.{each.path}") for each in error.errors]
        raise MalformedError(error.detail, errors=inside) from None


def time_param(text: str | None, name: str) -> str | None:
    """An RFC 3339 time. Raises InvalidError."""
    if text is not None:
        text = restore_plus(text)
        parse_time(text, name)
    return text


def restore_plus(text: str) -> str:
    """An unescaped `+` arrives as a space, which before a time's offset can have been nothing else."""
    return _LOST_PLUS.sub("+", text)


@functools.cache
def _lists(kind: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(field.encode_name for field in msgspec.structs.fields(kind) if _is_list(field.type))


@functools.cache
def _not_text(kind: type[msgspec.Struct]) -> frozenset[str]:
    """The parameters that are no free text: there, msgspec takes the text `null` for no value."""
    return frozenset(field.encode_name for field in msgspec.structs.fields(kind) if not _is_text(field.type))


def _is_text(kind: Any) -> bool:
    node = msgspec.inspect.type_info(kind)
    parts = node.types if isinstance(node, msgspec.inspect.UnionType) else (node,)
    plain = [part.type if isinstance(part, msgspec.inspect.Metadata) else part for part in parts]
    return any(isinstance(part, msgspec.inspect.StrType) for part in plain)


def _is_list(kind: Any) -> bool:
    node = msgspec.inspect.type_info(kind)
    return isinstance(node.type if isinstance(node, msgspec.inspect.Metadata) else node, msgspec.inspect.ListType)
