"""Parts that the requests of several services share."""

from typing import Any

import msgspec

from crucible_core.limits import PAGE
from crucible_core.position import Encoded


class Message(msgspec.Struct, kw_only=True, omit_defaults=True):
    pass


class Owned(Message):
    """A record in KV says whom it belongs to, in the words of `access`: the `owner` is who registered it, the
    operator where it is empty. With a `world_id` it is for that world only, else for all that its owner may see."""

    owner: str = ""
    world_id: str | None = None


class FormerTypes(Message):
    """The types, as `Catalogue.expand` gives them, that a handler's filters named for events up to a position."""

    types: list[str]
    until: Encoded


class GetRequest(Message):
    """`events.get`, `memory.get`, `hooks.get`, `webhooks.get`, …: one thing by its id or name."""

    id: str


class ListRequest(Message):
    """`hooks.list`, `webhooks.list`, `events.list_worlds`: one page; `cursor` is the `next_cursor` of the one
    before."""

    limit: int = PAGE
    cursor: str | None = None


class TypeFilter(Message, omit_defaults=False):
    """One alternative of a subscription: a type, alias or wildcard, and a filter on its payload."""

    event_type: str
    filter: dict[str, Any] = {}


class Counters(Message, omit_defaults=False):
    matched: int = 0
    invoked: int = 0
    ok: int = 0
    failed: int = 0
    skipped: int = 0
    last_fired: str | None = None


class EnableHook(Message):
    name: str
    enabled: bool


class Check(Message, omit_defaults=False):
    """The result of firing a synthetic event through one handler, for `doctor`: `verdict` is live, disabled, inert,
    failing, or, where a webhook was only connected to, `accepts connections`; `steps` are the links of the chain in
    order, each with whether it held."""

    name: str
    verdict: str
    reason: str | None = None
    duration_ms: float | None = None
    steps: list["CheckStep"] = []


class CheckStep(Message, omit_defaults=False):
    step: str
    ok: bool
    detail: str = ""


class HandlerCheck(Message, omit_defaults=False):
    """`id` is a hook's name, or a webhook's id."""

    id: str
    check: Check


class Checks(Message, omit_defaults=False):
    """`hooks.test_all`, `webhooks.test_all`: one page of checks, all of them dry."""

    checks: list[HandlerCheck]
    next_cursor: str | None = None


class TestRequest(Message):
    """`hooks.test`, `webhooks.test`: fire one synthetic event, of `type` and with `payload` where they are given,
    through a handler.

    With `dry_run` nothing outside is changed: a script's effects are recorded, not made; a webhook's endpoint is only
    connected to.
    """

    id: str
    dry_run: bool = True
    payload: dict[str, Any] | None = None
    type: str | None = None


class Trouble(msgspec.Struct, frozen=True):
    """Something that is wrong and does not pass by itself: a word for machines, a sentence for people."""

    code: str
    message: str


class Readiness(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer of /readyz: the reasons to wait, and the faults."""

    ready: bool
    waiting_for: list[str] = []
    errors: list[Trouble] = []
