"""The API against its own description: Schemathesis asks every operation what its schema allows and what it forbids."""

import json
import os
import subprocess
import sys
from pathlib import Path

from .conftest import Stack

HOOKS = Path(__file__).with_name("api_hooks.py")
CONFIG = """
hooks = {hooks}
[checks]  # all of them but these
positive_data_acceptance.enabled = false  # filters, types and names are checked more closely than JSON Schema can say
use_after_free.enabled = false  # needs stateful testing
ensure_resource_availability.enabled = false  # likewise
[[operations]]
include-path = "/api/v1/events/stream"  # an answer without an end
enabled = false
[[operations]]
include-operation-id = "append_event"
checks.negative_data_rejection.enabled = false  # a batch is answered with 200, and its events' refusals stand inside
"""


def test_answers_are_as_the_description_says(stack: Stack, tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG.format(hooks=json.dumps(str(HOOKS))))
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            *("--config-file", str(config), "run", f"{stack.url}/openapi.json", "--header", f"X-API-Key: {stack.key}"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", "8"),
            *("--seed", "1", "--generation-deterministic", "--no-shrink"),
            *("--generation-with-security-parameters", "false", "--suppress-health-check", "all"),
            *("--request-timeout", "20", "--continue-on-failure", "--warnings", "off", "--no-color"),
        ],
        cwd=tmp_path,
        env={**os.environ, "KNOWN_IDS": json.dumps(_known(stack))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def _known(stack: Stack) -> dict[str, str]:
    """Something of every kind, and the path where it is."""
    stack.install_hooks()
    with stack.http() as http:
        memory = http.post("/api/v1/memory", json={"content": "known", "tags": ["#known"]}).raise_for_status().json()
        event = http.post("/api/v1/events", json={"type": "Custom.Known", "payload": {}}).raise_for_status().json()
        webhook = {"name": "known", "url": "http://127.0.0.1:9/", "event_filters": [{"event_type": "Task.*"}]}
        created = http.post("/api/v1/webhooks", json=webhook).raise_for_status().json()
        kind = http.post("/api/v1/event-types", json={"type": "Order.Placed", "schema": {}}).raise_for_status().json()
        hook = http.get("/api/v1/hooks").raise_for_status().json()["hooks"][0]["name"]
    return {
        "/api/v1/memory/": memory["id"],
        "/api/v1/events/trace/": event["correlation_id"],
        "/api/v1/events/{": event["id"],
        "/api/v1/webhooks/": created["id"],
        "/api/v1/event-types/": kind["type"],
        "/api/v1/hooks/": hook,
    }
