"""The functions of scripts: their log, reads and effects, each effect with its cause and an idempotency key."""

import hashlib
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import msgspec

from crucible_core.access import Principal
from crucible_core.envelope import Event, Source, moment_ms
from crucible_core.errors import NotFoundError, TooLargeError, UnavailableError
from crucible_core.ids import derive_id
from crucible_core.limits import EVENT_BYTES, HOOK_EFFECTS, HOOK_LOG_CHARS, HOOK_LOG_LINES
from crucible_core.protocol.events import NewEvent
from crucible_core.protocol.memory import Cause, Link, MemoryList, MemoryQuery, MemoryView, WriteMemory, WrittenMemory
from crucible_core.protocol.parts import GetRequest
from crucible_hooks.expressions.cel import plain
from crucible_kit.events import append_one
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import call

READING = ("log", "memory_get", "memory_query")
"""The functions of Pre hooks and conditions."""
EFFECTS = ("emit", "memory_link", "memory_tag")
"""The further functions of Post hooks' actions."""
_SHOWN = 200


class Effects:
    """The effects and the log of one attempt, with the rights of the hook's `owner`. A dry run only notes effects, and
    invents memories that are absent, since a synthetic event names some that never existed."""

    def __init__(
        self,
        bus: Bus,
        owner: Principal,
        event: Event,
        hook: str,
        run_id: str,
        traceparent: str,
        dry_run: bool,
    ) -> None:
        self._bus = bus
        self._owner = owner
        self._event = event
        self._hook = hook
        self._run_id = run_id
        self._traceparent = traceparent
        self._dry_run = dry_run
        self._repeats: Counter[str] = Counter()
        self.effects: list[str] = []
        self.lines: list[str] = []

    def functions(self, *, reading: bool) -> Mapping[str, Callable[..., Awaitable[Any]]]:
        """The functions of a script, by name."""
        return {name: getattr(self, name) for name in (READING if reading else (*READING, *EFFECTS))}

    async def log(self, *values: Any) -> None:
        self.print(" ".join(value if isinstance(value, str) else str(value) for value in values))

    def print(self, text: str) -> None:
        for line in text.splitlines():
            if line.strip() and len(self.lines) < HOOK_LOG_LINES:
                self.lines.append(line[:HOOK_LOG_CHARS])

    async def emit(self, type: str, payload: dict[str, Any] | None = None, entity: str | None = None) -> dict[str, Any]:
        """Appends an event; returns its `id` and `sequence`."""
        self._note(f"{type} {entity or ''}".strip())
        encoded = msgspec.json.encode(plain(payload or {}))
        if len(encoded) > EVENT_BYTES:
            raise TooLargeError(f"an event may have {EVENT_BYTES} bytes")
        if self._dry_run:
            return {"id": None, "sequence": None}
        key = self._key("emit", type, payload, entity)
        cause = self._cause(key)
        event = NewEvent(
            type=type,
            payload=msgspec.Raw(encoded),
            id=derive_id("evt", moment_ms(self._event), key),
            entity=entity,
            source=cause.source,
            actor=cause.actor,
            correlation_id=cause.correlation_id,
            causation_id=cause.causation_id,
            hop=cause.hop,
            world_id=cause.world_id,
            room_id=cause.room_id,
            traceparent=cause.traceparent,
            outside=True,
        )
        appended = await append_one(self._bus, self._owner, event, traceparent=self._traceparent)
        return {"id": appended.id, "sequence": appended.sequence}

    async def memory_get(self, id: str) -> dict[str, Any]:
        """A memory. Raises LookupError in the script where there is none."""
        try:
            found = await self._ask("get", GetRequest(id=id), MemoryView)
        except (NotFoundError, UnavailableError):
            if not self._dry_run:
                raise
            return self._synthetic_memory(id)
        return dict(plain(found))

    async def memory_query(
        self,
        text: str | None = None,
        tags: list[str] | None = None,
        limit: int = 10,
        filter: dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Memories, the best match first; the triggering event is searched too."""
        query = MemoryQuery(
            text=text,
            tags=tags or [],
            limit=limit,
            filter=filter,
            min_sequence=self._event.sequence,
            world_id=self._event.metadata.world_id,
        )
        try:
            return list(plain((await self._ask("query", query, MemoryList)).memories))
        except UnavailableError:
            if not self._dry_run:
                raise
            return []

    async def memory_link(
        self, id: str, target: str, type: str = "related", weight: float | None = None
    ) -> dict[str, Any]:
        """Links two memories; `changed` is false where the link was there already."""
        self._note(f"Memory.Linked {id} {target}")
        link = Link(target=target, type=type, weight=weight)
        return await self._write(
            "link", WriteMemory(id=id, link=link, cause=self._cause(self._key("link", id, target, type)))
        )

    async def memory_tag(self, id: str, tag: str) -> dict[str, Any]:
        """Puts a tag on a memory; `changed` is false where it was there already."""
        self._note(f"Memory.Tagged {id} {tag}")
        return await self._write("tag", WriteMemory(id=id, tag=tag, cause=self._cause(self._key("tag", id, tag))))

    async def _write(self, operation: str, request: WriteMemory) -> dict[str, Any]:
        if self._dry_run:
            return {"id": request.id, "sequence": None, "changed": True}
        return dict(plain(await self._ask(operation, request, WrittenMemory)))

    async def _ask(self, operation: str, request: msgspec.Struct, reply: type[Any]) -> Any:
        return await call(self._bus, self._owner, "memory", operation, request, reply, traceparent=self._traceparent)

    def _cause(self, key: str) -> Cause:
        metadata = self._event.metadata
        return Cause(
            source=Source("system", f"hook:{self._hook}"),
            actor=f"hook:{self._hook}",
            correlation_id=metadata.correlation_id,
            causation_id=metadata.id,
            hop=metadata.hop + 1,
            world_id=metadata.world_id,
            room_id=metadata.room_id,
            traceparent=self._traceparent,
            key=key,
        )

    def _key(self, *what: Any) -> str:
        """The same for the same effect of the same run, in every attempt at it; a repetition inside one attempt counts.

        Made of the effect itself, not of the number of effects before it: a second attempt may do other things first.
        """
        digest = hashlib.sha256(msgspec.json.encode(plain(what))).hexdigest()[:24]
        self._repeats[digest] += 1
        return f"{self._run_id}:{digest}:{self._repeats[digest]}"

    def _note(self, effect: str) -> None:
        if len(self.effects) >= HOOK_EFFECTS:
            raise RuntimeError(f"a run may have {HOOK_EFFECTS} effects")
        self.effects.append(effect[:_SHOWN])

    def _synthetic_memory(self, id: str) -> dict[str, Any]:
        payload = self._event.data.payload
        empty = {"content": "", "tags": [], "entities": [], "links": [], "metadata": {}}
        return empty | {"id": id} | {name: payload[name] for name in empty if payload.get(name) is not None}


def signatures(names: Iterable[str]) -> dict[str, inspect.Signature]:
    """The signature of each function."""
    found = {}
    for name in names:
        parameters = list(inspect.signature(getattr(Effects, name)).parameters.values())[1:]
        found[name] = inspect.Signature([one.replace(annotation=inspect.Parameter.empty) for one in parameters])
    return found
