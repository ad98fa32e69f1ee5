"""`crucible listen`: verifies, prints, and fails when asked to."""

import io
import json
import signal
import subprocess
import sys
import time

import httpx
import pytest
from rich.console import Console

from crucible_cli.commands.listen import delivery_view
from crucible_cli.receiver import Delivery, receiver
from crucible_webhooks.signing import sign, signing_key
from tests.client.playing import serving

SECRET = "whsec_c2VjcmV0"
BODY = (
    b'{"event":{"type":"File","data":{"event":"Created","payload":{"path":"a.md"}},"metadata":{"id":"evt_1",'
    b'"timestamp":"","source":{"kind":"user","id":"a"},"actor":"a","correlation_id":"c"}}}'
)


def headers(secret: str = SECRET, body: bytes = BODY) -> dict[str, str]:
    signed = sign([signing_key(secret)], body, "evt_1", int(time.time()))
    return signed | {"X-Crucible-Delivery": "dlv_1", "X-Crucible-Event-Id": "evt_1"}


def shown(delivery: Delivery) -> str:
    console = Console(width=100, file=io.StringIO())
    with console.capture() as capture:
        console.print(delivery_view(delivery))
    return capture.get()


def test_deliveries_are_verified_and_told() -> None:
    told: list[Delivery] = []
    with serving(receiver(SECRET, told.append, fail=1)) as url:
        answers = [
            httpx.post(url, content=BODY, headers=headers()),
            httpx.post(f"{url}/any/path", content=BODY, headers=headers()),
            httpx.post(url, content=BODY, headers=headers("another")),
            httpx.post(url, content=b"hello"),
            httpx.get(url),
        ]
    assert [answer.status_code for answer in answers] == [500, 200, 401, 401, 405]
    assert [delivery.verified for delivery in told] == [True, True, False, False]
    assert (told[1].delivery_id, told[1].event_id, told[1].path) == ("dlv_1", "evt_1", "/any/path")
    assert told[1].event is not None
    assert told[1].event.dotted == "File.Created"
    assert "webhook-signature" in (told[2].problem or "")
    assert told[3].body == "hello"
    assert "✓ verified  File.Created" in shown(told[1])
    assert "answered 500" in shown(told[0])
    assert "✗ not verified" in shown(told[2])
    assert "does not match" in shown(told[2])


def test_without_a_secret_nothing_is_verified() -> None:
    told: list[Delivery] = []
    with serving(receiver(None, told.append)) as url:
        assert httpx.post(url, content=BODY).status_code == 200
    assert told[0].verified is None


def test_a_body_that_is_too_large_is_refused() -> None:
    told: list[Delivery] = []
    with serving(receiver(None, told.append)) as url:
        assert httpx.post(url, content=b"x" * (5 * 1024 * 1024)).status_code == 413
    assert told == []


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_listen_runs_until_it_is_ended(signal_number: signal.Signals) -> None:
    command = [sys.executable, "-m", "crucible_cli", "listen", "--port", "0", "--secret", SECRET, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        url = process.stderr.readline().split()[2]
        assert httpx.post(url, content=BODY, headers=headers()).status_code == 200
        assert json.loads(process.stdout.readline())["verified"] is True
        offer = {
            "Connection": "Upgrade, HTTP2-Settings",
            "Upgrade": "h2c",
            "HTTP2-Settings": "AAMAAABkAAQCAAAAAAIAAAAA",
        }
        assert httpx.post(url, content=BODY, headers=headers() | offer).status_code == 200
        assert json.loads(process.stdout.readline())["event"]["type"] == "File"
        process.send_signal(signal_number)
        assert process.wait(10) in (0, -signal_number)
        assert process.stderr.read().count("\n") == 1, "nothing but what is said at the start"


def test_a_taken_port_is_said() -> None:
    with serving(receiver(None, lambda _: None)) as url:
        port = url.rsplit(":", 1)[1]
        command = [sys.executable, "-m", "crucible_cli", "listen", "--port", port]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert "--port 0" in ended.stderr
