"""The examples of the API's documentation, one for each shape."""

from typing import Any, Final

Json = dict[str, Any]

SHORT_EVENT: Final[Json] = {
    "type": "Memory.Tagged",
    "payload": {"id": "mem_01kaj3x5v8e2q9rgyz7ncw4t6b", "tag": "#research"},
    "entity": "mem_01kaj3x5v8e2q9rgyz7ncw4t6b",
}
APPENDED: Final[Json] = {
    "id": "evt_01kaj3x5vae8jv6jq0f1d8c2hm",
    "sequence": 42,
    "type": "Memory.Tagged",
    "correlation_id": "cor_01kaj3x5vaf0y8nn4y6h4gq3zk",
}
NDJSON: Final = '{"type": "File.Created", "payload": {"path": "a.md"}}\n{"type": "Custom.Ping", "payload": {"n": 1}}\n'
CLOUD_EVENT: Final[Json] = {
    "specversion": "1.0",
    "id": "A234-1234-1234",
    "source": "https://example.com/notes",
    "type": "com.example.Custom.NoteSaved",
    "time": "2026-11-21T10:00:00Z",
    "data": {"title": "On logs"},
}
EVENT: Final[Json] = {
    "type": "Memory",
    "data": {
        "event": "Created",
        "payload": {"id": "mem_01kaj3x5v8e2q9rgyz7ncw4t6b", "content": "Logs are truth", "tags": ["#research"]},
    },
    "metadata": {
        "id": "evt_01kaj3x5vae8jv6jq0f1d8c2hm",
        "timestamp": "2026-11-21T10:00:00.123456Z",
        "version": "1.0.0",
        "source": {"kind": "user", "id": "alice"},
        "actor": "user:alice",
        "correlation_id": "cor_01kaj3x5vaf0y8nn4y6h4gq3zk",
        "causation_id": None,
        "hop": 0,
        "world_id": "default",
        "room_id": "main",
        "entity": "mem_01kaj3x5v8e2q9rgyz7ncw4t6b",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    },
    "sequence": 42,
}
COUNTED: Final[Json] = {
    "count": 1204,
    "groups": [{"key": "Memory.Created", "count": 1200}, {"key": "Memory.Tagged", "count": 4}],
    "complete": True,
    "counted_to": 5310,
}
EXPORT: Final = '{"type": "Memory", "data": {…}, "metadata": {…}, "sequence": 42, "retention": "forever"}\n\n'
SENT_CLOUD_EVENT: Final[Json] = {
    "specversion": "1.0",
    "id": EVENT["metadata"]["id"],
    "source": "crucible:user:alice",
    "type": "Memory.Created",
    "subject": "mem_01kaj3x5v8e2q9rgyz7ncw4t6b",
    "time": "2026-11-21T10:00:00.123456Z",
    "datacontenttype": "application/json",
    "correlationid": "cor_01kaj3x5vaf0y8nn4y6h4gq3zk",
    "sequence": "0000000000000000042",
    "partitionkey": "mem_01kaj3x5v8e2q9rgyz7ncw4t6b",
    "authtype": "user",
    "authid": "alice",
    "traceparent": EVENT["metadata"]["traceparent"],
    "worldid": "default",
    "roomid": "main",
    "data": EVENT["data"]["payload"],
}
REDACTED: Final[Json] = {
    **EVENT,
    "data": {"event": "Created", "payload": {}},
    "redacted": {
        "tombstone": "evt_01kaj4c7m2f9x8s6v4q3t1b0zn",
        "at": "2026-11-22T08:30:00.000000Z",
        "by": "user:alice",
        "reason": "asked for by the author",
    },
}
EVENT_PAGE: Final[Json] = {"events": [EVENT], "next_cursor": None}
TRACE: Final[Json] = {
    "correlation_id": "cor_01kaj3x5vaf0y8nn4y6h4gq3zk",
    "count": 1,
    "truncated": False,
    "roots": [{"event": EVENT, "elapsed_ms": 0.0, "effects": [], "deliveries": []}],
    "complete": True,
}
EVENT_TYPES: Final[Json] = {
    "types": [
        {
            "type": "Memory.Tagged",
            "description": "A tag was put on a memory.",
            "aliases": ["memory.tagged", "entry.tagged"],
            "open": False,
            "schema": {"type": "object", "required": ["id", "tag"]},
            "version": "1.0.0",
            "versions": ["1.0.0"],
            "registered": False,
            "count": 7,
        }
    ]
}
REGISTER_TYPE: Final[Json] = {
    "type": "Order.Placed",
    "version": "1.0.0",
    "schema": {
        "type": "object",
        "properties": {"id": {"type": "string"}, "amount": {"type": "number", "minimum": 0}},
        "required": ["id", "amount"],
    },
    "description": "A customer has ordered.",
    "aliases": ["new_order"],
}
DESCRIBED_TYPE: Final[Json] = {
    "type": "Order.Placed",
    "description": "A customer has ordered.",
    "aliases": ["order.placed", "order:placed", "order_placed", "new_order"],
    "open": True,
    "schema": REGISTER_TYPE["schema"],
    "version": "1.0.0",
    "versions": ["1.0.0"],
    "registered": True,
    "count": 3,
    "reserved": False,
    "schemas": {"1.0.0": REGISTER_TYPE["schema"]},
}
SSE_FRAMES: Final = 'id: 42\nevent: event\ndata: {"type":"Memory","data":{…},"metadata":{…},"sequence":42}\n\n'

