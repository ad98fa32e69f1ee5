"""`crucible hooks`: hook files, the registry of hooks, and their runs."""

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text
from typer.core import TyperGroup

from crucible_cli.display import clean
from crucible_cli.files import read_text
from crucible_cli.lookup import find_by_name
from crucible_cli.options import json_object, json_of, stdin_text
from crucible_cli.session import Limit, Session, Yes, command
from crucible_cli.tables import as_json, check_view, hooks_table, run_view, runs_table, state_text
from crucible_client import Crucible
from crucible_core.errors import InvalidError
from crucible_core.hookfile import read_hook, script_file, with_default_name
from crucible_core.limits import HOOK_FILE_BYTES
from crucible_core.protocol.hooks import HookView

app = typer.Typer(no_args_is_help=True, help="List, add and try hooks.")
Name = Annotated[str, typer.Argument(help="The hook's name, or the beginning of it.")]


@command(app, table=True)
def list_(session: Session, limit: Limit = 1000) -> None:
    """The hooks, with their states and counters; Pre hooks in the order they run."""
    with session.connect() as crucible:
        session.first("hooks", limit, crucible.hooks.page, hooks_table)


@command(app, alias="show")
def get(session: Session, name: Name) -> None:
    """One hook, whole."""
    with session.connect() as crucible:
        session.show(find_hook(crucible, name), _hook_view)


@command(app, alias="create")
def add(
    session: Session,
    file: Annotated[Path, typer.Argument(help="A hook file: Markdown with front matter, YAML or JSON; - is stdin.")],
) -> None:
    """Register a hook, or a new version of it. A script beside the file goes with it. Such a file, shout.md:

    \b
    ---
    name: shout
    trigger:
      events: [{type: Memory, event: Created}]
    condition:
      expr: 'event.payload.content.contains("!")'
    action:
      type: Script
      script: |
        memory_tag(event["payload"]["id"], "#loud")
    ---
    """
    definition, markdown = read_hook_file(file)
    with session.connect() as crucible:
        session.show(crucible.hooks.add(definition, markdown=markdown), _added_view)


@command(app)
def update(
    session: Session,
    name: Name,
    changes: Annotated[str, typer.Argument(help="A merge patch of the hook object: JSON, @FILE or -.")],
) -> None:
    """Change a hook; what CHANGES leaves out stays.

    \b
    crucible hooks update tidy '{"options": {"timeout_ms": 5000}}'
    """
    changed = json_object(changes, "CHANGES") or {}
    with session.connect() as crucible:
        session.show(crucible.hooks.update(find_hook(crucible, name).name, changed), _state)


@command(app)
def enable(session: Session, name: Name) -> None:
    """Let a disabled hook fire again."""
    with session.connect() as crucible:
        session.show(crucible.hooks.enable(find_hook(crucible, name).name), _state)


@command(app)
def disable(session: Session, name: Name) -> None:
    """Keep a hook, but do not let it fire."""
    with session.connect() as crucible:
        session.show(crucible.hooks.disable(find_hook(crucible, name).name), _state)


@command(app, alias="rm")
def delete(session: Session, name: Name, yes: Yes = False) -> None:
    """Remove a hook, and what waits to be run by it. With --yes, give the whole name."""
    with session.connect() as crucible, session.removing(f"the hook {name}"):
        if not yes:
            hook = find_hook(crucible, name)
            name = hook.name
            session.err.print(hooks_table([hook]))
            session.confirm(f"Remove the hook {name}, and what waits to be run by it?", yes)
        crucible.hooks.delete(name)
    session.show({"deleted": name}, lambda _: Text.assemble("deleted ", (name, "bold")))


