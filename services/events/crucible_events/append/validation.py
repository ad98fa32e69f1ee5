"""Validation of payloads: the catalogue's own checks, and the compiled JSON Schemas that users registered."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import jsonschema_rs

from crucible_core.errors import FieldError, InvalidError
from crucible_core.limits import ERRORS, SCHEMA_STEPS
from crucible_core.protocol.events import NewEvent, TypeVersion
from crucible_core.schemas import dialect
from crucible_core.schemas.costs import steps
from crucible_core.suggest import nearest
from crucible_core.types.catalogue import Catalogue, Registered, UnknownTypeError
from crucible_core.types.kinds import BUILT_IN

_REGEX_BYTES = 256 * 1024
"""The size of one compiled pattern, which bounds the time of a match."""
_ALL_ERRORS_UNTIL = 64 * 1024
"""Bytes of a payload up to which a refusal lists every mistake; for a larger one it names the first."""
_LISTED_UNTIL = 2_000
"""Steps of a check up to which a refusal lists the mistakes of alternatives: each takes about 0.1 ms."""
_COSTLY = (
    f"its values, and the alternatives for each, take more than {SCHEMA_STEPS:,} steps to check: make it smaller or "
    "flatter, or the type's schema simpler"
)
_MOST_COMPILED = 4_096
_MOST_RESOLVED = 10_000
_SHOWN = 300
_VALUE = "the value"


def compile_schema(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    """Raises InvalidError, with paths `schema.…`, for a schema whose words are not well-formed."""
    try:
        return jsonschema_rs.Draft202012Validator(
            schema,
            validate_formats=True,
            # Linear in the text, whatever the pattern is; nothing is ever fetched.
            pattern_options=jsonschema_rs.RegexOptions(size_limit=_REGEX_BYTES),
            offline=True,
            mask=_VALUE,
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        way = [str(segment) for segment in getattr(error, "instance_path", ())]
        message = str(getattr(error, "message", error)).replace(_VALUE, "this")[:_SHOWN]
        if way and way[-1] in ("pattern", "patternProperties"):
            message = "must be a regular expression without look-around and references back, and not too large"
        path = dialect.dotted("schema", *way)
        raise InvalidError.field(path, message) from None


class Payloads:
    """Checks payloads against the current catalogue. Validators are compiled once for each version."""

    def __init__(self, catalogue: Callable[[], Catalogue]) -> None:
        self._catalogue = catalogue
        self._resolved: dict[str, str] = {}
        self._resolved_by: Catalogue | None = None
        self._compiled: dict[tuple[str, str], tuple[TypeVersion, Validator]] = {}

    def resolve(self, new: NewEvent, *, near: bool = True) -> str:
        """The canonical type. Raises UnknownTypeError, as `Catalogue.resolve` does."""
        catalogue = self._catalogue()
        if catalogue is not self._resolved_by or len(self._resolved) >= _MOST_RESOLVED:
            self._resolved_by, self._resolved = catalogue, {}
        found = self._resolved.get(new.type)
        if found is None:
            found = self._resolved[new.type] = catalogue.resolve(new.type, near=near)
        return found

    def check(self, dotted: str, version: str | None, payload: bytes) -> tuple[str, bytes, Any]:
        """(version, payload under canonical names, decoded payload) of a payload of a canonical type. The version is
        the latest, or `version`, which a registered type must have.

        Raises MalformedError, and InvalidError with paths `payload.…`; UnknownTypeError for another version.
        """
        catalogue = self._catalogue()
        kind = catalogue.registered.get(dotted)
        if kind is None:
            value, payload = catalogue.read(dotted, payload)
            return version or BUILT_IN, payload, value
        checked = _version(kind, version)
        decoded = catalogue.validate(dotted, payload)
        self._validator(kind, checked).check(decoded, dotted, payload)
        return checked.version, payload, decoded

    def _validator(self, kind: Registered, version: TypeVersion) -> "Validator":
        key = kind.dotted, version.version
        found = self._compiled.get(key)
        if found is None or found[0] is not version:  # the same version, registered anew after the type was deleted
            if len(self._compiled) >= _MOST_COMPILED:
                self._compiled.clear()
            found = self._compiled[key] = version, Validator(version.schema)
        return found[1]


def _version(kind: Registered, version: str | None) -> TypeVersion:
    if version is None:
        return kind.latest
    found = kind.versions.get(version)
    if found is None:
        message = f"{kind.dotted} has no version {version}; its versions: {', '.join(list(kind.versions)[-20:])}"
        near = nearest(version, kind.versions)
        raise UnknownTypeError.field("version", message, near)
    return found


class Validator:
    """A compiled schema, and the cost of a check by it."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema
        self._compiled = compile_schema(schema)
        self._steps = steps(schema)
        inner_schemas = (one.schema for one in dialect.subschemas(schema) if isinstance(one.schema, dict))
        self._has_alternatives = any("anyOf" in inner or "oneOf" in inner for inner in inner_schemas)

    def check(self, payload: Any, dotted: str, raw: bytes) -> None:
        """Raises InvalidError with paths `payload.…`."""
        if len(raw) * max(self._steps) > SCHEMA_STEPS and self._steps_of(payload) > SCHEMA_STEPS:
            raise InvalidError.field("payload", _COSTLY, detail=f"{dotted[:100]} is refused: payload: {_COSTLY}")
        if self._compiled.is_valid(payload):
            return
        if self._has_alternatives and self._steps_of(payload) > _LISTED_UNTIL:
            # The mistakes of each alternative would be listed, and in each those of its own alternatives.
            errors = [FieldError("payload", "does not fit the type's schema; it is too large to be told where")]
        else:
            errors = self._errors(payload, len(raw))
        first = errors[0]
        asked = f' (did you mean "{first.suggestion}"?)' if first.suggestion else ""
        text = f"{dotted[:100]} is refused: {first.path}: {first.message}{asked}"
        raise InvalidError(text, errors=errors[:ERRORS])

    def _steps_of(self, payload: Any) -> int:
        """The steps of a check at most; more than the limit where it passes that."""
        needed, values = 0, [payload]
        for each in self._steps:
            needed += each * len(values)
            if needed > SCHEMA_STEPS or not values:
                break
            values = [inner for value in values for inner in _inner(value)]
        return needed

    def _errors(self, payload: Any, size: int) -> list[FieldError]:
        errors: list[FieldError] = []
        try:
            if size > _ALL_ERRORS_UNTIL:
                self._compiled.validate(payload)
            for error in islice(self._compiled.iter_errors(payload), ERRORS):
                errors += _field_errors(error, self._schema)
        except jsonschema_rs.ValidationError as error:
            errors = _field_errors(error, self._schema)
        return errors


