"""The actions Shell and HTTP: values that never become commands, answers that are bounded, time-outs that kill."""

import asyncio
import contextlib
import sys
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from crucible_core.definition import HttpAction, ShellAction
from crucible_core.errors import DeniedError, InvalidError
from crucible_core.limits import ANSWER_BYTES, HOOK_OUTPUT_BYTES
from crucible_core.protocol.parts import TypeFilter
from crucible_core.times import parse_time
from crucible_core.types.catalogue import CATALOGUE
from crucible_hooks.actions.http import compile_http
from crucible_hooks.actions.shell import compile_shell, decode_output, run_shell, working_directory
from crucible_hooks.errors import RunError
from crucible_hooks.expressions.expression import evaluate_all
from crucible_hooks.runner import event_view
from crucible_hooks.test import synthetic
from tests.cases import each_of

from .conftest import HttpEndpoint, System, until

# fmt: off
EVIL = ["; touch pwned", "$(touch pwned)", "`touch pwned`", "' ; touch pwned ; '", '" ; touch pwned ; "',
        "&& touch pwned", "| touch pwned", "\n touch pwned", "*", "a  b", "-n", "$HOME", "\\", "'\"'\"'"]
# fmt: on


async def shell(command: str, text: str, directory: Path, **env: Any) -> Any:
    event = synthetic([TypeFilter(event_type="Custom.note")], {"text": text}, CATALOGUE)
    compiled = compile_shell(ShellAction(command=command, env=env), "action")
    context = {"event": event_view(event), "inputs": {}}
    found = evaluate_all([one.source for one in compiled.values.expressions], context)
    values = compiled.values.fill(iter(msgspec.json.decode(found)))
    return decode_output(await run_shell(compiled, values, b'{"the": "event"}', "00-1-2-01", str(directory)))


@pytest.mark.parametrize("value", EVIL)
@pytest.mark.parametrize(
    "command",
    [
        "printf %s {{event.payload.text}}",
        'printf %s "{{ event.payload.text }}"',
        "printf %s '{{event.payload.text}}'",
        """printf %s 'it'"'"'s '"\\"{{event.payload.text}}\\"" """,
        """printf %s "$(printf %s "{{event.payload.text}}")" """,
        """printf %s "`printf %s "{{event.payload.text}}"`" """,
        "# it's a comment\nprintf %s {{event.payload.text}}  # and it's another",
        "(printf %s '{{event.payload.text}}')",
        "echo \\'{{event.payload.text}} > out; printf %s {{event.payload.text}}",
    ],
)
async def test_value_is_one_word_and_never_a_command(tmp_path: Path, command: str, value: str) -> None:
    output = await shell(command, value, tmp_path)
    assert not (tmp_path / "pwned").exists()
    assert value.strip() in (output or "")


@pytest.mark.parametrize("value", EVIL)
async def test_value_in_the_environment_is_data(tmp_path: Path, value: str) -> None:
    output = await shell('printf %s "$TEXT"', value, tmp_path, TEXT="{{event.payload.text}}")
    assert (output or "").strip() == value.strip()
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "command",
    [
        "sh -c 'echo {{event.id}}'",
        "eval {{event.id}}",
        'bash -ec "{{event.id}}"',
        "cat <<X\n{{event.id}}\nX",
        'bash -o pipefail -c "echo {{event.id}} | cat"',
        'su -c "echo {{event.id}}"',
        'ssh host "ls {{event.id}}"',
        "/usr/bin/python3.11 -c 'print({{event.id}})'",
        "echo x | xargs -I{} env sh -c {{event.id}}",
        "find . -name {{event.id}} -exec rm {} +",
        "awk {{event.id}}",
        ". {{event.id}}",
        "true && . ./{{event.id}}",
        'x={{event.id}}\neval "$x"',
        'for f in {{event.id}}; do sh -c "$f"; done',
        "echo {{event.id}} > run.sh; sh run.sh",
        "echo {{event.id}} | tee run.sh\nmake",
        'f() { eval "$1"; }\nf {{event.id}}',
        'echo {{event.id}} | while read x; do bash -c "$x"; done',
        "echo $(echo {{event.id}} | sh)",
        'export X={{event.id}}; FOO=1 env sh -c "$X"',
        "set {{event.id}}\nif true; then eval $1; fi",
    ],
)
def test_value_may_not_go_where_it_is_parsed_again(command: str) -> None:
    with pytest.raises(InvalidError, match="a template may not go through"):
        compile_shell(ShellAction(command=command), "action")


