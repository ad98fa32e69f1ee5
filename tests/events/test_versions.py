"""Expected sequences under writers that all change the same entities: no accepted write is made on an old version."""

import random
from asyncio import gather
from collections import defaultdict
from typing import Any

import pytest

from crucible_core.envelope import decode
from crucible_core.errors import ConflictError
from crucible_core.protocol.events import Appended, NewEvent

from .conftest import Asker, Replicas, new

ENTITIES = {"mem_a": "Memory.Deleted", "mem_b": "Memory.Deleted", "a": "Custom.counted", "b": "Custom.counted"}
"""Of a versioned category, whose expectations JetStream checks alone, and of another, whose entities share subjects."""
WRITERS = 8
ROUNDS = 12


class Writer:
    """Reads, then writes on what it read, alone or several entities at once."""

    def __init__(self, ask: Asker, number: int, seed: int) -> None:
        self.ask = ask
        self.random = random.Random(f"{seed} {number}")
        self.name = f"w{number}"
        self.known = dict.fromkeys(ENTITIES, 0)
        self.bases: dict[str, int | None] = {}
        self.conflicts: list[tuple[str, int]] = []

    async def run(self) -> None:
        for turn in range(ROUNDS):
            chosen = self.random.sample(list(ENTITIES), self.random.randint(1, 3))
            if len(chosen) == 1 or self.random.random() < 0.4:
                await self.singly(turn, chosen)
            else:
                await self.atomically(turn, chosen)

    async def singly(self, turn: int, chosen: list[str]) -> None:
        events = [self.event(turn, entity, self.known[entity]) for entity in chosen]
        for event, result in zip(events, await self.ask.append(*events), strict=True):
            if result.error is None:
                self.accepted(event, result)
            else:
                assert result.error.code == "conflict", result.error
                self.learned(event.entity or "", result.error.extra)

    async def atomically(self, turn: int, chosen: list[str]) -> None:
        events = [self.event(turn, entity, self.known[entity]) for entity in chosen]
        more = self.random.choice(chosen)
        events.append(self.event(turn, more, None))
        try:
            results = await self.ask.append(*events, atomic=True)
        except ConflictError as error:
            place = int(error.detail.partition(":")[0].removeprefix("events."))
            self.learned(chosen[place], error.extra)
        else:
            sequences = [result.sequence or 0 for result in results]
            assert sequences == list(range(sequences[0], sequences[0] + len(events)))
            for event, result in zip(events, results, strict=True):
                self.accepted(event, result)

    def event(self, turn: int, entity: str, expected: int | None) -> NewEvent:
        id = f"evt_{self.name}_{turn}_{entity}{'' if expected is not None else '_more'}"
        return new(ENTITIES[entity], {"id": entity}, id=id, entity=entity, expected_sequence=expected)

    def accepted(self, event: NewEvent, result: Appended) -> None:
        assert not result.duplicate
        assert event.id
        self.bases[event.id] = event.expected_sequence
        self.known[event.entity or ""] = result.sequence or 0

    def learned(self, entity: str, extra: dict[str, Any]) -> None:
        current = extra["current_sequence"]
        assert current > self.known[entity], "the entity has moved on from what was expected"
        self.conflicts.append((entity, current))
        self.known[entity] = current


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_each_accepted_write_is_made_on_the_one_before_it(
    replicas: Replicas, ask: Asker, count: int, seed: int
) -> None:
    async with replicas(count):
        writers = [Writer(ask, number, seed) for number in range(WRITERS)]
        await gather(*(writer.run() for writer in writers))
        bases = {id: base for writer in writers for id, base in writer.bases.items()}
        chains = await logged(ask)
        assert sum(map(len, chains.values())) == len(bases)
        for entity, chain in chains.items():
            before = 0
            for sequence, id in chain:
                assert bases[id] in (before, None), f"{entity}: {id} at {sequence}, after {before}"
                before = sequence
        for entity, current in (conflict for writer in writers for conflict in writer.conflicts):
            assert current in {sequence for sequence, _ in chains[entity]}
        await conflicts_name_the_last(ask, {entity: chain[-1][0] for entity, chain in chains.items()})


async def logged(ask: Asker) -> dict[str, list[tuple[int, str]]]:
    """By entity, the sequences and ids of its events, by the stream itself."""
    chains: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for sequence in range(1, await ask.last() + 1):
        message = await ask.bus.get(ask.bus.names.events, sequence)
        assert message is not None
        event = decode(message.data)
        chains[event.metadata.entity or ""].append((sequence, event.metadata.id))
    return chains


async def conflicts_name_the_last(ask: Asker, last: dict[str, int]) -> None:
    """While nobody writes, whatever way it is asked."""
    for entity, sequence in last.items():
        for stale in (0, sequence - 1, sequence + 1):
            event = new(ENTITIES[entity], {"id": entity}, entity=entity, expected_sequence=stale)
            result = await ask.one(event)
            assert result.error is not None
            assert result.error.extra == {"current_sequence": sequence}
            with pytest.raises(ConflictError, match=r"^events\.1: ") as caught:
                await ask.append(new(), event, atomic=True)
            assert caught.value.extra == {"current_sequence": sequence}
