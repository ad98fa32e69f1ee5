"""One event type, built in or registered by users: its name, what its payload may be, and how users read of it."""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import msgspec

from crucible_core.protocol.events import EventType, TypeRecord, TypeVersion
from crucible_core.types.payloads import RESERVED
from crucible_core.types.shape import Shape, example_of, example_of_schema, schema_of, shape_of, shape_of_schema

BUILT_IN = "1.0.0"
"""The version of every type that is built in, and of custom events that nobody registered."""

read_object = msgspec.json.Decoder(dict[str, Any]).decode


class Kind(msgspec.Struct, frozen=True):
    """A type that is built in. Its payload type's docstring describes it; a payload type that does not forbid unknown
    fields is open. `aliases` are accepted beside those that follow from the name."""

    category: str
    event: str
    payload: type[msgspec.Struct]
    aliases: tuple[str, ...] = ()

    @property
    def dotted(self) -> str:
        return f"{self.category}.{self.event}"

    @property
    def open(self) -> bool:
        return not self.payload.__struct_config__.forbid_unknown_fields

    @property
    def shape(self) -> Shape | None:
        return shape_of(self.payload)

    def example(self) -> dict[str, Any]:
        return example_of(self.payload)

    def reader(self) -> Callable[[bytes], Any]:
        """Checks a payload by raising msgspec's errors."""
        if not self.open:
            return msgspec.json.Decoder(self.payload).decode

        # A Struct's decoder skips over fields that it does not know without looking into them. What is committed must
        # be readable as a whole, so everything is decoded first.
        def read(payload: bytes) -> Any:
            return msgspec.convert(read_object(payload), self.payload)

        return read

    def described(self, aliases: Iterable[str]) -> EventType:
        return EventType(
            type=self.dotted,
            description=(self.payload.__doc__ or "").strip(),
            aliases=list(aliases),
            open=self.open,
            schema=schema_of(self.payload, self.dotted),
            version=BUILT_IN,
            versions=[BUILT_IN],
            reserved=self.dotted in RESERVED,
        )


class Registered:
    """A type that users registered; `record` has one version or more, and is never changed. Its reader only checks that
    a payload is an object: `events` has the validators of JSON Schema."""

    def __init__(self, record: TypeRecord) -> None:
        self.record = record
        self.category, _, self.event = record.type.partition(".")
        self.aliases = tuple(record.aliases)
        self.versions = {version.version: version for version in record.versions}

    @property
    def dotted(self) -> str:
        return self.record.type

    @property
    def latest(self) -> TypeVersion:
        return self.record.versions[-1]

    @property
    def open(self) -> bool:
        return self.shape is None

    @cached_property
    def shape(self) -> Shape | None:
        return shape_of_schema(self.latest.schema)

    def example(self) -> dict[str, Any]:
        return example_of_schema(self.latest.schema)

    def reader(self) -> Callable[[bytes], Any]:
        return read_object

    def described(self, aliases: Iterable[str]) -> EventType:
        return EventType(
            type=self.dotted,
            description=self.record.description,
            aliases=list(aliases),
            open=self.open,
            schema=self.latest.schema,
            version=self.latest.version,
            versions=list(self.versions),
            registered=True,
        )


AnyKind = Kind | Registered
