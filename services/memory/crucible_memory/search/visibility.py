"""Visibility of memories: the test that keeps worlds apart, for `store` and `search` alike, and in a module of its
own."""

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from crucible_core.access import Scope, View
from crucible_core.errors import InvalidError
from crucible_core.filters.filter import DocumentPredicate, compile_document_filter
from crucible_core.protocol.memory import MemoryView

_ANY = "Memory.Created"


class Visibility(NamedTuple):
    """`sql` is a condition on `memories m`, empty for no limit; `shows` decides."""

    sql: str
    values: list[str]
    shows: Callable[[MemoryView], bool]


def visible_to(scope: Scope) -> Visibility:
    """A grant's `where` is a filter over events. Here it filters the memories themselves, and shows none where it needs
    a field that memories do not have, such as the actor."""
    if scope.everything:
        return Visibility("", [], lambda view: True)
    views = [(view, _compile_where(view)) for view in scope.views if view.has_type(_ANY)]
    usable = [(view, test) for view, test in views if test is not None]
    parts, values = ["0"], list[str]()
    for view, _ in usable:
        tests = ["1"]
        for column, names in (("m.world", view.worlds), ("m.room", view.rooms)):
            if names is not None:
                tests.append(f"{column} IN ({', '.join('?' * len(names))})")
                values += sorted(names)
        parts.append(f"({' AND '.join(tests)})")

    def shows(memory: MemoryView) -> bool:
        document = msgspec.to_builtins(memory)
        return any(view.has_place(memory.world_id, memory.room_id) and test(document) for view, test in usable)

    return Visibility(f"({' OR '.join(parts)})", values, shows)


def _compile_where(view: View) -> DocumentPredicate | None:
    try:
        return compile_document_filter(view.where, MemoryView.__struct_fields__)
    except InvalidError:
        return None
