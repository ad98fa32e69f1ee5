"""Every event type: its name and aliases, what its payload may be, and how sets of types are written."""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import Any

import msgspec

from crucible_core import envelope
from crucible_core.decode import check_depth, check_keys, malformed, refused
from crucible_core.limits import TYPE_NAME_CHARS
from crucible_core.protocol.events import EventType
from crucible_core.suggest import nearest
from crucible_core.types import synonyms
from crucible_core.types.kinds import BUILT_IN, AnyKind, Kind, Registered, read_object
from crucible_core.types.names import (
    ANY_CUSTOM,
    CATEGORY_ALIASES,
    UnknownTypeError,
    aliases,
    category_spellings,
    custom,
    no_field,
    refusal,
    shown,
    spellings,
    unknown,
)
from crucible_core.types.payloads import CATEGORIES, OURS, RESERVED
from crucible_core.types.shape import Outside, Shape, suggestion, walk

__all__ = [
    "ANY_CUSTOM",
    "CATALOGUE",
    "CATEGORIES",
    "CATEGORY_ALIASES",
    "OWN",
    "TYPE_NAME_CHARS",
    "Catalogue",
    "Kind",
    "Registered",
    "UnknownTypeError",
]

_SHOWN = 100
_HEAD = re.compile(r"[.:_]")
_CUSTOM = re.compile(r"custom[.:_](?P<name>.*)", re.IGNORECASE | re.DOTALL)

OWN = frozenset(
    word.casefold() for category in CATEGORIES for word in (category, *CATEGORY_ALIASES.get(category, ()))
) | {"custom"}
"""The categories that are built in, by every name and case folded: users make others."""

# What other systems call the same thing. Graph's events are also known without their category, see `_aliases`.
TYPE_ALIASES: Mapping[str, tuple[str, ...]] = {
    "Tool.BeforeCall": ("before_tool_call", "pre_tool_use", "PreToolUse"),
    "Tool.AfterCall": ("after_tool_call", "post_tool_use", "PostToolUse"),
    "Tool.ResultPersisting": ("tool_result_persist",),
    "Tool.Failed": ("tool_error",),
    "Agent.Bootstrapping": ("agent:bootstrap", "agent_bootstrap"),
    "Agent.Starting": ("before_agent_start",),
    "Agent.RunStarting": ("before_agent_run",),
    "Agent.ModelResolving": ("before_model_resolve",),
    "Agent.TurnPreparing": ("agent_turn_prepare",),
    "Agent.PromptBuilding": ("before_prompt_build",),
    "Agent.HeartbeatPreparing": ("heartbeat_prompt_contribution",),
    "Agent.ModelCallStarted": ("model_call_started",),
    "Agent.ModelCallEnded": ("model_call_ended",),
    "Agent.LlmInput": ("llm_input",),
    "Agent.LlmOutput": ("llm_output",),
    "Agent.Replying": ("before_agent_reply",),
    "Agent.Finalizing": ("before_agent_finalize",),
    "Agent.Ended": ("agent_end", "agent:end"),
    "Agent.Failed": ("agent_error", "agent:error"),
    "Agent.Recalling": ("before_recall",),
    "Agent.Recalled": ("after_recall",),
    "Agent.SubagentSpawning": ("subagent_spawning",),
    "Agent.SubagentSpawned": ("subagent_spawned",),
    "Agent.SubagentDelivering": ("subagent_delivery_target",),
    "Agent.SubagentEnded": ("subagent_ended",),
    "Session.Resetting": ("before_reset",),
    "Session.Updated": ("session:patch", "session_patch"),
    "Session.Started": ("session_start", "session:start", "SessionStart"),
    "Session.Ended": ("session_end", "session:end", "SessionEnd"),
    "Session.Compacting": ("before_compaction", "session:compact:before", "pre_compact", "PreCompact"),
    "Session.Compacted": ("after_compaction", "session:compact:after", "post_compact", "PostCompact"),
    "Gateway.Started": ("gateway_start", "gateway:startup"),
    "Gateway.Starting": ("gateway_pre_start",),
    "Gateway.Stopping": ("gateway_pre_stop",),
    "Gateway.Stopped": ("gateway_stop", "gateway:shutdown", "deactivate"),
    "Gateway.Installing": ("before_install",),
    "Gateway.CronChanged": ("cron_changed",),
    "Message.Claiming": ("inbound_claim",),
    "Message.Writing": ("before_message_write",),
    "Message.Dispatching": ("before_dispatch",),
    "Message.ReplyDispatching": ("reply_dispatch",),
    "Message.PayloadSending": ("reply_payload_sending",),
}


