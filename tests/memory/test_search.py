import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.errors import InvalidError
from crucible_core.limits import MEMORY_QUERY_TERMS
from crucible_core.protocol.memory import Cause, Link
from crucible_memory.search.search import Term, select_terms, terms_of
from tests.places import make_world

from .conftest import Memories

TEXTS = {
    "vector": "Vector clocks order events without a shared clock, since each process counts its own.",
    "lamport": "Lamport clocks are simpler: a single counter orders events, but not all of them.",
    "bread": "Bread needs flour, water, salt, yeast and some hours of patience.",
    "café": "Die Überraschung im Café: naïve Gäste.",
}


@pytest.fixture
async def ids(service: None, memory: Memories) -> dict[str, str]:
    return {name: await memory.create(text, tags=[name, "text"]) for name, text in TEXTS.items()}


async def found(memory: Memories, ids: dict[str, str], text: str | None, **fields: object) -> list[str]:
    names = {id: name for name, id in ids.items()}
    return [names[one.id] for one in await memory.query(text, **fields)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bread", ["bread"]),
        ("BREAD", ["bread"]),
        ("flour or something else", ["bread"]),
        ("vector clocks", ["vector", "lamport"]),
        ("event counted", ["lamport", "vector"]),
        ("cafe uberraschung", ["café"]),
        ("naïve", ["café"]),
        ("pati", ["bread"]),
        ("pati nothing", []),
        ("zzz", []),
        ("#bread", ["bread"]),
        ("!!! ?", []),
    ],
)
async def test_any_word_finds(memory: Memories, ids: dict[str, str], text: str, expected: list[str]) -> None:
    assert sorted(await found(memory, ids, text)) == sorted(expected)


LANGUAGES = {
    "ja": "昨日は東京都庁に行きました。ﾗｰﾒﾝを食べ、Pythonの勉強をした。",
    "zh": "我们在图书馆学习机器学习，猫在窗边睡觉。",
    "ko": "어제 서울에서 친구를 만났다.",
    "th": "เมื่อวานฉันไปเที่ยวกรุงเทพมหานครและกินก๋วยเตี๋ยว",
    "lo": "ຂ້ອຍຮັກປະເທດລາວ",
    "km": "ខ្ញុំស្រឡាញ់ប្រទេសកម្ពុជា",
    "my": "မြန်မာနိုင်ငံသည်လှပသည်",
    "de": "Die Straße ist gesperrt, der Donau\u00addampfer fährt über Ärger.",
    "tr": "İstanbul'da ılık bir IŞIK",
    "el": "Ο Οδυσσεύς γύρισε στο σπίτι.",
    "ar": "ذَهَبَ أحمدُ إلى المدرســـة عام ٢٠٢٤",
    "he": "שָׁלוֹם עוֹלָם",
    "hi": "मुझे हिन्दी में किताबें पढ़ना पसंद है।",
    "ta": "எனக்கு தமிழ் பிடிக்கும்",
    "vi": "Tôi sống ở Đà Nẵng",
    "ru": "Зелёная ёлка стоит у дома",
    "fr": "Un café crème à l\u2019école, ﬁnalement",
    "emoji": "We shipped it 🎉 thanks to 👩🏽\u200d💻 and ❤️",
    "wide": "ＦＵＬＬＷＩＤＴＨ ｔｅｘｔ",
}
ASKED = [
    ("東京", "ja"), ("都庁", "ja"), ("ラーメン", "ja"), ("python 勉強", "ja"), ("ＰＹＴＨＯＮ", "ja"),
    ("昨日は東京都庁に行きました", "ja"),
    ("猫", "zh"), ("机器学习", "zh"), ("图书馆", "zh"),
    ("서울", "ko"), ("\u1109\u1165\u110b\u116e\u11af", "ko"), ("친구", "ko"),
    ("กรุงเทพ", "th"), ("ก๋วยเตี๋ยว", "th"), ("ลาว", ""), ("ລາວ", "lo"), ("កម្ពុជា", "km"), ("မြန်မာ", "my"),
    ("Straße", "de"), ("STRASSE", "de"), ("strasse", "de"),
    ("Donaudampfer", "de"), ("arger", "de"), ("A\u0308RGER", "de"),
    ("istanbul", "tr"), ("ISTANBUL", "tr"), ("ılık", "tr"), ("ışık", "tr"), ("ΟΔΥΣΣΕΥΣ", "el"), ("σπιτι", "el"),
    ("احمد", "ar"), ("المدرسة", "ar"), ("2024", "ar"), ("שלום", "he"), ("हिंदी", "hi"), ("किताबें", "hi"),
    ("தமிழ்", "ta"),
    ("da nang", "vi"), ("ĐÀ NẴNG", "vi"), ("елка", "ru"), ("ЗЕЛЁНАЯ", "ru"), ("cafe", "fr"), ("école", "fr"),
    ("l'ecole", "fr"), ("finalement", "fr"),
    ("🎉", "emoji"), ("👩", "emoji"), ("👩‍💻", "emoji"), ("❤", "emoji"), ("👎", ""),
    ("fullwidth", "wide"), ("\u200btext\u200f", "wide"),
]  # fmt: skip


