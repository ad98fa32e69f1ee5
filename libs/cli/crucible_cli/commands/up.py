"""`crucible up`: reads its options, and becomes `crucible_cli.up.main`."""

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from crucible_cli.up.main import Options
from crucible_cli.up.state import default_root
from crucible_core.limits import FIRST_PORT

app = typer.Typer()


@app.command()
def up(
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Where everything is kept.", show_default="$XDG_DATA_HOME/crucible"),
    ] = None,
    port_base: Annotated[
        int, typer.Option("--port-base", help="The gateway's port; the services take the four after it.")
    ] = FIRST_PORT,
    hooks: Annotated[
        Path | None, typer.Option("--hooks", help="The directory of hook files.", show_default="hooks in --data")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object when all is ready.")] = False,
) -> None:
    """Start Crucible on this machine: NATS and all services. Ctrl-C stops everything."""
    options = Options(
        data=str(data or default_root(os.environ)),
        hooks=str(hooks) if hooks else None,
        port_base=port_base,
        json=json,
        crucible="crucible" if shutil.which("crucible") else sys.argv[0],
    )
    # -P: a file of the current directory must not pass for a module of ours.
    command = [sys.executable, "-P", "-m", "crucible_cli.up.main", msgspec.json.encode(options).decode()]
    os.execv(sys.executable, command)