HOOK: Final[Json] = {
    "name": "auto-link-related",
    "description": "Link similar notes",
    "version": "1.0.0",
    "trigger": {
        "events": [{"type": "Memory", "event": "Created", "filter": {"content": {"matches": ".{100,}"}}}],
        "timing": "Post",
        "priority": 100,
    },
    "condition": {"expr": '"#research" in event.payload.tags'},
    "action": {
        "type": "Script",
        "script": 'memory_tag(inputs["memory_id"], "#seen")',
        "inputs": {"memory_id": "{{event.payload.id}}"},
    },
    "options": {"timeout_ms": 10000, "retry": {"max_attempts": 3, "backoff": "exponential"}},
}
HOOK_FILE: Final = """---
name: no-empty-notes
trigger:
  events: [{type: Memory, event: Created}]
  timing: Pre
action:
  type: Script
  script: '{"deny": "a note needs content"} if not event["payload"]["content"] else None'
---
Why this hook is here.
"""
HOOK_YAML: Final = HOOK_FILE.split("---\n")[1]
_COUNTERS: Final[Json] = {
    "matched": 3,
    "invoked": 3,
    "ok": 3,
    "failed": 0,
    "skipped": 0,
    "last_fired": "2026-11-21T10:00:00.123456Z",
}
HOOK_VIEW: Final[Json] = {
    "name": "auto-link-related",
    "state": "active",
    "timing": "Post",
    "priority": 100,
    "origin": "api",
    "definition": HOOK,
    "counters": _COUNTERS,
    "updated_at": "2026-11-21T09:00:00.000000Z",
    "id": "hok_01kaj3x5vcbg7r2k9m4t6w8y1d",
    "order": None,
    "warnings": [],
}
HOOK_LIST: Final[Json] = {"hooks": [HOOK_VIEW]}
RUN_LIST: Final[Json] = {
    "runs": [
        {
            "run_id": "run_01kaj3x5vbf4n9m7t2c6e8s1qd",
            "hook": "auto-link-related",
            "timing": "Post",
            "event_id": EVENT["metadata"]["id"],
            "event_type": "Memory.Created",
            "correlation_id": EVENT["metadata"]["correlation_id"],
            "attempt": 1,
            "outcome": "ok",
            "started_at": "2026-11-21T10:00:00.130000Z",
            "duration_ms": 4.2,
            "error": None,
            "output": None,
            "effects": [],
            "log": [],
            "next_attempt_at": None,
            "replay": None,
            "hook_id": "hok_01kaj3x5vcbg7r2k9m4t6w8y1d",
        }
    ],
    "next_cursor": None,
}
CHECK: Final[Json] = {
    "name": "auto-link-related",
    "verdict": "live",
    "reason": None,
    "duration_ms": 6.1,
    "steps": [{"step": "filter matches", "ok": True, "detail": "Memory.Created"}],
}

WEBHOOK: Final[Json] = {
    "name": "ci",
    "url": "https://example.com/hooks",
    "event_filters": [{"event_type": "Memory.*", "filter": {}}],
    "auth": {"type": "hmac", "algorithm": "sha256"},
    "options": {"timeout_ms": 15000},
}
WEBHOOK_PATCH: Final[Json] = {"url": "https://example.com/new", "options": {"timeout_ms": 5000}}
WEBHOOK_VIEW: Final[Json] = {
    "id": "whk_01kaj3x5vcexs8b1k5w2z9d7fh",
    "name": "ci",
    "url": "https://example.com/hooks",
    "event_filters": [{"event_type": "Memory.*", "filter": {}}],
    "auth_type": "hmac",
    "options": {"timeout_ms": 15000, "retry_delays_s": [2, 4, 8, 16], "concurrency": 8},
    "state": "active",
    "counters": _COUNTERS,
    "created_at": "2026-11-21T09:00:00.000000Z",
    "updated_at": "2026-11-21T09:00:00.000000Z",
    "paused": False,
    "old_secret_until": None,
    "warnings": [],
    "secret": "whsec_…",
}
RESENT: Final[Json] = {
    "delivery_id": "dlv_01kaj3x5vdf7c3x9q4m2v8a6ke",
    "webhook_id": WEBHOOK_VIEW["id"],
    "event_id": EVENT["metadata"]["id"],
}
ATTEMPT_LIST: Final[Json] = {
    "attempts": [
        {
            "delivery_id": "dlv_01kaj3x5vdf7c3x9q4m2v8a6ke",
            "webhook_id": WEBHOOK_VIEW["id"],
            "event_id": EVENT["metadata"]["id"],
            "event_type": "Memory.Created",
            "event_sequence": 42,
            "correlation_id": EVENT["metadata"]["correlation_id"],
            "attempt": 1,
            "outcome": "delivered",
            "started_at": "2026-11-21T10:00:00.140000Z",
            "duration_ms": 12.5,
            "status": 200,
            "error": None,
            "response": "ok",
            "next_attempt_at": None,
            "replay": None,
            "webhook": "ci",
        }
    ],
    "next_cursor": None,
}

