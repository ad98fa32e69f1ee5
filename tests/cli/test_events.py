"""Events from the command line: many at once, counted, followed, exported and put back."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import typer

from crucible_cli import ndjson
from crucible_cli.options import fields_of, filter_of, time_of
from crucible_core.limits import EVENT_BYTES
from tests.client.playing import Played, trouble

Run = Callable[..., Any]


def events(*types: str) -> str:
    return "".join(json.dumps({"type": name, "payload": {"n": n}}) + "\n" for n, name in enumerate(types))


def test_emit_takes_pairs(run: Run, played: Played) -> None:
    run("events", "emit", "Custom.Built", "branch=main", "took=12.5", "ok=true", "by.name=alice", 'n="7"')
    assert played.payloads == [{"branch": "main", "took": 12.5, "ok": True, "by": {"name": "alice"}, "n": "7"}]
    assert run("events", "emit", "Custom.Built", "--payload", '{"a": 1}').exit_code == 0
    assert played.payloads[1] == {"a": 1}


def test_emit_many_from_stdin(run: Run, played: Played) -> None:
    result = run("events", "emit", "-", input=events("Custom.A", "Custom.B") + "\n" + events("Custom.C"))
    assert result.exit_code == 0
    assert "3 committed" in result.stdout
    assert [event["data"]["event"] for event in played.log] == ["A", "B", "C"]


def test_emit_many_names_the_lines_that_were_refused(run: Run, played: Played, tmp_path: Path) -> None:
    file = tmp_path / "events.ndjson"
    file.write_text(f"{events('Custom.A')}\n{{no json\n{events('Memori.Created', 'Memory.Denied', 'Custom.B')}")
    result = run("events", "emit", "--file", str(file))
    assert result.exit_code == 1
    assert "2 committed" in result.stdout
    assert "3 refused" in result.stdout
    shown = result.stderr.splitlines()
    assert "line 3: no JSON" in shown[0]
    assert "line 4: the event was refused" in shown[1]
    assert "line 5: denied by the hook guard: no title" in result.stderr
    told = json.loads(run("events", "emit", "--file", str(file), "--json").stdout)
    assert (told["committed"], told["refused"], [refusal["line"] for refusal in told["refusals"]]) == (2, 3, [3, 4, 5])


def test_redact_asks_before_it_erases(run: Run, played: Played) -> None:
    run("events", "emit", "Custom.Built", "vault=vermilion")
    for answer in ("n\n", "", None):
        result = run("events", "redact", "evt_1", input=answer)
        assert result.exit_code == 1
        assert "vermilion" in result.stderr
    assert played.payloads == [{"vault": "vermilion"}]
    result = run("events", "redact", "evt_1", "--reason", "asked for", input="y\n")
    assert result.exit_code == 0
    assert "redacted by user:alice asked for" in result.stdout
    assert played.payloads == [{}]
    assert json.loads(run("events", "redact", "evt_1", "--yes", "--json").stdout)["redacted"]["by"] == "user:alice"
    assert run("events", "redact", "evt_nobody", "--yes").exit_code == 1


def test_only_the_first_refusals_are_shown(run: Run) -> None:
    result = run("events", "emit", "-", input=events(*["Memori.Created"] * 30))
    assert result.stderr.count("line ") == 10
    assert "30 refused" in result.stdout


def test_stop_on_error_sends_no_batch_after_the_refusal(run: Run, played: Played) -> None:
    lines = events("Memory.Denied", *["Custom.A"] * 1200)
    result = run("events", "import", "-", "--stop-on-error", input=lines)
    assert result.exit_code == 1
    assert len(played.log) == 499


def test_emit_atomic_is_one_request(run: Run, played: Played) -> None:
    assert run("events", "emit", "-", "--atomic", input=events("Custom.A", "Custom.B")).exit_code == 0
    assert [method for method, *_ in played.requests] == ["POST"]
    played.troubles = [trouble(422, "invalid")]
    assert run("events", "emit", "-", "--atomic", input="\n" + events("Custom.A")).exit_code == 1
    assert "at most 1000" in run("events", "emit", "-", "--atomic", input=events("Custom.A") * 1001).stderr


def test_emit_needs_one_thing_to_send(run: Run) -> None:
    assert run("events", "emit").exit_code == 2
    assert run("events", "emit", "Custom.A", "--file", "x").exit_code == 2
    assert run("events", "emit", "--file", "/nowhere").exit_code == 2
    assert run("events", "emit", "Custom.A", "novalue").exit_code == 2


def test_export_and_import(run: Run, played: Played, tmp_path: Path) -> None:
    run("events", "emit", "-", input=events("Custom.A", "Custom.B", "Custom.A"))
    file = tmp_path / "log.ndjson"
    assert "2 events" in run("events", "export", str(file), "--type", "Custom.A").stdout
    assert [json.loads(line)["sequence"] for line in file.read_text().splitlines()[:-1]] == [1, 3]
    assert file.read_text().endswith("}\n\n")
    assert not list(tmp_path.glob("*.part"))
    assert run("events", "export").stdout.count('"sequence"') == 3
    told = json.loads(run("events", "export", str(file), "--json").stdout)
    assert (told["events"], told["bytes"]) == (3, file.stat().st_size - 1)


def test_an_export_that_fails_leaves_the_file_as_it_was(run: Run, played: Played, tmp_path: Path) -> None:
    file = tmp_path / "log.ndjson"
    file.write_text("before")
    played.troubles = [trouble(422, "invalid")]
    assert run("events", "export", str(file)).exit_code == 1
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["log.ndjson"]
    assert run("events", "export", "/nowhere/log.ndjson").exit_code == 2


def test_import_makes_the_places_that_are_missing(run: Run, played: Played) -> None:
    long = {"type": "Custom", "data": {"event": "A", "payload": {}}, "metadata": {"world_id": "acme", "room_id": "lab"}}
    lines = [
        long,
        {"type": "Custom.B", "world_id": "mars"},
        {"type": "Custom.C"},
        {"type": "Custom.D", "room_id": "lab"},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + "\n{nonsense\n"
    run("events", "import", "-", input=text)
    rooms = {id: [room["id"] for room in world["rooms"]] for id, world in played.places.worlds.items()}
    assert rooms == {"default": ["main", "lab"], "acme": ["main", "lab"], "mars": ["main"]}
    asked = len(played.requests)
    run("events", "import", "-", input=json.dumps(lines[1]) + "\n")
    assert [request[0] for request in played.requests[asked:]] == ["GET", "POST"]


ORDER = {"type": "Order", "data": {"event": "Placed", "payload": {"id": "o_1"}}, "metadata": {"version": "1.0.0"}}


def _imported(played: Played) -> list[str]:
    return [f"{event['type']}.{event['data']['event']}" for event in played.log]


def test_import_sends_nothing_while_types_are_missing(run: Run, played: Played, tmp_path: Path) -> None:
    """Events that came later would be out of order; of a registered type the version counts, too."""
    file, types = tmp_path / "log.ndjson", tmp_path / "types.json"
    later = {**ORDER, "metadata": {"version": "2.0.0"}}
    file.write_text(events("Custom.A") + "".join(json.dumps(event) + "\n" for event in (ORDER, later, ORDER)))
    result = run("events", "import", str(file))
    assert result.exit_code == 1
    assert "Order.Placed: 3 events, the first in line 2" in result.stderr
    assert "crucible events types add" in result.stderr
    types.write_text(json.dumps({"type": "Order.Placed", "schema": {}}))
    run("events", "types", "add", str(types))
    result = run("events", "import", str(file))
    assert "Order.Placed 2.0.0: one event, in line 3" in result.stderr
    assert run("events", "import", "-", input=file.read_text()).exit_code == 1
    assert played.log == []


def test_import_can_pass_over_unknown_types(run: Run, played: Played) -> None:
    result = run("events", "import", "-", "--skip-unknown", input=events("Custom.A", "Memori.Created"))
    assert "1 refused" in result.stdout
    assert _imported(played) == ["Custom.A"]


def test_an_export_says_what_is_not_in_it(run: Run, tmp_path: Path) -> None:
    file = str(tmp_path / "log.ndjson")
    assert "types export" not in run("events", "export", file).stderr
    run("events", "types", "add", "--type", "Order.Placed", "--schema", "{}")
    assert "crucible events types export types.json" in run("events", "export", file).stderr
    assert "types export" not in run("events", "export", file, "--type", "Custom.A").stderr


def test_count(run: Run) -> None:
    assert run("events", "count").stdout.strip() == "0 events"
    run("events", "emit", "-", input=events("Custom.A", "Custom.B", "Custom.A"))
    shown = run("events", "count", "--by", "type").stdout
    assert "Custom.A" in shown
    assert "66.7%" in shown
    assert json.loads(run("events", "count", "--by", "type", "--json").stdout) == {
        "count": 3,
        "groups": {"Custom.A": 2, "Custom.B": 1},
    }


def test_list_goes_through_all(run: Run, played: Played) -> None:
    run("events", "emit", "-", input=events(*["Custom.A"] * 30))
    assert len(run("events", "list", "--json").stdout.splitlines()) == 20
    found = run("events", "list", "--all", "--asc", "--json").stdout.splitlines()
    assert [json.loads(line)["sequence"] for line in found] == list(range(1, 31))
    assert "No events match." in run("events", "list", "--type", "Custom.None").stdout


def test_tail_shows_what_happens_to_the_stream(run: Run, played: Played) -> None:
    played.append({"type": "Custom.A"})
    played.append({"type": "Custom.A"})
    played.stream_limit = 1
    played.frames = ['{"type": "caught_up", "sequence": 0}', '{"type": "gap", "dropped": 12}']
    result = run("events", "tail", "--from", "start", "-n", "2", "--json", "--world", "mars", "--filter", "n>=3")
    assert [json.loads(line)["sequence"] for line in result.stdout.splitlines()] == [1, 2]
    assert "caught up at #0" in result.stderr
    assert "too slow for 12 events" in result.stderr
    assert "connecting again" in result.stderr
    assert played.wishes[0]["world_id"] == "mars"
    assert played.wishes[0]["filters"] == [{"event_type": "*", "filter": {"n": {"gte": 3}}}]


@pytest.mark.parametrize(
    ("given", "filter"),
    [
        (None, None),
        (["a=1"], {"a": 1}),
        (["a=x y"], {"a": "x y"}),
        (["a.b!=true"], {"a.b": {"not_equals": True}}),
        (["t~^[0-9]+$"], {"t": {"matches": "^[0-9]+$"}}),
        (["n>=3"], {"n": {"gte": 3}}),
        (["n<3"], {"n": {"lt": 3}}),
        (['{"a": {"contains": "x=1"}}'], {"a": {"contains": "x=1"}}),
        (["a=1", "b=2"], {"$and": [{"a": 1}, {"b": 2}]}),
    ],
)
def test_filters(given: list[str] | None, filter: Any) -> None:
    assert filter_of(given, "--filter") == filter


def test_what_is_neither_filter_nor_pair_is_a_usage_error() -> None:
    with pytest.raises(typer.BadParameter, match="is not JSON"):
        filter_of(["tags"], "--filter")
    with pytest.raises(typer.BadParameter, match="a is a value already"):
        fields_of(["a=1", "a.b=2"], "PAYLOAD")


@pytest.mark.parametrize(
    ("given", "moment"),
    [
        (None, None),
        ("10m", "2026-11-21T09:50:00.000000Z"),
        ("2h", "2026-11-21T08:00:00.000000Z"),
        ("3d", "2026-11-18T10:00:00.000000Z"),
        ("999999999w", "1970-01-01T00:00:00.000000Z"),
        ("2026-11-21T10:00:00Z", "2026-11-21T10:00:00Z"),
        ("start", "start"),
    ],
)
def test_moments(given: str | None, moment: str | None) -> None:
    assert time_of(given, 1_795_255_200_000_000) == moment


def test_a_giant_line_is_never_held_whole(tmp_path: Path) -> None:
    file = tmp_path / "giant"
    file.write_bytes(b"x" * (5 * EVENT_BYTES) + b"\n\n" + b'{"a": 1}\n{"b": 2}')
    with ndjson.open_input(str(file)) as (opened, size):
        found = list(ndjson.lines(opened))
    assert [line.number for line in found] == [1, 3, 4]
    assert EVENT_BYTES < len(found[0].raw) < EVENT_BYTES + 2000
    assert sum(line.size for line in found) + 1 == size


def test_an_export_writes_through_what_is_no_file_of_its_own(run: Run, played: Played, tmp_path: Path) -> None:
    """A link stays a link, and a pipe a pipe, whatever rights the user has over their directory."""
    run("events", "emit", "-", input=events("Custom.A"))
    target, link, pipe = tmp_path / "target.ndjson", tmp_path / "link.ndjson", tmp_path / "pipe"
    target.write_text("before")
    link.symlink_to(target)
    assert run("events", "export", str(link)).exit_code == 0
    assert link.is_symlink()
    assert json.loads(target.read_text())["sequence"] == 1
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        assert run("events", "export", str(pipe)).exit_code == 0
        assert pipe.is_fifo()
        assert json.loads(read.result(10))["sequence"] == 1


def test_a_byte_order_mark_is_no_part_of_the_first_event(run: Run, played: Played, tmp_path: Path) -> None:
    file = tmp_path / "log.ndjson"
    file.write_text(events("Custom.A").replace("\n", "\r\n"), "utf-8-sig", newline="")
    assert run("events", "import", str(file)).exit_code == 0
    assert _imported(played) == ["Custom.A"]


def test_an_import_ends_at_what_a_service_is_away_for(run: Run, played: Played, tmp_path: Path) -> None:
    """What comes after it would be out of order for good."""
    played.troubles = [trouble(503, "unavailable", "3600")]
    result = run("events", "import", "-", input=events("Custom.A", "Custom.B"))
    assert result.exit_code == 1
    assert "try again" in result.stderr
    assert "committed" not in result.stdout


def test_event_is_found_by_id_sequence_and_beginning(run: Run, played: Played) -> None:
    first, second = "evt_01kb5t8pgvf8rr2q5a2qy4ch2m", "evt_01kb5t8pgvf8rr2q5a2qy4ch2n"
    for id in (first, second):
        played.append({"type": "Custom.Note", "payload": {}, "id": id})
    for given, found in ((second, second), ("1", first), ("#2", second), (second[:-1] + "n", second)):
        assert json.loads(run("events", "get", given, "--json").stdout)["metadata"]["id"] == found
    several = run("events", "get", first[:20])
    assert (several.exit_code, "may be any of 2 events" in several.stderr) == (1, True)
    for unknown in ("7", "evt_01kb5t8pgz"):
        assert run("events", "get", unknown).exit_code == 1
    assert run("events", "trace", first[:-1] + "m").exit_code == 0
