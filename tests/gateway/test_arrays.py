"""Splitting a JSON array that arrives in pieces."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.errors import MalformedError
from crucible_gateway.body.batches import Splitter
from crucible_gateway.body.events import MAX_SENT_BYTES

texts = st.text(st.sampled_from('a"\\[]{},: \n\u00e4\U0001f600'), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)


def split(raw: bytes, cuts: list[int]) -> list[bytes]:
    splitter = Splitter()
    places = [0, *sorted({cut % (len(raw) + 1) for cut in cuts}), len(raw)]
    found = [element for start, end in pairwise(places) for element in splitter.feed(raw[start:end])]
    splitter.end()
    return found


@given(st.lists(values, max_size=5), st.lists(st.integers(0, 10_000), max_size=20), st.sampled_from(["", " ", "\n"]))
def test_elements_are_those_of_the_array(array: list[Any], cuts: list[int], space: str) -> None:
    raw = msgspec.json.format(msgspec.json.encode(array), indent=1 if space else -1)
    found = split(space.encode() + raw + space.encode(), cuts)
    assert [msgspec.json.decode(element) for element in found] == array


@given(st.binary(max_size=40) | st.text('[]{},":\\1a ', max_size=30).map(str.encode), st.lists(st.integers(0, 99)))
def test_what_is_no_array_is_malformed(raw: bytes, cuts: list[int]) -> None:
    try:
        expected = msgspec.json.decode(raw, type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeError):
        with pytest.raises(MalformedError):
            split(raw, cuts)
    else:
        assert split(raw, cuts) == [bytes(element) for element in expected]


def test_too_long_an_element_is_cut_and_the_next_one_is_whole() -> None:
    raw = b'["%b", {"a": 1}]' % (b"x\\n" * MAX_SENT_BYTES)
    splitter = Splitter()
    found = [element for at in range(0, len(raw), 50_001) for element in splitter.feed(raw[at : at + 50_001])]
    splitter.end()
    assert [len(element) for element in found] == [MAX_SENT_BYTES + 1, 8]
