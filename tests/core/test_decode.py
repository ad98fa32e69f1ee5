"""Decoding: what is refused, at which path, with which suggestion."""

import json
from contextlib import suppress
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.decode import convert, decode, depth
from crucible_core.errors import FieldError, InvalidError, MalformedError
from crucible_core.limits import EVENT_DEPTH
from crucible_core.protocol.worlds import CreateRoom, CreateWorld

Name = Annotated[str, msgspec.Meta(pattern="^[a-z]*$", extra={"form": "must be small letters"})]


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
    name: Name | None = None
    names: list[Name] = []


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
        (b'{"id": "a", "name": "A"}', "name", "must be small letters", None),
        (b'{"id": "a", "names": ["a", "A"]}', "names.1", "must be small letters", None),
        (b'{"id": "a", "from": 1e999}', "from", "number out of range", None),
    ],
)
def test_refused_body_names_path_and_nearest(raw: bytes, path: str, message: str, suggestion: str | None) -> None:
    assert refusal(raw) == FieldError(path, message, suggestion)


@pytest.mark.parametrize("kind", [CreateWorld, CreateRoom])
@pytest.mark.parametrize("id", ["acme\n", "-acme", "a b", "\n"])
def test_a_name_of_a_place_has_no_line_end(kind: type, id: str) -> None:
    assert refusal(json.dumps({"id": id}).encode(), kind).message.startswith("must begin with a letter or digit")


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
        b'{"id": "a"}\xef\xbb\xbf',
        b'\xef\xbb\xbf\xef\xbb\xbf{"id": "a"}',
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


@pytest.mark.parametrize(("levels", "good"), [(EVENT_DEPTH, True), (EVENT_DEPTH + 1, False)])
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


# ---- byte order marks ------------------------------------------------------------------------------------------------


def test_a_byte_order_mark_is_skipped() -> None:
    assert decode(b'\xef\xbb\xbf{"id": "\xc3\xbc"}', Body).id == "ü"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_other_encodings_are_named(encoding: str) -> None:
    for text in ('{"id": "a"}', '{"id": "ü€😀"}', "[]", "7"):
        with pytest.raises(MalformedError, match=f"body is {encoding[:6].upper()}: send it as UTF-8"):
            decode(text.encode(encoding), Body)


# ---- keys that stand twice -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"id": "a", "id": "b"}', "id"),
        ('{"id": "a", "i\\u0064": "b"}', "id"),
        ('{"id": "a", "extra": {"secret": "bad", "secret": "good"}}', "extra.secret"),
        ('{"id": "a", "extra": {"\\u0061": 1, "a": 1}}', "extra.a"),
        ('{"id": "a", "extra": {"a": [{"b": {}}, {"b": {}, "b": {}}]}}', "extra.a.1.b"),
        ('{"id": "a", "extra": {"a": [[[{"": 1, "": 2}]]]}}', "extra.a.0.0.0."),
        ('{"id": "a", "extra": {"\\n": 1, "\\u000a": 2}}', "extra.\n"),
        ('{"id": "a", "extra": {"\\ud83d\\ude00": 1, "😀": 2}}', "extra.😀"),
        ('{"id": "a", "extra": {"a:b": 1, "a\\u003ab": 2}}', "extra.a:b"),
        ('{"id": "\\u003a", "extra": {"a": 1, "a": 1}}', "extra.a"),
        ('{"id": "\\u003A\\u003a", "extra": {"a": "::", "a": 1}}', "extra.a"),
        ('{"id": "a", "links": [{"target": "b", "target": "b"}]}', "links.0.target"),
        ('{"id": "a", "extra": {"' + "k" * 500 + '": 1, "' + "k" * 500 + '": 1}}', "extra." + "k" * 200),
    ],
)
def test_a_key_that_stands_twice_is_malformed(text: str, path: str) -> None:
    with pytest.raises(MalformedError) as caught:
        decode(text.encode(), Body)
    assert [error.path for error in caught.value.errors] == [path]


@pytest.mark.parametrize(
    "text",
    [
        '{"id": "a", "extra": {"a": {"b": 1}, "b": {"b": 2}, "c": [{"b": 3}, {"b": 4}]}}',
        '{"id": "\\u003a:", "extra": {"a:": ":", "a\\u003a:": "\\u003a"}}',
        '{"id": "a", "extra": {"a": 1, "A": 2, "\u00e4": 3, "a\u0308": 4}}',
        '{"id": "a", "extra": {"a": -0.0, "b": 1E5, "c": 1180591620717411303424, "d": "a:b\\"c\\":d"}}',
    ],
)
def test_other_keys_are_apart(text: str) -> None:
    assert decode(text.encode(), Body)


def test_of_a_large_document_the_key_is_told() -> None:
    raw = b'{"id": "a", "extra": {"x": "%b", "a": [{"b": 1, "\\u0062": 2}]}}' % (b"x" * 100_000)
    with pytest.raises(MalformedError) as caught:
        decode(raw, Body)
    assert [error.path for error in caught.value.errors] == ["*.b"]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"id": "a", "extra": {"b": 1, "b": 2}}', None),
        ('{"id": "a", "extra": {"b": ":", "b": "\\u003a"}, "named": {}}', None),
        ('{"id": "a", "extra": {}, "extra": {}}', "extra"),
        ('{"id": "\\u003a", "extra": {"\\u003A": 1}, "extra": {":": "::"}}', "extra"),
    ],
)
def test_of_the_object_alone(text: str, path: str | None) -> None:
    if path is None:
        assert decode(text.encode(), Body, deep=False).id == "a"
        return
    with pytest.raises(MalformedError) as caught:
        decode(text.encode(), Body, deep=False)
    assert [error.path for error in caught.value.errors] == [path]


keyed = st.recursive(
    st.none() | st.text(alphabet=':"\\{é'),
    lambda inner: st.lists(inner) | st.lists(st.tuples(st.text("ab:\\"), inner)).map(tuple),
)


@given(keyed, st.booleans())
def test_a_key_stands_twice_or_not(value: Any, ascii_only: bool) -> None:
    """Tuples stand for objects, whose members they hold."""
    raw = written(value, ascii_only).encode()
    if repeats(value):
        with pytest.raises(MalformedError, match="twice"):
            decode(raw, Any)  # type: ignore[arg-type]
    else:
        decode(raw, Any)  # type: ignore[arg-type]


def written(value: Any, ascii_only: bool) -> str:
    if isinstance(value, tuple):
        members = (f"{escaped(key, ascii_only)}:{written(inner, ascii_only)}" for key, inner in value)
        return "{" + ",".join(members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(item, ascii_only) for item in value) + "]"
    return "null" if value is None else escaped(value, ascii_only)


def escaped(text: str, ascii_only: bool) -> str:
    return (
        '"' + "".join(f"\\u{ord(each):04x}" for each in text) + '"'
        if ascii_only
        else json.dumps(text, ensure_ascii=False)
    )


def repeats(value: Any) -> bool:
    if isinstance(value, tuple):
        keys = [key for key, _ in value]
        return len(set(keys)) < len(keys) or any(repeats(inner) for _, inner in value)
    return isinstance(value, list) and any(map(repeats, value))


def test_a_number_out_of_range_is_named_also_where_it_is_skipped() -> None:
    class Lenient(msgspec.Struct):
        id: str = ""

    for number in ("1e400", "9" * 5000):
        with pytest.raises(InvalidError) as caught:
            decode(f'{{"other": [1, {{"n": {number}}}]}}'.encode(), Lenient)
        assert caught.value.errors == (FieldError("other.1.n", "number out of range"),)
