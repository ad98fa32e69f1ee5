from .fields import Closed, Open, Payloads
from .knowledge import FILE, GRAPH, MEMORY
from .machinery import FLOW, HOOK, SYSTEM, WEBHOOK
from .runtime import AGENT, COMMAND, GATEWAY, MESSAGE, SESSION, TOOL
from .work import KB, QA, SCHEMA, TASK

__all__ = [
    "AGENT",
    "COMMAND",
    "FILE",
    "FLOW",
    "GATEWAY",
    "GRAPH",
    "HOOK",
    "KB",
    "MEMORY",
    "MESSAGE",
    "QA",
    "SCHEMA",
    "SESSION",
    "SYSTEM",
    "TASK",
    "TOOL",
    "WEBHOOK",
    "Closed",
    "Open",
    "Payloads",
]
