"""Positions: how far somebody has come in the log. The only module that knows how sequences and streams hang together.

The log is one stream, or several of which each holds the events of some worlds. A sequence, as the API shows it, has
the number of its stream in its high bits, so that it is unique in the whole log, grows within a world, and is exact as
a JSON number (below 2^53). In the first stream, and so where there is only one, it is JetStream's own.
"""

import functools
from collections.abc import Callable, Iterable, Sequence

import msgspec

_BITS = 47
_LOCAL = (1 << _BITS) - 1

Encoded = int | tuple[int, ...]
"""A position as records keep it: of one stream its sequence, of several the sequence in each."""


def stream_number(sequence: int) -> int:
    """The number of the stream that holds a sequence."""
    return sequence >> _BITS


def base_of(number: int) -> int:
    """The number before the first sequence of a stream."""
    return number << _BITS


def last_in(sequence: int) -> int:
    """The last sequence that the stream which holds this one can have."""
    return sequence | _LOCAL


def in_stream(sequence: int) -> int:
    """A sequence as JetStream counts, in the stream that holds it."""
    return sequence & _LOCAL


def numbered(number: int, sequence: int) -> int:
    """A sequence, of whatever stream, as it would be in the stream of a number."""
    return base_of(number) | in_stream(sequence)


class Position(msgspec.Struct, frozen=True):
    """A position in the log: of each stream, the last sequence before it. It is at the start of a stream that it does
    not tell of. Two of them need not be one after the other, so they have no order."""

    ends: tuple[int, ...] = ()

    @staticmethod
    def start(streams: int) -> "Position":
        return Position(tuple(map(base_of, range(streams))))

    def covers(self, sequence: int) -> bool:
        """True if an event is before this position."""
        ends = self.ends
        return sequence <= (ends[0] if len(ends) == 1 else self.end_of(stream_number(sequence)))

    def end_of(self, number: int) -> int:
        return self.ends[number] if number < len(self.ends) else base_of(number)

    def reaches(self, other: "Position") -> bool:
        """True if everything before the other one is before this one, too."""
        return self.ends == other.ends or all(self.end_of(number) >= end for number, end in enumerate(other.ends))

    def after(self, sequence: int) -> "Position":
        """Moved on to just after an event, where it is not past that already."""
        return self if self.covers(sequence) else self.at(sequence)

    def at(self, sequence: int) -> "Position":
        """Just after an event in its stream, where it was in the others."""
        if len(self.ends) == 1:
            return Position((sequence,))
        number = stream_number(sequence)
        before = tuple(map(self.end_of, range(number)))
        return Position((*before, sequence, *self.ends[number + 1 :]))

    def past(self, sequences: Sequence[int]) -> "Position":
        """Moved to after events that come in the order of each stream, or against it."""
        if len(self.ends) == 1:
            return self.at(sequences[-1]) if sequences else self
        found = self
        for sequence in sequences:
            found = found.at(sequence)
        return found

    def before_first(self, sequences: Iterable[int]) -> "Position":
        """Moved back to before the first of some events, which come in the order of each stream."""
        found = self
        for sequence in sequences:
            found = found.at(sequence - 1) if found.covers(sequence) else found
            if len(self.ends) == 1:
                break
        return found

    def is_near(self, other: "Position", most: int) -> bool:
        """True if there are fewer events than that from here to the other one."""
        return other.count - self.count < most

    def least(self, *others: "Position") -> "Position":
        """The position that all of them have passed."""
        return self._joined(min, others)

    def most(self, *others: "Position") -> "Position":
        """The position that one of them has passed."""
        return self._joined(max, others)

    def _joined(self, choose: Callable[[Iterable[int]], int], others: tuple["Position", ...]) -> "Position":
        streams = max(len(position.ends) for position in (self, *others))
        found = (choose(position.end_of(number) for position in (self, *others)) for number in range(streams))
        return Position(tuple(found))

    @staticmethod
    def end(streams: int) -> "Position":
        """After everything that the streams may ever have."""
        return Position(tuple(last_in(base_of(number)) for number in range(streams)))

    @property
    def several(self) -> bool:
        """True if it is of several streams, so that no sequence says the same."""
        return len(self.ends) > 1

    @property
    def greatest(self) -> int:
        """A sequence just before it: of one stream the last, of several that of the last stream that has any."""
        return next((end for end in reversed(self.ends) if in_stream(end)), 0)

    @property
    def count(self) -> int:
        """The number of events that the streams have had until here, those that are gone again included."""
        return sum(map(in_stream, self.ends))

    @property
    def encoded(self) -> Encoded:
        return self.ends[0] if len(self.ends) == 1 else tuple(map(in_stream, self.ends))

    @property
    def text(self) -> str:
        """The same as a word: digits, and a point between streams."""
        return str(self.ends[0]) if len(self.ends) == 1 else ".".join(str(in_stream(end)) for end in self.ends)


def counted(encoded: Encoded) -> int:
    """The number of events that the log has had until there: of one stream, its sequence."""
    return encoded if isinstance(encoded, int) else sum(encoded)


@functools.lru_cache(maxsize=4096)
def decoded(encoded: Encoded, streams: int) -> Position:
    """A position as a record has it. It is at the start of a stream that it does not tell of."""
    ends = (encoded,) if isinstance(encoded, int) else encoded
    return Position(tuple(base_of(number) + (ends[number] if number < len(ends) else 0) for number in range(streams)))


def parsed(text: str, streams: int) -> Position | None:
    """A position as its `text` has it; None for any other text."""
    ends = text.split(".")
    if len(ends) != streams or not all(part.isascii() and part.isdecimal() and len(part) < 16 for part in ends):
        return None
    return decoded(tuple(map(int, ends)), streams)


def joined(ends: Iterable[int]) -> Position:
    """From the last sequence of each stream."""
    return Position(tuple(ends))