class Catalogue:
    """An immutable set of event types. Paths in its errors are relative to what the caller names by `path`."""

    def __init__(self, kinds: Iterable[AnyKind]) -> None:
        """Raises ValueError where two kinds claim one name."""
        self._kinds = {kind.dotted: kind for kind in kinds}
        self._names = spellings(self._kinds.values())
        self._sets = _sets(self._kinds.values())
        if taken := self._sets.keys() & self._names.keys():
            raise ValueError(f"{min(taken)} would name a type, and all types of a category")
        self._readers = {dotted: kind.reader() for dotted, kind in self._kinds.items()}
        self.registered = {dotted: kind for dotted, kind in self._kinds.items() if isinstance(kind, Registered)}

    def extended(self, kinds: Iterable[AnyKind]) -> "Catalogue":
        """These types and `kinds`, which replace those of the same name."""
        return Catalogue((self._kinds | {kind.dotted: kind for kind in kinds}).values())

    def resolve(self, name: str, path: str = "type", *, near: bool = True) -> str:
        """The canonical `Category.Event` of a type or alias. Raises UnknownTypeError, with the nearest known type where
        it is to look for that, which takes some milliseconds."""
        return self._names.get(name) or self._resolve(name, path, near)

    def has(self, dotted: str) -> bool:
        """True if it knows what a canonical name says: one that was registered later it does not."""
        return dotted in self._kinds or dotted.startswith("Custom.")

    def is_own(self, name: str) -> bool:
        """True if a type, alias or wildcard, known or not, begins with a category that is built in."""
        return _HEAD.split(name, maxsplit=1)[0].casefold() in OWN

    def expand(self, pattern: str, path: str = "type") -> frozenset[str] | None:
        """The types that a type, alias, wildcard or category stands for; None is every type there is.

        `Custom.*` expands to itself (`ANY_CUSTOM`), and so does the wildcard of a category that users made, since its
        types come and go. Raises InvalidError with the nearest known type or wildcard.
        """
        if pattern == "*":
            return None
        if (found := self._sets.get(pattern.casefold())) is not None:
            return found
        if "*" in pattern:
            found_set = self._nearest(pattern, [*self._wildcards(), "*"])
            raise unknown(pattern, found_set, path, own=self.is_own(pattern))
        return _only(self.resolve(pattern, path))

    def members(self, types: Iterable[str]) -> frozenset[str]:
        """The types that `expand` gave, with those that are there now in place of a wildcard; `Custom.*` stays."""
        found: set[str] = set()
        for name in types:
            if name.endswith(".*") and name != ANY_CUSTOM:
                found.update(dotted for dotted, kind in self.registered.items() if f"{kind.category}.*" == name)
            else:
                found.add(name)
        return frozenset(found)

    def warning(self, patterns: Iterable[str]) -> str | None:
        """Why a handler of some types, aliases or wildcards may wait for ever: one of them stands for nothing but types
        that nobody emits. None where each can happen."""
        found: set[str] = set()
        for pattern in patterns:
            with suppress(UnknownTypeError):  # an unknown one says so itself
                types = self.expand(pattern)
                found |= types if types is not None and types <= RESERVED else set()
        if not found:
            return None
        named = ", ".join(sorted(found)[:3]) + (" …" if len(found) > 3 else "")
        outside = any(dotted.partition(".")[0] not in OURS for dotted in found)
        return f"nobody emits {named} yet: reserved" + (", unless a client sends it" if outside else "")

    def validate(self, dotted: str, payload: bytes) -> Any:
        """The payload (JSON), decoded and checked against its type: a Struct, or an object of a type that users
        registered, whose schema is not asked here. Raises MalformedError, or InvalidError with paths `payload.…`."""
        return self.read(dotted, payload)[0]

    def canonical(self, dotted: str, payload: bytes) -> bytes:
        """The payload, checked, with every field under its canonical name: the same bytes where they are so already.
        Raises as `validate` does."""
        return self.read(dotted, payload)[1]

    def read(self, dotted: str, payload: bytes) -> tuple[Any, bytes]:
        """The result of `validate` and `canonical`."""
        check_depth(payload, "payload")
        read = self._readers.get(dotted)
        if read is None:
            read = read_object if dotted.startswith("Custom.") else self._reader_of(dotted)
        try:
            value, refusal = envelope.read(read, payload), None
        except msgspec.ValidationError as error:
            # With its traceback it would hold this frame, which holds it: both, and the payload, would stay.
            value, refusal = None, error.with_traceback(None)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise malformed(error, "payload") from None
        if isinstance(value, dict):
            check_keys(payload, "payload", "payload", value)
        else:
            check_keys(payload, "payload", "payload")
        kind = self._kinds.get(dotted)
        if kind is None and not dotted.startswith("Custom."):
            kind = self._kinds.get(self.resolve(dotted))
        if isinstance(kind, Kind) and (refusal or kind.open):
            renamed = synonyms.renamed(kind.payload, payload)
            if renamed is not None:
                return self._read_renamed(dotted, kind, read, renamed)
        if refusal:
            shape = kind.payload if isinstance(kind, Kind) else dict
            raise refused(refusal, shape, dotted[:_SHOWN], "payload") from None
        return value, payload

    def _read_renamed(
        self, dotted: str, kind: Kind, read: Callable[[bytes], Any], renamed: synonyms.Renamed
    ) -> tuple[Any, bytes]:
        try:
            return read(renamed.payload), renamed.payload
        except msgspec.ValidationError as error:
            raise renamed.as_sent(refused(error, kind.payload, dotted[:_SHOWN], "payload")) from None

    def types(self) -> list[EventType]:
        """All types, as users read of them; `Custom.*` is the last."""
        return [*self._described, _CUSTOM_TYPE]

    def type(self, name: str, path: str = "type") -> EventType:
        """One of them, by its name or an alias; a custom name that nobody registered is like `Custom.*`."""
        if name == ANY_CUSTOM:
            return _CUSTOM_TYPE
        dotted = self.resolve(name, path)
        if kind := self._kinds.get(dotted):
            return kind.described(aliases(kind))
        return msgspec.structs.replace(_CUSTOM_TYPE, type=dotted, schema={"title": dotted, "type": "object"})

    def fields(self, dotted: str) -> Shape | None:
        """The shape of a type's payload (see `shape.Shape`); None where it may have any field."""
        if dotted == ANY_CUSTOM:
            return None
        kind = self._kinds.get(self.resolve(dotted))
        return kind.shape if kind else None

    def check_path(self, types: Iterable[str] | None, path: str, *, stored: bool = False) -> None:
        """Raises InvalidError (with the nearest path) where no payload of `types`, which are canonical or as `expand`
        gives them, can have a field at the dotted `path`; `stored` only knows the names under which payloads are
        stored, as who reads them without a filter must."""
        outsides = {}
        for dotted in self.members(types or ()):
            try:
                walk(self.fields(dotted), path)
                if stored and synonyms.canonical_path(dotted, path) != path:
                    raise Outside([])
            except Outside as outside:
                outsides[dotted] = outside.with_traceback(None)
            else:
                return
        if outsides:
            near = suggestion(path, outsides.values())
            if stored:
                named = (synonyms.canonical_path(dotted, path) for dotted in sorted(outsides))
                near = next((name for name in named if name != path), near)
                near = near and synonyms.canonical_path(min(outsides), near)
            raise no_field(path, sorted(outsides), near)

    def example(self, dotted: str) -> dict[str, Any]:
        """A valid payload of a type."""
        kind = self._kinds.get(self.resolve(dotted))
        return kind.example() if kind else {"message": "hello"}

    # ---- what is not found at first sight ----------------------------------------------------------------------------

    def _resolve(self, name: str, path: str, near: bool) -> str:
        if found := self._names.get(name.casefold()):
            return found
        if match := _CUSTOM.fullmatch(name):
            return custom(match["name"], path)
        if "*" in name:
            raise refusal(path, f"{shown(name)} names many types, and one is needed here")
        raise unknown(name, self._nearest(name, self._names) if near else None, path, own=self.is_own(name))

    def _nearest(self, name: str, known: Iterable[str]) -> str | None:
        found = nearest(name[:_SHOWN].replace(":", "."), [other for other in known if ":" not in other])
        return self._names.get(found, found) if found else None

    def _wildcards(self) -> list[str]:
        return [*dict.fromkeys(f"{kind.category}.*" for kind in self._kinds.values()), ANY_CUSTOM]

    def _reader_of(self, dotted: str) -> Callable[[bytes], Any]:
        return self._readers.get(self.resolve(dotted), read_object)

    @cached_property
    def _described(self) -> tuple[EventType, ...]:
        return tuple(kind.described(aliases(kind)) for kind in self._kinds.values())


