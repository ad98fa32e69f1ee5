"""Group commit of edits: as many as are about different memories share one atomic append.

Of each edit, its Memory events and its File.Processed are stored together or not at all, and File.Processed only once,
by its id. So any replica may take an edit again at any time: a recorded edit is done.
"""

import asyncio
import logging
import random
import re
from collections.abc import Iterator, Sequence

import msgspec

from crucible_core.errors import (
    ConflictError,
    CrucibleError,
    DeniedError,
    ForbiddenError,
    InvalidError,
    MalformedError,
    TooLargeError,
)
from crucible_core.protocol.events import NewEvent
from crucible_kit.tasks import Turn
from crucible_kit.telemetry.metrics import Metrics
from crucible_memory.notes.edits import Edit, Effect, Known, RemovedNotes, decide
from crucible_memory.notes.note import IN_PLACE, parse
from crucible_memory.writer import Writer

log = logging.getLogger(__name__)

_AT_ONCE = 200
_EVENTS = 500
_BYTES = 2 * 1024 * 1024
"""The limits of one commit, and of one request."""
_FINAL = (DeniedError, ForbiddenError, InvalidError, MalformedError, TooLargeError)
"""Errors that another try would meet again. The hook that denied an event has its own record."""
_NAMED = re.compile(r"events\.(\d+)\.?(.*)", re.DOTALL)
"""The path by which the refusal of several events names one of them."""
_TRIES = 12
_PAUSE_S = 0.01


class NoteCommitter:
    def __init__(self, writer: Writer, metrics: Metrics) -> None:
        self._writer = writer
        self._removed = RemovedNotes()
        self._results = metrics.counter("memory_files", "File events by what came of them", ("result",))

    def count(self, result: str) -> None:
        self._results.labels(result).inc()

    async def commit(self, edits: list[Edit]) -> None:
        """Returns once all effects of the edits are stored. May be cut off, and repeated."""
        done, turn = 0, Turn()
        while done < len(edits):
            for index in range(done, min(done + _AT_ONCE, len(edits))):
                edits[index] = await _with_note(edits[index])
                if turn.over:
                    await turn.pass_on()
            window = edits[done : done + _AT_ONCE]
            effects = self._batch(window, await self._load(window))
            for group in self._by_stream(effects):
                for part in _parts(group):
                    await self._store(part)
            done += len(effects)

    async def _load(self, edits: Sequence[Edit]) -> Known:
        keys = {(edit.cause.world_id, location) for edit in edits for location in edit.locations}
        ids = {(edit.usual_id, edit.cause.world_id) for edit in edits if edit.action != "remove"}
        for edit in edits:
            if edit.note and (earlier := self._removed.find(edit, edit.note.content)):
                ids.add((earlier.id, earlier.world_id))
        return Known(*await self._writer.load(keys, ids))

    def _batch(self, edits: Sequence[Edit], known: Known) -> list[Effect]:
        """The effects of the first edits, up to one about a memory that another of them changes."""
        effects: list[Effect] = []
        touched: set[object] = set()
        for edit in edits:
            effect = self._decide(edit, known)
            about = {*effect.ids, *((edit.cause.world_id, location) for location in edit.locations)}
            if not touched.isdisjoint(about):
                break
            touched |= about
            effects.append(effect)
            self._remember(effect)
        return effects

    def _by_stream(self, effects: Sequence[Effect]) -> list[list[Effect]]:
        """The effects by stream of the log, since a commit is to one. Their order is free: they are about different
        memories."""
        found: dict[str, list[Effect]] = {}
        for effect in effects:
            found.setdefault(self._writer.stream_of(effect.edit.cause.world_id), []).append(effect)
        return list(found.values())

    def _decide(self, edit: Edit, known: Known) -> Effect:
        try:
            return decide(edit, known, self._removed)
        except TooLargeError as error:
            return Effect(edit, "refused", problems=[error.detail])

    def _remember(self, effect: Effect) -> None:
        if effect.removed is not None:
            self._removed.put(effect.edit, effect.removed)
        if effect.earlier is not None:
            self._removed.forget(effect.edit, effect.earlier)

    async def _store(self, effects: Sequence[Effect]) -> None:
        """Records the refused effects, and stores the others without them. Where the error names none, it stores each
        half: one half may be free of the refused effect."""
        try:
            await self._append(effects)
        except (*_FINAL, ConflictError) as error:
            refused = {} if isinstance(error, ConflictError) else _refusals(effects, error)
            if len(effects) == 1 and not refused:
                await self._alone(effects[0].edit)
                return
            for index, detail in refused.items():
                await self._refuse(effects[index].edit, error, detail)
            left = [effect for index, effect in enumerate(effects) if index not in refused]
            log.info("the effects of %d notes are stored anew: %s", len(left), error.detail)
            middle = len(left) if refused else len(left) // 2
            for part in (left[:middle], left[middle:]):
                if part:
                    await self._store(part)

    async def _append(self, effects: Sequence[Effect]) -> None:
        events = [event for effect in effects for event in effect.all_events]
        try:
            if events:
                await self._writer.append_whole(events)
        except ConflictError:
            # An earlier memory of an id has gone, and the index does not have the last event of that.
            if not await self._correct_expected(events):
                raise
            await self._writer.append_whole(events)
        for effect in effects:
            self.count(effect.status)

    async def _correct_expected(self, events: Sequence[NewEvent]) -> bool:
        """Sets the last sequences of ids without a memory as expected ones; True where there are any."""
        new = [event for event in events if event.entity is not None and event.expected_sequence == 0]
        last = await self._writer.last_of_each([(event.entity or "", event.world_id) for event in new])
        for event in new:
            event.expected_sequence = last[event.entity or "", event.world_id]
        return any(last.values())

    # ---- one by one

    async def _alone(self, edit: Edit) -> None:
        """Commits one edit, decided on the present memories, and again where another change came first."""
        for left in range(_TRIES, 0, -1):
            effect = await self._effect(edit)
            try:
                await self._append([effect])
                break
            except ConflictError as error:
                if await self._is_done(effect):
                    break
                if left == 1:
                    raise
                log.debug("%s: again: %s", edit.location.path, error.detail)
            except _FINAL as error:
                await self._refuse(edit, error, _refusals([effect], error)[0])
                break
            await asyncio.sleep(random.uniform(0, _PAUSE_S * 2 ** min(_TRIES - left, 5)))

    async def _effect(self, edit: Edit) -> Effect:
        """The effect, also on a memory whose last event the index has skipped."""
        effect = self._decide(edit, await self._load([edit]))
        ids = {(event.entity, event.world_id) for event in effect.changes if event.entity is not None}
        last = await self._writer.last_of_each(ids)
        return self._decide(edit, msgspec.structs.replace(await self._load([edit]), last=last))

    async def _is_done(self, effect: Effect) -> bool:
        """True where the edit was taken before. An earlier version recorded that in a commit of its own."""
        if await self._writer.is_appended(effect.processed):
            self.count("unchanged")
            return True
        if effect.changes and await self._writer.is_appended(effect.changes[0]):
            await self._append([msgspec.structs.replace(effect, changes=[])])
            return True
        return False

    async def _refuse(self, edit: Edit, error: CrucibleError, detail: str) -> None:
        log.warning("%s: no memory of it: %s", edit.location.path, detail)
        refused = Effect(edit, "denied" if isinstance(error, DeniedError) else "refused", problems=[detail])
        try:
            await self._append([refused])
        except (*_FINAL, ConflictError) as reason:
            # As at the end of a chain of effects; the service's own log has it.
            self.count(refused.status)
            log.warning("%s: File.Processed is not recorded: %s", edit.location.path, reason)


