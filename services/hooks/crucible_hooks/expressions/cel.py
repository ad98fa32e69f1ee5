"""CEL by Google's runtime: the syntax of an expression, and its value. Nothing here bounds the time that it takes."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import msgspec
from cel_expr_python import cel

from crucible_hooks.errors import AbsentError, RunError

VARIABLES = ("event", "inputs")
FUNCTIONS = frozenset(
    """
    contains endsWith endswith startsWith startswith matches size has all exists exists_one map filter
    bool bytes double duration dyn int string timestamp type uint
    getDate getDayOfMonth getDayOfWeek getDayOfYear getFullYear getHours getMilliseconds getMinutes getMonth getSeconds
    """.split()  # noqa: SIM905 - a table of words
)
_HEAVY = frozenset({"matches"})
"""Functions whose cost is not linear in their arguments."""
_SHOWN = 200
_MOST_INTEGER = 2**64 - 1
_LEAST_INTEGER = -(2**63)
_CACHED = 4096
_NUL, _NO_NUL = "\0", "\U0010ffff"
"""The runtime takes texts to end at NUL; Unicode keeps the other for a program's own use."""

_STDLIB = "stdlib:\n  exclude_functions:\n    - name: contains\n"
"""The checker's `contains` is declared anew, for lists and objects as well; the runtime keeps its own for texts."""
_ABSENT = re.compile(r'NOT_FOUND: Key not found in map : "?(.*?)"?|UNKNOWN: Index error: (index=-?\d+).*', re.DOTALL)
_CODE = re.compile(r"^(?:[A-Z_]+: )+")


class Syntax(msgspec.Struct, frozen=True):
    """The syntax of an expression. `fields` are the paths of `event` and `inputs` that it reads, each as a tuple of
    names that begins with the variable; a number stands for any element of a list."""

    nodes: int
    loops: bool
    functions: frozenset[str]
    fields: tuple[tuple[str, ...], ...]

    @property
    def linear(self) -> bool:
        """True where it costs at most (nodes² times the size of its variables) steps: it has no loop, and no function
        that searches by a pattern."""
        return not self.loops and not self.functions & _HEAVY


def check(source: str) -> None:
    """Raises ValueError for a text that is no CEL, unknown names, and operators between types that never fit."""
    try:
        _environment().compile(source)
    except RuntimeError as error:
        raise ValueError(str(error)) from None


@lru_cache(_CACHED)
def syntax(source: str) -> Syntax:
    """Raises ValueError for a text that cannot be parsed."""
    return _Reading().read(_program(source).serialize())


def evaluate(source: str, activation: Any) -> Any:
    """The value, made of JSON's types. Raises AbsentError for an absent field, RunError for any other failure."""
    try:
        value = _program(source).eval(activation)
        if value.type() != cel.Type.ERROR:
            return _decode_value(plain(value.plain_value()))
        message = str(value.plain_value())
    except (RuntimeError, ValueError, OverflowError) as error:
        raise RunError(f"{_excerpt(source)}: {first_line(error)}") from None
    if absent := _ABSENT.fullmatch(message):
        raise AbsentError(f"{_excerpt(source)}: there is no {absent[1] or absent[2]}")
    raise RunError(f"{_excerpt(source)}: {_CODE.sub('', message)[:_SHOWN]}")


def activation(context: Mapping[str, Any]) -> Any:
    """`event` and `inputs` as the runtime takes them, for all expressions that run on them."""
    return _environment().Activation({name: _encode_value(context.get(name)) for name in VARIABLES})


def plain(value: Any) -> Any:
    """Any value of an expression or a script, as JSON's types. Raises RunError for one that JSON cannot hold."""
    try:
        encoded = msgspec.json.encode(value, enc_hook=str)
        if b"null" in encoded:
            _check_numbers(value)
        return msgspec.json.decode(encoded)
    except RecursionError:
        raise RunError("the result refers to itself or is nested too deeply") from None
    except (ValueError, TypeError, OverflowError, msgspec.MsgspecError) as error:
        raise RunError(f"the result cannot be written as JSON: {error}") from None