@pytest.mark.parametrize(
    "command",
    [
        "env | sort\ngit commit -m {{event.payload.text}}",
        "echo 'the env is ready'\ngit add -A\ngit commit -m \"Auto-commit: {{event.payload.text}}\"",
        "# run by sh, at night\nprintf %s {{event.payload.text}}",
        "make test && git commit -m {{event.payload.text}}",
        "echo env; echo {{event.payload.text}}; echo done",
    ],
)
def test_word_in_another_line_is_no_false_alarm(command: str) -> None:
    compile_shell(ShellAction(command=command), "action")


async def test_event_is_on_standard_input_and_json_comes_back(tmp_path: Path) -> None:
    assert await shell("cat", "x", tmp_path) == {"the": "event"}
    assert await shell("exit 0", "x", tmp_path) is None


async def test_environment_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRUCIBLE_NATS_URL", "nats://user:secret@host")
    assert "secret" not in str(await shell("env", "x", tmp_path))


async def test_exit_code_is_a_failure_and_tells_what_was_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="exit code 3: went wrong"):
        await shell("echo went wrong >&2; exit 3", "x", tmp_path)


async def test_endless_output_is_bounded(tmp_path: Path) -> None:
    output = await shell("head -c 5000000 /dev/zero | tr '\\0' x", "x", tmp_path)
    assert len(output) == HOOK_OUTPUT_BYTES


async def test_daemon_that_keeps_the_pipes_does_not_hold_it_up(tmp_path: Path) -> None:
    daemon = "import os, time; os.setsid(); time.sleep(5.125)"
    async with asyncio.timeout(4):
        assert await shell(f"{sys.executable} -c '{daemon}' & echo done", "x", tmp_path) == "done"


async def test_command_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await shell("sleep 61.5 & sleep 61.5", "x", tmp_path)
    await until(lambda: not any("61.5" in " ".join(command) for command in commands()))


async def test_what_a_command_leaves_running_does_not_hold_it_up(tmp_path: Path) -> None:
    async with asyncio.timeout(5):
        assert await shell("sleep 62.5 & echo done", "x", tmp_path) == "done"
    await until(lambda: not any("62.5" in " ".join(command) for command in commands()))


def commands() -> list[list[str]]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found.append(process.cmdline())
    return found


async def test_value_with_a_nul_character_fails_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="NUL"):
        await shell("echo {{event.payload.text}}", "a\0b", tmp_path)


async def test_shell_hook_runs_beside_its_file(system: System) -> None:
    system.write(
        "note.md",
        """
        ---
        name: note
        trigger: {events: [{type: Custom.note}]}
        action: {type: Shell, command: "cat > seen.json; echo {{event.payload.text}}"}
        ---
        """,
    )
    await until(lambda: is_there(system, "note"))
    await system.append(payload={"text": "$(id)"})
    assert (await system.run_of("note", "ok")).output == "$(id)"
    seen = msgspec.json.decode((system.folder / "seen.json").read_bytes())
    assert seen["data"]["payload"] == {"text": "$(id)"}


async def is_there(system: System, hook: str) -> bool:
    return await system.state(hook) == "active"


async def test_pre_shell_hook_denies_by_its_exit_code(system: System) -> None:
    action = {"type": "Shell", "command": "test {{event.payload.n}} -gt 1 || { echo too small >&2; exit 1; }"}
    await system.register("gate", pre=True, action=action)
    await system.append(payload={"n": 2})
    with pytest.raises(DeniedError, match="too small"):
        await system.append(payload={"n": 1})


# ---- HTTP ------------------------------------------------------------------------------------------------------------


async def test_event_is_sent_with_the_runs_id_and_trace(system: System, endpoint: HttpEndpoint) -> None:
    endpoint.answer = Response(b'{"took": true}')
    action = {"type": "HTTP", "url": f"{endpoint.url}/x", "headers": {"X-Who": "{{event.payload.who}}"}}
    await system.register("caller", action=action)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    cause = await system.append(payload={"who": "bob\r\nX-Evil: 1\x00\n\nbody"}, traceparent=trace)
    run = await system.run_of("caller", "ok")
    assert run.output == {"took": True}
    [(request, body)] = endpoint.requests
    assert msgspec.json.decode(body)["metadata"]["id"] == cause.id
    assert request.headers["idempotency-key"] == run.run_id
    assert (request.headers["crucible-hop"], request.headers["crucible-correlation-id"]) == ("0", cause.correlation_id)
    assert request.headers["traceparent"].split("-")[1] == trace.split("-")[1]
    assert request.headers["x-who"].startswith("bob")
    assert "x-evil" not in request.headers


