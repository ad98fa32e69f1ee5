"""The check of scripts, on their syntax trees: mistakes, and the fields that they read. Call it in a worker process: a
text from outside can keep the parser busy without end."""

import ast
import builtins
import collections
import datetime
import decimal
import hashlib
import inspect
import io
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec

from crucible_core.errors import FieldError, InvalidError
from crucible_core.limits import ERRORS, SCRIPT_DEPTH
from crucible_core.suggest import nearest
from crucible_hooks.expressions import cel

VARIABLES = ("event", "inputs")
MODULES = frozenset(
    """
    asyncio base64 collections copy dataclasses datetime decimal functools hashlib itertools json math os pathlib random
    re sys time typing
    """.split()  # noqa: SIM905 - a table of words
)
"""The modules that the sandbox can import."""
BUILTINS = frozenset(
    """
    ArithmeticError AssertionError AttributeError BaseException Ellipsis Exception FileExistsError FileNotFoundError
    ImportError IndexError IsADirectoryError KeyError KeyboardInterrupt LookupError MemoryError ModuleNotFoundError
    NameError NotADirectoryError NotImplemented NotImplementedError OSError OverflowError PermissionError RecursionError
    RuntimeError StopIteration SyntaxError SystemExit TimeoutError TypeError UnboundLocalError UnicodeDecodeError
    UnicodeEncodeError ValueError ZeroDivisionError abs all any bin bool bytes chr complex dict divmod enumerate eval
    exec filter float format frozenset getattr hasattr hash hex id int isinstance iter len list locals map max min next
    object oct open ord pow print property range repr reversed round set setattr slice sorted str sum tuple type zip
    __name__ __file__ __debug__
    """.split()  # noqa: SIM905 - a table of words
)
"""The names that the sandbox has by itself."""
SPELLINGS = {"startsWith": "startswith", "endsWith": "endswith", "starts_with": "startswith", "ends_with": "endswith"}
"""CEL's methods of texts, and Python's."""
_OURS = ("contains", "size")
_NAMES_ELSEWHERE = {"true": "True", "false": "False", "null": "None", "nil": "None", "size": "len", "has": "in"}
_METHODS_ELSEWHERE = {
    "len": "len(…)",
    "length": "len(…)",
    "includes": "contains",
    "has": "contains",
    "push": "append",
    "trim": "strip",
    "toLowerCase": "lower",
    "to_lowercase": "lower",
    "lowerAscii": "lower",
    "toUpperCase": "upper",
    "to_uppercase": "upper",
    "upperAscii": "upper",
    "matches": "re.search(pattern, text), after import re",
    "exists": "any(… for … in …)",
    "some": "any(… for … in …)",
    "every": "all(… for … in …)",
}
_RUNE = re.compile(r"^\s*(?:let|const|var|fn|pub|use)\s|\w::\w|=>|\bmatch\b.*\{\s*$", re.MULTILINE)
_GIT = re.compile(r"\bgit\b")
_ANY_ITEM = "0"
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_READING = (ast.Name, ast.Attribute, ast.Subscript, ast.Call, ast.Compare)
_OBJECTS = (("event",), ("event", "payload"), ("event", "data", "payload"), ("event", "metadata"))
"""Paths of objects whose members are fields: `"x" in …` reads one of them."""

_Path = tuple[str, ...]


class Reading(msgspec.Struct, frozen=True):
    """The paths of `event` and `inputs` that a script reads, as `cel.Syntax.fields` has them, each with its line."""

    fields: tuple[tuple[_Path, int], ...]


def check(source: str, at: str, known: Mapping[str, inspect.Signature], forbidden: Mapping[str, str]) -> Reading:
    """The fields that a script reads. Raises InvalidError for a text that is no Python, for unknown names and arguments
    (`known` are its functions), and for a call of a `forbidden` function, with the reason.

    It can take as long as it likes: call it in a worker process.
    """
    nodes = list(ast.walk(parse_script(source, at)))
    errors: list[FieldError] = []
    for line, message, suggestion in _Names(nodes, known, forbidden).mistakes():
        errors.append(FieldError(at, f"line {line}: {message}", suggestion))
        if len(errors) >= ERRORS:
            break
    if errors:
        first = errors[0]
        hint = f' (did you mean "{first.suggestion}"?)' if first.suggestion else ""
        raise InvalidError(f"{at}: {first.message}{hint}", errors=errors)
    return Reading(tuple(_Fields(nodes).paths()))


