import io
import json

from rich.console import Console

from crucible_cli.up.screen import LiveScreen, PlainScreen, open_screen
from crucible_cli.up.supervisor import Notice

PORTS = {"nats": 4222, "events": 8081}


def test_live_screen_is_a_table_until_all_is_up_then_lines() -> None:
    out = io.StringIO()
    screen = LiveScreen(Console(file=out, force_terminal=True, color_system=None, width=80), PORTS)
    screen.notice(Notice("events", "ready", "is ready"))
    assert "events  8081  ready after 0." in out.getvalue()
    screen.up({"url": "x"}, ["Crucible is up"])
    screen.notice(Notice("events", "died", "died (killed by SIGKILL), restarting"))
    assert out.getvalue().endswith("Crucible is up\nevents died (killed by SIGKILL), restarting\n")


def test_warnings_reach_the_terminal_as_text_only() -> None:
    out = io.StringIO()
    screen = LiveScreen(Console(file=out, force_terminal=True, color_system=None, width=80), PORTS)
    screen.close()
    before = len(out.getvalue())
    screen.notice(Notice("nats", None, "[1] [ERR] \x1b[2J[bold]no[/bold]"))
    assert out.getvalue()[before:] == "nats: [1] [ERR] [2J[bold]no[/bold]\n"


def test_machines_get_one_object_and_people_the_rest() -> None:
    facts, people = io.StringIO(), io.StringIO()
    screen = PlainScreen(people, facts)
    screen.notice(Notice("nats", "ready", "is ready"))
    screen.up({"url": "http://x"}, ["Crucible is up"])
    assert json.loads(facts.getvalue()) == {"url": "http://x"}
    assert people.getvalue() == "nats is ready\n"


def test_output_that_is_gone_is_no_error() -> None:
    gone = io.StringIO()
    gone.close()
    PlainScreen(gone).say("x")
    screen = open_screen(True, PORTS)
    screen.close()