async def test_text_is_found_as_its_readers_write_it(service: None, memory: Memories) -> None:
    names = {await memory.create(text, tags=[name]): name for name, text in LANGUAGES.items()}
    found = {}
    for text, _ in ASKED:
        matches = await memory.query(text)
        found[text] = names[matches[0].id] if matches and matches[0].score == 1.0 else ""
    assert found == dict(ASKED)


async def test_long_words_are_found(service: None, memory: Memories) -> None:
    id = await memory.create(f"see https://example.com/{'a1' * 60} there")
    assert [match.id for match in await memory.query("a1" * 60)] == [id]


async def test_tags_are_found_by_any_spelling_and_by_their_levels(service: None, memory: Memories) -> None:
    id = await memory.create("text", tags=["#Proj/Alpha", "proj/alpha", "Cafe\u0301", "#हिन्दी", "#2024-05"])
    assert (await memory.get(id)).tags == ["#Proj/Alpha", "#Café", "#हिन्दी", "#2024-05"]
    for tag in ("#Proj", "#proj/alpha", "PROJ/ALPHA", "#café", "#CAFÉ", "#हिंदी", "2024-05"):
        assert [one.id for one in await memory.query(tags=[tag])] == [id], tag
    for tag in ("#alpha", "#proj/alp", "#pro", "#2024"):
        assert await memory.query(tags=[tag]) == [], tag
    assert not (await memory.tag(id, "#PROJ/alpha")).changed
    await memory.append("Memory.Untagged", {"id": id, "tag": "#proj/ALPHA"})
    assert "#Proj/Alpha" not in (await memory.get(id)).tags


async def test_scores_are_parts_of_the_best(memory: Memories, ids: dict[str, str]) -> None:
    matches = await memory.query("vector clocks order events")
    assert [match.id for match in matches] == [ids["vector"], ids["lamport"]]
    assert matches[0].score == 1.0
    assert 0 < matches[1].score < 1


async def test_without_text_the_newest_come_first(memory: Memories, ids: dict[str, str]) -> None:
    for text in (None, "", "  "):
        assert await found(memory, ids, text) == list(reversed(TEXTS))
    assert {match.score for match in await memory.query()} == {1.0}
    assert await found(memory, ids, None, limit=2) == ["café", "bread"]


async def test_all_tags_must_be_there(memory: Memories, ids: dict[str, str]) -> None:
    assert await found(memory, ids, None, tags=["bread", "#text"]) == ["bread"]
    assert await found(memory, ids, None, tags=["bread", "vector"]) == []
    assert await found(memory, ids, "clocks", tags=["lamport"]) == ["lamport"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"tags": {"contains": "#bread"}}, ["bread"]),
        ({"content": {"matches": "(?i)^vector"}}, ["vector"]),
        ({"id": {"starts_with": "mem_0"}}, ["café", "bread", "lamport", "vector"]),
        ({"id": {"starts_with": "mem_x"}}, []),
        ({"$or": [{"content": {"contains": "salt"}}, {"tags": {"contains": "#vector"}}]}, ["bread", "vector"]),
        ({"metadata.missing": {"exists": False}, "title": None}, ["café", "bread", "lamport", "vector"]),
        ({"sequence": {"lte": 1}}, ["vector"]),
        ({"created_at": {"lt": "2000"}}, []),
        ({}, ["café", "bread", "lamport", "vector"]),
    ],
)
async def test_filters_hold_of_what_is_found(
    memory: Memories, ids: dict[str, str], wanted: dict[str, object], expected: list[str]
) -> None:
    assert await found(memory, ids, None, filter=wanted) == expected