def parse_script(source: str, at: str) -> ast.Module:
    try:
        tree = ast.parse(source)
        if _depth(tree) > SCRIPT_DEPTH:
            raise InvalidError.field(at, f"a script may be nested {SCRIPT_DEPTH} deep")
    except SyntaxError as error:
        raise _not_python(source, at, error) from None
    except (ValueError, RecursionError, MemoryError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise InvalidError.field(at, f"not a script: {reason}") from None
    return tree


def _depth(tree: ast.AST) -> int:
    """The depth of the tree; a chain of `elif`, which the tree nests, is as deep as one."""
    deepest, waiting = 0, [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        deepest = max(deepest, depth)
        if depth > SCRIPT_DEPTH:
            return depth
        otherwise = node.orelse if isinstance(node, ast.If) and len(node.orelse) == 1 else []
        waiting += ((child, depth + (child not in otherwise)) for child in ast.iter_child_nodes(node))
    return deepest


def _not_python(source: str, at: str, error: SyntaxError) -> InvalidError:
    message = f"line {error.lineno or 1}: {error.msg}"
    if _RUNE.search(source):
        message = f"line {error.lineno or 1}: scripts are Python, and this reads like Rune or JavaScript"
        if _GIT.search(source):
            message += "; a script cannot call git, a Shell action can"
            return InvalidError.field(at, message, "action: {type: Shell, command: git status --porcelain}")
        return InvalidError.field(at, message, "x = 1 in the place of let x = 1;")
    if at == "condition.script" and _is_cel(source):
        return InvalidError.field(at, f"{message}: this is CEL", "condition.expr")
    if "&&" in source or "||" in source:
        return InvalidError.field(at, message, "and, or, not")
    return InvalidError.field(at, message)


def _is_cel(source: str) -> bool:
    try:
        cel.check(source)
    except ValueError:
        return False
    return True


# ---- names -----------------------------------------------------------------------------------------------------------


class _Names:
    """Checks the names of a script against those that exist."""

    def __init__(
        self, nodes: Sequence[ast.AST], known: Mapping[str, inspect.Signature], forbidden: Mapping[str, str]
    ) -> None:
        self._nodes = nodes
        self._bound = frozenset(bound_names(nodes))
        self._functions = known
        self._known = frozenset(known) | frozenset(VARIABLES)
        self._forbidden = forbidden
        self._modules = frozenset(imported_names(nodes))
        self._classes = any(isinstance(node, ast.ClassDef) for node in nodes)

    def mistakes(self) -> Iterator[tuple[int, str, str | None]]:
        """Each mistake with its line, and the nearest name."""
        in_try = {id(inner) for node in self._nodes if isinstance(node, ast.Try) for inner in node.body}
        for node in self._nodes:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                yield from self._name(node)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield from self._method(node.func)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                yield from self._call(node, node.func.id)
            elif isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in in_try:
                yield from self._import(node)

    def _name(self, node: ast.Name) -> Iterator[tuple[int, str, str | None]]:
        name = node.id
        if name in self._bound:
            return
        if name in self._forbidden:
            yield node.lineno, f"{name}: {self._forbidden[name]}", None
        elif name not in self._known and name not in BUILTINS:
            others = [*self._known, *self._bound, *BUILTINS]
            yield node.lineno, f'there is no "{name[:80]}"', _NAMES_ELSEWHERE.get(name) or nearest(name, others)

    def _call(self, node: ast.Call, name: str) -> Iterator[tuple[int, str, str | None]]:
        """Yields arguments that a function does not have; those in `*` and `**` are unknown."""
        if name in self._bound:
            return
        signature = self._functions.get(name) or _builtin(name)
        if signature is None:
            return
        names = [one.name for one in signature.parameters.values() if one.kind in _NAMED]
        used = [keyword.arg for keyword in node.keywords if keyword.arg is not None]
        unknown = [one for one in used if one not in names]
        for one in unknown:
            yield node.lineno, f'{name} has no argument "{one[:80]}"', nearest(one, names)
        open_ended = len(used) < len(node.keywords) or any(isinstance(one, ast.Starred) for one in node.args)
        if unknown or open_ended:
            return
        try:
            signature.bind(*node.args, **dict.fromkeys(used))
        except TypeError as error:
            yield node.lineno, f"{name}: {error}", f"{name}({', '.join(names)})" if names else None

    def _method(self, node: ast.Attribute) -> Iterator[tuple[int, str, str | None]]:
        name = node.attr
        if self._classes or name in self._bound or name in _methods() or name in SPELLINGS or name in _OURS:
            return
        if root(node) not in self._modules:
            found = _METHODS_ELSEWHERE.get(name) or nearest(name, [*_methods(), *_OURS, *SPELLINGS])
            yield node.lineno, f'no value has a method "{name[:80]}"', found

    def _import(self, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[int, str, str | None]]:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or "."]
        for name in names:
            if name.partition(".")[0] not in MODULES:
                others = ", ".join(sorted(MODULES))
                yield node.lineno, f'there is no module "{name[:80]}" here; there are {others}', nearest(name, MODULES)


@cache
def _builtin(name: str) -> inspect.Signature | None:
    """The signature of a builtin, where Python has one."""
    found = getattr(builtins, name, None) if name in BUILTINS else None
    if found is None or isinstance(found, type):
        return None
    try:
        return inspect.signature(found)
    except ValueError:
        return None


@cache
def _methods() -> frozenset[str]:
    kinds: list[Any] = [str, bytes, list, dict, set, frozenset, tuple, int, float, complex, range, slice, re.Pattern]
    kinds += [re.Match, datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone]
    kinds += [collections.Counter, collections.deque, collections.defaultdict, collections.OrderedDict]
    kinds += [decimal.Decimal, pathlib.Path, hashlib.sha256(), io.TextIOWrapper]
    return frozenset(name for kind in kinds for name in dir(kind))


def bound_names(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Every name that the script binds somewhere."""
    for node in nodes:
        match node:
            case ast.Name(ctx=ast.Store() | ast.Del()):
                yield node.id
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.arg():
                yield node.arg
            case ast.alias():
                yield node.asname or node.name.partition(".")[0]
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name
            case ast.MatchMapping(rest=str(name)):
                yield name


def imported_names(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The names that it imports."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)


def root(node: ast.expr) -> str | None:
    """The name that a chain of attributes, elements and calls begins with."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


# ---- fields ----------------------------------------------------------------------------------------------------------


class _Fields:
    """Finds the paths of `event` and `inputs` that a script reads: through names that are bound once, and the elements
    of lists."""

    def __init__(self, nodes: Sequence[ast.AST]) -> None:
        self._nodes = nodes
        counted = collections.Counter(bound_names(nodes))
        self._once = {name for name, times in counted.items() if times == 1}
        self._paths: dict[str, _Path] = {name: (name,) for name in VARIABLES if name not in counted}

    def paths(self) -> Iterator[tuple[_Path, int]]:
        for node in self._nodes:
            self._bind(node)
        called = {id(node.func) for node in self._nodes if isinstance(node, ast.Call)}
        yielded: set[_Path] = set()
        for node in self._nodes:
            if not isinstance(node, _READING) or id(node) in called or (path := self._path(node)) is None:
                continue
            # A loop over an object goes over its keys: an item by itself says only that its whole is there.
            while path[-1] == _ANY_ITEM:
                path = path[:-1]
            if path not in yielded:
                yielded.add(path)
                yield path, node.lineno

    def _bind(self, node: ast.AST) -> None:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in self._once:
                self._name(name, self._path(value))
            case ast.NamedExpr(target=ast.Name(id=name), value=value) if name in self._once:
                self._name(name, self._path(value))
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)) if not any(
                isinstance(one, ast.Starred) for one in (*targets, *values)
            ):
                for target, value in zip(targets, values, strict=False):
                    self._bind(ast.Assign(targets=[target], value=value))
            case (
                ast.For(target=ast.Name(id=name), iter=over) | ast.comprehension(target=ast.Name(id=name), iter=over)
            ) if name in self._once:
                path = self._path(over)
                self._name(name, (*path, _ANY_ITEM) if path else None)

    def _name(self, name: str, path: _Path | None) -> None:
        if path and name not in VARIABLES:
            self._paths[name] = path

    def _path(self, node: ast.expr) -> _Path | None:
        match node:
            case ast.Name(id=name):
                return self._paths.get(name)
            case ast.Attribute(value=value, attr=name, ctx=ast.Load()):
                return self._below(value, name)
            case ast.Subscript(value=value, slice=ast.Constant(value=str(name)), ctx=ast.Load()):
                return self._below(value, name)
            case ast.Subscript(value=value, slice=ast.Constant(value=int()) | ast.UnaryOp(), ctx=ast.Load()):
                return self._below(value, _ANY_ITEM)
            case ast.Subscript(value=value, slice=ast.Slice(), ctx=ast.Load()):
                return self._path(value)
            case ast.BoolOp(op=ast.Or(), values=[first, *_]):
                return self._path(first)
            case ast.NamedExpr(value=value):
                return self._path(value)
            case ast.Call(func=ast.Attribute(value=value, attr="get"), args=[ast.Constant(value=str(name)), *_]):
                return self._below(value, name)
            case ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Constant(value=str(name)), *_]):
                return self._below(value, name)
            case ast.Compare(left=ast.Constant(value=str(name)), ops=[ast.In() | ast.NotIn()], comparators=[value]):
                return self._below(value, name) if self._path(value) in _OBJECTS else None
        return None

    def _below(self, value: ast.expr, name: str) -> _Path | None:
        path = self._path(value)
        return (*path, name) if path else None
