"""Requests to `events` about the rules of retention, and their record in KV."""

from typing import Annotated

from msgspec import Meta

from crucible_core.limits import RETENTION_RULES
from crucible_core.protocol.parts import Message


class RetentionRule(Message, omit_defaults=False):
    """Events of a type, alias or wildcard, in one world or (None) in all, are kept `forever` or for a time: `90d`."""

    type: Annotated[str, Meta(min_length=1, max_length=200)]
    keep: Annotated[str, Meta(min_length=1, max_length=20, examples=["forever", "90d", "12h"])]
    world_id: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class RetentionRules(Message, omit_defaults=False):
    """Of the rules that fit an event the first counts."""

    rules: Annotated[list[RetentionRule], Meta(max_length=RETENTION_RULES)]


class RetentionRecord(RetentionRules, kw_only=True):
    """The `retention` bucket holds the rules, and who made them."""

    owner: str = ""


class PutRetention(Message):
    """`events.put_retention`; `revision` is the one that was read, as in If-Match: another one is a ConflictError."""

    rules: list[RetentionRule]
    revision: int | None = None


class RetentionView(Message, omit_defaults=False):
    """`default` is how long all other events are kept; `revision` is 0 before the first rules."""

    rules: list[RetentionRule]
    default: str
    revision: int


class ReachedRequest(Message):
    """`events.reached`, asked of every replica: answered, with the same, once the replica works by what the bucket
    (`worlds` or `retention`) held at the revision; with `settle` also no append is under way that began before, and
    the index has forgotten what is purged."""

    bucket: str
    revision: int
    settle: bool = False