def _refusals(effects: Sequence[Effect], error: CrucibleError) -> dict[int, str]:
    """By index, the effects with a refused event, and the reason. The error need not name a single one."""
    owners = [index for index, effect in enumerate(effects) for _ in effect.all_events]
    found = {0: error.detail} if len(effects) == 1 else {}
    for field in error.errors:
        if (named := _NAMED.fullmatch(field.path)) and int(named[1]) < len(owners):
            found[owners[int(named[1])]] = f"{named[2]}: {field.message}" if named[2] else field.message
    return found


def _parts(effects: Sequence[Effect]) -> Iterator[list[Effect]]:
    part: list[Effect] = []
    count = size = 0
    for effect in effects:
        more = effect.all_events
        bytes_more = sum(len(bytes(event.payload)) for event in more)
        if part and (count + len(more) > _EVENTS or size + bytes_more > _BYTES):
            yield part
            part, count, size = [], 0, 0
        part.append(effect)
        count, size = count + len(more), size + bytes_more
    if part:
        yield part


async def _with_note(edit: Edit) -> Edit:
    """The edit with its content parsed; a reason is a problem of the note."""
    if edit.note is not None or (edit.content is None and edit.reason is None):
        return edit
    path, content = edit.location.path, edit.content or ""
    note = parse(content, path) if len(content) <= IN_PLACE else await asyncio.to_thread(parse, content, path)
    problems = [edit.reason, *note.problems] if edit.reason else note.problems
    return msgspec.structs.replace(edit, note=msgspec.structs.replace(note, problems=problems))