def _inner(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _field_errors(error: jsonschema_rs.ValidationError, schema: dict[str, Any]) -> list[FieldError]:
    way = [str(segment) for segment in error.instance_path]
    kind, value = error.kind.name, error.kind.value
    if kind == "required":
        return [FieldError(_path(*way, str(value)), "required, but missing")]
    if kind in ("additionalProperties", "unevaluatedProperties") and isinstance(value, list):
        known = _declared_fields(schema, error.schema_path)
        unknown = value[:ERRORS]
        return [FieldError(_path(*way, name), "unknown field", nearest(name, known)) for name in unknown]
    message = error.message.removeprefix(_VALUE).strip()
    if kind in ("anyOf", "oneOf") and isinstance(value, list):
        reasons = [part[0].message.removeprefix(_VALUE).strip() for part in value[:5] if part]
        message = f"fits no alternative: {'; '.join(dict.fromkeys(reasons))}" if reasons else message
    suggestion = None
    if kind == "enum" and isinstance(value, list) and isinstance(error.instance, str):
        suggestion = nearest(error.instance, [option for option in value if isinstance(option, str)])
    return [FieldError(_path(*way), message[:_SHOWN], suggestion)]


def _path(*segments: str) -> str:
    return dialect.dotted("payload", *segments)


def _declared_fields(schema: Any, way: list[str | int]) -> list[str]:
    """The fields that the schema declares beside a refused one."""
    for segment in way[:-1]:
        if isinstance(schema, list) and isinstance(segment, int) and segment < len(schema):
            schema = schema[segment]
        else:
            schema = schema.get(str(segment)) if isinstance(schema, dict) else None
    return list(schema.get("properties", ())) if isinstance(schema, dict) else []
