"""Many events on their way to the log: put together into batches, and sent again where something was away. No I/O."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence

from crucible_client.calls.events import append_lines, line_of
from crucible_client.request import Call, Json
from crucible_client.results import Batch, BatchItem
from crucible_client.retries import Retries, wait_s
from crucible_core.errors import CrucibleError, LimitedError, UnavailableError

BATCH_EVENTS = 500
BATCH_BYTES = 4 * 1024 * 1024


class Packer:
    """Lines until they make a batch: so many, or so many bytes."""

    def __init__(self, most_events: int) -> None:
        self._most_events = min(most_events, BATCH_EVENTS)
        self._lines: list[bytes] = []
        self._bytes = 0

    def add(self, event: Json | bytes) -> list[bytes] | None:
        """The batch that is complete without this event, if there is one."""
        line = line_of(event)
        full = len(self._lines) >= self._most_events or self._bytes + len(line) > BATCH_BYTES
        done = self.rest() if full else None
        self._lines.append(line)
        self._bytes += len(line)
        return done

    def rest(self) -> list[bytes] | None:
        lines, self._lines, self._bytes = self._lines, [], 0
        return lines or None


def packed(events: Iterable[Json | bytes], most_events: int) -> Iterator[list[bytes]]:
    """Batches of lines, each as soon as it is complete."""
    packer = Packer(most_events)
    for event in events:
        if (batch := packer.add(event)) is not None:
            yield batch
    if (batch := packer.rest()) is not None:
        yield batch


async def packed_async(
    events: Iterable[Json | bytes] | AsyncIterable[Json | bytes], most_events: int
) -> AsyncIterator[list[bytes]]:
    """The same of what comes asynchronously, or not."""
    if isinstance(events, Iterable):
        for batch in packed(events, most_events):
            yield batch
        return
    packer = Packer(most_events)
    async for event in events:
        if (done := packer.add(event)) is not None:
            yield done
    if (last := packer.rest()) is not None:
        yield last


class PendingBatch:
    """One batch: what became of each event, and which of them still have to be sent. All of them have ids."""

    def __init__(self, lines: Sequence[bytes], react: bool) -> None:
        self._lines = lines
        self._react = react
        self._left = list(range(len(lines)))
        self._attempt = 0
        self.results = [BatchItem() for _ in lines]

    def call(self) -> Call[Batch]:
        """The request for those that are left."""
        return append_lines([self._lines[index] for index in self._left], react=self._react)

    def take(self, answer: Batch, policy: Retries, jitter: float) -> float | None:
        """Seconds until those go again for which something was away; None when it is over."""
        if len(answer.results) != len(self._left):
            raise CrucibleError(f"{len(self._left)} events were sent, and {len(answer.results)} answered")
        for index, item in zip(self._left, answer.results, strict=True):
            self.results[index] = item
        away = {index: error for index in self._left if (error := self.results[index].exception) and _passes(error)}
        self._left = list(away)
        self._attempt += 1
        if not away:
            return None
        return wait_s(policy, self._attempt, away[self._left[0]], repeatable=True, jitter=jitter)


def _passes(error: CrucibleError) -> bool:
    return isinstance(error, UnavailableError | LimitedError)