async def test_filters_ask_for_tags_and_names_in_any_spelling(service: None, memory: Memories) -> None:
    composed, decomposed = "Caf\u00e9", "Cafe\u0301"
    named = {"tags": [f"#{decomposed}"], "entities": [decomposed], "links": [Link(target=decomposed)]}
    id = await memory.create("text", metadata={"as": decomposed}, **named)
    for name in (composed, decomposed):
        for wanted in (
            {"tags": {"contains": f"#{name}"}},
            {"entities": {"contains": name}, "links.0.target": name},
            {"$or": [{"$not": {"tags": {"contains": f"#{name}"}}}, {"entities.0": {"in": ["x", name]}}]},
        ):
            assert [one.id for one in await memory.query(filter=wanted)] == [id], wanted
    assert await memory.query(filter={"metadata.as": composed}) == []
    assert [one.id for one in await memory.query(filter={"metadata.as": decomposed})] == [id]


async def test_memories_are_found_by_the_beginning_of_their_ids(service: None, memory: Memories) -> None:
    ids = [await memory.create("text", id=f"mem_{name}") for name in ("aa", "ab", "b", "a_")]
    for wanted, expected in (
        ({"id": {"starts_with": "mem_a"}}, {ids[0], ids[1], ids[3]}),
        ({"id": "mem_aa"}, {ids[0]}),
        ({"id": {"starts_with": "mem_a", "not_equals": "mem_aa"}}, {ids[1], ids[3]}),
        ({"$not": {"id": {"starts_with": "mem_a"}}}, {ids[2]}),
    ):
        assert {one.id for one in await memory.query(filter=wanted)} == expected, wanted


async def test_filter_goes_on_until_enough_are_found(service: None, memory: Memories) -> None:
    made = [memory.create(f"word {number}", metadata={"n": number}) for number in range(250)]
    await asyncio.gather(*made)
    matches = await memory.query("word", filter={"metadata.n": {"in": [1, 100, 249]}}, limit=3)
    assert sorted(match.metadata["n"] for match in matches) == [1, 100, 249]


@pytest.mark.parametrize(
    ("fields", "path", "suggestion"),
    [
        ({"limit": 0}, "limit", None),
        ({"limit": 101}, "limit", None),
        ({"tags": ["#"]}, "tags.0", None),
        ({"filter": {"contents": "x"}}, "filter.contents", "content"),
        ({"filter": {"tags": {"contain": "x"}}}, "filter.tags.contain", "contains"),
        ({"filter": {"contents": "x"}, "text": "!"}, "filter.contents", "content"),
    ],
)
async def test_bad_queries_are_refused(
    service: None, memory: Memories, fields: dict[str, object], path: str, suggestion: str | None
) -> None:
    with pytest.raises(InvalidError) as refused:
        await memory.query(**fields)
    [error] = refused.value.errors
    assert (error.path, error.suggestion) == (path, suggestion)


@pytest.mark.parametrize(
    "text",
    [
        '"',
        "'",
        '""" OR *',
        "NOT bread",
        "bread AND NOT bread",
        "title : bread",
        "bread*",
        "^bread",
        "NEAR(bread salt, 1)",
        "(bread",
        "{title content} : bread",
        "bread -salt + water",
        "'; DROP TABLE memories; --",
        "\x00bread\x00",
        "%_[]",
        "bread " * 100_000,
        "x" * 900_000,
        "é" * 1000,
        "🍞 bread",
        "\u202ebread\u202c",
        "\ufeffbread\u200b",
        "🍞🎉❤️",
        "…—„“”‚‘’«»",
        "q" + "\u0300\u0316" * 200_000,
        "漢字" * 100_000,
        "a" * 63 + "é" * 70,
        '" OR texts MATCH "bread',
        "bread\ncontent:bread",
        '* ** \\ " {}',
    ],
)
async def test_text_is_never_query_syntax(memory: Memories, ids: dict[str, str], text: str) -> None:
    expected = ["bread"] if "bread" in text.lower() else []
    assert await found(memory, ids, text, tags=["bread"]) == expected


