"""The tree of causes and effects, built from the events of one correlation id."""

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


def build(events: list[tuple[int, bytes]], scope: Scope = EVERYTHING) -> list[TraceNode]:
    """The roots of the tree, from (sequence, stored bytes) in order of sequence, or of depth where they come from
    several streams of the log, whose clocks may differ. A hidden event has a node, and nothing else.

    An event whose cause is unknown, or not older than itself, is a root: events of users cannot make a circle.
    """
    roots: list[TraceNode] = []
    nodes: dict[str, tuple[TraceNode, int, TraceNode | None]] = {}
    first: float | None = None
    read = [(store.decode(sequence, raw), sequence, raw) for sequence, raw in events]
    if len({stream_number(sequence) for sequence, _ in events}) > 1:
        read.sort(key=lambda entry: (entry[0].metadata.hop, entry[0].metadata.timestamp))
    for event, sequence, raw in read:
        if scope.sees(event):
            at = _milliseconds(event)
            first = at if first is None else first
            node = TraceNode(event=store.encode_public(sequence, raw), elapsed_ms=round(at - first, 3), effects=[])
        else:
            node = TraceNode(event=_NULL, elapsed_ms=0.0, effects=[], hidden=True)
        parent, level = _parent(nodes, event)
        (roots if parent is None else parent.effects).append(node)
        nodes.setdefault(event.metadata.id, (node, level, parent))
    return roots


def is_visible(nodes: list[TraceNode]) -> bool:
    """True where a tree has a node that is not hidden."""
    return any(node.hidden is not True or is_visible(node.effects) for node in nodes)


def select_shown(sized: list[Sized], most_bytes: int) -> list[int]:
    """The sequences of the first events, at most `TREE_EVENTS`, within `most_bytes`; always the first one."""
    shown: list[int] = []
    for row in sized[:TREE_EVENTS]:
        most_bytes -= (row.size or 0) + _NODE_BYTES
        if shown and most_bytes < 0:
            break
        shown.append(row.sequence)
    return shown


def _parent(nodes: dict[str, tuple[TraceNode, int, TraceNode | None]], event: Event) -> tuple[TraceNode | None, int]:
    """The parent node of an event, and the level of its own."""
    cause = event.metadata.causation_id
    if cause is None or cause not in nodes:
        return None, 1
    node, level, above = nodes[cause]
    return (node, level + 1) if level < TREE_LEVELS else (above, level)


def _milliseconds(event: Event) -> float:
    return datetime.fromisoformat(event.metadata.timestamp).timestamp() * 1000
