"""The demo on a running system: twice in a row, and after each service was killed."""

import json
from pathlib import Path
from typing import Any

from .conftest import SERVICES, Stack, until

CHAIN = ["File.Modified", "Memory.Updated", "Hook.Triggered", "Memory.Linked", "Hook.Executed", "File.Processed"]


def test_demo_shows_the_chain_twice_and_after_every_service_was_killed(stack: Stack) -> None:
    stack.install_hooks()
    _check(stack)
    _check(stack)
    for service in ("nats", *SERVICES):
        killed = stack.pid(service).pid
        stack.kill(service)
        until(lambda service=service, killed=killed: stack.pid(service).pid != killed, 15)
        until(stack.ready, 30)
        _check(stack)
    assert stack.run("doctor", "--json", check=False).returncode == 0


def test_demo_leaves_nothing_behind(stack: Stack) -> None:
    def left() -> tuple[list[str], ...]:
        with stack.client() as crucible:
            return (
                [hook.name for hook in crucible.hooks.list()],
                [webhook.name for webhook in crucible.webhooks.list()],
                [world.id for world in crucible.worlds.list()],
                sorted(str(file) for file in stack.data.rglob("*.md")),
            )

    before = left()
    for _ in range(2):
        _check(stack)
    assert left() == before
    found = json.loads(stack.run("demo", "--keep", "--json").stdout)
    assert Path(found["note"]).exists()
    assert "auto-link-related" in left()[0]
    shown = stack.run("events", "trace", found["trace"]["correlation_id"]).stdout
    assert "webhook delivered  crucible-demo" in shown


def test_demo_waits_for_the_debounce_of_the_shipped_hook(stack: Stack) -> None:
    stack.install_hooks()
    for _ in range(2):
        _check(stack)


def test_demo_without_a_system_says_what_to_do(stack: Stack) -> None:
    stack.stop()
    done = stack.run("demo", check=False)
    assert done.returncode == 1
    assert "crucible up" in done.stderr


def _check(stack: Stack) -> None:
    found = json.loads(stack.run("demo", "--json").stdout)
    types = [f"{event['type']}.{event['data']['event']}" for event in _events(found["trace"]["roots"])]
    types = [type for type in types if not type.startswith("Graph.")]  # the demo does not wait
    assert (types[0], sorted(types)) == (CHAIN[0], sorted(CHAIN))
    assert found["verified"] is True
    assert found["denial"]["outcome"] == "denied"
    assert "#tag" in found["denial"]["output"]["deny"]
    denied = [f"{event['type']}.{event['data']['event']}" for event in _events(found["denied"]["roots"])]
    assert (denied[0], sorted(denied)) == ("File.Created", ["File.Created", "File.Processed", "Hook.Executed"])


def _events(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for node in nodes for event in (node["event"], *_events(node["effects"]))]
