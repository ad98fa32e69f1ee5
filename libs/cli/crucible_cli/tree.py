"""A trace as a tree on the terminal: each event under its cause, with the time since the chain began."""

import msgspec
from rich.text import Text
from rich.tree import Tree

from crucible_cli.display import clean, duration, summarise
from crucible_cli.layout import SHORT_ID
from crucible_core.envelope import Event
from crucible_core.protocol.events import TracedDelivery, TraceNode, TraceReply

COLOURS = {"File": "blue", "Memory": "green", "Graph": "green", "Hook": "magenta", "Webhook": "cyan", "System": "dim"}
FAILED = ("Failed", "Exhausted", "Disabled", "Error")


def render_trace(trace: TraceReply) -> Tree:
    """The whole of one correlation id: its events, and the deliveries of each."""
    many = "event" if trace.count == 1 else "events"
    head = Text.assemble(("trace ", "dim"), (trace.correlation_id, "bold"), (f"  {trace.count} {many}", "dim"))
    if trace.truncated:
        head.append("  (more were left out)", "yellow")
    if not trace.complete:
        head.append("  (without deliveries: webhooks is away)", "yellow")
    tree = Tree(head, guide_style="dim")
    for root in trace.roots:
        _grow(tree, root)
    return tree


def type_text(event: Event) -> Text:
    """The dotted type in its category's colour."""
    colour = "red" if event.data.event in FAILED else COLOURS.get(event.type, "yellow")
    return Text(event.dotted, f"bold {colour}")


def _grow(branch: Tree, node: TraceNode) -> None:
    if node.hidden is True:
        below = branch.add(Text("(not for you to see)", "dim"))
    else:
        below = branch.add(_label(msgspec.json.decode(node.event, type=Event), node.elapsed_ms))
    for delivery in node.deliveries:
        below.add(_delivery(delivery))
    for effect in node.effects:
        _grow(below, effect)


def _label(event: Event, elapsed_ms: float) -> Text:
    label = Text.assemble(type_text(event), "  ", summarise(event))
    return label.append(f"  +{duration(elapsed_ms)}", "dim")


def _delivery(delivery: TracedDelivery) -> Text:
    good = delivery.outcome == "delivered"
    name = clean(delivery.webhook or delivery.webhook_id)
    label = Text.assemble((f"webhook {delivery.outcome}", "bold cyan" if good else "bold red"), f"  {name}")
    label.append(f"  {delivery.delivery_id[:SHORT_ID]}", "dim")
    if delivery.attempts > 1:
        label.append(f"  attempt {delivery.attempts}")
    if not good and delivery.error:
        label.append(f"  {clean(delivery.error, 100)}", "yellow")
    return label.append(f"  +{duration(delivery.elapsed_ms)}", "dim")
