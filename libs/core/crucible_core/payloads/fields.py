"""The field types that payloads share, with their bounds and an example of each."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

MemoryId = Annotated[str, Meta(min_length=1, max_length=200, examples=["mem_01kak4y8gqf1xbsvt0wx8y2n5c"])]
OtherId = Annotated[str, Meta(min_length=1, max_length=200, examples=["mem_01kak4z2r3e8d9jw6m4x7q0v1t"])]
NodeId = Annotated[str, Meta(min_length=1, max_length=200, examples=["vector-clocks"])]
OtherNodeId = Annotated[str, Meta(min_length=1, max_length=200, examples=["lamport-clocks"])]
RunId = Annotated[str, Meta(min_length=1, max_length=200, examples=["run_01kak503n8fz2v4y6b9c1d3e5g"])]
WebhookId = Annotated[str, Meta(min_length=1, max_length=200, examples=["whk_01kak51wq2e4r6t8y0a2s4d6f8"])]
EventId = Annotated[str, Meta(min_length=1, max_length=200, examples=["evt_01kak4x9t0e5ra1m3v8d2h7c6b"])]
EventType = Annotated[str, Meta(min_length=1, max_length=200, examples=["Custom.Note"])]
Name = Annotated[str, Meta(min_length=1, max_length=200, examples=["auto-link-related"])]
Word = Annotated[str, Meta(min_length=1, max_length=200)]
Tag = Annotated[str, Meta(min_length=1, max_length=200, examples=["#research"])]
Tags = Annotated[list[Word], Meta(max_length=1000, examples=[["#research"]])]
Words = Annotated[list[Word], Meta(max_length=1000)]
Title = Annotated[str, Meta(max_length=1000, examples=["Vector clocks"])]
Content = Annotated[str, Meta(examples=["Vector clocks order events without a shared clock."])]
Path = Annotated[str, Meta(min_length=1, max_length=4096, examples=["notes/clocks.md"])]
OtherPath = Annotated[str, Meta(min_length=1, max_length=4096)]
Text = Annotated[str, Meta(max_length=65_536)]
"""A sentence or a short message: reasons, errors, descriptions."""

Url = Annotated[str, Meta(min_length=1, max_length=4096, examples=["https://example.com/hook"])]
Time = Annotated[str, Meta(max_length=64)]
"""RFC 3339."""

Moment = float | Time
"""Unix seconds, or RFC 3339."""

Count = Annotated[int, Meta(ge=0)]
Milliseconds = Annotated[float, Meta(ge=0)]
Ids = Annotated[list[Word], Meta(max_length=10_000)]
Object = dict[str, Any]

Payloads = Mapping[str, type[msgspec.Struct]]
"""A category's payload types under their events' names."""


class Reference(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A link out of a memory: `target` is its id, or a title or path until something has that name."""

    target: Word
    type: Word = "related"
    weight: float | None = None


References = Annotated[list[Reference], Meta(max_length=10_000)]


class Closed(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The payload of an event that Crucible itself makes: no other fields are accepted."""


class Open(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The payload of an event of somebody else's program: other fields are accepted."""


class Redacted(Closed, kw_only=True):
    """The payload of an event was erased: of which one, and what is left of it (see `crucible_core.redaction`)."""

    id: OtherPath | None = None
    event_id: EventId
    sequence: Annotated[int, Meta(ge=0, examples=[42])]
    type: EventType
    reason: Text | None = None
    envelope: Annotated[Object, Meta(examples=[{"type": "Custom", "data": {"event": "Note"}, "metadata": {}}])]
