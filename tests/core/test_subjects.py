"""Names on the bus: safe, injective, and apart for each installation."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.subjects import DLV, HASH_BUCKETS, RUN, Names, event_key, shard_of, token

SAFE = re.compile(r"[A-Za-z0-9_=-]+")
texts = st.text(alphabet=st.characters()) | st.text(alphabet="ab.*> =_-é\n", max_size=200)


def matches(pattern: str, subject: str) -> bool:
    """NATS's own rule: `*` is one token, `>` at the end is one or more."""
    wanted, given = pattern.split("."), subject.split(".")
    for i, part in enumerate(wanted):
        if part == ">":
            return len(given) > i
        if i >= len(given) or part not in ("*", given[i]):
            return False
    return len(wanted) == len(given)


@given(texts)
def test_token_is_one_safe_short_token(text: str) -> None:
    made = token(text)
    assert SAFE.fullmatch(made)
    assert len(made) <= 120


@given(texts, texts)
def test_tokens_of_different_texts_differ(one: str, other: str) -> None:
    assert (token(one) == token(other)) == (one == other)


@pytest.mark.parametrize("text", ["a", "mem_01h455vb4pex5vsknk084sn02q", "auto-link-related"])
def test_safe_text_stays(text: str) -> None:
    assert token(text) == text


def test_unsafe_text_is_quoted() -> None:
    assert token("a.b *>") == "a=2Eb=20=2A=3E"
    assert token("é") == "=C3=A9"
    assert token("") != ""
    assert token("x" * 121).startswith("=h")


@given(texts, texts, st.sampled_from(["Memory", "Graph", "File", "Custom"]), texts, st.none() | texts)
def test_event_subject_has_six_tokens(world: str, room: str, category: str, event: str, entity: str | None) -> None:
    names = Names()
    subject = names.event(world, room, category, event, entity)
    assert re.fullmatch(r"evt(\.[A-Za-z0-9_=-]+){5}", subject)
    assert matches(names.all_events, subject)
    assert matches(names.events_of(category=category), subject)


@given(texts, texts)
def test_versions_of_an_entity_are_its_events_only(entity: str, other: str) -> None:
    names = Names("p")
    versions = names.versions("w", "Memory", entity)
    for event in ("Created", "Updated"):
        assert matches(versions, names.event("w", "any", "Memory", event, entity))
    if entity != other:
        assert not matches(versions, names.event("w", "any", "Memory", "Created", other))
    assert not matches(versions, names.event("w", "any", "Graph", "NodeAdded", entity))


@given(st.none() | texts)
def test_key_of_an_unversioned_category_is_one_of_few(entity: str | None) -> None:
    key = event_key("File", entity)
    assert re.fullmatch(r"b\d\d", key)
    assert int(key[1:]) < HASH_BUCKETS


def test_prefixes_keep_installations_apart() -> None:
    one, other = Names("one"), Names("other")
    subject = one.event("w", "r", "Memory", "Created", "m")
    assert subject.startswith("one.evt.")
    assert matches(one.all_events, subject)
    assert not matches(other.all_events, subject)
    assert (one.events, Names().events) == ("one_EVENTS", "EVENTS")
    assert one.bucket("hooks") == "one_hooks"
    assert one.rpc("events", "append") == "one.rpc.events.append"


def test_wildcards_cover_their_subjects_and_no_others() -> None:
    names = Names("p")
    subjects = {
        names.all_work(RUN): names.work(RUN, "hok_1"),
        names.all_schedules(RUN): names.schedule(RUN, "hok_1", "run_1"),
        names.all_work(DLV): names.work(DLV, "whk_1"),
        names.all_schedules(DLV): names.schedule(DLV, "whk_1", "dlv_1"),
        names.all_held(DLV): names.held(DLV, "whk_1"),
        names.attempts_of(DLV): names.attempt(DLV, "whk_1", "dlv_1"),
        names.attempts_of(RUN): names.attempt(RUN, "hok_1", "run_1"),
    }
    for pattern in subjects:
        assert [subject for subject in subjects.values() if matches(pattern, subject)] == [subjects[pattern]]
    assert matches(names.work_of(DLV, shard_of("whk_1")), names.work(DLV, "whk_1"))
    assert matches(names.all_attempts, names.parked("dispatch"))
