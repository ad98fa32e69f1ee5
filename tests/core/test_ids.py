"""Identifiers: layout, order, derivation and recognition."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.ids import ALPHABET, derive_id, id_span, is_after, is_id, make_id, make_ids, moment_of

moments = st.integers(0, 2**48 - 1)
randoms = st.binary(min_size=10, max_size=32)


def as_uuid(identifier: str) -> uuid.UUID:
    value = 0
    for char in identifier.partition("_")[2]:
        value = value << 5 | ALPHABET.index(char)
    return uuid.UUID(int=value)


@given(moments, randoms)
def test_id_is_a_uuid7_of_its_moment(at_ms: int, random: bytes) -> None:
    made = make_id("evt", at_ms, random)
    identifier = as_uuid(made)
    assert (identifier.version, identifier.variant) == (7, uuid.RFC_4122)
    assert identifier.int >> 80 == at_ms
    assert len(made) == len("evt_") + 26
    assert is_id("evt", made)


@given(moments, moments, randoms, randoms)
def test_ids_sort_by_time(first: int, second: int, one: bytes, other: bytes) -> None:
    if first < second:
        assert make_id("evt", first, one) < make_id("evt", second, other)


@given(moments, st.lists(st.integers(0, 2**74 - 1), unique=True, min_size=2, max_size=2))
def test_every_random_bit_counts(at_ms: int, randoms: list[int]) -> None:
    one, other = (make_id("evt", at_ms, value.to_bytes(10, "big")) for value in randoms)
    assert one != other


def test_known_id() -> None:
    # The example of the TypeID specification: a UUIDv7 and its base32.
    known = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")
    random = (known.int >> 64 & 0xFFF) << 62 | known.int & (1 << 62) - 1
    assert make_id("prefix", known.int >> 80, random.to_bytes(10, "big")) == "prefix_01h455vb4pex5vsknk084sn02q"


def test_derived_id_depends_on_every_part_and_where_it_ends() -> None:
    made = derive_id("run", 1000, "hook", "evt_1")
    assert made == derive_id("run", 1000, "hook", "evt_1")
    others = [
        derive_id("run", 1001, "hook", "evt_1"),
        derive_id("run", 1000, "hook", "evt_2"),
        derive_id("run", 1000, "hooke", "vt_1"),
        derive_id("dlv", 1000, "hook", "evt_1"),
    ]
    assert made not in others


@pytest.mark.parametrize("text", ["evt_1", "evt_a-b_C", "evt_" + "x" * 64])
def test_users_ids_are_accepted(text: str) -> None:
    assert is_id("evt", text)


@pytest.mark.parametrize(
    "text", ["", "evt", "evt_", "mem_1", "evt_a b", "evt_a.b", "evt_ä", "evt_1\n", "evt_" + "x" * 65]
)
def test_unsafe_ids_are_refused(text: str) -> None:
    assert not is_id("evt", text)


@given(moments, randoms, st.integers(0, 2000))
def test_many_ids_are_uuid7s_in_order(at_ms: int, random: bytes, count: int) -> None:
    made = make_ids("evt", at_ms, random, count)
    assert len(set(made)) == count
    assert made == sorted(made)
    assert all(as_uuid(one).version == 7 and as_uuid(one).int >> 80 == at_ms for one in made[:3] + made[-3:])


@pytest.mark.parametrize("size", range(8, 26))
def test_beginning_of_an_id_names_its_time(size: int) -> None:
    at_ms = 1_790_000_123_456
    first, last = id_span(make_id("evt", at_ms, b"0123456789")[: 4 + size]) or (0, 0)
    assert first <= at_ms <= last
    assert last - first < 1024


@pytest.mark.parametrize("text", ["evt_", "evt_01kb5t", "evt_01kb5t8pgvf8rr2q5a2qy4ch2m", "evt_01kb5t8pI", "nothing"])
def test_what_is_no_beginning_of_an_id_has_no_time(text: str) -> None:
    assert id_span(text) is None


@given(moments, randoms, moments)
def test_the_moment_of_an_id_can_be_read(at_ms: int, random: bytes, other_ms: int) -> None:
    made = make_id("evt", at_ms, random)
    assert moment_of(made) == moment_of(made.upper().replace("EVT", "evt")) == at_ms
    assert is_after(made, other_ms) == (at_ms > other_ms)


@pytest.mark.parametrize(
    "text", ["evt_a", "", "evt_" + "z" * 26, "evt_" + "7" * 26, "evt_" + "0" * 25, "evt_é" + "0" * 25]
)
def test_other_ids_have_no_moment(text: str) -> None:
    assert moment_of(text) is None
    assert not is_after(text, 0)
