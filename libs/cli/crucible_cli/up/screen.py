"""The screen of `crucible up`: a live table on a terminal, plain lines elsewhere, and JSON where it was asked for."""

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Protocol, TextIO

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from crucible_cli.display import clean
from crucible_cli.up.supervisor import Notice

_STYLES = {
    "starting": "yellow",
    "ready": "green",
    "hangs": "bold red",
    "died": "bold red",
    "stopping": "yellow",
    "stopped": "dim",
}
_LINE = 500
Fact = str | int | Mapping[str, int]


class Screen(Protocol):
    def notice(self, notice: Notice) -> None:
        """A program's new state, or its warning."""

    def say(self, text: str, style: str = "") -> None:
        """One line, in a rich style where there are colours."""

    def up(self, facts: Mapping[str, Fact], lines: list[str]) -> None:
        """All is ready: `facts` for machines, `lines` for people."""

    def close(self) -> None: ...


def open_screen(json: bool, ports: Mapping[str, int]) -> Screen:
    """The screen that suits where our output goes, for the programs of `ports`."""
    if json:
        return PlainScreen(sys.stderr, sys.stdout)
    return (
        LiveScreen(Console(highlight=False, markup=False, emoji=False), ports)
        if sys.stdout.isatty()
        else PlainScreen(sys.stdout)
    )


class PlainScreen:
    """Lines without colours, each written out at once; with `facts`, one JSON object there when all is ready."""

    def __init__(self, out: TextIO, facts: TextIO | None = None) -> None:
        self._out = out
        self._facts = facts

    def notice(self, notice: Notice) -> None:
        self.say(_words(notice))

    def say(self, text: str, style: str = "") -> None:
        _write(self._out, text)

    def up(self, facts: Mapping[str, Fact], lines: list[str]) -> None:
        if self._facts:
            _write(self._facts, msgspec.json.encode(facts).decode())
        else:
            for line in lines:
                self.say(line)

    def close(self) -> None: ...


class LiveScreen:
    """A table of the programs until all are ready, and lines from then on."""

    def __init__(self, console: Console, ports: Mapping[str, int]) -> None:
        self._console = console
        self._ports = ports
        self._began = time.monotonic()
        self._states = {name: Text("waiting", "dim") for name in ports}
        self._live: Live | None = Live(self._table(), console=console, auto_refresh=False)
        self._safely(self._live.start)

    def notice(self, notice: Notice) -> None:
        if self._live and notice.state:
            self._states[notice.name] = self._state(notice)
            live, table = self._live, self._table()
            self._safely(lambda: live.update(table, refresh=True))
        if not self._live or notice.state in (None, "died", "hangs"):
            self.say(_words(notice), _STYLES.get(notice.state or "", "yellow"))

    def say(self, text: str, style: str = "") -> None:
        self._safely(lambda: self._console.print(Text(text, style), soft_wrap=True))

    def up(self, facts: Mapping[str, Fact], lines: list[str]) -> None:
        self.close()
        for line in lines:
            self.say(line)

    def close(self) -> None:
        if self._live:
            self._safely(self._live.stop)
        self._live = None

    def _state(self, notice: Notice) -> Text:
        took = f" after {time.monotonic() - self._began:.1f} s" if notice.state == "ready" else ""
        return Text(notice.text.removeprefix("is ") + took, _STYLES.get(notice.state or "", ""))

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, state in self._states.items():
            table.add_row(name, Text(str(self._ports[name]), "dim"), state)
        return table

    def _safely(self, show: Callable[[], object]) -> None:
        # A terminal that is gone must not end what runs behind it.
        with contextlib.suppress(OSError, ValueError):
            show()


def _words(notice: Notice) -> str:
    return f"{notice.name}: {clean(notice.text, _LINE)}" if notice.state is None else f"{notice.name} {notice.text}"


def _write(out: TextIO, line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        out.write(line + "\n")
        out.flush()
