"""The payload types of the event types that are built in, by category and event."""

from collections.abc import Mapping

from crucible_core.types.payloads.agents import AGENT
from crucible_core.types.payloads.fields import Closed, Open, Payloads, Reference, Synonyms
from crucible_core.types.payloads.handlers import APPROVAL, ARTIFACT, HOOK, WEBHOOK
from crucible_core.types.payloads.knowledge import FILE, GRAPH, MEMORY
from crucible_core.types.payloads.machinery import FLOW, SYSTEM
from crucible_core.types.payloads.runtime import COMMAND, GATEWAY, MESSAGE, SESSION, TOOL
from crucible_core.types.payloads.work import KB, QA, SCHEMA, TASK

__all__ = ["CATEGORIES", "OURS", "RESERVED", "Closed", "Open", "Payloads", "Reference", "Synonyms"]

CATEGORIES: Mapping[str, Payloads] = {
    "Memory": MEMORY,
    "Graph": GRAPH,
    "File": FILE,
    "Agent": AGENT,
    "Flow": FLOW,
    "System": SYSTEM,
    "Hook": HOOK,
    "Webhook": WEBHOOK,
    "Approval": APPROVAL,
    "Artifact": ARTIFACT,
    "Command": COMMAND,
    "Session": SESSION,
    "Gateway": GATEWAY,
    "Message": MESSAGE,
    "Tool": TOOL,
    "Qa": QA,
    "Task": TASK,
    "Kb": KB,
    "Schema": SCHEMA,
}

RESERVED = frozenset(
    {
        *("Memory.Consolidated", "Memory.Pruned", "Memory.Restored", "Memory.Superseded"),
        *("Graph.PathDiscovered", "Graph.CommunityDetected", "Graph.MetricsComputed"),
        *("System.ScheduleFired", "System.AccessDenied"),
        *("Webhook.Failing", "Webhook.Recovered"),
        *(f"Flow.{event}" for event in FLOW),
        *(f"Approval.{event}" for event in APPROVAL),
        *(f"Artifact.{event}" for event in ARTIFACT),
    }
)
"""Types that are Crucible's to emit, and that it does not emit yet: only a client that sends one makes it happen."""

OURS = frozenset({"System", "Hook", "Webhook", "Approval"})
"""Categories whose events say what Crucible itself has done: nobody else can know, and nobody else may say so."""