async def test_values_stay_in_their_place_of_the_url_and_body(system: System, endpoint: HttpEndpoint) -> None:
    action = {
        "type": "HTTP",
        "method": "PUT",
        "url": endpoint.url + "/notes/{{event.payload.id}}",
        "body": {"id": "{{event.payload.id}}", "n": "{{event.payload.n}}", "who": "I am {{inputs.who}}"},
        "inputs": {"who": "{{event.payload.who}}"},
    }
    await system.register("caller", action=action)
    await system.append(payload={"id": "../admin?x=1#y", "n": 3, "who": '"me"'})
    await system.run_of("caller", "ok")
    [(request, body)] = endpoint.requests
    assert request.scope["raw_path"] == b"/notes/..%2Fadmin%3Fx%3D1%23y"
    assert msgspec.json.decode(body) == {"id": "../admin?x=1#y", "n": 3, "who": 'I am "me"'}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Response(b"sorry", 500), "answered 500: sorry"),
        (RedirectResponse("http://127.0.0.1:1/"), "redirects are not followed"),
        (Response(b"x" * (ANSWER_BYTES + 1)), "larger than"),
        (Response(b"x", headers={"content-encoding": "gzip"}), "compressed"),
    ],
)
async def test_bad_answer_fails_the_run(system: System, endpoint: HttpEndpoint, answer: Response, reason: str) -> None:
    endpoint.answer = answer
    await system.register("caller", action={"type": "HTTP", "url": endpoint.url})
    await system.append()
    assert reason in ((await system.run_of("caller", "failed")).error or "")


@pytest.mark.parametrize("wish", ["120", "date", "soon"])
async def test_retry_after_of_an_endpoint_is_waited_for(system: System, endpoint: HttpEndpoint, wish: str) -> None:
    later = formatdate(time.time() + 120, usegmt=True) if wish == "date" else wish
    endpoint.answer = Response(status_code=503, headers={"Retry-After": later})
    retry = {"max_attempts": 2, "delay_ms": 50}
    await system.register("caller", action={"type": "HTTP", "url": endpoint.url}, options={"retry": retry})
    await system.append()
    first = await system.run_of("caller", "retrying")
    waits_s = (parse_time(first.next_attempt_at or "", "at") - parse_time(first.started_at, "at")) / 1_000_000
    if wish == "soon":
        assert waits_s < 10
        await system.run_of("caller", "failed")
    else:
        assert 115 < waits_s < 130
        assert len(endpoint.requests) == 1


async def test_endpoint_that_never_answers_costs_only_its_own_time(system: System, endpoint: HttpEndpoint) -> None:
    async def never(request: Request, body: bytes) -> Response:
        await asyncio.sleep(30)
        return Response()

    endpoint.answer = never
    await system.register("slow", action={"type": "HTTP", "url": endpoint.url}, options={"timeout_ms": 3000})
    await system.register("quick", "1")
    for _ in range(10):
        await system.append()
    async with asyncio.timeout(2.5):
        await until(lambda: ran(system, "quick", 10))
    assert "took longer" in ((await system.run_of("slow", "failed")).error or "")


async def test_refused_connection_fails_the_run(system: System) -> None:
    await system.register("caller", action={"type": "HTTP", "url": "http://127.0.0.1:1/?token=secret"})
    await system.append()
    assert (await system.run_of("caller", "failed")).error == "POST http://127.0.0.1:1/: the connection was refused"


async def test_url_of_an_event_reaches_nothing_that_is_closed(stopped: System, endpoint: HttpEndpoint) -> None:
    stopped.settings = msgspec.structs.replace(stopped.settings, egress_allow=())
    port = endpoint.url.rpartition(":")[2]
    async with stopped.running():
        await stopped.register("whole", action={"type": "HTTP", "url": "{{event.payload.url}}"})
        await stopped.register("part", action={"type": "HTTP", "url": "http://{{event.payload.host}}:" + port})
        for host in ("127.0.0.1", "127。0。0。1", "[::1]", "127.1", "u@127.0.0.1"):
            await stopped.append(payload={"url": f"http://{host}:{port}/", "host": host})
        await until(lambda: ran(stopped, "whole", 5, "failed"))
        await until(lambda: ran(stopped, "part", 5, "failed"))
        runs = [*await stopped.runs("whole"), *await stopped.runs("part")]
        assert sum("CRUCIBLE_EGRESS_ALLOW" in (run.error or "") for run in runs) >= 4
    assert endpoint.requests == []


@pytest.mark.parametrize(
    "url", ["ftp://h/", "http://", "http://u:p@h/", "http://h:0/", "http://" + "a" * 300, "http://a b/"]
)
def test_url_that_cannot_be_read_is_refused_at_registration(url: str) -> None:
    with pytest.raises(InvalidError) as refused:
        compile_http(HttpAction(url=url), "action")
    assert refused.value.errors[0].path == "action.url"


@pytest.mark.parametrize(
    "name", ["", "a b", "a:", "a\r\nb", "ä", "Host", "content-length", "Transfer-Encoding", "Proxy-X"]
)
def test_header_that_is_not_the_hooks_to_set_is_refused_at_registration(name: str) -> None:
    with pytest.raises(InvalidError) as refused:
        compile_http(HttpAction(url="http://h/", headers={"X-Good": "1", name: "x"}), "action")
    assert refused.value.errors[0].path == f"action.headers.{name}"


