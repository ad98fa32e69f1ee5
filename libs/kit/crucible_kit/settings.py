"""Settings: a frozen Struct for each service, read once from `CRUCIBLE_*` environment variables.

A field `retention_days` is read from `CRUCIBLE_RETENTION_DAYS`. Its `msgspec.Meta` describes it: `description`, and in
`extra` its `unit` and whether it is `secret` (then `repr` does not show it).
"""

import math
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Meta, inspect

from crucible_core.errors import FieldError, InvalidError
from crucible_core.limits import STREAMS

PREFIX = "CRUCIBLE_"
_TYPES = {
    inspect.StrType: "text",
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.BoolType: "true or false",
    inspect.NoneType: "nothing",
}
_LISTS = (inspect.ListType, inspect.VarTupleType, inspect.SetType, inspect.FrozenSetType)


class KitSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of every service; a service's own Struct inherits from it and adds its fields."""

    nats_url: Annotated[
        str, Meta(description="The NATS server's URL; it may hold user and password", extra={"secret": True})
    ] = "nats://127.0.0.1:4222"
    bus_prefix: Annotated[
        str,
        Meta(description="Goes before every name on the bus: one server, many systems", pattern=r"^[A-Za-z0-9_-]*$"),
    ] = ""
    host: Annotated[str, Meta(description="The address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(description="The port to listen on; 0 takes a free one", ge=0, le=65535)] = 0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="The least level that is logged")
    ] = "info"
    data_dir: Annotated[str, Meta(description="The directory for SQLite indexes, which may be deleted")] = "data"
    stream_replicas: Annotated[
        int, Meta(description="Copies of each stream and bucket: 1 alone, 3 in a cluster", ge=1, le=5)
    ] = 1
    streams: Annotated[
        int,
        Meta(
            description="Streams that hold the events, each world in one of them. It is set before the first event, the"
            " same for every service, and not changed afterwards",
            ge=1,
            le=STREAMS,
        ),
    ] = 1
    retention_days: Annotated[
        float, Meta(description="How long events of the default retention are kept", gt=0, extra={"unit": "days"})
    ] = 30.0
    duplicate_window_s: Annotated[
        float,
        Meta(
            description="How long NATS itself remembers the ids of events; the index of events remembers all",
            ge=0.1,
            extra={"unit": "s"},
        ),
    ] = 120.0
    nats_store: Annotated[
        str,
        Meta(
            description="A directory on the disk where NATS keeps its streams, where this machine has it: its free"
            " space is watched. `crucible up` sets it"
        ),
    ] = ""
    storage_reserve_mib: Annotated[
        float | None,
        Meta(
            description="Space that is kept free on that disk: below it, what stores more is answered 507. If empty,"
            " 256, and on a small disk a tenth of it; negative, the disk is not looked at",
            extra={"unit": "MiB"},
        ),
    ] = None
    shutdown_grace_s: Annotated[
        float, Meta(description="How long open requests may take to end at shutdown", ge=0, extra={"unit": "s"})
    ] = 10.0

    egress_allow: Annotated[
        tuple[str, ...],
        Meta(
            description="The networks (CIDRs) and hosts (globs) that requests of webhooks and hooks may go to beside"
            " public addresses"
        ),
    ] = ()

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(field.name, _mask(field, getattr(self, field.name))) for field in msgspec.structs.fields(self)]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


class Setting(msgspec.Struct, frozen=True):
    """One setting for people to read. `default` is written as in the environment; "" is none."""

    name: str
    type: str
    default: str
    unit: str
    description: str


S = TypeVar("S", bound=msgspec.Struct)