async def test_a_memorys_own_content_finds_what_is_like_it(memory: Memories, ids: dict[str, str]) -> None:
    filler = " ".join(f"and so on for a while in part {number}" for number in range(50))
    about = f"Distributed systems need clocks. {filler} Clocks such as Lamport clocks count events. {filler}"
    id = await memory.create(about)
    matches = await memory.query(about, limit=3)
    assert matches[0].id == id
    assert {match.id for match in matches[1:]} == {ids["lamport"], ids["vector"]}


async def test_worlds_and_rooms_are_apart(service: None, memory: Memories) -> None:
    await make_world(memory.bus, "default", "lab")
    await make_world(memory.bus, "other")
    for world, room in (("default", "main"), ("default", "lab"), ("other", "main")):
        await memory.create(f"word in {world} {room}", cause=Cause(world_id=world, room_id=room))
    assert len(await memory.query("word")) == 2
    assert [one.room_id for one in await memory.query("word", room_id="lab")] == ["lab"]
    assert [one.world_id for one in await memory.query(world_id="other")] == ["other"]


async def test_min_sequence_waits_for_any_event(service: None, memory: Memories) -> None:
    made = await memory.append("Memory.Created", {"id": "mem_a", "content": "word"})
    other = await memory.append("Custom.noise", {})
    for sequence in (made.sequence, other.sequence):
        assert [one.id for one in await memory.query("word", min_sequence=sequence)] == ["mem_a"]


async def test_min_sequence_of_the_future_is_waited_for_and_refused(service: None, memory: Memories) -> None:
    await memory.create("word")
    waiting = asyncio.create_task(memory.query("word", min_sequence=2))
    await memory.create("word too")
    assert len(await waiting) == 2
    for sequence in (100, 2**60):
        with pytest.raises(InvalidError, match="past the end of the log"):
            await memory.query("word", min_sequence=sequence)


async def test_answer_never_outgrows_a_message(service: None, memory: Memories) -> None:
    for _ in range(8):
        await memory.create("word " * 180_000)
    matches = await memory.query("word", limit=100)
    assert 1 < len(matches) < 8


async def test_few_memories_alike_have_high_scores(service: None, memory: Memories) -> None:
    """Where most memories have a word, plain BM25 would call it worthless."""
    one = await memory.create("Vector clocks order events in distributed systems, without a shared clock.")
    two = await memory.create("Lamport clocks also order events in distributed systems; vector clocks tell more.")
    await memory.create("Bread needs flour and water.")
    matches = await memory.query((await memory.get(one)).content)
    assert [match.id for match in matches] == [one, two]
    assert matches[1].score > 0.6


@given(st.text())
def test_a_query_is_quoted_words(text: str) -> None:
    queries = [term.query.removesuffix("*") for term in terms_of(text)]
    assert all(query[0] == query[-1] == '"' and not set(query[1:-1]) & set('"\0') for query in queries)


def test_long_text_is_asked_by_its_most_telling_words() -> None:
    text = "the and of in to " * 100 + " ".join(f"word{number}" for number in range(40)) + " synchronisation" * 3
    terms = terms_of(text)
    counts = [900 if len(term.query) < 6 else 30 for term in terms]
    chosen = [term.query for term in select_terms(terms, counts, 1000)]
    assert len(chosen) == MEMORY_QUERY_TERMS
    assert chosen[0] == '"synchronisation"'
    assert '"the"' not in chosen


def test_words_that_no_memory_has_are_not_asked_for() -> None:
    assert select_terms(terms_of("one two"), [0, 3, 0], 5) == [Term('"two"', 1.0)]
