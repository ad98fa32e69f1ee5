"""Registering an event type: what the record of a type becomes, and what is refused. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from crucible_core.errors import ConflictError, FieldError, InvalidError
from crucible_core.limits import (
    DESCRIPTION_CHARS,
    ID_CHARS,
    TYPE_ALIAS_CHARS,
    TYPE_ALIASES,
    TYPE_BYTES,
    TYPE_NAME_CHARS,
    TYPES,
    TYPES_BYTES,
)
from crucible_core.protocol.events import RegisterType, TypeRecord, TypeVersion
from crucible_core.schemas.compatibility import breaks
from crucible_core.schemas.costs import MOST, steps
from crucible_core.schemas.dialect import check_schema
from crucible_core.types.catalogue import OWN, Catalogue, Registered
from crucible_core.types.names import ANY_CUSTOM, custom

_NUMBER = r"(0|[1-9]\d{0,8})"
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?", re.ASCII)

Precedence = tuple[int, int, int, bool, tuple[tuple[bool, int, str], ...]]


def precedence(version: str, path: str = "version") -> Precedence:
    """The order of a version. Raises InvalidError for a text that is none."""
    found = _VERSION.fullmatch(version) if len(version) <= ID_CHARS else None
    if found is None:
        message = "must be a version such as 1.2.0, or 1.2.0-beta.1"
        raise InvalidError.field(path, message)
    major, minor, patch, early = found.groups()
    parts = tuple(_identifier(part) for part in early.split(".")) if early else ()
    return int(major), int(minor), int(patch), early is None, parts


def _identifier(part: str) -> tuple[bool, int, str]:
    """Numbers come before words, and by their size."""
    return (False, int(part), "") if part.isdecimal() else (True, 0, part)


_WORD = r"[A-Z][A-Za-z0-9]{0,63}"
_NAME = re.compile(rf"(?P<category>{_WORD})\.(?P<event>{_WORD})", re.ASCII)
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[._:-][A-Za-z0-9]+)*", re.ASCII)
_FORM = f'"Category.Event", both PascalCase of up to 64 letters and digits, or Custom.<name> of up to {TYPE_NAME_CHARS}'


def check_request(request: RegisterType, catalogue: Catalogue) -> None:
    """Raises InvalidError with every mistake that the request has whatever is registered."""
    errors = [*_name_errors(request.type, catalogue), *_alias_errors(request.aliases)]
    if len(request.description) > DESCRIPTION_CHARS:
        errors.append(FieldError("description", f"may have {DESCRIPTION_CHARS} characters"))
    for check in (lambda: precedence(request.version), lambda: _check_schema(request.schema)):
        try:
            check()
        except InvalidError as error:
            errors += error.errors
    if errors:
        raise _invalid(errors)


def _check_schema(schema: Mapping[str, Any]) -> None:
    """Raises InvalidError."""
    check_schema(schema)
    if steps(schema)[0] == MOST:
        raise _invalid([FieldError("schema", "its references and alternatives multiply to more than can be checked")])


def registered(request: RegisterType, catalogue: Catalogue, now: str, owner: str = "") -> TypeRecord | None:
    """The record to store, of a new type with its `owner`; None where there is nothing new in the request, which
    `check_request` has accepted.

    Raises ConflictError where a name is taken, the version has another schema, or a later one is there; InvalidError
    with each thing that breaks with the version before, and past a limit.
    """
    kind = catalogue.registered.get(request.type)
    record = kind.record if kind else TypeRecord(type=request.type, versions=[], owner=owner)
    versions = _versions(request, record, now)
    new = [alias for alias in dict.fromkeys(request.aliases) if alias not in record.aliases]
    description = request.description or record.description
    if versions is record.versions and not new and description == record.description:
        return None
    wanted = TypeRecord(
        type=record.type,
        versions=versions,
        description=description,
        aliases=[*record.aliases, *new],
        updated_at=now,
        owner=record.owner,
    )
    _check_limits(wanted, catalogue)
    try:
        catalogue.extended([Registered(wanted)])
    except ValueError as error:
        path = "aliases" if new else "type"
        raise ConflictError.field(path, str(error)) from None
    return wanted


def _versions(request: RegisterType, record: TypeRecord, now: str) -> list[TypeVersion]:
    """The record's own list where the version is there already."""
    for known in record.versions:
        if known.version == request.version:
            if _encoded(known.schema) == _encoded(request.schema):
                return record.versions
            message = f"version {known.version} of {record.type} is registered with another schema"
            raise ConflictError.field("version", f"{message}: give the new schema a later version")
    if record.versions:
        latest = record.versions[-1]
        if precedence(request.version) <= precedence(latest.version):
            raise ConflictError.field(
                "version", f"{request.version} is not later than {latest.version}, the latest version"
            )
        if errors := breaks(latest.schema, request.schema):
            told = f"{request.version} is not compatible with {latest.version} of {record.type}"
            way_out = "keep what was valid valid, or register a type of a new name"
            first = f"{errors[0].path}: {errors[0].message}"
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            raise InvalidError(f"{told}: {first}{more}; {way_out}", errors=errors)
    return [*record.versions, TypeVersion(version=request.version, schema=request.schema, registered_at=now)]


