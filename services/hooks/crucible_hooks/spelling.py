"""One spelling: scripts see the event as expressions do, `event.payload.x` beside `event["payload"]["x"]`, and
`tags.contains(x)` beside `x in tags`. The sandbox runs plain Python in their place."""

import ast
from collections.abc import Mapping
from typing import Any

import msgspec

from crucible_core.errors import InvalidError

from .scripts import SPELLINGS, VARIABLES, bound, modules, parsed, root

_FIELD = "_field_of"
_PRELUDE = f"""def {_FIELD}(value, name):
    return value[name] if isinstance(value, dict) else getattr(value, name)
"""


class Adapted(msgspec.Struct, frozen=True):
    """What the sandbox runs; `lines` has the line of the script for each of its lines, None where they are the same."""

    source: str
    lines: Mapping[int, int] | None = None


def adapted(source: str) -> Adapted:
    """The script as the sandbox runs it. One that cannot be parsed is left as it is: the sandbox says why."""
    try:
        tree = parsed(source, "")
    except InvalidError:
        return Adapted(source)
    spelling = _Spelling(tree)
    changed = ast.fix_missing_locations(spelling.visit(tree))
    if not spelling.changes:
        return Adapted(source)
    prelude = _PRELUDE if spelling.uses_prelude else ""
    text = ast.unparse(changed)
    return Adapted(prelude + text, _lines(changed, text, prelude.count("\n")))


def _lines(changed: ast.AST, text: str, before: int) -> dict[int, int]:
    """Each line of the text with the line that its statement had."""
    lines: dict[int, int] = {}
    for old, new in zip(ast.walk(changed), ast.walk(ast.parse(text)), strict=False):
        if isinstance(new, ast.expr | ast.stmt) and isinstance(old, ast.expr | ast.stmt):
            lines.setdefault(new.lineno + before, old.lineno)
    return lines


class _Spelling(ast.NodeTransformer):
    """Attributes of objects as their elements, and the methods of CEL as Python's."""

    def __init__(self, tree: ast.Module) -> None:
        self.changes = 0
        self.uses_prelude = False
        nodes = list(ast.walk(tree))
        self._own = frozenset(bound(nodes))
        self._variables = frozenset(VARIABLES) - self._own
        self._modules = frozenset(modules(nodes))

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        value = self.visit(node.value)
        first = root(node)
        if first in self._variables:
            self.changes += 1
            return _at(node, ast.Subscript(value, ast.Constant(node.attr), node.ctx))
        if not isinstance(node.ctx, ast.Load) or first in self._modules:
            return _at(node, ast.Attribute(value, node.attr, node.ctx))
        self.changes += 1
        self.uses_prelude = True
        return _at(node, ast.Call(ast.Name(_FIELD, ast.Load()), [value, ast.Constant(node.attr)], []))

    def visit_Call(self, node: ast.Call) -> ast.expr:
        arguments = [self.visit(argument) for argument in node.args]
        keywords = [ast.keyword(keyword.arg, self.visit(keyword.value)) for keyword in node.keywords]
        if not isinstance(node.func, ast.Attribute):
            return _at(node, ast.Call(self.visit(node.func), arguments, keywords))
        value, name = self.visit(node.func.value), node.func.attr
        if name not in self._own:
            if name == "contains" and len(arguments) == 1 and not keywords:
                self.changes += 1
                return _at(node, ast.Compare(arguments[0], [ast.In()], [value]))
            if name == "size" and not arguments and not keywords:
                self.changes += 1
                return _at(node, ast.Call(ast.Name("len", ast.Load()), [value], []))
            if name in SPELLINGS:
                self.changes += 1
                name = SPELLINGS[name]
        return _at(node, ast.Call(_at(node.func, ast.Attribute(value, name, ast.Load())), arguments, keywords))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        return self._body(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> Any:
        return self._body(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        return self._body(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.target = self.visit(node.target)
        node.value = self.visit(node.value) if node.value else None
        return node

    def visit_match_case(self, node: ast.match_case) -> Any:
        node.guard = self.visit(node.guard) if node.guard else None
        return self._body(node)

    def _body(self, node: Any) -> Any:
        """What is run; decorators, annotations, bases and patterns are names of types, and stay."""
        node.body = [self.visit(statement) for statement in node.body]
        return node


def _at(old: ast.expr, new: ast.expr) -> ast.expr:
    return ast.copy_location(new, old)
