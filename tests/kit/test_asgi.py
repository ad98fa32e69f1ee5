"""Problem documents, the ops app, and the server process around it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from crucible_core.errors import (
    BY_CODE,
    ConflictError,
    CrucibleError,
    DeniedError,
    FieldError,
    InvalidError,
    LimitedError,
    UnauthenticatedError,
    UnavailableError,
)
from crucible_kit.http.asgi import STATUS, TITLES, UNKNOWN, ops_app, problem, status_problem
from crucible_kit.telemetry.metrics import Metrics

APP = Path(__file__).with_name("served.py")


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    app.state.ready = lambda: app.state.waiting
    app.state.waiting = []
    yield


async def broken(request: Request) -> Response:
    raise ValueError("secret path /etc/x")


async def refused(request: Request) -> Response:
    raise InvalidError("no", errors=[FieldError("payload.tag", "is missing")])


@pytest.fixture
async def app() -> AsyncIterator[Starlette]:
    app = ops_app("events", lifespan, Metrics("events"))
    app.routes.extend([Route("/broken", broken), Route("/refused", refused)])
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def http(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://ops") as client:
        yield client


def test_every_error_has_a_status_and_a_title() -> None:
    assert set(STATUS) == set(TITLES) == set(BY_CODE)


@pytest.mark.parametrize("code", sorted(set(BY_CODE) - {"internal"}))
def test_an_error_becomes_a_problem_document(code: str) -> None:
    status, headers, body = problem(BY_CODE[code]("It is so."), "cor_1")
    assert headers["Content-Type"] == "application/problem+json"
    assert json.loads(body) == {
        "type": f"https://crucible.dev/problems/{code}",
        "title": TITLES[code],
        "status": status,
        "detail": f"It is so; {UNKNOWN}" if code == "outcome_unknown" else "It is so.",
        "errors": [],
        "correlation_id": "cor_1",
    }


def test_field_errors_and_extra_members_are_shown() -> None:
    _, _, body = problem(InvalidError("no", errors=[FieldError("type", "is unknown", "Memory.Created")]))
    assert json.loads(body)["errors"] == [{"path": "type", "message": "is unknown", "suggestion": "Memory.Created"}]
    _, _, body = problem(DeniedError("no", hook="guard", reason="too long"))
    assert {"hook": "guard", "reason": "too long"}.items() <= json.loads(body).items()
    _, _, body = problem(ConflictError("no", current_sequence=17, status=200))
    document = json.loads(body)
    assert (document["current_sequence"], document["status"]) == (17, 409)


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (UnavailableError("away"), "1"),
        (LimitedError("slow down", retry_after=2.1), "3"),
        (LimitedError("slow down", retry_after=0), "1"),
    ],
)
def test_retry_after_is_a_header_in_whole_seconds(error: CrucibleError, seconds: str) -> None:
    _, headers, body = problem(error)
    assert headers["Retry-After"] == seconds
    assert b"retry_after" not in body


def test_a_missing_key_names_the_scheme() -> None:
    assert problem(UnauthenticatedError("no key"))[1]["WWW-Authenticate"] == "Bearer"


def test_internal_details_stay_inside() -> None:
    status, _, body = problem(CrucibleError("KeyError in /srv/app.py"))
    assert status == 500
    assert b"/srv" not in body


def test_other_statuses_have_the_same_form() -> None:
    status, headers, body = status_problem(405, headers={"Allow": "GET"})
    document = json.loads(body)
    assert (status, headers["Allow"], document["title"]) == (405, "GET", "Method Not Allowed")
    assert document["type"].endswith("/method_not_allowed")
    assert json.loads(status_problem(599)[2])["status"] == 599


async def test_health_does_not_depend_on_readiness(app: Starlette, http: httpx.AsyncClient) -> None:
    app.state.waiting = ["bus"]
    answer = await http.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "service": "events"})


async def test_readiness_says_what_is_waited_for(app: Starlette, http: httpx.AsyncClient) -> None:
    answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"ready": True})
    app.state.waiting = ["bus", "index"]
    answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "waiting_for": ["bus", "index"]})


async def test_an_app_is_not_ready_before_its_lifespan_says_so() -> None:
    transport = httpx.ASGITransport(ops_app("events", lifespan, Metrics("events")))
    async with httpx.AsyncClient(transport=transport, base_url="http://ops") as client:
        assert (await client.get("/readyz")).json()["waiting_for"] == ["startup"]


async def test_metrics_are_served_as_text(http: httpx.AsyncClient) -> None:
    answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'crucible_service_info{service="events"} 1.0' in answer.text


async def test_bad_requests_get_problem_documents(http: httpx.AsyncClient) -> None:
    missing, method, refusal = await http.get("/nothing"), await http.post("/healthz"), await http.get("/refused")
    assert (missing.status_code, missing.json()["detail"]) == (404, "Nothing is at /nothing")
    assert (method.status_code, set(method.headers["allow"].split(", "))) == (405, {"GET", "HEAD"})
    assert (refusal.status_code, refusal.json()["errors"][0]["path"]) == (422, "payload.tag")
    assert {a.headers["content-type"] for a in (missing, method, refusal)} == {"application/problem+json"}


async def test_a_failure_answers_500_without_its_cause(http: httpx.AsyncClient) -> None:
    answer = await http.get("/broken")
    assert (answer.status_code, answer.json()["status"]) == (500, 500)
    assert "secret" not in answer.text


# ---- the process -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(mode: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """The app in `served.py` as a process on a free port, its standard error piped."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(APP), mode],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def address(process: subprocess.Popen[str]) -> str:
    assert process.stderr
    line = process.stderr.readline()
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info served listening on http://", line), line
    return line.split()[-1]


