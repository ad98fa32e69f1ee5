import re
import time
from contextlib import suppress

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.errors import InvalidError
from crucible_core.limits import YAML_BYTES
from crucible_core.yaml import load, read_front_matter, split_front_matter


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("No", "No"),
        ("yes", "yes"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("0123456", "0123456"),
        ("007", "007"),
        ("-07", "-07"),
        ("2024-05-01", "2024-05-01"),
        ("2024-05-01T10:00:00Z", "2024-05-01T10:00:00Z"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("1e999", "1e999"),
        ("99999999999999999999", "99999999999999999999"),
        ("<<", "<<"),
        ("=", "="),
        ("~", None),
        ("Null", None),
        ("", None),
        ("true", True),
        ("FALSE", False),
        ("0", 0),
        ("-12", -12),
        ("+3", 3),
        ("0o17", 15),
        ("0x1F", 31),
        ("1.5", 1.5),
        (".5e1", 5.0),
        ("'true'", "true"),
        ('"12"', "12"),
        ("!!str 12", "12"),
        ("!!float 1", 1.0),
        ("! 12", "12"),
        ("#tag", None),
        ("a #b", "a"),
        ("|\n  two\n  lines", "two\nlines"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_plain_scalar_is_read_by_the_core_schema(written: str, value: object) -> None:
    assert load(f"key: {written}") == {"key": value}


def test_keys_are_text_as_written() -> None:
    assert load("no: 1\n2024: 2\n1.10: 3\n~: 4") == {"no": 1, "2024": 2, "1.10": 3, "~": 4}


def test_scalars_below_named_keys_stay_text() -> None:
    found = load("tags: [no, 007, 1.10, true]\ntitle: 1984\nn: {title: 1.10}", as_text=("tags", "title"))
    assert found == {"tags": ["no", "007", "1.10", "true"], "title": "1984", "n": {"title": 1.1}}


def test_aliases_are_written_out() -> None:
    assert load("a: &x [1, 2]\nb: *x") == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("title: Plan: part two", 'line 1: mapping values are not allowed.*: put a value that contains ": "'),
        ("a:\n\tb: 1", "line 2: .*: indent with spaces, not tabs"),
        ("a: 1\n\tb: 2", "line 2: .*: indent with spaces, not tabs"),
        ("a: 1\nwho: @sam", "line 2: .*: put the value in quotes"),
        ("a: `code`", "line 1: .*: put the value in quotes"),
        ("a: %x", "line 1: .*: put the value in quotes"),
        ("title: {{title}}", "line 1: a list or a mapping is no key: put the value in quotes if it begins with {"),
        ("state: *Draft*", "line 1: .*: put the value in quotes if it begins with \\*"),
        ("state: *Draft", "line 1: .*names nothing: put the value in quotes if it begins with \\*"),
        ('a: "open', "line 1: .*: close the quote"),
        ("a: [1, 2", "line 1: .*: close the bracket"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands twice \\(first in line 1\\): keep one of them"),
        ("x:\n  a: 1\n  'a': 3", "line 3: the key 'a' stands twice"),
        ("a: 1\n---\nb: 2", "line 2: a second document begins"),
        ("a: !python/object:os.system x", "line 1: the tag !python/object:os.system means nothing here"),
        ("a: !!binary eA==", "line 1: the tag .* means nothing here"),
        ("a: !!int x", "line 1: 'x' is no int"),
        ("a: !!set {x}", "line 1: the tag .* means nothing here"),
        ("a: \x07", "line 1: .*control characters are not allowed: remove the character"),
        ("a: \ud800", "line 1: "),
        ("a: 1\nb: \x07", "line 2: .*control"),
        ("? [a]\n: b", "line 1: a list or a mapping is no key"),
        ("[ " * 30_000, "line 1: nested more than 64 deep"),
        ("{a: " * 15_000, "line 1: nested more than 64 deep"),
        ("- " * 30_000, "line 1: nested more than 64 deep"),
        ("? " * 30_000, "line 1: "),
        ("- a\n" * 12_000, "more than 10000 values"),
        ("a: b\n" * 13_000, "stands twice"),
        ("x" * (YAML_BYTES + 1), "larger than 64 KiB"),
        ("a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
         "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d]", "line 5: more than 10000 values"),
        ("a: &a [*a]", "names nothing"),
        ('a: "C:\\Users"', "line 1: .*: write a backslash twice, or put the value in single quotes"),
        ('a: "\\q"', "line 1: .*: write a backslash twice"),
        ("a: - x", "line 1: .*: begin the list on the line below"),
        ("a: 'it's'", "line 1: .*: put the value in quotes, those within it written twice"),
        ("a: |\n  line\n bad", "line 3: .*: put the value in quotes, .* or indent the line"),
        ("  a: 1\nb: 2", "line 2: .* or indent the line"),
        ("- - a\n  -b\n c: d", "line 2: .*: put a colon and a space after the key"),
        ("a: ]", "line 1: .*: put the value in quotes"),
    ],
)  # fmt: skip
def test_refusal_names_the_line_and_a_fix(text: str, told: str) -> None:
    with pytest.raises(InvalidError, match=told):
        load(text)


def test_first_line_of_front_matter_is_counted_by_the_file() -> None:
    with pytest.raises(InvalidError, match="line 3: the key 'a'"):
        load("a: 1\na: 2", first_line=2)


@pytest.mark.parametrize(
    ("text", "head", "body"),
    [
        ("---\na: 1\n---\nbody", "a: 1\n", "body"),
        ("\ufeff---\r\na: 1\r\n---  \r\nbody", "a: 1\r\n", "body"),
        ("---\na: 1\n...\nbody", "a: 1\n", "body"),
        ("---\n---", "", ""),
        ("---\na: 1", None, "---\na: 1"),
        ("no\n---\n---\n", None, "no\n---\n---\n"),
        ("----\na\n---\n", None, "----\na\n---\n"),
        ("", None, ""),
    ],
)
def test_front_matter_is_split_at_its_fences(text: str, head: str | None, body: str) -> None:
    assert split_front_matter(text) == (head, body)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("---\ntitle: x\nand no end", "line 1: no line of --- ends it within 64 KiB"),
        (f"---\na: {'x' * YAML_BYTES}\n---\n", "line 1: no line of --- ends it within 64 KiB"),
        ("---\ntitel:Plan\n名前:x\n---\n", "line 2: 'titel:Plan' is no key and value: put a space after the colon"),
        ("---\na:\u00a0b\n---\n", "line 2: .*put a space after the colon"),
        ("---\na: 1\ntags: #plan #b\n---\n", "line 3: a # begins a comment"),
        ("---\ntags:\n  - a\n  - #plan\n---\n", "line 4: a # begins a comment"),
        ("---\na: 1\na: 2\n---\n", "line 3: the key 'a' stands twice"),
        ("---\n\nA line across the page, and: a text", None),
        ("---\n# A heading\n", None),
        ("---\n10:30\n---\n", None),
        ("---\nhttp://example.com\n---\n", None),
        ("---\n- a\n- b\n---\n", None),
        ("---\ntags: # none yet\n---\n", None),
        ("---\ntags:\n---\n", None),
    ],
)
def test_mistakes_that_look_like_front_matter_are_told(text: str, problem: str | None) -> None:
    read = read_front_matter(text)
    assert re.match(problem, read.problem or "") if problem else read.problem is None, read
    assert read.body in text


TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\u2028\u2029\ufeff\uffff\ufffe"))
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=20,
)


@given(JSON)
def test_json_is_yaml(value: object) -> None:
    assert load(msgspec.json.encode(value).decode()) == value


@given(st.text(max_size=400))
def test_any_text_is_read_or_refused(text: str) -> None:
    for document in (text, f"a: {text}"):
        with suppress(InvalidError):
            load(document)


@given(st.lists(st.sampled_from([*"[]{}:,-?!&*#|>'\"%@` \n\t", "a", "1", "- ", ": ", "--- ", "\n  "]), max_size=60))
def test_any_syntax_is_read_or_refused(parts: list[str]) -> None:
    with suppress(InvalidError):
        load("".join(parts))


def test_worst_document_is_read_within_its_budget() -> None:
    began = time.process_time()
    load(yaml.safe_dump([["x"] * 4] * 1900, default_flow_style=True))
    assert time.process_time() - began < 1
