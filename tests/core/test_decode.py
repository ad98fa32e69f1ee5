"""Decoding: what is refused, at which path, with which suggestion."""

import json
from contextlib import suppress
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.decode import convert, decode, depth
from crucible_core.envelope import MAX_DEPTH
from crucible_core.errors import FieldError, InvalidError, MalformedError


class Leaf(msgspec.Struct, forbid_unknown_fields=True):
    target: str
    weight: float | None = None
    kind: Literal["near", "far"] = "near"


class Bearer(msgspec.Struct, tag_field="type", tag="bearer", forbid_unknown_fields=True):
    token: str


class Basic(msgspec.Struct, tag_field="type", tag="basic", forbid_unknown_fields=True):
    username: str
    password: str = ""


class Tree(msgspec.Struct):
    inner: "Tree"


class Body(msgspec.Struct, forbid_unknown_fields=True, rename={"from_": "from"}):
    id: str
    links: list[Leaf] = []
    named: dict[str, Leaf] = {}
    auth: Bearer | Basic | None = None
    from_: int | None = None
    extra: dict[str, Any] = {}


def refusal(raw: bytes, kind: type = Body) -> FieldError:
    with pytest.raises(InvalidError) as caught:
        decode(raw, kind)
    return caught.value.errors[0]


def test_good_body_is_decoded() -> None:
    body = decode(b'{"id": "a", "links": [{"target": "b"}], "from": 3}', Body)
    assert body == Body("a", [Leaf("b")], from_=3)


@pytest.mark.parametrize(
    ("raw", "path", "message", "suggestion"),
    [
        (b'{"id": 1}', "id", "expected str, got int", None),
        (b"[]", "", "expected object, got array", None),
        (b"{}", "id", "required, but missing", None),
        (b'{"id": "a", "lnks": []}', "lnks", "unknown field", "links"),
        (b'{"id": "a", "frm": 1}', "frm", "unknown field", "from"),
        (b'{"id": "a", "zzzzzz": 1}', "zzzzzz", "unknown field", None),
        (b'{"id": "a", "links": [{"target": "b"}, {}]}', "links.1.target", "required, but missing", None),
        (b'{"id": "a", "links": [{"tarqet": "b"}]}', "links.0.tarqet", "unknown field", "target"),
        (b'{"id": "a", "named": {"x": {"target": 1}}}', "named.*.target", "expected str, got int", None),
        (b'{"id": "a", "named": {"x": {"wieght": 1}}}', "named.*.wieght", "unknown field", "weight"),
        (b'{"id": "a", "auth": {"type": "basic", "usrname": "u"}}', "auth.usrname", "unknown field", "username"),
        (
            b'{"id": "a", "auth": {"type": "baerer"}}',
            "auth.type",
            "invalid value 'baerer': one of bearer, basic",
            "bearer",
        ),
        (
            b'{"id": "a", "links": [{"target": "b", "kind": "nera"}]}',
            "links.0.kind",
            "invalid enum value 'nera': one of far, near",
            "near",
        ),
        (b'{"id": "a", "from": 1e999}', "from", "number out of range", None),
    ],
)
def test_refused_body_names_path_and_nearest(raw: bytes, path: str, message: str, suggestion: str | None) -> None:
    assert refusal(raw) == FieldError(path, message, suggestion)


def test_refusal_reads_as_a_sentence() -> None:
    with pytest.raises(InvalidError) as caught:
        decode(b'{"id": "a", "lnks": []}', Body, what="hook")
    assert caught.value.detail == 'hook is refused: lnks: unknown field (did you mean "links"?)'


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"nope",
        b'{"id": "a"} x',
        b'{"id": "a",}',
        b"{'id': 'a'}",
        b'{"id": NaN}',
        b'{"id": "\xff"}',
        b'{"id": "\xed\xa0\x80"}',
        b'{"id": "\\ud800"}',
        b'{"id": "\\udc00x"}',
        b'{"id": "a\x01"}',
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"a":' * 5_000,
    ],
)
def test_what_is_not_json_is_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedError):
        decode(raw, Body)


def test_invalid_text_is_malformed_also_where_it_is_skipped() -> None:
    class Lenient(msgspec.Struct):
        id: str = ""

    with pytest.raises(MalformedError):
        decode(b'{"other": "\xff"}', Lenient)


def test_unknown_name_is_not_repeated_at_length() -> None:
    error = refusal(b'{"id": "a", "' + b"x" * 100_000 + b'": 1}')
    assert len(error.path) <= 200


@pytest.mark.parametrize("name", ["a` - at `$.b", "`", "", "$.links[0]", "\n"])
def test_odd_names_do_not_confuse_the_error(name: str) -> None:
    error = refusal(json.dumps({"id": "a", name: 1}).encode())
    assert error.message == "unknown field"


@pytest.mark.parametrize(("levels", "good"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False)])
def test_depth_is_limited(levels: int, good: bool) -> None:
    raw = b'{"id": "a", "extra": ' + b'{"x": ' * (levels - 1) + b"1" + b"}" * levels
    if good:
        assert decode(raw, Body).id == "a"
    else:
        with pytest.raises(MalformedError, match="nested deeper"):
            decode(raw, Body)


def test_many_shallow_brackets_are_not_deep() -> None:
    assert decode(b'{"id": "a", "links": [' + b",".join([b'{"target": "[[[["}'] * 1000) + b"]}", Body).id == "a"


def test_brackets_in_strings_do_not_count() -> None:
    assert depth(rb'["[[[", "\"[", "\\", {"[{": "]"}]') == 2


def nesting(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(nesting, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(nesting, value), default=0)
    return 0


texts = st.text(alphabet='[]{}"\\a é\n')
documents = st.recursive(st.none() | texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner))


@given(documents)
def test_depth_is_the_nesting(value: Any) -> None:
    assert depth(json.dumps(value).encode()) == nesting(value)


@given(st.binary() | st.text(alphabet='{}[]":,\\u1e9ad ').map(str.encode))
def test_any_bytes_give_a_value_or_one_of_two_errors(raw: bytes) -> None:
    with suppress(MalformedError, InvalidError):
        decode(raw, Body)


def test_converted_object_is_refused_alike() -> None:
    assert convert({"id": "a"}, Body) == Body("a")
    with pytest.raises(InvalidError) as caught:
        convert({"id": "a", "links": [{"targt": "b"}]}, Body, what="front matter")
    assert caught.value.errors == (FieldError("links.0.targt", "unknown field", "target"),)


def test_object_that_holds_itself_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["inner"] = loop
    with pytest.raises(InvalidError):
        convert(loop, Tree)