def test_a_normal_run_logs_one_line_and_exits_with_0() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with served("good") as process:
            answer = httpx.get(address(process) + "/healthz")
            process.send_signal(number)
            _, errors = process.communicate(timeout=10)
        assert answer.status_code == 200
        assert "date" in answer.headers
        assert "server" not in answer.headers
        assert (process.returncode, errors) == (0, "drained\n")


def test_an_endless_answer_ends_with_the_shutdown() -> None:
    with served("good") as process, httpx.stream("GET", address(process) + "/stream") as answer:
        lines = answer.iter_lines()
        assert next(lines) == "open"
        process.terminate()
        assert list(lines) == []
        _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (0, "drained\n")


def test_an_unexpected_error_is_logged_as_one_line() -> None:
    with served("good") as process:
        answer = httpx.get(address(process) + "/broken")
        process.terminate()
        _, errors = process.communicate(timeout=10)
    assert answer.status_code == 500
    line, drained = errors.splitlines()
    assert drained == "drained"
    assert " error served " in line
    assert 'error="ZeroDivisionError: division by zero" at="served.py:' in line


@pytest.mark.parametrize(
    ("mode", "line"),
    [
        ("away", "error served cannot start: NATS is away"),
        ("group", "error served cannot start: NATS is away"),
        ("bug", "error served cannot start: KeyError: 'x' error=\"KeyError: 'x'\" at=\"served.py:"),
    ],
)
def test_a_failed_start_is_one_line_and_exit_code_1(mode: str, line: str) -> None:
    with served(mode) as process:
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    assert len(errors.splitlines()) == 1, errors
    assert line in errors


def test_bad_settings_are_one_line_and_exit_code_78() -> None:
    with served("good", CRUCIBLE_PORT="eighty") as process:
        _, errors = process.communicate(timeout=10)
    assert process.returncode == os.EX_CONFIG
    assert "error served cannot start: CRUCIBLE_PORT: Expected `int`" in errors
    assert len(errors.splitlines()) == 1, errors


def test_a_taken_port_is_one_line_and_exit_code_1() -> None:
    with served("good") as first:
        port = address(first).rsplit(":", 1)[1]
        with served("good", CRUCIBLE_PORT=port) as second:
            _, errors = second.communicate(timeout=10)
    assert second.returncode == 1
    assert [line for line in errors.splitlines() if "address already in use" in line], errors
    assert "Traceback" not in errors


def test_a_consumer_that_dies_takes_its_process_down() -> None:
    with served("dies") as process:
        httpx.post(address(process) + "/die")
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "error served stopped by a failure: the consumer is gone" in errors
    assert len(errors.splitlines()) == 1, errors


def test_a_start_that_waits_can_be_stopped() -> None:
    with served("waits") as process:
        assert process.stderr
        assert process.stderr.readline() == "waiting\n"
        process.terminate()
        _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (0, "")
