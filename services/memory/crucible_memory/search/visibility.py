"""The memories that a scope shows: what `store` and `search` ask, apart from both since it is a wall between worlds."""

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from crucible_core.access import Scope, View
from crucible_core.errors import InvalidError
from crucible_core.filters.filter import DocumentPredicate, compile_document_filter
from crucible_core.protocol.memory import MemoryView

_ANY = "Memory.Created"


class Sight(NamedTuple):
    """`sql` is a condition on `memories m`, without any limit where it is empty; `holds` has the last word."""

    sql: str
    values: list[str]
    holds: Callable[[MemoryView], bool]


def sight_of(scope: Scope) -> Sight:
    """A grant's `where` is a filter over events. Here it is asked of the memory itself, and shows none where it asks
    what a memory does not say, as who wrote it."""
    if scope.everything:
        return Sight("", [], lambda view: True)
    views = [(view, _document(view)) for view in scope.views if view.has_type(_ANY)]
    usable = [(view, holds) for view, holds in views if holds is not None]
    parts, values = ["0"], list[str]()
    for view, _ in usable:
        tests = ["1"]
        for column, names in (("m.world", view.worlds), ("m.room", view.rooms)):
            if names is not None:
                tests.append(f"{column} IN ({', '.join('?' * len(names))})")
                values += sorted(names)
        parts.append(f"({' AND '.join(tests)})")

    def holds(memory: MemoryView) -> bool:
        document = msgspec.to_builtins(memory)
        return any(view.has_place(memory.world_id, memory.room_id) and test(document) for view, test in usable)

    return Sight(f"({' OR '.join(parts)})", values, holds)


def _document(view: View) -> DocumentPredicate | None:
    try:
        return compile_document_filter(view.where, MemoryView.__struct_fields__)
    except InvalidError:
        return None
