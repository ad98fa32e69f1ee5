"""A trace as a tree on the terminal: each event under its cause, with the time since the chain began."""

from collections.abc import Mapping

import msgspec
from rich.text import Text
from rich.tree import Tree

from crucible_core.envelope import Event
from crucible_core.protocol.events import TraceNode, TraceReply

from .summary import duration, summarise

COLOURS = {"File": "blue", "Memory": "green", "Graph": "green", "Hook": "magenta", "Webhook": "cyan", "System": "dim"}
FAILED = ("Failed", "Exhausted", "Disabled", "Error")


def render_trace(trace: TraceReply, notes: Mapping[str, Text] = {}) -> Tree:
    """The whole of one correlation id; `notes` are further leaves, by the id of the event that they belong to."""
    many = "event" if trace.count == 1 else "events"
    head = Text.assemble(("trace ", "dim"), (trace.correlation_id, "bold"), (f"  {trace.count} {many}", "dim"))
    if trace.truncated:
        head.append("  (more were left out)", "yellow")
    tree = Tree(head, guide_style="dim")
    for root in trace.roots:
        _grow(tree, root, notes)
    return tree


def type_text(event: Event) -> Text:
    """The dotted type in its category's colour."""
    colour = "red" if event.data.event in FAILED else COLOURS.get(event.type, "yellow")
    return Text(event.dotted, f"bold {colour}")


def _grow(branch: Tree, node: TraceNode, notes: Mapping[str, Text]) -> None:
    event = msgspec.json.decode(node.event, type=Event)
    below = branch.add(_label(event, node.elapsed_ms))
    if event.metadata.id in notes:
        below.add(notes[event.metadata.id])
    for effect in node.effects:
        _grow(below, effect, notes)


def _label(event: Event, elapsed_ms: float) -> Text:
    label = Text.assemble(type_text(event), "  ", summarise(event))
    return label.append(f"  +{duration(elapsed_ms)}", "dim")