def _check_numbers(value: Any) -> None:
    """Raises ValueError for a number that JSON does not have and msgspec writes as null."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"there is no number {value}")
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple | set | frozenset):
        return
    for item in value:
        _check_numbers(item)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:_SHOWN]


@lru_cache(_CACHED)
def _program(source: str) -> Any:
    try:
        return _environment().compile(source, disable_check=True)
    except RuntimeError as error:
        raise ValueError(str(error)) from None


@cache
def _environment() -> Any:
    kinds = cel.Type
    variables = dict.fromkeys(VARIABLES, kinds.DYN)
    config = cel.NewEnvConfigFromYaml(_STDLIB)
    return cel.NewEnv(config=config, variables=variables, functions=_functions())


def _functions() -> list[Any]:
    """`contains` of lists and objects, and Python's spelling of two functions of texts. The runtime chooses by the
    kinds that the arguments have, so that each has an overload of its own."""
    kinds = cel.Type
    text, truth = kinds.STRING, kinds.BOOL
    items = ("STRING", "INT", "UINT", "DOUBLE", "BOOL", "NULL", "LIST", "MAP", "BYTES", "TIMESTAMP", "DURATION")
    contains = [
        cel.Overload("contains_string", return_type=truth, parameters=[text, text], is_member=True),
        cel.Overload("map_contains", return_type=truth, parameters=[kinds.MAP, text], is_member=True, impl=_has_key),
        *(
            cel.Overload(
                f"list_contains_{name.lower()}",
                return_type=truth,
                parameters=[kinds.LIST, getattr(kinds, name)],
                is_member=True,
                impl=_has_item,
            )
            for name in items
        ),
    ]
    pythonic = {"startswith": str.startswith, "endswith": str.endswith}
    return [
        cel.FunctionDecl("contains", contains),
        *(
            cel.FunctionDecl(
                name,
                [cel.Overload(f"string_{name}", return_type=truth, parameters=[text, text], is_member=True, impl=call)],
            )
            for name, call in pythonic.items()
        ),
    ]


def _has_key(mapping: Mapping[Any, Any], key: str) -> bool:
    return key in mapping


def _has_item(items: Sequence[Any], wanted: Any) -> bool:
    truth = isinstance(wanted, bool)
    return any(isinstance(item, bool) is truth and bool(item == wanted) for item in items)


def _encode_value(value: Any) -> Any:
    """The value as the runtime can take it: without NUL, at which it would end a text, and with an integer that CEL has
    no type for as the nearest number that it has."""
    if isinstance(value, str):
        return value.replace(_NUL, _NO_NUL) if _NUL in value else value
    if isinstance(value, dict):
        return {_encode_value(key): _encode_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_encode_value(item) for item in value]
    if isinstance(value, int) and not _LEAST_INTEGER <= value <= _MOST_INTEGER:
        return float(value)
    return value


def _decode_value(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(_NO_NUL, _NUL) if _NO_NUL in value else value
    if isinstance(value, dict):
        return {_decode_value(key): _decode_value(item) for key, item in value.items()}
    return [_decode_value(item) for item in value] if isinstance(value, list) else value


def _excerpt(source: str) -> str:
    return source.strip()[:_SHOWN]


# ---- the syntax tree: cel/expr/syntax.proto, as `serialize` writes it ------------------------------------------------

_CHECKED = b"CheckedExpr"
_CONSTANT, _NAME, _SELECT, _CALL, _LIST, _OBJECT, _LOOP = 3, 4, 5, 6, 7, 8, 9
_INTEGER, _UNSIGNED, _TEXT = 3, 4, 6
_ANY_ITEM = "0"
_Message = dict[int, list[Any]]
_Path = tuple[str, ...] | None


class _Reading:
    """Walks a syntax tree, and collects its functions, loops and fields."""

    def __init__(self) -> None:
        self._nodes = 0
        self._loops = False
        self._functions: set[str] = set()
        self._fields: dict[tuple[str, ...], None] = {}

    def read(self, serialized: bytes) -> Syntax:
        outer = _message(serialized)
        number = 4 if _CHECKED in outer[1][0] else 2
        self._note(self._walk(_message(outer[2][0])[number][0], {name: (name,) for name in VARIABLES}))
        return Syntax(self._nodes, self._loops, frozenset(self._functions), tuple(self._fields))

    def _walk(self, data: bytes, scope: Mapping[str, _Path]) -> _Path:
        """Notes the fields that the node reads, and returns its own path, which the caller notes or extends."""
        node = _message(data)
        self._nodes += 1
        if _NAME in node:
            return scope.get(_text(_message(node[_NAME][0])))
        if _SELECT in node:
            select = _message(node[_SELECT][0])
            return self._below(self._walk(select[1][0], scope), _text(select, 2))
        if _CALL in node:
            return self._call(_message(node[_CALL][0]), scope)
        if _LOOP in node:
            self._loop(_message(node[_LOOP][0]), scope)
        for part in _parts(node):
            self._note(self._walk(part, scope))
        return None

    def _call(self, call: _Message, scope: Mapping[str, _Path]) -> _Path:
        name = _text(call, 2)
        self._functions.add(name)
        paths = [self._walk(part, scope) for part in (*call.get(1, ()), *call.get(3, ()))]
        if name == "_[_]" and (key := _key(call[3][1])) is not None:
            return self._below(paths[0], key)
        for path in paths:
            self._note(path)
        return None

    def _loop(self, loop: _Message, scope: Mapping[str, _Path]) -> None:
        self._loops = True
        over = self._walk(loop[2][0], scope)
        self._note(over)
        inside = {**scope, _text(loop): self._below(over, _ANY_ITEM), _text(loop, 3): None, _text(loop, 8): None}
        for number in (4, 5, 6, 7):
            for part in loop.get(number, ()):
                self._note(self._walk(part, inside))

    def _below(self, path: _Path, name: str) -> _Path:
        return None if path is None else (*path, name)

    def _note(self, path: _Path) -> None:
        # A loop over an object goes over its keys: an item by itself says only that its whole is there.
        while path and path[-1] == _ANY_ITEM:
            path = path[:-1]
        if path is not None:
            self._fields[path] = None


def _parts(node: _Message) -> Iterator[bytes]:
    """The elements of a list, or the keys and values of an object."""
    for built in node.get(_LIST, ()):
        yield from _message(built).get(1, ())
    for built in node.get(_OBJECT, ()):
        for entry in map(_message, _message(built).get(2, ())):
            yield from (*entry.get(3, ()), *entry.get(4, ()))


def _key(data: bytes) -> str | None:
    """A constant that an index names: a text, or the number of an element."""
    constant = _message(_message(data).get(_CONSTANT, [b""])[0])
    if _TEXT in constant:
        return _text(constant, _TEXT)
    return _ANY_ITEM if _INTEGER in constant or _UNSIGNED in constant else None


def _text(message: _Message, number: int = 1) -> str:
    return bytes(message.get(number, [b""])[0]).decode()


def _message(data: bytes) -> _Message:
    """The fields of a protobuf message by number, undecoded."""
    found: _Message = {}
    index = 0
    while index < len(data):
        tag, index = _varint(data, index)
        kind, values = tag & 7, found.setdefault(tag >> 3, [])
        if kind == 0:
            number, index = _varint(data, index)
            values.append(number)
        else:
            length, index = _varint(data, index) if kind == 2 else ({1: 8, 5: 4}[kind], index)
            values.append(data[index : index + length])
            index += length
    return found


def _varint(data: bytes, index: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[index]
        value |= (byte & 127) << shift
        index, shift = index + 1, shift + 7
        if byte < 128:
            return value, index
