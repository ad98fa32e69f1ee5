"""The `crucible` command: which commands there are, and where each one lives.

A command's module is imported when the command is asked for, so that `crucible --help` does not wait for all of them.
"""

import importlib
import os
import sys
from collections.abc import Mapping
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS = {
    "up": "Start Crucible on this machine: NATS and all services.",
    "demo": "Show the whole chain on a real file, as a tree with times.",
    "watch": "Turn a folder of Markdown notes into events.",
    "listen": "Receive webhooks here: verify and print them.",
    "events": "Read, follow, append, count, move and replay events.",
    "replays": "Show and steer replays.",
    "hooks": "List, add and try hooks.",
    "webhooks": "List, create, change and try webhooks.",
    "memory": "Keep and find memories.",
    "worlds": "List, add and remove worlds.",
    "rooms": "List, add and remove the rooms of a world.",
    "retention": "Show and set how long events are kept.",
    "doctor": "Prove the wiring of every hook and webhook.",
}
"""Each name is also that of a module of `commands`, whose `app` holds the command, or the group of commands."""

COMPLETION = ("install_completion", "show_completion")
SHARED = ("url", "key", "data", "json")
"""Options of (nearly) every command, which may also stand before it."""
CONTEXT = {"help_option_names": ["-h", "--help"]}


class Commands(TyperGroup):
    """Shows every command, and imports only the one that runs."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in with the help line."""
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name]) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if not name:
            return name, command, rest
        command = load(name)
        options = {option: ctx.params[option] for option in SHARED if ctx.params.get(option)}
        ctx.default_map = {name: _defaults(command, options)}
        return name, command, rest


def _defaults(command: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options before a command as its defaults, or those of each command of a group."""
    if inner := getattr(command, "commands", None):
        return {name: _defaults(one, options) for name, one in inner.items()}
    known = {parameter.name for parameter in command.params}
    if unknown := [option for option in options if option not in known]:
        raise typer.BadParameter(f"`crucible {command.name}` has no --{unknown[0]}")
    return dict(options)


def load(name: str) -> Any:
    """The command, or the group of commands, of that name."""
    command = typer.main.get_command(importlib.import_module(f"{__package__}.commands.{name}").app)
    command.name = name
    # Typer gives every app its own completion options; the outermost ones serve them all.
    command.params = [option for option in command.params if option.name not in COMPLETION]
    return command


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"crucible {version('crucible-cli')}")
        raise typer.Exit


def crucible(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    url: Annotated[str | None, typer.Option("--url", hidden=True)] = None,
    key: Annotated[str | None, typer.Option("--key", hidden=True)] = None,
    data: Annotated[str | None, typer.Option("--data", hidden=True)] = None,
    json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
) -> None:
    """Memory and automation for agents and knowledge bases, on one durable event log. To begin with:

    \b
    crucible up                   everything; the rest in another terminal
    crucible demo                 a note, a hook and a signed webhook
    crucible hooks add --help     a hook of your own, with one to copy
    crucible listen --help        an endpoint here, and a webhook to it
    crucible watch FOLDER         your notes become events and memories
    crucible events trace EVENT   shows what followed from it, and why

    --url, --key, --data and --json may stand before the command, too.
    """


def build() -> typer.Typer:
    app = typer.Typer(cls=Commands, no_args_is_help=True, context_settings=CONTEXT, pretty_exceptions_show_locals=False)
    app.callback()(crucible)
    return app


def main() -> None:
    # Somebody may have closed them (`>&-`): what would be written there is for nobody.
    sys.stdout, sys.stderr = sys.stdout or open(os.devnull, "w"), sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    # An output that cannot show a character shows `?` for it.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        build()()
    except OSError as error:
        # Only output is written outside of a session, such as a help text to a full disk.
        sys.exit(f"error: {error}")
