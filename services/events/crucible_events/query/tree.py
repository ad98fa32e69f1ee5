"""The tree of causes: which event led to which, from the events of one correlation id."""

from datetime import datetime

import msgspec

from crucible_core.access import EVERYTHING, Scope
from crucible_core.envelope import Event
from crucible_core.limits import TREE_EVENTS, TREE_LEVELS
from crucible_core.position import stream_number
from crucible_core.protocol.events import TraceNode
from crucible_events import store
from crucible_events.store import Sized

_NODE_BYTES = 100


_NULL = msgspec.Raw(b"null")


def grow(events: list[tuple[int, bytes]], scope: Scope = EVERYTHING) -> list[TraceNode]:
    """The roots of the tree, from (sequence, stored bytes) in order; in that of depth where they are of several streams
    of the log, whose clocks may differ. Of an event that may not be seen there is a node, and nothing else.

    An event whose cause is unknown, or not older than itself, is a root: what users write cannot make a circle.
    """
    roots: list[TraceNode] = []
    placed: dict[str, tuple[TraceNode, int, TraceNode | None]] = {}
    first: float | None = None
    read = [(store.decoded(sequence, raw), sequence, raw) for sequence, raw in events]
    if len({stream_number(sequence) for sequence, _ in events}) > 1:
        read.sort(key=lambda entry: (entry[0].metadata.hop, entry[0].metadata.timestamp))
    for event, sequence, raw in read:
        if scope.sees(event):
            at = _milliseconds(event)
            first = at if first is None else first
            node = TraceNode(event=store.public(sequence, raw), elapsed_ms=round(at - first, 3), effects=[])
        else:
            node = TraceNode(event=_NULL, elapsed_ms=0.0, effects=[], hidden=True)
        parent, level = _place(placed, event)
        (roots if parent is None else parent.effects).append(node)
        placed.setdefault(event.metadata.id, (node, level, parent))
    return roots


def shows(nodes: list[TraceNode]) -> bool:
    """Whether there is anything to see in a tree."""
    return any(node.hidden is not True or shows(node.effects) for node in nodes)


def _place(placed: dict[str, tuple[TraceNode, int, TraceNode | None]], event: Event) -> tuple[TraceNode | None, int]:
    """The node to which an event is attached, and the level that it gets."""
    cause = event.metadata.causation_id
    if cause is None or cause not in placed:
        return None, 1
    node, level, above = placed[cause]
    return (node, level + 1) if level < TREE_LEVELS else (above, level)


def _milliseconds(event: Event) -> float:
    return datetime.fromisoformat(event.metadata.timestamp).timestamp() * 1000


def fitting(sized: list[Sized], most_bytes: int) -> list[int]:
    """The sequences of the first events, at most `TREE_EVENTS`, whose bytes there is room for; always the first one."""
    shown: list[int] = []
    for row in sized[:TREE_EVENTS]:
        most_bytes -= (row.size or 0) + _NODE_BYTES
        if shown and most_bytes < 0:
            break
        shown.append(row.sequence)
    return shown
