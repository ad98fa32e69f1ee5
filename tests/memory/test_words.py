"""One normalisation: what readers of a script take for the same is the same, and nothing else is."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_memory.search.words import fold, grams, index_words, name_key, tag_key, tag_keys
from crucible_memory.state import clean_tag

# Each line of texts that are one and the same to those who write them.
SAME = [
    ["Straße", "STRASSE", "strasse", "STRAẞE"],
    ["café", "cafe\u0301", "CAFÉ", "cafe"],
    ["İstanbul", "istanbul", "ISTANBUL", "ıstanbul"],
    ["ΟΔΟΣ", "οδος", "οδός", "Οδοσ"],
    ["Đà Nẵng", "da nang", "DA NANG"],
    ["Łódź", "lodz"],
    ["Ærø", "aero"],
    ["ﬁnale", "finale"],
    ["Ｆｕｌｌ", "full"],
    ["ｶﾞｷﾞｸﾞ", "ガギグ", "カ\u3099キ\u3099ク\u3099"],
    ["서울", "\u1109\u1165\u110b\u116e\u11af"],
    ["神社", "\ufa19社"],
    ["كِتَاب", "كتاب", "كتــاب"],
    ["أحمد", "احمد", "إحمد"],
    ["مدرسة", "مدرسه"],
    ["کتابی", "كتابي"],
    ["٢٠٢٤", "2024", "२०२४"],
    ["שָׁלוֹם", "שלום"],
    ["हिन्दी", "हिंदी"],
    ["क़लम", "कलम", "\u0958लम"],
    ["ёлка", "елка", "ЁЛКА"],
    ["за\u0301мок", "замок"],
    ["Donau\u00addampf", "donaudampf"],
    ["zero\u200bwidth", "zerowidth", "\ufeffzerowidth"],
    ["می\u200cخواهم", "میخواهم"],
    ["❤️", "❤"],
    ["👍🏽", "👍"],
    ["x²", "x2"],
    ["น้ำ", "น\u0e49\u0e4d\u0e32"],
]
OTHER = [
    ("й", "и"),
    ("ї", "і"),
    ("が", "か"),
    ("ภาษา", "ภาษี"),
    ("की", "कि"),
    ("猫", "犬"),
    ("👍", "👎"),
    ("ক", "খ"),
]


@pytest.mark.parametrize("texts", SAME, ids=lambda texts: ascii(texts[0]))
def test_one_word_has_one_key(texts: list[str]) -> None:
    assert {fold(text) for text in texts} == {fold(texts[-1])}
    assert len({index_words(text) for text in texts}) == 1


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_other_letters_stay_apart(one: str, other: str) -> None:
    assert fold(one) != fold(other)


@given(st.text())
def test_folding_twice_changes_nothing(text: str) -> None:
    assert fold(fold(text)) == fold(text)


@given(st.text())
def test_the_index_holds_words_and_spaces_alone(text: str) -> None:
    assert all(word and not set(word) & set('"\0\n ') for word in index_words(text).split(" ") if index_words(text))
    assert all('"' not in gram.text for gram in grams(text))


@given(st.text(min_size=1), st.text(alphabet="猫東京กขค서울a1", min_size=1, max_size=5), st.text())
def test_every_gram_of_a_part_is_in_the_whole(before: str, part: str, after: str) -> None:
    """A text is found by any run of characters in it, where no spaces are between words."""
    whole = f" {index_words(f'{before} {part} {after}')} "
    assert all(f" {gram.text} " in whole for gram in grams(part))


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("東京", ["東 京"]),
        ("猫", ["猫"]),
        ("東京都", ["東 京", "京 都"]),
        ("Pythonの勉強", ["python", "の 勉", "勉 強"]),
        ("ภาษาไทย", ["ภ า ษ", "า ษ า", "ษ า ไ", "า ไ ท", "ไ ท ย"]),
        ("서울에서", ["서 울", "울 에", "에 서"]),
        ("👩‍💻", ["👩 💻"]),
        ("it’s fine", ["it", "s", "fine"]),
        ("x" * 70, ["x" * 64, "x" * 6]),
        ("!?…", []),
    ],
)
def test_what_a_text_asks_for(text: str, asked: list[str]) -> None:
    assert [gram.text for gram in grams(text)] == asked


@pytest.mark.parametrize(
    ("given", "tag"),
    [
        ("#cafe\u0301", "#café"),
        (" ##a ", "#a"),
        ("two  words\n", "#two words"),
        ("a\0b\u202e", "#ab"),
        ("#Proj/Alpha/", "#Proj/Alpha"),
        ("#", None),
        (" # ", None),
        ("\u200d", None),
        ("#می\u200cخواهم", "#می\u200cخواهم"),
    ],
)
def test_a_tag_has_one_spelling(given: str, tag: str | None) -> None:
    assert clean_tag(given) == tag


def test_a_tag_is_found_by_its_levels() -> None:
    assert tag_keys("#Proj/Alpha//Straße") == ["proj/alpha/strasse", "proj/alpha", "proj"]
    assert tag_key("#PROJ / alpha") == "proj/alpha"


def test_a_name_is_one_whatever_its_case_spaces_and_accents() -> None:
    assert name_key("./Notes/  Café\u3000Straße.md ") == name_key("notes/ cafe strasse.MD")


@pytest.mark.parametrize(
    "text",
    [
        "a" + "\u0300\u0316" * 200_000,
        "\ufdfa" * 100_000,
        "漢" * 300_000,
        "ก้" * 150_000,
        "é " * 300_000,
        "👩‍💻" * 100_000,
    ],
    ids=["marks", "ligatures", "han", "thai", "accents", "emoji"],
)
def test_hostile_text_is_read_in_bounded_time(text: str) -> None:
    """To put n combining marks in order takes Python n² steps: minutes for a text that an event may have."""
    started = time.perf_counter()
    index_words(text)
    list(grams(text))
    clean_tag(f"#{text}")
    assert time.perf_counter() - started < 10


def test_a_long_text_is_indexed_whole() -> None:
    words = [f"word{number}é" for number in range(10_000)]
    assert index_words(" ".join(words)).split() == [f"word{number}e" for number in range(10_000)]
    assert index_words("漢字" * 20_000) == " ".join("漢字" * 20_000)