MEMORY: Final[Json] = {
    "content": "Every state change is an event.",
    "tags": ["#research"],
    "entities": ["event sourcing"],
    "links": [{"to": "On logs", "type": "related"}],
    "metadata": {"from": "reading"},
}
MEMORY_PATCH: Final[Json] = {"tags": ["#research", "#nats"], "metadata": {"reviewed": True, "draft": None}}
WRITTEN: Final[Json] = {"id": "mem_01kaj3x5v8e2q9rgyz7ncw4t6b", "sequence": 42}
MEMORY_VIEW: Final[Json] = {
    "id": WRITTEN["id"],
    **MEMORY,
    "links": [{"target": "On logs", "type": "related", "weight": None}],
    "world_id": "default",
    "room_id": "main",
    "created_at": "2026-11-21T10:00:00.123456Z",
    "updated_at": "2026-11-21T10:00:00.123456Z",
    "sequence": 42,
    "title": None,
    "path": None,
    "problems": [],
}
MEMORY_QUERY: Final[Json] = {"text": "state change", "tags": ["#research"], "limit": 10, "min_sequence": 42}
MEMORY_LIST: Final[Json] = {"memories": [{**MEMORY_VIEW, "score": 1.0}]}
MEMORY_STATUS: Final[Json] = {"sequence": 42, "memories": 17, "skipped": 0, "latest": []}
REPLAY_BODY: Final[Json] = {
    "from": "2026-11-20T00:00:00Z",
    "to": "now",
    "filters": [{"event_type": "Memory.*", "filter": {"tags": {"contains": "#research"}}}],
    "target": {"hook": "auto-link-related"},
}
REPLAY: Final[Json] = {
    "id": "rpl_01kaj3x5vae8jv6jq0f1d8c2hm",
    "state": "running",
    "from": 17,
    "to": 4711,
    "position": 1200,
    "matched": 610,
    "sent": 608,
    "skipped": 2,
    "total": 4640,
    "progress": 0.2551,
    "target": {"hook": "auto-link-related"},
    "filters": REPLAY_BODY["filters"],
    "rate": None,
    "world_id": None,
    "room_id": None,
    "created_at": "2026-11-21T10:00:00.123456Z",
    "updated_at": "2026-11-21T10:00:03.123456Z",
    "error": None,
    "duplicate": False,
}
REPLAY_LIST: Final[Json] = {"replays": [REPLAY]}

WORLD: Final[Json] = {"id": "acme", "description": "Our own notes"}
ROOM: Final[Json] = {"id": "lab"}
_MAIN: Final[Json] = {"id": "main", "created_at": "2026-11-21T09:00:00.000000Z"}
ROOM_VIEW: Final[Json] = {"id": "lab", "created_at": "2026-11-21T09:05:00.000000Z"}
ROOM_LIST: Final[Json] = {"rooms": [_MAIN, ROOM_VIEW]}
WORLD_VIEW: Final[Json] = {**WORLD, "created_at": "2026-11-21T09:00:00.000000Z", "rooms": [_MAIN, ROOM_VIEW]}
WORLD_LIST: Final[Json] = {"worlds": [WORLD_VIEW], "next_cursor": None}

RETENTION_RULES: Final[Json] = {
    "rules": [
        {"type": "Task.*", "keep": "forever", "world_id": None},
        {"type": "Tool.*", "keep": "12h", "world_id": "default"},
    ]
}
RETENTION: Final[Json] = {**RETENTION_RULES, "default": "30d", "revision": 1}
LOSSES = {
    "losses": [
        {
            "kind": "missing",
            "log": "2026-11-21T10:00:00.123456789Z",
            "first": 258,
            "last": 272,
            "count": 15,
            "found_at": "2026-11-22T10:00:00.123456Z",
        }
    ]
}
