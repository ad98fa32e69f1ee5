"""Each command against the played gateway: what people see, what machines see, and how it ends."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from crucible_cli.display import reason
from crucible_cli.errors import explain
from crucible_cli.main import COMMANDS, load
from crucible_cli.up.state import DataDir, read_admin_key
from crucible_core.decode import convert
from crucible_core.definition import HookDefinition
from crucible_core.errors import FieldError, InvalidError, NotFoundError
from crucible_core.hookfile import read_hook
from tests.client.playing import KEY, Played, trouble

Run = Callable[..., Any]


def answer(run: Run, *arguments: str, **options: Any) -> Any:
    """The JSON document that a command prints."""
    result = run(*arguments, "--json", **options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_help_names_every_command() -> None:
    shown = subprocess.run([sys.executable, "-m", "crucible_cli", "--help"], capture_output=True, text=True, check=True)
    assert all(f" {name} " in shown.stdout for name in COMMANDS)


def test_help_imports_no_command() -> None:
    """That is why it is quick."""
    script = (
        "import atexit, sys; sys.argv = ['crucible', '--help']\n"
        "slow = ('httpx', 'crucible_client', 'crucible_cli.session', 'msgspec', 'uvicorn')\n"
        "atexit.register(lambda: print('imported', *(name for name in slow if name in sys.modules)))\n"
        "from crucible_cli.main import main; main()"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1].split() == ["imported"]


def test_version(run: Run) -> None:
    assert run("--version").stdout.startswith("crucible 0.")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json(name: str) -> None:
    assert COMMANDS[name]
    for leaf in leaves(load(name)):
        assert "--json" in [text for option in leaf.params for text in option.opts], leaf.name
        assert leaf.help


def leaves(command: Any) -> list[Any]:
    """The commands of a group and of the groups in it."""
    inner = getattr(command, "commands", None)
    return [command] if inner is None else [leaf for one in inner.values() for leaf in leaves(one)]


def test_options_of_every_command_may_stand_before_it(run: Run, played: Played) -> None:
    written = json.loads(run("--json", "memory", "add", "Clocks tick").stdout)
    assert "Clocks tick" in run("memory", "get", written["id"]).stdout
    nowhere = ("--url", "http://127.0.0.1:1")
    assert "the connection was refused" in run(*nowhere, "memory", "list").output
    assert run(*nowhere, "memory", "list", "--url", played.url).exit_code == 0
    assert "`crucible up` has no --key" in run("--key", "x", "up").output


def test_unknown_command_is_a_usage_error(run: Run) -> None:
    assert run("evnts").exit_code == 2


def test_emit_get_list_and_trace(run: Run, played: Played) -> None:
    appended = answer(run, "events", "emit", "Memory.Created", '{"content": "# Clocks"}', "--correlation", "cor_1")
    assert appended["sequence"] == 1
    run("events", "emit", "Memory.Linked", "-", "--correlation", "cor_1", input='{"id": "mem_a", "target": "mem_b"}')
    assert played.payloads[1] == {"id": "mem_a", "target": "mem_b"}
    assert json.loads(run("events", "list", "--limit", "1", "--json").stdout)["sequence"] == 2
    assert answer(run, "events", "get", appended["id"])["data"]["payload"] == {"content": "# Clocks"}
    assert answer(run, "events", "trace", appended["id"])["count"] == 2
    tree = run("events", "trace", "cor_1").stdout
    assert "Memory.Created  Clocks  +0.0 ms" in tree
    assert "└── Memory.Linked  mem_a → mem_b  +12 ms" in tree


def test_emit_takes_a_file(run: Run, played: Played, tmp_path: Path) -> None:
    (tmp_path / "payload.json").write_text('{"n": 1}')
    assert run("events", "emit", "Custom.X", f"@{tmp_path}/payload.json").exit_code == 0
    assert played.payloads == [{"n": 1}]


@pytest.mark.parametrize("payload", ["{", "[1]", "@/nowhere"])
def test_a_payload_that_is_no_object_is_a_usage_error(run: Run, payload: str) -> None:
    result = run("events", "emit", "Custom.X", payload)
    assert result.exit_code == 2
    assert "PAYLOAD" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("events", "emit", "Custom.X", '{"n": 1, "n": 2}'), "PAYLOAD cannot be read: n: the key stands twice"),
        (("events", "emit", "Custom.X", 'a={"n": 1, "n": 2}'), "PAYLOAD: a cannot be read: n: the key stands twice"),
        (("events", "emit", "Custom.X", "n=1", "n=2"), "PAYLOAD: n is given twice"),
        (("events", "emit", "Custom.X", "n.a=1", "n=2"), "PAYLOAD: n is given twice"),
        (("hooks", "update", "tidy", '{"options": {"a": 1, "a": 2}}'), "CHANGES cannot be read: options.a: the key"),
        (("hooks", "test", "tidy", "--payload", '{"n": 1, "n": 2}'), "--payload cannot be read: n: the key stands"),
        (("webhooks", "update", "ci", '{"url": "a", "url": "b"}'), "CHANGES cannot be read: url: the key stands"),
        (("memory", "create", "x", "--metadata", '{"n": 1, "n": 2}'), "--metadata cannot be read: n: the key"),
        (("events", "list", "--filter", '{"n": 1, "n": 2}'), "--filter cannot be read: n: the key stands twice"),
        (("events", "list", "--filter", 'n={"gt": 1, "gt": 2}'), "--filter cannot be read: gt: the key stands"),
        (("events", "types", "add", '{"type": "A.B", "type": "A.C"}'), "FILE cannot be read: type: the key stands"),
        (("retention", "set", '[{"type": "*", "keep": "1d", "keep": "2d"}]'), "RULES cannot be read: 0.keep: the key"),
    ],
)
def test_a_key_that_is_given_twice_is_a_usage_error(run: Run, played: Played, words: Sequence[str], told: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.replace("│", " ").split())
    assert played.requests == []


def test_tail_prints_ndjson(run: Run, played: Played) -> None:
    for number in range(3):
        played.append({"type": "Custom.Counted", "payload": {"number": number}})
    result = run("events", "tail", "--from", "start", "--limit", "3", "--json")
    assert [json.loads(line)["sequence"] for line in result.stdout.splitlines()] == [1, 2, 3]
    assert 'Custom.Counted  {"number":0}' in run("events", "tail", "--from", "start", "-n", "1").stdout


def test_terminal_codes_in_events_are_not_obeyed(run: Run, played: Played) -> None:
    played.append({"type": "Custom.Evil", "payload": {"text": "\x1b[2J\u202e[bold]"}})
    shown = run("events", "list").stdout + run("events", "get", "evt_1").stdout
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "[bold]" in shown


def test_refused_event_shows_fields_and_exits_1(run: Run) -> None:
    result = run("events", "emit", "Memori.Created")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "type: unknown type" in result.stderr
    assert "did you mean Memory.Created?" in result.stderr


def test_denied_event_shows_hook_and_reason(run: Run) -> None:
    result = run("events", "emit", "Memory.Denied")
    assert "denied by the hook guard: no title" in result.stderr


def test_nothing_listening_tells_the_next_step(run: Run) -> None:
    result = run("hooks", "list", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "is `crucible up` running?" in result.stderr


def test_wrong_key_tells_where_the_key_is(run: Run) -> None:
    result = run("hooks", "list", "--key", "wrong")
    assert result.exit_code == 1
    assert "admin.key" in result.stderr


def test_hooks(run: Run, played: Played, tmp_path: Path) -> None:
    file = tmp_path / "hook.json"
    file.write_text('{"name": "tidy"}')
    assert answer(run, "hooks", "add", str(file))["name"] == "tidy"
    assert "crucible hooks test tidy" in run("hooks", "add", str(file)).stdout
    assert "tidy" in run("hooks", "list").stdout
    assert answer(run, "hooks", "disable", "tidy")["state"] == "disabled"
    assert "active" in run("hooks", "enable", "tidy").stdout
    assert answer(run, "hooks", "update", "tidy", '{"origin": "here"}')["origin"] == "here"
    assert len(answer(run, "hooks", "runs", "tidy", "-n", "2")["runs"]) == 2
    assert "run_0" in run("hooks", "runs", "tidy").stdout
    assert "dry_run=True" in run("hooks", "test", "tidy").stdout
    assert "dry_run=False" in run("hooks", "test", "tidy", "--real").stdout
    played.verdicts["tidy"] = "inert"
    assert run("hooks", "test", "tidy").exit_code == 1
    assert answer(run, "hooks", "delete", "tidy", "--yes") == {"deleted": "tidy"}
    assert "crucible hooks add" in run("hooks", "list").stdout


def test_hook_is_named_by_the_beginning_of_its_name(run: Run, played: Played, tmp_path: Path) -> None:
    for name in ("tidy", "tidy-up", "sweep"):
        (tmp_path / "hook.json").write_text(f'{{"name": "{name}"}}')
        run("hooks", "add", str(tmp_path / "hook.json"))
    assert answer(run, "hooks", "get", "swe")["name"] == "sweep"
    assert answer(run, "hooks", "get", "tidy")["name"] == "tidy"
    assert answer(run, "hooks", "disable", "tidy-")["state"] == "disabled"
    several = run("hooks", "get", "ti")
    assert (several.exit_code, "tidy, tidy-up" in several.stderr) == (1, True)
    assert "did you mean sweep?" in run("hooks", "get", "sweeep").stderr
    assert "Remove the hook sweep, and" in run("hooks", "delete", "swe", input="n\n").stderr
    assert run("hooks", "delete", "swe", "--yes").exit_code == 1  # a name that is gone already may begin another
    assert "sweep" in played.hooks


def test_failed_script_is_listed_with_the_last_line_of_its_traceback() -> None:
    raised = 'Traceback (most recent call last):\n  File "tidy", line 1, in <module>\nKeyError: [/red]\n'
    assert reason(raised) == "KeyError: [/red]"
    assert reason("no answer") == "no answer"


def test_the_example_in_the_help_is_a_hook(run: Run) -> None:
    lines = [line[1:].rstrip() for line in run("hooks", "add", "--help").stdout.split("\n")]
    begin, end = (place for place, line in enumerate(lines) if line == "---")
    assert convert(read_hook("\n".join(lines[begin : end + 1])), HookDefinition).name == "shout"


def test_run_is_shown_with_log_and_output(run: Run, played: Played) -> None:
    shown = run("hooks", "runs", "show", "run_7").stdout
    assert "run_7  tidy  ok" in shown
    assert "log     looked [/red]" in shown
    assert '"n": 1' in shown
    assert answer(run, "hooks", "runs", "show", "run_7")["runs"][0]["output"] == {"n": 1}
    played.hooks["show"] = _view("show")
    assert "run_0" in run("hooks", "runs", "list", "show").stdout
    assert run("hooks", "runs").exit_code == 2


def test_hook_file_goes_as_it_is(run: Run, played: Played, tmp_path: Path) -> None:
    file = tmp_path / "hook.md"
    file.write_text("---\nname: x\naction: {type: Script, script: 'log(1)'}\n---\nText\n")
    run("hooks", "add", str(file))
    assert played.hooks["from-file"]["definition"]["text"] == file.read_text()


def test_script_beside_a_hook_file_goes_with_it(run: Run, played: Played, tmp_path: Path) -> None:
    (tmp_path / "hook.md").write_text("---\nname: linker\naction: {type: Script, script: link.py}\n---\n")
    (tmp_path / "link.py").write_text("log('hi')\n")
    run("hooks", "add", str(tmp_path / "hook.md"))
    assert played.hooks["linker"]["definition"]["action"] == {"type": "Script", "script": "log('hi')\n"}


@pytest.mark.parametrize("name", ["hook.md", "tidy.yaml", "tidy.YML", "tidy.md"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_hook_file_may_be_plain_yaml(run: Run, played: Played, tmp_path: Path, name: str, encoding: str) -> None:
    text = "name: linker\ntrigger: {events: [{type: Memory}]}\naction: {type: Script, script: link.py}\n"
    (tmp_path / name).write_bytes(text.encode(encoding))
    (tmp_path / "link.py").write_text("log('hi')\n")
    assert run("hooks", "add", str(tmp_path / name)).exit_code == 0
    assert played.hooks["linker"]["definition"]["action"]["script"] == "log('hi')\n"


def test_hook_without_a_name_is_called_like_its_file(run: Run, played: Played, tmp_path: Path) -> None:
    (tmp_path / "tidy.yaml").write_text("trigger: {events: [{type: Memory}]}\naction: {type: HTTP, url: http://x}\n")
    run("hooks", "add", str(tmp_path / "tidy.yaml"))
    assert "tidy" in played.hooks


def test_hook_is_read_from_stdin(run: Run, played: Played) -> None:
    text = "trigger: {}\naction: {}\n"
    assert run("hooks", "add", "-", input=text).exit_code == 0
    assert played.hooks["from-file"]["definition"]["text"] == text


@pytest.mark.parametrize("command", ["hooks add", "events import", "events types add", "events emit Custom.x", "key"])
@pytest.mark.parametrize("kind", ["pipe", "zero", "directory", "loop", "binary", "gone\x1b[31m"])
def test_what_is_no_file_is_refused_and_not_waited_for(run: Run, tmp_path: Path, command: str, kind: str) -> None:
    odd = tmp_path / "data" / "crucible" / "admin.key" if command == "key" else tmp_path / kind
    odd.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(odd)
        case "zero":
            odd.symlink_to("/dev/zero")
        case "directory":
            odd.mkdir()
        case "loop":
            odd.symlink_to(odd)
        case "binary":
            odd.write_bytes(bytes(range(128, 256)))
    if command == "key":
        assert read_admin_key(DataDir(odd.parent)) is None
        return
    at = "" if command.endswith(("import", "hooks add")) else "@"
    result = run(*command.split(), f"{at}{odd}")
    assert result.exit_code in (1, 2), result.output
    assert "\x1b[31m" not in result.output
    assert "Traceback" not in result.output


def test_file_that_a_shell_made_of_a_command_is_read(run: Run, played: Played) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"trigger: {}\naction: {}\n")
    os.close(writer)
    assert run("hooks", "add", f"/dev/fd/{reader}").exit_code == 0
    os.close(reader)


def test_webhooks(run: Run, played: Played) -> None:
    made = answer(run, "webhooks", "create", "ci", "https://example.com", "--on", "Memory.*", "--bearer", "t")
    assert json.loads(played.requests[-1][3])["auth"] == {"type": "bearer", "token": "t"}
    assert made["secret"] == "whsec_c2VjcmV0"
    assert "whsec_c2VjcmV0" in run("webhooks", "create", "cd", "https://example.com").stdout
    assert "Memory.*" in run("webhooks", "list").stdout
    assert len(answer(run, "webhooks", "attempts", made["id"])["attempts"]) == 3
    assert "dlv_0" in run("webhooks", "attempts", made["id"]).stdout
    assert answer(run, "webhooks", "test", "ci")["steps"][0]["detail"] == "dry_run=False"
    assert answer(run, "webhooks", "test", "ci", "--dry-run", "--type", "X")["steps"][0]["detail"] == "dry_run=True"
    assert json.loads(played.requests[-1][3])["type"] == "X"
    played.verdicts["whk_1"] = "inert"
    assert run("webhooks", "test", "ci").exit_code == 1


def test_webhook_is_shown_changed_and_removed(run: Run, played: Played) -> None:
    run("webhooks", "create", "ci [/red]", "https://example.com")
    assert "ci [/red]" in run("webhooks", "get", "ci [/red]").stdout
    shown = run("webhooks", "get", "whk_1").stdout
    assert all(text in shown for text in ("whk_1", "ci [/red]", "active", "https://example.com", "2 waiting"))
    options = ["--to", "https://new.example", "--on", "File.*", "--filter", '{"a": 1}', "--timeout-ms", "100"]
    options += ["--pause", "--name", "cd"]
    changed = run("webhooks", "update", "whk_1", '{"options": {"concurrency": 2}}', *options)
    assert changed.exit_code == 0, changed.output
    assert json.loads(played.requests[-1][3]) == {
        "name": "cd",
        "url": "https://new.example",
        "event_filters": [{"event_type": "File.*", "filter": {"a": 1}}],
        "options": {"concurrency": 2, "timeout_ms": 100},
        "paused": True,
    }
    for wrong in ((), ("--filter", "{}"), ("--bearer", "a", "--basic", "b:c"), ("[]",)):
        assert run("webhooks", "update", "cd", *wrong).exit_code == 2
    assert "disabled" in run("webhooks", "disable", "cd").stdout
    assert "active" in run("webhooks", "enable", "cd", "--missed", "skip").stdout
    assert json.loads(played.requests[-1][3]) == {"missed": "skip"}
    rotated = run("webhooks", "rotate-secret", "cd", "--grace", "60").stdout
    assert "whsec_bmV3" in rotated
    assert "2026-11-22T10:00:00" in rotated
    refused = run("webhooks", "delete", "cd", input="n\n")
    assert (refused.exit_code, "2 deliveries wait" in refused.stderr) == (1, True)
    assert run("webhooks", "delete", "cd").exit_code == 1  # nobody is there to answer
    assert answer(run, "webhooks", "delete", "cd", "--yes") == {"deleted": "whk_1"}
    again = run("webhooks", "delete", "cd", "--yes")
    assert (again.exit_code, "the webhook cd is gone already" in again.stderr) == (1, True)


def test_webhook_is_named_by_the_beginning_of_its_id(run: Run, played: Played) -> None:
    ids = ["whk_01kaj3x5vcexs8b1k5w2z9d7fh", "whk_01kaj3x5vdexs8b1k5w2z9d7fh"]
    run("webhooks", "create", "ci", "https://example.com")
    for id, name in zip(ids, ("one", "two"), strict=True):
        played.webhooks[id] = played.webhooks["whk_1"] | {"id": id, "name": name}
    for given in ("one", ids[0], "whk_01kaj3x5vc", "01kaj3x5vc"):
        assert answer(run, "webhooks", "get", given)["id"] == ids[0]
    several = run("webhooks", "disable", "whk_01kaj3x5v")
    assert several.exit_code == 1
    assert f"several ids begin with whk_01kaj3x5v: {ids[0]}, {ids[1]}" in several.stderr
    for given in ("01", "whk_01k", "whk_02kaj3x5v", "onet"):
        missing = run("webhooks", "get", given)
        assert (missing.exit_code, "there is no webhook" in missing.stderr) == (1, True)


def test_event_is_sent_again(run: Run, played: Played) -> None:
    run("webhooks", "create", "ci", "https://example.com")
    event = answer(run, "events", "emit", "Memory.Created", "{}")
    for given in (event["id"], "1"):
        resent = answer(run, "events", "resend", given, "--to", "ci")
        assert resent == {"delivery_id": "dlv_9", "webhook_id": "whk_1", "event_id": event["id"]}
    assert "dlv_9  goes to ci" in run("events", "resend", event["id"], "--to", "whk_1").stdout
    assert run("events", "resend", event["id"], "--to", "nobody").exit_code == 1


def test_memory(run: Run, played: Played) -> None:
    written = answer(run, "memory", "add", "Clocks tick", "--tag", "#time", "--link", "Lamport")
    assert "Clocks tick" in run("memory", "get", written["id"]).stdout
    assert "Clocks tick" in run("memory", "query", "tick").stdout
    assert [memory["score"] for memory in answer(run, "memory", "query", "tick")["memories"]] == [0.5]
    assert "Nothing found" in run("memory", "query", "zzz").stdout
    assert [memory["id"] for memory in answer(run, "memory", "list")["memories"]] == [written["id"]]


def test_a_memory_says_what_its_writer_should_mend(run: Run, played: Played) -> None:
    id = answer(run, "memory", "create", "text")["id"]
    played.memories[id] |= {"path": "a.md", "problems": ["front matter, line 2: [/red] close the quote"]}
    shown = run("memory", "get", id).stdout
    assert "to mend: front matter, line 2: [/red] close the quote" in shown
    assert "a.md" in shown


def test_memory_status_names_what_could_not_be_read(run: Run, played: Played) -> None:
    assert answer(run, "memory", "status")["latest"][0]["sequence"] == 3
    shown = run("memory", "status").stdout
    assert "0 memories, as of #7" in shown
    assert "#3  ValidationError: [/red] Expected `str`" in shown


def test_a_memory_is_changed_by_what_is_given(run: Run, played: Played) -> None:
    id = answer(run, "memory", "create", "Clocks tick", "--tag", "#time")["id"]
    answer(run, "memory", "update", id, "Clocks tock", "--metadata", '{"n": 1}')
    assert (played.memories[id]["content"], played.memories[id]["tags"]) == ("Clocks tock", ["#time"])
    answer(run, "memory", "update", id, "--tag", "", "--link", "Lamport")
    assert (played.memories[id]["tags"], played.memories[id]["links"]) == ([], [{"target": "Lamport"}])
    refused = run("memory", "update", id, "x", "--sequence", "1")
    assert (refused.exit_code, "read it again" in refused.stderr) == (1, True)
    assert run("memory", "update", id).exit_code == 2


def test_a_memory_is_removed_when_asked_and_answered(run: Run, played: Played) -> None:
    id = answer(run, "memory", "create", "[/red] Clocks [[tick]]")["id"]
    asked = run("memory", "delete", id, input="n\n")
    assert (asked.exit_code, id in played.memories) == (1, True)
    assert f"Remove {id} ([/red] Clocks [[tick]])?" in asked.stderr
    assert run("memory", "delete", id).exit_code == 1  # nobody is there to answer
    assert answer(run, "memory", "delete", id, "--yes") == {"deleted": id}
    again = run("memory", "delete", id, "--yes")
    assert (again.exit_code, "no such memory" in again.stderr) == (1, True)


def test_a_memory_is_named_by_the_beginning_of_its_id(run: Run, played: Played) -> None:
    ids = [answer(run, "memory", "create", f"number {number}")["id"] for number in range(11)]
    assert ids[0] == "mem_1"
    assert answer(run, "memory", "get", "mem_1")["id"] == "mem_1"
    first, second = "mem_2000001", "mem_2000002"
    played.memories[first] = played.memories.pop("mem_2") | {"id": first}
    for beginning in ("mem_200000", "200000", "2000001"):
        assert answer(run, "memory", "get", beginning)["id"] == first
    assert answer(run, "memory", "update", "mem_200000", "x")["id"] == first
    played.memories[second] = played.memories[first] | {"id": second}
    several = run("memory", "delete", "mem_200000", "--yes")
    assert (several.exit_code, f"several ids begin with mem_200000: {first}, {second}" in several.stderr) == (1, True)
    assert first in played.memories


def test_output_without_unicode_shows_question_marks(played: Played, tmp_path: Path) -> None:
    env = {**os.environ, "CRUCIBLE_URL": played.url, "CRUCIBLE_API_KEY": KEY, "XDG_DATA_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "crucible_cli"]
    for words in (
        ("events", "emit", "Memory.Created", "content=Café 👩‍💻 会議"),
        ("events", "list"),
        ("memory", "query"),
    ):
        done = subprocess.run(
            [*command, *words], env={**env, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
    shown = subprocess.run([*command, "events", "list"], env={**env, "PYTHONIOENCODING": "ascii"}, capture_output=True)
    assert b"Caf? " in shown.stdout
    found = subprocess.run(
        [*command, "events", "list", "--json"], env={**env, "PYTHONIOENCODING": "ascii"}, capture_output=True
    )
    assert "Café 👩‍💻 会議" in json.loads(found.stdout)["data"]["payload"]["content"]


@pytest.mark.parametrize("words", ["--help", "events list", "hooks list --json", "hooks list", "--version"])
def test_closed_or_full_outputs_are_no_traceback(played: Played, tmp_path: Path, words: str) -> None:
    env = {**os.environ, "CRUCIBLE_URL": played.url, "CRUCIBLE_API_KEY": KEY, "XDG_DATA_HOME": str(tmp_path)}
    command = f"{sys.executable} -m crucible_cli {words}"
    closed = subprocess.run(["sh", "-c", f"{command} >&-"], env=env, capture_output=True, text=True)
    assert (closed.returncode, closed.stderr) == (0, "")
    both = subprocess.run(["sh", "-c", f"{command} >&- 2>&-"], env=env)
    assert both.returncode == 0
    full = subprocess.run(["sh", "-c", f"{command} >/dev/full"], env=env, capture_output=True, text=True)
    assert (full.returncode, "Traceback" in full.stderr) == (1, False)
    assert "No space left on device" in full.stderr


def test_latest_events_are_shown_in_the_order_of_the_log(run: Run, played: Played) -> None:
    for number in range(5):
        run("events", "emit", "Custom.Note", f"n={number}")

    def numbers(*options: str) -> list[int]:
        lines = run("events", "list", *options, "--json").stdout.splitlines()
        return [json.loads(line)["data"]["payload"]["n"] for line in lines]

    assert numbers("-n", "2") == [3, 4]
    assert numbers("-n", "2", "--desc") == [4, 3]
    assert numbers("-n", "2", "--asc") == [0, 1]
    assert numbers("--all") == [0, 1, 2, 3, 4]


def test_what_removes_asks_first(run: Run, played: Played, tmp_path: Path) -> None:
    run("worlds", "add", "acme")
    run("rooms", "add", "acme", "lab")
    (tmp_path / "hook.json").write_text('{"name": "tidy"}')
    run("hooks", "add", str(tmp_path / "hook.json"))
    run("events", "types", "add", "--type", "Order.Sent", "--schema", "{}")
    replay = answer(run, "events", "replay", "--to-hook", "tidy")["id"]
    for words, asked in (
        (
            ("worlds", "delete", "acme", "--purge"),
            "Remove the world acme and its 0 events? Nobody can bring them back.",
        ),
        (("worlds", "rm", "acme"), "Remove the world acme with 2 rooms? Its 0 events stay until they expire."),
        (("rooms", "delete", "acme", "lab"), "Remove the room lab of acme?"),
        (("hooks", "delete", "tidy"), "Remove the hook tidy"),
        (("events", "types", "delete", "Order.Sent"), "Remove the type Order.Sent"),
        (("retention", "set", "[]"), "Replace these rules by 0 others?"),
        (("replays", "cancel", replay), "End this replay?"),
    ):
        for given, told in (("n\n", "nothing was changed"), ("", "--yes does it without asking")):
            result = run(*words, input=given)
            assert result.exit_code == 1, words
            assert asked in result.stderr
            assert told in result.stderr
    assert [request for request in played.requests if request[0] in ("DELETE", "PUT")] == []
    assert run("hooks", "delete", "tidy", input="y\n").exit_code == 0
    again = run("hooks", "delete", "tidy", "--yes")
    assert (again.exit_code, "the hook tidy is gone already" in again.stderr) == (1, True)


def test_worlds_and_rooms(run: Run, played: Played) -> None:
    assert answer(run, "worlds", "add", "acme", "--description", "Our own")["id"] == "acme"
    assert "lab in acme" in run("rooms", "add", "acme", "lab").stdout
    assert [room["id"] for room in answer(run, "rooms", "list", "acme")["rooms"]] == ["main", "lab"]
    shown = run("worlds", "list").stdout
    assert "Our own" in shown
    assert "main lab" in shown
    assert answer(run, "rooms", "rm", "acme", "lab", "--yes") == {"deleted": "lab"}
    again = run("rooms", "rm", "acme", "lab", "--yes")
    assert (again.exit_code, "the room lab of acme is gone already" in again.stderr) == (1, True)
    assert [world["id"] for world in answer(run, "worlds", "list")["worlds"]] == ["acme", "default"]
    assert answer(run, "worlds", "delete", "acme", "--purge", "--yes") == {"deleted": "acme", "purged": True}
    for words in (("worlds", "rm", "acme", "--yes"), ("worlds", "rm", "acme", "--purge", "--yes")):
        missing = run(*words)
        assert (missing.exit_code, "the world acme is gone already" in missing.stderr) == (1, True)
    assert "main" in run("rooms", "list").stdout


def test_retention(run: Run, tmp_path: Path) -> None:
    assert "All other events: 30d" in run("retention", "show").stdout
    file = tmp_path / "rules.json"
    file.write_text('{"rules": [{"type": "Task.*", "keep": "forever"}]}')
    assert answer(run, "retention", "set", f"@{file}", "--revision", "0", "--yes")["revision"] == 1
    assert "Task.*" in run("retention", "show").stdout
    stale = run("retention", "set", "[]", "--revision", "0", "--yes")
    assert (stale.exit_code, "revision 1" in stale.stderr) == (1, True)
    assert answer(run, "retention", "set", "[]", "--yes")["rules"] == []
    for wrong in ("{", "{}", "[1]", "7"):
        assert run("retention", "set", wrong).exit_code == 2


def test_doctor_finds_what_is_not_live(run: Run, played: Played) -> None:
    assert "nothing to prove" in run("doctor").stdout
    played.hooks = {name: _view(name) for name in ("good", "off", "bad")}
    run("webhooks", "create", "ci", "https://example.com")
    played.verdicts = {"off": "disabled", "whk_1": "accepts connections"}
    healthy = run("doctor")
    assert healthy.exit_code == 0
    assert "2 live, 1 disabled, 0 inert, 1 accepts connections" in healthy.stdout
    assert "memory could not read one event" in healthy.stdout
    assert "#3  ValidationError: [/red] Expected `str`" in healthy.stdout
    played.verdicts["bad"] = "inert"
    sick = run("doctor", "--json")
    assert sick.exit_code == 1
    found = {finding["check"]["name"]: finding["check"]["verdict"] for finding in json.loads(sick.stdout)["findings"]}
    assert found == {"good": "live", "off": "disabled", "bad": "inert", "ci": "accepts connections"}
    assert "it would not fire" in run("doctor").stdout


def test_limits_are_retried_and_then_said(run: Run, played: Played) -> None:
    played.troubles = [trouble(429, "limited", "3600")]
    result = run("hooks", "list")
    assert result.exit_code == 1
    assert "wait a moment" in result.stderr


def _view(name: str) -> dict[str, Any]:
    counters = {"matched": 0, "invoked": 0, "ok": 0, "failed": 0, "skipped": 0}
    view = {"name": name, "state": "active", "timing": "Pre", "priority": 1, "origin": "api", "definition": None}
    return view | {"counters": counters, "updated_at": "", "order": 1}


def test_types_are_listed_added_shown_and_removed(run: Run, played: Played, tmp_path: Path) -> None:
    file = tmp_path / "order.json"
    file.write_text(json.dumps({"type": "Order.Placed", "schema": {"required": ["id"]}, "aliases": ["new_order"]}))
    assert "Order.Placed 1.0.0 is registered" in run("events", "types", "add", str(file)).stdout
    schema = tmp_path / "schema.json"
    schema.write_text("{}")
    made = answer(run, "events", "types", "add", "--type", "Order.Sent", "--version", "1.2.0", "--schema", str(schema))
    assert (made["type"], made["version"]) == ("Order.Sent", "1.2.0")
    shown = run("events", "types").stdout
    assert "Memory.Created" in shown
    assert "new_order" in shown
    listed = answer(run, "events", "types", "--registered")["types"]
    assert [kind["type"] for kind in listed] == ["Order.Placed", "Order.Sent"]
    assert '"required"' in run("events", "types", "show", "Order.Placed").stdout
    assert answer(run, "events", "types", "rm", "Order.Placed", "--yes") == {"deleted": "Order.Placed"}
    assert run("events", "types", "rm", "Memory.Created", "--yes").exit_code == 1


def test_a_type_needs_a_name_and_a_schema(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "order.json"
    for given in ({"type": "Order.Placed"}, {"type": "Order.Placed", "schema": {}, "verson": "1.0.0"}, []):
        file.write_text(json.dumps(given))
        assert run("events", "types", "add", str(file)).exit_code == 2
    assert run("events", "types", "add").exit_code == 2
    assert run("events", "types", "add", str(tmp_path / "absent.json")).exit_code == 2


def test_types_are_exported_and_added_again(run: Run, played: Played, tmp_path: Path) -> None:
    """What `types export` and `types show --json` print is what `types add` reads; derived aliases stay out of it."""
    file = tmp_path / "types.json"
    assert run("events", "types", "export", str(file)).exit_code == 0
    assert "nothing to register" in run("events", "types", "add", str(file)).stdout
    run("events", "types", "add", "--type", "Order.Placed", "--schema", "{}", "--alias", "new_order")
    kind = played.types["Order.Placed"]
    kind["aliases"] = ["order.placed", "order:placed", "order_placed", "new_order"]
    kind["schemas"] = {"1.0.0": {}, "1.1.0": {"title": "later"}}
    shown = run("events", "types", "show", "Order.Placed", "--json").stdout
    assert run("events", "types", "export", str(file)).exit_code == 0
    for text in (file.read_text(), shown):
        del played.types["Order.Placed"]
        played.requests.clear()
        run("events", "types", "add", "-", input=text)
        sent = [json.loads(body) for method, _, _, body in played.requests if method == "POST"]
        assert [(one["version"], one["schema"]) for one in sent] == [("1.0.0", {}), ("1.1.0", {"title": "later"})]
        assert [one["aliases"] for one in sent] == [["new_order"], ["new_order"]]
    assert run("events", "types", "add", str(file), "--version", "3.0.0").exit_code == 2
    file.write_text('{"types": [1]}')
    assert run("events", "types", "add", str(file)).exit_code == 2


def test_a_conflict_with_what_always_holds_is_not_to_be_retried(run: Run) -> None:
    run("events", "types", "add", "--type", "Order.Placed", "--schema", "{}")
    assert "retry" not in run("events", "types", "rm", "Memory.Created", "--yes").stderr


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_full_disk_is_said_in_one_line(played: Played, options: tuple[str, ...]) -> None:
    environ = {**os.environ, "CRUCIBLE_URL": played.url, "CRUCIBLE_API_KEY": KEY}
    command = [sys.executable, "-m", "crucible_cli", "events", "types", *options]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environ, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: No space left on device\n"


def test_a_mistake_is_told_once() -> None:
    told = 'from: "x" is no time'
    error = InvalidError(told, errors=[FieldError("from", '"x" is no time')])
    assert explain(error).plain == f"error: {told}"
    meant = InvalidError(told, errors=[FieldError("from", '"x" is no time', "now")])
    assert explain(meant).plain == f"error: {told} (did you mean now?)"
    assert explain(InvalidError("no key", errors=[FieldError("api_key", "no key")])).plain == "error: no key"
    gone = NotFoundError("there is no webhook 'x'", errors=[FieldError("id", "there is no such webhook")])
    assert explain(gone).plain == "error: there is no webhook 'x'"
    other = FieldError("to", "is no time", "now")
    assert explain(InvalidError(told, errors=[other])).plain.endswith("\n  to: is no time (did you mean now?)")