def _check_limits(record: TypeRecord, catalogue: Catalogue) -> None:
    size = len(msgspec.json.encode(record))
    if size > TYPE_BYTES:
        raise _invalid([FieldError("schema", f"all versions of a type may have {TYPE_BYTES} bytes together")])
    others = [kind.record for name, kind in catalogue.registered.items() if name != record.type]
    if len(others) >= TYPES:
        raise _invalid([FieldError("type", f"{TYPES} types are registered, and that is the limit")])
    if size + sum(len(msgspec.json.encode(other)) for other in others) > TYPES_BYTES:
        raise _invalid([FieldError("schema", f"all registered types may have {TYPES_BYTES} bytes together")])
    if len(record.aliases) > TYPE_ALIASES:
        raise _invalid([FieldError("aliases", f"a type may have {TYPE_ALIASES} aliases")])


def _name_errors(name: str, catalogue: Catalogue) -> list[FieldError]:
    if name == ANY_CUSTOM:
        return [FieldError("type", f"names many types; must be {_FORM}")]
    if name.startswith("Custom."):
        try:
            custom(name.removeprefix("Custom."), "type")
        except InvalidError as error:
            return list(error.errors)
        return [FieldError("type", "must not have a / in it, since it is part of a path")] if "/" in name else []
    found = _NAME.fullmatch(name)
    if found is not None and found["category"].casefold() in OWN:
        message = f"{found['category']} is Crucible's own category: choose another one, or Custom.{found['event']}"
        return [FieldError("type", message)]
    if found is None:
        return [FieldError("type", f"must be {_FORM}", _proposal(name))]
    try:
        taken = catalogue.resolve(name)
    except InvalidError:
        return []
    return [] if taken == name else [FieldError("type", f"is another name of {taken}", taken)]


def _proposal(name: str) -> str | None:
    """`order_placed`, `order.placed` and `OrderPlaced.v2` as a type could be written."""
    words = re.split(r"[._:\- ]+", name[:TYPE_ALIAS_CHARS], maxsplit=1)
    if len(words) != 2 or not name.isascii():
        return None
    parts = ["".join(part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]+", word)) for word in words]
    proposal = ".".join(parts)
    return proposal if _NAME.fullmatch(proposal) and parts[0].casefold() not in OWN else None


def _alias_errors(aliases: Sequence[str]) -> list[FieldError]:
    errors = []
    for position, alias in enumerate(aliases[: TYPE_ALIASES + 1]):
        path, head = f"aliases.{position}", re.split(r"[.:_]", alias, maxsplit=1)[0].casefold()
        if len(alias) > TYPE_ALIAS_CHARS or not _ALIAS.fullmatch(alias):
            errors.append(FieldError(path, "must be words of letters and digits, joined by . : _ or -"))
        elif head in OWN:
            errors.append(FieldError(path, f"must not begin with {head}, which is Crucible's own category"))
    return errors


def _encoded(schema: object) -> bytes:
    return msgspec.json.encode(schema, order="deterministic")


def _invalid(errors: list[FieldError]) -> InvalidError:
    first = errors[0]
    asked = f' (did you mean "{first.suggestion}"?)' if first.suggestion else ""
    return InvalidError(f"{first.path}: {first.message}{asked}", errors=errors)
