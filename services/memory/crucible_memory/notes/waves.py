"""Steps carried out in waves: as many at once as are about different memories, all that comes of them in one commit.

Of each step, its Memory events and its File.Processed are stored together or not at all, and File.Processed only once,
by its id. So a step may be taken again at any time, by anybody: what is told is done.
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
from crucible_memory.notes.note import IN_PLACE, parse
from crucible_memory.notes.steps import Effect, Known, Removed, Step, decide
from crucible_memory.writer import Writer

log = logging.getLogger(__name__)

_AT_ONCE = 200
_EVENTS = 500
_BYTES = 2 * 1024 * 1024
"""What one commit may have, and one request."""
_FINAL = (DeniedError, ForbiddenError, InvalidError, MalformedError, TooLargeError)
"""What another try would meet again. A denial is recorded by the hook that spoke it."""
_NAMED = re.compile(r"events\.(\d+)\.?(.*)", re.DOTALL)
"""How the refusal of several events names one of them."""
_TRIES = 12
_PAUSE_S = 0.01


class Waves:
    def __init__(self, writer: Writer, metrics: Metrics) -> None:
        self._writer = writer
        self._removed = Removed()
        self._results = metrics.counter("memory_files", "File events by what came of them", ("result",))

    def count(self, result: str) -> None:
        self._results.labels(result).inc()

    async def carry_out(self, steps: list[Step]) -> None:
        """Returns once all is stored that comes of them. May be cut off, and repeated."""
        done, turn = 0, Turn()
        while done < len(steps):
            for place in range(done, min(done + _AT_ONCE, len(steps))):
                steps[place] = await _with_note(steps[place])
                if turn.over:
                    await turn.pass_on()
            some = steps[done : done + _AT_ONCE]
            effects = self._wave(some, await self._known(some))
            for apart in self._by_stream(effects):
                for part in _parts(apart):
                    await self._store(part)
            done += len(effects)

    async def _known(self, steps: Sequence[Step]) -> Known:
        places = {(step.cause.world_id, place) for step in steps for place in step.places}
        ids = {(step.usual_id, step.cause.world_id) for step in steps if step.action != "remove"}
        for step in steps:
            if step.note and (earlier := self._removed.find(step, step.note.content)):
                ids.add((earlier.id, earlier.world_id))
        return Known(*await self._writer.known(places, ids))

    def _wave(self, steps: Sequence[Step], known: Known) -> list[Effect]:
        """What comes of the first ones, up to one that is about what another changes."""
        effects: list[Effect] = []
        touched: set[object] = set()
        for step in steps:
            effect = self._decided(step, known)
            about = {*effect.ids, *((step.cause.world_id, place) for place in step.places)}
            if not touched.isdisjoint(about):
                break
            touched |= about
            effects.append(effect)
            self._remember(effect)
        return effects

    def _by_stream(self, effects: Sequence[Effect]) -> list[list[Effect]]:
        """What is stored together is of one stream of the log. Those of a wave are about different memories."""
        found: dict[str, list[Effect]] = {}
        for effect in effects:
            found.setdefault(self._writer.stream_of(effect.step.cause.world_id), []).append(effect)
        return list(found.values())

    def _decided(self, step: Step, known: Known) -> Effect:
        try:
            return decide(step, known, self._removed)
        except TooLargeError as error:
            return Effect(step, "refused", problems=[error.detail])

    def _remember(self, effect: Effect) -> None:
        if effect.removed is not None:
            self._removed.put(effect.step, effect.removed)
        if effect.earlier is not None:
            self._removed.forget(effect.step, effect.earlier)

    async def _store(self, effects: Sequence[Effect]) -> None:
        """Those that are refused are told so, and the others stored without them. Where it is not said which, each half
        is tried: what one of them meets, the other need not."""
        try:
            await self._append(effects)
        except (*_FINAL, ConflictError) as error:
            refused = {} if isinstance(error, ConflictError) else _refused_ones(effects, error)
            if len(effects) == 1 and not refused:
                await self._alone(effects[0].step)
                return
            for place, detail in refused.items():
                await self._refuse(effects[place].step, error, detail)
            left = [effect for place, effect in enumerate(effects) if place not in refused]
            log.info("what comes of %d notes is stored anew: %s", len(left), error.detail)
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
            # The memories that had an id before have gone: the index does not know which was the last event of that.
            if not await self._corrected(events):
                raise
            await self._writer.append_whole(events)
        for effect in effects:
            self.count(effect.status)

    async def _corrected(self, events: Sequence[NewEvent]) -> bool:
        """Whether other sequences are expected now of memories that there are not."""
        new = [event for event in events if event.entity is not None and event.expected_sequence == 0]
        last = await self._writer.last_of_each([(event.entity or "", event.world_id) for event in new])
        for event in new:
            event.expected_sequence = last[event.entity or "", event.world_id]
        return any(last.values())

    # ---- one by one

    async def _alone(self, step: Step) -> None:
        """One step, on what there is now, and again where somebody was first."""
        for left in range(_TRIES, 0, -1):
            effect = await self._effect(step)
            try:
                await self._append([effect])
                break
            except ConflictError as error:
                if await self._is_done(effect):
                    break
                if left == 1:
                    raise
                log.debug("%s: again: %s", step.place.path, error.detail)
            except _FINAL as error:
                await self._refuse(step, error, _refused_ones([effect], error)[0])
                break
            await asyncio.sleep(random.uniform(0, _PAUSE_S * 2 ** min(_TRIES - left, 5)))

    async def _effect(self, step: Step) -> Effect:
        """Also of a memory whose last event the index has passed over."""
        effect = self._decided(step, await self._known([step]))
        ids = {(event.entity, event.world_id) for event in effect.changes if event.entity is not None}
        last = await self._writer.last_of_each(ids)
        return self._decided(step, msgspec.structs.replace(await self._known([step]), last=last))

    async def _is_done(self, effect: Effect) -> bool:
        """Whether the step was taken before. The version before did not tell of it in the same commit."""
        if await self._writer.is_appended(effect.told):
            self.count("unchanged")
            return True
        if effect.changes and await self._writer.is_appended(effect.changes[0]):
            await self._append([msgspec.structs.replace(effect, changes=[])])
            return True
        return False

    async def _refuse(self, step: Step, error: CrucibleError, detail: str) -> None:
        log.warning("%s: no memory of it: %s", step.place.path, detail)
        refused = Effect(step, "denied" if isinstance(error, DeniedError) else "refused", problems=[detail])
        try:
            await self._append([refused])
        except (*_FINAL, ConflictError) as reason:
            # As at the end of a chain of effects; the service's own log has it.
            self.count(refused.status)
            log.warning("%s: File.Processed is not recorded: %s", step.place.path, reason)


def _refused_ones(effects: Sequence[Effect], error: CrucibleError) -> dict[int, str]:
    """By their place, those of which an event was refused, and why. Of one alone, it need not be said."""
    owners = [place for place, effect in enumerate(effects) for _ in effect.all_events]
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


async def _with_note(step: Step) -> Step:
    """A reason is a problem of the note."""
    if step.note is not None or (step.content is None and step.reason is None):
        return step
    path, content = step.place.path, step.content or ""
    note = parse(content, path) if len(content) <= IN_PLACE else await asyncio.to_thread(parse, content, path)
    problems = [step.reason, *note.problems] if step.reason else note.problems
    return msgspec.structs.replace(step, note=msgspec.structs.replace(note, problems=problems))
