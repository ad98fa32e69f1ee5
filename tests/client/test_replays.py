"""Replays by the SDK and by the command."""

import json

import pytest
from typer.testing import CliRunner

from crucible_cli.main import build
from crucible_client import Crucible
from crucible_core.errors import NotFoundError
from tests.client.playing import Played


def test_start_and_steer(crucible: Crucible, played: Played) -> None:
    made = crucible.events.replay(webhook="ci", start="2026-11-20T00:00:00Z", filters=["Memory.*"], rate=5)
    sent = json.loads(played.requests[-1][3])
    assert sent == {
        "target": {"webhook": "ci"},
        "from": "2026-11-20T00:00:00Z",
        "to": "now",
        "filters": [{"event_type": "Memory.*"}],
        "rate": 5,
    }
    assert "idempotency-key" in played.requests[-1][2]
    assert (made.id, made.state, made.start, made.to) == ("rpl_1", "running", 0, 9)
    assert crucible.replays.pause(made.id).state == "paused"
    assert crucible.replays.resume(made.id).state == "running"
    assert crucible.replays.get(made.id).progress == 0.5
    assert crucible.replays.cancel(made.id).state == "cancelled"
    assert [replay.id for replay in crucible.replays.list()] == ["rpl_1"]
    with pytest.raises(NotFoundError):
        crucible.events.replay(hook="nobody")


def run(played: Played, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    monkeypatch.setenv("CRUCIBLE_URL", played.url)
    monkeypatch.setenv("CRUCIBLE_API_KEY", "ck_test")
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(build(), list(arguments))
    return result.exit_code, result.stdout


def test_commands(played: Played, crucible: Crucible, monkeypatch: pytest.MonkeyPatch) -> None:
    crucible.hooks.add({"name": "h"})
    crucible.hooks.add({"name": "broken"})
    played.requests.clear()
    asked = ("--to-hook", "h", "--from", "3", "--type", "Custom.*", "--filter", '{"n": 1}', "--wait")
    code, shown = run(played, monkeypatch, "events", "replay", *asked)
    assert (code, "rpl_1  done  100%  into h" in shown) == (0, True), shown
    sent = json.loads(next(body for method, _, _, body in played.requests if method == "POST"))
    assert (sent["from"], sent["filters"]) == ("3", [{"event_type": "Custom.*", "filter": {"n": 1}}])
    assert run(played, monkeypatch, "events", "replay", "--to-hook", "h", "--from", "2h", "--to", "10m")[0] == 0
    bodies = [json.loads(body) for method, _, _, body in played.requests if method == "POST"]
    assert bodies[-1]["from"].endswith("Z")
    assert bodies[-1]["from"] < bodies[-1]["to"]
    code, shown = run(played, monkeypatch, "events", "replay", "--to-hook", "broken", "--wait", "--json")
    assert (code, json.loads(shown)["state"]) == (1, "failed: it broke")
    assert run(played, monkeypatch, "events", "replay")[0] == 2
    assert run(played, monkeypatch, "events", "replay", "--to-hook", "nobody")[0] == 1
    code, shown = run(played, monkeypatch, "replays", "list")
    assert "rpl_3" in shown
    for action, state in (("pause", "paused"), ("resume", "running")):
        assert json.loads(run(played, monkeypatch, "replays", action, "rpl_1", "--json")[1])["state"] == state
    assert (
        json.loads(run(played, monkeypatch, "replays", "cancel", "rpl_1", "--yes", "--json")[1])["state"] == "cancelled"
    )
    assert "cancelled" in run(played, monkeypatch, "replays", "get", "rpl_1")[1]