@lru_cache(maxsize=4096)
def _only(dotted: str) -> frozenset[str]:
    """One set for each type, however many filters name it."""
    return frozenset({dotted})


def _sets(kinds: Iterable[AnyKind]) -> dict[str, frozenset[str]]:
    """From every spelling of a whole category, case folded, to its types. Raises ValueError where two categories are
    spelt alike."""
    members: dict[str, set[str]] = {"Custom": {ANY_CUSTOM}}
    for kind in kinds:
        open_ended = kind.category not in CATEGORIES and isinstance(kind, Registered)
        name = f"{kind.category}.*" if open_ended or kind.category == "Custom" else kind.dotted
        members.setdefault(kind.category, set()).add(name)
    sets: dict[str, frozenset[str]] = {}
    for category, types in members.items():
        for spelling in category_spellings(category):
            if spelling in sets:
                raise ValueError(f"{spelling} would name two categories")
            sets[spelling] = frozenset(types)
    return sets


_CUSTOM_TYPE = EventType(
    type=ANY_CUSTOM,
    description="Anything that users name themselves; the payload is any object.",
    aliases=[],
    open=True,
    schema={"title": ANY_CUSTOM, "type": "object"},
    version=BUILT_IN,
    versions=[BUILT_IN],
)

CATALOGUE = Catalogue(
    Kind(category, event, payload, TYPE_ALIASES.get(f"{category}.{event}", ()))
    for category, events in CATEGORIES.items()
    for event, payload in events.items()
)
