"""The field types that payloads share, with their bounds and an example of each, and the kinds of payload."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

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
ApprovalId = Annotated[str, Meta(min_length=1, max_length=200, examples=["apr_01kak52b7d9f1h3j5k7m9n1p3q"])]
ArtifactId = Annotated[str, Meta(min_length=1, max_length=200, examples=["art_01kak53c8e0g2j4k6m8n0p2q4r"])]
WorldId = Annotated[str, Meta(min_length=1, max_length=200, examples=["acme"])]
RoomId = Annotated[str, Meta(min_length=1, max_length=200, examples=["main"])]
Trigger = Annotated[str, Meta(min_length=1, max_length=200, examples=["manual"])]
Word = Annotated[str, Meta(min_length=1, max_length=200)]
_TAG_FORM = {"form": "must hold more than # and spaces"}
Tag = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"[^#\s]", examples=["#research"], extra=_TAG_FORM)]
"""With or without its `#`; something must be left of it."""

Tags = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=200, pattern=r"[^#\s]", extra=_TAG_FORM)]],
    Meta(max_length=1000, examples=[["#research"]]),
]
Words = Annotated[list[Word], Meta(max_length=1000)]
Title = Annotated[str, Meta(max_length=1000, examples=["Vector clocks"])]
Content = Annotated[str, Meta(examples=["Vector clocks order events without a shared clock."])]
Path = Annotated[str, Meta(min_length=1, max_length=4096, examples=["notes/clocks.md"])]
OtherPath = Annotated[str, Meta(min_length=1, max_length=4096)]
OldPath = Annotated[str, Meta(min_length=1, max_length=4096, examples=["notes/time.md"])]
Text = Annotated[str, Meta(max_length=65_536)]
"""A sentence or a short message: reasons, errors, descriptions."""

Problems = Annotated[list[Text], Meta(max_length=100)]
"""Mistakes that the writer of a note should mend."""

Url = Annotated[str, Meta(min_length=1, max_length=4096, examples=["https://example.com/hook"])]
Time = Annotated[str, Meta(max_length=64)]
"""RFC 3339."""

Moment = float | Time
"""Unix seconds, or RFC 3339."""

Count = Annotated[int, Meta(ge=0)]
Milliseconds = Annotated[float, Meta(ge=0)]
Ids = Annotated[list[Word], Meta(max_length=10_000)]
OtherIds = Annotated[list[Word], Meta(max_length=10_000, examples=[["mem_01kak4z2r3e8d9jw6m4x7q0v1t"]])]
Object = dict[str, Any]

Payloads = Mapping[str, type[msgspec.Struct]]
"""A category's payload types under their events' names."""


Synonyms = Mapping[str, tuple[str, ...]]
"""From another name of a field to the field that it stands for: the first of them that the payload does not have."""


class Closed(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The payload of an event that Crucible itself makes: no other fields are accepted."""

    synonyms: ClassVar[Synonyms] = {}


class Open(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The payload of an event of somebody else's program: other fields are accepted."""

    synonyms: ClassVar[Synonyms] = {}


class Reference(Closed, kw_only=True):
    """A link out of a memory: `to` is its id, or a title or path until something has that name."""

    synonyms: ClassVar[Synonyms] = {"target": ("to",), "link_type": ("type",), "weight": ("strength",)}

    to: Word
    type: Word = "related"
    strength: float | None = None


References = Annotated[list[Word | Reference], Meta(max_length=10_000)]
"""Each is a `Reference`, or as much as its `to`."""


class Redacted(Closed, kw_only=True):
    """The payload of an event was erased: of which one, and what is left of it (see `crucible_core.redaction`)."""

    id: OtherPath | None = None
    event_id: EventId
    sequence: Annotated[int, Meta(ge=0, examples=[42])]
    type: EventType
    reason: Text | None = None
    envelope: Annotated[Object, Meta(examples=[{"type": "Custom", "data": {"event": "Note"}, "metadata": {}}])]


class Runtime(Open, kw_only=True):
    """The agent, session and turn in which an event of a runtime happened."""

    id: Word | None = None
    name: Word | None = None
    agent_id: Word | None = None
    session_id: Word | None = None
    room_id: Word | None = None
    channel: Word | None = None
    at: Moment | None = None
    metadata: Object | None = None