@pytest.mark.parametrize(
    "headers",
    [
        {"X-A": "1\r\nX-Evil: 1"},
        {"X-A": "1\n2"},
        {"X-A": "\0"},
        {"X-A": "a\x1b[31mb"},
        {"X-A": "{{event.id}}\nX-Evil: {{event.id}}"},
        {"X-A": "1", "x-a": "2"},
    ],
)
def test_header_of_more_than_one_line_is_refused_at_registration(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidError) as refused:
        compile_http(HttpAction(url="http://h/", headers=headers), "action")
    assert refused.value.errors[0].path == "action.headers.X-A"


@pytest.mark.parametrize(
    ("cwd", "beside", "found"),
    [
        (None, "/h", "/h"),
        (None, None, None),
        ("work", "/h", "/h/work"),
        ("../w", "/h/a", "/h/w"),
        ("/srv", "/h", "/srv"),
        ("/srv", None, "/srv"),
    ],
)
def test_command_runs_beside_its_file_or_where_it_says(cwd: str | None, beside: str | None, found: str | None) -> None:
    assert working_directory(ShellAction(command="pwd", cwd=cwd), beside, "action") == found


async def test_relative_cwd_of_a_hook_without_a_file_is_refused(system: System) -> None:
    for cwd, told in (("work", "absolute path"), ("", "action.cwd"), ("a\0b", "action.cwd")):
        with pytest.raises(InvalidError, match=told) as refused:
            await system.register("sh", action={"type": "Shell", "command": "pwd", "cwd": cwd})
        assert refused.value.errors[0].path == "action.cwd"


async def test_command_runs_in_its_cwd_and_fails_where_that_is_gone(system: System, tmp_path: Path) -> None:
    system.write(
        "here.md",
        """
        ---
        trigger: {events: [{type: Custom.note}]}
        action: {type: Shell, command: pwd, cwd: work}
        ---
        """,
    )
    await until(lambda: is_there(system, "here"))
    await system.append()
    told = (await system.run_of("here", "failed")).error or ""
    assert f"there is no directory {system.folder}/work" in told
    (system.folder / "work").mkdir()
    await system.append()
    assert (await system.run_of("here", "ok")).output == f"{system.folder}/work"


async def test_pre_http_hook_decides_by_its_answer(system: System, endpoint: HttpEndpoint) -> None:
    async def decide(request: Request, body: bytes) -> Response:
        n = msgspec.json.decode(body)["data"]["payload"]["n"]
        answers = {1: b'{"deny": "one"}', 2: b'{"payload": {"n": 20}}', 3: b"", 4: b'{"ok": true}'}
        return Response(answers[n])

    endpoint.answer = decide
    await system.register("gate", pre=True, action={"type": "HTTP", "url": endpoint.url})
    with pytest.raises(DeniedError, match="one"):
        await system.append(payload={"n": 1})
    changed = await system.append(payload={"n": 2})
    assert (await system.event(changed.id or "")).data.payload == {"n": 20}
    await system.append(payload={"n": 3})
    with pytest.raises(DeniedError, match="answers nothing"):
        await system.append(payload={"n": 4})


@each_of(
    ("answer", "denied"),
    [
        (Response(status_code=204), None),
        (Response(b""), None),
        (Response(b"null"), None),
        (Response(b'{"deny": "no"}', 201), "no"),
        (Response(b'{"deny": "no"}', 206), "206"),
        (Response(b"{}"), "an empty object"),
        (Response(b"<html>ok</html>"), "not one JSON document"),
        (Response(b'{"deny": "no"} '), "no"),
        (Response(b'{"deny": "no"'), "not one JSON document"),
        (Response(b'{"deny": "a", "deny": "b"}'), "twice"),
        (Response(b'{"deny": "\xff"}'), "UTF-8"),
        (Response(b" " * (ANSWER_BYTES + 1)), "larger than"),
        (Response(b"", 404), "answered 404"),
        (RedirectResponse("http://127.0.0.1:1/"), "redirects are not followed"),
    ],
)
async def test_what_an_endpoints_answer_means(
    system: System, endpoint: HttpEndpoint, answer: Response, denied: str | None
) -> None:
    endpoint.answer = answer
    await system.register("gate", pre=True, action={"type": "HTTP", "url": endpoint.url})
    if denied is None:
        await system.append()
    else:
        with pytest.raises(DeniedError, match=denied):
            await system.append()


async def ran(system: System, hook: str, times: int, outcome: str = "ok") -> bool:
    return [run.outcome for run in await system.runs(hook)].count(outcome) == times
