"""Positions: places in a log of one stream or several, and how they are written."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.limits import STREAMS
from crucible_core.position import Position, base_of, decoded, in_stream, parsed, stream_number
from crucible_core.subjects import Names

locals_ = st.integers(min_value=0, max_value=2**47 - 1)
several = st.lists(locals_, min_size=1, max_size=5)


def position(ends: list[int]) -> Position:
    return decoded(ends[0] if len(ends) == 1 else tuple(ends), len(ends))


@given(locals_)
def test_of_one_stream_it_is_its_sequence(sequence: int) -> None:
    assert position([sequence]).encoded == sequence
    assert position([sequence]).text == str(sequence)
    assert position([sequence]) == Position.start(1).after(sequence)


@given(several)
def test_what_is_written_is_read_again(ends: list[int]) -> None:
    place = position(ends)
    written = msgspec.json.decode(msgspec.json.encode(place.encoded), type=int | tuple[int, ...])
    assert decoded(written, len(ends)) == place
    assert parsed(place.text, len(ends)) == place
    assert parsed(place.text, len(ends) + 1) is None


@given(several.filter(lambda ends: len(ends) > 1), st.data())
def test_it_moves_in_one_stream_at_a_time(ends: list[int], data: st.DataObject) -> None:
    number, local = data.draw(st.integers(0, len(ends) - 1)), data.draw(st.integers(1, 2**47 - 1))
    sequence = base_of(number) + local
    assert (stream_number(sequence), in_stream(sequence)) == (number, local)
    assert sequence < 2**53
    before, after = position(ends), position(ends).after(sequence)
    assert after.covers(sequence)
    assert before.covers(sequence) == (local <= ends[number])
    assert after.reaches(before)
    assert before.before_first([sequence]).reaches(before) == (local > ends[number])
    assert [end for place, end in enumerate(after.ends) if place != number] == [
        end for place, end in enumerate(before.ends) if place != number
    ]


@given(st.lists(st.lists(locals_, min_size=3, max_size=3), min_size=1, max_size=4))
def test_least_and_most_are_of_each_stream(found: list[list[int]]) -> None:
    first, *others = [position(ends) for ends in found]
    least, most = first.least(*others), first.most(*others)
    assert all(most.reaches(one) and one.reaches(least) for one in (first, *others))
    assert least == position([min(ends) for ends in zip(*found, strict=True)])
    assert Position().most(*(first, *others)) == most


@given(st.text(min_size=1, max_size=20), st.integers(1, STREAMS))
def test_a_world_is_in_one_of_the_streams(world: str, streams: int) -> None:
    names = Names("p", streams)
    assert names.stream_of(world) == names.log_streams[names.number_of(world)]
    assert names.stream_with(names.event(world, "main", "Custom", "Made", None)) == names.stream_of(world)
    assert names.stream_with(names.events_in(world)) == names.stream_of(world)
    there = [names.subjects_in(stream, [names.events_in(world)]) for stream in names.log_streams]
    assert [found for found in there if found] == [[names.events_in(world)]]