class Runs(TyperGroup):
    """`runs NAME` is `runs list NAME`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = args and args[0] in (*self.commands, *ctx.help_option_names)
        parsed: list[str] = super().parse_args(ctx, args if named else ["list", *args])
        return parsed


runs = typer.Typer(cls=Runs, help="The runs of a hook, latest first; `runs show RUN` shows one whole.")
app.add_typer(runs, name="runs")


@command(runs, table=True)
def show(
    session: Session, run: Annotated[str, typer.Argument(help="The run's id (run_…), or a beginning of it.")]
) -> None:
    """One run, attempt by attempt: what it logged, gave and did."""
    with session.connect() as crucible:
        session.list("runs", crucible.hooks.run(run), run_view)


@command(runs, "list", table=True)
def list_runs(
    session: Session,
    name: Name,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 20,
) -> None:
    """The latest runs of a hook: when, how long, how they ended, and what they said."""
    with session.connect() as crucible:
        hook = find_hook(crucible, name).name
        latest = list(islice(crucible.hooks.runs(hook, page_size=min(limit, 500)), limit))
    session.list("runs", latest, runs_table)


@command(app, "test")
def try_(
    session: Session,
    name: Name,
    payload: Annotated[str | None, typer.Option(help="The event's payload: JSON, @FILE or - (stdin).")] = None,
    real: Annotated[bool, typer.Option("--real", help="Let its effects happen; else they are only recorded.")] = False,
) -> None:
    """Fire one synthetic event through a hook. Exit code 1 when it is not live."""
    body = json_object(payload, "--payload")
    with session.connect() as crucible:
        check = crucible.hooks.test(find_hook(crucible, name).name, dry_run=not real, payload=body)
    session.show(check, check_view)
    if check.verdict in ("inert", "failing"):
        raise typer.Exit(1)


def find_hook(crucible: Crucible, text: str) -> HookView:
    """The hook of that name, or the only one whose name begins so. Raises NotFoundError, ConflictError."""
    return find_by_name(text, "hook", crucible.hooks.get, lambda: [hook.name for hook in crucible.hooks.list()])


def read_hook_file(file: Path) -> tuple[dict[str, Any] | None, str | None]:
    """(definition, None) where something was added to what the file says, else (None, the file's text).

    The gateway cannot see the files here, so scripts that the hook names are put in their places. Mistakes in the text
    are for the gateway to explain. `-` is stdin.
    """
    if str(file) == "-":
        return None, stdin_text("FILE")
    text = _read(file)
    try:
        given = read_hook(text)
    except InvalidError:
        return None, text
    if given is None:
        is_json = file.suffix.lower() == ".json"
        return (json_of(text, dict[str, Any], clean(file.name, 400)), None) if is_json else (None, text)
    complete = with_default_name(_inline_scripts(given, file.parent), file.name)
    return (None, text) if complete == given else (complete, None)


def _inline_scripts(given: dict[str, Any], beside: Path) -> dict[str, Any]:
    """The hook with scripts for their names in `condition` and `action`."""
    parts = {part: given[part] for part in ("condition", "action") if isinstance(given.get(part), dict)}
    names = {part: script_file(holder.get("script")) for part, holder in parts.items()}
    scripts = {part: _read(beside / name) for part, name in names.items() if name and not name.endswith(".rn")}
    return given | {part: parts[part] | {"script": script} for part, script in scripts.items()}


def _read(file: Path) -> str:
    try:
        return read_text(file, HOOK_FILE_BYTES)
    except InvalidError as error:
        raise typer.BadParameter(error.detail) from error


def _state(hook: HookView) -> Text:
    said = "".join(f"\n{clean(warning, 300)}" for warning in hook.warnings)
    return Text.assemble((hook.name, "bold"), "  ", state_text(hook.state), (said, "yellow"))


def _added_view(hook: HookView) -> RenderableType:
    name = hook.name
    return Group(
        _state(hook), Text(f"Try it: crucible hooks test {name} · what it did: crucible hooks runs {name}", "dim")
    )


def _hook_view(hook: HookView) -> RenderableType:
    return Group(_state(hook), as_json(hook.definition or {}))