def load(kind: type[S], environ: Mapping[str, str] = os.environ) -> S:
    """The settings in `environ`. An empty variable is as good as none; lists are comma separated.

    Raises `InvalidError` that names every bad or missing variable, but never shows its value. Variables that `kind`
    does not have are left alone, since services share one environment.
    """
    values: dict[str, Any] = {}
    errors = []
    for field in msgspec.structs.fields(kind):
        name = variable(field.name)
        text = environ.get(name, "").strip()
        try:
            if text:
                values[field.name] = _parse(text, field.type)
            elif field.required:
                errors.append(FieldError(name, "is required"))
        except msgspec.ValidationError as error:
            choice = isinstance(_bare(field.type), inspect.LiteralType)
            errors.append(FieldError(name, f"Expected {_type_name(_bare(field.type))}" if choice else str(error)))
    if errors:
        raise InvalidError("; ".join(f"{error.path}: {error.message}" for error in errors), errors=errors)
    return kind(**values)


def describe(kind: type[msgspec.Struct]) -> list[Setting]:
    """Every setting of `kind`, inherited ones first."""
    inherited = {field.name: index for index, field in enumerate(msgspec.structs.fields(KitSettings))}
    fields = sorted(msgspec.structs.fields(kind), key=lambda field: inherited.get(field.name, len(inherited)))
    return [_setting(field) for field in fields]


def variable(name: str) -> str:
    """The environment variable of a field."""
    return PREFIX + name.upper()


def _parse(text: str, kind: Any) -> Any:
    value: Any = [part.strip() for part in text.split(",") if part.strip()] if _is_list(_bare(kind)) else text
    parsed = msgspec.convert(value, kind, strict=False)
    if isinstance(parsed, float) and not math.isfinite(parsed):
        raise msgspec.ValidationError("Expected a finite number")
    return parsed


def _mask(field: msgspec.structs.FieldInfo, value: Any) -> Any:
    return "***" if value and _extra(field.type).get("secret") else value


def _setting(field: msgspec.structs.FieldInfo) -> Setting:
    node = inspect.type_info(field.type)
    description = (node.extra_json_schema or {}).get("description", "") if isinstance(node, inspect.Metadata) else ""
    unit = _extra(field.type).get("unit", "")
    return Setting(variable(field.name), _type_name(_bare(field.type)), _default(field), unit, description)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        return _format(field.default_factory())
    return "" if field.default is msgspec.NODEFAULT else _format(field.default)


def _format(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case list() | tuple() | set() | frozenset():
            return ",".join(_format(part) for part in value)
    return str(value)


def _type_name(node: inspect.Type) -> str:
    match node:
        case inspect.Metadata(type=inner):
            return _type_name(inner)
        case inspect.LiteralType(values=values):
            # msgspec sorts the values: they have no order of their own.
            return "one of " + ", ".join(map(str, values))
        case inspect.UnionType(types=types):
            return " or ".join(_type_name(part) for part in types if not isinstance(part, inspect.NoneType))
    if _is_list(node):
        return f"list of {_type_name(node.item_type)}"  # type: ignore[attr-defined]
    return _TYPES.get(type(node), type(node).__name__)


def _is_list(node: inspect.Type) -> bool:
    parts = node.types if isinstance(node, inspect.UnionType) else (node,)
    return any(isinstance(part, _LISTS) for part in parts)


def _bare(kind: Any) -> inspect.Type:
    node = inspect.type_info(kind)
    return node.type if isinstance(node, inspect.Metadata) else node


def _extra(kind: Any) -> dict[str, Any]:
    node = inspect.type_info(kind)
    return (node.extra or {}) if isinstance(node, inspect.Metadata) else {}


def credentials(url: str) -> dict[str, Any]:
    """The credentials of the first server, for all: a cluster announces its other servers without any."""
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    if not parts.username:
        return {}
    if parts.password is None:
        return {"token": unquote(parts.username)}
    return {"user": unquote(parts.username), "password": unquote(parts.password)}


def without_secrets(url: str) -> str:
    parts = (part.strip().rpartition("://") for part in url.split(","))
    return ",".join(f"{scheme}{separator}{rest.rpartition('@')[2]}" for scheme, separator, rest in parts)
